"""Finds the files of a data set in its folders and tells which belong together.

What has no counterpart, an image without label or a label without image, is listed and never filled
in. Where a particular set keeps what is known to its reader.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from raremix.data.boxes import ObjectBoxes, Skipped
from raremix.data.frames import Frame, Frames
from raremix.data.images import IMAGE_SUFFIXES, find_images
from raremix.data.masks import MaskConvention
from raremix.errors import FileFormatError, LabelError

__all__ = [
    "Naming",
    "before_number",
    "check_folder",
    "ending",
    "frames_of",
    "images_in",
    "listed",
    "masked_frames",
    "masks_in",
    "matched",
    "timed",
    "what_is_in",
]

Label = TypeVar("Label")
_LISTED = 10
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Naming:
    """What the names of a set's frames tell: a clip, and a number that counts frames in it."""

    pattern: re.Pattern[str]
    form: str
    hz: float


def images_in(folder: Path, *, caller: str, what: str = "images") -> list[str]:
    """The images below a folder, by their paths relative to it, sorted; at least one."""
    check_folder(folder, caller=caller, what=what)
    names = find_images(folder)
    if not names:
        raise FileFormatError(
            f"{caller} looks for {what} in {folder} and its subfolders, and finds no file ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}; {what_is_in(folder)}."
        )
    return names


def masks_in(folder: Path, caller: str) -> dict[str, Path]:
    """The masks below a folder, by their relative paths without suffix."""
    names = images_in(folder, caller=caller, what="masks")
    return {str(PurePosixPath(name).with_suffix("")): folder / name for name in names}


def ending(names: Iterable[str], end: str, folder: Path) -> dict[str, Path]:
    """The files that end so, by what stands before the end."""
    return {name.removesuffix(end): folder / name for name in names if name.endswith(end)}


def check_folder(folder: Path, *, caller: str, what: str) -> None:
    """Raise ``FileFormatError`` if there is no such folder, saying what there is."""
    if not folder.is_dir():
        state = "that is a file" if folder.exists() else "there is no such folder"
        raise FileFormatError(
            f"{caller} looks for {what} in {folder}, and {state}; {what_is_in(folder)}."
        )


def what_is_in(place: Path) -> str:
    """What the folder, or the next one above it that exists, holds: for errors."""
    folder = next((one for one in (place, *place.parents) if one.is_dir()), None)
    if folder is None:
        return "not even the drive is there"
    return f"{folder} holds {listed(sorted(entry.name for entry in folder.iterdir())) or 'nothing'}"


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for errors."""
    others = f" and {len(names) - _LISTED} others" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + others


def timed(
    names: Iterable[str], folder: Path, naming: Naming
) -> tuple[dict[str, tuple[str, float | None]], list[Skipped]]:
    """Clip and time of each name that reads as the data set's do, and the others."""
    when: dict[str, tuple[str, float | None]] = {}
    skipped = []
    for name in names:
        match = naming.pattern.fullmatch(PurePosixPath(name).stem)
        if match is None:
            reason = f"its name does not read {naming.form}, so its clip and time are unknown"
            skipped.append(Skipped(folder / name, reason))
        else:
            when[name] = match["clip"], int(match["number"]) / naming.hz
    return when, skipped


def matched(
    keys: Mapping[str, str], labels: Mapping[str, Label], folder: Path, *, caller: str
) -> tuple[dict[str, Label], list[str]]:
    """The label of each frame that has one, and the keys of labels without frame."""
    found = {name: labels[key] for name, key in keys.items() if key in labels}
    orphans = sorted(labels.keys() - set(keys.values()))
    if not found:
        have = f"images such as {next(iter(keys.values()))}" if keys else "no image"
        wanted = f"the first is of {orphans[0]}" if orphans else "there is none"
        raise LabelError(
            f"{caller}: none of {len(labels):,} labels belongs to an image in {folder} ({wanted}; "
            f"{have}); the labels may be those of another part, or of other images."
        )
    return found, orphans


def masked_frames(
    folder: Path,
    when: Mapping[str, tuple[str, float | None]],
    keys: Mapping[str, str],
    places: Mapping[str, Path],
    convention: MaskConvention,
    skipped: Sequence[Skipped],
    *,
    caller: str,
) -> Frames:
    """The frames with the masks that have the same key."""
    masks, orphans = matched(keys, places, folder, caller=caller)
    missing = [Skipped(places[key], f"there is no such image in {folder}") for key in orphans]
    frames = frames_of(folder, when, masks=masks)
    return Frames(folder, frames, convention.names, convention, [*skipped, *missing])


def frames_of(
    folder: Path,
    when: Mapping[str, tuple[str, float | None]],
    *,
    masks: Mapping[str, Path] | None = None,
    objects: Mapping[str, ObjectBoxes] | None = None,
    sort: bool = True,
) -> list[Frame]:
    """The frames of a folder, by clip, time and name unless ``sort`` is false."""
    frames = [
        Frame(name, folder / name, clip, time, (masks or {}).get(name), (objects or {}).get(name))
        for name, (clip, time) in when.items()
    ]
    if sort:
        frames.sort(key=lambda frame: (frame.clip, frame.time or 0.0, frame.name))
    return frames


def before_number(name: str) -> str:
    """What stands before the last number in a file's name, without what parts it from that."""
    stem = PurePosixPath(name).stem
    numbers = list(_NUMBER.finditer(stem))
    return stem[: numbers[-1].start()].rstrip(" -._") if numbers else stem
