"""The measures against scikit-learn, and what no measure may depend on."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from raremix.errors import EmbeddingShapeError, LabelError, NonFiniteError
from raremix.evaluation import auroc, average_precision, evaluate, fpr_at_95_tpr

# Few distinct scores, so that ties are common.
cases = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({rare for _, rare in rows}) == 2
)


def _arrays(rows: list[tuple[int, bool]]) -> tuple[Any, Any]:
    return np.array([float(s) for s, _ in rows]), np.array([rare for _, rare in rows])


@settings(deadline=None, max_examples=80)
@given(cases)
def test_auroc_and_average_precision_are_those_of_scikit_learn(rows: Any) -> None:
    scores, rare = _arrays(rows)
    assert auroc(scores, rare) == pytest.approx(roc_auc_score(rare, scores), abs=1e-12)
    assert average_precision(scores, rare) == pytest.approx(
        average_precision_score(rare, scores), abs=1e-12
    )


@settings(deadline=None, max_examples=80)
@given(cases)
def test_both_false_positive_rates_are_read_off_scikit_learns_curve(rows: Any) -> None:
    scores, rare = _arrays(rows)
    found = fpr_at_95_tpr(scores, rare)
    for value, truth, high in (
        (found.rare_positive, rare, scores),
        (found.common_positive, ~rare, -scores),
    ):
        false, true, _ = roc_curve(truth, high, drop_intermediate=False)
        assert value == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(cases, st.randoms(use_true_random=False))
def test_neither_order_nor_a_rising_transform_of_the_scores_matters(rows: Any, random: Any) -> None:
    scores, rare = _arrays(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    for measure in (auroc, average_precision, fpr_at_95_tpr):
        expected = measure(scores, rare)
        assert measure(np.exp(scores / 3) - 5, rare) == expected
        assert measure(scores[order], rare[order]) == expected


@settings(deadline=None, max_examples=40)
@given(cases)
def test_turning_the_scores_round_mirrors_auroc(rows: Any) -> None:
    scores, rare = _arrays(rows)
    assert auroc(scores, rare) + auroc(-scores, rare) == pytest.approx(1)


def test_equal_scores_are_chance_whatever_their_order() -> None:
    rare = [True, False, False, False]
    assert auroc([1.0] * 4, rare) == 0.5
    assert average_precision([1.0] * 4, rare) == 0.25


def test_the_two_false_positive_rates_differ_and_are_named() -> None:
    # One rare sample at the very bottom; nineteen of twenty rare ones are on top.
    scores = np.r_[np.full(18, 2.0), 0.0, 0.0, np.linspace(0.5, 1.0, 100)]
    rare = np.r_[np.ones(20, bool), np.zeros(100, bool)]
    found = fpr_at_95_tpr(scores, rare)
    assert found.rare_positive == 1.0
    assert found.common_positive == pytest.approx(0.1)


def test_infinite_scores_take_part_in_the_ranking() -> None:
    assert auroc([-np.inf, 0.0, np.inf], [False, False, True]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_of_any_type_are_measured(dtype: torch.dtype) -> None:
    scores = torch.tensor([1, 2, 3, 4]).to(dtype)
    assert auroc(scores, torch.tensor([False, False, True, True])) == 1.0


@pytest.mark.parametrize("measure", [auroc, average_precision, fpr_at_95_tpr, evaluate])
def test_nan_scores_are_refused_with_their_number(measure: Any) -> None:
    with pytest.raises(NonFiniteError, match=rf"{measure.__name__} got 1 of 3 scores that are NaN"):
        measure([1.0, np.nan, 2.0], [True, False, True])


@pytest.mark.parametrize(("rare", "missing"), [([True, True], "common"), ([False, False], "rare")])
def test_labels_of_one_kind_say_which_kind_has_no_sample(rare: Any, missing: str) -> None:
    with pytest.raises(LabelError, match=f"of 2 scored samples none is {missing}"):
        auroc([1.0, 2.0], rare)


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(LabelError, match=r"auroc got 3 scores and is_rare of shape \(2,\)"):
        auroc([1.0, 2.0, 3.0], [True, False])


def test_class_labels_are_not_taken_for_flags() -> None:
    with pytest.raises(LabelError, match="compare class labels with the rare classes first"):
        auroc([1.0, 2.0, 3.0], np.array([0, 1, 2]))
    with pytest.raises(LabelError, match="as true and false"):
        auroc([1.0, 2.0], np.array([0.0, 1.0]))


def test_scores_that_are_no_vector_of_numbers_are_refused() -> None:
    with pytest.raises(EmbeddingShapeError, match=r"scores as numbers of shape \(n,\)"):
        auroc(np.zeros((2, 2)), [True, False])
    with pytest.raises(EmbeddingShapeError, match="got <U1"):
        auroc(np.array(["a", "b"]), [True, False])
