"""Two sets of scores in the same resamples, against resamples that copy rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redrawing import quantiles, redrawn_rows

from raremix.errors import LabelError, NonFiniteError, OptionError
from raremix.evaluation import (
    Interval,
    auroc,
    average_precision,
    bootstrap_intervals,
    paired_difference,
    threshold_table,
)

MEASURES: dict[str, Any] = {
    "average_precision": average_precision,
    "auroc": auroc,
    "recall@0.10": lambda scores, rare: threshold_table(scores, rare, rates=[0.1])[0].recall,
    "f1@0.3": lambda scores, rare: threshold_table(scores, rare, rates=[0.3])[0].f1,
}


def _data(n: int = 120, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    generator = np.random.default_rng(seed)
    rare = generator.random(n) < 0.25
    first = generator.integers(0, 9, size=n) + 2 * rare
    second = generator.normal(size=n) + rare
    return first.astype(float), second, rare, generator.integers(15, size=n)


@pytest.mark.parametrize("measure", list(MEASURES))
@pytest.mark.parametrize("is_grouped", [True, False])
def test_both_are_measured_in_the_resamples_that_copy_rows(measure: str, is_grouped: bool) -> None:
    first, second, rare, groups = _data()
    found = paired_difference(
        first,
        second,
        rare,
        measure=measure,
        groups=groups if is_grouped else None,
        resamples=60,
        seed=3,
    )
    rows = redrawn_rows(groups if is_grouped else np.arange(len(rare)), seed=3)
    copies = [next(rows) for _ in range(60)]
    pairs = np.array(
        [[MEASURES[measure](s[copy], rare[copy]) for s in (first, second)] for copy in copies]
    )
    assert found.measure == measure
    assert found.value_a == MEASURES[measure](first, rare)
    assert found.value_b == MEASURES[measure](second, rare)
    assert found.difference == found.value_a - found.value_b
    assert found.ratio == found.value_a / found.value_b
    interval = found.difference_interval
    assert (interval.low, interval.high) == pytest.approx(
        quantiles(pairs[:, 0] - pairs[:, 1]), abs=1e-12
    )
    assert found.ratio_interval is not None
    assert (found.ratio_interval.low, found.ratio_interval.high) == pytest.approx(
        quantiles(pairs[:, 0] / pairs[:, 1]), rel=1e-12
    )
    assert (found.undefined, found.redrawn) == (0, 0)


@pytest.mark.parametrize("measure", list(MEASURES))
def test_scores_on_another_scale_do_not_differ(measure: str) -> None:
    _, scores, rare, groups = _data()
    found = paired_difference(
        scores, np.exp(scores), rare, measure=measure, groups=groups, resamples=20
    )
    assert found.difference_interval == Interval(0.0, 0.0)
    assert found.ratio_interval == Interval(1.0, 1.0)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(list(MEASURES)))
def test_turning_the_pair_round_turns_the_intervals_round(seed: int, measure: str) -> None:
    first, second, rare, groups = _data(seed=seed)
    options: Any = {"measure": measure, "groups": groups, "resamples": 40}
    one = paired_difference(first, second, rare, **options)
    other = paired_difference(second, first, rare, **options)
    assert other.difference == -one.difference
    assert other.difference_interval.low == pytest.approx(-one.difference_interval.high)
    assert other.difference_interval.high == pytest.approx(-one.difference_interval.low)


def test_what_makes_a_resample_hard_for_both_does_not_blur_their_difference() -> None:
    generator = np.random.default_rng(0)
    rare = np.arange(300) < 60
    first = generator.normal(size=300) + rare
    second = first + 0.1 * generator.normal(size=300)
    paired = paired_difference(first, second, rare, measure="auroc").difference_interval
    alone, _ = bootstrap_intervals(first, rare)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_a_better_score_is_better_in_nearly_every_resample() -> None:
    _, second, rare, groups = _data(400)
    found = paired_difference(second + rare, second, rare, groups=groups)
    assert found.difference_interval.low > 0
    assert found.ratio_interval is not None
    assert found.ratio_interval.low > 1


def test_resamples_that_lack_a_kind_are_drawn_anew_and_counted() -> None:
    first, second, rare, groups = _data()
    rare = rare & (groups == 3)
    found = paired_difference(first, second, rare, groups=groups, resamples=50, seed=2)
    kept = empty = 0
    for rows in redrawn_rows(groups, seed=2):
        kept, empty = kept + rare[rows].any(), empty + (not rare[rows].any())
        if kept == 50:
            break
    assert empty > 0
    assert found.redrawn == empty


def test_a_second_score_that_finds_nothing_makes_the_ratio_infinite() -> None:
    rare = np.arange(40) < 10
    down, up = np.arange(40.0, 0, -1), np.arange(40.0)
    found = paired_difference(down, up, rare, measure="recall@0.1", resamples=30)
    assert (found.value_b, found.ratio, found.ratio_interval) == (
        0.0,
        float("inf"),
        Interval(float("inf"), float("inf")),
    )
    turned = paired_difference(up, down, rare, measure="recall@0.1", resamples=30)
    assert turned.ratio_interval == Interval(0.0, 0.0)


def test_two_scores_that_find_nothing_have_no_ratio() -> None:
    rare = np.arange(40) < 10
    found = paired_difference(rare * -1.0, rare * -2.0, rare, measure="f1@0.2", resamples=30)
    assert np.isnan(found.ratio)
    assert found.ratio_interval is None
    assert found.undefined == 30
    assert found.difference_interval == Interval(0.0, 0.0)


def test_an_end_of_the_ratio_is_infinite_only_if_enough_resamples_are() -> None:
    # The second score finds one rare sample of ten, and none in a third of the resamples.
    rare = np.arange(40) < 10
    first = np.arange(40.0, 0, -1)
    second = np.where(rare, -first, 0.0)
    second[0] = 5.0
    found = paired_difference(first, second, rare, measure="recall@0.2", resamples=200)
    assert found.ratio_interval is not None
    assert 1 < found.ratio_interval.low < found.ratio == 8
    assert found.ratio_interval.high == float("inf")
    # Common samples above each other in the second score, so that nearly all resamples have one.
    second[1:5] = 4.0
    found = paired_difference(first, second, rare, measure="recall@0.2", resamples=200)
    assert found.ratio_interval is not None
    assert 1 <= found.ratio_interval.low < found.ratio < found.ratio_interval.high < 10


@pytest.mark.parametrize(
    "measure", ["ap", "recall", "recall@", "recall@x", "recall@1", "auroc@0.1", "f1@-0.1", ""]
)
def test_what_is_no_measure_is_named(measure: str) -> None:
    first, second, rare, _ = _data()
    with pytest.raises(OptionError, match=f"such as 'recall@0.10', got '{measure}'"):
        paired_difference(first, second, rare, measure=measure)


def test_scores_that_cannot_be_paired_are_explained() -> None:
    first, second, rare, groups = _data()
    with pytest.raises(LabelError, match="paired_difference got 120 and 119 scores"):
        paired_difference(first, second[1:], rare)
    holes = [np.where(np.arange(120) == place, np.nan, first) for place in (3, 7)]
    with pytest.raises(NonFiniteError, match=r"2 of 120 samples without a score \(NaN\) in one"):
        paired_difference(holes[0], holes[1], rare)
    with pytest.raises(LabelError, match="is_rare of shape"):
        paired_difference(first, second, rare[1:])
    with pytest.raises(LabelError, match="groups of shape"):
        paired_difference(first, second, rare, groups=groups[1:])
    with pytest.raises(OptionError, match="expects at least 20 resamples, got 0"):
        paired_difference(first, second, rare, resamples=0)
