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
from raremix.evaluation.resampling import (
    FEW,
    LEAST_RESAMPLES,
    Grouping,
    Interval,
    check_resamples,
    checked_groups,
    interval,
    redrawn_groups,
)
from raremix.evaluation.scored import Bools, Floats, Ranking, as_numpy, checked
from raremix.inputs import ArrayLike

__all__ = ["Evaluation", "bootstrap_intervals", "evaluate"]

_LEVEL = 0.95
"""Of the intervals of an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one set of scores.

    Attributes:
        samples: How many were judged.
        rare: How many of them are rare.
        left_out: How many had no score (NaN) and were not judged.
        groups: How many groups, such as frames, the samples are of; None if that was not said.
        prevalence: Share of rare samples, which is also the average precision of chance.
        auroc: Chance that a rare sample scores above a common one, ties counted half.
        auroc_interval: Its 95 % bootstrap interval, None if none was asked for.
        average_precision: Area under the precision-recall steps.
        average_precision_interval: Its 95 % bootstrap interval.
        lift: Average precision divided by prevalence.
        fpr95: False-positive rate at 95 % true positives, both conventions.
        redrawn: How many resamples of groups held no rare sample or no common one, and were drawn
            anew.
        thresholds: One row for each threshold.
        notes: What a reader should be warned of.
    """

    samples: int
    rare: int
    left_out: int
    groups: int | None
    prevalence: float
    auroc: float
    auroc_interval: Interval | None
    average_precision: float
    average_precision_interval: Interval | None
    lift: float
    fpr95: FPR95
    redrawn: int
    thresholds: tuple[ThresholdRow, ...]
    notes: tuple[str, ...]


def bootstrap_intervals(
    scores: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    groups: ArrayLike | Sequence[int] | Sequence[str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Percentile bootstrap intervals of AUROC and of average precision.

    Without groups, rare and common samples are redrawn separately, so every resample has the same
    prevalence, on which average precision depends, and samples count as independent.

    Crops of one frame are not, nor are frames of one video, and their true intervals are wider.
    With groups, as many groups as there are are drawn with replacement, each with all its samples,
    so the prevalence varies as it would in another collection. A resample that holds no rare
    sample, or no common one, is drawn anew. Samples of a group may then be as alike as they
    please; the groups count as independent.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.
        groups: (n,) integers or strings, the frame or clip that each sample is of.
        resamples: How many times to redraw, at least 20; time and not memory grows with it.
        level: Share of the resamples inside the interval, in (0, 1).
        seed: Seed of the draws. The global generators are not touched.

    Returns:
        The interval of AUROC and the interval of average precision.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same; or if
            ``groups`` is not as long, not whole numbers or strings, or all one group.
        NonFiniteError: If a score is NaN.
        OptionError: If ``resamples`` or ``level`` is out of range.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for groups
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    if resamples < LEAST_RESAMPLES:
        raise OptionError(
            f"bootstrap_intervals expects at least {LEAST_RESAMPLES} resamples, got {resamples}; "
            "1,000 are usual."
        )
    if not 0 < level < 1:
        raise OptionError(f"bootstrap_intervals expects a level in (0, 1), got {level}.")
    values, rare = checked(scores, is_rare, caller="bootstrap_intervals")
    if groups is None:
        areas, precisions = _redrawn_samples(values, rare, resamples, seed)
    else:
        grouping = checked_groups(
            groups, np.ones(len(values), dtype=np.bool_), caller="bootstrap_intervals"
        )
        areas, precisions, _ = redrawn_groups(values, rare, grouping, resamples, seed)
    return interval(areas, level), interval(precisions, level)


def evaluate(
    scores: ArrayLike | Sequence[float],
    is_rare: ArrayLike | Sequence[bool],
    *,
    groups: ArrayLike | Sequence[int] | Sequence[str] | None = None,
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
        groups: (n,) integers or strings, the frame or clip that each sample is of; the intervals
            then redraw whole groups, as ``bootstrap_intervals`` does.
        thresholds: Scores to cut at; given these, ``rates`` is not looked at.
        rates: Shares of the samples to flag, each in (0, 1).
        resamples: Bootstrap resamples, at least 20; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        skip_nan: Leave samples without a score out and count them, rather than refuse them.

    Returns:
        The frozen result.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same; or if
            ``groups`` is not as long, not whole numbers or strings, or all one group.
        NonFiniteError: If a score is NaN and ``skip_nan`` is not set.
        OptionError: If a rate or ``resamples`` is out of range.

    Example:
        >>> result = evaluate([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], resamples=0)
        >>> result.auroc, result.prevalence
        (0.75, 0.5)
    """
    values, rare = checked(scores, is_rare, caller="evaluate", skip_nan=skip_nan)
    kept = ~np.isnan(as_numpy(scores).astype(np.float64))
    left_out = len(kept) - len(values)
    grouping = None if groups is None else checked_groups(groups, kept, caller="evaluate")
    check_resamples(resamples, caller="evaluate")
    area_interval = precision_interval = None
    redrawn = 0
    if resamples:
        if grouping is None:
            areas, precisions = _redrawn_samples(values, rare, resamples, seed)
        else:
            areas, precisions, redrawn = redrawn_groups(values, rare, grouping, resamples, seed)
        area_interval, precision_interval = interval(areas, _LEVEL), interval(precisions, _LEVEL)
    area, precision = auroc(values, rare), average_precision(values, rare)
    prevalence = float(rare.mean())
    notes = []
    if left_out:
        notes.append(f"{left_out} of {left_out + len(values)} samples have no score (NaN).")
    fewest, note = _fewest(rare, grouping, redrawn)
    if area_interval is not None and note:
        notes.append(note)
    # Where the interval reaches 0.5, or says nothing, an area below it may be chance.
    is_sure = area_interval is None or (area_interval.high < 0.5 and fewest >= FEW)
    if area < 0.5 and is_sure:
        notes.append(
            f"AUROC {area:.3f} is below chance: check the sign of the score (larger must mean "
            "rarer) or the features, where rare samples may lie near the common mean."
        )
    return Evaluation(
        samples=len(values),
        rare=int(rare.sum()),
        left_out=left_out,
        groups=None if grouping is None else grouping.count,
        prevalence=prevalence,
        auroc=area,
        auroc_interval=area_interval,
        average_precision=precision,
        average_precision_interval=precision_interval,
        lift=precision / prevalence,
        fpr95=fpr_at_95_tpr(values, rare),
        redrawn=redrawn,
        thresholds=threshold_table(values, rare, thresholds=thresholds, rates=rates),
        notes=tuple(notes),
    )


def _redrawn_samples(
    values: Floats, rare: Bools, resamples: int, seed: int
) -> tuple[list[float], list[float]]:
    """AUROC and average precision of each resample of the rare and the common samples apart."""
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
        areas.append(float(area_under_roc(*drawn)[0]))
        precisions.append(float(area_under_steps(*drawn)[0]))
    return areas, precisions


def _fewest(rare: Bools, grouping: Grouping | None, redrawn: int) -> tuple[int, str]:
    """How many rare or common samples, or groups of them, there are, and a note if few."""
    of_rare, of_common = int(rare.sum()), int((~rare).sum())
    if grouping is not None:
        of_rare, of_common = grouping.holding(rare), grouping.holding(~rare)
    fewest = min(of_rare, of_common)
    if fewest >= FEW:
        return fewest, ""
    kind = "rare" if of_rare == fewest else "common"
    if grouping is None:
        note = f"only {fewest} of {len(rare)} samples {'is' if fewest == 1 else 'are'} {kind}"
    else:
        note = f"only {fewest} of {grouping.count} groups hold{'s' * (fewest == 1)} {kind} samples"
        if redrawn:
            note += f" ({redrawn} resamples held one kind only and were drawn anew)"
    return fewest, (
        f"{note}: from fewer than {FEW} an interval says nothing, and the truth may lie far "
        "outside."
    )
