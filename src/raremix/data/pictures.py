"""Decodes image files, and finds the damaged ones before a long run meets them.

One file at a time; folders, ids and labels are the datasets' business.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from raremix.data.kinds import PathLike
from raremix.errors import FileFormatError
from raremix.inputs import tensor_of
from raremix.progress import Progress

__all__ = ["Unreadable", "find_unreadable", "read_image", "read_pixels", "reason_of"]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    path: Path
    reason: str


def read_image(path: PathLike) -> Image.Image:
    """Decode an image file to 8-bit RGB; grey and palette images become RGB, alpha is dropped.

    Raises:
        FileFormatError: If the file is missing, damaged, no image, or has 16-bit or float pixels.
    """
    try:
        with Image.open(path) as opened:
            _refuse_deep(opened)
            image: Image.Image = opened
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns of the direct way.
            if image.mode != "RGB":
                return image.convert("RGB")
            image.load()
            return image
    except Exception as error:  # On damaged bytes the decoders raise nearly anything.
        raise FileFormatError(
            f"The image {path} cannot be read: {reason_of(error)}. Repair or remove it; "
            "find_unreadable lists all such files."
        ) from error


def read_pixels(path: PathLike) -> Tensor:
    """Decode an image file to a tensor, as ``read_image`` does.

    Without the slow ways to get there: converting RGB to RGB, which copies every pixel; copying the
    array once more to make it writable; and rearranging channels into planes.

    Returns:
        Uint8 of shape (3, height, width), a view with channels-last strides.

    Raises:
        FileFormatError: As ``read_image``.
    """
    # PIL hands out its pixels as bytes of their own, which nobody else can see being written to.
    return tensor_of(np.asarray(read_image(path))).permute(2, 0, 1)


def find_unreadable(
    paths: Iterable[PathLike], *, threads: int = 4, progress: bool = False
) -> list[Unreadable]:
    """Find the images that could not be decoded, by decoding each once.

    Only whole decoding notices a file that was cut short, so that is done, at an eighth of the
    size for JPEG, where it is cheap, and on several threads.

    Args:
        paths: Image files.
        threads: How many files to decode at once.
        progress: Report rate and time left on standard error.

    Returns:
        The unreadable ones, in the order of ``paths``; empty if all is well.
    """
    listed: Sequence[Path] = [Path(path) for path in paths]
    found = []
    with (
        ThreadPoolExecutor(max_workers=threads) as pool,
        Progress(len(listed), label="checking", unit="images", enabled=progress) as bar,
    ):
        for path, reason in zip(listed, pool.map(_why_unreadable, listed), strict=True):
            if reason is not None:
                found.append(Unreadable(path, reason))
            bar.advance()
    return found


def _why_unreadable(path: Path) -> str | None:
    try:
        with Image.open(path) as opened:
            _refuse_deep(opened)
            opened.draft("RGB", (max(opened.width // 8, 1), max(opened.height // 8, 1)))
            opened.load()
    except Exception as error:  # As in read_image.
        return reason_of(error)
    return None


def _refuse_deep(image: Image.Image) -> None:
    # Pillow would clip such pixels to white without a word.
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are {image.mode}, 16 bits or more; scale them to 8 bits")


def reason_of(error: Exception) -> str:
    """Why an image could not be decoded, in words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image that Pillow knows"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
