"""Numbers that name a region: which frame it is of, and where in it.

A key is an id to buffers, samplers and workers, and needs no table to be traced back. It knows no
pixels, and nothing of what is rare.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.inputs import ArrayLike, as_ids
from raremix.regions.boxes import as_boxes
from raremix.views.rows import Box

__all__ = ["MOST_FRAMES", "box_of", "first_key", "frame_of", "is_region", "region_keys"]

MOST_FRAMES = 1 << 30
"""Ids of frames that have regions lie below."""

# From the top: a zero, so that keys are positive; a one, so that they are no ids of frames; 30 bits
# of the frame's id; and 8 bits each for left, top, right and bottom edge.
_REGION = 1 << 62
_FRAME_AT = 32
_EDGES_AT = (24, 16, 8, 0)
_GRID = 255


def region_keys(
    frame_ids: ArrayLike | Sequence[int],
    boxes: ArrayLike | Sequence[Sequence[float]],
    sizes: ArrayLike | Sequence[Sequence[int]] | Sequence[int],
) -> Tensor:
    """Make the keys of some regions.

    A key says where a region lies to 1/255 of the frame's sides: the box is in it, and it reaches
    less than that farther to each side. Equal keys are the same part of the same frame.

    Args:
        frame_ids: (n,) integers, each frame's place in its dataset, in [0, 2**30).
        boxes: (n, 4) left, top, right and bottom edge in pixels, inside the frames.
        sizes: (n, 2) height and width of the frames in pixels, or one pair for all.

    Returns:
        (n,) int64 on the CPU, at least 2**62.

    Raises:
        OptionError: If an id is out of its range, a box is empty or reaches outside its frame, or
            there are not as many of each.

    Example:
        >>> keys = region_keys([7], [[300, 100, 350, 160]], (720, 1280))
        >>> is_region(keys), frame_of(keys), box_of(int(keys), (720, 1280))
        (tensor([True]), tensor([7]), (297, 99, 351, 160))
    """
    caller = "region_keys"
    frames = as_ids(frame_ids, caller=caller)
    if len(frames) and not 0 <= int(frames.min()) <= int(frames.max()) < MOST_FRAMES:
        raise OptionError(
            f"{caller} expects ids of frames in [0, 2**30), where a key has room for them, got "
            f"{int(frames.min())} to {int(frames.max())}; pass places in a dataset of frames."
        )
    # Copies of arrays, since torch warns of read-only ones.
    given, shapes = (
        part.detach().cpu() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        for part in (boxes, sizes)
    )
    shapes = shapes.to(torch.int64)
    if shapes.shape == (2,):
        shapes = shapes.expand(len(frames), 2)
    if len(given) != len(frames) or shapes.shape != (len(frames), 2):
        raise OptionError(
            f"{caller} expects a box and a size for each of {len(frames)} ids, got boxes of shape "
            f"{tuple(given.shape)} and sizes of shape {tuple(shapes.shape)}."
        )
    whole = torch.empty(len(frames), 4, dtype=torch.int64, device="cpu")
    for height, width in torch.unique(shapes, dim=0).tolist():
        own = (shapes == torch.tensor([height, width], device="cpu")).all(dim=1)
        whole[own] = as_boxes(given[own], (height, width), caller=caller)
    spans = shapes.flip(1)
    low = (whole[:, :2] * _GRID).div(spans, rounding_mode="floor")
    high = -(-whole[:, 2:] * _GRID).div(spans, rounding_mode="floor")
    keys = (frames << _FRAME_AT) | _REGION
    for edge, at in zip(torch.cat([low, high], dim=1).unbind(1), _EDGES_AT, strict=True):
        keys |= edge << at
    return keys


@overload
def is_region(key: int) -> bool: ...
@overload
def is_region(key: Tensor) -> Tensor: ...
def is_region(key: int | Tensor) -> bool | Tensor:
    """Whether a key is that of a region, and not an id; of an int64 tensor, row by row."""
    return key >= _REGION


@overload
def frame_of(key: int) -> int: ...
@overload
def frame_of(key: Tensor) -> Tensor: ...
def frame_of(key: int | Tensor) -> int | Tensor:
    """The id of the frame that a region is of; an id of a frame itself comes back as it is.

    Args:
        key: A key, or an int64 tensor of some.

    Example:
        >>> keys = region_keys([7, 8], [[0, 0, 20, 10]] * 2, (60, 80))
        >>> frame_of(torch.cat([keys, torch.tensor([3])]))
        tensor([7, 8, 3])
    """
    if isinstance(key, Tensor):
        return torch.where(is_region(key), (key - _REGION) >> _FRAME_AT, key)
    return (key - _REGION) >> _FRAME_AT if is_region(key) else int(key)


def box_of(key: int, size: tuple[int, int]) -> Box:
    """Where in its frame a region lies, as nearly as its key can tell.

    Args:
        key: One that ``is_region``.
        size: Height and width of the frame in pixels. It may be another one than the key was made
            with: the box is then that part of this frame.

    Returns:
        Left, top, right and bottom edge in whole pixels, never empty. In the size that the key was
        made with, it has the box in it that the key was made of, and is that box where no side of
        the frame is longer than 255 pixels.

    Raises:
        OptionError: If the key is that of no region.
    """
    if not is_region(key):
        raise OptionError(
            f"box_of expects the key of a region, as region_keys makes them, got {key}."
        )
    height, width = size
    left, top, right, bottom = ((key >> at) & 0xFF for at in _EDGES_AT)
    (left, right), (top, bottom) = _span(left, right, width), _span(top, bottom, height)
    return left, top, right, bottom


def _span(low: int, high: int, pixels: int) -> tuple[int, int]:
    """The pixels between two lines of the grid, or at least the one they lie in."""
    first = min(-(-low * pixels // _GRID), -(-high * pixels // _GRID) - 1)
    return first, max(high * pixels // _GRID, first + 1)


def first_key(frame_id: int) -> int:
    """No key of a region of this frame is less, nor one of a frame before it larger.

    Example:
        >>> first_key(8) > int(region_keys([7], [[0, 0, 80, 60]], (60, 80)))
        True
    """
    return _REGION + (frame_id << _FRAME_AT)
