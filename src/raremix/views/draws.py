"""Draws what is to be done to make each view, from a seed and the size of the image.

It sees no pixels: what is drawn here can be applied later, elsewhere. The kernel draws the same
numbers many times as fast, where there is one.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.seeds import uniforms_of
from raremix.views import kernel
from raremix.views.rows import COLUMNS, KINDS
from raremix.views.view import View

__all__ = ["ViewTable", "draw_rows"]

_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Rows = np.ndarray[Any, np.dtype[np.float32]]
_Ints = np.ndarray[Any, np.dtype[np.int64]]

# As in torchvision's RandomResizedCrop, which gives up on a fitting box after ten tries.
_TRIES = 10
_NUMBERS_PER_TRY = 4
_FIRST_OTHER = _TRIES * _NUMBERS_PER_TRY
_FLIP, _JITTER, _FACTORS, _ORDER, _GRAY, _BLUR, _SIGMA, _SOLAR = 40, 41, 42, 46, 47, 48, 49, 50
_NUMBERS = 51
_ORDERS = np.array(list(permutations(range(len(KINDS)))))
_FIRST_KIND = COLUMNS.index("kind_0")
_AT = {name: COLUMNS.index(name) for name in COLUMNS}


class ViewTable:
    """The options of some views side by side, for drawing them together.

    Args:
        views: The views, in order; None where one is made by other means, and drawn as nothing.
    """

    def __init__(self, views: Sequence[View | None]) -> None:
        self.places = np.array([at for at, view in enumerate(views) if view is not None], np.int64)
        self.numbers = len(views) * _NUMBERS
        given = [view for view in views if view is not None]
        self.scale = _pairs([view.scale for view in given])
        self.log_ratio = np.log(_pairs([view.ratio for view in given]))
        self.ratio = _pairs([view.ratio for view in given])
        self.sigma = _pairs([view.blur_sigma for view in given])
        self.strengths = np.array(
            [[getattr(view, name) for name in KINDS] for view in given], np.float64
        ).reshape(-1, len(KINDS))
        self.all_strong = bool((self.strengths > 0).all())
        self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p, self.solarize_p = (
            np.array([getattr(view, name) for view in given], np.float64)
            for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p", "solarize_p")
        )
        self.blank = np.zeros((len(given), len(COLUMNS)), np.float32)
        self.blank[:, _AT["size"]] = [view.size for view in given]
        self.blank[:, _AT["bilinear"]] = [view.interpolation == "bilinear" for view in given]
        self.blank[:, _AT["blur_radius"]] = [view.blur_radius or 0 for view in given]
        self.blank[:, _FIRST_KIND::2] = -1
        # As the struct View of draw.c.
        columns = [
            *(self.scale, self.log_ratio, self.ratio, self.sigma, self.strengths),
            *(self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p, self.solarize_p),
            *(self.blank[:, _AT[name]] for name in ("size", "bilinear", "blur_radius")),
            self.places,
        ]
        self.flat = torch.from_numpy(np.column_stack(columns).astype(np.float64))


def draw_rows(
    table: ViewTable, *, height: int, width: int, seeds: Tensor, strength: Tensor | None = None
) -> Tensor:
    """Draw the parameters of every view of some images of one size.

    The numbers behind them are a function of the seed of the image and the place of the view alone:
    a view is the same whatever other images and views are drawn, and whatever their luck.

    Args:
        table: The views to make.
        height: Height of the images in pixels, at least 1.
        width: Width of the images in pixels, at least 1.
        seeds: Int64 of shape (n,) on the CPU, from 0.
        strength: Float64 of shape (n,), at least 0: how many times as strong as described the changes
            of colour are, as in ``MultiCropTransform.__call__``; 1 for all if None.

    Returns:
        Float32 of shape (n, views, 19), columns as ``COLUMNS`` says.

    Source:
        The crop: ``RandomResizedCrop.get_params`` of torchvision,
        https://github.com/pytorch/vision/blob/main/torchvision/transforms/transforms.py.
    """
    shape = (len(seeds), *table.blank.shape)
    rows = torch.empty(shape, dtype=torch.float32, device="cpu")
    if kernel.runs():
        kernel.draw(table.flat, rows, seeds, height, width, strength)
    else:
        by = None if strength is None else strength.numpy()
        _draw(rows.numpy(), table, height, width, seeds.numpy(), by)
    return rows


def _draw(
    rows: "_Rows",
    table: ViewTable,
    height: int,
    width: int,
    seeds: "_Ints",
    strength: "_Floats | None",
) -> None:
    n, count = len(seeds), len(table.places)
    drawn = uniforms_of(seeds, table.numbers).reshape(n, table.numbers // _NUMBERS, _NUMBERS)
    if count * _NUMBERS != table.numbers:
        # In order, so that boxes are too, and can be written to through another shape.
        drawn = np.ascontiguousarray(drawn[:, table.places])
    rows[:] = table.blank
    rows[..., :4] = _boxes(table, drawn, height, width)
    jitter_p, gray_p, blur_p, solar_p = (
        table.jitter_p,
        table.grayscale_p,
        table.blur_p,
        table.solarize_p,
    )
    strengths: _Floats = table.strengths
    if strength is not None:
        # Chances above one are as good as one.
        by = strength[:, None]
        jitter_p, gray_p, blur_p, solar_p = (p * by for p in (jitter_p, gray_p, blur_p, solar_p))
        strengths = strengths * by[..., None]
    rows[..., _AT["flipped"]] = drawn[..., _FLIP] < table.flip_p
    rows[..., _AT["grayscale"]] = drawn[..., _GRAY] < gray_p
    rows[..., _AT["solarized"]] = drawn[..., _SOLAR] < solar_p
    sigma = _between(table.sigma, drawn[..., _SIGMA])
    rows[..., _AT["blur_sigma"]] = sigma * (drawn[..., _BLUR] < blur_p)
    _put_jitter(rows, table, drawn, strengths, drawn[..., _JITTER] < jitter_p)


def _put_jitter(
    rows: "_Rows",
    table: ViewTable,
    drawn: "_Floats",
    strengths: "_Floats",
    jittered: "np.ndarray[Any, np.dtype[np.bool_]]",
) -> None:
    # A factor never turns negative, and a hue never more than half around.
    low, high = 1 - strengths, 1 + strengths
    low[..., 3], high[..., 3] = -strengths[..., 3], strengths[..., 3]
    np.maximum(low, _LEAST, out=low)
    np.minimum(high, _MOST, out=high)
    factors = low + (high - low) * drawn[..., _FACTORS : _FACTORS + len(KINDS)]
    kinds = _ORDERS[(drawn[..., _ORDER] * len(_ORDERS)).astype(np.int64)]
    factors = np.take_along_axis(factors, kinds, axis=-1)
    done = jittered[..., None]
    if not table.all_strong:
        strong = np.broadcast_to(table.strengths > 0, kinds.shape)
        strong = np.take_along_axis(strong, kinds, axis=-1)
        # What is left out goes to the end, the others keep their order.
        order = np.argsort(~strong, axis=-1, kind="stable")
        kinds, factors, strong = (
            np.take_along_axis(values, order, axis=-1) for values in (kinds, factors, strong)
        )
        done = done & strong
    rows[..., _FIRST_KIND::2] = np.where(done, kinds, -1)
    rows[..., _FIRST_KIND + 1 :: 2] = np.where(done, factors, 0)


_LEAST = np.array([0.0, 0.0, 0.0, -0.5])
_MOST = np.array([np.inf, np.inf, np.inf, 0.5])


def _boxes(table: ViewTable, drawn: "_Floats", height: int, width: int) -> "_Floats":
    shape = drawn.shape[:2]
    boxes, fits = _tried(table.scale, table.log_ratio, drawn, height, width)
    open_ = np.flatnonzero(~fits)  # of all views of all images, in a row
    views = open_ % max(shape[1], 1)
    flat, numbers = boxes.reshape(-1, 4), drawn.reshape(-1, _NUMBERS)
    for first in range(_NUMBERS_PER_TRY, _FIRST_OTHER, _NUMBERS_PER_TRY):
        if not len(open_):
            break
        tried = numbers[open_, first : first + _NUMBERS_PER_TRY]
        found, fits = _tried(table.scale[views], table.log_ratio[views], tried, height, width)
        flat[open_[fits]] = found[fits]
        open_, views = open_[~fits], views[~fits]
    if len(open_):
        flat[open_] = _middle(table.ratio[views], height, width)
    return boxes


def _tried(
    scale: "_Floats", log_ratio: "_Floats", numbers: "_Floats", height: int, width: int
) -> "tuple[_Floats, np.ndarray[Any, np.dtype[np.bool_]]]":
    """The boxes of the first try in ``numbers``, and whether they fit."""
    target = height * width * _between(scale, numbers[..., 0])
    ratio = _exponential(_between(log_ratio, numbers[..., 1]))
    box_width = np.rint(np.sqrt(target * ratio))
    box_height = np.rint(np.sqrt(target / ratio))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    top = np.floor(numbers[..., 2] * (height - box_height + 1))
    left = np.floor(numbers[..., 3] * (width - box_width + 1))
    return np.stack([left, top, left + box_width, top + box_height], axis=-1), fits


def _exponential(x: "_Floats") -> "_Floats":
    """In plain steps, which are the same everywhere; libraries differ in the last digits."""
    twos = np.rint(x * 1.4426950408889634)
    rest = x - twos * 0.6931471805599453
    total = np.ones_like(x)
    for k in range(14, 0, -1):
        total = 1.0 + total * rest / k
    return np.ldexp(total, twos.astype(np.int64))


def _middle(ratio: "_Floats", height: int, width: int) -> "_Floats":
    """No box fits: the image is long, or only a few pixels.

    Its middle, as near to the wanted shapes as it goes. At least a pixel, which torchvision forgets
    for shapes that are all wide.
    """
    shape = width / height
    too_high, too_wide = shape < ratio[:, 0], shape > ratio[:, 1]
    box_height = np.where(too_high, np.maximum(1, np.rint(width / ratio[:, 0])), height)
    box_width = np.where(too_wide, np.maximum(1, np.rint(height * ratio[:, 1])), width)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return np.stack([left, top, left + box_width, top + box_height], axis=-1)


def _between(span: "_Floats", share: "_Floats") -> "_Floats":
    low: _Floats = span[..., 0] + (span[..., 1] - span[..., 0]) * share
    return low


def _pairs(pairs: Sequence[tuple[float, float]]) -> "_Floats":
    return np.array(pairs, np.float64).reshape(-1, 2)
