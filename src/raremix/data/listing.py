"""Lists of image files that outlive a move: paths below a folder, and which folder it was.

Line i belongs to row i of the embeddings. Whether the files are still there it does not ask.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raremix.data.kinds import PathLike
from raremix.data.vectors import read_lines
from raremix.errors import FileFormatError

__all__ = ["ImageList", "image_list_text", "read_image_list"]

_REMARK = "# "
_ROOT = "# root: "
_TRIED = 10


@dataclass(frozen=True)
class ImageList:
    """Image files, one per row.

    Attributes:
        files: As they stand in the list, relative to the root as a rule.
        root: The folder they lay in when the list was written, if it says.
        home: The folder of the list itself.
    """

    files: list[str]
    root: Path | None
    home: Path

    def below(self, folder: PathLike) -> list[Path]:
        """Where the files are, now that they lie in ``folder``, whatever root the list names.

        Absolute paths of a list made elsewhere lose as many of their first folders as it takes to
        find one of them there.
        """
        place = Path(folder)
        lost: tuple[str, ...] | None = None
        # A few are tried, since some may have been deleted.
        for file in [file for file in self.files if os.path.isabs(file)][:_TRIED]:
            parts = Path(file).parts
            cuts = (cut for cut in range(1, len(parts)) if Path(place, *parts[cut:]).is_file())
            lost = next((parts[:cut] for cut in cuts), lost)
        found = []
        for file in self.files:
            parts = Path(file).parts
            if lost is not None and parts[: len(lost)] == lost:
                file = os.path.join(*parts[len(lost) :])
            found.append(place / file)
        return found

    def located(self) -> list[Path]:
        """Where the list says the files are: below its root, else here, else beside the list."""
        if self.root is not None:
            return [self.root / file for file in self.files]
        return [Path(file) if os.path.exists(file) else self.home / file for file in self.files]


def read_image_list(path: PathLike) -> ImageList:
    """Read a list of image files, one per line; lines that begin with ``# `` are remarks.

    A remark ``# root: FOLDER`` names the folder that the paths start from.

    Raises:
        FileFormatError: If it is no UTF-8 text, names no file, or has an empty line in the middle.
    """
    lines = read_lines(path)
    files = [line for line in lines if not line.startswith(_REMARK)]
    if not files:
        raise FileFormatError(f"{path} lists no image; it should hold one path per line.")
    roots = [line.removeprefix(_ROOT) for line in lines if line.startswith(_ROOT)]
    return ImageList(files, Path(roots[0]) if roots else None, Path(path).parent)


def image_list_text(root: PathLike, files: Sequence[PathLike]) -> str:
    """The text of a list: the root as a remark, then each file relative to it.

    Args:
        root: The folder of the images.
        files: Image files below it, absolute or relative to it.
    """
    place = Path(root).absolute()
    lines = [f"{_ROOT}{place}"]
    for file in files:
        line = (place / file).relative_to(place).as_posix()
        # Else a file with such a name would be taken for a remark.
        lines.append(f"./{line}" if line.startswith(_REMARK) else line)
    return "".join(f"{line}\n" for line in lines)
