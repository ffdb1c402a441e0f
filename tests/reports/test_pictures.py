"""Thumbnails from files, arrays and functions."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raremix.errors import ImageInputError
from raremix.reports.pictures import Picture, Thumbnails


def _decode(picture: Picture | None) -> Image.Image:
    assert picture is not None
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def _photo(side: int = 200) -> np.ndarray[Any, Any]:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return np.stack([np.tile(ramp, (side, 1))] * 3, axis=2)


def test_a_tiny_image_keeps_every_pixel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    picture = Thumbnails(images, rows=2).make(1, size=100, quality=80)
    assert picture is not None
    assert picture.crisp
    assert np.array_equal(np.asarray(_decode(picture)), images[1])


def test_a_large_image_shrinks_into_its_frame_and_keeps_its_proportions() -> None:
    picture = Thumbnails(lambda row: _photo()[:100], rows=1).make(0, size=80, quality=80)
    assert picture is not None
    assert (picture.width, picture.height, picture.crisp) == (80, 40, False)
    assert _decode(picture).format == "JPEG"


@pytest.mark.parametrize(
    "image",
    [
        _photo(),
        _photo()[:, :, :1],
        _photo()[:, :, 0],
        _photo().transpose(2, 0, 1),
        Image.fromarray(_photo()),
        Image.fromarray(_photo()).convert("L"),
        Image.fromarray(_photo()).quantize(256),
    ],
    ids=["rgb", "grey", "plain", "first", "pil", "pil-grey", "pil-palette"],
)
def test_every_layout_shows_the_same_picture(image: Any) -> None:
    shown = Thumbnails(lambda row: image, rows=1).make(0, size=200, quality=95)
    assert np.abs(np.asarray(_decode(shown)).astype(int) - _photo().astype(int)).mean() < 3


def test_files_are_read_by_path(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "a.jpg")
    thumbnails = Thumbnails([tmp_path / "a.jpg", str(tmp_path / "a.jpg")], rows=2)
    assert thumbnails.make(0, size=50, quality=80) == thumbnails.make(1, size=50, quality=80)


def test_an_image_is_not_changed_by_showing_it() -> None:
    image = Image.fromarray(_photo())
    Thumbnails(lambda row: image, rows=1).make(0, size=20, quality=80)
    assert image.size == (200, 200)


def test_images_that_cannot_be_shown_are_remembered_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    sources = [tmp_path / "bad.jpg", tmp_path / "gone.jpg"]
    thumbnails = Thumbnails(sources, rows=2)
    assert thumbnails.make(0, size=20, quality=80) is None
    assert thumbnails.make(1, size=20, quality=80) is None
    assert "cannot identify image" in thumbnails.failed[0]
    assert "No such file" in thumbnails.failed[1]
    floats = Thumbnails(lambda row: np.zeros((4, 4)), rows=1)
    assert floats.make(0, size=20, quality=80) is None
    assert floats.failed[0] == "it is float64 of shape (4, 4), not an image"


def test_no_source_has_no_pictures_and_no_failures() -> None:
    thumbnails = Thumbnails(None, rows=5)
    assert thumbnails.make(0, size=20, quality=80) is None
    assert thumbnails.failed == {}


def test_an_array_that_holds_no_images_is_refused() -> None:
    with pytest.raises(ImageInputError, match=r"uint8 array .* got float32 of shape \(2, 4, 4\)"):
        Thumbnails(np.zeros((2, 4, 4), np.float32), rows=2)


def test_another_number_of_images_than_scores_is_refused() -> None:
    with pytest.raises(ImageInputError, match="got 2 images for 3 scores"):
        Thumbnails(["a", "b"], rows=3)
