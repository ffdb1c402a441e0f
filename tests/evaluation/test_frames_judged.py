"""Scores judged class by class, against resamples that copy rows and rankings tried one by one."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redrawing import quantiles, redrawn_rows
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from raremix.errors import EmbeddingShapeError, LabelError, NonFiniteError, OptionError
from raremix.evaluation import (
    ANY_RARE,
    CLASS_RATES,
    ClassJudged,
    Interval,
    auroc,
    average_precision,
    evaluate,
    evaluate_classes,
    threshold_at_rate,
)

NAMES = ("train", "bus", "rider")


def _data(n: int = 240, groups: int = 20, seed: int = 0) -> tuple[Any, Any, Any]:
    """Scores with ties, frames that hold up to three classes, and clips of different lengths."""
    generator = np.random.default_rng(seed)
    holds = generator.random((n, 3)) < (0.05, 0.1, 0.2)
    scores = generator.integers(0, 12, size=n) + holds @ (4, 2, 1)
    return scores.astype(float), holds, generator.integers(groups, size=n)


def _by_name(rows: tuple[ClassJudged, ...]) -> dict[str, ClassJudged]:
    return {row.name: row for row in rows}


def _ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def _compared(holds: Any, place: int, against: str) -> Any:
    return ~holds.any(axis=1) if against == "none" else ~holds[:, place]


@pytest.mark.parametrize("against", ["none", "all"])
def test_the_areas_are_those_against_the_samples_compared_with(against: Any) -> None:
    scores, holds, _ = _data()
    rows = evaluate_classes(scores, holds, names=NAMES, against=against, resamples=0)
    assert [row.name for row in rows] == [*NAMES, ANY_RARE]
    for place, row in enumerate(rows[:3]):
        others = _compared(holds, place, against)
        judged = others | holds[:, place]
        truth = holds[judged, place]
        assert (row.samples, row.count) == (240, holds[:, place].sum())
        assert (row.compared, row.prevalence) == (others.sum(), truth.mean())
        assert row.auroc == pytest.approx(roc_auc_score(truth, scores[judged]))
        assert row.average_precision == pytest.approx(
            average_precision_score(truth, scores[judged])
        )
        assert (row.auroc_interval, row.average_precision_interval) == (None, None)
        assert (row.groups, row.redrawn, row.left_out, row.notes) == (None, 0, 0, ())


def test_the_rates_are_shares_of_the_whole_collection() -> None:
    scores, holds, _ = _data()
    rows = evaluate_classes(scores, holds, names=NAMES, rates=(0.02, 0.3), resamples=0)
    for held, row in zip((*holds.T, holds.any(axis=1)), rows, strict=True):
        assert [cut.rate for cut in row.rates] == [0.02, 0.3]
        for cut in row.rates:
            flags = scores > threshold_at_rate(scores, cut.rate)
            assert (cut.threshold, cut.flagged) == (
                threshold_at_rate(scores, cut.rate),
                flags.sum(),
            )
            assert cut.recall == flags[held].mean()
            assert cut.precision == pytest.approx(precision_score(held, flags))
            assert cut.f1 == pytest.approx(f1_score(held, flags))
            assert cut.recall_interval is None


@pytest.mark.parametrize("against", ["none", "all"])
@pytest.mark.parametrize("is_grouped", [True, False])
def test_the_intervals_are_those_of_resamples_that_copy_rows(
    against: Any, is_grouped: bool
) -> None:
    scores, holds, groups = _data(n=120, groups=15)
    found = evaluate_classes(
        scores,
        holds,
        names=NAMES,
        rates=[0.05, 0.2],
        against=against,
        groups=groups if is_grouped else None,
        resamples=40,
        seed=7,
    )
    for place, row in enumerate(found[:3]):
        measured: list[tuple[float, ...]] = []
        for rows in redrawn_rows(groups if is_grouped else np.arange(120), seed=7):
            held, others = holds[rows, place], _compared(holds, place, against)[rows]
            if not held.any() or not others.any():
                continue
            s, judged = scores[rows], held | others
            recalls = [(s > threshold_at_rate(s, rate))[held].mean() for rate in (0.05, 0.2)]
            areas = auroc(s[judged], held[judged]), average_precision(s[judged], held[judged])
            measured.append((*areas, *recalls))
            if len(measured) == 40:
                break
        intervals = [row.auroc_interval, row.average_precision_interval]
        intervals += [cut.recall_interval for cut in row.rates]
        for interval, values in zip(intervals, zip(*measured, strict=True), strict=True):
            assert _ends(interval) == pytest.approx(tuple(quantiles(values)), abs=1e-12)


def test_all_rare_classes_together_are_what_evaluate_judges() -> None:
    scores, holds, groups = _data()
    row = evaluate_classes(scores, holds, groups=groups, resamples=50, seed=5)[-1]
    whole = evaluate(scores, holds.any(axis=1), groups=groups, resamples=50, seed=5)
    assert row.name == ANY_RARE
    assert (row.auroc, row.average_precision) == (whole.auroc, whole.average_precision)
    assert row.auroc_interval == whole.auroc_interval
    assert row.average_precision_interval == whole.average_precision_interval
    assert (row.prevalence, row.redrawn) == (whole.prevalence, whole.redrawn)


def test_labels_of_one_class_each_are_read_as_flags_are() -> None:
    generator = np.random.default_rng(1)
    labels = generator.choice(["car", "bus", "train"], size=200, p=[0.8, 0.15, 0.05])
    scores = generator.normal(size=200) + (labels == "train")
    holds = np.stack([labels == "train", labels == "bus"], axis=1)
    options: Any = {"groups": np.arange(200) // 5, "resamples": 20}
    expected = evaluate_classes(scores, holds, names=["train", "bus"], **options)
    assert evaluate_classes(scores, labels, rare=["train", "bus"], **options) == expected
    numbers = torch.tensor([{"car": 0, "bus": 7, "train": 9}[label] for label in labels])
    named = evaluate_classes(
        torch.from_numpy(scores), numbers, rare=[9, 7], names={9: "train", 7: "bus"}, **options
    )
    assert named == expected


def test_flags_of_one_and_zero_are_read_as_flags_and_columns_go_by_number() -> None:
    scores, holds, _ = _data()
    rows = evaluate_classes(scores, holds.astype(np.uint8), resamples=0)
    expected = evaluate_classes(scores, holds, names=["0", "1", "2"], resamples=0)
    assert rows == expected


def test_another_rare_class_takes_a_place_at_the_rate_but_is_no_false_alarm() -> None:
    scores = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    holds = np.zeros((10, 2), bool)
    holds[0, 0] = holds[1, 1] = True
    train, bus, both = evaluate_classes(scores, holds, rates=[0.1], resamples=0)
    assert (train.average_precision, bus.average_precision) == (1.0, 1.0)
    assert [row.rates[0].recall for row in (train, bus, both)] == [1.0, 0.0, 0.5]
    one = evaluate_classes(scores, holds, against="all", rates=[0.1], resamples=0)
    assert one[1].average_precision == 0.5


def test_the_best_recall_and_the_best_f1_are_the_best_over_all_rankings() -> None:
    held = np.array([True, True, False, False, False])
    for rate, flagged in ((0.2, 1), (0.4, 2), (0.7, 3)):
        tried = [
            evaluate_classes(order, held[:, None], rates=[rate], resamples=0)[0].rates[0]
            for order in permutations(np.arange(5.0))
        ]
        assert {cut.flagged for cut in tried} == {flagged}
        assert {cut.best_recall for cut in tried} == {max(cut.recall for cut in tried)}
        assert {cut.best_f1 for cut in tried} == {max(cut.f1 for cut in tried)}
        mean = np.mean([cut.recall for cut in tried])
        assert tried[0].chance_recall == pytest.approx(mean)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.005, 0.6))
def test_no_score_does_better_than_the_best(seed: int, rate: float) -> None:
    scores, holds, _ = _data(n=60, seed=seed)
    holds[0], holds[1] = True, False
    for row in evaluate_classes(scores, holds, rates=[rate], resamples=0):
        (cut,) = row.rates
        assert cut.recall <= cut.best_recall
        assert cut.f1 <= cut.best_f1
        assert cut.flagged <= rate * 60 + 1e-9


def test_ties_flag_fewer_and_the_best_recall_is_still_that_of_the_rate() -> None:
    holds = np.arange(100)[:, None] < 20
    (cut,) = evaluate_classes(np.zeros(100), holds, rates=[0.1], resamples=0)[0].rates
    assert (cut.flagged, cut.recall, cut.best_recall, cut.chance_recall) == (0, 0.0, 0.5, 0.1)
    assert np.isnan(cut.precision)
    assert (cut.f1, cut.best_f1) == (0.0, 0.0)


def test_without_rates_of_their_own_classes_are_cut_at_one_five_and_ten_percent() -> None:
    scores, holds, _ = _data()
    (row, *_) = evaluate_classes(scores, holds, resamples=0)
    assert tuple(cut.rate for cut in row.rates) == CLASS_RATES == (0.01, 0.05, 0.1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_neither_order_nor_a_rising_transform_of_the_scores_changes_a_row(
    seed: int, random: Any
) -> None:
    scores, holds, groups = _data(n=80, seed=seed)
    holds[0], holds[1] = True, False
    order = list(range(80))
    random.shuffle(order)
    options: Any = {"names": NAMES, "resamples": 20, "rates": [0.1]}

    def without_threshold(rows: tuple[ClassJudged, ...]) -> list[Any]:
        return [
            replace(row, rates=tuple(replace(cut, threshold=0.0) for cut in row.rates))
            for row in rows
        ]

    plain = evaluate_classes(scores, holds, groups=groups, **options)
    moved = evaluate_classes(
        np.exp(scores[order] / 4), holds[order], groups=groups[order], **options
    )
    for one, other in zip(without_threshold(plain), without_threshold(moved), strict=True):
        assert _rounded(one) == _rounded(other)


def _rounded(row: Any) -> Any:
    """The numbers of a row to nine digits, since sums depend on their order in the last ones."""
    if isinstance(row, float):
        return "NaN" if np.isnan(row) else round(row, 9)
    if isinstance(row, tuple):
        return tuple(_rounded(inner) for inner in row)
    return {k: _rounded(v) for k, v in vars(row).items()} if hasattr(row, "__dict__") else row


def test_the_row_of_a_class_does_not_hang_on_which_others_are_judged() -> None:
    scores, holds, groups = _data(groups=10)
    # In some resamples the first class is missing; the second must not lose its draw there.
    holds[:, 0] &= groups < 2
    options: Any = {"against": "all", "groups": groups, "resamples": 30}
    together = evaluate_classes(scores, holds, names=NAMES, **options)
    alone = evaluate_classes(scores, holds[:, 1:2], names=NAMES[1:2], **options)
    assert together[0].redrawn > 0
    assert together[1].redrawn == 0
    assert together[1] == alone[0]


def test_copies_within_a_frame_leave_the_intervals_as_they_were() -> None:
    scores, holds, groups = _data()
    copied = [np.repeat(values, 3, axis=0) for values in (scores, holds, groups)]
    once = evaluate_classes(scores, holds, groups=groups, resamples=50)
    thrice = evaluate_classes(copied[0], copied[1], groups=copied[2], resamples=50)
    for one, other in zip(once, thrice, strict=True):
        assert _ends(one.average_precision_interval) == pytest.approx(
            _ends(other.average_precision_interval), abs=1e-12
        )
        assert (one.groups, 3 * one.count) == (other.groups, other.count)


def test_a_class_of_few_groups_is_warned_of() -> None:
    scores, holds, groups = _data()
    holds[:, 0] = np.isin(groups, (3, 4)) & (scores > 6)
    row = evaluate_classes(scores, holds, groups=groups, resamples=200)[0]
    assert row.groups == 2
    assert row.redrawn > 0
    assert row.notes == (
        f"only 2 groups with the class ({row.redrawn} resamples were drawn anew): from fewer than "
        "5 an interval says nothing, and the truth may lie far outside.",
    )
    holds[:, 0] = np.arange(240) == 5
    (note,) = evaluate_classes(scores, holds, resamples=20)[0].notes
    assert note.startswith("only 1 sample with the class (")
    assert evaluate_classes(scores, holds, resamples=0)[0].notes == ()
    holds[2:] = True
    holds[:2] = False
    (note,) = evaluate_classes(scores, holds, resamples=20)[0].notes
    assert note.startswith("only 2 samples to compare it with")


def test_samples_without_a_score_are_counted_where_they_hold_a_class() -> None:
    scores, holds, groups = _data()
    gone = np.array([[True, True, False], [False, True, False], [False] * 3])
    found = evaluate_classes(
        np.r_[scores, [np.nan] * 3],
        np.r_[holds, gone],
        names=NAMES,
        groups=np.r_[groups, 99, 99, 99],
        resamples=20,
        skip_nan=True,
    )
    expected = evaluate_classes(scores, holds, names=NAMES, groups=groups, resamples=20)
    assert [row.left_out for row in found] == [1, 2, 0, 2]
    count = found[1].count
    assert found[1].notes == (f"2 of {count + 2} samples of the class have no score (NaN).",)
    assert [replace(row, left_out=0, notes=()) for row in found] == list(expected)


def test_a_class_that_no_sample_holds_has_a_row_that_says_so() -> None:
    scores, holds, groups = _data()
    holds[:, 1] = False
    rows = _by_name(evaluate_classes(scores, holds, names=NAMES, groups=groups, resamples=20))
    bus = rows["bus"]
    assert (bus.count, bus.groups, bus.redrawn) == (0, 0, 0)
    assert bus.notes == ("no scored sample holds the class, so there is nothing to find.",)
    for value in (bus.auroc, bus.average_precision, bus.rates[0].recall, bus.rates[0].best_f1):
        assert np.isnan(value)
    assert bus.average_precision_interval is None
    assert rows["train"].average_precision_interval is not None
    labelled = evaluate_classes(scores, holds[:, 0] * 1, rare=[1, 5], resamples=0)
    assert [row.count for row in labelled] == [holds[:, 0].sum(), 0, holds[:, 0].sum()]


def test_a_class_that_all_hold_is_compared_with_nothing() -> None:
    scores, holds, _ = _data()
    holds[:, 0] = True
    rows = evaluate_classes(scores, holds, against="all", resamples=20)
    for row in (rows[0], rows[-1]):
        assert (row.compared, row.prevalence) == (0, 1.0)
        assert np.isnan(row.average_precision)
        assert row.rates[0].recall == (scores > row.rates[0].threshold).mean()
        assert row.notes == (
            "every scored sample holds the class: there is none to compare it with.",
        )
    assert rows[1].average_precision_interval is not None
    with pytest.raises(LabelError, match="all 240 scored samples hold a rare class; pass against"):
        evaluate_classes(scores, holds)


def test_infinite_scores_take_part() -> None:
    _, holds, groups = _data()
    ends = np.where(holds[:, 0], np.inf, -np.inf)
    row = evaluate_classes(ends, holds, rates=[0.5], groups=groups, resamples=20)[0]
    assert (row.auroc, _ends(row.auroc_interval)) == (1.0, (1.0, 1.0))
    assert _ends(row.rates[0].recall_interval) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"holds": np.ones((5, 3), bool)}, LabelError, r"240 scores and holds of shape \(5, 3\)"),
        ({"holds": np.ones((240, 3, 1))}, LabelError, r"holds of shape \(240, 3, 1\)"),
        ({"holds": np.full((240, 3), 2)}, LabelError, "holds as true and false"),
        ({"holds": np.ones((240, 3))}, LabelError, "got float64"),
        ({"holds": np.zeros((240, 3), bool)}, LabelError, "none holds a rare class"),
        ({"holds": np.zeros(240, int)}, OptionError, r"pass rare=\[...\]"),
        ({"rare": [1]}, OptionError, "which goes with labels"),
        ({"names": ["train"]}, LabelError, "got 1 names for the 3 columns"),
        ({"against": "common"}, OptionError, "against 'none' or 'all', got 'common'"),
        ({"resamples": 5}, OptionError, "expects 0 resamples, .* or at least 20, got 5"),
        ({"rates": [2]}, OptionError, r"rate in \(0, 1\), got 2"),
        ({"groups": [1, 2]}, LabelError, r"evaluate_classes got 240 scores and groups of shape"),
        ({"scores": np.zeros((240, 2))}, EmbeddingShapeError, "evaluate_classes expects scores"),
        ({"scores": np.full(240, np.nan)}, NonFiniteError, "240 of 240 scores that are NaN"),
        (
            {"scores": np.full(240, np.nan), "skip_nan": True},
            NonFiniteError,
            "evaluate_classes got not one score, only NaN",
        ),
    ],
)
def test_what_does_not_fit_is_explained(change: Any, error: Any, message: str) -> None:
    scores, holds, _ = _data()
    with pytest.raises(error, match=message):
        evaluate_classes(**{"scores": scores, "holds": holds, **change})
