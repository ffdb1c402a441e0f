"""Prepares an image for an encoder at evaluation: shorter side, centre crop, normalised.

Nothing in it is random; the augmenting views live elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raremix.errors import ImageInputError, OptionError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EvalTransform", "eval_transform"]

# Of RGB in [0, 1] over ImageNet's training images; what nearly every public encoder was fed.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EvalTransform:
    """What ``eval_transform`` returns: callable, picklable, the same in every worker."""

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Any) -> Tensor:
        """Turn one image into float32 of shape (3, size, size).

        Args:
            image: PIL image of any mode, or uint8 tensor of shape (3, height, width) or
                (1, height, width).

        Raises:
            ImageInputError: If it is neither.
        """
        pixels = _as_pixels(image)
        height, width = pixels.shape[-2:]
        short = min(height, width)
        new = (
            max(int(self.resize * height / short), self.size),
            max(int(self.resize * width / short), self.size),
        )
        if new != (height, width):
            pixels = _resized(pixels, new)
        top, left = (round((side - self.size) / 2) for side in new)
        cropped = pixels[:, top : top + self.size, left : left + self.size].float().div(255)
        mean = torch.tensor(self.mean, device=cropped.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=cropped.device).view(-1, 1, 1)
        return ((cropped - mean) / std).contiguous()


def eval_transform(
    size: int = 224,
    resize: int = 256,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EvalTransform:
    """Make the usual preprocessing for an encoder that is evaluated, not trained.

    The shorter side is scaled to ``resize`` (bicubic, antialiased), the centre square of ``size``
    is cut out, values are scaled to [0, 1] and normalised.

    Args:
        size: Side of the square, in pixels.
        resize: Length of the shorter side before the cut, at least ``size``.
        mean: One per channel, of values in [0, 1]; ImageNet's by default.
        std: One per channel, positive.

    Returns:
        A callable from PIL image or uint8 tensor to float32 of shape (3, size, size).

    Raises:
        OptionError: If a number lies outside its range.

    Example:
        >>> import torch
        >>> image = torch.full((3, 300, 400), 255, dtype=torch.uint8)
        >>> eval_transform(mean=(0, 0, 0), std=(1, 1, 1))(image).shape
        torch.Size([3, 224, 224])
    """
    if not 1 <= size <= resize:
        raise OptionError(
            f"eval_transform expects 1 <= size <= resize, got size={size} and resize={resize}."
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise OptionError(
            "eval_transform expects three means and three positive standard deviations, got "
            f"mean={tuple(mean)} and std={tuple(std)}."
        )
    return EvalTransform(size, resize, tuple(map(float, mean)), tuple(map(float, std)))


def _as_pixels(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ImageInputError(
                "eval_transform expects a uint8 tensor of shape (3, height, width) or a PIL image, "
                f"got {image.dtype} of shape {tuple(image.shape)}."
            )
        return image.expand(3, -1, -1)
    if not hasattr(image, "convert"):
        raise ImageInputError(
            "eval_transform expects a uint8 tensor of shape (3, height, width) or a PIL image, got "
            f"{type(image).__name__}."
        )
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    # Channels-last strides: the fast path of uint8 interpolation.
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    # Torch's integer kernel stops with an internal error at an output of one pixel.
    if pixels.device.type == "cpu" and size != (1, 1):
        return F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]
    # Accelerators resize floats only; rounding gives what the CPU gives, to one grey level.
    scaled = F.interpolate(pixels[None].float(), size=size, mode="bicubic", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)
