"""Everything measured of one set of scores, with intervals that say how far to trust it.

It adds the bootstrap and the warnings to read the numbers by; the measures are in ``metrics``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raremix.errors import OptionError
from raremix.evaluation.cuts import DEFAULT_RATES, ThresholdRow, threshold_table
from raremix.evaluation.metrics import (
    FPR95,
    area_under_roc,
    area_under_steps,
    auroc,
    average_precision,
    fpr_at_95_tpr,
)
from raremix.evaluation.scored import Ranking, as_numpy, checked
from raremix.inputs import ArrayLike

__all__ = ["Evaluation", "Interval", "bootstrap_intervals", "evaluate"]

_LEAST_RESAMPLES = 20
"""With fewer, an interval may not even hold the estimate."""

_FEW = 5
"""Fewer rare samples than this are redrawn to nearly themselves."""


@dataclass(frozen=True)
class Interval:
    """A two-sided bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one set of scores.

    Attributes:
        samples: How many were judged.
        rare: How many of them are rare.
        left_out: How many had no score (NaN) and were not judged.
        prevalence: Share of rare samples, which is also the average precision of chance.
        auroc: Chance that a rare sample scores above a common one, ties counted half.
        auroc_interval: Its 95 % bootstrap interval, None if none was asked for.
        average_precision: Area under the precision-recall steps.
        average_precision_interval: Its 95 % bootstrap interval.
        lift: Average precision divided by prevalence.
        fpr95: False-positive rate at 95 % true positives, both conventions.
        thresholds: One row for each threshold.
        notes: What a reader should be warned of.
    """

    samples: int
    rare: int
    left_out: int
    prevalence: float
    auroc: float
    auroc_interval: Interval | None
    average_precision: float
    average_precision_interval: Interval | None
    lift: float
    fpr95: FPR95
    thresholds: tuple[ThresholdRow, ...]
    notes: tuple[str, ...]


def bootstrap_intervals(
    scores: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Percentile bootstrap intervals of AUROC and of average precision.

    Rare and common samples are redrawn separately, so every resample has the same prevalence, on
    which average precision depends. Samples count as independent: frames of one video are not,
    and their true intervals are wider.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.
        resamples: How many times to redraw, at least 20; time and not memory grows with it.
        level: Share of the resamples inside the interval, in (0, 1).
        seed: Seed of the draws. The global generators are not touched.

    Returns:
        The interval of AUROC and the interval of average precision.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score is NaN.
        OptionError: If ``resamples`` or ``level`` is out of range.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if resamples < _LEAST_RESAMPLES:
        raise OptionError(
            f"bootstrap_intervals expects at least {_LEAST_RESAMPLES} resamples, got {resamples}; "
            "1,000 are usual."
        )
    if not 0 < level < 1:
        raise OptionError(f"bootstrap_intervals expects a level in (0, 1), got {level}.")
    values, rare = checked(scores, is_rare, caller="bootstrap_intervals")
    ranking = Ranking(values, rare)
    generator = np.random.default_rng(seed)
    # A resample of n ranks holds each rank as often as n equal chances fall on it.
    rare_ranks, common_ranks = ranking.ranks[rare], ranking.ranks[~rare]
    areas, precisions = [], []
    for _ in range(resamples):
        drawn = [
            np.bincount(
                ranks[generator.integers(len(ranks), size=len(ranks))], minlength=ranking.distinct
            ).astype(np.float64)[None]
            for ranks in (rare_ranks, common_ranks)
        ]
        areas.append(area_under_roc(*drawn)[0])
        precisions.append(area_under_steps(*drawn)[0])
    tail = (1 - level) / 2
    return _interval(areas, tail), _interval(precisions, tail)


def evaluate(
    scores: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    thresholds: Sequence[float] | None = None,
    rates: Sequence[float] = DEFAULT_RATES,
    resamples: int = 1000,
    seed: int = 0,
    skip_nan: bool = False,
) -> Evaluation:
    """Measure everything this module measures of one set of scores.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed.
        is_rare: (n,) bool, or integers 0 and 1.
        thresholds: Scores to cut at; given these, ``rates`` is not looked at.
        rates: Shares of the samples to flag, each in (0, 1).
        resamples: Bootstrap resamples, at least 20; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        skip_nan: Leave samples without a score out and count them, rather than refuse them.

    Returns:
        The frozen result.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score is NaN and ``skip_nan`` is not set.
        OptionError: If a rate or ``resamples`` is out of range.

    Example:
        >>> result = evaluate([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], resamples=0)
        >>> result.auroc, result.prevalence
        (0.75, 0.5)
    """
    values, rare = checked(scores, is_rare, caller="evaluate", skip_nan=skip_nan)
    left_out = np.size(as_numpy(scores)) - len(values)
    if resamples and resamples < _LEAST_RESAMPLES:
        raise OptionError(
            f"evaluate expects 0 resamples, for no intervals, or at least {_LEAST_RESAMPLES}, got "
            f"{resamples}; 1,000 are usual."
        )
    area_interval = precision_interval = None
    if resamples:
        area_interval, precision_interval = bootstrap_intervals(
            values, rare, resamples=resamples, seed=seed
        )
    area, precision = auroc(values, rare), average_precision(values, rare)
    prevalence = float(rare.mean())
    notes = []
    if left_out:
        notes.append(f"{left_out} of {left_out + len(values)} samples have no score (NaN).")
    fewest = min(int(rare.sum()), int((~rare).sum()))
    if area_interval is not None and fewest < _FEW:
        kind = "rare" if rare.sum() == fewest else "common"
        notes.append(
            f"only {fewest} of {len(values)} samples {'is' if fewest == 1 else 'are'} {kind}: from "
            f"fewer than {_FEW} an interval says nothing, and the truth may lie far outside."
        )
    # Where the interval reaches 0.5, or says nothing, an area below it may be chance.
    is_sure = area_interval is None or (area_interval.high < 0.5 and fewest >= _FEW)
    if area < 0.5 and is_sure:
        notes.append(
            f"AUROC {area:.3f} is below chance: check the sign of the score (larger must mean "
            "rarer) or the features, where rare samples may lie near the common mean."
        )
    return Evaluation(
        samples=len(values),
        rare=int(rare.sum()),
        left_out=left_out,
        prevalence=prevalence,
        auroc=area,
        auroc_interval=area_interval,
        average_precision=precision,
        average_precision_interval=precision_interval,
        lift=precision / prevalence,
        fpr95=fpr_at_95_tpr(values, rare),
        thresholds=threshold_table(values, rare, thresholds=thresholds, rates=rates),
        notes=tuple(notes),
    )


def _interval(values: Sequence[float], tail: float) -> Interval:
    low, high = np.quantile(np.asarray(values), [tail, 1 - tail])
    return Interval(float(low), float(high))
