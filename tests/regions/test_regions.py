"""Tests of regions as they are handed on: parts that fit, joining, and choosing frames."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import EmbeddingShapeError
from raremix.regions import Regions


def regions_of(counts: list[int], *, first: int = 0, dim: int = 3) -> Regions:
    """So many regions in each frame; every number tells where it belongs."""
    frame = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    n, b = len(frame), len(counts)
    ids = torch.arange(first, first + b)
    return Regions(
        embeddings=(1000.0 * ids[frame] + torch.arange(n))[:, None].expand(n, dim),
        boxes=torch.stack([torch.arange(n), ids[frame], 2 * torch.arange(n), ids[frame] + 9], 1),
        scale=torch.arange(n) % 3,
        frame=frame,
        scenes=ids[:, None].expand(b, dim).float(),
        ids=ids,
        sizes=torch.stack([ids + 100, ids + 200], 1),
    )


def same(one: Regions, other: Regions) -> bool:
    return all(
        torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
    )


counts = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@settings(deadline=None)
@given(parts=st.lists(counts, min_size=1, max_size=4))
def test_joined_regions_are_those_of_all_parts_in_their_order(parts: list[list[int]]) -> None:
    firsts = [10 * at for at in range(len(parts))]
    given_parts = [regions_of(part, first=at) for part, at in zip(parts, firsts, strict=True)]
    joined = Regions.joined(given_parts)
    assert len(joined) == sum(map(sum, parts))
    start = 0
    for part in given_parts:
        rows = torch.arange(start, start + len(part.ids))
        assert same(joined.of_frames(rows), part)
        start += len(part.ids)


@settings(deadline=None)
@given(data=st.data(), sizes=counts)
def test_chosen_frames_keep_their_regions(data: st.DataObject, sizes: list[int]) -> None:
    regions = regions_of(sizes)
    chosen = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    rows = torch.tensor(sorted(chosen), dtype=torch.int64)
    some = regions.of_frames(rows)
    assert torch.equal(some.ids, regions.ids[rows])
    assert torch.equal(some.sizes, regions.sizes[rows])
    is_kept = torch.tensor([int(frame) in chosen for frame in regions.frame], dtype=torch.bool)
    for name in ("embeddings", "boxes", "scale"):
        assert torch.equal(getattr(some, name), getattr(regions, name)[is_kept])
    assert torch.equal(some.ids[some.frame], regions.ids[regions.frame[is_kept]])


def test_frames_are_chosen_in_ascending_order_only() -> None:
    regions = regions_of([2, 1, 3])
    for rows in ([1, 0], [1, 1], [3], [-1]):
        with pytest.raises(EmbeddingShapeError, match=r"Regions\.of_frames expects ascending rows"):
            regions.of_frames(torch.tensor(rows))


def test_nothing_to_join_is_refused() -> None:
    with pytest.raises(EmbeddingShapeError, match="expects at least one part, got none"):
        Regions.joined([])


def test_parts_of_other_encoders_are_refused() -> None:
    message = r"embeddings of different widths, \[3, 5\]; embed all frames with one encoder"
    with pytest.raises(EmbeddingShapeError, match=message):
        Regions.joined([regions_of([2]), regions_of([1], dim=5)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embeddings", torch.zeros(4), "expects embeddings of shape"),
        ("embeddings", torch.zeros(4, 2, 2), r"embeddings of shape \(4, 2\) .* got \(4, 2, 2\)"),
        ("boxes", torch.zeros(4, 5), r"boxes of shape \(4, 4\) for 4 regions of 2 frames"),
        ("scale", torch.zeros(3), r"scale of shape \(4,\)"),
        ("frame", torch.zeros(5), r"frame of shape \(4,\)"),
        ("scenes", torch.zeros(3, 3), r"scenes of shape \(2, 3\)"),
        ("scenes", torch.zeros(2), r"scenes of shape"),
        ("sizes", torch.zeros(2, 3), r"sizes of shape \(2, 2\)"),
        ("frame", torch.tensor([0, 0, 1, 2]), "frame to count the 2 frames from 0, got 0 to 2"),
        ("frame", torch.tensor([-1, 0, 1, 1]), "got -1 to 1"),
        ("frame", torch.tensor([0, 1, 0, 1]), "regions of each frame one after the other"),
        ("scale", torch.tensor([0, 0, -1, 0]), "scale of at least 0, got -1"),
        ("scale", torch.zeros(4), "scale as int64 on the CPU, got torch.float32 on cpu"),
        ("frame", torch.zeros(4), "frame as int64 on the CPU, got torch.float32"),
        (
            "embeddings",
            torch.zeros(4, 3, dtype=torch.int64),
            "embeddings as floats, got torch.int64",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(EmbeddingShapeError, match=message):
        replace(regions_of([3, 1]), **{name: value})


def test_frames_may_be_chosen_by_a_list() -> None:
    regions = regions_of([3, 1])
    assert torch.equal(
        regions.of_frames([1]).embeddings, regions.of_frames(torch.tensor([1])).embeddings
    )
    with pytest.raises(
        EmbeddingShapeError, match=r"Regions.of_frames expects rows as whole numbers"
    ):
        regions.of_frames([0.5])  # type: ignore[list-item]  # what is refused
