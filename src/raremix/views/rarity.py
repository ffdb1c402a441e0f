"""Views that are stronger, and more, the rarer a sample is.

It is told scores and ids, and knows no detector.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.inputs import ArrayLike, as_scores, as_whole_numbers
from raremix.options import check_count, is_number
from raremix.protocols import State
from raremix.seeds import uniforms_of
from raremix.state import check_settings, open_state, sealed_state
from raremix.views.checks import as_seed
from raremix.views.images import ImageLike
from raremix.views.multicrop import MultiCropTransform

__all__ = ["RarityViews"]

_KIND = "RarityViews"
_FIRST_VERSION = 1
_UNKNOWN = 0.5


class RarityViews:
    """Changes the views of a sample the more, and makes the more of them, the rarer it is.

    Rarity is a sample's place among all that have a score, in [0, 1]: 0 for the commonest and 1 for
    the rarest. Strength and number of local views go with it in a straight line; between two whole
    numbers of views, chance decides. Samples without a score count as .5, so that an object that
    never gets one is the control to compare with: the same strength and number for all, on average.
    Of equal effect are the two only as far as no chance is cut off at 1: at a strength above 1, the
    views that are blurred always are not blurred more often.

    Call ``update`` between epochs: running workers see it, and what they have begun they finish with
    either rarity. Whether this helps is for the experiment to tell.

    Args:
        transform: Makes the views; its local views are the most that a sample gets.
        n: How many samples there are; ids lie in [0, n).
        strength: Of the commonest and of the rarest sample, at least 0, as of
            ``MultiCropTransform.__call__``.
        n_local_views: Of the commonest and of the rarest sample; by default all for all.

    Raises:
        OptionError: If an option lies outside its range, or a view is made by a function.

    Source:
        After Zhou et al., Contrastive Learning with Boosted Memorization, ICML 2022, who make RandAugment stronger where the loss of a sample
        stays high.

    Example:
        >>> transform = MultiCropTransform.recipe("small")
        >>> views = RarityViews(transform, 3, strength=(0.0, 1.0), n_local_views=(2, 6))
        >>> views.update([0, 1, 2], torch.tensor([0.1, 0.9, 0.4]))
        >>> views.rarity.tolist()
        [0.0, 1.0, 0.5]
        >>> image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        >>> [int(views(image, id=id, seed=7)[1].sum()) for id in range(3)]
        [4, 8, 6]
    """

    def __init__(
        self,
        transform: MultiCropTransform,
        n: int,
        *,
        strength: tuple[float, float] = (0.5, 1.25),
        n_local_views: tuple[int, int] | None = None,
    ) -> None:
        if not isinstance(transform, MultiCropTransform):
            raise OptionError(f"{_KIND} expects a MultiCropTransform, got {transform!r}.")
        transform.check_described(_KIND)
        most = len(transform.views) - transform.n_global_views
        self.transform = transform
        self.strength = _span("strength", strength, most=float("inf"))
        self.n_local_views = _span("n_local_views", n_local_views or (most, most), most=most)
        # In shared memory, so that workers that live on from epoch to epoch see updates.
        self.rarity = torch.full((check_count(_KIND, "n", n, least=1),), _UNKNOWN, device="cpu")
        self.rarity.share_memory_()  # type: ignore[no-untyped-call]  # torch does not say
        self._scores = torch.full((n,), torch.nan, device="cpu")

    def update(self, ids: ArrayLike | Sequence[int], scores: ArrayLike | Sequence[float]) -> None:
        """Learn scores, and give every sample that has one its rarity anew.

        Args:
            ids: Whole numbers of shape (batch,) in [0, n); of an id that comes twice, one counts.
            scores: Floats of shape (batch,), larger is rarer; NaN is passed over.

        Raises:
            OptionError: If an id is out of range, or there are not as many as scores.
        """
        caller = f"{_KIND}.update"
        known = as_whole_numbers(ids, caller=caller, what="ids", hint="pass places in the dataset")
        values = as_scores(scores, caller=caller).to("cpu", torch.float32)
        if len(known) != len(values) or bool(((known < 0) | (known >= len(self.rarity))).any()):
            raise OptionError(
                f"{caller} expects an id in [0, {len(self.rarity)}) for each of {len(values)} scores, "
                f"got {len(known)} in [{min(known.tolist(), default=0)}, "
                f"{max(known.tolist(), default=0)}]; n is how many samples there are."
            )
        told = ~values.isnan()
        self._scores[known[told]] = values[told]
        at = (~self._scores.isnan()).nonzero()[:, 0]
        if len(at) > 1:
            # Equal scores share their middle place, so that the mean stays .5 whatever they are.
            _, place, count = torch.unique(
                self._scores[at], return_inverse=True, return_counts=True
            )
            middle = count.cumsum(0).double() - (count + 1) / 2
            self.rarity[at] = (middle[place] / (len(at) - 1)).float()

    def __call__(self, image: ImageLike, *, id: int, seed: int) -> tuple[list[Tensor], Tensor]:
        """Make the views of a sample.

        ``ImageFiles`` and ``ImageArrays`` with ``seed=`` pass id and seed by themselves.

        Args:
            image: As of ``MultiCropTransform.__call__``.
            id: The sample's place in the dataset.
            seed: As of ``MultiCropTransform.__call__``.

        Returns:
            All views of the transform, where those that this sample does not get are zeros; and bool
            of shape (views,), true for those that it gets. Leave the others out of the loss.
        """
        active, strength = self._plan(id, seed)
        views = self.transform(image, seed=seed, strength=strength)
        for view, made in zip(views, active.tolist(), strict=True):
            if not made:
                view.zero_()
        return views, active

    def cut(self, image: ImageLike, *, id: int, seed: int) -> dict[str, Tensor]:
        """Stage one alone, for workers: what ``MultiCropTransform.cut`` returns, and "active"."""
        active, strength = self._plan(id, seed)
        return {**self.transform.cut(image, seed=seed, strength=strength), "active": active}

    def finish(
        self, batch: Mapping[str, Tensor], *, device: torch.device | str | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Stage two, of what ``cut`` made or of a batch of it: as a call returns it, for all rows."""
        if "active" not in batch:
            raise OptionError(f'{_KIND}.finish expects what its cut made, got no "active".')
        cut = {name: part for name, part in batch.items() if name != "active"}
        views = self.transform.finish(cut, device=device)
        active = batch["active"].to(views[0].device, non_blocking=True)
        return _without_absent(views, active), active

    def batch(
        self, images: Tensor, *, ids: ArrayLike | Sequence[int], seeds: ArrayLike | Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Make the views of many images: as ``MultiCropTransform.batch``.

        Args:
            images: Uint8 of shape (n, 1 or 3, height, width), on any device.
            ids: Whole numbers of shape (n,), each image's place in the dataset.
            seeds: As of ``MultiCropTransform.batch``.

        Returns:
            The views, absent ones zeros; and bool of shape (n, views), on the device of ``images``.
        """
        known = as_whole_numbers(ids, caller=f"{_KIND}.batch", what="ids", hint="pass their places")
        numbers = as_whole_numbers(
            seeds, caller=f"{_KIND}.batch", what="seeds", hint="see sample_seeds"
        )
        if len(known) != len(numbers):
            raise OptionError(
                f"{_KIND}.batch expects an id and a seed for each image, got {len(known)} and "
                f"{len(numbers)}."
            )
        active, strength = self._plans(known, numbers)
        views = self.transform.batch(images, seeds=numbers, strength=strength)
        active = active.to(images.device, non_blocking=True)
        return _without_absent(views, active), active

    def state_dict(self) -> State:
        """The scores learnt; restored, every sample has its rarity again."""
        content = {"n": len(self.rarity), "scores": self._scores.clone()}
        return sealed_state(_KIND, _FIRST_VERSION, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state, of as many samples.

        Raises:
            StateMismatchError: If it is of another kind or of another number of samples.
        """
        content = open_state(state, kind=_KIND, version=_FIRST_VERSION, keys=("n", "scores"))
        check_settings(_KIND, content, {"n": len(self.rarity)})
        self._scores.fill_(torch.nan)
        self.rarity.fill_(_UNKNOWN)
        self.update(range(len(self.rarity)), content["scores"])

    def _plan(self, id: int, seed: int) -> tuple[Tensor, float]:
        known = check_count(_KIND, "id", id, least=0)
        numbers = as_seed(seed, None, caller=_KIND)
        active, strength = self._plans(torch.tensor([known], device="cpu"), numbers)
        return active[0], float(strength[0])

    def _plans(self, ids: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """(n, views) bool and (n,) float64: which views the samples get, and how strong."""
        if bool(((ids < 0) | (ids >= len(self.rarity))).any()):
            raise OptionError(
                f"{_KIND} expects ids in [0, {len(self.rarity)}), got {ids.tolist()[:8]}; n is how many "
                "samples there are."
            )
        rarity = self.rarity[ids].double()
        low, high = self.n_local_views
        # Numbers of a place behind the last view, which no view is drawn from.
        chance = torch.from_numpy(
            uniforms_of(seeds.numpy(), self.transform.numbers_drawn + 1)[:, -1]
        )
        count = (low + (high - low) * rarity + chance).floor() + self.transform.n_global_views
        active = torch.arange(len(self.transform.views), device="cpu") < count[:, None]
        weak, strong = self.strength
        return active, weak + (strong - weak) * rarity


def _span(name: str, span: tuple[float, float], *, most: float) -> tuple[float, float]:
    pair = tuple(span) if isinstance(span, Iterable) else ()
    if len(pair) != 2 or not all(is_number(value) and 0 <= value <= most for value in pair):
        raise OptionError(
            f"{_KIND} expects {name} of the commonest and of the rarest sample, each from 0 to {most}, "
            f"got {span!r}."
        )
    return pair[0], pair[1]


def _without_absent(views: list[Tensor], active: Tensor) -> list[Tensor]:
    for at, view in enumerate(views):
        view.mul_(active[..., at].view(*active.shape[:-1], 1, 1, 1))
    return views
