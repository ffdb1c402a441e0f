"""Views of frames by their ids, and of regions of frames by their keys.

The way of a rare region back into batches that are mixed by ids: it is cut out of its frame anew
each time. It draws where to cut, and knows neither scores nor buffers.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from raremix.data.images import checked_id
from raremix.data.seeding import SeededTransform
from raremix.errors import OptionError
from raremix.options import check_count, check_range
from raremix.regions.keys import MOST_FRAMES, box_of, first_key, frame_of, is_region
from raremix.seeds import derive_seed, uniforms
from raremix.views.checks import as_seed
from raremix.views.images import as_image
from raremix.views.rows import Box

__all__ = ["FrameSource", "FrameViews"]


class FrameSource(Protocol):
    """Frames by their ids, such as ``Frames``, or ``ImageFiles`` without a transform."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, id: int, /) -> tuple[Tensor, Any]:
        """Uint8 pixels of shape (3, height, width), and anything."""


class FrameViews(Dataset[tuple[Any, int]]):
    """A dataset of frames that gives views of a region, too, if asked for its key.

    An id gives the transformed frame. A key, as ``region_keys`` makes them and ``RegionReplay``
    puts them into a buffer, gives the transformed region: a square around its box, cut out of the
    frame anew, so that all views of that row show the object with some of what is beside it. The
    square is as many times as long as the longer side of the box as is drawn from ``context``, lies
    at random wherever the box is inside it, and is moved inside the frame; it is no longer than the
    frame, and less than ``least_side`` only where the frame is.

    It has as many samples as there are frames: regions come only if asked for, by a loader mixed
    with ``BufferedMixSampler``. What is put around it, such as a ``Subset``, knows no regions and
    is given none; make it of fewer frames instead. A transform that takes ``id`` gets what was
    asked for.

    Args:
        frames: Gives ``(pixels, id)`` for an id below 2**30.
        transform: Called on the uint8 tensor of shape (3, height, width) of the frame or of the
            square. Without one, that tensor is delivered.
        context: Least and greatest side of the square, in units of the longer side of the box; at
            least 1.
        least_side: Of the square, in pixels.
        as_tensor: Call the transform on that uint8 tensor; else on an RGB PIL image.
        seed: Makes squares and views a function of (seed, draw, key) alone, for any number of
            workers; the transform must take ``seed=`` or ``generator=``.

    Attributes:
        frames: As given.

    Raises:
        OptionError: If an option is out of its range, there are too many frames, or a seed is given
            and the transform takes neither.

    Example:
        >>> from raremix.data.images import ImageArrays
        >>> from raremix.regions.keys import region_keys
        >>> frames = ImageArrays(np.zeros((2, 60, 80), dtype=np.uint8))
        >>> dataset = FrameViews(frames, None, context=(1.5, 1.5), least_side=16)
        >>> key = int(region_keys([1], [[10, 20, 26, 30]], (60, 80)))
        >>> len(dataset), dataset[1][0].shape, dataset[key][0].shape
        (2, torch.Size([3, 60, 80]), torch.Size([3, 24, 24]))
    """

    def __init__(
        self,
        frames: FrameSource,
        transform: Callable[..., Any] | None,
        *,
        context: tuple[float, float] = (1.25, 2.0),
        least_side: int = 64,
        as_tensor: bool = True,
        seed: int | None = None,
    ) -> None:
        caller = "FrameViews"
        low, high = check_range(caller, "context", context, above=0.0, most=math.inf)
        if low < 1:
            raise OptionError(
                f"{caller} expects context of at least 1, where the square is as long as the box, "
                f"got {context!r}."
            )
        if len(frames) > MOST_FRAMES:
            raise OptionError(
                f"{caller} got {len(frames)} frames, and the key of a region has room for ids "
                "below 2**30; split them into several sets."
            )
        self.frames = frames
        square = _Square((low, high), check_count(caller, "least_side", least_side, least=1))
        self._square = SeededTransform(square, seed=seed, caller=caller)
        self._apply = SeededTransform(transform, seed=seed, caller=caller)
        self._as_tensor = as_tensor

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of plain ids, also in workers that run already; 0 at first.

        Call it before each epoch, or views repeat themselves. Ids of a ``BufferedMixSampler`` know
        their draw, and need no call.
        """
        self._square.set_epoch(epoch)
        self._apply.set_epoch(epoch)

    @property
    def keys_below(self) -> int:
        """Regions have keys below this number; a ``BufferedMixSampler`` passes over others."""
        return first_key(len(self.frames))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, id: int) -> tuple[Any, int]:
        """Read a frame, cut the region out of it if it is a key, and transform it; also says which.

        Raises:
            IndexError: If there is no such frame.
            ImageInputError: If the frame is not uint8 of shape (1 or 3, height, width).
        """
        key = int(id)
        frame = checked_id(frame_of(key), len(self.frames))
        pixels = as_image(self.frames[frame][0], caller="FrameViews").expand(3, -1, -1)
        if not is_region(key):
            # A sampler's id carries its draw number; a negative one was another name for the frame.
            return self._made(pixels, id if key == frame else frame), frame
        left, top, right, bottom = self._square((pixels.shape[1], pixels.shape[2]), id)
        return self._made(pixels[:, top:bottom, left:right], id), key

    def _made(self, pixels: Tensor, id: int) -> Any:
        if self._apply.transform is None:
            # A part on its way from a worker would take the whole frame along.
            return pixels.clone() if is_region(int(id)) else pixels
        if self._as_tensor:
            return self._apply(pixels, id)
        return self._apply(Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0))), id)


class _Square:
    """Draws where to cut, in the place of a transform of which the image is the frame's size."""

    def __init__(self, context: tuple[float, float], least_side: int) -> None:
        self.context, self.least_side = context, least_side

    def __call__(self, size: tuple[int, int], *, id: int, seed: int | None = None) -> Box:
        # Not the stream of the seed itself, which the views are drawn from.
        drawn = derive_seed(int(as_seed(seed, None, caller="FrameViews")), 1)
        of_side, *of_place = uniforms(drawn, 3).tolist()
        box = box_of(id, size)
        low, high = self.context
        longest = max(box[2] - box[0], box[3] - box[1])
        side = max(math.ceil(longest * (low + (high - low) * of_side)), self.least_side)
        starts, ends = [], []
        for axis, whole in enumerate((size[1], size[0])):
            length = min(side, whole)
            first, last = max(box[axis + 2] - length, 0), min(box[axis], whole - length)
            start = first + int(of_place[axis] * (last - first + 1))
            starts.append(start)
            ends.append(start + length)
        return starts[0], starts[1], ends[0], ends[1]
