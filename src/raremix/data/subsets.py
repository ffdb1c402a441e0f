"""Chooses some classes of a folder with one folder for each class, as the published subsets do.

It opens no image.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from raremix.data.images import ImageFiles, find_images
from raremix.data.kinds import PathLike
from raremix.data.trees import check_folder, listed, what_is_in
from raremix.data.vectors import read_lines
from raremix.errors import LabelError

__all__ = ["image_subset"]


def image_subset(
    root: PathLike,
    class_list: PathLike | Sequence[str],
    *,
    transform: Callable[..., Any] | None = None,
    as_tensor: bool = False,
    seed: int | None = None,
) -> ImageFiles:
    """The images of some classes of a folder with one folder for each class, as of ImageNet.

    Args:
        root: The folder of the classes, such as ``imagenet/train``.
        class_list: The folders wanted: a text file with one on each line, as the lists of
            ImageNet-100 and ImageNet-LT's classes are, or their names.
        transform: As for ``ImageFiles``.
        as_tensor: As for ``ImageFiles``.
        seed: As for ``ImageFiles``.

    Returns:
        The images in the order of the list; ``labels`` count its lines from 0, and ``class_names``
        are these.

    Raises:
        FileFormatError: If ``root`` is no folder, or the list cannot be read.
        LabelError: If the list is empty or names a class twice, or classes of it have no folder
            or no image.
    """
    caller = "image_subset"
    if isinstance(class_list, str | os.PathLike):
        classes = read_lines(class_list)
    else:
        classes = list(class_list)
    folder = Path(root).absolute()
    check_folder(folder, caller=caller, what="a folder for each class")
    if not classes or len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise LabelError(
            f"{caller} expects every class once, got {listed(twice) + ' twice' if twice else 'none'}."
        )
    there = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    missing = [name for name in classes if name not in there]
    if missing:
        raise LabelError(
            f"{caller} finds no folder for {len(missing)} of {len(classes)} classes in {folder}: "
            f"{listed(missing)}; {what_is_in(folder)}."
        )
    images = [[f"{name}/{file}" for file in find_images(folder / name)] for name in classes]
    empty = [name for name, files in zip(classes, images, strict=True) if not files]
    if empty:
        raise LabelError(f"{caller} finds no image in the folders of {listed(empty)} in {folder}.")
    dataset = ImageFiles(
        folder,
        files=[file for files in images for file in files],
        transform=transform,
        as_tensor=as_tensor,
        seed=seed,
    )
    dataset.class_names = classes
    dataset.labels = torch.arange(len(classes)).repeat_interleave(
        torch.tensor([len(files) for files in images])
    )
    return dataset
