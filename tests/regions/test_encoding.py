"""Frames to regions, one after the other: nothing lost, nothing silent, nothing kept too long."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from raremix.data.boxes import Skipped
from raremix.data.driving import read_folder
from raremix.data.frames import Frames
from raremix.errors import FileFormatError, ImageInputError, OptionError
from raremix.inputs import ArrayLike
from raremix.regions.detector import RegionDetector
from raremix.regions.encoders import CropEncoder, RegionEncoder
from raremix.regions.encoding import encode_frames, iter_regions
from raremix.regions.regions import Regions

Ids = ArrayLike | Sequence[int]


def write_frames(folder: Path, sizes: Sequence[tuple[int, int]]) -> Frames:
    """Noise of these heights and widths; a size of (0, 0) is a file that is cut short."""
    noise = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        path = folder / f"ride_{number:02}.png"
        if height == 0:
            path.write_bytes(b"\x89PNG\r\n\x1a\n cut short")
        else:
            Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return read_folder(folder, fps=1)


@pytest.fixture
def encoder() -> CropEncoder:
    return CropEncoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), crop_size=8)


def same(first: Regions, second: Regions) -> bool:
    names = ("embeddings", "boxes", "scale", "frame", "scenes", "ids", "sizes")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_all_frames_are_embedded_as_one_by_one(tmp_path: Path, encoder: CropEncoder) -> None:
    frames = write_frames(tmp_path, [(36, 48)] * 3)
    regions, skipped = encode_frames(frames, encoder, progress=False)
    expected = [encoder(frames[id][0][None], [id]) for id in range(3)]
    assert same(regions, Regions.joined(expected))
    assert skipped == []


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_unreadable_frames_are_listed_and_the_others_keep_their_ids(
    tmp_path: Path, encoder: CropEncoder, threads: int
) -> None:
    frames = write_frames(tmp_path, [(0, 0), (36, 48), (0, 0), (36, 48), (36, 48), (0, 0)])
    regions, skipped = encode_frames(frames, encoder, threads=threads, progress=False)
    assert regions.ids.tolist() == [1, 3, 4]
    assert [one.path.name for one in skipped] == ["ride_00.png", "ride_02.png", "ride_05.png"]
    assert all("no image that Pillow knows" in one.reason for one in skipped)
    assert not any(str(tmp_path) in one.reason for one in skipped)


def test_frames_of_different_sizes_go_together(tmp_path: Path, encoder: CropEncoder) -> None:
    sizes = [(36, 36), (36, 96), (20, 64), (48, 36)]
    regions, _ = encode_frames(write_frames(tmp_path, sizes), encoder, progress=False)
    assert [tuple(size) for size in regions.sizes.tolist()] == sizes
    assert regions.frame.bincount().tolist()[0] < regions.frame.bincount().tolist()[1]
    far = regions.boxes[:, 2:].flip(1).amax(dim=0)
    assert far.tolist() == [48, 96]
    assert bool((regions.boxes[:, 2:].flip(1) <= regions.sizes[regions.frame]).all())


def test_float16_keeps_the_same_numbers_rounded(tmp_path: Path, encoder: CropEncoder) -> None:
    frames = write_frames(tmp_path, [(36, 48)] * 2)
    whole, _ = encode_frames(frames, encoder, progress=False)
    half, _ = encode_frames(frames, encoder, dtype=torch.float16, progress=False)
    assert half.embeddings.dtype == torch.float16
    assert torch.equal(half.embeddings, whole.embeddings.half())
    assert half.scenes.dtype == torch.float32


def test_a_frame_the_encoder_cannot_take_is_listed_with_its_words(
    tmp_path: Path, encoder: CropEncoder
) -> None:
    def picky(frames: Tensor, ids: Ids) -> Regions:
        if frames.shape[2] < 30:
            raise ImageInputError("picky takes frames of 30 rows or more.")
        return encoder(frames, ids)

    frames = write_frames(tmp_path, [(36, 48), (20, 48)])
    regions, skipped = encode_frames(frames, picky, progress=False)
    assert regions.ids.tolist() == [0]
    assert [one.reason for one in skipped] == ["picky takes frames of 30 rows or more."]


def test_other_errors_of_an_encoder_are_not_swallowed(tmp_path: Path) -> None:
    def broken(frames: Tensor, ids: Ids) -> Regions:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        encode_frames(write_frames(tmp_path, [(36, 48)]), broken, progress=False)


def test_a_stream_hands_on_each_frame_before_the_next_is_embedded(
    tmp_path: Path, encoder: CropEncoder
) -> None:
    asked: list[int] = []

    def watched(frames: Tensor, ids: Ids) -> Regions:
        asked.extend(torch.as_tensor(ids).tolist())
        return encoder(frames, ids)

    frames = write_frames(tmp_path, [(36, 48), (0, 0), (36, 48)])
    skipped: list[Skipped] = []
    stream = iter_regions(frames, watched, skipped=skipped, progress=False)
    assert (next(stream).ids.tolist(), asked, skipped) == ([0], [0], [])
    assert (next(stream).ids.tolist(), asked) == ([2], [0, 2])
    assert len(skipped) == 1
    assert list(stream) == []


def test_the_next_frame_is_read_while_one_is_embedded(tmp_path: Path, encoder: CropEncoder) -> None:
    is_read = [threading.Event() for _ in range(3)]

    class Watched(Frames):
        def __getitem__(self, id: int) -> tuple[Tensor, int]:
            is_read[id].set()
            return super().__getitem__(id)

    def waiting(frames: Tensor, ids: Ids) -> Regions:
        following = min(int(ids[0]) + 1, 2)
        assert is_read[following].wait(timeout=30)
        return encoder(frames, ids)

    plain = write_frames(tmp_path, [(36, 48)] * 3)
    watched = Watched(plain.root, plain.frames, {})
    regions, _ = encode_frames(watched, waiting, threads=1, progress=False)
    assert regions.ids.tolist() == [0, 1, 2]


def test_a_streamed_detector_sees_every_frame(tmp_path: Path, encoder: CropEncoder) -> None:
    frames = write_frames(tmp_path, [(36, 48)] * 4)
    detector = RegionDetector()
    for regions in iter_regions(frames, encoder, skipped=[], progress=False):
        detector.observe(regions)
    assert detector.health()["frames"] == 4


def test_more_than_fits_is_refused_after_the_first_frame(
    tmp_path: Path, encoder: CropEncoder
) -> None:
    asked: list[Any] = []

    def counted(frames: Tensor, ids: Ids) -> Regions:
        asked.append(ids)
        return encoder(frames, ids)

    few = write_frames(tmp_path, [(36, 48)] * 2)
    many = Frames(few.root, few.frames[:1] * 70_000, {})
    with pytest.raises(OptionError) as raised:
        encode_frames(many, counted, max_memory=2**26, progress=False)
    regions = len(encoder(few[0][0][None], [0])) * 70_000
    message = str(raised.value)
    assert f"about {regions:,} regions of 70,000 frames, 12 numbers each" in message
    assert f"{regions * 12 * 4 / 2**30:,.1f} GiB, and max_memory is 0.1 GiB" in message
    assert "iter_regions with RegionDetector.observe" in message
    assert "dtype=torch.float16 takes half" in message
    assert len(asked) == 1
    needed = len(encoder(few[0][0][None], [0])) * 2 * 12 * 2
    assert encode_frames(few, encoder, dtype=torch.float16, max_memory=needed, progress=False)[
        0
    ].ids.tolist() == [0, 1]


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    class Loud(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), 7e4)

    frames = write_frames(tmp_path, [(36, 48)])
    encoder: RegionEncoder = CropEncoder(Loud(), crop_size=8)
    with pytest.raises(OptionError, match=r"up to 7e\+04, and float16 ends at 65,504"):
        encode_frames(frames, encoder, dtype=torch.float16, progress=False)
    assert encode_frames(frames, encoder, progress=False)[0].embeddings.max() == 7e4


def test_a_folder_without_a_readable_frame_says_why(tmp_path: Path, encoder: CropEncoder) -> None:
    frames = write_frames(tmp_path, [(0, 0)] * 3)
    with pytest.raises(FileFormatError, match=r"could embed none of 3 frames .* no image that"):
        encode_frames(frames, encoder, progress=False)


def test_progress_is_written_only_when_asked(
    tmp_path: Path,
    encoder: CropEncoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("raremix.progress._LINE_SECONDS", 0.0)
    frames = write_frames(tmp_path, [(36, 48), (0, 0)])
    encode_frames(frames, encoder, progress=False)
    assert capsys.readouterr().err == ""
    encode_frames(frames, encoder)
    assert "embedding: 2 of 2 frames" in capsys.readouterr().err


def test_options_out_of_range_are_named(tmp_path: Path, encoder: CropEncoder) -> None:
    frames = write_frames(tmp_path, [(36, 48)])
    with pytest.raises(OptionError, match="threads as a whole number of at least 1, got 0"):
        iter_regions(frames, encoder, skipped=[], threads=0)
    with pytest.raises(OptionError, match=r"dtype float16 or float32, got torch\.float64"):
        encode_frames(frames, encoder, dtype=torch.float64)
    with pytest.raises(OptionError, match="max_memory as a whole number"):
        encode_frames(frames, encoder, max_memory=0)
