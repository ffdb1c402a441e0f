"""What flagging every score above a threshold finds, and how well any ranking could do there.

A threshold is a number or a share of the samples; how it was chosen is not its business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raremix.errors import EmbeddingShapeError, NonFiniteError, OptionError
from raremix.evaluation.scored import Bools, Floats, checked, checked_scores
from raremix.inputs import ArrayLike

__all__ = [
    "DEFAULT_RATES",
    "ThresholdRow",
    "flags_allowed",
    "threshold_at_rate",
    "threshold_table",
]

DEFAULT_RATES = (0.01, 0.02, 0.05, 0.10, 0.20)
"""Shares of the samples flagged in a threshold table, if nothing else is asked for."""


@dataclass(frozen=True)
class ThresholdRow:
    """What flagging every score above one threshold finds.

    Attributes:
        threshold: Scores above it are flagged.
        flagged: How many are.
        flag_rate: Share of all samples that are.
        precision: Share of the flagged that are rare; NaN if none is flagged.
        recall: Share of the rare that are flagged.
        f1: Harmonic mean of precision and recall, 0 if no rare sample is flagged.
        best_f1: The F1 of a perfect ranking that flags as many: no score can do better here.
        lift: Precision divided by prevalence, so 1 is chance; NaN if none is flagged.
    """

    threshold: float
    flagged: int
    flag_rate: float
    precision: float
    recall: float
    f1: float
    best_f1: float
    lift: float


def flags_allowed(samples: int, rate: float) -> int:
    """How many of so many samples may be flagged at a rate."""
    # 0.05 * 20 must not fall below 1 by rounding.
    return math.floor(rate * samples + 1e-9)


def threshold_at_rate(scores: ArrayLike | Sequence[float], rate: float) -> float:
    """The smallest score that at most a share of the samples exceeds.

    Args:
        scores: (n,) floats without NaN, n at least 1.
        rate: Share of the samples to flag, in (0, 1).

    Returns:
        A threshold above which lie ``floor(rate * n)`` scores, or fewer if some are equal. It is
        the one that ``FlagRate(rate)`` takes when it is fitted to the same scores.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers, or empty.
        NonFiniteError: If a score is NaN.
        OptionError: If ``rate`` lies outside (0, 1).

    Example:
        >>> threshold_at_rate([1.0, 2.0, 3.0, 4.0], rate=0.5)
        2.0
    """
    if not 0 < rate < 1:
        raise OptionError(f"threshold_at_rate expects a rate in (0, 1), got {rate}.")
    values = checked_scores(scores, caller="threshold_at_rate")
    if len(values) == 0:
        raise EmbeddingShapeError("threshold_at_rate expects at least 1 score, got none.")
    place = len(values) - 1 - flags_allowed(len(values), rate)
    return float(np.partition(values, max(place, 0))[max(place, 0)])


def threshold_table(
    scores: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    thresholds: Sequence[float] | None = None,
    rates: Sequence[float] = DEFAULT_RATES,
) -> tuple[ThresholdRow, ...]:
    """Precision, recall and F1 of flagging every score above each of several thresholds.

    The best F1 beside each row says how much of what is missing is the threshold's fault: with R
    rare samples, no ranking that flags F can exceed 2 min(F, R) / (F + R).

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.
        thresholds: Scores to cut at; given these, ``rates`` is not looked at.
        rates: Shares of the samples to flag, each in (0, 1). With ties, fewer are flagged.

    Returns:
        One row for each threshold or rate, in the order given.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score or a threshold is NaN.
        OptionError: If a rate lies outside (0, 1).

    Example:
        >>> (row,) = threshold_table([0.1, 0.2, 0.9, 0.8], [0, 0, 1, 0], thresholds=[0.5])
        >>> row.flagged, row.precision, row.recall
        (2, 0.5, 1.0)
    """
    values, rare = checked(scores, is_rare, caller="threshold_table")
    if thresholds is None:
        thresholds = [threshold_at_rate(values, rate) for rate in rates]
    elif np.isnan(np.asarray(thresholds, dtype=np.float64)).any():
        raise NonFiniteError("threshold_table got a threshold that is NaN; pass numbers.")
    return tuple(_threshold_row(values, rare, float(threshold)) for threshold in thresholds)


def _threshold_row(values: Floats, rare: Bools, threshold: float) -> ThresholdRow:
    is_flagged = values > threshold
    flagged, found, total = int(is_flagged.sum()), int((is_flagged & rare).sum()), int(rare.sum())
    precision = found / flagged if flagged else float("nan")
    return ThresholdRow(
        threshold=threshold,
        flagged=flagged,
        flag_rate=flagged / len(values),
        precision=precision,
        recall=found / total,
        f1=2 * found / (flagged + total),
        best_f1=2 * min(flagged, total) / (flagged + total),
        lift=precision * len(values) / total,
    )
