"""Embeds the frames of a driving set one after the other, and passes over those that cannot be read.

It keeps what an encoder gives, or hands it on frame by frame. It scores nothing.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from raremix.data.boxes import Skipped
from raremix.data.frames import Frames
from raremix.data.pictures import reason_of
from raremix.errors import FileFormatError, ImageInputError, OptionError
from raremix.options import check_count
from raremix.progress import Progress
from raremix.regions.encoders import RegionEncoder
from raremix.regions.regions import Regions

__all__ = ["encode_frames", "iter_regions"]

_LARGEST_HALF = 65_504.0


def encode_frames(
    frames: Frames,
    encoder: RegionEncoder,
    *,
    dtype: torch.dtype = torch.float32,
    threads: int = 2,
    max_memory: int = 2**33,
    progress: bool = True,
) -> tuple[Regions, list[Skipped]]:
    """Embed the regions of all frames and keep them in memory, as ``RegionDetector.fit`` takes them.

    Frames may differ in size. One that cannot be read, or that the encoder cannot take, is left out
    and listed, and the others keep their ids.

    Args:
        frames: A driving set. The id of a frame is its place in it.
        encoder: Embeds regions; it gets one frame at a time.
        dtype: Of the embeddings kept: float32, or float16 for half the memory.
        threads: How many frames to decode at once, ahead of the encoder.
        max_memory: Bytes that the embeddings may take up, as the first frame lets one expect.
        progress: Report rate and time left on standard error.

    Returns:
        The regions, on the CPU; and which frames were left out, and why.

    Raises:
        FileFormatError: If no frame can be embedded.
        OptionError: If an option is out of its range, the embeddings would take up more than
            ``max_memory``, or are too large for float16.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from raremix.data.driving import read_folder
        >>> from raremix.regions.encoders import CropEncoder
        >>> model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (1, 3):
        ...         image = Image.fromarray(np.zeros((90, 160, 3), dtype=np.uint8))
        ...         image.save(f"{folder}/ride_{number}.png")
        ...     _ = Path(f"{folder}/ride_2.png").write_bytes(b"cut short")
        ...     frames = read_folder(folder)
        ...     regions, skipped = encode_frames(frames, CropEncoder(model, crop_size=32))
        >>> regions.ids.tolist(), [one.path.name for one in skipped]
        ([0, 2], ['ride_2.png'])
    """
    caller = "encode_frames"
    if dtype not in (torch.float16, torch.float32):
        raise OptionError(f"{caller} expects dtype float16 or float32, got {dtype}.")
    check_count(caller, "max_memory", max_memory, least=1)
    skipped: list[Skipped] = []
    kept: _Kept | None = None
    for regions in iter_regions(
        frames, encoder, skipped=skipped, threads=threads, progress=progress
    ):
        if kept is None:
            _check_memory(regions, len(frames), dtype, max_memory)
            kept = _Kept(regions, len(frames), dtype)
        kept.add(regions)
    if kept is None:
        first = f", the first because {skipped[0].reason}" if skipped else ""
        raise FileFormatError(
            f"{caller} could embed none of {len(frames)} frames in {frames.root}{first}."
        )
    return kept.regions(), skipped


def iter_regions(
    frames: Frames,
    encoder: RegionEncoder,
    *,
    skipped: list[Skipped],
    threads: int = 2,
    progress: bool = True,
) -> Iterator[Regions]:
    """Embed frame after frame and keep none, as ``RegionDetector.observe`` takes them.

    So memory does not grow with the set: a detector remembers no more than its banks hold.

    Args:
        frames: A driving set. The id of a frame is its place in it.
        encoder: Embeds regions; it gets one frame at a time.
        skipped: Frames that cannot be read, or that the encoder cannot take, are added here with
            the reason; nothing is given for them.
        threads: How many frames to decode at once, ahead of the encoder.
        progress: Report rate and time left on standard error.

    Returns:
        The regions of each frame, in the order of the frames, on the device of the encoder.

    Raises:
        OptionError: If ``threads`` is no whole number of at least 1.
    """
    check_count("iter_regions", "threads", threads, least=1)
    return _encoded(frames, encoder, skipped, threads, progress)


def _encoded(
    frames: Frames, encoder: RegionEncoder, skipped: list[Skipped], threads: int, progress: bool
) -> Iterator[Regions]:
    with (
        ThreadPoolExecutor(max_workers=threads) as pool,
        Progress(len(frames), label="embedding", unit="frames", enabled=progress) as bar,
    ):
        ahead: deque[Future[tuple[Tensor, int]]] = deque()
        for place in range(len(frames)):
            # This frame, and those that are read while it is embedded.
            while len(ahead) <= threads and place + len(ahead) < len(frames):
                ahead.append(pool.submit(frames.__getitem__, place + len(ahead)))
            found = None
            try:
                image, id = ahead.popleft().result()
                found = encoder(image[None], [id])
            except (FileFormatError, ImageInputError) as error:
                skipped.append(Skipped(frames.frames[place].path, _reason(error)))
            if found is not None:
                yield found
            bar.advance()


def _reason(error: FileFormatError | ImageInputError) -> str:
    """Why a frame was left out, without its path and advice where a reader of files said so."""
    cause = error.__cause__
    return reason_of(cause) if isinstance(cause, Exception) else str(error)


def _check_memory(first: Regions, frames: int, dtype: torch.dtype, most: int) -> None:
    regions, dim = len(first) * frames, first.embeddings.shape[1]
    needed = regions * dim * dtype.itemsize
    if needed > most:
        half = "" if dtype is torch.float16 else "dtype=torch.float16 takes half of it; "
        raise OptionError(
            f"encode_frames would keep about {regions:,} regions of {frames:,} frames, {dim:,} "
            f"numbers each, which is {needed / 2**30:,.1f} GiB, and max_memory is "
            f"{most / 2**30:,.1f} GiB. {half}fewer windows a frame (shares=, overlap=) take less; "
            "iter_regions with RegionDetector.observe keeps one frame at a time; or raise "
            "max_memory."
        )


class _Kept:
    """Regions of one frame after the other, in one tensor, so that no second copy is needed."""

    def __init__(self, first: Regions, frames: int, dtype: torch.dtype) -> None:
        dim = first.embeddings.shape[1]
        # A tensor made in inference mode could never be used with autograd afterwards.
        with torch.inference_mode(False):
            self._rows = torch.empty(len(first) * frames, dim, dtype=dtype, device="cpu")
        self._count = 0
        self._counts: list[int] = []
        self._columns: dict[str, list[Tensor]] = {
            name: [] for name in ("boxes", "scale", "scenes", "ids", "sizes")
        }

    def add(self, regions: Regions) -> None:
        rows = regions.embeddings
        if self._rows.dtype == torch.float16:
            largest = float(rows.abs().nan_to_num(nan=0.0, posinf=0.0).amax()) if len(rows) else 0.0
            if largest > _LARGEST_HALF:
                raise OptionError(
                    f"encode_frames got embeddings of up to {largest:.3g}, and float16 ends at "
                    f"{_LARGEST_HALF:,.0f}; pass dtype=torch.float32."
                )
        end = self._count + len(rows)
        if end > len(self._rows):  # Of frames of another shape there can be more windows.
            with torch.inference_mode(False):
                larger = self._rows.new_empty(end + end // 4, self._rows.shape[1])
                larger[: self._count] = self._rows[: self._count]
            self._rows = larger
        self._rows[self._count : end] = rows
        self._count = end
        self._counts.append(len(rows))
        for name, column in self._columns.items():
            column.append(getattr(regions, name).cpu())

    def regions(self) -> Regions:
        counts = torch.tensor(self._counts, device="cpu")
        return Regions(
            # What lies behind was never written to, so it takes up no memory.
            embeddings=self._rows[: self._count],
            frame=torch.arange(len(counts), device="cpu").repeat_interleave(counts),
            **{name: torch.cat(column) for name, column in self._columns.items()},
        )
