"""Applies a transform so that its result depends on a seed, a draw number and an id alone.

torch seeds each loader worker on its own, so views usually change with ``num_workers``. Here each
call of a transform that takes ``generator=`` gets one made for just that draw of just that sample.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from raremix.errors import OptionError
from raremix.seeds import seeded_generator

__all__ = ["SeededTransform"]


class SeededTransform:
    """A transform, and the generator each of its calls gets.

    Args:
        transform: Anything callable on an image, or None to hand images on.
        seed: Makes every result a pure function of (seed, draw, id), for any number of workers;
            the transform must then take ``generator=``. None leaves the transform to itself.
        caller: The call to name in an error.

    Raises:
        OptionError: If a seed is given and the transform takes no ``generator``.
    """

    def __init__(
        self, transform: Callable[..., Any] | None, *, seed: int | None, caller: str
    ) -> None:
        if transform is not None and seed is not None and not _takes_generator(transform):
            raise OptionError(
                f"{caller} got seed={seed} and a transform ({type(transform).__name__}) that takes "
                "no generator=, so its views could not follow the seed. Pass one that does, such "
                "as MultiCropTransform, or leave out seed."
            )
        self.transform = transform
        self.seed = seed

    def __call__(self, image: Any, id: int) -> Any:
        """Transform one image; ``id.draw``, where a sampler set it, counts the draws."""
        if self.transform is None:
            return image
        if self.seed is None:
            return self.transform(image)
        draw = int(getattr(id, "draw", 0))
        return self.transform(image, generator=seeded_generator(self.seed, draw, int(id)))


def _takes_generator(transform: Callable[..., Any]) -> bool:
    # The __call__ of a module takes anything; what it means is told by forward.
    called = transform.forward if isinstance(transform, nn.Module) else transform
    try:
        return "generator" in inspect.signature(called).parameters
    except (TypeError, ValueError):
        return False  # Some built-ins have no signature.
