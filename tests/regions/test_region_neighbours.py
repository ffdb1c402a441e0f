"""Lookalikes of regions, and the rarest frames of different moments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import EmbeddingShapeError, NonFiniteError, OptionError
from raremix.regions import neighbours
from raremix.regions.neighbours import RegionNeighbour, nearest_regions, rarest_moments
from raremix.regions.regions import Regions


def regions_of(embeddings: Tensor, frame: list[int], scale: list[int]) -> Regions:
    frames = max(frame) + 1
    return Regions(
        embeddings=embeddings,
        boxes=torch.tensor([[0, 0, 4, 4]]).expand(len(frame), -1),
        scale=torch.tensor(scale),
        frame=torch.tensor(frame),
        scenes=torch.zeros(frames, 1),
        ids=torch.arange(frames),
        sizes=torch.tensor([[4, 4]]).expand(frames, -1),
    )


def brute_force(
    regions: Regions, row: int, moments: list[int], count: int, window: int
) -> list[tuple[int, float]]:
    """The definition in plain lines: of each moment the nearest region, nearest moments first."""
    own = int(regions.frame[row])
    ranked = []
    for other in range(len(regions)):
        frame = int(regions.frame[other])
        apart = float((regions.embeddings[row] - regions.embeddings[other]).double().norm())
        is_apart = abs(moments[frame] - moments[own]) > window
        if regions.scale[other] == regions.scale[row] and math.isfinite(apart) and is_apart:
            ranked.append((apart, other, frame))
    found: list[tuple[int, float]] = []
    seen: list[int] = []
    for apart, other, frame in sorted(ranked):
        if len(found) < count and all(abs(moments[frame] - moment) > window for moment in seen):
            found.append((other, apart))
            seen.append(moments[frame])
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(1, 5), st.integers(1, 40))
def test_neighbours_are_those_of_the_definition(
    seed: int, window: int, count: int, block: int
) -> None:
    random = np.random.default_rng(seed)
    frame = np.sort(random.integers(0, 9, 40)).tolist()
    frame[-1] = 8
    scale = random.integers(0, 2, 40).tolist()
    rows = torch.from_numpy(random.normal(size=(40, 3)).astype(np.float32))
    rows[7, 1] = torch.nan
    regions = regions_of(rows, frame, scale)
    moments = random.integers(0, 15, 9).tolist()
    asked = [row for row in random.permutation(40)[:6].tolist() if row != 7]
    before = neighbours._BLOCK
    try:
        neighbours._BLOCK = block
        found = nearest_regions(regions, asked, moments, count=count, id_window=window)
    finally:
        neighbours._BLOCK = before
    for row, near in zip(asked, found, strict=True):
        expected = brute_force(regions, row, moments, count, window)
        assert [one.row for one in near] == [other for other, _ in expected]
        assert [one.distance for one in near] == pytest.approx([apart for _, apart in expected])
        assert [one.frame for one in near] == [frame[one.row] for one in near]


def test_half_precision_and_rows_far_from_zero_are_measured_right() -> None:
    rows = torch.tensor([[1000.0, 0.0], [1001.0, 0.0], [1000.0, 0.5], [900.0, 0.0]])
    regions = regions_of(rows.half(), [0, 1, 2, 3], [0] * 4)
    near = nearest_regions(regions, torch.tensor([0]))[0]
    assert near[:2] == [RegionNeighbour(2, 2, 0.5), RegionNeighbour(1, 1, 1.0)]


def test_a_region_without_lookalikes_of_other_moments_has_none() -> None:
    regions = regions_of(torch.zeros(3, 2), [0, 0, 1], [0, 0, 1])
    assert nearest_regions(regions, [0, 2]) == [[], []]
    assert nearest_regions(regions, []) == []


def test_rows_that_cannot_be_measured_are_named() -> None:
    regions = regions_of(torch.tensor([[0.0], [torch.nan]]), [0, 1], [0, 0])
    with pytest.raises(NonFiniteError, match="rows that hold NaN"):
        nearest_regions(regions, [1])
    with pytest.raises(OptionError, match="rows of 2 regions, got -1 to 0"):
        nearest_regions(regions, [0, -1])
    with pytest.raises(OptionError, match="count as a whole number of at least 1"):
        nearest_regions(regions, [0], count=0)
    with pytest.raises(EmbeddingShapeError, match="got 3 ids for 2 rows"):
        nearest_regions(regions, [0], [1, 2, 3])


def test_of_one_moment_only_the_rarest_frame_is_named() -> None:
    scores = torch.tensor([5.0, 9.0, 7.0, torch.nan, 6.0, 1.0])
    moments = torch.tensor([0, 1, 2, 50, 90, 91])
    assert rarest_moments(scores, moments) == [1, 2, 4, 0, 5]
    assert rarest_moments(scores, moments, id_window=1) == [1, 4]
    assert rarest_moments(scores, moments, id_window=1, most=1) == [1]
    flagged = torch.tensor([True, False, True, True, False, True])
    assert rarest_moments(scores, moments, among=flagged, id_window=2) == [2, 5]


def test_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(EmbeddingShapeError, match="got 1 ids for 2 rows"):
        rarest_moments([1.0, 2.0], [0])
    with pytest.raises(OptionError, match="most as a whole number"):
        rarest_moments([1.0], [0], most=-1)
