"""What one view may look like: its size, and how often and how far each change is made.

It knows no image and draws nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from raremix.options import check_choice, check_count, check_number, check_range

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """One kind of view: a random crop, resized to a square, with random changes of its colours.

    The changes happen in the order of the fields below. The defaults are what all views of DINO
    share; what sets its views apart (size, scale, blur, solarize) is given by hand. To alter a
    view, use ``dataclasses.replace(view, flip_p=0.0)``.

    Attributes:
        size: Side of the view in pixels, at least 1.
        scale: Least and greatest area of the crop, as a part of the image's area, in (0, 1].
        ratio: Least and greatest width over height of the crop, above 0.
        interpolation: How the crop is resized, "bicubic" or "bilinear"; both antialiased.
        flip_p: How often the view is mirrored left to right; this and every ``_p`` is in [0, 1].
        jitter_p: How often the four colour changes are made, in a random order.
        brightness: Farthest distance of the brightness factor from 1; at least 0.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Farthest turn of the hue circle, in turns, in [0, 0.5].
        grayscale_p: How often the colours are taken away.
        blur_p: How often a Gaussian blur is laid over.
        blur_sigma: Least and greatest standard deviation of the blur, in pixels of the view,
            above 0.
        blur_radius: Reach of the blur to each side in pixels, at least 1; three standard deviations
            if None.
        solarize_p: How often values of 128 and more, of 255, are inverted.

    Raises:
        OptionError: If an option lies outside its range.

    Source:
        The changes and their order: Caron et al., Emerging Properties in Self-Supervised Vision
        Transformers, ICCV 2021, https://arxiv.org/abs/2104.14294, class ``DataAugmentationDINO``
        in https://github.com/facebookresearch/dino/blob/main/main_dino.py.

    Example:
        >>> View(size=96, scale=(0.05, 0.4), blur_p=0.5).flip_p
        0.5
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = field(default="bicubic", kw_only=True)
    flip_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_radius: int | None = field(default=None, kw_only=True)
    solarize_p: float = 0.0

    def __post_init__(self) -> None:
        check_count("View", "size", self.size, least=1)
        check_choice("View", "interpolation", self.interpolation, ("bicubic", "bilinear"))
        if self.blur_radius is not None:
            check_count("View", "blur_radius", self.blur_radius, least=1)
        for name, above, most in (
            ("scale", 0.0, 1.0),
            ("ratio", 0.0, math.inf),
            ("blur_sigma", 0.0, math.inf),
        ):
            pair = check_range("View", name, getattr(self, name), above=above, most=most)
            # A list would make the view unhashable, and open to change from outside.
            object.__setattr__(self, name, pair)
        for name, most in (
            ("flip_p", 1.0),
            ("jitter_p", 1.0),
            ("brightness", math.inf),
            ("contrast", math.inf),
            ("saturation", math.inf),
            ("hue", 0.5),
            ("grayscale_p", 1.0),
            ("blur_p", 1.0),
            ("solarize_p", 1.0),
        ):
            value = getattr(self, name)
            check_number("View", name, value, least=0.0, most=most)
