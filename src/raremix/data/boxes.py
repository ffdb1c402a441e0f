"""The labelled boxes of frames, and the reader of those of BDD100K.

It knows names of frames, not where their images are, and opens none.
"""

import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from raremix.data.kinds import PathLike, file_kind
from raremix.errors import FileFormatError, LabelError

__all__ = ["BDD100K_CLASSES", "BDD100K_SIZE", "ObjectBoxes", "Skipped", "read_bdd100k_boxes"]

BDD100K_CLASSES = {
    **{0: "pedestrian", 1: "rider", 2: "car", 3: "truck", 4: "bus", 5: "train"},
    **{6: "motorcycle", 7: "bicycle", 8: "traffic light", 9: "traffic sign"},
}
"""The ten classes of BDD100K's detection labels of 2020, in their order."""

BDD100K_SIZE = (720, 1280)
"""Height and width of BDD100K's frames, in whose pixels its boxes are."""

# Other words of earlier labels, as name_mapping in bdd100k/configs/det.toml has them, and classes
# that its evaluation ignores (ignore_mapping).
_ALIASES = {
    **{"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle"},
    **{"van": "car", "caravan": "car"},
}
_NOT_JUDGED = ("other person", "other vehicle", "trailer")
_NO_CLASS = -1

_CHUNK = 2**22
# No frame is described by more; whoever needs more text to end one has a damaged file.
_LONGEST_FRAME = 2**26
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Skipped:
    """Something of a driving set that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """The labelled objects of one frame; n may be 0.

    Attributes:
        boxes: float32 of shape (n, 4): left, top, right, bottom in pixels of the frame, right and
            bottom exclusive.
        labels: int64 of shape (n,), class ids; -1 where an object is ignored and has none.
        is_truncated: bool of shape (n,): cut by the border of the frame, as the labels say.
        is_ignored: bool of shape (n,): a crowd, which keeps its class, or of a class that is not
            judged.

    Raises:
        LabelError: If an array has another shape or dtype, or a box no area.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    is_truncated: npt.NDArray[np.bool_]
    is_ignored: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Hold the arrays to each other."""
        n = len(self.labels)
        for name, shape, dtype in (
            ("boxes", (n, 4), np.float32),
            ("labels", (n,), np.int64),
            ("is_truncated", (n,), np.bool_),
            ("is_ignored", (n,), np.bool_),
        ):
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise LabelError(
                    f"ObjectBoxes expects {name} as {np.dtype(dtype)} of shape {shape}, got "
                    f"{value.dtype} {value.shape}."
                )
        # A comparison with NaN is false, so that it is found here too.
        if not (self.boxes[:, :2] < self.boxes[:, 2:]).all():
            raise LabelError(
                "ObjectBoxes expects boxes as left, top, right, bottom with left < right and "
                "top < bottom; leave out those without area."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: npt.ArrayLike) -> "ObjectBoxes":
        """Take some of the objects: (m,) row numbers, or (n,) bool."""
        chosen: Any = np.asarray(rows)
        if chosen.size == 0 and chosen.dtype != np.bool_:
            chosen = chosen.astype(np.int64)  # An empty list is of floats to numpy.
        return ObjectBoxes(
            self.boxes[chosen],
            self.labels[chosen],
            self.is_truncated[chosen],
            self.is_ignored[chosen],
        )


def read_bdd100k_boxes(
    path: PathLike, *, size: tuple[int, int] | None = BDD100K_SIZE
) -> tuple[dict[str, ObjectBoxes], list[Skipped]]:
    """Read the boxes of a detection or tracking file of BDD100K.

    These are ``det_20/det_val.json``, the older ``bdd100k_labels_images_val.json`` and the files
    of ``box_track_20``. The ten classes of 2020 have the ids of ``BDD100K_CLASSES``; person,
    motor, bike, van and caravan are other words for five of them. Crowds, and "other person",
    "other vehicle" and "trailer", are ignored and have the class id -1. Labels of lanes and
    drivable areas have no box and are passed over.

    The corners are taken for edges as they stand: a box ends at x2 and y2. The toolkit of the
    data set has done so at first and since 2021 takes x2 and y2 for the last pixels inside, which
    adds one pixel to each side; yet they were drawn as fractions of pixels (``1125.902264``), and
    fractions name no pixel. Boxes are smaller by that pixel here, and none reaches over its frame.

    Args:
        path: The JSON file; it is read piece by piece, and may be larger than memory.
        size: Height and width that boxes are cut off at, or None to leave them as they are.

    Returns:
        The objects of each frame, by its name as it stands in the file, and what was skipped: a
        frame's name as the path, and the reason, for each object without a box, and for each box
        without area or outside of the frame. A frame with a null instead of labels has no objects.

    Raises:
        FileFormatError: If the file is damaged, cut short, no list of frames, or holds no boxes at
            all where it holds labels; if a frame comes twice, or a coordinate is no number.
        LabelError: If a category is unknown.
    """
    place = Path(path)
    kind = file_kind(place, caller="read_bdd100k_boxes")
    if kind != "text":
        raise FileFormatError(f"read_bdd100k_boxes: {place} is a {kind} file, not JSON.")
    found = _Found(place)
    try:
        with open(place, encoding="utf-8-sig") as file:
            for number, frame in enumerate(_elements(file, place)):
                found.add(frame, number)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"read_bdd100k_boxes: {place} is no JSON ({error}).") from error
    return found.by_frame(size)


class _Found:
    """The objects met so far, of all frames one after another: a million of them are no burden."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._names: dict[str, None] = {}
        self._coordinates = array("d")
        self._labels = array("b")
        self._is_truncated = array("b")
        self._is_crowd = array("b")
        self._frames = array("q")
        self._rows = array("q")
        """Place of each object among the labels of its frame."""
        self._categories: list[str] = []
        self._unknown: Counter[str] = Counter()
        self._boxless: list[tuple[int, int, str]] = []
        self._label_count = 0
        ids = {name: id for id, name in BDD100K_CLASSES.items()}
        self._ids = {
            **ids,
            **{alias: ids[name] for alias, name in _ALIASES.items()},
            **dict.fromkeys(_NOT_JUDGED, _NO_CLASS),
        }

    def add(self, frame: Any, number: int) -> None:
        name = frame.get("name") if isinstance(frame, dict) else None
        if not isinstance(name, str) or not name:
            raise self._foreign(f"its element {number} has no name of a frame")
        if name in self._names:
            raise self._foreign(f"it describes the frame {name} twice")
        self._names[name] = None
        labels = frame.get("labels")
        if not isinstance(labels, list | None):
            raise self._foreign(f"the labels of frame {name} are no list")
        for row, label in enumerate(labels or ()):
            try:
                self._add_label(label, row)
            except (AttributeError, KeyError, OverflowError, TypeError) as error:
                raise self._foreign(
                    f"label {row} of frame {name} has not the shape of one ({error!r})"
                ) from error

    def _add_label(self, label: dict[str, Any], row: int) -> None:
        self._label_count += 1
        # One object for each word, not for each time that it is met.
        category, box = sys.intern(label["category"]), label.get("box2d")
        frame = len(self._names) - 1
        if box is None:
            if category in self._ids:
                self._boxless.append((frame, row, f"object {row} ({category}) has no box2d"))
            return
        self._coordinates.extend((box["x1"], box["y1"], box["x2"], box["y2"]))
        attributes = label.get("attributes") or {}
        # The files of box_track_20 write them with capitals.
        is_crowd = attributes.get("crowd") or attributes.get("Crowd")
        is_truncated = attributes.get("truncated") or attributes.get("Truncated")
        id = self._ids.get(category)
        if id is None:
            self._unknown[category] += 1
            id = _NO_CLASS
        self._labels.append(id)
        self._is_crowd.append(bool(is_crowd))
        self._is_truncated.append(bool(is_truncated))
        self._frames.append(frame)
        self._rows.append(row)
        self._categories.append(category)

    def by_frame(
        self, size: tuple[int, int] | None
    ) -> tuple[dict[str, ObjectBoxes], list[Skipped]]:
        if self._unknown:
            counted = ", ".join(f"{name!r} ({n:,})" for name, n in self._unknown.most_common())
            raise LabelError(
                f"read_bdd100k_boxes: {self._place} holds boxes of categories that BDD100K does not "
                f"have: {counted}. It knows {', '.join(self._ids)}."
            )
        if self._label_count and not self._labels:
            raise self._foreign(
                f"it holds {self._label_count:,} labels and none has a box2d; take a file of "
                "detection or tracking"
            )
        drawn = np.asarray(self._coordinates).reshape(-1, 4)
        frames = np.asarray(self._frames)
        with np.errstate(over="ignore"):
            boxes = drawn.astype(np.float32)
        names = list(self._names)
        is_finite = np.isfinite(boxes).all(axis=1)
        if not is_finite.all():
            first = int(np.flatnonzero(~is_finite)[0])
            raise self._foreign(
                f"a box of frame {names[frames[first]]} has the corners {drawn[first].tolist()}"
            )
        if size is not None:
            height, width = size
            boxes = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
        has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        skipped = [*self._boxless]
        for row in np.flatnonzero(~has_area).tolist():
            x1, y1, x2, y2 = drawn[row].tolist()
            where = " inside of the frame" if x1 < x2 and y1 < y2 else ""
            reason = (
                f"object {self._rows[row]} ({self._categories[row]}) has no area{where}: its box2d "
                f"is [{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
            )
            skipped.append((int(frames[row]), self._rows[row], reason))
        boxes, frames = boxes[has_area], frames[has_area]
        labels = np.asarray(self._labels)[has_area].astype(np.int64)
        is_truncated = np.asarray(self._is_truncated)[has_area].astype(np.bool_)
        is_ignored = (labels == _NO_CLASS) | np.asarray(self._is_crowd, dtype=np.bool_)[has_area]
        ends = np.searchsorted(frames, np.arange(len(names) + 1)).tolist()
        objects = {
            name: ObjectBoxes(
                boxes[start:end],
                labels[start:end],
                is_truncated[start:end],
                is_ignored[start:end],
            )
            for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)
        }
        return objects, [
            Skipped(Path(names[frame]), reason) for frame, _, reason in sorted(skipped)
        ]

    def _foreign(self, what: str) -> FileFormatError:
        return FileFormatError(
            f"read_bdd100k_boxes expects a list of frames with labels, as in det_val.json of "
            f"BDD100K, but of {self._place}, {what}."
        )


def _elements(file: TextIO, place: Path) -> Iterator[Any]:
    """The elements of a JSON list, one at a time, so that a gigabyte of text is never held."""
    decoder = json.JSONDecoder()
    text, at = file.read(_CHUNK), 0

    def next_sign() -> str:
        """The next character that is no space; empty at the end of the file."""
        nonlocal text, at
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it always matches
            if at < len(text):
                return text[at]
            text, at = file.read(_CHUNK), 0
            if not text:
                return ""

    def wrong(what: str) -> FileFormatError:
        return FileFormatError(
            f"read_bdd100k_boxes: {place} {what}; it is damaged, was cut short, or is another file "
            "than the list of frames that BDD100K has. Write or copy it again."
        )

    if next_sign() != "[":
        raise wrong(f"begins with {text[at : at + 20]!r} instead of a list")
    at += 1
    count = 0
    while (sign := next_sign()) != "]":
        if count:
            if sign != ",":
                raise wrong(f"goes on with {sign!r} after its element {count - 1}")
            at += 1
            next_sign()
        while True:
            try:
                element, at = decoder.raw_decode(text, at)
                break
            except json.JSONDecodeError as error:
                # As much again as there is, so that long elements are not begun too often.
                more = file.read(max(_CHUNK, len(text) - at))
                if not more or len(text) - at > _LONGEST_FRAME:
                    raise wrong(f"cannot be read after {count:,} elements ({error.msg})") from error
                text, at = text[at:] + more, 0
            except (RecursionError, ValueError) as error:  # a thousand brackets, or digits
                raise wrong(f"cannot be read after {count:,} elements ({error})") from error
        yield element
        count += 1
    at += 1
    if next_sign():
        raise wrong("goes on after the end of its list")
