"""Heat maps over pictures: bright where it is hot, in the right place, told apart without hues."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from raremix.reports.heat import HEAT_COLOURS, heat_over


def luminance(pixels: Any) -> Any:
    return pixels.astype(float) @ np.array([0.2126, 0.7152, 0.0722])


def over(heat: Any, size: tuple[int, int] = (64, 48), cell: float = 8, grey: int = 255) -> Any:
    image = Image.fromarray(np.full((size[1], size[0], 3), grey, dtype=np.uint8))
    return np.asarray(heat_over(image, np.asarray(heat), cell=cell, low=0.0, high=2.0))


def test_the_colours_grow_brighter_all_the_way() -> None:
    steps = np.array([[int(c[n : n + 2], 16) for n in (1, 3, 5)] for c in HEAT_COLOURS])
    assert (np.diff(luminance(steps)) > 0).all()


def test_what_is_hot_is_brighter_than_the_brightest_scene_that_is_not() -> None:
    heat = np.zeros((6, 8))
    heat[2, 5] = 2.0
    bright = luminance(over(heat))
    assert np.unravel_index(bright.argmax(), bright.shape)[0] // 8 == 2
    assert np.unravel_index(bright.argmax(), bright.shape)[1] // 8 == 5
    assert bright.max() > 1.8 * bright[0, 0]


def test_usual_and_unknown_parts_show_the_scene_in_grey() -> None:
    heat = np.full((6, 8), -1.0)
    heat[:, :4] = np.nan
    pixels = over(heat, grey=200)
    assert (pixels == pixels[0, 0, 0]).all()
    assert 0 < pixels[0, 0, 0] < 100


def test_cells_that_reach_beyond_the_picture_are_cut_not_squeezed() -> None:
    heat = np.zeros((2, 2))
    heat[1, 1] = 2.0  # of a picture of 10 x 10 pixels, and cells of 8
    pixels = luminance(over(heat, size=(10, 10), grey=0))
    assert pixels[:4, :4].max() == 0
    assert pixels[9, 9] == pixels.max() > 0


@pytest.mark.parametrize("size", [(331, 217), (64, 48), (1, 1)])
def test_the_size_of_the_picture_stays(size: tuple[int, int]) -> None:
    cell = size[0] / 8
    heat = np.ones((int(np.ceil(size[1] / cell)), 8))
    assert over(heat, size=size, cell=cell).shape == (size[1], size[0], 3)
