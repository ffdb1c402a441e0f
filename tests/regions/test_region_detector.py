"""Tests of the detector of rare objects: scores against plain loops, streams, and what it must not do."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from feedback import same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection import ConformalThreshold, FixedThreshold, FlagRate, KNNDistance, OODDetector
from raremix.errors import (
    EmbeddingShapeError,
    NonFiniteError,
    NotEnoughReferenceError,
    OptionError,
    RaremixError,
    RaremixWarning,
    StateMismatchError,
)
from raremix.regions import FrameDetection, RegionDetector, Regions
from raremix.regions import detector as region_detector


def drive(
    frames: int = 40,
    regions: tuple[int, ...] = (6, 3),
    *,
    dim: int = 8,
    seed: int = 0,
    noise: float = 1.0,
) -> Regions:
    """Frames with so many regions of each scale; those of one scale are spread twice as wide."""
    generator = torch.Generator().manual_seed(seed)
    each = sum(regions)
    scale = torch.cat([torch.full((n,), at) for at, n in enumerate(regions)]).repeat(frames)
    rows = noise * torch.randn(frames * each, dim, generator=generator) * (1.0 + scale)[:, None]
    corner = torch.randint(0, 30, (frames * each, 2), generator=generator)
    side = 8 + 8 * scale[:, None]
    return Regions(
        rows,
        torch.cat([corner, corner + side], dim=1),
        scale,
        torch.arange(frames).repeat_interleave(each),
        torch.randn(frames, dim, generator=generator),
        torch.arange(frames),
        torch.tensor([[60, 50]]).repeat(frames, 1),
    )


def by_hand(
    regions: Regions, moments: Tensor, *, frames: int, window: int, top: int
) -> tuple[list[float], list[float]]:
    """Scores of regions and of frames as the class describes them."""
    rows = regions.embeddings.double()
    own = moments[regions.frame].tolist()
    distances = []
    for at in range(len(rows)):
        apart = (rows - rows[at]).square().sum(dim=1).sqrt().tolist()
        nearest: dict[int, float] = {}
        for other, distance in enumerate(apart):
            is_other = abs(own[other] - own[at]) > window
            if is_other and regions.scale[other] == regions.scale[at]:
                nearest[own[other]] = min(distance, nearest.get(own[other], math.inf))
        counted: list[int] = []
        for distance, moment in sorted((distance, moment) for moment, distance in nearest.items()):
            if len(counted) < frames and all(abs(moment - known) > window for known in counted):
                counted.append(moment)
                last = distance
        distances.append(math.log(last))
    logs = torch.tensor(distances, dtype=torch.float64)
    scores = torch.empty_like(logs)
    for scale in range(int(regions.scale.max()) + 1):
        is_own = regions.scale == scale
        quarters = torch.quantile(logs[is_own], torch.tensor([0.25, 0.5, 0.75]).double())
        scores[is_own] = (logs[is_own] - quarters[1]) / (quarters[2] - quarters[0])
    of_frames = [
        sorted(scores[regions.frame == frame].tolist(), reverse=True)[:top]
        for frame in range(len(regions.ids))
    ]
    return scores.tolist(), [sum(high) / len(high) for high in of_frames]


@pytest.mark.parametrize(
    ("frames", "window", "top"), [(1, 0, 3), (1, 2, 1), (3, 0, 2), (2, 3, 50), (0.1, 0, 3)]
)
def test_scores_of_a_set_are_those_of_a_plain_loop(
    frames: int | float, window: int, top: int
) -> None:
    regions = drive()
    moments = torch.arange(40) // 2 * 2 + 100
    detector = RegionDetector(rare_frames=frames, id_window=window, top=top)
    found = detector.fit(regions, moments)
    count = frames if isinstance(frames, int) else math.ceil(frames * 40)
    expected, of_frames = by_hand(regions, moments, frames=count, window=window, top=top)
    torch.testing.assert_close(
        found.region_scores, torch.tensor(expected).float(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        found.object_scores, torch.tensor(of_frames).float(), rtol=1e-4, atol=1e-5
    )
    assert int(found.is_object_rare.sum()) == 2  # 5 % of 40
    assert torch.equal(found.is_object_rare, found.object_scores > found.object_threshold)
    assert found.region_scores.dtype == found.object_scores.dtype == torch.float32


def test_moments_not_given_are_the_ids() -> None:
    regions = drive()
    ids = torch.arange(40) * 3 + 5
    named = replace(regions, ids=ids)
    by_ids = RegionDetector(id_window=4).fit(named)
    by_moments = RegionDetector(id_window=4).fit(regions, ids)
    others = RegionDetector(id_window=4).fit(regions)
    assert torch.equal(by_ids.object_scores, by_moments.object_scores)
    assert torch.equal(by_ids.scene_scores, by_moments.scene_scores)
    assert not torch.equal(by_ids.object_scores, others.object_scores)


def test_the_moment_of_one_frame_may_come_without_dimension() -> None:
    regions = drive()
    moments = torch.arange(40).numpy() * 10
    detector = RegionDetector()
    detector.fit(regions, moments)
    one = regions.of_frames(torch.tensor([7]))
    found = detector.detect(one, moments[one.ids])  # numpy takes such an index for a number
    assert torch.equal(found.region_scores, detector.detect(one, moments[[7]]).region_scores)


def with_odd(regions: Regions, rows: list[int], by: float = 12.0) -> Regions:
    """The same regions, but the first of each of these frames is like nothing else, but each other."""
    rows_of = [int((regions.frame == frame).nonzero()[0]) for frame in rows]
    embeddings = regions.embeddings.clone()
    embeddings[rows_of] = by + 0.01 * embeddings[rows_of]
    return replace(regions, embeddings=embeddings)


def test_what_another_frame_shows_too_is_not_rare() -> None:
    alone = RegionDetector(top=1).fit(with_odd(drive(), [7]))
    twice = RegionDetector(top=1).fit(with_odd(drive(), [7, 30]))
    assert int(alone.object_scores.argmax()) == 7
    assert bool(alone.is_object_rare[7])
    assert not twice.is_object_rare[[7, 30]].any()


def test_what_fewer_than_rare_frames_show_is_rare() -> None:
    odd = with_odd(drive(), [7, 20, 30])
    found = RegionDetector(top=1, rare_frames=3).fit(odd)
    assert set(found.object_scores.topk(3).indices.tolist()) == {7, 20, 30}
    assert not RegionDetector(top=1, rare_frames=2).fit(odd).is_object_rare[[7, 20, 30]].any()


def test_near_duplicates_do_not_make_an_object_common() -> None:
    odd = with_odd(drive(), [7, 8, 9])
    times = torch.arange(40) * 10
    times[[7, 8, 9]] = torch.tensor([70, 71, 72])
    windowed = RegionDetector(top=1, id_window=3).fit(odd, times)
    assert set(windowed.object_scores.topk(3).indices.tolist()) == {7, 8, 9}
    plain = RegionDetector(top=1).fit(odd, times)
    assert bool((plain.region_scores[[63, 72, 81]] < plain.region_scores.quantile(0.1)).all())


def test_a_rare_object_a_rare_scene_and_both_are_told_apart() -> None:
    regions = with_odd(drive(80), [7, 9])
    regions.embeddings[9 * 9] *= -1
    scenes = regions.scenes.clone()
    scenes[9], scenes[50] = 30.0, -30.0
    found = RegionDetector(top=1, threshold=FlagRate(0.025)).fit(replace(regions, scenes=scenes))
    kinds = found.kinds
    assert (kinds[7], kinds[9], kinds[50], kinds[3]) == ("object", "both", "scene", "neither")
    for frame, kind in enumerate(kinds):
        is_object, is_scene = bool(found.is_object_rare[frame]), bool(found.is_scene_rare[frame])
        assert (kind in ("object", "both")) == is_object
        assert (kind in ("scene", "both")) == is_scene
    assert torch.equal(found.is_scene_rare, found.scene_scores > found.scene_threshold)


def test_the_order_of_frames_in_a_set_does_not_matter() -> None:
    regions = drive()
    found = RegionDetector(id_window=1).fit(regions)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    parts = [regions.of_frames(torch.tensor([frame])) for frame in order.tolist()]
    other = RegionDetector(id_window=1).fit(Regions.joined(parts))
    torch.testing.assert_close(other.object_scores, found.object_scores[order])
    assert torch.equal(other.is_object_rare, found.is_object_rare[order])


def test_detect_says_what_fit_said_and_changes_nothing() -> None:
    regions = drive()
    detector = RegionDetector(id_window=1)
    fitted = detector.fit(regions)
    before = detector.state_dict()
    found = detector.detect(regions)
    torch.testing.assert_close(found.region_scores, fitted.region_scores)
    torch.testing.assert_close(found.object_scores, fitted.object_scores)
    torch.testing.assert_close(found.scene_scores, fitted.scene_scores, rtol=1e-3, atol=0)
    assert found.object_threshold == fitted.object_threshold
    assert same(before, detector.state_dict())


def test_a_frame_seen_again_under_another_moment_is_not_rare() -> None:
    detector = RegionDetector(top=1)
    detector.fit(with_odd(drive(), [7]))
    seen = with_odd(drive(), [7]).of_frames(torch.tensor([7]))
    assert not detector.detect(seen, [99]).is_object_rare.any()
    assert detector.detect(seen, [7]).is_object_rare.all()


def spoiled(regions: Regions, rows: list[int]) -> Regions:
    embeddings = regions.embeddings.clone()
    embeddings[rows[::2], 0] = math.nan
    embeddings[rows[1::2], 3] = math.inf
    return replace(regions, embeddings=embeddings)


def without(regions: Regions, rows: list[int]) -> Regions:
    kept = torch.ones(len(regions), dtype=torch.bool)
    kept[rows] = False
    return replace(
        regions,
        embeddings=regions.embeddings[kept],
        boxes=regions.boxes[kept],
        scale=regions.scale[kept],
        frame=regions.frame[kept],
    )


def test_regions_that_are_not_finite_are_passed_over_and_counted() -> None:
    regions, bad = drive(), [0, 40, 41, 90, 100]
    clean = RegionDetector()
    expected = clean.fit(without(regions, bad))
    detector = RegionDetector()
    with pytest.warns(
        RaremixWarning, match=r"RegionDetector.fit: 5 of 360 regions hold NaN or inf"
    ):
        found = detector.fit(spoiled(regions, bad))
    assert torch.isnan(found.region_scores[bad]).all()
    kept = torch.isfinite(found.region_scores)
    assert int(kept.sum()) == 355
    torch.testing.assert_close(found.region_scores[kept], expected.region_scores)
    torch.testing.assert_close(found.object_scores, expected.object_scores)
    assert same(
        {at: bank.state_dict() for at, bank in detector.banks.items()},
        {at: bank.state_dict() for at, bank in clean.banks.items()},
    )
    for call in (detector.detect, detector.observe):
        with pytest.warns(RaremixWarning, match=rf"{call.__name__}: 2 of 9 regions hold NaN"):
            said = call(spoiled(regions, [0, 5]).of_frames(torch.tensor([0])), [70])
        assert torch.isnan(said.region_scores).nonzero().flatten().tolist() == [0, 5]
        assert torch.isfinite(said.object_scores).all()
    assert torch.isfinite(detector.banks[0].rows).all()


def test_a_set_without_one_finite_region_is_refused() -> None:
    regions = drive(4)
    nothing = replace(regions, embeddings=torch.full_like(regions.embeddings, math.nan))
    detector = RegionDetector()
    with (
        pytest.warns(RaremixWarning, match="36 of 36"),
        pytest.raises(NonFiniteError, match="got 36 regions and not one is free of NaN"),
    ):
        detector.fit(nothing)


def test_a_frame_without_regions_has_no_object_score_and_no_rare_object() -> None:
    regions = drive()
    own = (regions.frame == 5).nonzero().flatten().tolist()
    bare = without(regions, own)
    detector = RegionDetector()
    found = detector.fit(bare)
    assert torch.isnan(found.object_scores).nonzero().flatten().tolist() == [5]
    assert not found.is_object_rare[5]
    assert found.kinds[5] in ("scene", "neither")
    assert found.rows_of(5).tolist() == found.rare_rows(5).tolist() == []
    assert torch.isnan(found.heat(5)).all()
    empty = bare.of_frames(torch.tensor([5]))
    for call in (detector.detect, detector.observe):
        said = call(empty, [80])
        assert torch.isnan(said.object_scores).all()
        assert said.kinds[0] in ("scene", "neither")


def test_a_scale_never_seen_is_named_and_learned_by_a_stream() -> None:
    detector = RegionDetector()
    detector.fit(drive(regions=(6,)))
    new = drive(regions=(6, 3), seed=1)
    with pytest.raises(NotEnoughReferenceError, match="detect has seen no region of scale 1"):
        detector.detect(new, torch.arange(40) + 100)
    said = detector.observe(new, torch.arange(40) + 100)
    is_known = new.scale == 0
    assert torch.isfinite(said.region_scores[is_known]).all()
    assert torch.isnan(said.region_scores[~is_known]).all()
    assert torch.isfinite(said.object_scores).all()
    again = detector.observe(new, torch.arange(40) + 200)
    assert torch.isnan(again.region_scores[~is_known]).all()  # What is usual is not known yet.
    last = detector.observe(new, torch.arange(40) + 300)
    assert torch.isfinite(last.region_scores).all()


def test_a_set_of_one_moment_is_refused_and_nothing_forgotten() -> None:
    detector = RegionDetector(id_window=100)
    with pytest.raises(NotEnoughReferenceError, match=r"other moments than .* id_window=100"):
        detector.fit(drive())
    known = RegionDetector(id_window=2)
    known.fit(drive())
    before = known.state_dict()
    with pytest.raises(NotEnoughReferenceError):
        known.fit(drive(), torch.zeros(40, dtype=torch.int64))
    assert same(before, known.state_dict())


@pytest.mark.filterwarnings("ignore:OODDetector.fit left out")
@pytest.mark.parametrize("failing", ["threshold", "scene", "too few"])
def test_a_fit_that_fails_leaves_what_was_known(failing: str) -> None:
    detector = RegionDetector(
        threshold=ConformalThreshold(0.1), scene=OODDetector(KNNDistance(3), FlagRate(0.1))
    )
    detector.fit(drive())
    before = detector.state_dict()
    regions = drive(12, seed=1)
    if failing == "threshold":
        regions, error = regions.of_frames(torch.arange(6)), "ConformalThreshold"
    elif failing == "scene":
        regions = replace(regions, scenes=torch.full_like(regions.scenes, math.nan))
        error = "OODDetector.fit got 12 rows and every one"
    else:
        regions, error = drive(2, regions=(3,)), "at least 16 regions of one scale"
    with pytest.raises(RaremixError, match=error):
        detector.fit(regions)
    assert same(before, detector.state_dict())


def test_a_stream_is_scored_by_what_came_before_and_then_learned() -> None:
    detector = RegionDetector(top=1)
    detector.fit(drive(60))
    odd = with_odd(drive(2, seed=5), [0, 1])
    expected = detector.detect(odd, [100, 101])
    said = detector.observe(odd, [100, 101])
    # Neither is a neighbour of the other: they came together.
    assert torch.equal(said.region_scores, expected.region_scores)
    assert torch.equal(said.object_scores, expected.object_scores)
    assert bool((said.object_scores > said.object_threshold).all())
    again = detector.observe(odd, [102, 103])
    assert bool((again.object_scores < said.object_scores - 1).all())


def test_a_stream_from_nothing_waits_and_then_finds_the_rare() -> None:
    generator = torch.Generator().manual_seed(0)
    detector = RegionDetector(top=1, threshold=FlagRate(0.05, warmup_scores=50), id_window=1)
    said = []
    for at in range(160):
        regions = drive(1, seed=at)
        if at in (120, 150):
            regions = with_odd(regions, [0], by=float(12 * torch.randn(1, generator=generator)))
        said.append(detector.observe(regions, [3 * at]))
    scores = torch.cat([one.object_scores for one in said])
    assert torch.isnan(scores[:2]).all()
    assert torch.isfinite(scores[4:]).all()
    assert not any(one.is_object_rare.any() for one in said[:50])
    assert bool(said[120].is_object_rare)
    assert bool(said[150].is_object_rare)
    assert sum(one.kinds[0] in ("object", "both") for one in said) < 20


def test_observing_in_batches_learns_the_same_frames() -> None:
    regions = drive(48)
    single, batched = RegionDetector(id_window=1), RegionDetector(id_window=1)
    for at in range(48):
        single.observe(regions.of_frames(torch.tensor([at])))
    for part in torch.split(torch.arange(48), 6):
        batched.observe(regions.of_frames(part))
    for scale, bank in single.banks.items():
        assert same(bank.state_dict(), batched.banks[scale].state_dict())
    later = drive(6, seed=2)
    found = [detector.detect(later, torch.arange(6) + 90) for detector in (single, batched)]
    # What is usual was measured against fewer frames here and there, so scores are not the same.
    correlation = torch.corrcoef(torch.stack([one.object_scores for one in found]))[0, 1]
    assert correlation > 0.99


def test_saved_and_resumed_equals_never_stopped() -> None:
    regions = drive(60)
    straight, stopped = (RegionDetector(id_window=1, capacity=64, top=2) for _ in range(2))
    for step, part in enumerate(torch.split(torch.arange(60), 3)):
        one = straight.observe(regions.of_frames(part))
        other = stopped.observe(regions.of_frames(part))
        assert torch.equal(one.region_scores.nan_to_num(), other.region_scores.nan_to_num())
        assert torch.equal(one.is_object_rare, other.is_object_rare)
        if step in (0, 1, 7, 15):
            state = through_a_file(stopped.state_dict())
            stopped = RegionDetector(id_window=1, capacity=64, top=2)
            stopped.load_state_dict(state)
            assert same(stopped.state_dict(), state)
    assert same(straight.state_dict(), stopped.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 2}, "top was 3, is 2"),
        ({"rare_frames": 0.1}, "rare_frames was 1, is 0.1"),
        ({"id_window": 7}, "id_window was 0, is 7"),
        ({"capacity": 99}, "capacity was 8192, is 99"),
        ({"threshold": FixedThreshold(1.0)}, "FixedThreshold"),
        ({"scene": OODDetector(KNNDistance(3), smoothing=0.0)}, "KNNDistance"),
    ],
)
def test_a_state_of_other_settings_is_refused_and_changes_nothing(
    options: dict[str, Any], message: str
) -> None:
    saved = RegionDetector()
    saved.fit(drive())
    other = RegionDetector(**options)
    other.fit(drive(seed=1))
    before = other.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        other.load_state_dict(saved.state_dict())
    assert same(before, other.state_dict())


@pytest.mark.parametrize(("window", "rare_frames"), [(0, 1), (1, 1), (0, 3)])
def test_a_bank_too_small_for_the_set_compares_scales_as_an_unlimited_one_does(
    window: int, rare_frames: int
) -> None:
    # Many kinds, each seen about as often at both scales; only one scale outgrows its bank.
    generator = torch.Generator().manual_seed(1)
    regions = drive(150, regions=(20, 2), dim=12, noise=0.2, seed=4)
    kinds = 2 * torch.randn(40, 12, generator=generator)
    which = torch.randint(40, (len(regions),), generator=generator)
    rows = regions.embeddings + kinds[which]
    is_odd = torch.rand(len(regions), generator=generator) < 0.02
    rows[is_odd] += 3 * torch.randn(int(is_odd.sum()), 12, generator=generator)
    moments = 10 * torch.arange(150)
    if window:  # Every other frame is nearly the one before.
        moments = 10 * (torch.arange(150) // 2) + torch.arange(150) % 2
        copied = rows.view(75, 2, 22, 12)
        copied[:, 1] = copied[:, 0] + 1e-3
    regions = replace(regions, embeddings=rows)
    options: dict[str, Any] = {"id_window": window, "rare_frames": rare_frames}
    whole = RegionDetector(**options).fit(regions, moments)
    detector = RegionDetector(capacity=512, **options)
    small = detector.fit(regions, moments)
    assert detector.banks[0].radius > 0
    assert detector.banks[1].radius == 0
    scores = torch.stack([whole.object_scores, small.object_scores])
    assert torch.corrcoef(scores)[0, 1] > 0.97
    both = whole.is_object_rare & small.is_object_rare
    assert int(both.sum()) >= 0.7 * int(whole.is_object_rare.sum())
    # Common regions are found farther away than what is usual says, rare ones are not.
    is_large = regions.scale == 1
    torch.testing.assert_close(small.region_scores[is_large], whole.region_scores[is_large])
    assert float(small.region_scores[~is_large].median()) > 0.15
    rarest = whole.region_scores.masked_fill(is_large, -math.inf).topk(10).indices
    torch.testing.assert_close(
        small.region_scores[rarest], whole.region_scores[rarest], rtol=0.05, atol=0.0
    )


def test_the_newest_distances_of_a_stream_say_what_is_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(region_detector, "_REMEMBERED", 90)
    detector = RegionDetector()
    detector.fit(drive(seed=1))
    larger = drive(60, noise=8.0)
    medians = []
    for part in torch.split(torch.arange(60), 6):
        said = detector.observe(larger.of_frames(part), 100 + part)
        medians.append(float(said.region_scores.median()))
    assert medians[0] > 2
    assert abs(medians[-1]) < 0.7


def test_a_stream_threshold_is_asked_for_the_frames_in_hand() -> None:
    class Asked(FixedThreshold):
        def value_for(self, scores: Tensor) -> float:
            return float(scores.min())

        def update_revisits(self, earlier: Tensor, scores: Tensor) -> None:
            raise AssertionError("regions have no revisits")

    detector = RegionDetector(threshold=Asked(99.0))
    detector.fit(drive())
    new, own = drive(5, seed=1), torch.arange(5) + 90
    assert not detector.detect(new, own).is_object_rare.any()
    said = detector.observe(new, own)
    assert said.object_threshold == float(said.object_scores.min())
    assert int(said.is_object_rare.sum()) == 4


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), most=st.integers(1, 5), overlap=st.sampled_from([0.0, 0.3, 1.0]))
def test_rare_rows_and_heat_are_those_of_a_plain_loop(seed: int, most: int, overlap: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    regions = drive(3, regions=(5, 4), seed=seed)
    scores = torch.randint(-3, 4, (27,), generator=generator).float()
    scores[torch.rand(27, generator=generator) < 0.1] = math.nan
    value = float(torch.randint(-3, 5, (1,), generator=generator))
    found = FrameDetection(
        regions,
        scores,
        torch.zeros(3),
        torch.zeros(3),
        torch.tensor([True, True, False]),
        torch.zeros(3, dtype=torch.bool),
        value,
        0.0,
    )
    for frame in range(3):
        rows = [row for row in range(27) if int(regions.frame[row]) == frame]
        assert found.rows_of(frame).tolist() == rows
        highest = max(float(scores[row]) for row in rows if not math.isnan(scores[row]))
        named: list[int] = []
        for row in sorted(rows, key=lambda row: (-float(scores[row].nan_to_num(nan=-99)), row)):
            box = regions.boxes[row].tolist()
            area = (box[2] - box[0]) * (box[3] - box[1])
            covered = []
            for other in named:
                against = regions.boxes[other].tolist()
                wide = min(box[2], against[2]) - max(box[0], against[0])
                high = min(box[3], against[3]) - max(box[1], against[1])
                least = min(area, (against[2] - against[0]) * (against[3] - against[1]))
                covered.append(max(wide, 0) * max(high, 0) / least)
            is_high = float(scores[row]) > value or float(scores[row]) == highest
            if len(named) < most and is_high and all(share <= overlap for share in covered):
                named.append(row)
        expected = named if frame < 2 else []
        assert found.rare_rows(frame, most=most, overlap=overlap).tolist() == expected

        cell = 7
        heat = found.heat(frame, cell=cell)
        assert heat.shape == (9, 8)  # 60 x 50 pixels
        for y in range(9):
            for x in range(8):
                layers = []
                for scale in (0, 1):
                    over = [
                        float(scores[row])
                        for row in rows
                        if int(regions.scale[row]) == scale
                        and not math.isnan(scores[row])
                        and regions.boxes[row, 0] < (x + 1) * cell
                        and regions.boxes[row, 2] > x * cell
                        and regions.boxes[row, 1] < (y + 1) * cell
                        and regions.boxes[row, 3] > y * cell
                    ]
                    layers += [sum(over) / len(over)] if over else []
                if layers:
                    mean = sum(layers) / len(layers)
                    assert float(heat[y, x]) == pytest.approx(mean, abs=1e-5)
                else:
                    assert math.isnan(heat[y, x])


def test_a_heat_of_no_cells_is_refused() -> None:
    found = RegionDetector().fit(drive())
    with pytest.raises(OptionError, match=r"FrameDetection\.heat expects cell"):
        found.heat(0, cell=0)


def test_health_counts_frames_and_tells_of_each_bank() -> None:
    detector = RegionDetector(capacity=64)
    assert detector.health() == {"frames": 0.0, "threshold": math.inf}
    found = detector.fit(drive())
    health = detector.health()
    assert (health["frames"], health["threshold"]) == (40.0, found.object_threshold)
    assert (health["scale_0/bank_rows"], health["scale_1/bank_rows"]) == (64.0, 64.0)
    assert health["scale_0/bank_radius"] > 0
    assert health["scale_0/bank_frames_per_row"] >= 1
    assert len(health) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rare_frames": 0}, "rare_frames as a count of at least 1 or a share"),
        ({"rare_frames": 1.5}, "rare_frames as a count"),
        ({"top": 0}, "top as a whole number of at least 1"),
        ({"id_window": -1}, "id_window"),
        ({"id_window": 2**63}, r"id_window below 2\*\*63"),
        ({"capacity": 15}, "capacity as a whole number of at least 16"),
        ({"max_memory": 5}, "max_memory"),
        ({"threshold": FlagRate}, "threshold as an object such as FlagRate"),
        ({"scene": KNNDistance(3)}, "scene as an OODDetector"),
        ({"engine": "fast"}, "engine"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RegionDetector(**options)


def test_what_is_no_regions_and_moments_that_do_not_fit_are_named() -> None:
    detector = RegionDetector()
    with pytest.raises(
        EmbeddingShapeError, match=r"fit expects Regions, as CropEncoder and .* Tensor"
    ):
        detector.fit(torch.zeros(3, 3))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(EmbeddingShapeError, match=r"fit with moments= got 3 ids for 40 rows"):
        detector.fit(drive(), [1, 2, 3])
    detector.fit(drive())
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 8\), got \(240, 5\)"):
        detector.detect(drive(dim=5), torch.arange(40) + 100)
    before = detector.state_dict()
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 8\), got \(240, 5\)"):
        detector.observe(drive(dim=5), torch.arange(40) + 100)
    assert same(before, detector.state_dict())


def test_its_repr_names_its_parts() -> None:
    shown = repr(RegionDetector(rare_frames=2, threshold=FixedThreshold(1.5)))
    assert shown.startswith("RegionDetector(rare_frames=2, top=3, threshold=FixedThreshold(1.5")
    assert "FusedDistance" in shown


def test_copies_have_finite_scores() -> None:
    regions = drive(20)
    embeddings = regions.embeddings.clone()
    embeddings[: len(embeddings) // 2] = 0.0
    found = RegionDetector().fit(replace(regions, embeddings=embeddings))
    assert torch.isfinite(found.region_scores).all()
    every = replace(regions, embeddings=torch.zeros_like(embeddings))
    assert bool((RegionDetector().fit(every).region_scores == 0).all())


def test_no_warning_comes_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = RegionDetector()
        detector.fit(drive())
        detector.observe(drive(seed=1), torch.arange(40) + 90)


@pytest.fixture
def on_gpu() -> Callable[[Regions], Regions]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return lambda regions: replace(
        regions, embeddings=regions.embeddings.cuda(), scenes=regions.scenes.cuda()
    )


@pytest.mark.gpu
def test_regions_on_the_gpu_are_scored_as_on_the_cpu(
    on_gpu: Callable[[Regions], Regions],
) -> None:
    here, there = (
        RegionDetector(capacity=128, id_window=1),
        RegionDetector(capacity=128, id_window=1),
    )
    expected, found = here.fit(drive()), there.fit(on_gpu(drive()))
    torch.testing.assert_close(found.region_scores, expected.region_scores, rtol=1e-4, atol=1e-4)
    assert found.kinds == expected.kinds
    new = drive(seed=3), torch.arange(40) + 99
    torch.testing.assert_close(
        there.observe(on_gpu(new[0]), new[1]).object_scores,
        here.observe(*new).object_scores,
        rtol=1e-4,
        atol=1e-4,
    )
    loaded = RegionDetector(capacity=128, id_window=1)
    loaded.load_state_dict(through_a_file(there.state_dict()))
    torch.testing.assert_close(
        loaded.detect(on_gpu(new[0]), new[1] + 99).object_scores,
        there.detect(on_gpu(new[0]), new[1] + 99).object_scores,
    )
