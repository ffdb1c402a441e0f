"""Properties of where views lie, against plain pixel sets, exact fractions and views that are cut."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.views import (
    MultiCropTransform,
    ViewParameters,
    overlap,
    point_in_source,
    point_in_view,
    source_box,
)
from raremix.views.rows import Box

# Mean 0 and deviation 1: a finished view is then its pixels in [0, 1].
PLAIN = MultiCropTransform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@st.composite
def boxes(draw: st.DrawFn, most: int = 24) -> Box:
    left, top = draw(st.integers(0, most - 1)), draw(st.integers(0, most - 1))
    return left, top, draw(st.integers(left + 1, most)), draw(st.integers(top + 1, most))


@st.composite
def views(draw: st.DrawFn, most: int = 4000, most_size: int = 300) -> ViewParameters:
    return ViewParameters(
        draw(boxes(most)), draw(st.integers(1, most_size)), flipped=draw(st.booleans())
    )


@st.composite
def dyadic_views(draw: st.DrawFn) -> ViewParameters:
    """Views whose sides are powers of two, so that floats hold every number on the way."""
    left, top = draw(st.integers(0, 2000)), draw(st.integers(0, 2000))
    width, height, size = (2 ** draw(st.integers(0, 9)) for _ in range(3))
    box = left, top, left + width, top + height
    return ViewParameters(box, size, flipped=draw(st.booleans()))


def _pixels(box: Box) -> set[tuple[int, int]]:
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


# Overlap


@settings(deadline=None)
@given(first=boxes(), second=boxes(), flipped=st.booleans(), size=st.integers(1, 99))
def test_overlap_is_that_of_the_sets_of_pixels(
    first: Box, second: Box, flipped: bool, size: int
) -> None:
    one, other = ViewParameters(first, size, flipped=flipped), ViewParameters(second, 32)
    mine, theirs = _pixels(first), _pixels(second)
    assert overlap(one, other) == len(mine & theirs) / len(mine | theirs)


@settings(deadline=None)
@given(first=views(), second=views())
def test_overlap_is_a_share_and_the_same_both_ways(
    first: ViewParameters, second: ViewParameters
) -> None:
    assert 0 <= overlap(first, second) <= 1
    assert overlap(first, second) == overlap(second, first)


@settings(deadline=None)
@given(view=views(), size=st.integers(1, 300), flipped=st.booleans())
def test_a_view_overlaps_any_view_of_its_box_entirely(
    view: ViewParameters, size: int, flipped: bool
) -> None:
    assert overlap(view, ViewParameters(view.box, size, flipped=flipped)) == 1


@settings(deadline=None)
@given(view=views(), gap=st.integers(0, 50), other=views(), downwards=st.booleans())
def test_views_side_by_side_do_not_overlap(
    view: ViewParameters, gap: int, other: ViewParameters, downwards: bool
) -> None:
    left, top, right, bottom = other.box
    x, y = (0, view.box[3] + gap - top) if downwards else (view.box[2] + gap - left, 0)
    beside = ViewParameters((left + x, top + y, right + x, bottom + y), 32)
    assert overlap(view, beside) == 0


# Points


POINTS = st.tuples(st.floats(-400, 400), st.floats(-400, 400))
QUARTERS = st.tuples(*[st.integers(-1600, 1600).map(lambda value: value / 4)] * 2)


@settings(deadline=None)
@given(view=dyadic_views(), point=QUARTERS)
def test_points_go_to_the_source_and_back_exactly_where_floats_are_exact(
    view: ViewParameters, point: tuple[float, float]
) -> None:
    assert point_in_view(view, *point_in_source(view, *point)) == point
    assert point_in_source(view, *point_in_view(view, *point)) == point


@settings(deadline=None)
@given(view=views(), point=POINTS)
def test_points_go_to_the_source_and_back(view: ViewParameters, point: tuple[float, float]) -> None:
    left, top, right, bottom = view.box
    # What a last digit of the source's place, 2e-13 at most, is in the view.
    zoom = max(1.0, view.size / min(right - left, bottom - top))
    back = point_in_view(view, *point_in_source(view, *point))
    assert back == pytest.approx(point, rel=0, abs=4e-12 * zoom)
    zoom = max(1.0, max(right - left, bottom - top) / view.size)
    back = point_in_source(view, *point_in_view(view, *point))
    assert back == pytest.approx(point, rel=0, abs=4e-12 * zoom)


@settings(deadline=None)
@given(view=views())
def test_corners_of_a_view_are_the_corners_of_its_box(view: ViewParameters) -> None:
    left, top, right, bottom = view.box
    if view.flipped:
        left, right = right, left
    assert point_in_source(view, 0, 0) == (left, top)
    assert point_in_source(view, view.size, view.size) == (right, bottom)
    assert point_in_view(view, left, top) == (0, 0)
    assert point_in_view(view, right, bottom) == (view.size, view.size)


@settings(deadline=None)
@given(view=views(), point=POINTS)
def test_a_point_of_the_source_is_in_the_view_where_the_box_holds_it(
    view: ViewParameters, point: tuple[float, float]
) -> None:
    left, top, right, bottom = view.box
    x, y = point_in_view(view, *point)
    inside = left <= point[0] <= right and top <= point[1] <= bottom
    assert (0 <= x <= view.size and 0 <= y <= view.size) == inside


# Boxes


@settings(deadline=None)
@given(view=views())
def test_the_source_of_a_whole_view_is_its_box(view: ViewParameters) -> None:
    assert source_box(view, (0, 0, view.size, view.size)) == view.box


def _touched(view: ViewParameters, start: float, end: float, axis: int) -> tuple[int, int]:
    """The first and the last source pixel, exclusive, between two points along an axis."""
    if view.flipped and axis == 0:
        start, end = view.size - end, view.size - start
    low, high = view.box[axis], view.box[axis + 2]
    step = Fraction(high - low, view.size)
    return math.floor(low + Fraction(start) * step), math.ceil(low + Fraction(end) * step)


@st.composite
def views_with_box(
    draw: st.DrawFn, *, most: int = 4000, most_size: int = 300
) -> tuple[ViewParameters, tuple[float, float, float, float]]:
    """A view and a box inside it, with edges at quarters of its pixels."""
    view = draw(views(most, most_size))
    left, top, right, bottom = draw(boxes(4 * view.size))
    return view, (left / 4, top / 4, right / 4, bottom / 4)


@settings(deadline=None)
@given(given_=views_with_box())
def test_the_source_of_a_part_is_every_pixel_it_touches_and_no_other(
    given_: tuple[ViewParameters, tuple[float, float, float, float]],
) -> None:
    view, (left, top, right, bottom) = given_
    (x0, x1), (y0, y1) = _touched(view, left, right, 0), _touched(view, top, bottom, 1)
    assert source_box(view, (left, top, right, bottom)) == (x0, y0, x1, y1)


@settings(deadline=None)
@given(given_=views_with_box(most=12, most_size=9))
def test_the_source_of_a_part_is_the_set_of_pixels_whose_squares_it_meets(
    given_: tuple[ViewParameters, tuple[float, float, float, float]],
) -> None:
    view, part = given_
    x0, y0, x1, y1 = view.box
    met = set()
    for x, y in _pixels(view.box):
        # The square of a source pixel, in the view and in fractions of it.
        left, right = (Fraction((at - x0) * view.size, x1 - x0) for at in (x, x + 1))
        top, bottom = (Fraction((at - y0) * view.size, y1 - y0) for at in (y, y + 1))
        if view.flipped:
            left, right = view.size - right, view.size - left
        if left < part[2] and part[0] < right and top < part[3] and part[1] < bottom:
            met.add((x, y))
    assert _pixels(source_box(view, part)) == met


@settings(deadline=None)
@given(
    view=views(),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_source_of_any_part_lies_in_the_box_and_holds_all_points_of_the_part(
    view: ViewParameters, shares: tuple[float, float, float, float]
) -> None:
    left, right = sorted(share * view.size for share in shares[:2])
    top, bottom = sorted(share * view.size for share in shares[2:])
    x0, y0, x1, y1 = source_box(view, (left, top, right, bottom))
    assert view.box[0] <= x0 <= x1 <= view.box[2]
    assert view.box[1] <= y0 <= y1 <= view.box[3]
    for x, y in ((left, top), (right, bottom), ((left + right) / 2, (top + bottom) / 2)):
        at = point_in_source(view, x, y)
        assert x0 <= at[0] <= x1
        assert y0 <= at[1] <= y1


# Pixels


PLACES = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)


@settings(deadline=None, max_examples=100)
@given(view=views(40, 60), place=PLACES, bilinear=st.booleans())
def test_a_marked_pixel_shows_where_its_place_in_the_view_is_and_nowhere_else(
    view: ViewParameters, place: tuple[float, float], bilinear: bool
) -> None:
    left, top, right, bottom = view.box
    x, y = left + int(place[0] * (right - left)), top + int(place[1] * (bottom - top))
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, y, x] = 255
    (shown,) = PLAIN.apply(image, [replace(view, bilinear=bilinear)])
    # A filter reaches one source pixel, or two, and as many more as a view's pixel is wider.
    reach_x, reach_y = (
        (1 if bilinear else 2) * max(1, length / view.size) + 1e-6
        for length in (right - left, bottom - top)
    )
    for row, column in shown[0].nonzero().tolist():
        at = point_in_source(view, column + 0.5, row + 0.5)
        assert abs(at[0] - x - 0.5) < reach_x
        assert abs(at[1] - y - 0.5) < reach_y
    if view.size >= max(right - left, bottom - top):
        # Then some pixel of the view has its middle inside the marked one, and is the brightest.
        row, column = divmod(int(shown[0].argmax()), view.size)
        at = point_in_source(view, column + 0.5, row + 0.5)
        assert (math.floor(at[0]), math.floor(at[1])) == (x, y)


@settings(deadline=None, max_examples=60)
@given(
    box=boxes(40),
    zoom=st.sampled_from([1, 3, 5]),
    flipped=st.booleans(),
    place=PLACES,
)
def test_the_middle_pixel_of_an_enlarged_marker_is_the_marker(
    box: Box, zoom: int, flipped: bool, place: tuple[float, float]
) -> None:
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    view = ViewParameters((left, top, left + side, top + side), side * zoom, flipped=flipped)
    x, y = left + int(place[0] * side), top + int(place[1] * side)
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    (shown,) = PLAIN.apply(image, [view])
    column, row = (math.floor(at) for at in point_in_view(view, x + 0.5, y + 0.5))
    assert torch.equal((shown[:, row, column] * 255).round().to(torch.uint8), image[:, y, x])
    back = point_in_source(view, column + 0.5, row + 0.5)
    assert (math.floor(back[0]), math.floor(back[1])) == (x, y)
    assert source_box(view, (column, row, column + 1, row + 1)) == (x, y, x + 1, y + 1)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_half_of_a_view_shows_its_half_of_the_source(flipped: bool) -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, :, 40:] = 255
    view = ViewParameters((20, 10, 60, 50), 32, flipped=flipped)
    (shown,) = PLAIN.apply(image, [view])
    left, right = shown[..., :14], shown[..., 18:]
    assert source_box(view, (0, 0, 16, 32)) == ((40, 10, 60, 50) if flipped else (20, 10, 40, 50))
    assert float(left.mean()) == pytest.approx(1.0 if flipped else 0.0, abs=0.01)
    assert float(right.mean()) == pytest.approx(0.0 if flipped else 1.0, abs=0.01)
