"""What a threshold finds, and the ceiling that the flag rate puts on F1."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from raremix.detection import FlagRate
from raremix.errors import EmbeddingShapeError, LabelError, NonFiniteError, OptionError
from raremix.evaluation import threshold_at_rate, threshold_table


def _data(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    rare = generator.random(n) < 0.2
    return generator.normal(size=n) + rare, rare


def test_every_row_is_what_scikit_learn_says_of_the_flags() -> None:
    scores, rare = _data()
    for row in threshold_table(scores, rare, thresholds=[-1.0, 0.3, 1.5]):
        flags = scores > row.threshold
        assert row.flagged == flags.sum()
        assert row.flag_rate == pytest.approx(flags.mean())
        assert row.precision == pytest.approx(precision_score(rare, flags))
        assert row.recall == pytest.approx(recall_score(rare, flags))
        assert row.f1 == pytest.approx(f1_score(rare, flags))
        assert row.lift == pytest.approx(row.precision / rare.mean())


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 200), st.floats(0.001, 0.999))
def test_a_rate_flags_that_many_distinct_scores(n: int, rate: float) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(float)
    assert (scores > threshold_at_rate(scores, rate)).sum() == math.floor(rate * n + 1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=50), st.floats(0.01, 0.99))
def test_ties_never_flag_more_than_the_rate_allows(values: list[int], rate: float) -> None:
    scores = np.array(values, dtype=float)
    flagged = (scores > threshold_at_rate(scores, rate)).sum()
    assert flagged <= rate * len(values) + 1e-9


def test_the_best_f1_is_the_best_over_all_rankings() -> None:
    rare = np.array([True, True, False, False, False])
    for flagged in (1, 2, 3):
        best = max(
            threshold_table(np.array(order, float), rare, thresholds=[4.5 - flagged])[0].f1
            for order in permutations(range(5))
        )
        (row,) = threshold_table([5.0, 4, 3, 2, 1], rare, thresholds=[5.5 - flagged])
        assert row.best_f1 == pytest.approx(best)


def test_the_best_f1_is_reached_by_the_labels_themselves() -> None:
    _, rare = _data()
    (row,) = threshold_table(rare.astype(float), rare, thresholds=[0.5])
    assert row.f1 == row.best_f1 == 1.0


def test_flagging_nothing_has_no_precision_and_no_f1() -> None:
    (row,) = threshold_table([0.0, 1.0], [False, True], thresholds=[2.0])
    assert np.isnan(row.precision)
    assert np.isnan(row.lift)
    assert (row.flagged, row.recall, row.f1, row.best_f1) == (0, 0.0, 0.0, 0.0)


def test_default_rates_give_five_rows_in_their_order() -> None:
    scores, rare = _data(1000)
    rows = threshold_table(scores, rare)
    assert [row.flagged for row in rows] == [10, 20, 50, 100, 200]


def test_a_rate_outside_its_range_is_named() -> None:
    with pytest.raises(OptionError, match=r"rate in \(0, 1\), got 5"):
        threshold_table([0.0, 1.0], [False, True], rates=[5])


def test_a_threshold_of_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="threshold that is NaN"):
        threshold_table([0.0, 1.0], [False, True], thresholds=[float("nan")])


def test_a_rate_cuts_where_the_detectors_flag_rate_cuts() -> None:
    scores, _ = _data()
    rule = FlagRate(0.07)
    rule.fit(torch.from_numpy(scores))
    assert threshold_at_rate(scores.astype(np.float32), 0.07) == rule.value


def test_no_score_cannot_be_cut() -> None:
    with pytest.raises(EmbeddingShapeError, match="at least 1 score, got none"):
        threshold_at_rate(np.empty(0), 0.5)


def test_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(LabelError, match="threshold_table needs rare and common samples"):
        threshold_table([0.0, 1.0], [False, False])
