"""Tests of what is taken for an image."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from raremix.errors import ImageInputError
from raremix.views.images import as_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PLANES = torch.from_numpy(PIXELS).permute(2, 0, 1)
RGB = Image.fromarray(PIXELS)


def _mode(mode: str) -> Image.Image:
    if mode == "PA":
        return RGB.convert("P").convert("PA")
    if mode in ("La", "RGBa"):
        return RGB.convert(mode.upper()).convert(mode)
    return RGB.convert(mode)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_pil_becomes_what_pil_makes_of_it(mode: str) -> None:
    image = _mode(mode)
    through = image
    if mode in ("La", "RGBa", "PA"):
        through = image.convert({"La": "LA"}.get(mode, "RGBA"))
    expected = np.asarray(through.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_image(image, caller="f")
    assert tensor.dtype == torch.uint8
    shown = tensor[0] if tensor.shape[0] == 1 else tensor.permute(1, 2, 0)
    assert np.array_equal(shown.numpy(), expected)


def test_alpha_is_dropped_and_not_blended() -> None:
    image = RGB.copy()
    image.putalpha(0)
    assert torch.equal(as_image(image, caller="f"), PLANES)


def test_a_palette_with_transparent_bytes_is_looked_up_without_a_warning() -> None:
    image = RGB.convert("P")
    image.info["transparency"] = bytes([0] * 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_image(image, caller="f")
    expected = np.asarray(RGB.convert("P").convert("RGB"))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused_with_a_way_to_scale_them(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    with pytest.raises(ImageInputError, match=f"f expects 8 bits per channel.*mode '{mode}'.*255"):
        as_image(image, caller="f")


def test_a_mode_without_a_way_to_rgb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from {image.mode} to {mode} not supported")

    # Which modes PIL can convert depends on its version.
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ImageInputError, match=r"mode 'LAB', which PIL cannot .* from LAB to RGB"):
        as_image(Image.new("LAB", (4, 4)), caller="f")


@pytest.mark.parametrize(
    "image",
    [
        PLANES,
        PLANES.contiguous(),
        tv_tensors.Image(PLANES),
        PIXELS,
        np.asfortranarray(PIXELS),
        np.ascontiguousarray(PIXELS.transpose(2, 0, 1)).transpose(1, 2, 0),
        np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],
        RGB,
    ],
    ids=["channels-last", "planes", "tv_tensor", "array", "fortran", "turned", "mirrored", "pil"],
)
def test_every_holder_of_the_same_pixels_gives_the_same_tensor(image: Any) -> None:
    tensor = as_image(image, caller="f")
    assert type(tensor) is Tensor
    assert torch.equal(tensor, PLANES)
    assert tensor.stride(2) == 1 or (tensor.stride(2), tensor.stride(0)) == (3, 1)


@pytest.mark.parametrize("image", [PIXELS[..., 0], PIXELS[..., :1], PLANES[:1]])
def test_gray_images_keep_their_one_channel(image: Any) -> None:
    assert torch.equal(as_image(image, caller="f"), PLANES[:1])


def test_read_only_arrays_are_shared_without_a_warning_and_outlive_their_name() -> None:
    array = PIXELS.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_image(array, caller="f")
    assert tensor.data_ptr() == array.ctypes.data
    del array
    assert torch.equal(tensor, PLANES)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.jpg", "f expects an image as a PIL image.*got str; open files with PIL.Image.open"),
        (None, "got NoneType"),
        (
            PLANES.float() / 255,
            r"got torch.float32; leave out ToTensor, or scale to 0..255 and call .round\(\)",
        ),
        (PLANES.long(), r"got torch.int64; call .to\(torch.uint8\)"),
        (PLANES[0], r"got \(5, 7\); add the channel with .unsqueeze\(0\)"),
        (PLANES[None], r"got \(1, 3, 5, 7\); pass one image at a time"),
        (torch.from_numpy(PIXELS), r"got \(5, 7, 3\); move the channels first with .permute"),
        (PLANES.to("meta"), r"got one on meta; call .cpu\(\)"),
        (PIXELS.astype(np.float64), r"expects a uint8 array, got float64; scale it"),
        (PIXELS.transpose(2, 0, 1), r"got \(3, 5, 7\); move the channels last with .transpose"),
        (np.zeros((4, 4, 4), np.uint8), r"drop an alpha channel with \[:, :, :3\]"),
        (np.zeros((0, 4, 3), np.uint8), "f got an image of 4 x 0 pixels"),
        (torch.zeros(1, 3, 0, dtype=torch.uint8), "f got an image of 0 x 3 pixels"),
        (Image.new("RGB", (0, 2)), "f got an image of 0 x 2 pixels"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(image: Any, message: str) -> None:
    with pytest.raises(ImageInputError) as caught:
        as_image(image, caller="f")
    assert re.search(message, str(caught.value))


def test_a_side_that_rows_cannot_hold_is_refused() -> None:
    strip = torch.zeros(1, 1, 2**24 + 1, dtype=torch.uint8)
    with pytest.raises(ImageInputError, match=r"at most 16777216 pixels a side, got 16777217 x 1"):
        as_image(strip, caller="f")
