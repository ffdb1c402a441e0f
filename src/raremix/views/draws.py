"""Draws what is to be done to make each view, from a generator and the size of the image.

It sees no pixels: what is drawn here can be applied later, elsewhere, by ``raremix.views.pixels``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch

from raremix.errors import OptionError
from raremix.views.view import View

__all__ = ["Box", "ViewParameters", "draw_parameters"]

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in source pixels, right and bottom exclusive."""

# As in torchvision's RandomResizedCrop, which gives up on a fitting box after ten tries.
_TRIES = 10
_NUMBERS_PER_TRY = 4
_OTHER_NUMBERS = 11
_ORDERS = tuple(permutations(("brightness", "contrast", "saturation", "hue")))


@dataclass(frozen=True)
class ViewParameters:
    """All that was drawn for one view: with the image, it determines every pixel.

    Attributes:
        box: Left, top, right and bottom edge of the crop in source pixels, whole numbers, right
            and bottom exclusive.
        size: Side of the view in pixels.
        flipped: Whether the view is mirrored left to right, after the crop.
        jitter: The colour changes in the order they are made, each with its factor (brightness,
            contrast, saturation: 1 changes nothing) or its turn (hue, in turns, 0 changes
            nothing); empty where none are made.
        grayscale: Whether the colours are taken away.
        blur_sigma: Standard deviation of the blur in pixels of the view; 0 for none.
        solarized: Whether values of 128 and more, of 255, are inverted.
    """

    box: Box
    size: int
    flipped: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float = 0.0
    solarized: bool = False


def draw_parameters(
    views: Sequence[View],
    *,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    caller: str = "draw_parameters",
) -> list[ViewParameters]:
    """Draw the parameters of every view of one image.

    Every image takes the same count of numbers from the generator, whatever they decide. So the
    parameters of the next image do not depend on the size or luck of this one.

    Args:
        views: The views to make, in order.
        height: Height of the image in pixels, at least 1.
        width: Width of the image in pixels, at least 1.
        generator: A generator on the CPU; torch's default one where it is None.
        caller: The call to name in an error.

    Raises:
        OptionError: If the generator is not one of the CPU.

    Source:
        The crop: ``RandomResizedCrop.get_params`` of torchvision,
        https://github.com/pytorch/vision/blob/main/torchvision/transforms/transforms.py.
    """
    if generator is not None and generator.device.type != "cpu":
        raise OptionError(
            f"{caller} expects a generator on the CPU, got one on {generator.device}; make it "
            "with torch.Generator()."
        )
    numbers = torch.rand(
        (len(views), _TRIES * _NUMBERS_PER_TRY + _OTHER_NUMBERS),
        generator=generator,
        dtype=torch.float64,
        device="cpu",  # Whatever torch.set_default_device says.
    )
    return [
        _draw_view(view, row, height=height, width=width)
        for view, row in zip(views, numbers.tolist(), strict=True)
    ]


def _draw_view(view: View, row: list[float], *, height: int, width: int) -> ViewParameters:
    split = _TRIES * _NUMBERS_PER_TRY
    box = _draw_box(view, row[:split], height=height, width=width)
    flip, jittered, brightness, contrast, saturation, hue, order, gray, blur, sigma, solar = row[
        split:
    ]
    jitter: tuple[tuple[str, float], ...] = ()
    if jittered < view.jitter_p:
        factors = {
            "brightness": _between(max(0.0, 1 - view.brightness), 1 + view.brightness, brightness),
            "contrast": _between(max(0.0, 1 - view.contrast), 1 + view.contrast, contrast),
            "saturation": _between(max(0.0, 1 - view.saturation), 1 + view.saturation, saturation),
            "hue": _between(-view.hue, view.hue, hue),
        }
        strengths = {name: getattr(view, name) for name in factors}
        names = _ORDERS[int(order * len(_ORDERS))]
        jitter = tuple((name, factors[name]) for name in names if strengths[name] > 0)
    return ViewParameters(
        box=box,
        size=view.size,
        flipped=flip < view.flip_p,
        jitter=jitter,
        grayscale=gray < view.grayscale_p,
        blur_sigma=_between(*view.blur_sigma, sigma) if blur < view.blur_p else 0.0,
        solarized=solar < view.solarize_p,
    )


def _draw_box(view: View, numbers: list[float], *, height: int, width: int) -> Box:
    log_ratio = math.log(view.ratio[0]), math.log(view.ratio[1])
    for first in range(0, len(numbers), _NUMBERS_PER_TRY):
        area, shape, down, right = numbers[first : first + _NUMBERS_PER_TRY]
        target = height * width * _between(*view.scale, area)
        ratio = math.exp(_between(*log_ratio, shape))
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(down * (height - box_height + 1))
            left = int(right * (width - box_width + 1))
            return left, top, left + box_width, top + box_height
    # No box fits: the image is long, or only a few pixels. Its middle, as near to the wanted shapes
    # as it goes. At least a pixel, which torchvision forgets for shapes that are all wide.
    box_width, box_height = width, height
    if width / height < view.ratio[0]:
        box_height = max(1, round(width / view.ratio[0]))
    elif width / height > view.ratio[1]:
        box_width = max(1, round(height * view.ratio[1]))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return left, top, left + box_width, top + box_height


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
