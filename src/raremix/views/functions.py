"""Views that no ``View`` describes: what a user's function makes of the image as it came."""

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.inputs import takes_argument

__all__ = ["ViewFunction", "view_by"]

# All threads share torch's default generator.
_one_at_a_time = threading.Lock()

ViewFunction: TypeAlias = Callable[..., Tensor]
"""Makes one view of an image, as ``view(image)`` or ``view(image, generator=generator)``."""


def view_by(function: ViewFunction, image: Any, seed: int) -> Tensor:
    """Let a function make its view, from this seed and with no trace in torch's default generator.

    Raises:
        OptionError: If it makes no tensor.
    """
    if takes_argument(function, "generator"):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        made: object = function(image, generator=generator)
    else:
        with _one_at_a_time, torch.random.fork_rng(devices=()):
            # Not torch.manual_seed, which would seed GPUs as well, and not put them back.
            torch.default_generator.manual_seed(seed)
            made = function(image)
    if not isinstance(made, Tensor):
        raise OptionError(
            f"MultiCropTransform expects {function!r} to return a tensor, got {type(made).__name__}; "
            "end it with ToTensor or the like."
        )
    return made
