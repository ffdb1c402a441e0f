"""How much better one set of scores is than another, of the same samples.

Both are measured in the same resamples, so what makes a resample easy or hard for both of them
does not blur their difference. It says how sure a difference is, not what made it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raremix.errors import LabelError, NonFiniteError, OptionError
from raremix.evaluation.cuts import threshold_table
from raremix.evaluation.metrics import auroc, average_precision
from raremix.evaluation.resampling import (
    LEAST_RESAMPLES,
    Contest,
    Interval,
    Ints,
    Ladder,
    checked_groups,
    interval,
    redraw,
)
from raremix.evaluation.scored import Bools, Floats, checked, checked_scores
from raremix.inputs import ArrayLike

__all__ = ["Paired", "paired_difference"]

_LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Paired:
    """One measure of two sets of scores, side by side.

    Attributes:
        measure: What was measured, as it was asked for.
        value_a: Of the first scores.
        value_b: Of the second scores.
        difference: ``value_a - value_b``.
        difference_interval: Its 95 % bootstrap interval.
        ratio: ``value_a / value_b``; infinite where ``value_b`` is 0, NaN where both are.
        ratio_interval: Its 95 % bootstrap interval. Its ends may be infinite; None if both values
            are 0 in every resample.
        undefined: How many resamples have two values of 0, and so no ratio; the interval of the
            ratio does without them.
        redrawn: How many resamples held no rare sample or no common one, and were drawn anew.
    """

    measure: str
    value_a: float
    value_b: float
    difference: float
    difference_interval: Interval
    ratio: float
    ratio_interval: Interval | None
    undefined: int
    redrawn: int


def paired_difference(
    scores_a: ArrayLike | Sequence[float],
    scores_b: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    measure: str = "average_precision",
    groups: ArrayLike | Sequence[int] | Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Measure two sets of scores in the same bootstrap resamples.

    The whole collection is redrawn, group by group, or sample by sample without groups, and cut
    anew in every resample where the measure is taken at a rate.

    Args:
        scores_a: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        scores_b: (n,) floats of the same samples, in the same order, on any scale of their own.
        is_rare: (n,) bool, or integers 0 and 1.
        measure: ``"average_precision"``, ``"auroc"``, or ``"recall@RATE"`` and ``"f1@RATE"`` when
            flagging that share of the samples, such as ``"recall@0.10"``.
        groups: (n,) integers or strings, the frame or clip that each sample is of.
        resamples: How many times to redraw, at least 20.
        seed: Seed of the draws.

    Returns:
        Both values, their difference and their ratio, with intervals.

    Raises:
        EmbeddingShapeError: If scores are not (n,) numbers.
        LabelError: If the two are not equally long, if ``is_rare`` is not as long, not true or
            false, or all the same, or if ``groups`` does not fit.
        NonFiniteError: If a score is NaN.
        OptionError: If ``measure`` is none of these, or ``resamples`` is out of range.

    Example:
        >>> found = paired_difference(
        ...     [0.9, 0.8, 0.2, 0.1], [0.9, 0.1, 0.8, 0.2], [1, 1, 0, 0], resamples=20
        ... )
        >>> found.value_a, found.value_b, found.ratio
        (1.0, 0.75, 1.3333333333333333)
    """
    if resamples < LEAST_RESAMPLES:
        raise OptionError(
            f"paired_difference expects at least {LEAST_RESAMPLES} resamples, got {resamples}; "
            "1,000 are usual."
        )
    kind, rate = _parsed(measure)
    both = [
        checked_scores(scores, caller="paired_difference", skip_nan=True)
        for scores in (scores_a, scores_b)
    ]
    if len(both[0]) != len(both[1]):
        raise LabelError(
            f"paired_difference got {len(both[0])} and {len(both[1])} scores; pass both of the "
            "same samples, in the same order."
        )
    missing = int((np.isnan(both[0]) | np.isnan(both[1])).sum())
    if missing:
        raise NonFiniteError(
            f"paired_difference got {missing} of {len(both[0])} samples without a score (NaN) in "
            "one of the two; leave them out of both, so that both are judged by the same samples."
        )
    _, rare = checked(both[0], is_rare, caller="paired_difference")
    grouping = checked_groups(
        groups, np.ones(len(rare), dtype=np.bool_), caller="paired_difference"
    )
    # How many samples of each kind a group brings along.
    brings = np.stack(
        [np.bincount(grouping.codes[kept], minlength=grouping.count) for kept in (rare, ~rare)]
    )
    sides = [_Side(values, rare, grouping.codes, kind, rate) for values in both]
    found: list[tuple[float, float]] = []
    redrawn = 0
    # Every group holds rare or common samples, so at least half of the draws hold both.
    for weights in redraw(grouping, seed):
        if (brings @ weights == 0).any():
            redrawn += 1
            continue
        found.append((sides[0].measured(weights), sides[1].measured(weights)))
        if len(found) == resamples:
            break
    first, second = (side.value for side in sides)
    ratios = [_ratio(*pair) for pair in found if pair != (0, 0)]
    return Paired(
        measure=measure,
        value_a=first,
        value_b=second,
        difference=first - second,
        difference_interval=interval([a - b for a, b in found], _LEVEL),
        ratio=_ratio(first, second),
        ratio_interval=interval(ratios, _LEVEL) if ratios else None,
        undefined=len(found) - len(ratios),
        redrawn=redrawn,
    )


class _Side:
    """One set of scores and its measure, of all samples and of resamples."""

    def __init__(
        self, values: Floats, rare: Bools, codes: Ints, kind: str, rate: float | None
    ) -> None:
        self._kind, self._rate = kind, rate
        self._rare = Ladder(values[rare], codes[rare])
        # What rare samples are held against: the common ones, or the budget for everyone.
        others = ~rare if rate is None else np.ones(len(rare), dtype=np.bool_)
        self._others = Ladder(values[others], codes[others])
        self._contest = Contest(self._rare, self._others)
        if rate is not None:
            (row,) = threshold_table(values, rare, rates=[rate])
            self.value = row.recall if kind == "recall" else row.f1
        else:
            self.value = (auroc if kind == "auroc" else average_precision)(values, rare)

    def measured(self, weights: Floats) -> float:
        """The measure of a resample, given the weight of each group."""
        rare_above, above = self._rare.above(weights), self._others.above(weights)
        if self._rate is None:
            area, precision = self._contest.measure(rare_above, above)
            return area if self._kind == "auroc" else precision
        flagged, key = self._others.cut(above, self._rate)
        found, total = float(rare_above[self._rare.before(key)]), float(rare_above[-1])
        return found / total if self._kind == "recall" else 2 * found / (flagged + total)


def _parsed(measure: str) -> tuple[str, float | None]:
    """The kind of a measure, and the rate it is taken at, if any."""
    kind, _, text = measure.partition("@")
    if measure in ("average_precision", "auroc"):
        return kind, None
    try:
        rate = float(text)
    except ValueError:
        rate = float("nan")
    if kind not in ("recall", "f1") or not 0 < rate < 1:
        raise OptionError(
            "paired_difference expects measure 'average_precision', 'auroc', 'recall@RATE' or "
            f"'f1@RATE' with a rate in (0, 1), such as 'recall@0.10', got {measure!r}."
        )
    return kind, rate


def _ratio(first: float, second: float) -> float:
    if second:
        return first / second
    return float("inf") if first else float("nan")
