"""Makes a view out of an image and the parameters that were drawn for it.

Nothing here is random. Colours are float32 in [0, 1], in planes of shape (3, height, width), and
every change equals the one that torchvision makes on floats; it is made in place where that is
faster, since the planes are this module's own.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raremix.views.rows import ViewParameters

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "recolour",
    "resized_crop",
    "solarize",
    "to_grayscale",
]

# ITU-R 601, in the digits that torchvision uses.
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
# Red, green and blue lie 5/6, 3/6 and 1/6 of a turn along the wave of `adjust_hue`.
_CHANNEL_TURNS = (5 / 6, 3 / 6, 1 / 6)


def recolour(small: Tensor, parameters: ViewParameters) -> Tensor:
    """Recolour a crop that is resized, and mirrored where that was drawn.

    Args:
        small: Uint8 of shape (1 or 3, height, width); never written to.
        parameters: What was drawn.

    Returns:
        Float32 of shape (3, height, width), in [0, 1], new and contiguous.
    """
    planes = small.contiguous().to(torch.float32).div_(255)
    # Gray becomes colour as late as here, so that one channel was resized and not three.
    view = planes.expand(3, -1, -1).contiguous()  # Copies one channel only.
    for name, factor in parameters.jitter:
        view = _JITTER[name](view, factor)
    if parameters.grayscale:
        view = to_grayscale(view)
    if parameters.blur_sigma > 0:
        view = gaussian_blur(view, parameters.blur_sigma, parameters.blur_radius)
    return solarize(view) if parameters.solarized else view


def resized_crop(image: Tensor, parameters: ViewParameters) -> Tensor:
    """Cut a box out of an image, resize it, antialiased, and mirror it.

    In floats, rounded at the end: torch's way with bytes is faster, but clips to a byte between its
    passes, which moves pixels beside sharp edges by up to ten levels.

    Args:
        image: Uint8 of shape (channels, height, width).
        parameters: What was drawn.

    Returns:
        Uint8 of shape (channels, size, size).
    """
    left, top, right, bottom = parameters.box
    crop = image[None, :, top:bottom, left:right].to(torch.float32)
    mode = "bilinear" if parameters.bilinear else "bicubic"
    size = (parameters.size, parameters.size)
    small = F.interpolate(crop, size=size, mode=mode, align_corners=False, antialias=True)[0]
    small = small.round_().clamp_(0, 255).to(torch.uint8)
    return small.flip(-1) if parameters.flipped else small


def adjust_brightness(view: Tensor, factor: float) -> Tensor:
    """Multiply by ``factor``, in place; 1 changes nothing."""
    return view.mul_(factor).clamp_(max=1)


def adjust_contrast(view: Tensor, factor: float) -> Tensor:
    """Move every value away from the mean gray by ``factor``, in place; 1 changes nothing."""
    # Rows first: the order of a sum over everything at once depends on the number of threads.
    mean = _gray(view).mean(dim=-1).mean()
    return view.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def adjust_saturation(view: Tensor, factor: float) -> Tensor:
    """Move every value away from its pixel's gray by ``factor``, in place; 1 changes nothing."""
    gray = _gray(view)  # Before the values change.
    return view.mul_(factor).add_(gray, alpha=1 - factor).clamp_(0, 1)


def adjust_hue(view: Tensor, turn: float) -> Tensor:
    """Turn the hue by ``turn`` turns of the HSV circle, in [-0.5, 0.5]; 0 changes nothing.

    The greatest and least channel of a pixel stay what they are, so two closed forms do without
    the six cases of HSV, which are slow to choose from. With every channel as its share s of the
    way from least to greatest, the hue is +-(1 + s_green + s_blue - s_red) sixths of a turn, with
    the sign of green - blue. The way back is one wave for all channels, read a third of a turn
    apart: greatest - chroma * clamp(2 - |k - 2|, 0, 1), with k in sixths of a turn.

    Source:
        The way back: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative.
    """
    red, green, blue = view.unbind(0)
    greatest = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = greatest - least
    hue = (green + blue).sub_(red).sub_(least)
    # Where there is no chroma there is no hue, and any finite one will do.
    hue.div_(chroma.clamp(min=1e-12)).add_(1).div_(6).copysign_(green - blue)
    # A turn more keeps the sum above zero, where frac is the remainder.
    wave = torch.stack([hue + (channel + turn + 1) for channel in _CHANNEL_TURNS]).frac_()
    wave.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(greatest, chroma, wave, value=-1)


def to_grayscale(view: Tensor) -> Tensor:
    """Replace the three channels by their weighted sum."""
    return _gray(view).expand(3, -1, -1).contiguous()


def gaussian_blur(view: Tensor, sigma: float, reach: int = 0) -> Tensor:
    """Blur (channels, height, width) with a Gaussian of ``sigma`` pixels, mirrored at the edges.

    The kernel reaches ``reach`` pixels to each side, three sigma if that is 0, and never farther than
    the mirror does: to the size less one.
    """
    reach = reach or math.ceil(3 * sigma)
    return _blur_along(_blur_along(view, sigma, reach, dim=2), sigma, reach, dim=1)


def solarize(view: Tensor) -> Tensor:
    """Invert the values of 128 and more, of 255: on floats, those above the middle.

    PIL, which rounds to 8 bits first, draws the line between 127 and 128 as well.
    """
    # Equal to `where(view >= 0.5, 1 - view, view)`, and several times faster.
    return torch.minimum(view, 1 - view)


def _gray(view: Tensor) -> Tensor:
    red, green, blue = view.unbind(0)
    weighted = red * _GRAY_WEIGHTS[0]
    return weighted.add_(green, alpha=_GRAY_WEIGHTS[1]).add_(blue, alpha=_GRAY_WEIGHTS[2])


def _blur_along(view: Tensor, sigma: float, reach: int, *, dim: int) -> Tensor:
    length = view.shape[dim]
    radius = min(reach, length - 1)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    padding = (radius, radius, 0, 0) if dim == 2 else (0, 0, radius, radius)
    padded = F.pad(view, padding, mode="reflect")
    blurred = padded.narrow(dim, radius, length) * (weights[0] / total)
    # Shifted sums: for one image, faster than a convolution by several times.
    for step in range(1, radius + 1):
        weight = weights[step] / total
        blurred.add_(padded.narrow(dim, radius - step, length), alpha=weight)
        blurred.add_(padded.narrow(dim, radius + step, length), alpha=weight)
    return blurred


_JITTER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
