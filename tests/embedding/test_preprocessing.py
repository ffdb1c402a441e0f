import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raremix.embedding.preprocessing import IMAGENET_MEAN, IMAGENET_STD, eval_transform
from raremix.errors import ImageInputError, OptionError

PLAIN: Any = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def smooth(height: int, width: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (9 + n)) * np.cos(columns / (11 - n)) for n in range(3)]
    return ((np.stack(waves, axis=2) + 1) * 127).astype(np.uint8)


def test_it_agrees_with_pillow_to_one_grey_level() -> None:
    pixels = smooth(300, 420)
    got = eval_transform(64, 80, **PLAIN)(Image.fromarray(pixels)) * 255
    resized = Image.fromarray(pixels).resize((112, 80), Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((24, 8, 88, 72)), dtype=np.float32)
    assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() <= 1.001


def test_values_are_normalised_by_channel() -> None:
    image = torch.full((3, 10, 10), 255, dtype=torch.uint8)
    got = eval_transform(4, 5)(image)
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(got, expected.view(3, 1, 1).expand(3, 4, 4))


def test_an_image_of_the_right_size_is_only_cut() -> None:
    image = torch.from_numpy(smooth(12, 8)).permute(2, 0, 1)
    got = eval_transform(8, 8, **PLAIN)(image)
    torch.testing.assert_close(got, image[:, 2:10].float() / 255)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    more=st.integers(0, 20),
)
def test_every_size_comes_out_square_and_contiguous(
    height: int, width: int, size: int, more: int
) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    got = eval_transform(size, size + more)(image)
    assert got.shape == (3, size, size)
    assert got.dtype == torch.float32
    assert got.is_contiguous()


def test_tensor_and_pil_image_of_the_same_pixels_agree() -> None:
    pixels = smooth(70, 50)
    transform = pickle.loads(pickle.dumps(eval_transform(32, 40)))
    from_pil = transform(Image.fromarray(pixels))
    assert torch.equal(from_pil, transform(torch.from_numpy(pixels).permute(2, 0, 1)))


def test_grey_images_become_three_equal_channels() -> None:
    grey = smooth(40, 40)[..., 0]
    for image in (Image.fromarray(grey), torch.from_numpy(grey)[None]):
        got = eval_transform(16, 20, **PLAIN)(image)
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 4), r"expects a uint8 tensor .* got torch.float32 of shape \(3, 4, 4\)"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"got torch.uint8 of shape \(2, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), "got ndarray"),
        ("a.jpg", "got str"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        eval_transform()(image)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="1 <= size <= resize, got size=224 and resize=200"):
        eval_transform(224, 200)
    with pytest.raises(OptionError, match="three means and three positive standard deviations"):
        eval_transform(std=(1, 0, 1))
