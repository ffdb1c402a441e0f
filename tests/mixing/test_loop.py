"""The whole loop, detector and all: rare samples come back more often than the data has them."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from raremix import BufferedMixSampler, FlagRate, KNNDistance, OODDetector, RareMemoryBuffer

RARE = 0.02
TOTAL = 1500


def data() -> tuple[TensorDataset, torch.Tensor]:
    """Five common clusters and a small one apart from them; returned with who is rare."""
    generator = torch.Generator().manual_seed(0)
    centers = 4 * torch.randn(6, 16, generator=generator)
    cluster = torch.randint(0, 5, (TOTAL,), generator=generator)
    is_rare = torch.zeros(TOTAL, dtype=torch.bool)
    is_rare[torch.randperm(TOTAL, generator=generator)[: int(RARE * TOTAL)]] = True
    cluster[is_rare] = 5
    features = centers[cluster] + torch.randn(TOTAL, 16, generator=generator)
    return TensorDataset(features, torch.arange(TOTAL)), is_rare


def test_rare_samples_fill_the_buffer_and_come_back() -> None:
    dataset, is_rare = data()
    buffer = RareMemoryBuffer(capacity=30)
    detector = OODDetector(KNNDistance(k=40), FlagRate(0.02))
    loader = BufferedMixSampler.wrap(
        DataLoader(dataset, batch_size=50, shuffle=True), buffer, replay=0.2, lag=1
    )
    rare_of_batches = []
    for _ in range(3):
        for features, ids in loader:
            batch = loader.batch
            assert torch.equal(ids, batch.ids)
            rare_of_batches.append(is_rare[ids].float().mean())
            detection = detector.observe(features, ids=ids, is_replay=batch.is_replay)
            buffer.add(batch, detection)
    in_buffer = float(is_rare[buffer.keys].float().mean())
    in_batches = float(torch.stack(rare_of_batches[-30:]).mean())
    assert len(buffer) >= 10
    assert in_buffer > 10 * RARE
    assert in_batches > 3 * RARE
    metrics = buffer.metrics()
    assert metrics["late"] == 0
    assert metrics["admissions"] - metrics["evictions"] == len(buffer)


def test_resuming_the_whole_loop_gives_the_same_batches() -> None:
    dataset, _ = data()

    class Run:
        def __init__(self) -> None:
            self.buffer = RareMemoryBuffer(40)
            self.detector = OODDetector(KNNDistance(k=20, capacity=512), FlagRate(0.05))
            base = DataLoader(dataset, batch_size=50, shuffle=True)
            self.loader = BufferedMixSampler.wrap(base, self.buffer, lag=3)

        def train(self, batches: int) -> list[list[int]]:
            seen: list[list[int]] = []
            while len(seen) < batches:
                for features, ids in self.loader:
                    seen.append(ids.tolist())
                    batch = self.loader.batch
                    detection = self.detector.observe(features, ids=ids, is_replay=batch.is_replay)
                    self.buffer.add(batch, detection)
                    if len(seen) == batches:
                        break
            return seen

    whole = Run()
    expected = whole.train(70)
    assert whole.buffer.metrics()["replays"] > 100
    stopped, resumed = Run(), Run()
    assert stopped.train(30) == expected[:30]
    for part in ("buffer", "detector", "loader"):
        getattr(resumed, part).load_state_dict(getattr(stopped, part).state_dict())
    assert resumed.train(40) == expected[30:]
