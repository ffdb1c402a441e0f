"""Stage two of a view by the compiled kernel of ``finish.c``: one call for all changes of colour.

It is built when the package is installed, if a C compiler is at hand; ``pixels`` does the same with
torch, and agrees to 2e-5.
"""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raremix.compiled import compiled
from raremix.views.draws import ViewParameters

__all__ = ["finished", "kernel_path"]

_KINDS = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
_LONGEST = 511
"""The greatest radius of a blur, as in ``finish.c``."""


def kernel_path() -> Path:
    """Where the installation puts the compiled kernel."""
    return Path(__file__).with_name("finish.kernel")


class _Finish(ctypes.Structure):
    _fields_ = [
        ("flipped", ctypes.c_int32),
        ("changes", ctypes.c_int32),
        ("kind", ctypes.c_int32 * 4),
        ("factor", ctypes.c_float * 4),
        ("grayscale", ctypes.c_int32),
        ("solarized", ctypes.c_int32),
        ("sigma", ctypes.c_float),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
    ]


def finished(
    small: Tensor, parameters: ViewParameters, mean: Sequence[float], std: Sequence[float]
) -> Tensor | None:
    """Mirror, recolour and normalise a resized crop.

    Args:
        small: Uint8 of shape (1 or 3, height, width) on the CPU, any strides.
        parameters: What was drawn.
        mean: What is taken from each channel.
        std: What they are divided by.

    Returns:
        Float32 of shape (3, height, width); None if there is no kernel here, or none for this.
    """
    library = compiled(kernel_path())
    if isinstance(library, str) or math.ceil(3 * parameters.blur_sigma) > _LONGEST:
        return None
    channels, height, width = small.shape
    channel, line, step = small.stride()
    names = [name for name, _ in parameters.jitter]
    finish = _Finish(
        parameters.flipped,
        len(names),
        (ctypes.c_int32 * 4)(*[_KINDS[name] for name in names]),
        (ctypes.c_float * 4)(*[factor for _, factor in parameters.jitter]),
        parameters.grayscale,
        parameters.solarized,
        parameters.blur_sigma,
        (ctypes.c_float * 3)(*mean),
        (ctypes.c_float * 3)(*std),
    )
    out = torch.empty((3, height, width), dtype=torch.float32, device="cpu")
    blurred = parameters.blur_sigma > 0
    scratch = torch.empty((height + 4) * width if blurred else 0, device="cpu")
    library.finish_view(
        ctypes.c_void_p(small.data_ptr()),
        ctypes.c_int64(line),
        ctypes.c_int64(step),
        ctypes.c_int64(channel if channels == 3 else 0),
        height,
        width,
        ctypes.byref(finish),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_void_p(scratch.data_ptr()),
    )
    return out
