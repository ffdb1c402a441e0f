"""Draws and makes views by the compiled kernel: all views of some images in one call.

It is built from ``draw.c``, ``make.c``, ``resize.c`` and ``finish.c`` when the package is installed,
if a C compiler is at hand; ``draws``, ``pixels`` and ``batched`` do the same without. Every view
depends on its image and its row alone, so threads may share the images of a batch out among them.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from raremix.compiled import compiled

__all__ = ["cut", "draw", "finish", "kernel_path", "make", "runs"]

_IMAGES_A_THREAD = 8
"""With fewer, waking a thread takes longer than it saves."""
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


def kernel_path() -> Path:
    """Where the installation puts the compiled kernel."""
    return Path(__file__).with_name("views.kernel")


class _Images(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("image", ctypes.c_int64),
        ("line", ctypes.c_int64),
        ("plane", ctypes.c_int64),
        ("channels", ctypes.c_int32),
        ("step", ctypes.c_int32),
    ]


class _Views(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("image", ctypes.c_void_p)]


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    library = compiled(kernel_path())
    if isinstance(library, str):
        return None
    views, images, which = (
        ctypes.POINTER(_Views),
        ctypes.POINTER(_Images),
        (_NUMBER, _NUMBER, _POINTER),
    )
    library.draw_rows.argtypes = (
        *(_POINTER, _NUMBER, _NUMBER, _POINTER),
        *(_NUMBER, _NUMBER, _POINTER, _POINTER),
    )
    library.draw_rows.restype = None
    library.cut_views.argtypes = (images, *which, views)
    library.finish_views.argtypes = (*which, views, _POINTER, _POINTER, views)
    library.make_views.argtypes = (images, *which, _POINTER, _POINTER, views)
    return library


def runs(images: Tensor | None = None) -> bool:
    """Whether the kernel runs here, and on images, or views, of this device."""
    return _loaded() is not None and (images is None or images.device.type == "cpu")


def draw(
    table: Tensor, rows: Tensor, seeds: Tensor, height: int, width: int, strength: Tensor | None
) -> None:
    """Draw what is to be done, as ``draws.draw_rows`` describes it.

    Args:
        table: ``ViewTable.flat``.
        rows: Float32 of shape (n, views, 19), to be written.
        seeds: Int64 of shape (n,).
        height: Of the images.
        width: Of the images.
        strength: Float64 of shape (n,); 1 for all if None.
    """
    library = _library()
    library.draw_rows(
        *(table.data_ptr(), rows.shape[1], rows.shape[0], seeds.data_ptr()),
        *(height, width, None if strength is None else strength.data_ptr(), rows.data_ptr()),
    )


def cut(images: Tensor, rows: Tensor, out: Sequence[Tensor]) -> None:
    """Stage one: cut, resize and mirror.

    Args:
        images: Uint8 of shape (n, 1 or 3, height, width), in planes or with channels last.
        rows: Float32 of shape (n, views, 19) without gaps, boxes inside the images.
        out: One uint8 tensor of shape (n, 3, size, size) for each view, to be written; each view
            of it without gaps.
    """
    library = _library()

    def work(first: int, last: int) -> int:
        which = last - first, len(out), rows[first].data_ptr()
        return int(library.cut_views(_images(images, first), *which, _views(out, first)))

    _shared_out(work, len(rows))


def finish(views: Sequence[Tensor], rows: Tensor, constants: Tensor, out: Sequence[Tensor]) -> bool:
    """Stage two: recolour and normalise.

    Args:
        views: As ``cut`` has written them.
        rows: As of ``cut``.
        constants: Float32 of shape (2, 3): what is taken from the channels, and what they are
            divided by.
        out: One float32 tensor of shape (n, 3, size, size) for each view, to be written; each view
            of it without gaps.

    Returns:
        False if nothing is done, as a blur reaches farther than the kernel does.
    """
    library = _library()
    mean, std = constants.data_ptr(), constants.data_ptr() + 12

    def work(first: int, last: int) -> int:
        which = last - first, len(out), rows[first].data_ptr()
        given, made = _views(views, first), _views(out, first)
        return int(library.finish_views(*which, given, mean, std, made))

    return _shared_out(work, len(rows))


def make(images: Tensor, rows: Tensor, constants: Tensor, out: Sequence[Tensor]) -> bool:
    """Both stages at once, arguments and result as of ``cut`` and ``finish``."""
    library = _library()
    mean, std = constants.data_ptr(), constants.data_ptr() + 12

    def work(first: int, last: int) -> int:
        which = last - first, len(out), rows[first].data_ptr()
        made = _views(out, first)
        return int(library.make_views(_images(images, first), *which, mean, std, made))

    return _shared_out(work, len(rows))


def _library() -> ctypes.CDLL:
    library = _loaded()
    assert library is not None
    return library


def _images(images: Tensor, first: int) -> _Images:
    image, plane, line, step = images.stride()
    start = images.data_ptr() + first * image
    # Of planes, the step is 1; else the channels are neighbours, and there are no planes.
    return _Images(start, image, line, plane if step == 1 else 0, images.shape[1], step)


def _views(tensors: Sequence[Tensor], first: int) -> _Views:
    strides = [tensor.stride(0) for tensor in tensors]
    starts = [tensor.data_ptr() for tensor in tensors]
    if first:
        width = tensors[0].element_size()
        starts = [at + first * by * width for at, by in zip(starts, strides, strict=True)]
    kept = (_POINTER * len(starts))(*starts), (_NUMBER * len(strides))(*strides)
    views = _Views(ctypes.addressof(kept[0]), ctypes.addressof(kept[1]))
    views.kept = kept  # An address alone keeps nothing alive.
    return views


def _shared_out(work: Callable[[int, int], int], n: int) -> bool:
    threads = min(torch.get_num_threads(), n // _IMAGES_A_THREAD)
    if threads < 2:
        done = [work(0, n)] if n else []
    else:
        cuts = [n * at // threads for at in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(work, cuts, cuts[1:]))
    if min(done, default=0) < 0:
        raise MemoryError("There is no memory left to make views with.")
    return max(done, default=0) == 0
