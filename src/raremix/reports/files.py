"""Writes text files that are whole or not there."""

import os

from raremix.data.kinds import PathLike
from raremix.data.writing import target_path

__all__ = ["write_text"]


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text to exactly ``path``, replacing an older file in one step.

    Raises:
        OptionError: If nothing can be written there.
        OSError: If the disk is full; an older file is then left as it was.
    """
    place = target_path(path, caller="write_text")
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        # newline="" so that text is the same bytes on every system.
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(part, place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
