"""Applies a transform so that its result depends on a seed, a draw number and an id alone.

torch seeds each loader worker on its own, so views usually change with ``num_workers``. Here each
call of a transform that takes ``seed=`` or ``generator=`` gets one for just that draw of just that
sample.
"""

from collections.abc import Callable
from typing import Any

import torch

from raremix.errors import OptionError
from raremix.inputs import needs_argument, takes_argument
from raremix.options import check_count
from raremix.seeds import derive_seed, seeded_generator

__all__ = ["SeededTransform"]


class SeededTransform:
    """A transform, and the seed each of its calls gets.

    Args:
        transform: Anything callable on an image, or None to hand images on. If it names an argument
            ``id``, it gets the id too.
        seed: Makes every result a pure function of (seed, draw, id), for any number of workers;
            the transform must then take ``seed=`` or ``generator=``. None leaves it to itself.
        caller: The call to name in an error.

    Raises:
        OptionError: If a seed is given and the transform takes none.
    """

    def __init__(
        self, transform: Callable[..., Any] | None, *, seed: int | None, caller: str
    ) -> None:
        takes = {
            name: transform is not None and takes_argument(transform, name)
            for name in ("seed", "generator", "id")
        }
        if seed is not None:
            seed = check_count(caller, "seed", seed, least=0)
        if seed is None and takes["seed"] and needs_argument(transform, "seed"):
            raise OptionError(
                f"{caller} got a transform ({type(transform).__name__}) that cannot do without a seed; "
                "pass seed=0, or another one."
            )
        if transform is not None and seed is not None and not (takes["seed"] or takes["generator"]):
            raise OptionError(
                f"{caller} got seed={seed} and a transform ({type(transform).__name__}) that takes "
                "neither seed= nor generator=, so its views could not follow the seed. Pass one that "
                "does, such as MultiCropTransform, or leave out seed."
            )
        self.transform = transform
        self.seed = seed
        self._takes = takes
        # Workers that live on from epoch to epoch must see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch does not say

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of ids that know none, also in workers that run already."""
        self._epoch[0] = check_count("set_epoch", "epoch", epoch, least=0)

    def __call__(self, image: Any, id: int) -> Any:
        """Transform one image; ``id.draw``, where a sampler set it, counts the draws."""
        if self.transform is None:
            return image
        options: dict[str, Any] = {"id": int(id)} if self._takes["id"] else {}
        if self.seed is not None:
            draw = getattr(id, "draw", None)
            parts = self.seed, int(self._epoch) if draw is None else int(draw), int(id)
            if self._takes["seed"]:
                options["seed"] = derive_seed(*parts)
            else:
                options["generator"] = seeded_generator(*parts)
        return self.transform(image, **options)
