"""Tests of what goes wrong in practice: bad numbers, odd dtypes, offsets, a killed process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raremix.detection import (
    ClusterMass,
    FlagRate,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    OODDetector,
    TwoScaleDistance,
)
from raremix.errors import EmbeddingShapeError, RaremixWarning, StateMismatchError
from raremix.protocols import Scorer

Maker = Callable[[], Scorer]

SCORERS: dict[str, Maker] = {
    "knn": lambda: KNNDistance(k=5),
    "knn, cosine": lambda: KNNDistance(k=5, metric="cosine"),
    "knn, mean": lambda: KNNDistance(k=5, reduce="mean"),
    "two scales": lambda: TwoScaleDistance(k=8),
    "noise gate": lambda: NoiseGate(KNNDistance(k=5)),
    "cluster mass": lambda: ClusterMass(clusters=3),
    "mahalanobis": lambda: Mahalanobis(),
    "mahalanobis, lengths": lambda: Mahalanobis(normalize=False),
    "mean": lambda: MeanDistance(),
}


def normal(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def detector_of(make: Maker) -> OODDetector:
    return OODDetector(make(), FlagRate(0.1, window=100, warmup_scores=20))


def equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


@pytest.fixture(params=SCORERS)
def make(request: pytest.FixtureRequest) -> Maker:
    return SCORERS[str(request.param)]


# --- numbers ---


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("with_ids", [False, True])
def test_bad_numbers_change_nothing_that_is_learned(
    make: Maker, bad: float, with_ids: bool
) -> None:
    clean, spoilt = detector_of(make), detector_of(make)
    ids = torch.arange(60) if with_ids else None
    for detector in (clean, spoilt):
        detector.fit(normal(60), ids)
    rows = normal(9, seed=1)
    fresh = torch.arange(60, 69) if with_ids else None
    expected = clean.observe(rows, fresh)
    mixed = torch.cat([rows, torch.full((1, 6), bad), rows.new_tensor([[1, 2, bad, 4, 5, 6]])])
    with pytest.warns(RaremixWarning, match="left out 2 of 11 rows"):
        found = spoilt.observe(mixed, torch.arange(60, 71) if with_ids else None)
    assert torch.equal(found.scores[:9], expected.scores)
    assert found.scores[9:].isnan().all()
    assert not found.is_rare[9:].any()
    assert equal(spoilt.state_dict(), clean.state_dict())


def test_a_zero_row_has_a_score_and_spoils_no_other(make: Maker) -> None:
    rows = normal(60) + 3.0
    scorer = make()
    scorer.fit(torch.cat([rows, torch.zeros(1, 6)]))
    assert torch.isfinite(scorer.score(torch.zeros(2, 6))).all()
    assert torch.isfinite(scorer.score(rows)).all()


@pytest.mark.parametrize("name", sorted(set(SCORERS) - {"noise gate", "cluster mass"}))
def test_a_zero_row_has_its_defined_place_by_cosine_and_by_length(name: str) -> None:
    # Beside rows of unit length along one axis, zero is neither near nor alike.
    scorer = SCORERS[name]()
    rows = torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.01 * normal(60)
    scorer.fit(rows)
    assert float(scorer.score(torch.zeros(1, 6))[0]) > float(scorer.score(rows).max())


@pytest.mark.parametrize("offset", [100.0, -100.0])
def test_a_large_offset_changes_no_distance(offset: float) -> None:
    rows, fresh = normal(300, 32) + offset, normal(20, 32, seed=1) + offset
    exact = torch.cdist(fresh.double(), rows.double()).sort(dim=1).values
    for scorer, expected in (
        (KNNDistance(k=5), exact[:, 4]),
        (KNNDistance(k=5, reduce="mean"), exact[:, :5].mean(dim=1)),
        (TwoScaleDistance(k=8), exact[:, 7] / exact[:, 2].sqrt()),
        (MeanDistance(), (fresh.double() - rows.double().mean(dim=0)).norm(dim=1)),
    ):
        scorer.update(rows)
        torch.testing.assert_close(scorer.score(fresh).double(), expected, rtol=1e-6, atol=0.0)
    near, far = Mahalanobis(normalize=False), Mahalanobis(normalize=False)
    near.update(rows - offset)
    far.update(rows)
    torch.testing.assert_close(far.score(fresh), near.score(fresh - offset), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_tiny_and_huge_lengths_scale_a_distance_and_nothing_else(factor: float) -> None:
    rows, fresh = normal(100), normal(9, seed=1)
    for plain, scaled in ((KNNDistance(k=5), KNNDistance(k=5)), (MeanDistance(), MeanDistance())):
        plain.update(rows)
        scaled.update(rows * factor)
        found = scaled.score(fresh * factor).double() / factor
        torch.testing.assert_close(found, plain.score(fresh).double(), rtol=1e-5, atol=0.0)
    first, second = ClusterMass(3, normalize=True), ClusterMass(3, normalize=True)
    torch.testing.assert_close(first.fit(rows), second.fit(rows * factor))


def test_an_offset_beyond_float32_is_named() -> None:
    rows = normal(60).double() + 1e7
    for given in (rows, rows.numpy()):
        with pytest.warns(RaremixWarning, match=r"OODDetector\.fit works in float32, which rounds"):
            OODDetector(KNNDistance(k=3)).fit(given)
    OODDetector(KNNDistance(k=3)).fit(normal(60).double() + 100.0)  # and an ordinary one is not
    OODDetector(KNNDistance(k=3)).fit(rows.float())  # nor rows that have lost their digits already


# --- kinds of arrays ---


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8]
)
def test_every_kind_of_number_gives_the_scores_of_its_float32(
    make: Maker, dtype: torch.dtype
) -> None:
    rows = (10 * normal(60).abs()).to(dtype)
    found = detector_of(make).fit(rows)
    assert torch.equal(found.scores, detector_of(make).fit(rows.float()).scores)
    assert found.scores.dtype == torch.float32


def test_views_gradients_and_arrays_on_disk_are_taken(make: Maker, tmp_path: Path) -> None:
    rows = normal(60)
    expected = detector_of(make).fit(rows).scores
    np.save(tmp_path / "rows.npy", rows.numpy())
    strided = torch.stack([rows, rows], dim=2)[:, :, 0]
    backwards = np.ascontiguousarray(rows.numpy()[::-1])[::-1]
    for given in (
        strided,
        rows.T.contiguous().T,
        rows.clone().requires_grad_(),
        rows.numpy(),
        backwards,
        np.load(tmp_path / "rows.npy", mmap_mode="r"),
    ):
        found = detector_of(make).fit(given).scores
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        assert not found.requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(9, 2, dtype=torch.complex64), "real numbers"),
        (torch.zeros(9, 2, dtype=torch.bool), "real numbers"),
        (np.full((9, 2), "a"), "real numbers"),
        ([[1.0, 2.0]], "a torch tensor or a numpy array"),
    ],
)
def test_other_kinds_are_refused_by_name(given: object, message: str) -> None:
    with pytest.raises(EmbeddingShapeError, match=rf"OODDetector\.fit expects .*{message}"):
        OODDetector().fit(given)  # type: ignore[arg-type]  # on purpose


# --- files ---


def test_a_saved_detector_goes_on_as_if_never_stopped(make: Maker, tmp_path: Path) -> None:
    straight, stopped = detector_of(make), detector_of(make)
    for step in range(8):
        rows, ids = normal(20, seed=step), torch.arange(20 * step, 20 * step + 20) % 70
        if step == 5:
            stopped.save(tmp_path / "detector.pt")
            stopped = detector_of(make).load(tmp_path / "detector.pt")
        first, second = straight.observe(rows, ids), stopped.observe(rows, ids)
        assert torch.equal(first.scores.nan_to_num(-1), second.scores.nan_to_num(-1))
        assert torch.equal(first.is_rare, second.is_rare)


def test_another_scorer_or_width_is_refused_with_the_reason(make: Maker) -> None:
    detector = detector_of(make)
    detector.fit(normal(60))
    before = detector.state_dict()
    other = detector_of(lambda: KNNDistance(k=6))
    other.fit(normal(60, 5))
    with pytest.raises(StateMismatchError, match=r"of a KNNDistance|k was 6|metric was"):
        detector.load_state_dict(other.state_dict())
    wider = detector_of(make)
    wider.fit(normal(60, 5))
    with pytest.raises(StateMismatchError, match=r"5 wide, and holds .* 6 wide"):
        detector.load_state_dict(wider.state_dict())
    assert equal(detector.state_dict(), before)


_SAVES_FOR_EVER = """
import sys
import torch
from raremix.detection import KNNDistance, OODDetector

detector = OODDetector(KNNDistance(k=3))
detector.scorer.update(torch.zeros(20_000, 64) + torch.arange(20_000.0)[:, None])
print("ready", flush=True)
while True:
    detector.save(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_while_saving_leaves_the_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "detector.pt"
    before = OODDetector(KNNDistance(k=3))
    before.fit(normal(50, 64))
    before.save(file)
    with subprocess.Popen(
        [sys.executable, "-c", _SAVES_FOR_EVER, str(file)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        parts: list[str] = []
        until = time.monotonic() + 20
        while not parts and time.monotonic() < until:
            # Caught in the act: a file of its own is being written beside the old one.
            parts = [name for name in os.listdir(tmp_path) if name != file.name]
        child.send_signal(signal.SIGKILL)
    assert parts
    loaded = OODDetector(KNNDistance(k=3)).load(file)
    assert isinstance(loaded.scorer, KNNDistance)
    assert len(loaded.scorer.bank) in (50, 20_000)  # one or the other, and whole
