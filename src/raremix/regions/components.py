"""Connected components of a class mask: the objects of a frame that has pixel labels only.

It works on runs, the stretches of equal pixels within a row, of which a real mask has a hundred
times fewer than pixels. It does not know which classes are rare, nor what a crop is.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raremix.data.masks import IGNORED
from raremix.errors import LabelError, OptionError

__all__ = [
    "Components",
    "Runs",
    "check_class_ids",
    "components",
    "find_runs",
    "join_runs",
    "outline",
    "spread",
    "touches_border",
]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a mask, in reading order of their first pixels.

    Attributes:
        number: (h, w) int32, the component of each pixel, from 1 on; 0 where the mask is ignored.
        label: (n,) int64, the class id of component i + 1.
        area: (n,) int64, its pixels.
        boxes: (n, 4) int64, its left, top, right and bottom edge in pixels, right and bottom
            exclusive.
        touches_border: (n,) bool, whether it holds a pixel of the outermost rows and columns, so
            that more of the object may lie outside the frame.
    """

    number: npt.NDArray[np.int32]
    label: Ints
    area: Ints
    boxes: Ints
    touches_border: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Runs:
    """Stretches of equal pixels within a row, in reading order.

    Attributes:
        row: (n,) int64.
        left: (n,) int64, the first column.
        right: (n,) int64, the column behind the last one.
        value: (n,) the value of the pixels, of the dtype they had.
    """

    row: Ints
    left: Ints
    right: Ints
    value: npt.NDArray[Any]

    def __getitem__(self, which: npt.NDArray[Any]) -> "Runs":
        return Runs(self.row[which], self.left[which], self.right[which], self.value[which])


def components(mask: npt.NDArray[Any], *, connectivity: Literal[4, 8] = 8) -> Components:
    """Find the connected components of equal class id.

    Args:
        mask: (h, w) integers of at least 0, class ids; ``IGNORED`` (255) belongs to no component.
        connectivity: 8: pixels that share an edge or a corner are connected; 4: an edge only.

    Returns:
        The components, numbered in reading order, so that the same mask always gives the same
        numbers.

    Raises:
        LabelError: If ``mask`` is no (h, w) array of integers, is empty, or holds a negative id.
        OptionError: If ``connectivity`` is neither 4 nor 8.

    Example:
        >>> import numpy as np
        >>> mask = np.array([[3, 3, 7], [255, 7, 3]])
        >>> found = components(mask)
        >>> found.number.tolist(), found.label.tolist(), found.area.tolist()
        ([[1, 1, 2], [0, 2, 1]], [3, 7], [3, 2])
        >>> found.boxes[1].tolist()
        [1, 0, 3, 2]
    """
    if connectivity not in (4, 8):
        raise OptionError(f"components expects connectivity 4 or 8, got {connectivity!r}.")
    check_class_ids("components", mask)
    height, width = mask.shape
    runs = find_runs(mask)
    is_judged = runs.value != IGNORED
    judged = runs[is_judged]
    owner, count = join_runs(judged, width, connectivity=connectivity)
    label, area, boxes = outline(judged, owner, count)
    number = np.zeros(len(runs.row), dtype=np.int32)
    number[is_judged] = owner + 1
    return Components(
        number=np.repeat(number, runs.right - runs.left).reshape(height, width),
        label=label,
        area=area,
        boxes=boxes,
        touches_border=touches_border(boxes, height, width),
    )


def check_class_ids(caller: str, mask: npt.NDArray[Any]) -> None:
    """Raise ``LabelError`` if a mask is not (h, w) integers of at least 0, or has no pixel."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype.kind not in "iu":
        is_array = isinstance(mask, np.ndarray)
        got = f"{mask.dtype} of shape {mask.shape}" if is_array else type(mask).__name__
        raise LabelError(
            f"{caller} expects a mask of class ids as an array of integers of shape (h, w), got "
            f"{got}."
        )
    if mask.size == 0:
        raise LabelError(f"{caller} got a mask of shape {mask.shape}, which holds no pixel.")
    if mask.dtype.kind == "i" and mask.min() < 0:
        raise LabelError(
            f"{caller} expects class ids from 0 on, got a mask that holds {mask.min()}; mark pixels "
            f"that are not judged with {IGNORED}."
        )


def find_runs(values: npt.NDArray[Any]) -> Runs:
    """Divide the rows of (h, w) values into runs; together they hold every pixel once."""
    height, width = values.shape
    is_start = np.empty((height, width), dtype=np.bool_)
    is_start[:, 0] = True
    np.not_equal(values[:, 1:], values[:, :-1], out=is_start[:, 1:])
    start = np.flatnonzero(is_start)
    row, left = np.divmod(start, width)
    right = left + np.diff(start, append=values.size)
    return Runs(row, left, right, values[row, left])


def join_runs(runs: Runs, width: int, *, connectivity: Literal[4, 8] = 8) -> tuple[Ints, int]:
    """Join runs of equal value that touch.

    Args:
        runs: In reading order; those of pixels that belong to nothing are left out.
        width: Of the rows.
        connectivity: 4 or 8.

    Returns:
        The component of each run, from 0 on in reading order of the first pixels, and how many
        there are.
    """
    reach = 1 if connectivity == 8 else 0
    # Rows laid end to end, with a gap that no run reaches across.
    stride = width + 2
    start, end = runs.row * stride + runs.left, runs.row * stride + runs.right
    first = np.searchsorted(end, start + stride - reach, side="right")
    behind = np.searchsorted(start, end + stride + reach, side="left")
    upper, lower = spread(first, behind - first)
    is_link = runs.value[upper] == runs.value[lower]
    upper, lower = upper[is_link], lower[is_link]
    # Every round hangs each root below the smallest root it is linked to, and then every run
    # directly below its root; so a root is the first run of what hangs below it.
    root = np.arange(len(runs.row))
    while len(upper):
        np.minimum.at(root, np.maximum(upper, lower), np.minimum(upper, lower))
        while not np.array_equal(above := root[root], root):
            root = above
        upper, lower = root[upper], root[lower]
        is_apart = upper != lower
        upper, lower = upper[is_apart], lower[is_apart]
    is_root = root == np.arange(len(root))
    return (np.cumsum(is_root) - 1)[root], int(is_root.sum())


def outline(runs: Runs, owner: Ints, count: int) -> tuple[Ints, Ints, Ints]:
    """Class id, area and box of each of ``count`` objects, each of one run or more."""
    label = np.zeros(count, dtype=np.int64)
    label[owner] = runs.value
    area = np.bincount(owner, runs.right - runs.left, minlength=count).astype(np.int64)
    boxes = np.zeros((count, 4), dtype=np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(boxes[:, 0], owner, runs.left)
    np.minimum.at(boxes[:, 1], owner, runs.row)
    np.maximum.at(boxes[:, 2], owner, runs.right)
    np.maximum.at(boxes[:, 3], owner, runs.row + 1)
    return label, area, boxes


def touches_border(boxes: Ints, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Whether each of (n, 4) boxes reaches an edge of the frame."""
    reached: npt.NDArray[np.bool_] = (boxes == (0, 0, width, height)).any(axis=1)
    return reached


def spread(first: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """The ranges ``first[i] .. first[i] + counts[i]`` one after another.

    Returns:
        i and the number within its range, for each number of all ranges.

    Example:
        >>> import numpy as np
        >>> which, numbers = spread(np.array([5, 0, 8]), np.array([2, 0, 1]))
        >>> which.tolist(), numbers.tolist()
        ([0, 0, 2], [5, 6, 8])
    """
    which = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) + (first - before)[which]
