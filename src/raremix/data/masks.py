"""Reads class masks: one class id per pixel, whatever numbers or colours the file holds.

One file at a time. Which frame a mask belongs to is the driving sets' business, and what connected
pixels mean that of the regions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from raremix.data.kinds import PathLike
from raremix.data.pictures import reason_of
from raremix.data.vectors import read_lines
from raremix.errors import FileFormatError, LabelError, OptionError

__all__ = [
    "CAMVID_SEGNET",
    "CITYSCAPES_INSTANCES",
    "CITYSCAPES_LABELS",
    "CITYSCAPES_TRAIN",
    "IGNORED",
    "MaskConvention",
    "read_instances",
    "read_label_colours",
    "read_mask",
]

IGNORED = 255
"""Class id of pixels that are not judged."""

_LISTED = 10
_TABLE = 256

# Those that give back the very numbers that were written.
_LOSSLESS = frozenset({"BMP", "GIF", "PNG", "PPM", "TIFF"})
_NUMBERS = frozenset({"1", "L", "P"})
# 16-bit greys; which of these it is depends on the version of Pillow and on the byte order.
_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})

# From json2instanceImg.py of cityscapesScripts: an object is written as its class times this, plus
# its number within the class.
_INSTANCES_PER_CLASS = 1000


@dataclass(frozen=True)
class MaskConvention:
    """How a data set writes classes into mask files.

    A number or colour that is not named here is an error, never a class.

    Attributes:
        names: Name of each class id, 0 to 254.
        values: Class id of each number in a file, ``IGNORED`` for those that are not judged.
        colours: Class id, or ``IGNORED``, of each (red, green, blue), for files that hold colours
            and no numbers.
        has_instances: Files hold the 16-bit numbers of Cityscapes' instanceIds: ``values`` are met
            as they are, or times 1000 plus the number of the object.

    Raises:
        OptionError: If a class id has no name or lies outside of 0 to 254, a number outside of 0
            to 255, or numbers and colours are both given, or neither.
    """

    names: Mapping[int, str]
    values: Mapping[int, int] | None = None
    colours: Mapping[tuple[int, int, int], int] | None = None
    has_instances: bool = False

    def __post_init__(self) -> None:
        """Hold every class id to the names."""
        if bool(self.values) == bool(self.colours) or (self.has_instances and self.colours):
            raise OptionError(
                "MaskConvention expects either values or colours, the numbers or the colours that "
                "mask files hold; only numbers have instances."
            )
        known = {*self.names, IGNORED}
        if not all(0 <= value < _TABLE for value in self.values or ()):
            raise OptionError(
                f"MaskConvention expects values of 0 to {_TABLE - 1}, got {sorted(self.values or ())}."
            )
        nameless = {*(self.values or {}).values(), *(self.colours or {}).values()} - known
        if nameless or not all(0 <= id < IGNORED for id in self.names):
            raise OptionError(
                f"MaskConvention expects class ids of 0 to {IGNORED - 1} with a name each, got "
                f"names of {sorted(self.names)} and no name for {sorted(nameless)}."
            )


# The labelIds of the classes that are judged, in the order of their train ids, from
# helpers/labels.py of https://github.com/mcordts/cityscapesScripts.
_CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
    **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"},
    **{24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"},
    **{32: "motorcycle", 33: "bicycle"},
}
_CITYSCAPES_NAMES = dict(enumerate(_CITYSCAPES.values()))
_CITYSCAPES_VALUES = {
    **dict.fromkeys([*range(34), IGNORED], IGNORED),
    **{value: id for id, value in enumerate(_CITYSCAPES)},
}

CITYSCAPES_TRAIN = MaskConvention(
    _CITYSCAPES_NAMES, {**{id: id for id in _CITYSCAPES_NAMES}, IGNORED: IGNORED}
)
"""Cityscapes' labelTrainIds, and the ``sem_seg`` masks of BDD100K: 19 classes, 255 ignored."""

CITYSCAPES_LABELS = MaskConvention(_CITYSCAPES_NAMES, _CITYSCAPES_VALUES)
"""Cityscapes' labelIds 0 to 33, mapped onto the 19 train ids; the other 15, and 255, are ignored."""

CITYSCAPES_INSTANCES = MaskConvention(_CITYSCAPES_NAMES, _CITYSCAPES_VALUES, has_instances=True)
"""Cityscapes' 16-bit instanceIds: labelIds, with a number for each object."""

CAMVID_SEGNET = MaskConvention(
    {
        **{0: "sky", 1: "building", 2: "pole", 3: "road", 4: "pavement", 5: "tree"},
        **{6: "sign_symbol", 7: "fence", 8: "car", 9: "pedestrian", 10: "bicyclist"},
    },
    {**{id: id for id in range(11)}, 11: IGNORED},
)
"""CamVid as in the SegNet tutorial: 11 classes, 11 is unlabelled and ignored."""


def read_mask(
    path: PathLike, *, convention: MaskConvention, size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Read the class of every pixel.

    Of a palette image the indices count, whatever colours the palette gives them.

    Args:
        path: The mask: an image of a lossless format, grey, with a palette, or RGB, as the
            convention says.
        convention: What its numbers or colours mean.
        size: Height and width of the frame that it belongs to, if they are to be compared.

    Returns:
        Class ids, uint8 of shape (height, width); ``IGNORED`` where a pixel is not judged.

    Raises:
        FileFormatError: If the file is missing, damaged, or does not hold what the convention
            says: numbers, 16-bit numbers or colours.
        LabelError: If it holds a number or a colour that the convention does not know, or its size
            differs from that of the frame.
    """
    values = _read_values(path, convention, size, caller="read_mask")
    return _classes(values, path, convention, caller="read_mask")


def read_instances(
    path: PathLike,
    *,
    convention: MaskConvention = CITYSCAPES_INSTANCES,
    size: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Read the class of every pixel, and which object it belongs to.

    Args:
        path: A mask with instances, such as ``*_gtFine_instanceIds.png``.
        convention: What its numbers mean.
        size: Height and width of the frame that it belongs to, if they are to be compared.

    Returns:
        Class ids as of ``read_mask``, and int32 of shape (height, width): a number for each object,
        unique in the file (that of the file itself, such as 26003), and 0 where pixels belong to
        no single object, as those of a road or of a group of cars do.

    Raises:
        FileFormatError: As ``read_mask``.
        LabelError: As ``read_mask``.
        OptionError: If files of the convention know no instances.
    """
    if not convention.has_instances:
        raise OptionError(
            "read_instances expects a convention whose files hold instances, such as "
            "CITYSCAPES_INSTANCES; read the others with read_mask."
        )
    values = _read_values(path, convention, size, caller="read_instances")
    classes = _classes(values, path, convention, caller="read_instances")
    return classes, np.where(values >= _INSTANCES_PER_CLASS, values, 0).astype(np.int32)


def read_label_colours(path: PathLike) -> MaskConvention:
    r"""Read the colours of classes from a ``label_colors.txt``, as the original CamVid has one.

    Each line is red, green, blue and a name: ``64 128 64\tAnimal``. Class ids are counted from 0
    in the order of the lines; Void has none, and its pixels are ignored.

    Raises:
        FileFormatError: If a line reads otherwise, or two have the same colour or name.
    """
    colours: dict[tuple[int, int, int], int] = {}
    names: dict[int, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        *parts, name = line.split(maxsplit=3)
        if len(parts) != 3 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
            raise FileFormatError(
                f"read_label_colours: line {number} of {path} reads {line!r}; expected red, green "
                "and blue of 0 to 255 and a name, as in '64 128 64 Animal'."
            )
        red, green, blue = (int(part) for part in parts)
        if (red, green, blue) in colours or name in names.values():
            raise FileFormatError(
                f"read_label_colours: line {number} of {path} ({line!r}) repeats the colour or the "
                "name of a line above, so that a pixel could be of two classes."
            )
        is_judged = name.lower() != "void"
        colours[red, green, blue] = len(names) if is_judged else IGNORED
        if is_judged:
            names[len(names)] = name
    return MaskConvention(names, colours=colours)


def _read_values(
    path: PathLike, convention: MaskConvention, size: tuple[int, int] | None, *, caller: str
) -> npt.NDArray[Any]:
    """What the file holds: (height, width) uint8 or int32, or (height, width, 3) uint8."""
    try:
        with Image.open(path) as opened:
            opened.load()
            kind, mode, values = opened.format, opened.mode, np.asarray(opened)
        step = _grey_step(path)
    except Exception as error:  # On damaged bytes the decoders raise nearly anything.
        raise FileFormatError(
            f"{caller}: the mask {path} cannot be read: {reason_of(error)}. Repair or remove it."
        ) from error
    if kind not in _LOSSLESS:
        raise FileFormatError(
            f"{caller}: the mask {path} is a {kind}, which blends the class ids of neighbouring "
            "pixels; write it as a PNG, from the original."
        )
    _check_mode(path, mode, convention, caller=caller)
    if size is not None and values.shape[:2] != tuple(size):
        raise LabelError(
            f"{caller}: the mask {path} is {values.shape[1]} x {values.shape[0]} pixels, its frame "
            f"{size[1]} x {size[0]}; masks must have the size of their frames (enlarge or shrink "
            "with nearest neighbours only)."
        )
    if mode in _DEEP:
        return values.astype(np.int32)
    return values // step if step > 1 else values.astype(np.uint8, copy=False)


def _grey_step(path: PathLike) -> int:
    """By how much Pillow has spread the greys of a PNG of 2 or 4 bits a pixel, to end at 255."""
    with open(path, "rb") as file:
        head = file.read(26)
    is_grey_png = head.startswith(b"\x89PNG") and head[25] == 0
    return {2: 85, 4: 17}.get(head[24], 1) if is_grey_png else 1


def _check_mode(path: PathLike, mode: str, convention: MaskConvention, *, caller: str) -> None:
    held = {"RGB": "colours (RGB)", **dict.fromkeys(_NUMBERS, "8-bit numbers")}
    held.update(dict.fromkeys(_DEEP, "16-bit numbers"))
    if convention.colours:
        expected, way = "colours (RGB)", "pass the convention that its numbers follow"
    elif convention.has_instances:
        expected, way = "16-bit numbers", "pass CITYSCAPES_LABELS for the *_labelIds.png"
    else:
        expected = "8-bit numbers"
        way = (
            "pass CITYSCAPES_INSTANCES for the *_instanceIds.png of Cityscapes"
            if mode in _DEEP
            else "pass the masks of class ids, not the coloured ones beside them, or a "
            "MaskConvention with colours"
        )
    got = held.get(mode, f"pixels of the kind {mode}")
    if got != expected:
        raise FileFormatError(f"{caller}: the mask {path} holds {got}, not {expected}; {way}.")


def _classes(
    values: npt.NDArray[Any], path: PathLike, convention: MaskConvention, *, caller: str
) -> npt.NDArray[np.uint8]:
    if convention.colours:
        keys = [(red << 16) | (green << 8) | blue for red, green, blue in convention.colours]
        ids = list(convention.colours.values())
        red, green, blue = (values[..., channel].astype(np.int32) for channel in range(3))
        held = (red << 16) | (green << 8) | blue
    else:
        assert convention.values is not None  # as MaskConvention checks
        keys, ids = list(convention.values), list(convention.values.values())
        held = values
        if convention.has_instances:
            whole = values // _INSTANCES_PER_CLASS
            held = np.where(values >= _INSTANCES_PER_CLASS, whole, values)
    if convention.colours:
        order = np.argsort(keys)
        known = np.array(keys)[order]
        place = np.searchsorted(known, held).clip(max=len(known) - 1)
        classes = np.where(known[place] == held, np.array(ids, dtype=np.int16)[order][place], -1)
    else:
        table = np.full(_TABLE + 1, -1, dtype=np.int16)  # The last one is for all other numbers.
        for key, id in zip(keys, ids, strict=True):
            table[key] = id
        if held.dtype != np.uint8:
            held = np.where((held >= 0) & (held < _TABLE), held, _TABLE)
        classes = table[held]
    is_unknown = classes < 0
    if is_unknown.any():
        raise LabelError(_unknown_text(values[is_unknown], path, convention, caller))
    found: npt.NDArray[np.uint8] = classes.astype(np.uint8)
    return found


def _unknown_text(
    values: npt.NDArray[Any], path: PathLike, convention: MaskConvention, caller: str
) -> str:
    found, counts = np.unique(values, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = ", ".join(
        f"{found[row].tolist()} ({counts[row]:,} pixels)" for row in order[:_LISTED].tolist()
    )
    others = f" and {len(order) - _LISTED} others" if len(order) > _LISTED else ""
    what = "colours" if convention.colours else "numbers"
    known = len(convention.colours or convention.values or {})
    return (
        f"{caller}: the mask {Path(path)} holds {what} that are none of the {known} of its "
        f"convention: {listed}{others}. Pass the convention that the file follows."
    )
