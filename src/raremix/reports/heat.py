"""Colours a heat map over a picture, so that one sees where in a frame the rarity is.

The colours grow brighter from one end to the other, so that they are told apart without seeing hues
and in print. It knows no scores.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HEAT_COLOURS", "heat_over"]

HEAT_COLOURS = (
    *("#000004", "#210c4a", "#56106e", "#89226a", "#bb3754"),
    *("#e35932", "#f98c0a", "#f9c932", "#fcffa4"),
)
"""From the lowest to the highest, evenly spaced; after "inferno" of N. Smith and S. van der Walt
(CC0), https://bids.github.io/colormap."""

_SCENE = 0.38  # of the brightness of the picture, so that it stays darker than what is hot


def heat_over(
    image: "Image.Image", heat: npt.NDArray[Any], *, cell: float, low: float, high: float
) -> "Image.Image":
    """Lay a heat map over a picture that is grey and dimmed below it.

    Args:
        image: RGB.
        heat: (rows, columns) floats; NaN where there is none, which leaves the picture bare.
        cell: Side of a cell in pixels of the picture; cells may reach beyond its right and lower
            edge.
        low: This and less leaves the picture as it is below.
        high: This and more gets the brightest colour.

    Returns:
        RGB, of the size of ``image``.
    """
    from PIL import Image

    share = np.clip((heat.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    share = np.nan_to_num(share, nan=0.0)
    cells = Image.fromarray(share.astype(np.float32))
    # A picture that was scaled down is a whole number of pixels high, so a hair may be missing.
    right, bottom = (
        min(side / cell, whole) for side, whole in zip(image.size, cells.size, strict=True)
    )
    smooth = cells.resize(image.size, Image.Resampling.BILINEAR, box=(0, 0, right, bottom))
    hot = np.asarray(smooth)[:, :, None]
    steps = np.array([[int(c[n : n + 2], 16) for n in (1, 3, 5)] for c in HEAT_COLOURS])
    at = np.linspace(0, 1, len(steps))
    colour = np.stack([np.interp(hot[:, :, 0], at, column) for column in steps.T], axis=2)
    grey = _SCENE * np.asarray(image.convert("L"), dtype=np.float64)[:, :, None]
    # The hotter, the less is seen of the picture below.
    weight = np.sqrt(hot) * 0.85
    mixed = (1 - weight) * grey + weight * colour
    return Image.fromarray(mixed.round().astype(np.uint8))
