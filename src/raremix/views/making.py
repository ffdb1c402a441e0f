"""Makes views out of images and the rows that were drawn for them, by the fastest means at hand.

On a processor that is the compiled kernel; elsewhere torch, for a whole batch at once. Nothing here
is random. A list of views has one tensor of shape (n, 3, size, size) for each view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raremix.views import kernel
from raremix.views.batched import cut_batch, finish_batch
from raremix.views.pixels import recolour, resized_crop
from raremix.views.rows import from_rows

__all__ = ["cut_views", "finish_views", "make_views"]


def cut_views(images: Tensor, rows: Tensor, out: Sequence[Tensor]) -> None:
    """Stage one: cut, resize and mirror.

    Args:
        images: Uint8 of shape (n, 1 or 3, height, width), on any device; on a CPU in planes or with
            channels last.
        rows: Float32 of shape (n, views, 19) on the CPU, without gaps, boxes inside the images.
        out: One uint8 tensor of shape (n, 3, size, size) for each view, on the device of ``images``,
            to be written; each view of it without gaps.
    """
    if kernel.runs(images):
        kernel.cut(images, rows, out)
        return
    if images.device.type == "cpu" and len(images) == 1:
        for view, row in zip(out, from_rows(rows[0]), strict=True):
            view[0] = resized_crop(images[0], row)
        return
    for size, places in _by_size(out).items():
        sources = torch.arange(len(images), device="cpu").repeat(len(places))
        cut = cut_batch(images, _of(rows, places), size=size, sources=sources)
        for at, views in zip(places, cut.chunk(len(places)), strict=True):
            out[at].copy_(views)  # one channel to three


def finish_views(views: Sequence[Tensor], rows: Tensor, constants: Tensor) -> list[Tensor]:
    """Stage two: recolour and normalise.

    Args:
        views: Uint8, as ``cut_views`` has written them.
        rows: As of ``cut_views``.
        constants: Float32 of shape (2, 3) on the CPU: what is taken from the channels, and what they
            are divided by.

    Returns:
        Float32 views on the device of ``views``.
    """
    if views and kernel.runs(views[0]):
        views = [view if view[:1].is_contiguous() else view.contiguous() for view in views]
        out = [torch.empty(view.shape, dtype=torch.float32, device="cpu") for view in views]
        if kernel.finish(views, rows, constants, out):
            return out
    mean, std = constants
    if views and views[0].device.type == "cpu" and len(rows) == 1:
        mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
        return [
            recolour(view[0], row).sub_(mean).div_(std)[None]
            for view, row in zip(views, from_rows(rows[0]), strict=True)
        ]
    finished = list(views)
    for places in _by_size(views).values():
        pixels = torch.cat([views[at] for at in places])
        made = finish_batch(pixels, _of(rows, places), mean, std)
        for at, part in zip(places, made.chunk(len(places)), strict=True):
            finished[at] = part
    return finished


def make_views(
    images: Tensor, rows: Tensor, constants: Tensor, sizes: Sequence[int]
) -> list[Tensor]:
    """Both stages, arguments as of these; the views have ``sizes``."""
    n = len(rows)
    if kernel.runs(images):
        made = [
            torch.empty((n, 3, size, size), dtype=torch.float32, device="cpu") for size in sizes
        ]
        if kernel.make(images, rows, constants, made):
            return made
    views = [images.new_empty((n, 3, size, size)) for size in sizes]
    cut_views(images, rows, views)
    return finish_views(views, rows, constants)


def _by_size(views: Sequence[Tensor]) -> dict[int, list[int]]:
    """Which views have which size: those of one are made in one go, as each start costs time."""
    found: dict[int, list[int]] = {}
    for at, view in enumerate(views):
        found.setdefault(view.shape[-1], []).append(at)
    return found


def _of(rows: Tensor, places: list[int]) -> Tensor:
    """The rows of these views, of all images, one view after the other."""
    return rows[:, places].transpose(0, 1).flatten(0, 1)
