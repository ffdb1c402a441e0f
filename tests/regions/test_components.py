"""Components of masks, against scipy's labels of one class at a time, and what must not change them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raremix.data.masks import CAMVID_SEGNET, IGNORED, read_mask
from raremix.errors import LabelError, OptionError
from raremix.regions.components import Components, components, find_runs, spread

Connectivity = Literal[4, 8]
NEIGHBOURS = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3))}


@st.composite
def masks(draw: st.DrawFn, most: int = 14) -> np.ndarray:
    """Masks of few classes, some of single pixels and some of blocks, with ignored parts."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    zoom = draw(st.sampled_from([1, 1, 2, 3]))
    weights = draw(st.sampled_from([(1, 1, 1, 1), (6, 1, 1, 1), (1, 1, 0, 0), (1, 0, 0, 1)]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chances = np.array(weights) / sum(weights)
    drawn = generator.choice([0, 3, 7, IGNORED], p=chances, size=(height, width))
    return np.kron(drawn, np.ones((zoom, zoom), dtype=int))[:height, :width].astype(np.uint8)


def _by_scipy(mask: np.ndarray, connectivity: Connectivity) -> set[tuple[int, bytes]]:
    """The class id of every component, with the bytes of the mask of its pixels."""
    found = set()
    for label in set(mask.ravel().tolist()) - {IGNORED}:
        numbers, count = ndimage.label(mask == label, NEIGHBOURS[connectivity])
        found |= {(label, (numbers == number).tobytes()) for number in range(1, count + 1)}
    return found


def _assert_right(mask: np.ndarray, found: Components, connectivity: Connectivity) -> None:
    numbers = range(1, len(found.label) + 1)
    members = [found.number == number for number in numbers]
    expected = _by_scipy(mask, connectivity)
    assert len(members) == len(expected)
    assert {
        (int(label), pixels.tobytes()) for label, pixels in zip(found.label, members, strict=True)
    } == expected
    assert not found.number[mask == IGNORED].any()
    for pixels, area, box, touches in zip(
        members, found.area, found.boxes, found.touches_border, strict=True
    ):
        y, x = np.nonzero(pixels)
        assert area == len(y)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        inner = pixels.copy()
        inner[[0, -1]] = inner[:, [0, -1]] = False
        assert touches == (inner.sum() < area)


@settings(deadline=None, max_examples=300)
@given(mask=masks(), connectivity=st.sampled_from([4, 8]))
def test_components_are_those_that_scipy_finds_class_by_class(
    mask: np.ndarray, connectivity: Connectivity
) -> None:
    _assert_right(mask, components(mask, connectivity=connectivity), connectivity)


def test_the_components_of_real_masks_are_those_of_scipy(shared_data: Path) -> None:
    for path in sorted((shared_data / "camvid" / "labels").glob("*.png"))[::30]:
        mask = read_mask(path, convention=CAMVID_SEGNET)
        found = components(mask)
        area = 0
        for label in CAMVID_SEGNET.names:
            numbers, count = ndimage.label(mask == label, NEIGHBOURS[8])
            mine = np.unique(found.number[mask == label])
            assert len(mine) == count
            # Both divide the pixels alike, if no more pairs of numbers occur than numbers.
            pairs = np.stack([numbers, found.number])[:, mask == label]
            assert len(np.unique(pairs, axis=1).T) == count
            assert (found.label[mine - 1] == label).all()
            area += int((mask == label).sum())
        assert found.area.sum() == area
        assert (np.bincount(found.number.ravel())[1:] == found.area).all()
        slices = ndimage.find_objects(found.number)
        assert found.boxes.tolist() == [[x.start, y.start, x.stop, y.stop] for y, x in slices]


@settings(deadline=None, max_examples=100)
@given(mask=masks())
def test_numbers_run_in_reading_order_of_first_pixels(mask: np.ndarray) -> None:
    number = components(mask).number
    _, first = np.unique(number[number > 0], return_index=True)
    assert first.tolist() == sorted(first.tolist())
    assert number.max(initial=0) == len(first)


@settings(deadline=None, max_examples=100)
@given(mask=masks(), connectivity=st.sampled_from([4, 8]))
def test_mirrors_and_turns_of_a_mask_have_the_same_components(
    mask: np.ndarray, connectivity: Connectivity
) -> None:
    def areas(of: np.ndarray) -> list[tuple[int, int]]:
        found = components(of, connectivity=connectivity)
        return sorted(zip(found.label.tolist(), found.area.tolist(), strict=True))

    assert areas(mask) == areas(mask.T) == areas(mask[::-1]) == areas(mask[:, ::-1])


def _spiral(side: int) -> np.ndarray:
    """A line one pixel wide that winds inwards and never meets itself."""
    mask = np.zeros((side, side), dtype=np.uint8)
    y, x, dy, dx = 0, 0, 0, 1
    for length in [side - 1, *np.repeat(np.arange(side - 1, 0, -2), 2)]:
        for _ in range(length):
            mask[y, x] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    return mask


def _comb(side: int) -> np.ndarray:
    """Teeth that are joined in the last row only, so that all come together late."""
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[:, ::2] = mask[-1] = 1
    return mask


@pytest.mark.parametrize("make", [_spiral, _comb])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_what_is_joined_only_far_away_is_one_component(make: Any, turn: int) -> None:
    mask = np.rot90(make(61), turn)
    _assert_right(mask, components(mask), 8)
    assert (components(mask).label == 1).sum() == 1


def test_corners_connect_with_eight_neighbours_and_not_with_four() -> None:
    mask = np.eye(5, dtype=np.int64)
    assert components(mask).area.tolist() == [5, 20]
    found = components(mask, connectivity=4)
    assert found.area[found.label == 1].tolist() == [1] * 5
    assert found.area[found.label == 0].tolist() == [10, 10]


def test_the_end_of_a_row_does_not_touch_the_start_of_the_next() -> None:
    mask = np.array([[0, 0, 5], [5, 0, 0], [0, 0, 5]])
    assert (components(mask).label == 5).sum() == 3


def test_a_mask_that_is_ignored_has_no_components() -> None:
    found = components(np.full((4, 6), IGNORED, dtype=np.uint8))
    assert not found.number.any()
    assert found.boxes.shape == (0, 4)
    assert len(found.label) == len(found.area) == len(found.touches_border) == 0


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16", ">i4"])
def test_ids_of_any_integer_dtype_give_the_same(dtype: str) -> None:
    mask = np.random.default_rng(0).choice([0, 1, IGNORED], size=(9, 7)).astype(np.uint8)
    found, other = components(mask), components(mask.astype(dtype))
    assert (found.number == other.number).all()
    assert (found.label == other.label).all()
    assert other.number.dtype == np.int32
    assert {other.label.dtype, other.area.dtype, other.boxes.dtype} == {np.dtype(np.int64)}


def test_a_mask_stays_as_it_was() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (9, 7))
    mask.setflags(write=False)
    components(mask)


@settings(deadline=None, max_examples=100)
@given(mask=masks())
def test_runs_hold_every_pixel_once_and_are_as_long_as_can_be(mask: np.ndarray) -> None:
    runs = find_runs(mask)
    painted = np.full(mask.shape, -1)
    for row, left, right, value in zip(runs.row, runs.left, runs.right, runs.value, strict=True):
        assert (painted[row, left:right] == -1).all()
        painted[row, left:right] = value
    assert (painted == mask).all()
    same_row = runs.row[1:] == runs.row[:-1]
    assert (runs.value[1:] != runs.value[:-1])[same_row].all()


def test_no_range_at_all_spreads_to_nothing() -> None:
    which, numbers = spread(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert len(which) == len(numbers) == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 3)), r"integers of shape \(h, w\), got float64 of shape \(2, 3\)"),
        (np.zeros((2, 3), dtype=bool), r"got bool of shape \(2, 3\)"),
        (np.zeros((2, 3, 1), dtype=int), r"got int64 of shape \(2, 3, 1\)"),
        ([[0, 1]], r"got list\."),
        (None, r"got NoneType\."),
        (np.zeros((0, 3), dtype=int), r"a mask of shape \(0, 3\), which holds no pixel"),
        (np.full((2, 3), -1), r"class ids from 0 on, got a mask that holds -1; .* with 255"),
    ],
)
def test_what_is_no_mask_is_named(mask: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        components(mask)


def test_another_connectivity_is_named() -> None:
    with pytest.raises(OptionError, match="connectivity 4 or 8, got 6"):
        components(np.zeros((2, 2), dtype=int), connectivity=6)  # type: ignore[arg-type]
