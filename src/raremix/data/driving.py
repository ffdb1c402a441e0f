"""Readers of driving sets: BDD100K, Cityscapes, and any folder of frames.

They know where the files of a set lie and what their names tell, and open images only to see their
size.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from raremix.data.boxes import (
    BDD100K_CLASSES,
    BDD100K_SIZE,
    ObjectBoxes,
    Skipped,
    read_bdd100k_boxes,
)
from raremix.data.frames import Frames, frame_size
from raremix.data.kinds import PathLike
from raremix.data.masks import CITYSCAPES_LABELS, CITYSCAPES_TRAIN
from raremix.data.trees import (
    Naming,
    before_number,
    ending,
    frames_of,
    images_in,
    masked_frames,
    masks_in,
    matched,
    timed,
    what_is_in,
)
from raremix.errors import FileFormatError, LabelError, OptionError
from raremix.options import check_choice, check_number

__all__ = ["read_bdd100k", "read_cityscapes", "read_folder"]

_NUMBER = re.compile(r"\d+")
# "The videos are resampled to 5Hz from 30Hz": https://doc.bdd100k.com/download.html.
_BDD100K_TRACK = Naming(
    re.compile(r"(?P<clip>.+)-(?P<number>\d{7})"), "{video}-{number of 7 digits}", 5.0
)
# Snippets of 30 frames take 1.8 seconds: https://www.cityscapes-dataset.com/dataset-overview.
_CITYSCAPES = Naming(
    re.compile(r"(?P<clip>.+_\d{6})_(?P<number>\d{6})_leftImg8bit"),
    "{city}_{sequence}_{frame}_leftImg8bit",
    17.0,
)


def read_bdd100k(
    root: PathLike,
    *,
    split: Literal["train", "val", "test"] = "val",
    images: Literal["100k", "10k", "track"] = "100k",
    labels: Literal["det_20", "labels_images", "box_track_20", "sem_seg"] | None = "det_20",
) -> Frames:
    """Read a part of BDD100K, laid out as its archives unpack.

    Images are looked for in ``images/{images}/{split}``. Those of ``100k`` and ``10k`` come from a
    video each, so that no two show the same moment. Those of ``track`` are five a second of the
    video that their names begin with.

    Args:
        root: The folder that holds ``images`` and ``labels``.
        split: Which part.
        images: Which images.
        labels: ``"det_20"`` reads boxes from ``labels/det_20/det_{split}.json``,
            ``"labels_images"`` those of 2018 from ``labels/bdd100k_labels_images_{split}.json``,
            ``"box_track_20"`` those of ``track`` from ``labels/box_track_20/{split}/*.json``, and
            ``"sem_seg"`` takes the masks ``labels/sem_seg/masks/{split}/*.png``, which belong to
            ``10k``. None reads no labels; those of ``test`` have not been published.

    Returns:
        The frames, sorted by video and time. ``unlabelled`` counts the images that the labels do
        not mention (137 of ``100k/train``); ``skipped`` lists labels whose image is missing, and
        boxes without area.

    Raises:
        FileFormatError: If images or labels are not where they should be, or cannot be read.
        LabelError: If no label belongs to any image, a category is unknown, or images are not of
            the 1280 x 720 pixels in which boxes are measured.
        OptionError: If an option is none of the words.
    """
    caller = "read_bdd100k"
    check_choice(caller, "split", split, ["train", "val", "test"])
    check_choice(caller, "images", images, ["100k", "10k", "track"])
    base = Path(root).absolute()
    folder = base / "images" / images / split
    names = images_in(folder, caller=caller)
    if images == "track":
        when, skipped = timed(names, folder, _BDD100K_TRACK)
    else:
        when, skipped = {name: (PurePosixPath(name).stem, None) for name in names}, []
    if labels is None:
        return Frames(folder, frames_of(folder, when), {}, skipped=skipped)
    check_choice(caller, "labels", labels, ["det_20", "labels_images", "box_track_20", "sem_seg"])
    if labels == "sem_seg":
        # Not the colormaps beside them, which are for eyes.
        source = base / "labels" / "sem_seg" / "masks" / split
        stems = {name: PurePosixPath(name).stem for name in when}
        places = {Path(key).name: path for key, path in masks_in(source, caller).items()}
        return masked_frames(folder, when, stems, places, CITYSCAPES_TRAIN, skipped, caller=caller)
    files = _bdd100k_files(base / "labels", labels, split, caller=caller)
    found, dropped = _bdd100k_boxes(files, caller=caller)
    keys = {name: PurePosixPath(name).name for name in when}
    objects, orphans = matched(keys, found, folder, caller=caller)
    source = files[0] if len(files) == 1 else files[0].parent
    missing = f"it is labelled in {source}, and there is no such image"
    skipped += [Skipped(folder / key, missing) for key in orphans]
    at = {keys[name]: folder / name for name in objects}
    skipped += [Skipped(at[str(one.path)], one.reason) for one in dropped if str(one.path) in at]
    _check_size(at.values(), caller=caller)
    frames = frames_of(folder, when, objects=objects)
    return Frames(folder, frames, BDD100K_CLASSES, skipped=skipped)


def read_cityscapes(
    root: PathLike,
    *,
    split: str = "val",
    labels: Literal["gtFine", "gtCoarse"] | None = "gtFine",
) -> Frames:
    """Read a part of Cityscapes, laid out as its archives unpack.

    Images are ``leftImg8bit/{split}/{city}/{city}_{sequence}_{frame}_leftImg8bit.png``. A city and
    a sequence are a clip, and frames follow each other at 17 a second.

    Args:
        root: The folder that holds ``leftImg8bit`` and ``gtFine`` or ``gtCoarse``.
        split: Which part: ``"train"``, ``"val"``, ``"test"`` or ``"train_extra"``. The labels of
            ``"test"`` are placeholders, in which every pixel is ignored.
        labels: Which masks; of these the ``*_labelIds.png`` or, where there are none at all, the
            ``*_labelTrainIds.png``. None reads no labels.

    Returns:
        The frames, sorted by clip and time. ``unlabelled`` counts images without mask; ``skipped``
        lists masks without image, and images whose names read otherwise.

    Raises:
        FileFormatError: If images or masks are not where they should be.
        LabelError: If no mask belongs to any image.
        OptionError: If ``labels`` is neither of the words.
    """
    caller = "read_cityscapes"
    base = Path(root).absolute()
    folder = base / "leftImg8bit" / split
    names = images_in(folder, caller=caller)
    when, skipped = timed(names, folder, _CITYSCAPES)
    if labels is None:
        return Frames(folder, frames_of(folder, when), {}, skipped=skipped)
    check_choice(caller, "labels", labels, ["gtFine", "gtCoarse"])
    source = base / labels / split
    files = images_in(source, caller=caller, what="masks")
    convention, places = CITYSCAPES_LABELS, ending(files, f"_{labels}_labelIds.png", source)
    if not places:
        convention = CITYSCAPES_TRAIN
        places = ending(files, f"_{labels}_labelTrainIds.png", source)
    if not places:
        raise FileFormatError(
            f"{caller} looks for masks named *_{labels}_labelIds.png or *_{labels}_labelTrainIds.png "
            f"below {source}, and finds other images only, such as {files[0]}."
        )
    keys = {name: name.rpartition("_leftImg8bit")[0] for name in when}
    return masked_frames(folder, when, keys, places, convention, skipped, caller=caller)


def read_folder(root: PathLike, *, fps: float | None = None) -> Frames:
    """Read any folder of frames, at any depth and without labels.

    The frames of a folder are a clip if their names differ in nothing but the last number;
    otherwise, and for frames that lie in ``root`` itself, so are those that agree in what stands
    before that number.

    Args:
        root: The folder. Hidden files and folders are passed over.
        fps: How much the last number in a frame's name grows in a second, such as 30 where it
            counts the frames of a video, or 1e6 where it is a time in microseconds. None if it
            tells no time; ``Frames.moments`` can go by the order of the frames then.

    Returns:
        The frames, sorted by path, with numbers in it as numbers: ``frame_9`` comes before
        ``frame_10``. Where all numbers are equally long this is the order of ``ImageFiles``.

    Raises:
        FileFormatError: If ``root`` is no folder, or holds no image.
        OptionError: If ``fps`` is not above 0, or two frames of a clip have the same number, which
            then tells no time.

    Example:
        >>> import numpy as np, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (9, 10):
        ...         image = Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8))
        ...         image.save(f"{folder}/ride_{number}.png")
        ...     frames = read_folder(folder, fps=10)
        >>> [frame.name for frame in frames.frames], frames.clips, frames.times.tolist()
        (['ride_9.png', 'ride_10.png'], ['ride', 'ride'], [0.9, 1.0])
    """
    caller = "read_folder"
    if fps is not None:
        check_number(caller, "fps", fps, above=0)
    folder = Path(root).absolute()
    names = _in_natural_order(images_in(folder, caller=caller))
    starts: dict[str, set[str]] = {}
    for name in names:
        starts.setdefault(_parent(name), set()).add(before_number(name))
    when: dict[str, tuple[str, float | None]] = {}
    owners: dict[str, tuple[str, str]] = {}
    taken: dict[tuple[str, int], str] = {}
    for name in names:
        parent, start = key = _parent(name), before_number(name)
        parts = (parent,) if parent and len(starts[parent]) == 1 else (parent, start)
        clip = "/".join(filter(None, parts)) or folder.name
        while owners.setdefault(clip, key) != key:
            clip += "/"  # A folder night and frames night_1 beside it are not one clip.
        numbers = _NUMBER.findall(PurePosixPath(name).stem)
        time = None
        if fps is not None and numbers:
            other = taken.setdefault((clip, int(numbers[-1])), name)
            if other != name:
                raise OptionError(
                    f"{caller} got fps={fps:g}, but {other} and {name} have the same last number, "
                    "so it tells no time; leave fps out, or rename the frames."
                )
            time = int(numbers[-1]) / float(fps)
        when[name] = clip, time
    return Frames(folder, frames_of(folder, when, sort=False), {})


def _bdd100k_files(folder: Path, labels: str, split: str, *, caller: str) -> list[Path]:
    """The JSON files with the boxes of a part."""
    older = folder / f"bdd100k_labels_images_{split}.json"
    if labels == "box_track_20":
        source = folder / labels / split
        files = sorted(source.glob("*.json"))
        wanted = source / "*.json"
    else:
        wanted = folder / labels / f"det_{split}.json" if labels == "det_20" else older
        files = [wanted] if wanted.is_file() else []
    if not files:
        ways = ["labels=None reads the images alone"]
        if labels == "det_20" and older.is_file():
            ways.append("labels='labels_images' reads the boxes of 2018, which are there")
        raise FileFormatError(
            f"{caller} looks for boxes in {wanted}, and there is no such file; "
            f"{what_is_in(wanted.parent)}. {'; '.join(ways)}."
        )
    return files


def _bdd100k_boxes(
    files: Iterable[Path], *, caller: str
) -> tuple[dict[str, ObjectBoxes], list[Skipped]]:
    """The objects of each frame, of all files, and what these left out."""
    found: dict[str, ObjectBoxes] = {}
    dropped: list[Skipped] = []
    for file in files:
        objects, left_out = read_bdd100k_boxes(file)
        twice = sorted(found.keys() & objects.keys())
        if twice:
            raise FileFormatError(
                f"{caller}: the frame {twice[0]} is labelled in {file} and in another file of "
                f"{file.parent}; leave one of them there."
            )
        found.update(objects)
        dropped += left_out
    return found, dropped


def _check_size(paths: Iterable[Path], *, caller: str) -> None:
    """Hold the first image that can be opened to the size in which boxes are measured."""
    for path in paths:
        try:
            size = frame_size(path)
        except FileFormatError:
            continue  # Reading the others must not fail for it; find_unreadable lists it.
        if size != BDD100K_SIZE:
            raise LabelError(
                f"{caller}: the boxes are in pixels of frames of {BDD100K_SIZE[1]} x "
                f"{BDD100K_SIZE[0]}, and {path} has {size[1]} x {size[0]}; use the images as they "
                "were published."
            )
        return


def _parent(name: str) -> str:
    folder = PurePosixPath(name).parent.as_posix()
    return "" if folder == "." else folder


def _in_natural_order(names: Sequence[str]) -> list[str]:
    """Sort names as text, but the numbers in them as numbers."""
    longest = max((len(number) for name in names for number in _NUMBER.findall(name)), default=0)

    def padded(name: str) -> tuple[str, str]:
        return _NUMBER.sub(lambda number: number[0].zfill(longest), name), name

    return sorted(names, key=padded)
