"""What crops of a frame hold, by its pixel mask or its labelled boxes, so that flags can be judged.

A crop is rare, common, or not to be judged, and these are the rules. An *object* of a rare class is
a connected component of the mask (8 neighbours), all pixels of one instance number, or a labelled
box. The *part* of it that a crop shows is large enough if its longest side has ``least_side`` pixels
and, in a mask, the part has ``least_area`` pixels.

- Rare: of at least one object of a rare class, the crop shows a part that is large enough, is at
  least ``least_visible`` of the object, and covers at least ``least_cover`` of the crop.
- Ignored: not rare, and one of these. It shows a part of a rare object that is large enough: what
  is missing is a share only, and whoever calls it rare is not wrong. Or rare classes cover
  ``least_cover`` of it or more, all specks and slices together. Or more than ``most_ignored`` of it
  is ignored in the labels.
- Common: all else. Rare classes cover less than ``least_cover`` of it, in parts too small to count.

So between rare and common there is always a margin of crops that are judged neither way, and an
object too small to count makes a crop ignored where it fills much of it, and nothing where it does
not. An object that is cut by the border of the frame counts as what is seen of it, or
(``truncated="ignore"``) makes no crop rare, only ignored. The same holds, always, for boxes of rare
classes that are marked as ignored, such as crowds.

It reads no files and no scores. What hides behind another object is not known to a mask: a bus
behind a pole is two components, and each half counts as an object, unless instances are given.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raremix.data.boxes import ObjectBoxes
from raremix.errors import OptionError
from raremix.inputs import ArrayLike
from raremix.options import check_choice, check_count, check_number
from raremix.regions.label_checks import (
    boxes_inside,
    checked_columns,
    checked_columns_of_mask,
    checked_crops,
    checked_instances,
    checked_mask,
    checked_rare,
    checked_size,
)
from raremix.regions.parts import (
    Objects,
    Parts,
    areas_of,
    covered_pixels,
    longest_sides,
    objects_in_mask,
    parts_in_mask,
    parts_of_boxes,
    pixels_in_crops,
    pixels_in_frame,
    rare_boxes,
)

__all__ = [
    "CropLabels",
    "RareObjects",
    "label_crops_by_boxes",
    "label_crops_by_mask",
    "rare_in_frame",
]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Truncated = Literal["keep", "ignore"]


@dataclass(frozen=True, eq=False)
class CropLabels:
    """What n crops of a frame hold of C classes.

    Attributes:
        classes: The C class ids of the columns, ascending.
        share: (n, C) float32 in [0, 1]. From a mask: of the labelled pixels of the crop, those of
            the class; 0 where none is labelled. From boxes: of the area of the crop, what boxes of
            the class cover, where they overlap counted once.
        visible: (n, C) float32 in [0, 1]. Of the object of the class of which the crop shows the
            most pixels: the share of the object that is shown. Objects that make the crop rare go
            first. 0 where it shows none; NaN for classes that are not rare, whose objects are not
            looked for.
        dominant: (n,) int64, the class with the greatest share if that is at least
            ``least_dominant``, -1 for a mixture.
        rare_class: (n,) int64, of the objects that make the crop rare, the class of the one that
            shows the most pixels; -1 if the crop is not rare.
        is_rare: (n,) bool.
        is_ignored: (n,) bool, neither rare nor common; no crop is both.
    """

    classes: tuple[int, ...]
    share: npt.NDArray[np.float32]
    visible: npt.NDArray[np.float32]
    dominant: Ints
    rare_class: Ints
    is_rare: Bools
    is_ignored: Bools


@dataclass(frozen=True, eq=False)
class RareObjects:
    """How many objects of each rare class a frame holds.

    A frame holds a rare object if one is counted. One that has none counted and some unsure is
    neither rare nor common, as an ignored crop is. Smaller objects are not in here.

    Attributes:
        classes: The C rare class ids, ascending.
        counted: (C,) int64, objects large enough to count.
        unsure: (C,) int64, objects large enough of which it is not known what they are: cut by the
            border of the frame under ``truncated="ignore"``, and boxes marked as ignored.
    """

    classes: tuple[int, ...]
    counted: Ints
    unsure: Ints


def label_crops_by_mask(
    boxes: ArrayLike | Sequence[Sequence[int]],
    mask: npt.NDArray[Any],
    *,
    rare: Collection[int],
    names: Mapping[int, str] | None = None,
    size: tuple[int, int] | None = None,
    instances: npt.NDArray[Any] | None = None,
    least_visible: float = 0.5,
    least_cover: float = 0.02,
    least_side: int = 24,
    least_area: int = 150,
    most_ignored: float = 0.5,
    least_dominant: float = 0.6,
    truncated: Truncated = "keep",
) -> CropLabels:
    """Say what crops hold, by the class of every pixel; the rules stand at the top of the module.

    All counts are exact. Pass all crops of a frame at once: most of the work is done once a frame.

    Args:
        boxes: (n, 4) whole numbers, left, top, right and bottom edge of each crop in pixels of the
            frame, right and bottom exclusive.
        mask: (h, w) class ids in 0..254, and ``IGNORED`` (255) for pixels that are not judged.
        rare: The rare class ids, at least one.
        names: Of all classes. Its ids become the columns, so that every frame has the same, and
            other ids in the mask are an error. If not given, the columns are the ids in the mask
            and those of ``rare``.
        size: Height and width of the frame, if the mask is to be checked against them.
        instances: (h, w) whole numbers: rare pixels of one class and one number are one object,
            also where they do not touch. 0 stands for no number: those pixels are divided into
            connected components.
        least_visible: Share of an object that a crop must show of it to be rare, in (0, 1].
        least_cover: Share of the crop that the part shown must cover, in [0, 1].
        least_side: Pixels of the longest side of the part shown.
        least_area: Pixels of the part shown.
        most_ignored: A crop of which a greater share is ignored is not judged, in [0, 1].
        least_dominant: Share of the labelled pixels that makes a class dominant, in (0, 1].
        truncated: "keep": what is seen of an object at the border of the frame is the object.
            "ignore": it makes no crop rare.

    Returns:
        One row for each crop.

    Raises:
        LabelError: If the mask is not (h, w) class ids, or not of ``size``; if ``instances`` do not
            fit it; if a class in it or in ``rare`` has no name.
        OptionError: If a box is empty or outside the frame, or an option out of its range.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((100, 100), dtype=np.uint8)
        >>> mask[20:60, 10:30] = 9
        >>> crops = [[0, 10, 60, 70], [0, 45, 50, 95], [50, 0, 100, 50]]
        >>> found = label_crops_by_mask(crops, mask, rare={9})
        >>> found.is_rare.tolist(), found.is_ignored.tolist(), found.rare_class.tolist()
        ([True, False, False], [False, True, False], [9, -1, -1])
        >>> found.visible[:, found.classes.index(9)].tolist()
        [1.0, 0.375, 0.0]
    """
    caller = "label_crops_by_mask"
    rules = _Rules.checked(
        caller,
        least_visible=least_visible,
        least_cover=least_cover,
        least_side=least_side,
        least_area=least_area,
        most_ignored=most_ignored,
        least_dominant=least_dominant,
        truncated=truncated,
    )
    rare_ids = checked_rare(caller, rare, names)
    ids = checked_mask(caller, mask, size)
    crops = checked_crops(caller, boxes, *ids.shape)
    totals = pixels_in_frame(ids)
    columns = checked_columns_of_mask(caller, totals, rare_ids, names)
    counts = pixels_in_crops(ids, crops, totals)[:, columns]
    labelled, area = counts.sum(axis=1), areas_of(crops)
    objects, runs, owner = objects_in_mask(
        ids,
        rare_ids,
        checked_instances(caller, instances, ids.shape),
        keep_truncated=rules.keeps_truncated,
    )
    parts = parts_in_mask(crops, objects, runs, owner, height=ids.shape[0])
    return _labels(
        columns=columns,
        rare=rare_ids,
        share=counts / np.maximum(labelled, 1)[:, None],
        rare_cover=counts[:, np.isin(columns, rare_ids)].sum(axis=1) / area,
        ignored_cover=(area - labelled) / area,
        area=area,
        objects=objects,
        parts=parts,
        rules=rules,
    )


def label_crops_by_boxes(
    boxes: ArrayLike | Sequence[Sequence[int]],
    objects: ObjectBoxes,
    size: tuple[int, int],
    *,
    rare: Collection[int],
    names: Mapping[int, str] | None = None,
    least_visible: float = 0.5,
    least_cover: float = 0.02,
    least_side: int = 24,
    most_ignored: float = 0.5,
    least_dominant: float = 0.6,
    truncated: Truncated = "keep",
) -> CropLabels:
    """Say what crops hold, by the labelled boxes of objects; rules as at the top of the module.

    A box stands for its whole area, so an object counts for more than its pixels would; of a box
    that reaches beyond the frame, what lies inside it counts. Boxes marked as ignored make no crop
    rare: those of rare classes make one ignored like an object does, and all of them together are
    what is ignored in the labels.

    Args:
        boxes: (n, 4) whole numbers, left, top, right and bottom edge of each crop in pixels of the
            frame, right and bottom exclusive.
        objects: The labelled boxes of the frame.
        size: Height and width of the frame.
        rare: The rare class ids, at least one.
        names: Of all classes. Its ids become the columns, so that every frame has the same, and
            other labels are an error. If not given, the columns are the labels in the frame and
            those of ``rare``.
        least_visible: Share of an object that a crop must show of it to be rare, in (0, 1].
        least_cover: Share of the crop that the part shown must cover, in [0, 1].
        least_side: Pixels of the longest side of the part shown.
        most_ignored: A crop of which ignored boxes cover a greater share is not judged, in [0, 1].
        least_dominant: Share of the crop that makes a class dominant, in (0, 1].
        truncated: "keep": what is seen of an object marked as cut by the border is the object.
            "ignore": it makes no crop rare.

    Returns:
        One row for each crop.

    Raises:
        LabelError: If a class among the objects or in ``rare`` has no name, or the box of an object
            lies outside the frame.
        OptionError: If a box is empty or outside the frame, or an option out of its range.

    Example:
        >>> import numpy as np
        >>> objects = ObjectBoxes(
        ...     boxes=np.array([[10, 20, 30, 60]], dtype=np.float32),
        ...     labels=np.array([9]),
        ...     is_truncated=np.array([False]),
        ...     is_ignored=np.array([False]),
        ... )
        >>> crops = [[0, 10, 60, 70], [0, 45, 50, 95], [50, 0, 100, 50]]
        >>> found = label_crops_by_boxes(crops, objects, (100, 100), rare={9})
        >>> found.is_rare.tolist(), found.is_ignored.tolist()
        ([True, False, False], [False, True, False])
    """
    caller = "label_crops_by_boxes"
    rules = _Rules.checked(
        caller,
        least_visible=least_visible,
        least_cover=least_cover,
        least_side=least_side,
        least_area=0,
        most_ignored=most_ignored,
        least_dominant=least_dominant,
        truncated=truncated,
    )
    rare_ids = checked_rare(caller, rare, names)
    height, width = checked_size(caller, size)
    crops = checked_crops(caller, boxes, height, width)
    inside = boxes_inside(caller, objects, height, width)
    present = np.unique(objects.labels[~objects.is_ignored]).tolist()
    columns = checked_columns(caller, present, rare_ids, names, "the boxes of the frame")
    area = areas_of(crops)
    share = np.zeros((len(crops), len(columns)))
    for label in present:
        of_class = inside[(objects.labels == label) & ~objects.is_ignored]
        share[:, columns.index(label)] = covered_pixels(crops, of_class) / area
    found = rare_boxes(objects, inside, rare_ids, keep_truncated=rules.keeps_truncated)
    return _labels(
        columns=columns,
        rare=rare_ids,
        share=share,
        rare_cover=covered_pixels(crops, found.boxes) / area,
        ignored_cover=covered_pixels(crops, inside[objects.is_ignored]) / area,
        area=area,
        objects=found,
        parts=parts_of_boxes(crops, found.boxes),
        rules=rules,
    )


def rare_in_frame(
    labels: npt.NDArray[Any] | ObjectBoxes,
    *,
    rare: Collection[int],
    names: Mapping[int, str] | None = None,
    size: tuple[int, int] | None = None,
    instances: npt.NDArray[Any] | None = None,
    least_side: int = 24,
    least_area: int = 150,
    truncated: Truncated = "keep",
) -> RareObjects:
    """Count the objects of each rare class that a frame holds.

    An object counts from the size on from which its part in a crop does: a longest side of
    ``least_side`` pixels and, in a mask, ``least_area`` pixels. What share of the frame it covers
    does not matter, for a frame is rare by what it holds.

    Args:
        labels: A mask, (h, w) class ids in 0..254 and ``IGNORED`` (255), or the boxes of the frame.
        rare: The rare class ids, at least one.
        names: Of all classes; if given, ids without a name are an error.
        size: Height and width of the frame: needed with boxes, a check of the mask otherwise.
        instances: Numbers of the objects in a mask, as for ``label_crops_by_mask``.
        least_side: Pixels of the longest side of an object.
        least_area: Pixels of an object in a mask; not looked at with boxes.
        truncated: "keep": what is seen of an object at the border of the frame is the object.
            "ignore": it is not counted, but unsure.

    Returns:
        The counts, one column for each rare class.

    Raises:
        LabelError: If the labels do not fit ``size``, ``instances`` or ``names``.
        OptionError: If an option is out of its range, or boxes come without ``size`` or with
            ``instances``.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((100, 100), dtype=np.uint8)
        >>> mask[20:60, 10:30] = mask[80:, 40:80] = 9
        >>> rare_in_frame(mask, rare={9, 10})
        RareObjects(classes=(9, 10), counted=array([2, 0]), unsure=array([0, 0]))
        >>> rare_in_frame(mask, rare={9, 10}, truncated="ignore")
        RareObjects(classes=(9, 10), counted=array([1, 0]), unsure=array([1, 0]))
    """
    caller = "rare_in_frame"
    rules = _Rules.checked(
        caller, least_side=least_side, least_area=least_area, truncated=truncated
    )
    rare_ids = checked_rare(caller, rare, names)
    if isinstance(labels, ObjectBoxes):
        if size is None or instances is not None:
            wrong = "no size of the frame" if size is None else "instances"
            raise OptionError(
                f"{caller} got boxes and {wrong}; with boxes, pass size=(height, width) and no "
                "instances, which number the pixels of a mask."
            )
        inside = boxes_inside(caller, labels, *checked_size(caller, size))
        present = np.unique(labels.labels[~labels.is_ignored]).tolist()
        checked_columns(caller, present, rare_ids, names, "the boxes of the frame")
        objects = rare_boxes(labels, inside, rare_ids, keep_truncated=rules.keeps_truncated)
        counts = longest_sides(objects.boxes) >= rules.least_side
    else:
        ids = checked_mask(caller, labels, size)
        checked_columns_of_mask(caller, pixels_in_frame(ids), rare_ids, names)
        objects, _, _ = objects_in_mask(
            ids,
            rare_ids,
            checked_instances(caller, instances, ids.shape),
            keep_truncated=rules.keeps_truncated,
        )
        counts = (longest_sides(objects.boxes) >= rules.least_side) & (
            objects.area >= rules.least_area
        )
    of_class = objects.label[:, None] == np.array(rare_ids)
    return RareObjects(
        classes=rare_ids,
        counted=(of_class & (counts & objects.may_count)[:, None]).sum(axis=0),
        unsure=(of_class & (counts & ~objects.may_count)[:, None]).sum(axis=0),
    )


@dataclass(frozen=True)
class _Rules:
    least_visible: float
    least_cover: float
    least_side: int
    least_area: int
    most_ignored: float
    least_dominant: float
    keeps_truncated: bool

    @classmethod
    def checked(
        cls,
        caller: str,
        *,
        least_side: int,
        least_area: int,
        truncated: Truncated,
        least_visible: float = 1.0,
        least_cover: float = 0.0,
        most_ignored: float = 1.0,
        least_dominant: float = 1.0,
    ) -> "_Rules":
        check_choice(caller, "truncated", truncated, ("keep", "ignore"))
        return cls(
            least_visible=check_number(caller, "least_visible", least_visible, above=0, most=1),
            least_cover=check_number(caller, "least_cover", least_cover, least=0, most=1),
            least_side=check_count(caller, "least_side", least_side, least=0),
            least_area=check_count(caller, "least_area", least_area, least=0),
            most_ignored=check_number(caller, "most_ignored", most_ignored, least=0, most=1),
            least_dominant=check_number(caller, "least_dominant", least_dominant, above=0, most=1),
            keeps_truncated=truncated == "keep",
        )


def _labels(
    *,
    columns: tuple[int, ...],
    rare: tuple[int, ...],
    share: Floats,
    rare_cover: Floats,
    ignored_cover: Floats,
    area: Ints,
    objects: Objects,
    parts: Parts,
    rules: _Rules,
) -> CropLabels:
    """Apply the rules; masks and boxes differ in how parts and covers were measured, not here."""
    n = len(area)
    visible_share = parts.shown / objects.area[parts.object]
    is_large = (parts.side >= rules.least_side) & (parts.shown >= rules.least_area)
    makes_rare = (
        is_large
        & objects.may_count[parts.object]
        & (visible_share >= rules.least_visible)
        & (parts.shown / area[parts.crop] >= rules.least_cover)
    )
    is_rare, shows_large = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    is_rare[parts.crop[makes_rare]] = True
    shows_large[parts.crop[is_large]] = True
    has_cover = (rare_cover > 0) & (rare_cover >= rules.least_cover)
    is_ignored = ~is_rare & (shows_large | has_cover | (ignored_cover > rules.most_ignored))

    # Of parts written to one place the last one stays, so the one that matters most comes last.
    order = np.lexsort((visible_share, parts.shown, makes_rare))
    crop, label = parts.crop[order], objects.label[parts.object[order]]
    visible = np.full((n, len(columns)), np.nan, dtype=np.float32)
    visible[:, np.isin(columns, rare)] = 0.0
    visible[crop, np.searchsorted(columns, label)] = visible_share[order]
    rare_class = np.full(n, -1, dtype=np.int64)
    decides = makes_rare[order]
    rare_class[crop[decides]] = label[decides]

    greatest = share.argmax(axis=1)
    is_dominant = share[np.arange(n), greatest] >= rules.least_dominant
    return CropLabels(
        classes=columns,
        share=share.astype(np.float32),
        visible=visible,
        dominant=np.where(is_dominant, np.array(columns)[greatest], -1),
        rare_class=rare_class,
        is_rare=is_rare,
        is_ignored=is_ignored,
    )
