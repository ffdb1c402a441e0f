"""Tests of the changes to pixels, against torchvision's and PIL's on the same parameters."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from raremix.views import ViewParameters
from raremix.views import pixels as ours

FULL = (0, 0, 60, 44)


def _bytes(height: int = 44, width: int = 60, seed: int = 0) -> Tensor:
    """Random bytes, with gray, black, white and ties of two channels among them."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    image[:, :4] = image[:1, :4]
    image[:, 4:6] = 0
    image[:, 6:8] = 255
    image[1, 8:14] = image[0, 8:14]
    image[2, 14:20] = image[1, 14:20]
    image[0, 20:26] = image[2, 20:26]
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _floats() -> Tensor:
    return _bytes().contiguous().float() / 255


def _view(image: Tensor, parameters: ViewParameters) -> Tensor:
    return ours.recolour(ours.resized_crop(image, parameters), parameters)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_work_as_in_torchvision(name: str, factor: float) -> None:
    change: Callable[[Tensor, float], Tensor] = getattr(ours, f"adjust_{name}")
    expected = getattr(oracle, f"adjust_{name}")(_floats(), factor)
    torch.testing.assert_close(change(_floats(), factor), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.03, 0.0, 0.1, 0.25, 0.5])
def test_hue_turns_as_in_torchvision(turn: float) -> None:
    expected = oracle.adjust_hue(_floats(), turn)
    torch.testing.assert_close(ours.adjust_hue(_floats(), turn), expected, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=100)
@given(
    color=st.tuples(*[st.integers(0, 255).map(lambda value: value / 255)] * 3),
    turn=st.floats(-0.5, 0.5),
)
def test_hue_turns_as_in_the_standard_library(
    color: tuple[float, float, float], turn: float
) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    turned = ours.adjust_hue(torch.tensor(color).view(3, 1, 1), turn).flatten().tolist()
    assert turned == pytest.approx(expected, abs=1e-5)


def test_gray_pixels_have_no_hue_to_turn() -> None:
    gray = _floats()[:1].expand(3, -1, -1).contiguous()
    assert torch.equal(ours.adjust_hue(gray.clone(), 0.3), gray)


def test_grayscale_equals_that_of_torchvision() -> None:
    expected = oracle.rgb_to_grayscale(_floats(), num_output_channels=3)
    torch.testing.assert_close(ours.to_grayscale(_floats()), expected, rtol=0, atol=1e-6)


def test_solarize_equals_that_of_pil_on_every_byte() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    expected = oracle.solarize(every, 128)
    solarized = ours.solarize(every.float() / 255)
    assert torch.equal((solarized * 255).round().to(torch.uint8), expected)
    torch.testing.assert_close(
        ours.solarize(_floats()), oracle.solarize(_floats(), 128 / 255), rtol=0, atol=0
    )


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.6, 2.0, 3.3])
def test_blur_equals_that_of_torchvision_with_a_wide_kernel(sigma: float) -> None:
    expected = oracle.gaussian_blur(_floats(), [41, 41], [sigma, sigma])
    # The kernel ends at 3 sigma: less than one of 255 levels, on noise.
    torch.testing.assert_close(
        ours.gaussian_blur(_floats(), sigma), expected, rtol=0, atol=0.7 / 255
    )


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_of_a_given_reach_equals_that_of_torchvision(sigma: float) -> None:
    expected = oracle.gaussian_blur(_floats(), [9, 9], [sigma, sigma])
    torch.testing.assert_close(ours.gaussian_blur(_floats(), sigma, 4), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blur_of_a_few_pixels_keeps_a_flat_image_flat(size: int) -> None:
    flat = torch.full((3, size, size), 0.3)
    torch.testing.assert_close(ours.gaussian_blur(flat, 2.0), flat)


@pytest.mark.parametrize(
    "box", [FULL, (3, 5, 50, 40), (10, 10, 18, 16), (8, 9, 10, 11), (59, 43, 60, 44)]
)
@pytest.mark.parametrize("size", [1, 8, 32, 96])
def test_crops_are_resized_as_pil_resizes_them(box: tuple[int, int, int, int], size: int) -> None:
    image = _bytes()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = np.asarray(picture.crop(box).resize((size, size), Image.Resampling.BICUBIC))
    resized = ours.resized_crop(image, ViewParameters(box, size)).permute(1, 2, 0).numpy()
    difference = np.abs(resized.astype(int) - expected.astype(int))
    # PIL rounds and clips to bytes between its two passes, which shows beside the hardest edges.
    assert difference.mean() < 0.8
    assert (difference > 2).mean() < 0.08


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [1, 8, 32, 96])
def test_crops_are_resized_as_torchvision_resizes_floats(size: int, mode: str) -> None:
    box = (3, 5, 50, 40)
    expected = oracle.resized_crop(
        _bytes().float(), 5, 3, 35, 47, [size, size], InterpolationMode(mode), antialias=True
    )
    parameters = ViewParameters(box, size, bilinear=mode == "bilinear")
    assert torch.equal(
        ours.resized_crop(_bytes(), parameters), expected.round().clamp(0, 255).to(torch.uint8)
    )


def test_crops_do_not_depend_on_how_the_image_lies_in_memory() -> None:
    parameters = ViewParameters((3, 5, 50, 40), 16)
    planes = ours.resized_crop(_bytes().contiguous(), parameters)
    assert torch.equal(ours.resized_crop(_bytes(), parameters), planes)


def test_a_view_without_changes_is_the_resized_crop() -> None:
    view = _view(_bytes(), ViewParameters(FULL, 16))
    assert torch.equal(view, ours.resized_crop(_bytes(), ViewParameters(FULL, 16)) / 255)


def test_changes_are_made_in_the_order_of_dino() -> None:
    parameters = ViewParameters(
        box=(3, 5, 50, 40),
        size=24,
        flipped=True,
        jitter=(("hue", 0.07), ("contrast", 1.3), ("brightness", 0.8), ("saturation", 1.1)),
        grayscale=True,
        blur_sigma=0.8,
        solarized=True,
    )
    expected = oracle.hflip(ours.resized_crop(_bytes(), ViewParameters(parameters.box, 24)))
    expected = expected.float() / 255
    expected = oracle.adjust_contrast(oracle.adjust_hue(expected, 0.07), 1.3)
    expected = oracle.adjust_saturation(oracle.adjust_brightness(expected, 0.8), 1.1)
    expected = oracle.rgb_to_grayscale(expected, num_output_channels=3)
    expected = oracle.solarize(oracle.gaussian_blur(expected, [23, 23], [0.8, 0.8]), 0.5)
    view = _view(_bytes(), parameters)
    torch.testing.assert_close(view, expected, rtol=0, atol=1 / 255)


def test_a_view_leaves_its_image_as_it_was_and_shares_no_memory_with_it() -> None:
    image = _bytes(16, 16)
    kept = image.clone()
    parameters = ViewParameters((0, 0, 16, 16), 16, jitter=(("brightness", 0.5),), solarized=True)
    _view(image, parameters).fill_(0)
    assert torch.equal(image, kept)
