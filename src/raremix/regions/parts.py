"""What crops show of a frame: pixels of each class, and parts of rare objects.

It measures, exactly, and judges nothing; inputs have been checked. Crops are (n, 4) int64 boxes
inside the frame.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from raremix.data.boxes import ObjectBoxes
from raremix.data.masks import IGNORED
from raremix.regions.components import (
    Runs,
    find_runs,
    join_runs,
    outline,
    spread,
    touches_border,
)

__all__ = [
    "Objects",
    "Parts",
    "areas_of",
    "covered_pixels",
    "longest_sides",
    "objects_in_mask",
    "parts_in_mask",
    "parts_of_boxes",
    "pixels_in_crops",
    "pixels_in_frame",
    "rare_boxes",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 64
"""Rows of a summed-area table that are finished together, while they lie in the cache."""


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of rare classes; whole numbers in a mask, float64 as boxes.

    Attributes:
        label: (m,) int64, class ids.
        area: (m,) pixels.
        boxes: (m, 4) left, top, right and bottom edge.
        may_count: (m,) bool, whether it may make a crop rare.
    """

    label: Ints
    area: npt.NDArray[Any]
    boxes: npt.NDArray[Any]
    may_count: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Parts:
    """What crops show of objects: one row for each crop and object that it shows.

    Attributes:
        crop: (p,) int64, row of the crop.
        object: (p,) int64, row of the object.
        shown: (p,) pixels of the object in the crop, more than 0.
        side: (p,) pixels of the longest side of the box around them.
    """

    crop: Ints
    object: Ints
    shown: npt.NDArray[Any]
    side: npt.NDArray[Any]


def pixels_in_frame(ids: npt.NDArray[np.uint8]) -> Ints:
    """(255,) pixels of class ids 0, 1, ... in the frame."""
    return np.bincount(ids.ravel(), minlength=256)[:IGNORED]


def pixels_in_crops(ids: npt.NDArray[np.uint8], crops: Ints, totals: Ints) -> Ints:
    """Pixels of each class in each crop, by summed-area tables.

    One table of 64 bits holds several classes side by side, each in as many bits as a crop can
    hold of it. The sums over the frame overflow, but of unsigned numbers differences are right all
    the same, as long as the true difference fits.

    Args:
        ids: (h, w) class ids.
        crops: (n, 4) boxes.
        totals: (255,) as ``pixels_in_frame`` says.

    Returns:
        (n, 255) counts.
    """
    counts = np.zeros((len(crops), len(totals)), dtype=np.int64)
    largest = areas_of(crops).max(initial=0)
    tables: list[list[tuple[int, int, int]]] = []
    filled = 64
    for label in np.flatnonzero(np.minimum(totals, largest)).tolist():
        bits = int(min(totals[label], largest)).bit_length()
        if filled + bits > 64:
            tables.append([])
            filled = 0
        tables[-1].append((label, filled, 2**bits - 1))
        filled += bits
    height, width = ids.shape
    # A table begins with a row and a column of nothing, so that every edge has its sum.
    framed = np.full((height + 1, width + 1), IGNORED, dtype=np.uint8)
    framed[1:, 1:] = ids
    table = np.empty(framed.shape, dtype=np.uint64)
    left, top, right, bottom = crops.T
    for held in tables:
        unit = np.zeros(256, dtype=np.uint64)
        for label, shift, _ in held:
            unit[label] = 1 << shift
        for start in range(0, height + 1, _BLOCK):
            behind = start + _BLOCK
            block = table[start:behind]
            np.take(unit, framed[start:behind], out=block, mode="clip")
            np.cumsum(block, axis=1, out=block)
            for above, row in pairwise(table[max(start - 1, 0) : behind]):
                row += above  # half the time of cumsum along this axis
        sums = (table[bottom, right] - table[bottom, left]) - (table[top, right] - table[top, left])
        for label, shift, most in held:
            counts[:, label] = (sums >> np.uint64(shift)) & np.uint64(most)
    return counts


def objects_in_mask(
    ids: npt.NDArray[np.uint8],
    rare: tuple[int, ...],
    instances: Ints | None,
    *,
    keep_truncated: bool,
) -> tuple[Objects, Runs, Ints]:
    """The objects of rare classes, their runs, and the object of each run.

    The runs of one object are in reading order.
    """
    height, width = ids.shape
    rare_only = np.full(256, IGNORED, dtype=np.uint8)
    rare_only[list(rare)] = rare
    judged = np.take(rare_only, ids, mode="clip")  # no id is clipped, but no other mode is as fast
    if instances is None:
        runs = find_runs(judged)
        runs = runs[runs.value != IGNORED]
        owner, count = join_runs(runs, width)
    else:
        runs, owner, count = _numbered_objects(judged, instances)
    label, area, boxes = outline(runs, owner, count)
    may_count = keep_truncated | ~touches_border(boxes, height, width)
    return Objects(label, area, boxes, may_count), runs, owner


def _numbered_objects(judged: npt.NDArray[np.uint8], instances: Ints) -> tuple[Runs, Ints, int]:
    """Runs, the object of each, and how many objects: one for each class and number."""
    is_numbered = (instances > 0) & (judged != IGNORED)
    loose = find_runs(np.where(is_numbered, IGNORED, judged))
    loose = loose[loose.value != IGNORED]
    owner, count = join_runs(loose, judged.shape[1])
    # Class and number in one key; the keys of other pixels are below 0.
    key = find_runs(np.where(is_numbered, instances * 256 + judged, -1))
    key = key[key.value >= 0]
    found, which = np.unique(key.value, return_inverse=True)
    runs = Runs(
        row=np.concatenate([loose.row, key.row]),
        left=np.concatenate([loose.left, key.left]),
        right=np.concatenate([loose.right, key.right]),
        value=np.concatenate([loose.value.astype(np.int64), key.value % 256]),
    )
    return runs, np.concatenate([owner, which + count]), count + len(found)


def parts_in_mask(crops: Ints, objects: Objects, runs: Runs, owner: Ints, *, height: int) -> Parts:
    """Pixels and longest side of what each crop shows of each object, exactly."""
    crop, which, _ = _meeting(crops, objects.boxes)
    mine, theirs = crops[crop], objects.boxes[which]
    is_whole = ((theirs[:, :2] >= mine[:, :2]) & (theirs[:, 2:] <= mine[:, 2:])).all(axis=1)
    shown = np.where(is_whole, objects.area[which], 0)
    side = np.where(is_whole, longest_sides(theirs), 0)

    # Objects that are cut: of their runs in the rows of the crop, what lies in its columns. Sorted
    # by object and row, those runs follow one another.
    order = np.argsort(owner, kind="stable")
    runs = runs[order]
    place = owner[order] * height + runs.row
    cut = np.flatnonzero(~is_whole)
    start = which[cut] * height
    first = np.searchsorted(place, start + crops[crop[cut], 1])
    behind = np.searchsorted(place, start + crops[crop[cut], 3])
    pair, run = spread(first, behind - first)
    left = np.maximum(runs.left[run], crops[crop[cut], 0][pair])
    right = np.minimum(runs.right[run], crops[crop[cut], 2][pair])
    is_seen = left < right
    part = Runs(runs.row[run], left, right, runs.value[run])[is_seen]
    pair = pair[is_seen]
    _, shown[cut], seen = outline(part, pair, len(cut))
    side[cut] = longest_sides(seen)
    is_shown = shown > 0
    return Parts(crop[is_shown], which[is_shown], shown[is_shown], side[is_shown])


def rare_boxes(
    objects: ObjectBoxes, inside: Floats, rare: tuple[int, ...], *, keep_truncated: bool
) -> Objects:
    """The objects of rare classes; ``inside`` is what of each box lies inside the frame."""
    taken = np.isin(objects.labels, rare)
    may_count = ~objects.is_ignored & (keep_truncated | ~objects.is_truncated)
    boxes = inside[taken]
    return Objects(objects.labels[taken], areas_of(boxes), boxes, may_count[taken])


def parts_of_boxes(crops: Ints, boxes: Floats) -> Parts:
    """Area and longest side of what each crop shows of each box."""
    crop, which, common = _meeting(crops, boxes)
    return Parts(crop, which, areas_of(common), longest_sides(common))


def covered_pixels(crops: Ints, boxes: Floats) -> Floats:
    """(n,) pixels of each crop that lie in at least one of the boxes.

    The edges of the boxes divide the plane into cells that are covered or not. What a crop has of
    a cell is a width times a height, so all crops are one matrix product.
    """
    if len(boxes) == 0:
        return np.zeros(len(crops))
    x, y = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])
    columns, rows = np.searchsorted(x, boxes[:, 0::2]), np.searchsorted(y, boxes[:, 1::2])
    is_covered = np.zeros((len(y) - 1, len(x) - 1))
    for (left, right), (top, bottom) in zip(columns.tolist(), rows.tolist(), strict=True):
        is_covered[top:bottom, left:right] = 1.0
    left, top, right, bottom = crops.T[:, :, None]
    across = np.maximum(np.minimum(right, x[1:]) - np.maximum(left, x[:-1]), 0)
    down = np.maximum(np.minimum(bottom, y[1:]) - np.maximum(top, y[:-1]), 0)
    covered: Floats = ((down @ is_covered) * across).sum(axis=1)
    return covered


def _meeting(crops: Ints, boxes: npt.NDArray[Any]) -> tuple[Ints, Ints, npt.NDArray[Any]]:
    """The pairs of a crop and a box that overlap, and what they have in common."""
    left, top, right, bottom = crops.T[:, :, None]
    is_met = (left < boxes[:, 2]) & (top < boxes[:, 3])
    is_met &= (right > boxes[:, 0]) & (bottom > boxes[:, 1])
    crop, which = np.nonzero(is_met)
    mine, theirs = crops[crop], boxes[which]
    edges = np.maximum(mine[:, :2], theirs[:, :2]), np.minimum(mine[:, 2:], theirs[:, 2:])
    return crop, which, np.concatenate(edges, axis=1)


def areas_of(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n,) areas of (n, 4) boxes."""
    areas: npt.NDArray[Any] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def longest_sides(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n,) width or height of (n, 4) boxes, whichever is greater."""
    sides: npt.NDArray[Any] = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    return sides
