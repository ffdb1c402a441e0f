"""Shrinks images to thumbnails that stand inside the page as data URIs.

It takes images wherever they are: in files, in one array, or behind a function. An image that
cannot be shown is remembered with its reason, and the page goes on without it.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raremix.errors import ImageInputError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "Picture", "Thumbnails", "encode_picture"]

ImageSource: TypeAlias = Callable[[int], Any] | Sequence[str | Path] | np.ndarray[Any, Any]
"""A function of the row that returns a PIL image or uint8 array; one path per row; or one uint8
array of shape (n, height, width), (n, height, width, 1) or (n, height, width, 3)."""

_CRISP_BELOW = 48  # pixels; smaller images are shown as the squares they are made of


@dataclass(frozen=True)
class Picture:
    """A thumbnail, ready for ``<img src=...>``."""

    uri: str
    width: int
    height: int
    crisp: bool


class Thumbnails:
    """Makes thumbnails of rows.

    Args:
        source: Where the images are, or None for none at all.
        rows: How many rows there are, checked against what the source has.

    Attributes:
        failed: Why a row has no picture, by row.
        asked: The rows that a picture was asked for.

    Raises:
        ImageInputError: If the source has another number of images, or is none of the three kinds.
        MissingExtraError: If Pillow is not installed.
    """

    def __init__(self, source: ImageSource | None, *, rows: int) -> None:
        self._source = source
        self.failed: dict[int, str] = {}
        self.asked: set[int] = set()
        if source is None:
            return
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                'Pictures in a report need Pillow: pip install "raremix[report]".'
            ) from error
        if not callable(source):
            if isinstance(source, np.ndarray) and (
                source.dtype != np.uint8 or source.ndim not in (3, 4)
            ):
                raise ImageInputError(
                    "write_report expects images as a uint8 array of shape (n, height, width, 3) "
                    f"or (n, height, width), got {source.dtype} of shape {source.shape}."
                )
            if len(source) != rows:
                raise ImageInputError(
                    f"write_report got {len(source)} images for {rows} scores; pass one per score, "
                    "in the same order."
                )

    def make(self, row: int, *, size: int, quality: int) -> Picture | None:
        """Make a thumbnail no larger than ``size`` on either side, or None if it cannot be."""
        if self._source is None:
            return None
        self.asked.add(row)
        if row in self.failed:
            return None
        try:
            image = self._load(row)
        except Exception as error:  # Files and functions of others fail in every way there is.
            self.failed[row] = str(error).strip() or type(error).__name__
            return None
        return encode_picture(image, size=size, quality=quality)

    def _load(self, row: int) -> "Image.Image":
        from PIL import Image

        assert self._source is not None
        found: Any = self._source(row) if callable(self._source) else self._source[row]
        if isinstance(found, (str, Path)):
            with Image.open(found) as opened:
                # JPEG files can be decoded at a fraction of their size, which is all we need.
                opened.draft("RGB", (512, 512))
                decoded: Image.Image = opened.convert("RGB")
                return decoded
        if isinstance(found, Image.Image):
            copy: Image.Image = found.copy()
            return copy
        array = np.asarray(found)
        if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ImageInputError(f"it is {array.dtype} of shape {array.shape}, not an image")
        return Image.fromarray(np.ascontiguousarray(array))


def encode_picture(image: "Image.Image", *, size: int, quality: int) -> Picture:
    """Shrink an image so that no side is longer than ``size``, and encode it.

    The image may be changed; pass a copy of one that is still needed.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    crisp = max(image.size) <= _CRISP_BELOW
    if not crisp:
        image.thumbnail((size, size))
    buffer = io.BytesIO()
    if crisp:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    kind = "png" if crisp else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", *image.size, crisp)
