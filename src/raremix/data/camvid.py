"""Reads CamVid in the three layouts that it is passed around in.

It opens no image.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from raremix.data.frames import Frames
from raremix.data.kinds import PathLike
from raremix.data.masks import CAMVID_SEGNET, IGNORED, MaskConvention, read_label_colours
from raremix.data.trees import (
    Naming,
    before_number,
    images_in,
    masked_frames,
    masks_in,
    timed,
    what_is_in,
)
from raremix.data.vectors import read_lines
from raremix.errors import FileFormatError, OptionError
from raremix.options import check_choice

__all__ = ["read_camvid"]

# Its four sequences. Other names, such as the test_00001 of some copies, count something else.
_CAMVID = Naming(
    re.compile(r"(?P<clip>0001TP|0006R0|0016E5|Seq05VD)_f?(?P<number>\d+)"),
    "{sequence}_{frame}",
    30.0,
)
_CAMVID_PARTS = ("train", "val", "test")
_UNLABELLED = frozenset({"ignore", "ignored", "unlabeled", "unlabelled", "void"})


def read_camvid(root: PathLike, *, split: Literal["train", "val", "test"] | None = None) -> Frames:
    """Read CamVid, in any of the three layouts in which it goes around.

    - ``images`` with ``labels``, and the classes of ``classes.csv`` (columns id and name; a class
      called unlabelled or void is ignored) or, without that file, those of SegNet;
    - ``train``, ``val`` and ``test`` with ``trainannot``, ``valannot`` and ``testannot``, as in the
      SegNet tutorial, and its classes;
    - ``701_StillsRaw_full`` with ``LabeledApproved_full/*_L.png``, and ``label_colors.txt`` in
      either or beside them: the original, with 31 classes and Void.

    Names begin with one of four sequences, which are the clips; the number after it counts frames
    at 30 a second, also where every second one was kept. Frames of other names have no time.

    Args:
        root: The folder that holds these.
        split: Only this part, in the layout that has parts.

    Returns:
        The frames, sorted by clip and time; their names begin with the part, where there are
        parts. ``unlabelled`` counts images without mask, ``skipped`` lists masks without image.

    Raises:
        FileFormatError: If none of the layouts is there, or more than one, or a list of classes
            reads otherwise.
        LabelError: If no mask belongs to any image.
        OptionError: If a part is asked for where there are none.
    """
    caller = "read_camvid"
    if split is not None:
        check_choice(caller, "split", split, _CAMVID_PARTS)
    base = Path(root).absolute()
    parts = [
        part
        for part in _CAMVID_PARTS
        if (base / part).is_dir() and (base / f"{part}annot").is_dir()
    ]
    layouts: dict[str, Callable[[], tuple[Path, list[str], dict[str, Path], MaskConvention]]] = {}
    if (base / "images").is_dir() and (base / "labels").is_dir():
        layouts["images"] = lambda: _camvid_images(base, caller)
    if parts:
        layouts[parts[0]] = lambda: _camvid_parts(base, parts if split is None else [split], caller)
    if (base / "701_StillsRaw_full").is_dir() and (base / "LabeledApproved_full").is_dir():
        layouts["701_StillsRaw_full"] = lambda: _camvid_original(base, caller)
    if len(layouts) != 1:
        found = f"more than one of them ({', '.join(layouts)})" if layouts else "none of them"
        raise FileFormatError(
            f"{caller} looks for images/ with labels/, train/ with trainannot/ (or val, test), or "
            f"701_StillsRaw_full/ with LabeledApproved_full/ in {base}, and finds {found}; "
            f"{what_is_in(base)}."
        )
    if split is not None and split not in parts:
        raise OptionError(
            f"{caller} got split={split!r}, and {base} has no folders {split}/ and {split}annot/; "
            "leave split out to read all frames."
        )
    folder, names, places, convention = next(iter(layouts.values()))()
    when, _ = timed(names, folder, _CAMVID)
    when.update({name: (before_number(name), None) for name in names if name not in when})
    keys = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    return masked_frames(folder, when, keys, places, convention, [], caller=caller)


def _camvid_images(
    base: Path, caller: str
) -> tuple[Path, list[str], dict[str, Path], MaskConvention]:
    folder, source, listed = base / "images", base / "labels", base / "classes.csv"
    convention = _read_classes(listed, caller) if listed.is_file() else CAMVID_SEGNET
    return folder, images_in(folder, caller=caller), masks_in(source, caller), convention


def _camvid_parts(
    base: Path, parts: Sequence[str], caller: str
) -> tuple[Path, list[str], dict[str, Path], MaskConvention]:
    names, places = [], {}
    for part in parts:
        names += [f"{part}/{name}" for name in images_in(base / part, caller=caller)]
        found = masks_in(base / f"{part}annot", caller)
        places.update({f"{part}/{key}": path for key, path in found.items()})
    return base, names, places, CAMVID_SEGNET


def _camvid_original(
    base: Path, caller: str
) -> tuple[Path, list[str], dict[str, Path], MaskConvention]:
    folder, source = base / "701_StillsRaw_full", base / "LabeledApproved_full"
    lists = [place / "label_colors.txt" for place in (base, source, folder)]
    colours = next((file for file in lists if file.is_file()), None)
    if colours is None:
        raise FileFormatError(
            f"{caller} needs label_colors.txt, which says what the colours of the masks in {source} "
            f"mean, and finds none in {base} or beside the masks; {what_is_in(base)}."
        )
    places = {key.removesuffix("_L"): path for key, path in masks_in(source, caller).items()}
    return folder, images_in(folder, caller=caller), places, read_label_colours(colours)


def _read_classes(path: Path, caller: str) -> MaskConvention:
    """The classes of a table with columns id and name."""
    rows = list(csv.DictReader(read_lines(path)))
    names: dict[int, str] = {}
    values: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        text, name = (row.get("id") or "").strip(), (row.get("name") or "").strip()
        if not text.isdecimal() or int(text) >= IGNORED or int(text) in values or not name:
            raise FileFormatError(
                f"{caller}: line {number} of {path} has the id {text!r} and the name {name!r}; "
                f"expected columns id and name, with another id of 0 to {IGNORED - 1} on each line."
            )
        id = int(text)
        values[id] = IGNORED if name.lower() in _UNLABELLED else id
        if values[id] == id:
            names[id] = name
    if not names:
        raise FileFormatError(f"{caller}: {path} names no class.")
    return MaskConvention(names, values)
