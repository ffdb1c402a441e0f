"""What decides who stays in a buffer and who is drawn; the common part of the policies.

A policy has settings and no state: what it has to remember lies in columns of the buffer, so that
buffer and policy cannot come apart when they are saved.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from raremix.memory.columns import Array, Columns
from raremix.memory.held import Held
from raremix.seeds import uniforms

__all__ = ["Chosen", "Policy", "draw_uniformly", "draw_weighted", "features_of"]


class Chosen(NamedTuple):
    """Places that a draw chose, and the chance each had."""

    places: list[int]
    probabilities: list[float] | None
    """None if all that may be drawn had the same chance."""


class Policy:
    """Admits everything, draws everybody alike, and has yet to say who leaves.

    A policy of your own inherits from this and gives ``evict`` at least. It must be a function of what it is
    shown: the same entries and the same seed give the same answer, on every rank and after a
    resume.

    Attributes:
        columns: Columns of its own beside those of every entry, and their dtypes.
        drawn_by: Which columns ``draw`` reads, besides "key", "entry" and "born".
        needs_features: Whether entries must come with features.
    """

    columns: Mapping[str, str] = {}
    drawn_by: tuple[str, ...] = ()
    needs_features = False

    def admit(self, held: Held, score: float, seed: int) -> bool:
        """Whether a sample of this score may come in."""
        return True

    def enter(self, held: Held, place: int) -> None:
        """Fill the policy's columns of the entry that has just come in, the last one."""

    def refresh(self, held: Held, place: int) -> None:
        """Take note that an entry has a newer score and perhaps feature."""

    def leave(self, held: Held, entry: int) -> None:
        """Take note that an entry has left."""

    def evict(self, held: Held, seed: int) -> int | None:
        """The place of the entry to leave; None if all may stay, which is asked again and again.

        There are never more than ``held.limit`` entries when nobody has to leave.
        """
        raise NotImplementedError

    def draw(
        self, rows: Columns, count: int, allowed: Callable[[int], bool] | None, seed: int
    ) -> Chosen:
        """Choose at most ``count`` places of the rows held then, none twice.

        Args:
            rows: What was held when the draw looks back to.
            count: How many.
            allowed: Says of a place whether it may be drawn; None if all may.
            seed: Makes the draw what it is.
        """
        return draw_uniformly(len(rows), count, allowed, seed)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def features_of(held: Held) -> Array:
    """The features of a policy that needs them, (n, dim)."""
    features = held.features
    assert features is not None  # the buffer asks for them, as needs_features says
    return features


def draw_uniformly(
    total: int, count: int, allowed: Callable[[int], bool] | None, seed: int
) -> Chosen:
    """Choose ``count`` of ``total`` places, all alike, in time that depends on ``count`` alone.

    Places are drawn and those that came before or may not be are passed over. Only if that takes
    too many is everybody asked.
    """
    places: list[int] = []
    if count * 2 < total:
        drawn = dict.fromkeys((uniforms(seed, 2 * count + 8) * total).astype(np.int64).tolist())
        some = drawn if allowed is None else filter(allowed, drawn)
        places = list(islice(some, count))
    if len(places) < min(count, total):
        order = np.argsort(uniforms(seed, total, start=2**32), kind="stable").tolist()
        free = order if allowed is None else [place for place in order if allowed(place)]
        places = free[:count]
    return Chosen(places, None)


def draw_weighted(
    weights: Array, count: int, allowed: Callable[[int], bool] | None, seed: int
) -> Chosen:
    """Choose places with chances in proportion to their weights, none twice.

    The chances hold exactly: ``count`` times a place's share of the weight of all that may be
    drawn. Whoever would have more than 1 is drawn for sure, and the others share what is left.

    Source:
        Madow's systematic sampling, in an order drawn anew each time: Hartley and Rao, Sampling
        with unequal probabilities and without replacement, Annals of Mathematical Statistics 33,
        1962, https://doi.org/10.1214/aoms/1177704564.
    """
    if allowed is not None:
        weights = np.where([allowed(place) for place in range(len(weights))], weights, 0.0)
    some = np.flatnonzero(weights > 0)
    count = min(count, len(some))
    if not count:
        return Chosen([], [])
    first, *turns = uniforms(seed, 1 + len(some)).tolist()
    some = some[np.argsort(turns, kind="stable")]
    chances = _inclusion(weights[some], count)
    # Laid end to end the chances are ``count`` long; whoever lies under one of ``count`` marks at
    # distance 1 is drawn.
    marks = np.searchsorted(np.cumsum(chances), first + np.arange(count), side="right")
    drawn = list(dict.fromkeys(np.minimum(marks, len(some) - 1).tolist()))
    return Chosen(some[drawn].tolist(), chances[drawn].tolist())


def _inclusion(weights: Array, count: int) -> Array:
    """Chances in proportion to the weights, none above 1, that add up to ``count``."""
    chances = np.ones(len(weights))
    open_ = np.arange(len(weights))  # whose chance is below 1
    while len(open_) > 0:
        left = count - (len(weights) - len(open_))
        chances[open_] = left * weights[open_] / weights[open_].sum()
        still = chances[open_] < 1.0
        chances[open_[~still]] = 1.0
        if still.all():
            break
        open_ = open_[still]
    return chances
