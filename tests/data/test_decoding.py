from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raremix.data.pictures import find_unreadable, read_image, read_pixels
from raremix.errors import FileFormatError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(PIXELS).convert(mode).save(path, **options)
    return path


def test_a_lossless_image_comes_back_exactly(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png"))
    np.testing.assert_array_equal(np.array(image), PIXELS)
    pixels = read_pixels(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_tensor_has_channels_last_strides_and_may_be_written_to(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    tensor = read_pixels(save(tmp_path / f"a.{suffix}", mode))
    assert tensor.shape == (3, 40, 60)
    assert tensor.stride() == (1, 180, 3)
    tensor.fill_(0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = read_image(save(tmp_path / "a.tif", mode))
    assert image.mode == "RGB"
    assert image.size == (60, 40)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", "P", transparency=bytes([0, 128, 255]))
    assert read_image(path).mode == "RGB"
    assert find_unreadable([path]) == []


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(FileFormatError, match=r"its pixels are I;16, 16 bits or more; scale them"):
        read_image(path)
    assert "16 bits" in find_unreadable([path])[0].reason


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_image_is_found_and_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"a.{suffix}")
    assert find_unreadable([path]) == []
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FileFormatError, match="cannot be read") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_pixels(path)
    assert [found.path for found in find_unreadable([path])] == [path]


def test_reasons_are_given_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(FileFormatError, match="its content is no image that Pillow knows"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(FileFormatError, match="there is no such file"):
        read_image(tmp_path / "b.jpg")


def test_the_bad_ones_are_listed_in_order_and_no_others(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{number:02}.jpg") for number in range(20)]
    for number in (3, 17, 11):
        paths[number].write_bytes(paths[number].read_bytes()[:300])
    assert [found.path for found in find_unreadable(paths)] == [paths[3], paths[11], paths[17]]
    assert find_unreadable([]) == []


def test_checking_reports_its_progress_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find_unreadable([save(tmp_path / "a.jpg")])
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FileFormatError, match="exceeds limit"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_file_is_closed_once_it_is_read(tmp_path: Path, mode: str) -> None:
    image = read_image(save(tmp_path / "a.png", mode))
    assert getattr(image, "fp", None) is None
    assert image.getpixel((0, 0)) is not None


def test_the_real_frames_are_readable(shared_data: Path) -> None:
    frames = sorted((shared_data / "camvid" / "images").glob("*.jpg"))[:40]
    assert find_unreadable(frames) == []
    assert read_image(frames[0]).size == (480, 360)
