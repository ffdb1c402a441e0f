"""A driving set: frames, the videos and moments they are from, their masks and boxes.

Labels are kept beside the images, for evaluation only. Where the files of a data set lie, and what
their names tell, is known to the readers of ``driving``.
"""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from raremix.data.boxes import ObjectBoxes, Skipped
from raremix.data.images import checked_id
from raremix.data.kinds import PathLike
from raremix.data.masks import IGNORED, MaskConvention, read_mask
from raremix.data.pictures import find_unreadable, read_pixels, reason_of
from raremix.errors import FileFormatError, LabelError, OptionError, RaremixWarning
from raremix.inputs import ArrayLike, as_ids
from raremix.options import check_choice, check_number
from raremix.progress import Progress

__all__ = ["Frame", "Frames", "frame_size"]

# Milliseconds of a clip, at most: 49 days. A clip begins a multiple of this after the one before.
_CLIP_SPAN = 2**32


@dataclass(frozen=True)
class Frame:
    """One image of a driving set.

    Attributes:
        name: Path relative to the root of the images, with forward slashes.
        path: The image file.
        clip: Which video it is from.
        time: Seconds from any moment that all frames of the clip share; None where unknown.
        mask: The file of its class mask, if it has one.
        objects: Its labelled boxes; None without labels, while a frame that is labelled and shows
            no object has none.
    """

    name: str
    path: Path
    clip: str
    time: float | None
    mask: Path | None
    objects: ObjectBoxes | None


class Frames(Dataset[tuple[Tensor, int]]):
    """The frames of a driving set, as a dataset of ``(image, id)`` with labels beside it.

    An image is uint8 of shape (3, height, width), a view with channels-last strides.

    Args:
        root: The folder that the names of frames start from.
        frames: The frames in the order of their ids; those of one clip ordered by time.
        class_names: Name of each class id.
        convention: How the masks are written; needed if there are any.
        skipped: What was left out when the set was read.

    Attributes:
        root: The folder.
        frames: One for each id.
        class_names: Name of each class id.
        convention: As given.
        skipped: As given, and what was left out since.

    Raises:
        OptionError: If there are masks and no convention.
        LabelError: If an object that is judged is of a class without a name.
    """

    def __init__(
        self,
        root: PathLike,
        frames: Sequence[Frame],
        class_names: Mapping[int, str],
        convention: MaskConvention | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.root = Path(root).absolute()
        self.frames = list(frames)
        self.class_names = dict(class_names)
        self.convention = convention
        self.skipped = list(skipped)
        if convention is None and any(frame.mask is not None for frame in self.frames):
            raise OptionError(
                "Frames got frames with masks and no convention, which says what the numbers in "
                "the masks mean; pass one, such as CITYSCAPES_TRAIN."
            )
        nameless = set(self._judged_labels().tolist()) - set(self.class_names)
        if nameless:
            raise LabelError(
                f"Frames got objects of the class ids {sorted(nameless)}, which have no name among "
                f"{self.class_names}."
            )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, id: int) -> tuple[Tensor, int]:
        """Decode one image; also says its id."""
        place = checked_id(id, len(self.frames))
        return read_pixels(self.frames[place].path), place

    @property
    def clips(self) -> list[str]:
        """The video of each frame."""
        return [frame.clip for frame in self.frames]

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """Seconds of each frame within its clip, of shape (n,); NaN where unknown."""
        return np.array([np.nan if frame.time is None else frame.time for frame in self.frames])

    @property
    def unlabelled(self) -> int:
        """How many frames have neither a mask nor boxes."""
        return sum(frame.mask is None and frame.objects is None for frame in self.frames)

    def mask(self, id: int) -> npt.NDArray[np.uint8] | None:
        """The class of every pixel of a frame, or None without a mask.

        Returns:
            Class ids, uint8 of shape (height, width) as of the image; ``IGNORED`` where not judged.

        Raises:
            FileFormatError: If the mask, or the image beside it, cannot be read.
            LabelError: If the mask has another size than the image, or unknown classes.
        """
        frame = self.frames[checked_id(id, len(self.frames))]
        if frame.mask is None:
            return None
        assert self.convention is not None  # as the constructor checks
        return read_mask(frame.mask, convention=self.convention, size=frame_size(frame.path))

    def objects(self, id: int) -> ObjectBoxes | None:
        """The labelled boxes of a frame, or None if it has no such labels."""
        return self.frames[checked_id(id, len(self.frames))].objects

    def subset(self, ids: ArrayLike | Sequence[int]) -> "Frames":
        """The frames of these ids, in this order; the first of them gets id 0.

        Raises:
            EmbeddingShapeError: If ids are not whole numbers in one dimension.
            IndexError: If there is no such frame.
        """
        chosen = as_ids(ids, caller="Frames.subset").tolist()
        kept = [self.frames[checked_id(id, len(self.frames))] for id in chosen]
        return Frames(self.root, kept, self.class_names, self.convention, self.skipped)

    def without_unreadable(self, *, threads: int = 4, progress: bool = False) -> "Frames":
        """Leave out the frames whose image cannot be decoded, by decoding each once.

        They are listed in ``skipped``. Ids of later frames change.

        Args:
            threads: How many images to decode at once.
            progress: Report rate and time left on standard error.
        """
        found = find_unreadable(
            [frame.path for frame in self.frames], threads=threads, progress=progress
        )
        bad = {image.path for image in found}
        kept = [frame for frame in self.frames if frame.path not in bad]
        skipped = [*self.skipped, *(Skipped(image.path, image.reason) for image in found)]
        return Frames(self.root, kept, self.class_names, self.convention, skipped)

    def moments(
        self, within: float, *, seconds_per_frame: float | None = None
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Number the frames so that those of the same moment have numbers close to each other.

        Two frames show the same moment if they are of one clip and at most ``within`` seconds
        apart, to a millisecond: exactly if their numbers differ by at most the window returned.
        A frame without time, in a clip where others have one, is a moment of its own.

        Args:
            within: Seconds, 0 or more.
            seconds_per_frame: From one frame to the next in clips whose times are all unknown;
                there the order of the frames counts, gaps between them are not seen.

        Returns:
            int64 of shape (n,): milliseconds, from a multiple of 2**32 for each clip; and the
            window in milliseconds.

        Raises:
            OptionError: If an option is no such number, a clip has several frames and no times
                and ``seconds_per_frame`` is not given, or ``within`` and the length of a clip
                together come to more than 49 days.
        """
        caller = "Frames.moments"
        check_number(caller, "within", within, least=0, below=_CLIP_SPAN / 1000)
        if seconds_per_frame is not None:
            check_number(caller, "seconds_per_frame", seconds_per_frame, above=0)
        if not self.frames:
            return np.empty(0, dtype=np.int64), int(_milliseconds(within))
        numbers: dict[str, int] = {}
        clips = np.array([numbers.setdefault(clip, len(numbers)) for clip in self.clips])
        times = np.where(np.isfinite(self.times), self.times, np.nan)
        sizes = np.bincount(clips)
        is_untimed = np.bincount(clips, weights=~np.isnan(times)) == 0
        if seconds_per_frame is None and (is_untimed & (sizes > 1)).any():
            number = int(np.flatnonzero(is_untimed & (sizes > 1))[0])
            raise OptionError(
                f"{caller}: the {sizes[number]} frames of clip {list(numbers)[number]!r} have no "
                "times, so nobody can tell which of them show the same moment; pass "
                "seconds_per_frame, or read the set with the rate of its frames."
            )
        # Frames of a clip side by side, in the order in which they come.
        order = np.argsort(clips, kind="stable")
        starts = np.cumsum(sizes) - sizes
        place = np.empty(len(clips), dtype=np.int64)
        place[order] = np.arange(len(clips)) - np.repeat(starts, sizes)
        times = np.where(is_untimed[clips], place * float(seconds_per_frame or 0), times)
        # fmin and fmax pass over NaN. What becomes infinite is refused as too long.
        with np.errstate(over="ignore"):
            elapsed = times - np.fmin.reduceat(times[order], starts)[clips]
            lengths = np.fmax.reduceat(elapsed[order], starts)
        longest = int(lengths.argmax())
        if (lengths[longest] + within) * 1000 + 2 > _CLIP_SPAN:
            raise OptionError(
                f"{caller}: clip {list(numbers)[longest]!r} is {lengths[longest]:,.0f} s long and "
                f"within is {within:,g} s, together more than 49 days; times are in seconds (does "
                "fps say how many of the numbers in the names make a second?)."
            )
        is_alone = np.isnan(elapsed)
        moments = clips * _CLIP_SPAN + _milliseconds(np.where(is_alone, 0, elapsed))
        moments[is_alone] = (len(numbers) + np.arange(is_alone.sum())) * _CLIP_SPAN
        return moments, int(_milliseconds(within))

    def class_counts(
        self,
        by: Literal["objects", "pixels", "frames"] = "frames",
        *,
        threads: int = 4,
        progress: bool = False,
    ) -> dict[int, int]:
        """Count how often each class occurs, by what is labelled and judged.

        Args:
            by: ``"objects"`` counts boxes, ``"pixels"`` those of masks, ``"frames"`` the frames
                that show the class in a box or, where no frame has boxes, in a mask. Objects of
                masks are connected regions, counted by ``raremix.regions``.
            threads: How many masks to read at once.
            progress: Report the masks read on standard error.

        Returns:
            The count of each class id that has a name, 0 for those that do not occur.

        Raises:
            OptionError: If ``by`` is none of the words.
            LabelError: If no frame has the labels that are to be counted, or no mask can be read.

        Warns:
            RaremixWarning: If masks are damaged or do not fit their images; they are passed over.
        """
        check_choice("Frames.class_counts", "by", by, ["objects", "pixels", "frames"])
        has_boxes = any(frame.objects is not None for frame in self.frames)
        has_masks = any(frame.mask is not None for frame in self.frames)
        if not {"objects": has_boxes, "pixels": has_masks, "frames": has_boxes or has_masks}[by]:
            there = "boxes" if has_boxes else "masks" if has_masks else "no labels at all"
            raise LabelError(
                f"Frames.class_counts cannot count {by}: of {len(self)} frames, none has the labels "
                f"for it; there are {there}."
            )
        counts: dict[int, int]
        if has_boxes and by != "pixels":
            ids, numbers = np.unique(self._judged_labels(once=by == "frames"), return_counts=True)
            counts = dict(zip(ids.tolist(), numbers.tolist(), strict=True))
        else:
            pixels = self._count_pixels(once=by == "frames", threads=threads, progress=progress)
            counts = dict(enumerate(pixels.tolist()))
        return {id: counts.get(id, 0) for id in sorted(self.class_names)}

    def _judged_labels(self, *, once: bool = False) -> npt.NDArray[np.int64]:
        """The class ids of all objects that are judged; of a frame each class once, if wanted."""
        labelled = [frame.objects for frame in self.frames if frame.objects is not None]
        if not labelled:
            return np.empty(0, dtype=np.int64)
        labels: npt.NDArray[np.int64] = np.concatenate([objects.labels for objects in labelled])
        is_judged = ~np.concatenate([objects.is_ignored for objects in labelled])
        judged: npt.NDArray[np.int64] = labels[is_judged]
        if not once:
            return judged
        frames = np.repeat(np.arange(len(labelled)), [len(objects) for objects in labelled])
        # One number for each pair: far faster than finding equal rows of pairs.
        classes, which = np.unique(judged, return_inverse=True)
        pairs = np.unique(frames[is_judged] * len(classes) + which)
        once_each: npt.NDArray[np.int64] = classes[pairs % len(classes)]
        return once_each

    def _count_pixels(self, *, once: bool, threads: int, progress: bool) -> npt.NDArray[np.int64]:
        ids = [id for id, frame in enumerate(self.frames) if frame.mask is not None]
        total = np.zeros(IGNORED + 1, dtype=np.int64)
        with (
            ThreadPoolExecutor(max_workers=threads) as pool,
            Progress(len(ids), label="counting", unit="masks", enabled=progress) as bar,
        ):
            failed: list[str] = []
            for counts in pool.map(self._pixels_of, ids):
                if isinstance(counts, str):
                    failed.append(counts)
                else:
                    total += counts > 0 if once else counts
                bar.advance()
        if len(failed) == len(ids):
            raise LabelError(
                f"Frames.class_counts could use none of {len(ids)} masks; the first: {failed[0]}"
            )
        if failed:
            warnings.warn(
                f"Frames.class_counts passed over {len(failed)} of {len(ids)} masks; the first: "
                f"{failed[0]}",
                RaremixWarning,
                stacklevel=3,
            )
        return total

    def _pixels_of(self, id: int) -> npt.NDArray[np.int64] | str:
        """How many pixels of each class a mask has, or what is wrong with it."""
        try:
            mask = self.mask(id)
        except (FileFormatError, LabelError) as error:
            return str(error)
        assert mask is not None  # as the caller has seen
        counts: npt.NDArray[np.int64] = np.bincount(mask.ravel(), minlength=IGNORED + 1)
        return counts


def _milliseconds(seconds: float | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    # Halves up, so that a second later is always 1000 more; rint would take them to even numbers.
    return np.floor(np.asarray(seconds, dtype=np.float64) * 1000 + 0.5).astype(np.int64)


def frame_size(path: PathLike) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        FileFormatError: If it is missing, damaged, or no image.
    """
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except Exception as error:  # On damaged bytes the decoders raise nearly anything.
        raise FileFormatError(
            f"The image {path} cannot be read: {reason_of(error)}. Repair or remove it; "
            "Frames.without_unreadable leaves all such frames out."
        ) from error
