"""Tests of the alarms: a stream that drifts, one that restarts, and one that collapses."""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from raremix.detection import (
    ClusterMass,
    FlagRate,
    KNNDistance,
    MeanDistance,
    NoiseGate,
    OODDetector,
    ReferenceBank,
    TwoScaleDistance,
)
from raremix.detection.health import bank_health, effective_rank, relative_spread
from raremix.detection.watch import ReferenceWatch
from raremix.errors import RaremixWarning
from raremix.protocols import Scorer

DIM = 32


def normal(n: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@dataclass
class Encoder:
    """Stands for a network in training: a linear map of 600 fixed images, and the noise of crops."""

    seed: int = 0

    def __post_init__(self) -> None:
        self.images = normal(600)
        self.map = normal(DIM, seed=self.seed + 1000) / DIM**0.5

    def drift(self, step: int) -> None:
        self.map = self.map + 0.05 * normal(DIM, seed=step) / DIM**0.5

    def batch(self, step: int, size: int = 64) -> tuple[Tensor, Tensor]:
        ids = torch.randperm(600, generator=torch.Generator().manual_seed(step))[:size]
        crops = self.images[ids] + 0.3 * normal(size, seed=step + 5000)
        return crops @ self.map, ids


def watched() -> OODDetector:
    return OODDetector(KNNDistance(k=10), FlagRate(0.1, window=1300, warmup_scores=300))


# --- what is measured ---


@pytest.mark.parametrize("directions", [1, 3, 10, 40])
def test_effective_rank_counts_the_directions_of_equal_spread(directions: int) -> None:
    rows = torch.zeros(4000, 64)
    rows[:, :directions] = torch.nn.functional.normalize(normal(4000, directions))
    if directions == 1:
        rows[:, 0] = rows[:, 0].sign()
    assert effective_rank(rows + 1e-9) == pytest.approx(directions, rel=0.1)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    rows = torch.nn.functional.normalize(normal(200, 40) * torch.logspace(0, -2, 40)).double()
    shares = torch.linalg.svdvals(rows - rows.mean(dim=0)).square()
    shares = shares / shares.sum()
    expected = math.exp(-float((shares * shares.log()).sum()))
    assert effective_rank(rows.float()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rows", [torch.zeros(9, 4), torch.ones(9, 4), torch.full((9, 4), 100.0)])
def test_rows_all_alike_have_no_rank_and_no_spread(rows: Tensor) -> None:
    assert effective_rank(rows) == 0.0
    assert relative_spread(rows) == pytest.approx(0.0, abs=1e-12)


def test_the_health_of_a_bank_says_size_age_rank_and_repetition() -> None:
    bank = ReferenceBank(500)
    assert bank_health(bank) == {"bank_rows": 0.0, "bank_capacity": 500.0}
    bank.add(normal(300), torch.arange(300))
    bank.add(normal(1).repeat(100, 1), torch.arange(300, 400))
    health = bank_health(bank)
    assert all(type(value) is float for value in health.values())
    assert (health["bank_rows"], health["age_p50"], health["age_p95"]) == (400.0, 100.0, 100.0)
    # A hundred copies of the first row.
    assert health["duplicate_share"] == pytest.approx(100 / 400)
    assert 20 < health["effective_rank"] <= DIM


def test_a_detector_says_its_health_in_plain_numbers() -> None:
    detector = watched()
    assert math.isnan(detector.health()["revisit_agreement"])
    detector.fit(normal(300), range(300))
    detector.observe(normal(300)[:50], range(50))
    health = detector.health()
    assert all(type(value) is float for value in health.values())
    assert health["revisit_agreement"] == 1.0
    assert (health["is_collapsed"], health["restarts"], health["histories"]) == (0.0, 0.0, 50.0)
    assert "bank_rows" not in OODDetector(MeanDistance()).health()


# --- a stream in training ---


@pytest.mark.parametrize("size", [16, 64])
def test_a_drifting_encoder_raises_no_alarm(size: int) -> None:
    encoder, detector = Encoder(), watched()
    flags = []
    for step in range(120 * 64 // size):
        encoder.drift(step)
        flags.append(detector.observe(*encoder.batch(step, size)).is_rare)
    assert detector.health()["restarts"] == 0
    assert detector.health()["revisit_agreement"] > 0.8
    assert 0.05 < float(torch.cat(flags[len(flags) // 4 :]).float().mean()) < 0.15


@pytest.mark.parametrize("size", [16, 64])
def test_a_restarted_encoder_is_noticed_once_and_its_old_rows_leave(size: int) -> None:
    encoder, detector = Encoder(), watched()
    for step in range(60 * 64 // size):
        detector.observe(*encoder.batch(step, size))
    encoder = Encoder(seed=7)

    def go_on() -> int:
        steps = range(10_000, 10_000 + 60 * 64 // size)
        return sum(
            int(detector.observe(*encoder.batch(step, size)).is_rare.sum()) for step in steps
        )

    with pytest.warns(RaremixWarning, match="no nearer to their own earlier embedding") as caught:
        flagged = go_on()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert detector.health()["restarts"] == 1
    assert isinstance(detector.scorer, KNNDistance)
    bank, new = detector.scorer.bank, encoder.images @ encoder.map
    assert bank.ids is not None
    # Whatever is held now is near what the new encoder says of the same image.
    gaps = (bank.rows - new[bank.ids]).norm(dim=1)
    assert float(gaps.max()) < float(torch.cdist(new, new).median())
    assert 0.0 < flagged / (60 * 64) < 0.2


@pytest.mark.parametrize("with_ids", [False, True])
def test_nothing_is_rare_while_the_embeddings_are_collapsed(with_ids: bool) -> None:
    detector = watched()

    def flags(steps: range, *, directions: int) -> Tensor:
        found = []
        for step in steps:
            rows, ids = Encoder().batch(step)
            rows[:, directions:] *= 1e-3
            found.append(detector.observe(rows, ids if with_ids else None))
        last = found[-1]
        assert (last.threshold == math.inf) == (directions < 8)
        assert torch.isfinite(last.scores).all()
        return torch.stack([each.is_rare for each in found])

    assert flags(range(100), directions=DIM).any()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        during = flags(range(100, 300), directions=2)
    said = [str(warning.message) for warning in caught]
    # With ids, too: the samples do not first seem to come from another encoder.
    assert len(said) == 1
    assert re.search(r"have collapsed: the last \d+ span 2\.\d of 32 directions", said[-1])
    assert detector.health()["is_collapsed"] == 1.0
    assert not during[-100:].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RaremixWarning)  # that it has changed altogether
        after = flags(range(300, 500), directions=DIM)
    assert detector.health()["is_collapsed"] == 0.0
    assert after[-50:].any()


def test_collapse_is_warned_of_once() -> None:
    detector = OODDetector(KNNDistance(k=10, capacity=600))
    alike = [torch.ones(16, DIM) + 1e-7 * normal(16, seed=step) for step in range(400)]
    with pytest.warns(RaremixWarning, match="have collapsed") as caught:
        found = [detector.observe(rows) for rows in alike]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not found[-1].is_rare.any()


def test_a_fit_on_few_directions_is_warned_of_and_still_flagged() -> None:
    rows = torch.cat([normal(1000, 5), torch.zeros(1000, 123)], dim=1)
    with pytest.warns(RaremixWarning, match=r"span only \d\.\d of 128 directions") as caught:
        found = OODDetector(KNNDistance(k=5)).fit(rows)
    assert caught[0].filename == __file__
    assert found.is_rare.any()


def test_a_random_encoder_raises_no_flags_once_its_rows_are_alike() -> None:
    # A deep network at its random start maps all images to nearly one point.
    weights = [normal(64, 64, seed=layer) / 8 for layer in range(40)]
    rows = normal(2000, 64).abs()
    for weight in weights:
        rows = (rows @ weight).relu() + 1.0
    with pytest.warns(RaremixWarning, match="collapsed|span only"):
        OODDetector(KNNDistance(k=10)).fit(rows)


@pytest.mark.parametrize("stop", [3, 25, 61])
def test_alarms_go_on_where_they_were_stopped(stop: int) -> None:
    encoder, straight, stopped = Encoder(), watched(), watched()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RaremixWarning)
        for step in range(90):
            if step == 60:
                encoder = Encoder(seed=7)
            if step == stop:
                state = stopped.state_dict()
                stopped = watched()
                stopped.load_state_dict(state)
            for detector in (straight, stopped):
                detector.observe(*encoder.batch(step))
    assert straight.health() == stopped.health()
    assert straight.health()["restarts"] == 1.0


SCORERS: dict[str, Callable[[], Scorer]] = {
    "knn": lambda: KNNDistance(k=30),
    "two scales": lambda: TwoScaleDistance(k=30),
    "noise gate": lambda: NoiseGate(KNNDistance(k=30)),
    "cluster mass": lambda: ClusterMass(clusters=30),
}


@pytest.mark.parametrize("name", SCORERS)
def test_after_a_restart_every_scorer_waits_for_enough_new_rows(name: str) -> None:
    detector, fresh = (OODDetector(SCORERS[name](), FlagRate(0.2)) for _ in range(2))
    detector.fit(normal(300), range(300))
    other = normal(300) @ normal(DIM, seed=7)
    batches = [(other[start : start + 20], range(start, start + 20)) for start in range(0, 280, 20)]
    with pytest.warns(RaremixWarning, match="begin anew"):
        found = [detector.observe(*batch) for batch in batches]
    restarted = max(at for at, each in enumerate(found) if each.scores.isnan().all())
    first = restarted - 1  # 20 rows and 40 rows: one batch is not enough, and two are
    assert found[first].scores.isnan().all()
    assert not found[first - 1].scores.isnan().any()
    for batch, each in zip(batches[first:], found[first:], strict=True):
        expected = fresh.observe(*batch).scores
        torch.testing.assert_close(each.scores, expected, equal_nan=True)


# --- the size of k ---


def test_more_neighbours_than_may_be_rare_are_warned_of_once() -> None:
    rows = normal(1000)
    detector = OODDetector(KNNDistance(k=80), FlagRate(0.05))
    with pytest.warns(RaremixWarning, match="k means 80 neighbours of 1000 rows, .* at most 50"):
        detector.fit(rows)
    OODDetector(KNNDistance(k=50), FlagRate(0.05)).fit(rows)
    OODDetector(KNNDistance(k=10), FlagRate(0.05)).fit(rows[:30])


def test_in_a_stream_k_is_judged_once_the_bank_is_full() -> None:
    detector = OODDetector(KNNDistance(k=80, capacity=640), FlagRate(0.05))
    for step in range(9):
        detector.observe(normal(64, seed=step))
    with pytest.warns(RaremixWarning, match="80 neighbours of 640 rows") as caught:
        found = [detector.observe(normal(64, seed=step)) for step in range(9, 30)]
    assert (len(caught), len(found)) == (1, 21)


# --- the watch alone ---


def test_agreement_is_the_share_of_others_that_lie_farther() -> None:
    bank = ReferenceBank(100)
    bank.fill(torch.arange(65.0)[:, None], torch.arange(65))
    rows, ids = torch.tensor([[0.0], [64.0], [7.0]]), torch.tensor([0, 0, 999])
    agreement = ReferenceWatch().compare(rows, ids, bank)
    assert agreement[:2].tolist() == [1.0, 0.0]
    assert math.isnan(float(agreement[2]))


def test_a_watch_without_ids_or_with_few_rows_compares_nothing() -> None:
    queue, small = ReferenceBank(100), ReferenceBank(100)
    queue.fill(normal(80), None)
    small.fill(normal(20), torch.arange(20))
    for bank in (queue, small, ReferenceBank(9)):
        assert ReferenceWatch().compare(normal(3), torch.arange(3), bank).isnan().all()
