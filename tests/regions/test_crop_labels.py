"""Labels of crops, against plain sets of pixels, and the rules one at a time."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raremix.data.boxes import ObjectBoxes
from raremix.data.masks import CAMVID_SEGNET, IGNORED, read_mask
from raremix.errors import LabelError, OptionError
from raremix.regions.labels import (
    CropLabels,
    label_crops_by_boxes,
    label_crops_by_mask,
    rare_in_frame,
)

RARE = {3, 7}
CAMVID_RARE = {2, 6, 7, 9, 10}

# An oracle: a crop and an object are sets of places, and every share is a fraction


@dataclass(frozen=True)
class Thing:
    """An object of any class; places are (x, y), ``unit`` of them to a pixel along each side."""

    label: int
    places: frozenset[tuple[int, int]]
    is_judged: bool = True
    is_truncated: bool = False
    unit: int = 1


def _seen(thing: Thing, crop: list[int]) -> set[tuple[int, int]]:
    left, top, right, bottom = (edge * thing.unit for edge in crop)
    return {(x, y) for x, y in thing.places if left <= x < right and top <= y < bottom}


def _area(places: Iterable[Any], unit: int) -> Fraction:
    return Fraction(len(set(places)), unit**2)


def _longest_side(places: set[tuple[int, int]], unit: int) -> Fraction:
    columns, rows = zip(*places, strict=True)
    return Fraction(max(max(columns) - min(columns), max(rows) - min(rows)) + 1, unit)


def _check(
    found: CropLabels,
    crops: list[list[int]],
    things: list[Thing],
    ignored_cover: list[Fraction],
    *,
    truncated: str,
    least_visible: float,
    least_cover: float,
    least_side: int,
    least_area: int,
    most_ignored: float,
) -> None:
    """Hold every crop to the rules as they stand at the top of the module."""
    for row, crop in enumerate(crops):
        crop_area = (crop[2] - crop[0]) * (crop[3] - crop[1])
        parts, rare_places, unit = [], set(), 1
        for thing in things:
            places = _seen(thing, crop)
            if thing.label not in RARE or not places:
                continue
            rare_places |= places
            unit = thing.unit
            shown = _area(places, thing.unit)
            share = shown / _area(thing.places, thing.unit)
            is_large = _longest_side(places, thing.unit) >= least_side and shown >= least_area
            makes_rare = (
                is_large
                and thing.is_judged
                and not (thing.is_truncated and truncated == "ignore")
                and share >= Fraction(str(least_visible))
                and shown / crop_area >= Fraction(str(least_cover))
            )
            parts.append((makes_rare, shown, share, thing.label, is_large))
        is_rare = any(makes_rare for makes_rare, *_ in parts)
        cover = _area(rare_places, unit) / crop_area
        is_ignored = not is_rare and (
            any(is_large for *_, is_large in parts)
            or (cover > 0 and cover >= Fraction(str(least_cover)))
            or ignored_cover[row] > Fraction(str(most_ignored))
        )
        assert (found.is_rare[row], found.is_ignored[row]) == (is_rare, is_ignored)
        if is_rare:
            most = max(part[:3] for part in parts)
            assert found.rare_class[row] in {part[3] for part in parts if part[:3] == most}
        else:
            assert found.rare_class[row] == -1
        for column, label in enumerate(found.classes):
            if label not in RARE:
                assert np.isnan(found.visible[row, column])
                continue
            shares = [part[:3] for part in parts if part[3] == label]
            expected = float(max(shares)[2]) if shares else 0.0
            assert found.visible[row, column] == np.float32(expected)


def _check_shares(found: CropLabels, shares: list[dict[int, Fraction]], least: float) -> None:
    for row, share in enumerate(shares):
        expected = [np.float32(float(share.get(label, Fraction(0)))) for label in found.classes]
        assert found.share[row].tolist() == expected
        most = max(share.values(), default=Fraction(0))
        if most >= Fraction(str(least)):
            assert share[int(found.dominant[row])] == most
        else:
            assert found.dominant[row] == -1


@st.composite
def crops(draw: st.DrawFn, height: int, width: int) -> list[list[int]]:
    found = []
    for _ in range(draw(st.integers(0, 6))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        found.append([left, top, right, bottom])
    return found


RULES = st.fixed_dictionaries(
    {
        "least_visible": st.sampled_from([0.1, 0.5, 0.6, 1.0]),
        "least_cover": st.sampled_from([0.0, 0.02, 0.1, 0.4]),
        "least_side": st.integers(0, 5),
        "most_ignored": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        "truncated": st.sampled_from(["keep", "ignore"]),
    }
)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    zoom = draw(st.sampled_from([1, 2, 3, 5]))
    weights = draw(st.sampled_from([(2, 1, 1, 1, 1), (8, 1, 1, 0, 1), (3, 3, 1, 1, 0)]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chances = np.array(weights) / sum(weights)
    drawn = generator.choice([0, 1, 3, 7, IGNORED], p=chances, size=(height, width))
    return np.kron(drawn, np.ones((zoom, zoom), dtype=int))[:height, :width].astype(np.uint8)


def _things_of(mask: np.ndarray, instances: np.ndarray | None = None) -> list[Thing]:
    height, width = mask.shape
    numbers = np.zeros_like(mask, dtype=int) if instances is None else instances
    found = []
    for label in RARE:
        loose, count = ndimage.label((mask == label) & (numbers == 0), np.ones((3, 3)))
        members = [loose == number for number in range(1, count + 1)]
        members += [(mask == label) & (numbers == n) for n in set(numbers.ravel().tolist()) - {0}]
        for pixels in members:
            if not pixels.any():
                continue
            y, x = np.nonzero(pixels)
            reaches = y.min() == 0 or x.min() == 0 or y.max() == height - 1 or x.max() == width - 1
            places = frozenset(zip(x.tolist(), y.tolist(), strict=True))
            found.append(Thing(label, places, is_truncated=bool(reaches)))
    return found


@settings(deadline=None, max_examples=400)
@given(data=st.data(), mask=masks(), rules=RULES, numbered=st.booleans())
def test_labels_by_mask_are_those_of_the_sets_of_pixels(
    data: st.DataObject, mask: np.ndarray, rules: dict[str, Any], numbered: bool
) -> None:
    boxes = data.draw(crops(*mask.shape))
    rules["least_area"] = data.draw(st.integers(0, 9))
    dominant = data.draw(st.sampled_from([0.3, 0.6, 1.0]))
    instances = None
    if numbered:
        generator = np.random.default_rng(data.draw(st.integers(0, 99)))
        instances = generator.choice([0, 1, 300], size=mask.shape)
    found = label_crops_by_mask(
        boxes, mask, rare=RARE, instances=instances, least_dominant=dominant, **rules
    )
    shown = [mask[top:bottom, left:right] for left, top, right, bottom in boxes]
    ignored = [Fraction(int((part == IGNORED).sum()), part.size) for part in shown]
    _check(found, boxes, _things_of(mask, instances), ignored, **rules)
    shares = []
    for part in shown:
        labelled = part[part != IGNORED]
        ids, counts = np.unique(labelled, return_counts=True)
        shares.append(
            {
                int(label): Fraction(int(count), labelled.size)
                for label, count in zip(ids, counts, strict=True)
            }
        )
    _check_shares(found, shares, dominant)


QUARTERS = 4


@st.composite
def object_boxes(draw: st.DrawFn, height: int, width: int) -> ObjectBoxes:
    """Boxes with edges at quarters of a pixel, some of them reaching beyond the frame."""
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        left = draw(st.integers(-3, QUARTERS * width - 1))
        top = draw(st.integers(-3, QUARTERS * height - 1))
        right = draw(st.integers(max(left, 0) + 1, QUARTERS * width + 3))
        bottom = draw(st.integers(max(top, 0) + 1, QUARTERS * height + 3))
        boxes.append([left, top, right, bottom])
    n = len(boxes)
    flags = st.lists(st.sampled_from([False, False, True]), min_size=n, max_size=n)
    is_ignored = np.array(draw(flags), dtype=np.bool_)
    labels = draw(st.lists(st.sampled_from([0, 1, 3, 7]), min_size=n, max_size=n))
    is_nameless = is_ignored & np.array(draw(flags), dtype=np.bool_)
    return ObjectBoxes(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4) / np.float32(QUARTERS),
        labels=np.where(is_nameless, -1, np.array(labels, dtype=np.int64)),
        is_truncated=np.array(draw(flags), dtype=np.bool_),
        is_ignored=is_ignored,
    )


def _things_in(objects: ObjectBoxes, height: int, width: int) -> list[Thing]:
    found = []
    for row, box in enumerate((objects.boxes * QUARTERS).astype(int).tolist()):
        columns = range(max(box[0], 0), min(box[2], QUARTERS * width))
        rows = range(max(box[1], 0), min(box[3], QUARTERS * height))
        found.append(
            Thing(
                int(objects.labels[row]),
                frozenset((x, y) for x in columns for y in rows),
                is_judged=not objects.is_ignored[row],
                is_truncated=bool(objects.is_truncated[row]),
                unit=QUARTERS,
            )
        )
    return found


@settings(deadline=None, max_examples=250)
@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9), rules=RULES)
def test_labels_by_boxes_are_those_of_the_sets_of_quarters_of_pixels(
    data: st.DataObject, height: int, width: int, rules: dict[str, Any]
) -> None:
    boxes = data.draw(crops(height, width))
    objects = data.draw(object_boxes(height, width))
    dominant = data.draw(st.sampled_from([0.3, 0.6, 1.0]))
    found = label_crops_by_boxes(
        boxes, objects, (height, width), rare=RARE, least_dominant=dominant, **rules
    )
    things = _things_in(objects, height, width)

    def cover(crop: list[int], of: list[Thing]) -> Fraction:
        places = set().union(*(_seen(thing, crop) for thing in of))
        return _area(places, QUARTERS) / ((crop[2] - crop[0]) * (crop[3] - crop[1]))

    ignored = [cover(crop, [t for t in things if not t.is_judged]) for crop in boxes]
    _check(found, boxes, things, ignored, **rules, least_area=0)
    judged = [thing for thing in things if thing.is_judged]
    shares = [
        {label: cover(crop, [t for t in judged if t.label == label]) for label in found.classes}
        for crop in boxes
    ]
    _check_shares(found, shares, dominant)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), rules=RULES)
def test_a_mask_of_upright_rectangles_is_labelled_as_their_boxes(
    data: st.DataObject, rules: dict[str, Any]
) -> None:
    # One rectangle in each cell of a grid, apart from the others, and none at the border.
    mask = np.zeros((24, 24), dtype=np.uint8)
    found_boxes, labels = [], []
    for x in range(0, 24, 8):
        for y in range(0, 24, 8):
            box = data.draw(crops(6, 6).filter(bool))[0]
            left, top, right, bottom = (edge + (x, y)[i % 2] + 1 for i, edge in enumerate(box))
            label = data.draw(st.sampled_from([3, 7]))
            mask[top:bottom, left:right] = label
            found_boxes.append([left, top, right, bottom])
            labels.append(label)
    no = np.zeros(len(labels), dtype=np.bool_)
    objects = ObjectBoxes(np.array(found_boxes, dtype=np.float32), np.array(labels), no, no)
    boxes = data.draw(crops(24, 24))
    one = label_crops_by_mask(boxes, mask, rare=RARE, least_area=0, **rules)
    other = label_crops_by_boxes(
        boxes, objects, (24, 24), rare=RARE, names=dict.fromkeys(one.classes, ""), **rules
    )
    assert (one.is_rare == other.is_rare).all()
    assert (one.is_ignored == other.is_ignored).all()
    assert (one.rare_class == other.rare_class).all()
    np.testing.assert_array_equal(one.visible, other.visible)
    assert (one.share[:, 1:] == other.share[:, 1:]).all()


# What must not matter, and which way it must


def _real(shared_data: Path, name: str) -> np.ndarray:
    return read_mask(shared_data / "camvid" / "labels" / name, convention=CAMVID_SEGNET)


def _windows(n: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(np.log(24), np.log(200), (n, 2))).astype(int)
    start = (generator.random((n, 2)) * (np.array([480, 360]) - size)).astype(int)
    return np.concatenate([start, start + size], axis=1)


def _columns(found: CropLabels) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(found).items() if name != "classes"}


def test_crops_are_labelled_each_by_itself(shared_data: Path) -> None:
    mask, boxes = _real(shared_data, "0016E5_00990.png"), _windows(237)
    whole = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE)
    assert whole.is_rare.any()
    assert whole.is_ignored.any()
    for rows in (slice(None, None, -1), slice(20, 21), slice(0, 0)):
        part = label_crops_by_mask(boxes[rows], mask, rare=CAMVID_RARE)
        for name, value in _columns(part).items():
            np.testing.assert_array_equal(value, getattr(whole, name)[rows])


def test_counts_of_real_crops_are_those_of_their_pixels(shared_data: Path) -> None:
    mask, boxes = _real(shared_data, "0006R0_f02490.png"), _windows(60, seed=1)
    boxes = np.concatenate([boxes, [[0, 0, 480, 360], [479, 359, 480, 360]]])
    found = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE, names=CAMVID_SEGNET.names)
    assert found.classes == tuple(range(11))
    for share, (left, top, right, bottom) in zip(found.share, boxes, strict=True):
        counts = np.bincount(mask[top:bottom, left:right].ravel(), minlength=256)[:11]
        assert share.tolist() == (counts / max(counts.sum(), 1)).astype(np.float32).tolist()


def test_counts_are_right_where_a_table_holds_no_second_class() -> None:
    # 2**21 pixels and more of each of three classes: 22 bits or more for every one.
    mask = np.repeat(np.array([0, 3, 7], dtype=np.uint8), 900)[None].repeat(2400, axis=0)
    found = label_crops_by_mask([[0, 0, 2700, 2400], [890, 5, 1810, 2390]], mask, rare=RARE)
    assert found.share[0].tolist() == [np.float32(1 / 3)] * 3
    assert found.share[1].tolist() == [np.float32(n / 920) for n in (10, 900, 10)]


def test_a_mirrored_frame_has_the_same_labels(shared_data: Path) -> None:
    mask, boxes = _real(shared_data, "0016E5_00990.png"), _windows(100)
    found = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE)
    left, top, right, bottom = boxes.T
    mirrored = np.stack([480 - right, top, 480 - left, bottom], axis=1)
    other = label_crops_by_mask(mirrored, mask[:, ::-1], rare=CAMVID_RARE)
    for name, value in _columns(found).items():
        np.testing.assert_array_equal(value, getattr(other, name))
    turned = label_crops_by_mask(boxes[:, [1, 0, 3, 2]], mask.T, rare=CAMVID_RARE)
    for name, value in _columns(found).items():
        np.testing.assert_array_equal(value, getattr(turned, name))


@pytest.mark.parametrize("option", ["least_visible", "least_cover"])
def test_asking_for_a_greater_share_makes_rare_crops_ignored_and_never_common(
    shared_data: Path, option: str
) -> None:
    mask, boxes = _real(shared_data, "0016E5_00990.png"), _windows(237)
    options: dict[str, Any] = {option: 0.05}
    before = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE, **options)
    options[option] = 0.9
    after = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE, **options)
    lost = before.is_rare & ~after.is_rare
    assert lost.any()
    assert after.is_ignored[lost].all()
    assert not (after.is_rare & ~before.is_rare).any()


def test_crops_may_be_a_tensor(shared_data: Path) -> None:
    mask, boxes = _real(shared_data, "0016E5_00990.png"), _windows(20)
    found = label_crops_by_mask(boxes, mask, rare=CAMVID_RARE)
    other = label_crops_by_mask(torch.from_numpy(boxes), mask, rare=CAMVID_RARE)
    np.testing.assert_array_equal(found.share, other.share)


# The rules, one at a time


def _square(mask: np.ndarray, left: int, top: int, side: int, label: int = 9) -> np.ndarray:
    mask[top : top + side, left : left + side] = label
    return mask


def _judged(mask: np.ndarray, box: list[int], **options: Any) -> str:
    found = label_crops_by_mask([box], mask, rare={9}, **options)
    assert not (found.is_rare & found.is_ignored).any()
    return "rare" if found.is_rare[0] else "ignored" if found.is_ignored[0] else "common"


BLANK = np.zeros((400, 400), dtype=np.uint8)
OBJECT = _square(BLANK.copy(), 100, 100, 40)


@pytest.mark.parametrize(
    ("box", "judged"),
    [
        ([80, 80, 160, 160], "rare"),  # all of it
        ([120, 80, 200, 160], "rare"),  # exactly half of it
        ([121, 80, 201, 160], "ignored"),  # a column less than half
        ([0, 0, 400, 200], "rare"),  # exactly 2 % of the crop
        ([0, 0, 283, 283], "ignored"),  # 1.998 %: all of it, but small in the crop
        ([136, 80, 236, 180], "ignored"),  # 4 columns, 160 pixels: large enough for a part
        ([137, 80, 237, 180], "common"),  # 3 columns, 120 pixels, 1.2 % of the crop
        ([137, 80, 177, 160], "ignored"),  # as many, 3.75 % of the crop
        ([140, 80, 220, 160], "common"),  # beside it
        ([0, 0, 100, 100], "common"),
    ],
)
def test_a_crop_of_an_object_is_rare_ignored_or_common(box: list[int], judged: str) -> None:
    assert _judged(OBJECT, box) == judged


def test_an_object_too_small_to_count_matters_only_where_it_fills_the_crop() -> None:
    mask = _square(BLANK.copy(), 100, 100, 12)  # 144 pixels
    assert _judged(mask, [90, 90, 120, 120]) == "ignored"
    assert _judged(mask, [60, 60, 145, 145]) == "common"  # 1.99 %
    assert _judged(mask, [90, 90, 120, 120], least_side=12, least_area=144) == "rare"


def test_many_specks_matter_by_what_they_cover_together() -> None:
    mask = BLANK.copy()
    mask[100:200:10, 100:200:10] = 9  # a hundred single pixels
    box = [100, 100, 170, 170]  # 49 of 4900
    assert _judged(mask, box, least_cover=0.01) == "ignored"
    assert _judged(mask, box, least_cover=0.011) == "common"
    assert _judged(BLANK, box, least_cover=0.0) == "common"


def test_the_longest_side_is_that_of_the_part_shown_not_of_its_box() -> None:
    mask = BLANK.copy()
    mask[100:140, 100:104] = 9
    mask[136:140, 100:200] = 9  # an L; a crop of its corner's inside shows the short foot only
    box = [104, 100, 124, 140]
    assert _judged(mask, box, least_area=0, least_side=20, least_visible=0.1) == "rare"
    assert _judged(mask, box, least_area=0, least_side=21, least_visible=0.1) == "ignored"
    # Ignored for what it covers; 80 of 800 pixels are less than a fifth.
    assert _judged(mask, box, least_area=0, least_side=21, least_cover=0.2) == "common"
    assert _judged(mask, box, least_area=0, least_side=20, least_cover=0.2) == "ignored"


def test_a_crop_of_ignored_pixels_is_ignored_unless_it_is_rare() -> None:
    mask = BLANK.copy()
    mask[:, 200:] = IGNORED
    assert _judged(mask, [100, 0, 300, 100]) == "common"  # exactly half
    assert _judged(mask, [101, 0, 301, 100]) == "ignored"
    assert _judged(mask, [101, 0, 301, 100], most_ignored=0.505) == "common"
    _square(mask, 250, 20, 60)
    assert _judged(mask, [200, 0, 320, 100]) == "rare"


def test_an_object_at_the_border_counts_as_what_is_seen_or_not_at_all() -> None:
    mask = _square(BLANK.copy(), 0, 50, 40)
    box = [0, 40, 100, 140]
    assert _judged(mask, box) == "rare"
    assert _judged(mask, box, truncated="ignore") == "ignored"
    _square(mask, 50, 60, 40)  # another one, which is whole
    assert _judged(mask, box, truncated="ignore") == "rare"
    # One column of it, 40 pixels: as little as of any other object.
    assert _judged(mask, [39, 40, 49, 140], truncated="ignore") == "ignored"
    assert _judged(_square(BLANK.copy(), 0, 50, 40), [39, 40, 139, 140], truncated="ignore") == (
        "common"
    )


def test_the_class_that_makes_it_rare_is_that_of_the_largest_part() -> None:
    mask = _square(_square(BLANK.copy(), 10, 10, 30, 9), 60, 10, 40, 7)
    boxes = [[0, 0, 110, 60], [0, 0, 90, 60], [0, 0, 79, 60], [200, 200, 300, 300]]
    found = label_crops_by_mask(boxes, mask, rare={7, 9})
    # 40 x 40 of class 7, then 30 x 40, then 19 x 40, which is less than half of it.
    assert found.rare_class.tolist() == [7, 7, 9, -1]
    assert found.classes == (0, 7, 9)
    expected = np.array([[1, 1], [0.75, 1], [0.475, 1], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(found.visible[:, 1:], expected)
    assert np.isnan(found.visible[:, 0]).all()


def test_what_is_visible_is_told_of_the_object_that_makes_it_rare() -> None:
    mask = _square(_square(BLANK.copy(), 10, 10, 30), 60, 0, 200)
    found = label_crops_by_mask([[0, 0, 90, 80]], mask, rare={9})
    # It shows 900 pixels of one, which is all, and 2400 of the other, which are 6 %.
    assert found.is_rare.all()
    assert found.visible[0, 1] == 1.0


def test_two_halves_are_two_objects_unless_they_bear_one_number() -> None:
    mask = BLANK.copy()
    mask[100:140, 100:180] = 9
    mask[:, 130:134] = 2  # a pole in front of it
    box = [90, 90, 134, 150]
    assert _judged(mask, box) == "rare"
    instances = np.zeros(mask.shape, dtype=np.int32)
    instances[100:140, 100:180] = 26001
    assert _judged(mask, box, instances=instances) == "ignored"
    instances[100:140, 134:180] = 26002
    assert _judged(mask, box, instances=instances) == "rare"


def test_a_class_is_dominant_from_its_share_of_the_labelled_pixels_on() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[:, 6:] = 1
    found = label_crops_by_mask([[0, 0, 10, 10], [1, 0, 10, 10]], mask, rare={9})
    assert found.dominant.tolist() == [0, -1]
    mask[:, 8:] = IGNORED
    assert label_crops_by_mask([[1, 0, 10, 10]], mask, rare={9}).dominant.tolist() == [0]


def test_a_crop_without_a_labelled_pixel_has_no_shares() -> None:
    mask = np.full((10, 10), IGNORED, dtype=np.uint8)
    found = label_crops_by_mask([[0, 0, 5, 5]], mask, rare={9}, names={0: "road", 9: "bus"})
    assert not found.share.any()
    assert found.dominant.tolist() == [-1]
    assert found.is_ignored.all()


# Boxes


def _boxes(*rows: tuple[list[float], int], **flags: list[bool]) -> ObjectBoxes:
    no = [False] * len(rows)
    return ObjectBoxes(
        boxes=np.array([box for box, _ in rows], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for _, label in rows], dtype=np.int64),
        is_truncated=np.array(flags.get("truncated", no), dtype=np.bool_),
        is_ignored=np.array(flags.get("ignored", no), dtype=np.bool_),
    )


def test_boxes_of_one_class_that_overlap_cover_their_union() -> None:
    objects = _boxes(([0, 0, 50, 100], 1), ([25, 0, 75, 100], 1), ([90, 0, 100, 100], 2))
    found = label_crops_by_boxes([[0, 0, 100, 100]], objects, (100, 100), rare={9})
    assert found.classes == (1, 2, 9)
    assert found.share[0].tolist() == [0.75, np.float32(0.1), 0.0]
    assert found.dominant.tolist() == [1]


def test_what_lies_outside_the_frame_is_no_part_of_an_object() -> None:
    objects = _boxes(([-60, 10, 40, 50], 9))
    found = label_crops_by_boxes([[0, 0, 60, 60]], objects, (100, 100), rare={9})
    assert found.is_rare.all()
    assert found.visible[0].tolist() == [1.0]


def test_a_truncated_box_can_be_left_undecided() -> None:
    objects = _boxes(([0, 10, 40, 50], 9), truncated=[True])
    for truncated, expected in (("keep", (True, False)), ("ignore", (False, True))):
        found = label_crops_by_boxes(
            [[0, 0, 60, 60]],
            objects,
            (100, 100),
            rare={9},
            truncated=truncated,  # type: ignore[arg-type]  # a literal, one after the other
        )
        assert (found.is_rare[0], found.is_ignored[0]) == expected


def test_a_crowd_makes_no_crop_rare_but_ignored() -> None:
    # Of a rare class as any object of it does, of no class where it covers more than half.
    rare, other = (_boxes(([0, 0, 50, 50], label), ignored=[True]) for label in (9, -1))
    boxes = [[0, 0, 50, 50], [0, 0, 80, 80], [26, 0, 76, 50]]
    found = label_crops_by_boxes(boxes, rare, (100, 100), rare={9})
    assert found.is_ignored.tolist() == [True, True, True]
    assert not found.share.any()
    found = label_crops_by_boxes(boxes, other, (100, 100), rare={9})
    assert found.is_ignored.tolist() == [True, False, False]
    assert found.classes == (9,)
    assert not found.is_rare.any()


def test_a_frame_without_objects_is_common() -> None:
    found = label_crops_by_boxes([[0, 0, 50, 50]], _boxes(), (100, 100), rare={9, 3})
    assert not found.is_rare.any()
    assert not found.is_ignored.any()
    assert found.visible.tolist() == [[0.0, 0.0]]


# Frames


def test_a_frame_counts_the_objects_that_are_large_enough() -> None:
    mask = _square(_square(BLANK.copy(), 10, 10, 24), 100, 100, 23)
    mask[200:206, 100:124] = 9  # 144 pixels
    mask[300:307, 100:124] = 7
    found = rare_in_frame(mask, rare=[9, 7, 4])
    assert (found.classes, found.counted.tolist()) == ((4, 7, 9), [0, 1, 1])
    assert not found.unsure.any()
    assert rare_in_frame(mask, rare=[9], least_area=144).counted.tolist() == [2]
    assert rare_in_frame(mask, rare=[9], least_side=23).counted.tolist() == [2]
    instances = (mask == 9).astype(int)
    assert rare_in_frame(mask, rare=[9], instances=instances, least_side=1).counted.tolist() == [1]


def test_a_frame_is_unsure_of_truncated_and_ignored_objects() -> None:
    objects = _boxes(
        ([0, 0, 40, 40], 9),
        ([50, 0, 90, 40], 9),
        ([0, 50, 40, 90], 7),
        ([50, 50, 60, 60], 7),
        ([70, 50, 99, 90], 1),
        ([0, 0, 99, 99], -1),
        truncated=[True, False, False, False, False, False],
        ignored=[False, False, True, True, False, True],
    )
    kept = rare_in_frame(objects, rare={7, 9}, size=(100, 100))
    assert (kept.counted.tolist(), kept.unsure.tolist()) == ([0, 2], [1, 0])
    left = rare_in_frame(objects, rare={7, 9}, size=(100, 100), truncated="ignore")
    assert (left.counted.tolist(), left.unsure.tolist()) == ([0, 1], [1, 1])


def test_a_box_counts_in_a_frame_by_what_lies_inside() -> None:
    objects = _boxes(([-30, 0, 20, 20], 9))
    assert rare_in_frame(objects, rare={9}, size=(100, 100)).counted.tolist() == [0]
    assert rare_in_frame(objects, rare={9}, size=(100, 100), least_side=20).counted.tolist() == [1]


# Real frames, and the crops that were cut of them when the data was made


def test_objects_of_all_real_frames_are_as_many_as_their_makers_counted(shared_data: Path) -> None:
    with open(shared_data / "camvid" / "classes.csv", newline="") as file:
        told = {int(row["id"]): int(row["components"]) for row in csv.DictReader(file)}
    rare = sorted(CAMVID_RARE)
    counted = np.zeros(len(rare), dtype=int)
    for path in sorted((shared_data / "camvid" / "labels").glob("*.png")):
        counted += rare_in_frame(read_mask(path, convention=CAMVID_SEGNET), rare=rare).counted
    assert counted.tolist() == [told[label] for label in rare]


def test_real_crops_are_labelled_as_their_makers_did(shared_data: Path) -> None:
    with np.load(shared_data / "camvid_crops.npz", allow_pickle=False) as data:
        is_rare, label, frame = data["is_rare"], data["label"].astype(int), data["frame"]
        boxes, is_window = data["box"][:, [1, 0, 3, 2]], data["is_window"]
        frame_names = data["frame_names"]
    found: dict[str, list[np.ndarray]] = {}
    for number, name in enumerate(frame_names):
        part = label_crops_by_mask(
            boxes[frame == number],
            _real(shared_data, f"{name}.png"),
            rare=CAMVID_RARE,
            names=CAMVID_SEGNET.names,
            size=(360, 480),
        )
        for column, value in _columns(part).items():
            found.setdefault(column, []).append(value)
    labels = {column: np.concatenate(values) for column, values in found.items()}

    # Their crops were cut around an object of the label, whatever else they show; so all of it
    # is there. 36 poles are too thin to cover a fiftieth of a square around them.
    own = labels["visible"][np.arange(len(label)), label.clip(max=10)]
    assert (own[is_rare] >= 0.5).all()
    assert (labels["is_rare"][is_rare].sum(), is_rare.sum()) == (594, 630)
    missed = is_rare & ~labels["is_rare"]
    assert labels["is_ignored"][missed].all()
    assert set(label[missed].tolist()) == {2}
    # Where the class differs, a larger part of another rare object is in the crop: most often the
    # sign that stands on the pole.
    hit = is_rare & labels["is_rare"]
    is_same = labels["rare_class"] == label
    assert is_same[hit].mean() > 0.88
    assert is_same[hit & (label != 2)].mean() > 0.95
    for row in np.flatnonzero(hit & ~is_same):
        share = labels["share"][row]
        assert share[labels["rare_class"][row]] > 0.02

    # Windows were refused where rare classes cover more than a fiftieth of them.
    assert not labels["is_rare"][is_window].any()
    assert labels["is_ignored"][is_window].mean() < 0.03
    is_pure = is_window & (label != 12)
    assert (labels["dominant"][is_pure] == label[is_pure]).all()


# What is refused


def _by_mask(**changes: Any) -> CropLabels:
    given_: dict[str, Any] = {"boxes": [[0, 0, 9, 9]], "mask": BLANK, "rare": {9}} | changes
    return label_crops_by_mask(given_.pop("boxes"), given_.pop("mask"), **given_)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((3, 3))}, "label_crops_by_mask expects a mask .* got float64"),
        ({"mask": np.full((9, 9), 256)}, "class ids of at most 255, got a mask that holds 256"),
        ({"mask": np.full((9, 9), -1)}, "class ids from 0 on, got a mask that holds -1"),
        ({"size": (400, 300)}, r"shape \(400, 400\) for a frame of height and width \(400, 300\)"),
        ({"rare": []}, "expects rare as one class id or more"),
        ({"rare": {"pole"}}, "got {'pole'}; look the ids of names up"),
        ({"rare": {-1}}, "whole numbers from 0 on, got {-1}"),
        ({"rare": 9}, "one class id or more, whole numbers from 0 on, got 9"),
        ({"rare": {255}}, "class id 255; a mask holds ids of 0 to 254"),
        ({"names": {0: "road", 8: "car"}}, r"rare classes \[9\] .* known are 0 road, 8 car"),
        ({"names": {9: "bus"}}, r"classes \[0\] in the mask that have no name; known are 9 bus"),
        ({"instances": np.zeros((4, 4), dtype=int)}, r"instances of shape \(4, 4\) for a mask of"),
        ({"instances": np.zeros((400, 400))}, "instances as an array of integers, got float64"),
        ({"instances": np.full((400, 400), -1)}, "at least 0 and below .* got -1 to -1"),
    ],
)
def test_labels_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        _by_mask(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"boxes": [[0, 0, 9, 9], [0, 0, 401, 9]]},
            r"1 of 2 boxes .* at row 1: .*\[0, 0, 401, 9\]",
        ),
        ({"boxes": [[-1, 0, 9, 9]]}, "in a frame of height 400 and width 400"),
        ({"boxes": [[5, 0, 5, 9]]}, r"empty or reach outside the frame, the first at row 0"),
        ({"boxes": [[0, 9, 5, 8]]}, r"\[0, 9, 5, 8\]"),
        ({"boxes": [[0.0, 0.0, 5.0, 8.0]]}, r"whole numbers of shape \(n, 4\), got float64"),
        ({"boxes": [0, 0, 5, 8]}, r"got int64 of shape \(4,\)"),
        ({"size": (400,)}, r"size as \(height, width\), got \(400,\)"),
        ({"least_visible": 0.0}, r"least_visible as a number in \(0, 1\]"),
        ({"least_cover": 2}, r"least_cover as a number in \[0, 1\], got 2"),
        ({"least_side": 2.5}, "least_side as a whole number"),
        ({"least_area": -1}, "least_area as a whole number of at least 0"),
        ({"most_ignored": -0.1}, "most_ignored as a number"),
        ({"least_dominant": 0}, "least_dominant as a number"),
        ({"truncated": "drop"}, "truncated 'keep' or 'ignore', got 'drop'"),
    ],
)
def test_options_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _by_mask(**changes)


def test_a_box_outside_of_a_frame_that_is_not_square_is_found() -> None:
    mask = np.zeros((20, 50), dtype=np.uint8)
    assert len(label_crops_by_mask([[0, 0, 50, 20]], mask, rare={9}).is_rare) == 1
    with pytest.raises(OptionError, match=r"\[0, 0, 20, 50\] in a frame of height 20 and width 50"):
        label_crops_by_mask([[0, 0, 20, 50]], mask, rare={9})


def test_boxes_that_do_not_fit_are_named() -> None:
    crops_ = [[0, 0, 50, 50]]
    with pytest.raises(LabelError, match=r"1 of 2 labelled boxes .* row 1: \[120\.0, 0\.0, 130"):
        label_crops_by_boxes(
            crops_, _boxes(([0, 0, 9, 9], 9), ([120, 0, 130, 9], 9)), (100, 100), rare={9}
        )
    with pytest.raises(LabelError, match=r"classes \[-1\] in the boxes of the frame"):
        label_crops_by_boxes(crops_, _boxes(([0, 0, 9, 9], -1)), (100, 100), rare={9})
    with pytest.raises(LabelError, match=r"classes \[4\] in the boxes of the frame .* 9 bus"):
        label_crops_by_boxes(
            crops_, _boxes(([0, 0, 9, 9], 4)), (100, 100), rare={9}, names={9: "bus"}
        )
    with pytest.raises(LabelError, match="expects the ObjectBoxes of a frame, got NoneType"):
        label_crops_by_boxes(crops_, None, (100, 100), rare={9})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="the width of size as a whole number"):
        label_crops_by_boxes(crops_, _boxes(), (100, 0), rare={9})


def test_frames_with_boxes_need_their_size_and_no_instances() -> None:
    with pytest.raises(OptionError, match="rare_in_frame got boxes and no size of the frame"):
        rare_in_frame(_boxes(), rare={9})
    with pytest.raises(OptionError, match="rare_in_frame got boxes and instances"):
        rare_in_frame(_boxes(), rare={9}, size=(9, 9), instances=BLANK)
    with pytest.raises(LabelError, match="rare_in_frame got a mask of shape"):
        rare_in_frame(BLANK, rare={9}, size=(9, 9))
    with pytest.raises(LabelError, match=r"rare_in_frame got rare classes \[9\]"):
        rare_in_frame(BLANK, rare={9}, names={0: "road"})
