"""Tests of scorers that compare no row with the frames of a video around its own."""

import math
from collections.abc import Callable

import pytest
import torch
from feedback import same, through_a_file
from torch import Tensor

from raremix.detection import (
    FlagRate,
    FusedDistance,
    KNNDistance,
    NoiseGate,
    OODDetector,
    TwoScaleDistance,
)
from raremix.detection.scorers import fused
from raremix.errors import NotEnoughReferenceError, OptionError, StateMismatchError
from raremix.neighbors import Metric

Windowed = FusedDistance | KNNDistance | TwoScaleDistance

SCORERS: dict[str, Callable[[int], Windowed]] = {
    "fused": lambda window: FusedDistance(id_window=window),
    "knn": lambda window: KNNDistance(k=4, id_window=window),
    "two scales": lambda window: TwoScaleDistance(k=6, near=2, id_window=window),
}


@pytest.fixture(params=SCORERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], Windowed]:
    return SCORERS[request.param]


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def drive(clips: int, frames: int, regions: int, dim: int = 12) -> tuple[Tensor, Tensor]:
    """Regions that change slowly from frame to frame, and ids of frames half a second apart."""
    tracks = normal(clips * regions, dim).view(clips, 1, regions, dim)
    noise = normal(clips * frames * regions, dim, 1).view(clips, frames, regions, dim)
    times = torch.arange(clips)[:, None] * 2**32 + 500 * torch.arange(frames)
    return (tracks + 0.1 * noise).flatten(0, 2), times.flatten().repeat_interleave(regions)


def masked(rows: Tensor, bank: Tensor, own: Tensor, ids: Tensor, window: int) -> Tensor:
    """Ascending distances in float64 to what is no sibling."""
    distances = torch.cdist(
        rows.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    is_near = (own[:, None] - ids).abs() <= window
    ascending: Tensor = distances.masked_fill(is_near, math.inf).sort(dim=1).values
    return ascending


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_knn_score_is_the_brute_force_distance_outside_the_window(metric: Metric) -> None:
    rows, ids = drive(clips=4, frames=12, regions=5)
    scorer = KNNDistance(k=4, metric=metric, id_window=2000)
    shown = rows / rows.norm(dim=1, keepdim=True) if metric == "cosine" else rows
    expected = masked(shown, shown, ids, ids, 2000)[:, 3]
    torch.testing.assert_close(scorer.fit(rows, ids).double(), expected, rtol=1e-5, atol=1e-6)
    new, own = rows[:30] + 0.1, ids[:30] + 750
    shown_new = new / new.norm(dim=1, keepdim=True) if metric == "cosine" else new
    torch.testing.assert_close(
        scorer.score(new, own).double(),
        masked(shown_new, shown, own, ids, 2000)[:, 3],
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_knn_score_follows_a_stream_with_its_window() -> None:
    rows, ids = drive(clips=4, frames=12, regions=5)
    scorer = KNNDistance(k=3, id_window=1000)
    for start in range(0, len(rows), 20):
        scorer.update(rows[start : start + 20], ids[start : start + 20])
        known, known_ids = scorer.bank.rows, scorer.bank.ids
        assert known_ids is not None
        if len(known) > 60:
            expected = masked(rows[:9], known, ids[:9], known_ids, 1000)[:, 2]
            found = scorer.score(rows[:9], ids[:9]).double()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_two_scales_lie_outside_the_window() -> None:
    rows, ids = drive(clips=4, frames=12, regions=5)
    found = TwoScaleDistance(k=9, near=2, id_window=1500).fit(rows, ids)
    distances = masked(rows, rows, ids, ids, 1500)
    near = torch.maximum(distances[:, 1], 0.1 * distances[:, 8])
    torch.testing.assert_close(found.double(), distances[:, 8] / near.sqrt(), rtol=1e-5, atol=1e-6)


def grouped(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Ids that lie at most 400 apart in a group and 10,000 between groups, and the groups."""
    generator = torch.Generator().manual_seed(7)
    groups = torch.arange(n) // size
    return 10_000 * groups + torch.randint(0, 401, (n,), generator=generator), groups


@pytest.mark.parametrize("n", [300, 2600])
def test_windows_that_are_groups_score_as_the_groups_do(
    n: int, make: Callable[[int], Windowed]
) -> None:
    # The larger set is thinned for the far scale.
    rows = normal(n, 10) + 2 * normal(8, 10, 1)[torch.arange(n) % 8]
    ids, groups = grouped(n, 10)
    windowed, plain = make(400), make(0)
    assert torch.equal(windowed.fit(rows, ids), plain.fit(rows, groups))
    new, own = normal(40, 10, 2), groups[:40]
    assert torch.equal(windowed.score(new, ids[:40]), plain.score(new, own))
    assert torch.equal(windowed.score(new), plain.score(new))
    assert (windowed.score(rows[:40], ids[:40]) > windowed.score(rows[:40])).any()


def test_a_rare_object_that_stays_in_view_is_rare_only_with_a_window(
    make: Callable[[int], Windowed],
) -> None:
    rows, ids = drive(clips=60, frames=8, regions=3)
    # Common: regions of all clips look alike. Rare: one region of one clip, in all its frames.
    rows = normal(4, 12, 5)[torch.arange(len(rows)) % 4] + 0.5 * rows
    is_rare = torch.zeros(len(rows), dtype=torch.bool)
    is_rare[24:48:3] = True
    rows[is_rare] = 4.0 + 0.1 * normal(8, 12, 9)
    scores = make(5000).fit(rows, ids)
    assert set(scores.topk(8).indices.tolist()) == set(is_rare.nonzero()[:, 0].tolist())
    if make is SCORERS["knn"]:  # seven near copies are enough for its four neighbours
        assert KNNDistance(k=4).fit(rows, ids)[is_rare].max() < scores[~is_rare].max()


def test_a_window_needs_ids(make: Callable[[int], Windowed]) -> None:
    scorer, rows = make(5), normal(40, 3)
    kind = type(scorer).__name__
    for call, learn in (("fit", scorer.fit), ("update", scorer.update)):
        message = rf"{kind}\.{call} expects ids, since id_window=5 leaves out rows by their ids"
        with pytest.raises(OptionError, match=message):
            learn(rows)
    assert len(scorer.bank) == 0


@pytest.mark.parametrize("window", [-1, 1.5, 2**63])
def test_a_window_out_of_range_is_named(window: int, make: Callable[[int], Windowed]) -> None:
    kind = type(make(0)).__name__
    with pytest.raises(OptionError, match=f"{kind} expects id_window"):
        make(window)


def test_its_repr_says_a_window_where_there_is_one(make: Callable[[int], Windowed]) -> None:
    assert repr(make(7)) == repr(make(0)).removesuffix(")") + ", id_window=7)"
    assert "id_window" not in repr(make(0))


def test_a_state_without_a_window_is_that_of_before_there_was_one(
    make: Callable[[int], Windowed],
) -> None:
    rows, ids = drive(clips=2, frames=12, regions=3)
    scorer, loaded = make(0), make(0)
    scorer.fit(rows, ids)
    state = through_a_file(scorer.state_dict())
    assert "id_window" not in state
    loaded.load_state_dict(state)
    assert torch.equal(loaded.score(rows, ids), scorer.score(rows, ids))


def test_a_state_of_another_window_is_refused_by_name(make: Callable[[int], Windowed]) -> None:
    rows, ids = drive(clips=2, frames=12, regions=3)
    plain, narrow, wide = make(0), make(500), make(1000)
    for scorer in (plain, narrow, wide):
        scorer.fit(rows, ids)
    before = plain.state_dict(), narrow.state_dict()
    with pytest.raises(StateMismatchError, match="id_window was 0, is 500"):
        narrow.load_state_dict(plain.state_dict())
    with pytest.raises(StateMismatchError, match="id_window was 1000, is 500"):
        narrow.load_state_dict(wide.state_dict())
    with pytest.raises(StateMismatchError, match="id_window was 500, is 0"):
        plain.load_state_dict(narrow.state_dict())
    assert same(before, (plain.state_dict(), narrow.state_dict()))
    with pytest.raises(StateMismatchError, match="load_state_dict expects what"):
        narrow.load_state_dict([])  # type: ignore[arg-type]  # on purpose


def test_saved_and_resumed_equals_never_stopped(make: Callable[[int], Windowed]) -> None:
    rows, ids = drive(clips=6, frames=10, regions=4)
    straight, stopped = make(1500), make(1500)
    for step, batch in enumerate(torch.split(torch.arange(len(rows)), 8)):
        straight.update(rows[batch], ids[batch])
        stopped.update(rows[batch], ids[batch])
        if step in (0, 5, 9, 20):
            state = through_a_file(stopped.state_dict())
            stopped = make(1500)
            stopped.load_state_dict(state)
            assert same(stopped.state_dict(), state)
    assert same(straight.state_dict(), stopped.state_dict())
    assert torch.equal(straight.score(rows, ids), stopped.score(rows, ids))


def test_the_scores_do_not_depend_on_the_batch(make: Callable[[int], Windowed]) -> None:
    rows, ids = drive(clips=6, frames=10, regions=4)
    scorer = make(1500)
    scorer.fit(rows, ids)
    whole = scorer.score(rows[:60], ids[:60])
    parts = [scorer.score(rows[part], ids[part]) for part in torch.split(torch.arange(60), 7)]
    assert torch.equal(torch.cat(parts), whole)
    torch.testing.assert_close(make(1500).fit(rows, ids)[:60], whole, rtol=1e-3, atol=0)


def test_a_stream_that_begins_within_one_window_waits_for_others(
    make: Callable[[int], Windowed],
) -> None:
    rows, ids = drive(clips=2, frames=40, regions=6)
    detector = OODDetector(make(5000), FlagRate(0.1, warmup_scores=20), smoothing=0.0)
    first = [
        detector.observe(rows[batch], ids[batch])
        for batch in torch.split(torch.arange(len(rows)), 12)
    ]
    is_scored = torch.stack([torch.isfinite(said.scores).all() for said in first])
    # Five seconds are ten frames: before, there is nothing that a frame may be compared with.
    assert not is_scored[:5].any()
    assert is_scored[-10:].all()
    assert is_scored.diff().sum() == 1
    assert any(bool(said.is_rare.any()) for said in first)


def test_a_fused_stream_scores_like_a_set_outside_the_window() -> None:
    rows, ids = drive(clips=30, frames=10, regions=4)
    streamed, whole = FusedDistance(id_window=2000), FusedDistance(id_window=2000)
    for _ in range(2):
        for batch in torch.split(torch.arange(len(rows)), 40):
            streamed.update(rows[batch], ids[batch])
    expected, found = whole.fit(rows, ids).log(), streamed.score(rows, ids).log()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.95


def test_a_fused_stream_of_one_id_waits_for_another() -> None:
    scorer = FusedDistance()
    scorer.update(normal(20, 4), torch.zeros(20, dtype=torch.int64))
    assert not scorer.ready
    scorer.update(normal(20, 4, 1), torch.ones(20, dtype=torch.int64))
    assert torch.isfinite(scorer.score(normal(3, 4, 2), torch.zeros(3, dtype=torch.int64))).all()


def test_a_fused_stream_not_yet_ready_says_what_it_waits_for() -> None:
    scorer = FusedDistance(id_window=9)
    scorer.update(normal(20, 4), torch.arange(20) % 5)
    message = "16 reference embeddings beside the most that one id_window=9 holds, and has seen 20"
    with pytest.raises(NotEnoughReferenceError, match=message):
        scorer.score(normal(2, 4))


def test_a_set_within_one_window_is_refused() -> None:
    rows, ids = drive(clips=1, frames=10, regions=6)
    with pytest.raises(NotEnoughReferenceError, match="id_window=5000, and a single such window"):
        FusedDistance(id_window=5000).fit(rows, ids)


def test_a_stream_that_stays_within_one_window_waits_and_begins_anew() -> None:
    rows, ids = drive(clips=3, frames=12, regions=6)
    detector = OODDetector(FusedDistance(capacity=64, id_window=10_000), smoothing=0.0)
    batches = torch.split(torch.arange(len(rows)), 6)
    said = [detector.observe(rows[batch], ids[batch]).scores for batch in batches]
    # A bank of ten frames holds two clips for a while, and then one alone.
    is_scored = [bool(torch.isfinite(scores).all()) for scores in said]
    assert is_scored == [False] * 12 + [step in (3, 4, 5, 6, 7, 8, 9) for step in range(12)] * 2
    scorer = detector.scorer
    with pytest.raises(NotEnoughReferenceError, match="raise capacity or lower id_window"):
        scorer.score(rows[:3], ids[:3])
    loaded = FusedDistance(capacity=64, id_window=10_000)
    loaded.load_state_dict(through_a_file(scorer.state_dict()))
    for waiting in (scorer, loaded):
        waiting.update(rows[:30], ids[:30])
    assert torch.equal(loaded.score(rows, ids), scorer.score(rows, ids))


def test_siblings_that_push_out_all_others_at_once_are_not_learnt_alone() -> None:
    rows, ids = drive(clips=8, frames=10, regions=6)
    scorer = FusedDistance(capacity=60, id_window=5000)
    scorer.fit(rows[::8], ids[::8])
    scorer.update(rows[:60], ids[:60])  # all of one clip
    with pytest.raises(NotEnoughReferenceError, match="a single such window holds all 60 rows"):
        scorer.score(rows[:3], ids[:3])
    scorer.update(rows[60:90], ids[60:90])
    assert torch.isfinite(scorer.score(rows[:3], ids[:3])).all()


def test_a_thinned_set_of_siblings_alone_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(2600)
    ids[-30:] += 100_000
    monkeypatch.setattr(fused, "thinned", lambda rows: torch.arange(1000))
    scores = FusedDistance(id_window=3000).fit(normal(2600, 6), ids)
    assert torch.isfinite(scores).all()


def test_a_frame_near_in_time_is_no_revisit_and_replaces_nothing() -> None:
    rows, ids = drive(clips=40, frames=6, regions=1)
    detector = OODDetector(FusedDistance(id_window=2000), FlagRate(0.1, warmup_scores=20))
    fitted = detector.fit(rows, ids)
    assert torch.isfinite(fitted.scores).all()
    assert bool(fitted.is_rare.any())
    torch.testing.assert_close(detector.score(rows, ids), fitted.scores, rtol=1e-3, atol=0)
    bank = detector.scorer.bank  # type: ignore[attr-defined]  # FusedDistance has one

    detector.observe(rows[:30] + 0.01, ids[:30] + 1)
    assert len(bank) == len(rows) + 30
    assert math.isnan(detector.health()["revisit_agreement"])

    detector.observe(rows[:30] + 0.02, ids[:30])
    assert len(bank) == len(rows) + 30
    assert detector.health()["revisit_agreement"] > 0.9
    torch.testing.assert_close(bank.rows[bank.find(ids[:30])], rows[:30] + 0.02)


def test_the_noise_gate_sees_company_in_the_next_frame() -> None:
    rows, ids = normal(200, 6), 10_000 * torch.arange(200)
    # An odd thing that is seen in four frames, a tenth of a second apart.
    rows[:4] = 9.0 + 0.1 * normal(4, 6, 1)
    ids[:4] = 100 * torch.arange(4) - 50_000
    scorer = KNNDistance(k=3, id_window=1000)
    scores = scorer.fit(rows, ids)
    gate = NoiseGate(KNNDistance(k=3, id_window=1000))
    assert torch.equal(gate.fit(rows, ids)[:4], scores[:4])
    assert (scores[:4] > scores[4:].max()).all()
