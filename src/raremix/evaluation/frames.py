"""Judges the scores of frames or of regions for each rare class by itself.

A frame may hold objects of several classes, a crop holds one at most. A recall is counted at a
flag rate of the whole collection, since that is what someone can look at; areas compare a class
with the samples that hold no rare class, so that finding another one is no false alarm. It knows
no images and no embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from raremix.errors import OptionError
from raremix.evaluation.cuts import flags_allowed, threshold_at_rate
from raremix.evaluation.holds import check_kinds, checked_holds
from raremix.evaluation.metrics import auroc, average_precision
from raremix.evaluation.resampling import (
    FEW,
    Contest,
    Grouping,
    Interval,
    Ladder,
    check_resamples,
    checked_groups,
    interval,
    redraw,
)
from raremix.evaluation.scored import Bools, Floats, checked_scores
from raremix.inputs import ArrayLike

__all__ = ["ANY_RARE", "CLASS_RATES", "ClassJudged", "RateJudged", "evaluate_classes"]

Against: TypeAlias = Literal["none", "all"]

ANY_RARE = "any rare"
"""The name of the row of all rare classes together."""

CLASS_RATES = (0.01, 0.05, 0.10)
"""Shares of the samples flagged for each class, if nothing else is asked for."""

_LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class RateJudged:
    """What flagging a share of the whole collection finds of one class.

    Attributes:
        rate: The share asked for.
        threshold: Scores above it are flagged.
        flagged: How many samples are; with ties, fewer than the rate allows.
        recall: Share of the samples of the class that are flagged.
        recall_interval: Its 95 % bootstrap interval, for which each resample is cut anew; None if
            there is none.
        best_recall: The recall of a perfect ranking without ties: no score that keeps to the rate
            can do better. 1 unless the class has more samples than may be flagged.
        chance_recall: The recall to expect of a random ranking, the rate in whole samples.
        precision: Share of the flagged that hold the class; NaN if none is flagged. What else was
            flagged may well be rare, too.
        f1: Harmonic mean of precision and recall, 0 if no sample of the class is flagged.
        best_f1: The F1 of a perfect ranking that flags as many as were flagged.
    """

    rate: float
    threshold: float
    flagged: int
    recall: float
    recall_interval: Interval | None
    best_recall: float
    chance_recall: float
    precision: float
    f1: float
    best_f1: float


@dataclass(frozen=True)
class ClassJudged:
    """How well scores find the samples that hold one rare class.

    What cannot be measured, of a class that no sample holds or that all hold, is NaN, and a note
    says why.

    Attributes:
        name: Of the class, or ``"any rare"``.
        samples: Scored samples of the whole collection, whatever they hold.
        count: Those that hold the class.
        left_out: Samples that hold the class and have no score (NaN); they are not judged.
        groups: Groups, such as frames, with a scored sample of the class; None without groups.
        compared: Samples that the class is compared with in the two areas.
        prevalence: ``count / (count + compared)``, which is the average precision of chance.
        average_precision: Area under the precision-recall steps, against those compared with.
        average_precision_interval: Its 95 % bootstrap interval, None if there is none.
        auroc: Chance that a sample of the class scores above one compared with.
        auroc_interval: Its 95 % bootstrap interval.
        rates: One row for each flag rate.
        redrawn: How many resamples did not hold the class, or nothing to compare it with, and were
            drawn anew.
        notes: What a reader should be warned of.
    """

    name: str
    samples: int
    count: int
    left_out: int
    groups: int | None
    compared: int
    prevalence: float
    average_precision: float
    average_precision_interval: Interval | None
    auroc: float
    auroc_interval: Interval | None
    rates: tuple[RateJudged, ...]
    redrawn: int
    notes: tuple[str, ...]


def evaluate_classes(
    scores: ArrayLike | Sequence[float],
    holds: Any,
    *,
    names: Sequence[str] | Mapping[Any, str] | None = None,
    rare: Sequence[Any] | None = None,
    rates: Sequence[float] = CLASS_RATES,
    against: Against = "none",
    groups: ArrayLike | Sequence[int] | Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    skip_nan: bool = False,
) -> tuple[ClassJudged, ...]:
    """Judge scores for each rare class, and for all of them together.

    Two questions are asked of each class, of two sets of samples:

    - Flagging a share of the *whole collection*, how much of the class is found? Samples of other
      rare classes are part of the collection and take their place among the flagged.
    - How well does the class stand out *from what is common*? Average precision and AUROC compare
      its samples with those that hold no rare class and leave the others out, so that they say
      nothing of which rare class was found first.

    The intervals redraw the whole collection, group by group, and cut every resample anew, so that
    prevalence, threshold and recall vary together. Without groups every sample is redrawn by
    itself; unlike ``bootstrap_intervals`` without groups, which keeps the prevalence, since a cut
    through the whole collection must not know what is rare.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed.
        holds: (n, C) bool, true where sample i holds an object of rare class c; or (n,) labels of
            one class each, integers or strings, together with ``rare``.
        names: Of the C columns in order, or of the labels by label; by default the number of the
            column, and the label as text.
        rare: The labels that count as rare, in the order of the rows; only where ``holds`` are
            labels.
        rates: Shares of the collection to flag, each in (0, 1).
        against: What the areas compare a class with: ``"none"``, the samples that hold no rare
            class, or ``"all"``, every sample that does not hold this one.
        groups: (n,) integers or strings, the frame of each crop or the clip of each frame.
        resamples: Bootstrap resamples, at least 20; 0 leaves the intervals out.
        seed: Seed of the bootstrap. All classes see the same draws.
        skip_nan: Leave samples without a score out and count them, rather than refuse them.

    Returns:
        One row for each class, in the order given, and one named ``"any rare"`` for the samples
        that hold at least one of them.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``holds`` does not fit the scores or is neither bool nor labels, if no
            sample holds a rare class, if all do and ``against`` is ``"none"``, if there are not as
            many names as columns, or if ``groups`` does not fit.
        NonFiniteError: If a score is NaN and ``skip_nan`` is not set.
        OptionError: If an option is out of range, or ``rare`` does not go with ``holds``.

    Example:
        >>> holds = [[True, False], [False, False], [False, True], [False, False]]
        >>> for row in evaluate_classes(
        ...     [0.9, 0.1, 0.4, 0.5], holds, names=["train", "bus"], rates=[0.25], resamples=0
        ... ):
        ...     print(row.name, row.count, row.average_precision, row.rates[0].recall)
        train 1 1.0 1.0
        bus 1 0.5 0.0
        any rare 2 0.8333333333333333 0.5
    """
    if against not in ("none", "all"):
        raise OptionError(f"evaluate_classes expects against 'none' or 'all', got {against!r}.")
    check_resamples(resamples, caller="evaluate_classes")
    values = checked_scores(scores, caller="evaluate_classes", skip_nan=skip_nan)
    members, titles = checked_holds(holds, names, rare, len(values))
    kept = ~np.isnan(values)
    check_kinds(members[kept], against)
    grouping = checked_groups(groups, kept, caller="evaluate_classes")
    missing = [*members[~kept].sum(axis=0).tolist(), int(members[~kept].any(axis=1).sum())]
    values, members = values[kept], members[kept]
    cuts = [_Cut(values, rate) for rate in rates]
    is_rare: Bools = np.asarray(members.any(axis=1))
    common = Ladder(values[~is_rare], grouping.codes[~is_rare])
    tallies = []
    for held in members.T:
        others = ~is_rare if against == "none" else ~held
        field = common if against == "none" else Ladder(values[others], grouping.codes[others])
        tallies.append(_Tally(values, held, others, grouping, field))
    tallies.append(_Tally(values, is_rare, ~is_rare, grouping, common))
    if resamples:
        _redraw(tallies, Ladder(values, grouping.codes), grouping, rates, resamples, seed)
    return tuple(
        tally.judged(title, cuts, left_out=left_out, is_grouped=groups is not None)
        for tally, title, left_out in zip(tallies, (*titles, ANY_RARE), missing, strict=True)
    )


class _Cut:
    """The whole collection cut at one rate."""

    def __init__(self, values: Floats, rate: float) -> None:
        self.rate = rate
        self.threshold = threshold_at_rate(values, rate)
        self.is_flagged: Bools = values > self.threshold
        self.flagged = int(self.is_flagged.sum())
        self.allowed = flags_allowed(len(values), rate)

    def judged(self, held: Bools, recall_interval: Interval | None) -> RateJudged:
        """What it finds of the samples that hold a class; NaN if none does."""
        count, found = int(held.sum()), int((held & self.is_flagged).sum())
        nan = float("nan")
        return RateJudged(
            rate=self.rate,
            threshold=self.threshold,
            flagged=self.flagged,
            recall=found / count if count else nan,
            recall_interval=recall_interval,
            best_recall=min(1.0, self.allowed / count) if count else nan,
            chance_recall=self.allowed / len(held),
            precision=found / self.flagged if self.flagged else nan,
            f1=2 * found / (self.flagged + count) if count else nan,
            best_f1=2 * min(self.flagged, count) / (self.flagged + count) if count else nan,
        )


class _Tally:
    """One class, what it is compared with, and what the resamples made of it."""

    def __init__(
        self, values: Floats, held: Bools, others: Bools, grouping: Grouping, field: Ladder
    ) -> None:
        self.values, self.held, self.others, self.grouping = values, held, others, grouping
        self.field = field
        self.is_measured = bool(held.any() and others.any())
        self.measures: list[tuple[float, ...]] = []
        self.redrawn = 0
        self._own = Ladder(values[held], grouping.codes[held])
        self._contest = Contest(self._own, field)

    def observe(self, weights: Floats, field_above: Floats, keys: Sequence[float]) -> None:
        """Measure a resample: AUROC, average precision, and the recall above each key."""
        own_above = self._own.above(weights)
        count = own_above[-1]
        if count == 0 or field_above[-1] == 0:
            self.redrawn += 1
            return
        recalls = [float(own_above[self._own.before(key)] / count) for key in keys]
        self.measures.append((*self._contest.measure(own_above, field_above), *recalls))

    def judged(
        self, name: str, cuts: Sequence[_Cut], *, left_out: int, is_grouped: bool
    ) -> ClassJudged:
        """The row of the class."""
        count, compared = int(self.held.sum()), int(self.others.sum())
        judged = self.held | self.others
        values, held = self.values[judged], self.held[judged]
        intervals: list[Interval | None] = [None] * (2 + len(cuts))
        if self.measures:
            intervals = [interval(column, _LEVEL) for column in zip(*self.measures, strict=True)]
        return ClassJudged(
            name=name,
            samples=len(self.values),
            count=count,
            left_out=left_out,
            groups=self.grouping.holding(self.held) if is_grouped else None,
            compared=compared,
            prevalence=float(held.mean()),
            average_precision=average_precision(values, held) if self.is_measured else float("nan"),
            average_precision_interval=intervals[1],
            auroc=auroc(values, held) if self.is_measured else float("nan"),
            auroc_interval=intervals[0],
            rates=tuple(
                cut.judged(self.held, found) for cut, found in zip(cuts, intervals[2:], strict=True)
            ),
            redrawn=self.redrawn,
            notes=tuple(self._notes(left_out, is_grouped=is_grouped)),
        )

    def _notes(self, left_out: int, *, is_grouped: bool) -> list[str]:
        notes = []
        if left_out:
            total = left_out + int(self.held.sum())
            notes.append(f"{left_out} of {total} samples of the class have no score (NaN).")
        if not self.held.any():
            notes.append("no scored sample holds the class, so there is nothing to find.")
        elif not self.others.any():
            notes.append("every scored sample holds the class: there is none to compare it with.")
        elif self.measures:
            of_class = self.grouping.holding(self.held)
            fewest = min(of_class, self.grouping.holding(self.others))
            if fewest < FEW:
                unit = "group" if is_grouped else "sample"
                drawn = f" ({self.redrawn} resamples were drawn anew)" if self.redrawn else ""
                notes.append(
                    f"only {fewest} {unit}{'s' * (fewest != 1)} "
                    f"{'with the class' if fewest == of_class else 'to compare it with'}{drawn}: "
                    f"from fewer than {FEW} an interval says nothing, and the truth may lie far "
                    "outside."
                )
        return notes


def _redraw(
    tallies: Sequence[_Tally],
    everyone: Ladder,
    grouping: Grouping,
    rates: Sequence[float],
    resamples: int,
    seed: int,
) -> None:
    """Show every tally the first resamples of one stream that hold its class."""
    waiting = [tally for tally in tallies if tally.is_measured]
    for weights in redraw(grouping, seed):
        waiting = [tally for tally in waiting if len(tally.measures) < resamples]
        # Of one group of the class and one of the others, both are drawn in more than a third of
        # the draws, however many groups there are; so this ends.
        if not waiting:
            break
        above = everyone.above(weights)
        keys = [everyone.cut(above, rate)[1] for rate in rates]
        # Most classes are compared with the same samples, which are summed once.
        fields = {field: field.above(weights) for field in {tally.field for tally in waiting}}
        for tally in waiting:
            tally.observe(weights, fields[tally.field], keys)
