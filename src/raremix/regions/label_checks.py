"""Checks masks, boxes and classes once, where they enter, and says what is wrong with them.

It labels nothing. ``caller`` is the call to name in an error.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raremix.data.boxes import ObjectBoxes
from raremix.data.masks import IGNORED
from raremix.errors import LabelError, OptionError
from raremix.inputs import ArrayLike
from raremix.options import check_count
from raremix.regions.components import check_class_ids

__all__ = [
    "boxes_inside",
    "checked_columns",
    "checked_columns_of_mask",
    "checked_crops",
    "checked_instances",
    "checked_mask",
    "checked_rare",
    "checked_size",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def checked_rare(
    caller: str, rare: Collection[int], names: Mapping[int, str] | None
) -> tuple[int, ...]:
    """The rare class ids, ascending, each once; every one has a name if there are names."""
    ids = np.unique(np.array(list(rare) if isinstance(rare, Collection) else []))
    if len(ids) == 0 or ids.dtype.kind not in "iu" or ids.min() < 0:
        raise LabelError(
            f"{caller} expects rare as one class id or more, whole numbers from 0 on, got {rare!r}; "
            "look the ids of names up in the class names of the frames."
        )
    unknown = [label for label in ids.tolist() if names is not None and label not in names]
    if unknown:
        raise LabelError(
            f"{caller} got rare classes {unknown} that have no name; known are "
            f"{_named(names or {})}."
        )
    return tuple(ids.tolist())


def checked_columns(
    caller: str,
    present: list[int],
    rare: tuple[int, ...],
    names: Mapping[int, str] | None,
    where: str,
) -> tuple[int, ...]:
    """The class ids of the columns, ascending: of the names, or of what is present and rare."""
    # Of objects that are ignored and have no class, the label is -1; no other one may be.
    unknown = [label for label in present if label < 0 or (names and label not in names)]
    if unknown:
        raise LabelError(
            f"{caller} found classes {unknown} in {where} that have no name; known are "
            f"{_named(names or {})}. Name them, or mark them as ignored."
        )
    return tuple(sorted(names or {*present, *rare}))


def checked_columns_of_mask(
    caller: str, totals: Ints, rare: tuple[int, ...], names: Mapping[int, str] | None
) -> tuple[int, ...]:
    """As ``checked_columns``, of the pixels of each class id; all fit into a mask."""
    columns = checked_columns(caller, np.flatnonzero(totals).tolist(), rare, names, "the mask")
    if columns[-1] >= IGNORED:
        raise LabelError(
            f"{caller} got the class id {columns[-1]}; a mask holds ids of 0 to {IGNORED - 1}, and "
            f"{IGNORED} where a pixel is not judged."
        )
    return columns


def _named(names: Mapping[int, str]) -> str:
    return ", ".join(f"{label} {names[label]}" for label in sorted(names))


def checked_size(caller: str, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a frame."""
    if not isinstance(size, Collection) or len(size) != 2:
        raise OptionError(f"{caller} expects size as (height, width), got {size!r}.")
    height, width = size
    return (
        check_count(caller, "the height of size", height, least=1),
        check_count(caller, "the width of size", width, least=1),
    )


def checked_mask(
    caller: str, mask: npt.NDArray[Any], size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """(h, w) class ids of at most 255; of ``size``, if that is given."""
    check_class_ids(caller, mask)
    if size is not None and mask.shape != checked_size(caller, size):
        raise LabelError(
            f"{caller} got a mask of shape {mask.shape} for a frame of height and width {size}; "
            "pass the mask of that frame, at its size."
        )
    if mask.dtype != np.uint8 and mask.max() > IGNORED:
        raise LabelError(
            f"{caller} expects class ids of at most {IGNORED}, got a mask that holds {mask.max()}; "
            "numbers of single objects are to be passed as instances."
        )
    return mask.astype(np.uint8, copy=False)


def checked_instances(
    caller: str, instances: npt.NDArray[Any] | None, shape: tuple[int, ...]
) -> Ints | None:
    """(h, w) numbers from 0 on, or None if there are none."""
    if instances is None:
        return None
    if not isinstance(instances, np.ndarray) or instances.dtype.kind not in "iu":
        got = instances.dtype if isinstance(instances, np.ndarray) else type(instances)
        raise LabelError(f"{caller} expects instances as an array of integers, got {got}.")
    if instances.shape != shape:
        raise LabelError(
            f"{caller} got instances of shape {instances.shape} for a mask of shape {shape}; pass "
            "those of the same frame."
        )
    if instances.min() < 0 or instances.max() >= 2**48:
        raise LabelError(
            f"{caller} expects instances as numbers of at least 0 and below 2**48, got "
            f"{instances.min()} to {instances.max()}; 0 stands for pixels without a number."
        )
    return instances.astype(np.int64)


def checked_crops(
    caller: str, boxes: ArrayLike | Sequence[Sequence[int]], height: int, width: int
) -> Ints:
    """(n, 4) boxes inside the frame; n may be 0."""
    crops = np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes)
    if crops.size == 0 and crops.shape in ((0,), (0, 4)):
        return np.zeros((0, 4), dtype=np.int64)
    if crops.ndim != 2 or crops.shape[1] != 4 or crops.dtype.kind not in "iu":
        raise OptionError(
            f"{caller} expects boxes of crops as whole numbers of shape (n, 4), got {crops.dtype} "
            f"of shape {crops.shape}; round them first."
        )
    crops = crops.astype(np.int64)
    is_bad = (
        (crops[:, :2] < 0).any(axis=1)
        | (crops[:, 2:] > (width, height)).any(axis=1)
        | (crops[:, :2] >= crops[:, 2:]).any(axis=1)
    )
    if is_bad.any():
        row = int(is_bad.argmax())
        raise OptionError(
            f"{caller} got {int(is_bad.sum())} of {len(crops)} boxes that are empty or reach "
            f"outside the frame, the first at row {row}: left, top, right, bottom "
            f"{crops[row].tolist()} in a frame of height {height} and width {width}."
        )
    return crops


def boxes_inside(caller: str, objects: ObjectBoxes, height: int, width: int) -> Floats:
    """(m, 4) what of each labelled box lies inside the frame."""
    if not isinstance(objects, ObjectBoxes):
        raise LabelError(
            f"{caller} expects the ObjectBoxes of a frame, got {type(objects).__name__}; leave out "
            "frames that have no labels."
        )
    inside = np.clip(objects.boxes.astype(np.float64), 0, (width, height, width, height))
    is_outside = (inside[:, :2] >= inside[:, 2:]).any(axis=1)
    if is_outside.any():
        row = int(is_outside.argmax())
        raise LabelError(
            f"{caller} got {int(is_outside.sum())} of {len(inside)} labelled boxes that lie outside "
            f"the frame, the first at row {row}: {objects.boxes[row].tolist()} in a frame of height "
            f"{height} and width {width}. Pass the size that the boxes were drawn at."
        )
    return inside
