"""One row per class, its flags and its own AUROC."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raremix.errors import LabelError
from raremix.evaluation import class_table


def _data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    return generator.normal(size=100) + labels, labels, labels == 2


def test_rows_come_from_the_least_frequent_class_on_and_add_up() -> None:
    scores, labels, rare = _data()
    rows = class_table(scores, labels, threshold=1.0, is_rare=rare)
    assert [row.label for row in rows] == [2, 1, 0]
    assert [row.count for row in rows] == [10, 30, 60]
    assert sum(row.flagged for row in rows) == (scores > 1.0).sum()
    assert [row.is_rare for row in rows] == [True, False, False]


def test_a_class_is_ranked_against_the_common_samples_of_the_others() -> None:
    scores, labels, rare = _data()
    rows = {r.label: r for r in class_table(scores, labels, threshold=1.0, is_rare=rare)}
    assert rows[2].auroc == pytest.approx(roc_auc_score(labels == 2, scores))
    common = labels < 2
    assert rows[1].auroc == pytest.approx(roc_auc_score(labels[common] == 1, scores[common]))


def test_lift_is_one_where_a_class_is_flagged_as_often_as_all() -> None:
    (row,) = class_table([1.0, 2.0, 3.0], ["a"] * 3, threshold=2.5)
    assert row.lift == 1.0
    assert row.auroc is None
    assert row.is_rare is None


def test_without_a_flag_there_is_no_lift() -> None:
    (row,) = class_table([1.0, 2.0], ["a", "a"], threshold=9.0)
    assert np.isnan(row.lift)


def test_without_another_common_class_there_is_no_auroc() -> None:
    rows = class_table([1.0, 2.0], ["a", "b"], threshold=1.5, is_rare=[False, True])
    assert {row.label: np.isnan(row.auroc or 0) for row in rows} == {"a": True, "b": False}


def test_samples_without_a_score_are_left_out() -> None:
    rows = class_table([1.0, np.nan, 2.0], ["a", "b", "a"], threshold=1.5)
    assert [(row.name, row.count, row.share) for row in rows] == [("a", 2, 1.0)]


def test_names_replace_the_labels_they_are_given_for() -> None:
    rows = class_table([1.0, 2.0], [0, 1], threshold=1.5, names={1: "bus"})
    assert {row.name for row in rows} == {"0", "bus"}


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(LabelError, match=r"class_table got 2 scores and labels of shape \(1,\)"):
        class_table([1.0, 2.0], [0], threshold=1.5)
    with pytest.raises(LabelError, match="2 scores and is_rare of shape"):
        class_table([1.0, 2.0], [0, 0], threshold=1.5, is_rare=[True])
