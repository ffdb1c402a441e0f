"""Datasets of images that say which sample each image is: ``(image, id)``.

Labels are kept beside, for evaluation only; training never sees them.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raremix.data.arrays import Array, Member, list_members, read_array
from raremix.data.kinds import PathLike
from raremix.data.pictures import read_image, read_pixels
from raremix.data.seeding import SeededTransform
from raremix.data.vectors import read_vector
from raremix.errors import FileFormatError, ImageInputError, LabelError

__all__ = ["IMAGE_SUFFIXES", "ImageArrays", "ImageFiles", "checked_id", "find_images"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# First-level folders of these names are parts of a data set, not classes.
_SPLITS = frozenset({"images", "test", "train", "training", "val", "valid", "validation"})


class ImageFiles(Dataset[tuple[Any, int]]):
    """The images below a folder, in an order that never changes: sorted by relative path.

    A folder of driving frames, a folder of classes, and any tree of them are all read alike.

    Args:
        root: The folder. Hidden files and folders are passed over.
        files: The images themselves, in the order wanted, relative to ``root``; all that are
            found, if None. Use it to leave out what ``find_unreadable`` found.
        transform: Called on the RGB PIL image. Without one, uint8 tensors of shape
            (3, height, width) are delivered.
        as_tensor: Call the transform on that uint8 tensor instead.
        seed: Makes views a function of (seed, draw, id) alone, for any number of workers; the
            transform must take ``seed=`` or ``generator=``.

    Attributes:
        root: The folder.
        paths: One absolute path per id.
        labels: int64 of shape (n,), if every image lies in one of two or more first-level folders
            and these are not parts such as ``train`` and ``val``; else None.
        class_names: The names of those folders, sorted; empty without labels.

    Raises:
        FileFormatError: If ``root`` is no folder, or holds no image; when an image is asked for
            that cannot be decoded.
        OptionError: If a seed is given and the transform takes neither.
    """

    def __init__(
        self,
        root: PathLike,
        *,
        files: Sequence[PathLike] | None = None,
        transform: Callable[..., Any] | None = None,
        as_tensor: bool = False,
        seed: int | None = None,
    ) -> None:
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise FileFormatError(
                f"ImageFiles expects a folder of images, and {self.root} {what}; check the path."
            )
        relative = find_images(self.root) if files is None else [os.fspath(file) for file in files]
        if not relative:
            raise FileFormatError(
                f"ImageFiles found no image in {self.root} or its subfolders; it looks for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))} in lower or upper case."
            )
        self.paths = [self.root / file for file in relative]
        self.class_names, self.labels = _folder_classes(self.root, self.paths)
        self._apply = SeededTransform(transform, seed=seed, caller="ImageFiles")
        self._as_tensor = as_tensor

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of plain ids, also in workers that run already; 0 at first.

        Call it before each epoch, or views repeat themselves. Ids of a ``BufferedMixSampler`` know
        their draw, and need no call.
        """
        self._apply.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, id: int) -> tuple[Any, int]:
        """Decode and transform one image; also says its id."""
        place = checked_id(id, len(self.paths))
        read = read_pixels if self._as_tensor or self._apply.transform is None else read_image
        return self._apply(read(self.paths[place]), _keeping_draw(id, place)), place


class ImageArrays(Dataset[tuple[Any, int]]):
    """Images that lie in one uint8 array, such as CIFAR or MNIST.

    Args:
        images: uint8 of shape (n, height, width, 3), (n, height, width, 1) or
            (n, height, width); numpy array (also memory-mapped) or tensor. Not copied.
        labels: Whole numbers of shape (n,), kept for evaluation.
        class_names: The name of each class.
        transform: Called on the uint8 tensor of shape (3, height, width). Without one, that tensor
            is delivered: a view of ``images`` with channels-last strides, grey ones repeated.
        seed: Makes views a function of (seed, draw, id) alone, for any number of workers; the
            transform must take ``seed=`` or ``generator=``.

    Raises:
        ImageInputError: If ``images`` has another shape or dtype.
        LabelError: If there are not as many labels as images, or they are no whole numbers.
        OptionError: If a seed is given and the transform takes neither.

    Example:
        >>> import numpy as np
        >>> dataset = ImageArrays(np.zeros((2, 4, 5), dtype=np.uint8))
        >>> image, id = dataset[1]
        >>> tuple(image.shape), id
        ((3, 4, 5), 1)
    """

    def __init__(
        self,
        images: Array | Tensor,
        *,
        labels: Any = None,
        class_names: Sequence[str] = (),
        transform: Callable[..., Any] | None = None,
        seed: int | None = None,
    ) -> None:
        array = images.numpy() if isinstance(images, Tensor) else images
        _check_images(array)
        self.images = array
        self.labels = None if labels is None else _as_labels(labels, len(array))
        self.class_names = list(class_names)
        self._apply = SeededTransform(transform, seed=seed, caller="ImageArrays")

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of plain ids, also in workers that run already; 0 at first.

        Call it before each epoch, or views repeat themselves. Ids of a ``BufferedMixSampler`` know
        their draw, and need no call.
        """
        self._apply.set_epoch(epoch)

    @classmethod
    def from_npz(
        cls,
        path: PathLike,
        *,
        images: str | None = None,
        labels: str | None = None,
        transform: Callable[..., Any] | None = None,
        seed: int | None = None,
    ) -> "ImageArrays":
        """Read images, and labels and class names if they are there, from a .npz file.

        Args:
            path: The file.
            images: The member with the images; by default ``images``, ``image``, ``data`` or
                ``x``, else the only uint8 array of a fitting shape.
            labels: The member with the labels; by default ``labels``, ``label`` or ``y``, if there.
            transform: As for the class.
            seed: As for the class.

        Raises:
            FileFormatError: If the file is damaged, or has no such member.
        """
        caller = "ImageArrays.from_npz"
        pixels = read_array(
            path,
            caller=caller,
            member=images,
            names=("images", "image", "data", "x"),
            wanted=_is_images,
            what="uint8 images of shape (n, height, width) or (n, height, width, 1 or 3)",
        )
        present = {member.name for member in list_members(path, caller=caller)}
        if labels is None:
            # Other members' labels would not belong to a member that was named by hand.
            usual = ("labels", "label", "y") if images in (None, "images", "image", "x") else ()
            labels = next((name for name in usual if name in present), None)
        return cls(
            pixels,
            labels=None if labels is None else read_vector(path, labels),
            class_names=[str(name) for name in read_vector(path, "class_names")]
            if labels is not None and "class_names" in present
            else (),
            transform=transform,
            seed=seed,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, id: int) -> tuple[Any, int]:
        """View and transform one image; also says its id."""
        place = checked_id(id, len(self.images))
        pixels = np.asarray(self.images[place])
        if not pixels.flags.writeable:
            pixels = pixels.copy()  # torch knows no read-only tensors and would warn.
        image = torch.from_numpy(pixels)
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        image = image.expand(3, -1, -1)
        return self._apply(image, _keeping_draw(id, place)), place


def find_images(root: Path) -> list[str]:
    """The images below a folder, by their paths relative to it, sorted."""
    found = []
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()  # A link that leads back up would never end.
            continue
        seen.add(real)
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and name != "__MACOSX"
        )
        # Text, since a path object for each of a million files takes as long as the walk.
        inside = Path(folder).relative_to(root).as_posix()
        below = "" if inside == "." else f"{inside}/"
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                found.append(f"{below}{name}")
    return sorted(found)


def _folder_classes(root: Path, paths: list[Path]) -> tuple[list[str], Tensor | None]:
    parts = [path.relative_to(root).parts if path.is_relative_to(root) else () for path in paths]
    if any(len(part) < 2 for part in parts):
        return [], None
    names = sorted({part[0] for part in parts})
    if len(names) < 2 or {name.lower() for name in names} <= _SPLITS:
        return [], None
    index = {name: label for label, name in enumerate(names)}
    return names, torch.tensor([index[part[0]] for part in parts])


def checked_id(id: int, length: int) -> int:
    """The place that an id means, counted from the end if it is negative."""
    place = int(id)
    if not -length <= place < length:
        raise IndexError(f"id {place} is outside of a dataset of {length} images")
    return place % length


def _keeping_draw(id: int, place: int) -> int:
    # A sampler's id carries its draw number; a negative one was only another name for the place.
    return id if int(id) == place else place


def _check_images(array: Array) -> None:
    shape = tuple(array.shape)
    if array.dtype == np.uint8 and len(array) > 0:
        if array.ndim == 3 or (array.ndim == 4 and shape[3] in (1, 3)):
            return
        if array.ndim == 4 and shape[1] in (1, 3):
            raise ImageInputError(
                f"ImageArrays expects images of shape (n, height, width, 3), got {shape}, which "
                "looks channels-first; pass images.transpose(0, 2, 3, 1)."
            )
    raise ImageInputError(
        "ImageArrays expects uint8 images of shape (n, height, width), (n, height, width, 1) or "
        f"(n, height, width, 3), at least one, got {array.dtype} {shape}."
    )


def _is_images(member: Member) -> bool:
    fits = len(member.shape) == 3 or (len(member.shape) == 4 and member.shape[3] in (1, 3))
    return member.dtype == "uint8" and fits


def _as_labels(labels: Any, length: int) -> Tensor:
    # A copy: labels are few, and the caller's array may be read-only.
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (length,) or array.dtype.kind not in "iu":
        raise LabelError(
            f"ImageArrays expects labels as whole numbers of shape ({length},), one per image, got "
            f"{array.dtype} {array.shape}."
        )
    return torch.tensor(array.astype(np.int64))
