"""Long-tailed counts as published, and subsets that follow them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.errors import LabelError, OptionError
from raremix.evaluation import long_tail_counts, long_tail_subset


@pytest.mark.parametrize(
    ("n_max", "classes", "total", "last"),
    [(4500, 10, 11165, 45), (5000, 10, 12406, 50), (450, 100, 9754, 4), (500, 100, 10847, 5)],
)
def test_the_published_totals_come_out(n_max: int, classes: int, total: int, last: int) -> None:
    counts = long_tail_counts(n_max, classes, 100)
    assert (sum(counts), counts[0], counts[-1]) == (total, n_max, last)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3000), st.integers(2, 40))
def test_an_imbalance_as_large_as_the_head_leaves_one_sample(n_max: int, classes: int) -> None:
    counts = long_tail_counts(n_max, classes, n_max)
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)


def test_a_tail_without_samples_is_refused() -> None:
    with pytest.raises(OptionError, match="leaves the last class without a sample"):
        long_tail_counts(50, 10, 100)


@pytest.mark.parametrize("arguments", [(0, 10, 2), (5, 1, 2), (5, 3, 0.5), (5, 3, float("inf"))])
def test_counts_out_of_range_are_named(arguments: Any) -> None:
    with pytest.raises(OptionError, match=f"got {arguments[0]}, {arguments[1]} and"):
        long_tail_counts(*arguments)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.permutations([0, 1, 2, 3]))
def test_a_subset_has_the_counts_in_the_order_asked_for(seed: int, order: list[int]) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 3], 40))
    ids = long_tail_subset(labels, 8, seed=seed, class_order=order)
    assert np.array_equal(ids, np.unique(ids))
    kept = np.bincount(labels[ids], minlength=4)
    assert kept[order].tolist() == long_tail_counts(40, 4, 8)


def test_one_seed_draws_one_subset_and_another_seed_another() -> None:
    labels = np.repeat([0, 1, 2], 50)
    first = long_tail_subset(labels, 5, seed=0)
    assert np.array_equal(first, long_tail_subset(labels, 5, seed=0))
    assert not np.array_equal(first, long_tail_subset(labels, 5, seed=1))


def test_a_steeper_tail_of_one_seed_lies_inside_a_gentler_one() -> None:
    labels = np.repeat(["a", "b", "c"], 60)
    steep, gentle = (set(long_tail_subset(labels, i, seed=4).tolist()) for i in (30, 3))
    assert steep < gentle


def test_the_smallest_class_sets_the_head_unless_it_is_given() -> None:
    labels = np.repeat([0, 1, 2], [90, 60, 30])
    assert np.bincount(labels[long_tail_subset(labels, 3, seed=0)]).tolist() == [30, 17, 10]
    kept = long_tail_subset(labels, 9, seed=0, n_max=90)
    assert np.bincount(labels[kept]).tolist() == [90, 30, 10]


def test_a_class_that_is_too_small_is_named() -> None:
    with pytest.raises(LabelError, match="wants 20 samples of class 'b', which has 5"):
        long_tail_subset(["a"] * 40 + ["b"] * 5, 2, seed=0, n_max=40)


@pytest.mark.parametrize("order", [[0], [0, 0], [0, 2]])
def test_an_order_that_is_no_permutation_of_the_classes_is_refused(order: list[int]) -> None:
    with pytest.raises(LabelError, match=r"each of the classes \[0, 1\] once"):
        long_tail_subset([0, 1], 1, seed=0, class_order=order)


def test_labels_that_are_no_vector_are_refused() -> None:
    with pytest.raises(LabelError, match=r"labels of shape \(n,\), got shape \(2, 2\)"):
        long_tail_subset([[0, 1], [1, 0]], 1, seed=0)
