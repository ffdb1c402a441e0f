"""Tests of windows, squares and overlaps: plain loops over pixels beside them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import OptionError
from raremix.regions.boxes import as_boxes, overlaps, square_boxes, strongest_boxes, window_grid

sides = st.integers(1, 300)


@st.composite
def boxes_in(draw: st.DrawFn, height: int, width: int, most: int = 6) -> Tensor:
    """Boxes with at least a pixel each."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right = draw(st.integers(left + 1, width))
        bottom = draw(st.integers(top + 1, height))
        found.append([left, top, right, bottom])
    return torch.tensor(found)


@settings(deadline=None, max_examples=200)
@given(
    height=sides,
    width=sides,
    shares=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    overlap=st.floats(0.0, 0.9),
    least_side=st.integers(1, 400),
)
def test_windows_cover_the_frame_from_edge_to_edge(
    height: int, width: int, shares: list[float], overlap: float, least_side: int
) -> None:
    assume(min(height, width) * min(shares) > 4 or least_side > 8 or height * width < 900)
    boxes, scale = window_grid(height, width, shares=shares, overlap=overlap, least_side=least_side)
    assert boxes.dtype == scale.dtype == torch.int64
    assert torch.unique(scale).tolist() == list(range(len(shares)))
    assert bool((scale.diff() >= 0).all())
    for number, share in enumerate(shares):
        own = boxes[scale == number]
        left, top, right, bottom = own.unbind(1)
        assert len(torch.unique(own, dim=0)) == len(own)
        side = min(max(round(share * min(height, width)), least_side), height, width)
        assert bool((right - left == side).all())
        assert bool((bottom - top == side).all())
        for low, high, whole in ((left, right, width), (top, bottom, height)):
            starts = torch.unique(low)
            assert int(starts[0]) == 0
            assert int(high.max()) == whole
            # No gap, and no less overlap than asked for, up to the rounding of two edges.
            assert bool((starts.diff() <= max(side * (1 - overlap), 1) + 1).all())
            assert bool((starts.diff() <= side).all())
        # Every row of windows has all columns.
        assert len(own) == len(torch.unique(left)) * len(torch.unique(top))


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((360, 480), [154, 63, 20]),
        ((480, 640), [154, 63, 20]),
        ((720, 1280), [209, 91, 28]),
        ((1080, 1920), [209, 91, 28]),
    ],
)
def test_how_many_windows_there_are_depends_on_the_shape_of_the_frame(
    size: tuple[int, int], counts: list[int]
) -> None:
    assert window_grid(*size)[1].bincount().tolist() == counts


def test_a_frame_of_one_pixel_has_a_window_of_each_scale() -> None:
    boxes, scale = window_grid(1, 1)
    assert boxes.tolist() == [[0, 0, 1, 1]] * 3
    assert scale.tolist() == [0, 1, 2]


@settings(deadline=None)
@given(height=sides, width=sides)
def test_windows_of_the_whole_shorter_side_are_the_least_that_cover(
    height: int, width: int
) -> None:
    boxes, _ = window_grid(height, width, shares=[1.0], overlap=0.0, least_side=1)
    assert len(boxes) == math.ceil(max(height, width) / min(height, width))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height as a whole number of at least 1, got 0"),
        ({"width": 1.5}, "width as a whole number"),
        ({"overlap": 1.0}, r"overlap as a number in \[0, 1\), got 1.0"),
        ({"shares": []}, r"shares of at least one scale, got \[\]"),
        ({"shares": 0.5}, "shares of at least one scale, got 0.5"),
        ({"shares": [0.2, 1.2]}, r"shares as a number in \(0, 1\], got 1.2"),
        ({"shares": [0.0]}, r"shares as a number in \(0, 1\], got 0.0"),
        ({"least_side": 0}, "least_side as a whole number of at least 1, got 0"),
    ],
)
def test_options_of_the_grid_out_of_range_are_named(
    options: dict[str, object], message: str
) -> None:
    given_options = {"height": 20, "width": 30} | options
    with pytest.raises(OptionError, match=f"window_grid expects {message}"):
        window_grid(**given_options)  # type: ignore[arg-type]  # on purpose


@settings(deadline=None, max_examples=200)
@given(data=st.data(), height=sides, width=sides)
def test_a_square_lies_inside_the_frame_and_holds_its_box_where_it_can(
    data: st.DataObject, height: int, width: int
) -> None:
    boxes = data.draw(boxes_in(height, width))
    context, least = data.draw(st.floats(1.0, 3.0)), data.draw(st.integers(1, 64))
    squares = square_boxes(boxes, (height, width), context=context, least_side=least)
    assert squares.dtype == torch.int64
    for box, square in zip(boxes.tolist(), squares.tolist(), strict=True):
        left, top, right, bottom = square
        side = right - left
        assert side == bottom - top
        assert min(left, top) >= 0
        assert right <= width
        assert bottom <= height
        longest = max(box[2] - box[0], box[3] - box[1])
        assert side == min(max(round(longest * context), least), height, width)
        for low, high, whole in ((0, 2, width), (1, 3, height)):
            if box[high] - box[low] <= side:
                assert square[low] <= box[low]
                assert box[high] <= square[high]
            # In the middle of the box, unless the frame ends before.
            middle = (box[low] + box[high]) / 2 - (square[low] + square[high]) / 2
            if square[low] > 0 and square[high] < whole:
                assert abs(middle) <= 0.5


def test_no_boxes_have_no_squares() -> None:
    assert square_boxes(torch.zeros(0, 4, dtype=torch.int64), (9, 9)).shape == (0, 4)


@pytest.mark.parametrize("options", [{"context": 0.9}, {"least_side": 0}])
def test_options_of_squares_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"square_boxes expects {next(iter(options))}"):
        square_boxes(torch.tensor([[0, 0, 1, 1]]), (9, 9), **options)  # type: ignore[arg-type]


def pixels_of(box: list[int], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=st.integers(1, 30), width=st.integers(1, 30))
def test_overlaps_are_shares_of_the_pixels_of_the_smaller_box(
    data: st.DataObject, height: int, width: int
) -> None:
    first, second = (data.draw(boxes_in(height, width)) for _ in range(2))
    expected = [
        [
            (one & two).sum() / min(one.sum(), two.sum())
            for two in (pixels_of(box, height, width) for box in second.tolist())
        ]
        for one in (pixels_of(box, height, width) for box in first.tolist())
    ]
    torch.testing.assert_close(overlaps(first, second), torch.tensor(expected).double())


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    most=st.integers(0, 5),
    overlap=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_strongest_boxes_are_those_of_a_plain_loop(
    data: st.DataObject, most: int, overlap: float, seed: int
) -> None:
    boxes = data.draw(boxes_in(20, 20, most=8))
    # Few values, so that some are equal: of those, the first comes first.
    scores = torch.randint(0, 3, (len(boxes),), generator=torch.Generator().manual_seed(seed))
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-int(scores[row]), row)):
        shares = [float(overlaps(boxes[[row]], boxes[[other]])) for other in kept]
        if len(kept) < most and all(share <= overlap for share in shares):
            kept.append(row)
    assert strongest_boxes(boxes, scores.float(), most=most, overlap=overlap).tolist() == kept


def test_of_boxes_within_one_another_only_the_strongest_is_shown() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [2, 2, 5, 5], [20, 0, 30, 10]])
    assert strongest_boxes(boxes, torch.tensor([1.0, 2.0, 0.0]), most=9).tolist() == [1, 2]


@pytest.mark.parametrize(
    "boxes",
    [
        [[1, 2, 5, 8]],
        np.array([[1, 2, 5, 8]], dtype=np.uint8),
        torch.tensor([[1.2, 2.9, 4.1, 7.01]]),
        np.array([[1.0, 2.0, 5.0, 8.0]], dtype=np.float16),
    ],
)
def test_boxes_of_any_kind_become_the_whole_pixels_they_touch(boxes: object) -> None:
    found = as_boxes(boxes, (10, 9), caller="f")  # type: ignore[arg-type]
    assert found.tolist() == [[1, 2, 5, 8]]
    assert found.dtype == torch.int64


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_box_is_no_row(boxes: object) -> None:
    assert as_boxes(boxes, (10, 9), caller="f").shape == (0, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2, 3, 4], r"f expects boxes of shape \(n, 4\), .* of shape \(4,\)"),
        ([[1, 2, 3]], r"f expects boxes of shape \(n, 4\)"),
        ([[True, True, True, True]], "got torch.bool"),
        ([["1", "2", "3", "4"]], r"f expects boxes as numbers of shape \(n, 4\)"),
        ([[1, 2, 3, 4], [1, 2]], "f expects boxes as numbers of shape"),
        ([[0, 0, 1, 1], [0, 0, math.nan, 1]], "f got box 1 with NaN or infinity"),
        ([[0, 0, math.inf, 1]], "f got box 0 with NaN or infinity"),
        (
            [[0, 0, 1, 1], [3, 3, 3, 5]],
            r"f got box 1, \(3, 3, 3, 5\), which is empty in a frame of 9 x",
        ),
        ([[0.2, 0.2, 0.2, 0.6]], "which is empty"),
        ([[5, 0, 2, 1]], "which is empty"),
        ([[-0.5, 0, 2, 1]], "which reaches outside"),
        ([[0, 0, 10, 1], [0, 0, 1, 11]], r"reaches outside .* \(2 of 2 boxes are like that\)"),
        ([[0, 0, 1e30, 1]], "reaches outside"),
    ],
)
def test_boxes_that_are_none_are_named(boxes: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        as_boxes(boxes, (10, 9), caller="f")  # type: ignore[arg-type]
