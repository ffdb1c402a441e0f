"""Redraws whole groups of samples, such as the crops of a frame, and measures what was drawn.

A resample is how often each group was drawn; the samples are sorted once and never copied. It
knows neither classes nor what a group is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from raremix.errors import LabelError, OptionError
from raremix.evaluation.cuts import flags_allowed
from raremix.evaluation.scored import Bools, Floats, as_numpy

__all__ = [
    "FEW",
    "LEAST_RESAMPLES",
    "Contest",
    "Grouping",
    "Interval",
    "Ints",
    "Ladder",
    "check_resamples",
    "checked_groups",
    "interval",
    "redraw",
    "redrawn_groups",
]

Ints: TypeAlias = npt.NDArray[np.int64]

LEAST_RESAMPLES = 20
"""With fewer, an interval may not even hold the estimate."""

FEW = 5
"""Fewer rare samples, or groups with one, than this are redrawn to nearly themselves."""


@dataclass(frozen=True)
class Interval:
    """A two-sided bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Grouping:
    """Which samples are redrawn together.

    Attributes:
        codes: (n,) int64, the group of each sample, from 0 to ``count - 1``.
        count: How many groups there are.
    """

    codes: Ints
    count: int

    def holding(self, members: Bools) -> int:
        """How many groups hold at least one of the (n,) members."""
        return len(np.unique(self.codes[members]))


class Ladder:
    """Samples from the highest score down, so that the weight above each is a running sum.

    Args:
        scores: (n,) floats without NaN.
        codes: (n,) int64, the group of each sample.
    """

    def __init__(self, scores: Floats, codes: Ints) -> None:
        order = np.argsort(-scores, kind="stable")
        self.keys: Floats = -scores[order]  # Ascending, as a binary search wants them.
        self._codes = codes[order]

    def above(self, weights: Floats) -> Floats:
        """(n + 1,) weight of the highest 0, 1, ... n samples, from the weight of each group."""
        total = np.zeros(len(self.keys) + 1)
        np.cumsum(weights[self._codes], out=total[1:])
        return total

    def before(self, key: float) -> int:
        """How many samples score above the one that has this key."""
        return int(np.searchsorted(self.keys, key, side="left"))

    def cut(self, above: Floats, rate: float) -> tuple[float, float]:
        """Cut where ``threshold_at_rate`` would: the weight flagged, and the key of the cut."""
        allowed = min(flags_allowed(int(above[-1]), rate), int(above[-1]) - 1)
        # The sample that the weights allowed no longer cover; it was drawn, and is not flagged.
        key = float(self.keys[np.searchsorted(above, allowed, side="right") - 1])
        return float(above[self.before(key)]), key


class Contest:
    """Rare samples against common ones, whatever weights both have."""

    def __init__(self, rare: Ladder, common: Ladder) -> None:
        self._found = np.searchsorted(rare.keys, rare.keys, side="right")
        self._higher = np.searchsorted(common.keys, rare.keys, side="left")
        self._not_lower = np.searchsorted(common.keys, rare.keys, side="right")

    def measure(self, rare_above: Floats, common_above: Floats) -> tuple[float, float]:
        """AUROC and average precision, from ``Ladder.above`` of both; neither may weigh nothing."""
        drawn = np.diff(rare_above)
        higher, not_lower = common_above[self._higher], common_above[self._not_lower]
        beaten = common_above[-1] - (higher + not_lower) / 2
        area = (drawn * beaten).sum() / (rare_above[-1] * common_above[-1])
        found = rare_above[self._found]
        # A resample may hold none of the highest samples: nothing is flagged there.
        precision = found / np.maximum(found + not_lower, 1)
        return float(area), float((drawn * precision).sum() / rare_above[-1])


def checked_groups(groups: Any, kept: Bools, *, caller: str) -> Grouping:
    """The groups of the samples that are kept; each its own group where ``groups`` is None.

    Args:
        groups: (n,) integers or strings, or None.
        kept: (n,) bool; groups of which nothing is kept are no groups.
        caller: The call to name in an error.

    Raises:
        LabelError: If ``groups`` is not (n,) integers or strings, or is all one group.
    """
    if groups is None:
        count = int(kept.sum())
        return Grouping(np.arange(count), count)
    values = as_numpy(groups)
    if values.shape != kept.shape:
        raise LabelError(
            f"{caller} got {len(kept)} scores and groups of shape {values.shape}; pass the group "
            "of each sample, such as its frame, in the same order."
        )
    if values.dtype.kind not in "iuUS":
        raise LabelError(
            f"{caller} expects groups as whole numbers or strings, got {values.dtype}; pass the "
            "number or the name of each sample's frame."
        )
    names, codes = np.unique(values[kept], return_inverse=True)
    if len(names) < 2:
        raise LabelError(
            f"{caller} redraws groups, and all {len(codes)} samples are of one; pass the frame or "
            "clip of each sample, or leave groups out."
        )
    return Grouping(codes.reshape(-1).astype(np.int64), len(names))


def check_resamples(resamples: int, *, caller: str) -> None:
    """Raise ``OptionError`` unless there are enough resamples, or none."""
    if resamples and resamples < LEAST_RESAMPLES:
        raise OptionError(
            f"{caller} expects 0 resamples, for no intervals, or at least {LEAST_RESAMPLES}, got "
            f"{resamples}; 1,000 are usual."
        )


def redraw(grouping: Grouping, seed: int) -> Iterator[Floats]:
    """Draw as many groups as there are, again and again, each as likely as the others.

    Yields:
        (groups,) float64: how often each group was drawn, which is the weight of its samples.
    """
    generator = np.random.default_rng(seed)
    while True:
        drawn = generator.integers(grouping.count, size=grouping.count)
        yield np.bincount(drawn, minlength=grouping.count).astype(np.float64)


def redrawn_groups(
    values: Floats, rare: Bools, grouping: Grouping, resamples: int, seed: int
) -> tuple[list[float], list[float], int]:
    """AUROC and average precision of each resample, and how many had to be drawn anew."""
    upper = Ladder(values[rare], grouping.codes[rare])
    lower = Ladder(values[~rare], grouping.codes[~rare])
    contest = Contest(upper, lower)
    areas: list[float] = []
    precisions: list[float] = []
    redrawn = 0
    # Every group holds rare or common samples, so at least half of the draws hold both.
    for weights in redraw(grouping, seed):
        rare_above, common_above = upper.above(weights), lower.above(weights)
        if rare_above[-1] == 0 or common_above[-1] == 0:
            redrawn += 1
            continue
        area, precision = contest.measure(rare_above, common_above)
        areas.append(area)
        precisions.append(precision)
        if len(areas) == resamples:
            break
    return areas, precisions, redrawn


def interval(values: Sequence[float], level: float) -> Interval:
    """The percentile interval of a measure's resamples; where some are infinite, it may be, too."""
    tail = (1 - level) / 2
    found = np.sort(np.asarray(values))
    if not np.isfinite(found).all():
        # Between a number and infinity lies nothing, so the next value outside is taken.
        last = len(found) - 1
        low, high = found[math.floor(tail * last)], found[math.ceil((1 - tail) * last)]
    else:
        low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(low), float(high))
