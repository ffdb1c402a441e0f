"""Writes text files that are whole or not there."""

from raremix.data.kinds import PathLike
from raremix.data.writing import replacing

__all__ = ["write_text"]


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text to exactly ``path``, replacing an older file in one step.

    Raises:
        OptionError: If nothing can be written there.
        OSError: If the disk is full; an older file is then left as it was.
    """
    # newline="" so that text is the same bytes on every system.
    with (
        replacing(path, caller="write_text") as part,
        open(part, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(text)
