"""Thirds of the classes, and the classes that are rare together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.errors import LabelError, OptionError
from raremix.evaluation import class_groups, long_tail_counts, rarest_classes, rarest_of


@pytest.mark.parametrize(
    ("classes", "sizes"), [(3, (1, 1, 1)), (10, (4, 3, 3)), (11, (4, 4, 3)), (100, (34, 33, 33))]
)
def test_the_earlier_groups_take_the_classes_left_over(
    classes: int, sizes: tuple[int, int, int]
) -> None:
    groups = class_groups(long_tail_counts(500, classes, 100))
    assert tuple(groups.count(name) for name in ("many", "medium", "few")) == sizes
    assert groups == sorted(groups, key=["many", "medium", "few"].index)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 50), min_size=3, max_size=30))
def test_no_class_of_a_lower_group_is_larger(counts: list[int]) -> None:
    groups = class_groups(counts)
    for upper, lower in (("many", "medium"), ("medium", "few")):
        smallest = min(c for c, g in zip(counts, groups, strict=True) if g == upper)
        assert smallest >= max(c for c, g in zip(counts, groups, strict=True) if g == lower)


def test_of_equal_classes_the_first_counts_as_larger() -> None:
    assert class_groups([7, 7, 7]) == ["many", "medium", "few"]


@pytest.mark.parametrize("counts", [[], [3, 4], [1, 2, -1]])
def test_fewer_than_three_classes_have_no_thirds(counts: list[int]) -> None:
    with pytest.raises(LabelError, match="at least 3 classes"):
        class_groups(counts)


def test_the_rare_classes_of_the_long_tailed_benchmark_are_its_last_five() -> None:
    counts = long_tail_counts(5000, 10, 100)
    labels = np.repeat(np.arange(10), counts)
    assert rarest_classes(labels, 0.10) == [9, 8, 7, 6, 5]


def test_classes_that_would_reach_the_share_together_are_not_rare() -> None:
    labels = ["a"] * 80 + ["b"] * 10 + ["c"] * 10
    assert rarest_classes(labels, 0.2) == ["b"]
    assert rarest_classes(labels, 0.201) == ["b", "c"]


def test_no_class_under_the_share_is_an_error_that_says_the_smallest() -> None:
    with pytest.raises(LabelError, match=r"share of 0.1 of 4 samples \(the smallest has 0.5\)"):
        rarest_classes([0, 0, 1, 1], 0.1)


@pytest.mark.parametrize("share", [0, 1, 10])
def test_a_share_outside_its_range_is_named(share: float) -> None:
    with pytest.raises(OptionError, match=rf"share in \(0, 1\), got {share}"):
        rarest_classes([0, 1], share)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_counts_name_the_classes_that_their_labels_do(labels: list[int], share: float) -> None:
    counts = {label: labels.count(label) for label in range(10)}
    try:
        expected = rarest_classes(labels, share)
    except LabelError:
        with pytest.raises(LabelError, match="rarest_of finds no class under a share"):
            rarest_of(counts, share)
    else:
        assert rarest_of(counts, share) == expected


def test_pixels_too_many_for_32_bits_are_counted() -> None:
    pixels = {"road": 7 * 10**11, "bus": 10**10, "train": 10**9, "plane": 0}
    assert rarest_of(pixels, 0.1) == ["train", "bus"]


def test_of_equal_counts_the_first_is_taken() -> None:
    assert rarest_of({"b": 2, "a": 2, "c": 16}, 0.15) == ["b"]


def test_no_count_under_the_share_is_an_error_that_says_the_smallest() -> None:
    with pytest.raises(LabelError, match=r"share of 0.1 of a count of 4 \(the smallest has 0.5\)"):
        rarest_of({0: 2, 1: 2, 2: 0}, 0.1)
    for nothing in ({}, {"plane": 0}):
        with pytest.raises(LabelError, match=r"of a count of 0 \(none\)"):
            rarest_of(nothing, 0.1)


@pytest.mark.parametrize("count", [-1, 0.5, True, "3", None])
def test_what_is_no_count_is_refused(count: object) -> None:
    with pytest.raises(LabelError, match="rarest_of expects counts as whole numbers"):
        rarest_of({"bus": count}, 0.1)  # type: ignore[dict-item]  # what a caller may do


def test_a_share_of_counts_outside_its_range_is_named() -> None:
    with pytest.raises(OptionError, match=r"rarest_of expects a share in \(0, 1\), got 5"):
        rarest_of({"bus": 3}, 5)
