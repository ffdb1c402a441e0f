"""The probes against scikit-learn, and by group."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from raremix.errors import (
    EmbeddingShapeError,
    LabelError,
    NotEnoughReferenceError,
    OptionError,
    RaremixWarning,
)
from raremix.evaluation import class_groups, knn_probe, linear_probe

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def split() -> Split:
    generator = np.random.default_rng(0)
    counts = [120, 60, 30, 15, 8, 4]
    centres = generator.normal(size=(6, 8))
    train_y = np.repeat(np.arange(6), counts)
    test_y = np.repeat(np.arange(6), 25)
    train_x = centres[train_y] + generator.normal(size=(len(train_y), 8))
    test_x = centres[test_y] + generator.normal(size=(len(test_y), 8))
    return train_x.astype(np.float32), train_y, test_x.astype(np.float32), test_y


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_neighbours_vote_as_in_scikit_learn(split: Split, weighted: bool) -> None:
    train_x, train_y, test_x, test_y = split
    oracle = KNeighborsClassifier(
        7, weights=(lambda d: np.exp((1 - d**2 / 2) / 0.07)) if weighted else "uniform"
    ).fit(_unit(train_x), train_y)
    result = knn_probe(train_x, train_y, test_x, test_y, k=7, weighted=weighted)
    assert result.accuracy == pytest.approx(oracle.score(_unit(test_x), test_y))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_linear_probe_is_the_logistic_regression_of_scikit_learn(
    split: Split, balanced: bool
) -> None:
    train_x, train_y, test_x, test_y = split
    mean, scale = train_x.mean(0), train_x.std(0)
    oracle = LogisticRegression(
        C=1 / (0.01 * len(train_x)),
        class_weight="balanced" if balanced else None,
        max_iter=5000,
        tol=1e-8,
    ).fit((train_x - mean) / scale, train_y)
    expected = oracle.predict((test_x - mean) / scale)
    result = linear_probe(train_x, train_y, test_x, test_y, l2=0.01, balanced=balanced)
    assert result.accuracy == pytest.approx((expected == test_y).mean())
    assert result.per_class == pytest.approx(
        [(expected == test_y)[test_y == c].mean() for c in range(6)]
    )


def test_balancing_helps_the_tail_of_the_linear_probe(split: Split) -> None:
    plain = linear_probe(*split, l2=0.1)
    balanced = linear_probe(*split, l2=0.1, balanced=True)
    assert balanced.groups["few"] > plain.groups["few"]


def test_a_group_is_the_mean_of_its_classes(split: Split) -> None:
    result = knn_probe(*split)
    groups = class_groups(np.bincount(split[1]).tolist())
    for name, value in result.groups.items():
        members = [a for a, g in zip(result.per_class, groups, strict=True) if g == name]
        assert value == pytest.approx(float(np.mean(members)))
    assert result.balanced_accuracy == pytest.approx(float(np.mean(result.per_class)))


def test_groups_follow_the_counts_that_are_given(split: Split) -> None:
    usual = knn_probe(*split)
    turned = knn_probe(*split, class_counts=[1, 2, 3, 4, 5, 6])
    assert turned.groups["few"] == usual.groups["many"]
    assert turned.per_class == usual.per_class


def test_a_class_without_test_samples_is_nan_and_left_out_of_the_means() -> None:
    x = torch.eye(4)
    result = knn_probe(x, torch.arange(4), x[:2], torch.tensor([0, 1]), k=1)
    assert result.per_class[:2] == (1.0, 1.0)
    assert np.isnan(result.per_class[2:]).all()
    assert result.balanced_accuracy == 1.0
    assert np.isnan(result.groups["few"])


def test_two_classes_have_no_groups() -> None:
    x, y = torch.eye(2), torch.arange(2)
    assert knn_probe(x, y, x, y, k=1).groups == {}


def test_the_scale_of_the_embeddings_does_not_matter_to_the_neighbours(split: Split) -> None:
    train_x, train_y, test_x, test_y = split
    assert knn_probe(1e4 * train_x, train_y, 1e-3 * test_x, test_y) == knn_probe(*split)


@pytest.mark.parametrize("probe", [knn_probe, linear_probe])
def test_a_probe_gives_the_same_answer_twice_and_draws_nothing(probe: Any, split: Split) -> None:
    state = torch.random.get_rng_state()
    assert probe(*split) == probe(*split)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_probe_works_inside_no_grad(split: Split) -> None:
    expected = linear_probe(*split)
    with torch.no_grad():
        assert linear_probe(*split) == expected


def test_a_constant_column_does_no_harm(split: Split) -> None:
    train_x, train_y, test_x, test_y = split
    wide = [
        np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1) for x in (train_x, test_x)
    ]
    assert linear_probe(wide[0], train_y, wide[1], test_y) == linear_probe(*split)


def test_too_few_steps_are_warned_of(split: Split) -> None:
    with pytest.warns(RaremixWarning, match="max_steps=2 before it converged"):
        linear_probe(*split, max_steps=2)


@pytest.mark.parametrize("probe", [knn_probe, linear_probe])
def test_labels_that_do_not_fit_are_named(probe: Any, split: Split) -> None:
    train_x, train_y, test_x, test_y = split
    name = probe.__name__
    with pytest.raises(LabelError, match=rf"{name} \(train_y\) expects 237 class indices"):
        probe(train_x, train_y[:-1], test_x, test_y)
    with pytest.raises(LabelError, match=rf"{name} \(test_y\).* got torch.float32"):
        probe(train_x, train_y, test_x, test_y.astype(np.float32))
    with pytest.raises(LabelError, match="smallest -1"):
        probe(train_x, train_y - 1, test_x, test_y)
    with pytest.raises(LabelError, match="class_counts of 2 classes"):
        probe(*split, class_counts=[1, 2])
    with pytest.raises(EmbeddingShapeError, match=r"expects embeddings of shape \(batch, 8\)"):
        probe(train_x, train_y, test_x[:, :4], test_y)


def test_options_out_of_range_are_named(split: Split) -> None:
    with pytest.raises(OptionError, match="temperature above 0, got 0"):
        knn_probe(*split, temperature=0)
    with pytest.raises(OptionError, match="k as a whole number of at least 1, got 0"):
        knn_probe(*split, k=0)
    with pytest.raises(NotEnoughReferenceError, match="k=300 neighbours"):
        knn_probe(*split, k=300)
    with pytest.raises(OptionError, match="l2 above 0"):
        linear_probe(*split, l2=0)
    with pytest.raises(LabelError, match="at least 2 classes"):
        linear_probe(split[0], np.zeros_like(split[1]), split[2], split[3])


def test_the_real_encoder_names_half_of_the_test_images(shared_data: Path) -> None:
    with np.load(shared_data / "cifar10_lt_embeddings.npz", allow_pickle=False) as data:
        result = knn_probe(
            data["embedding"], data["label"], data["test_embedding"], data["test_label"]
        )
    assert 0.45 < result.accuracy < 0.56
    assert result.groups["many"] > result.groups["medium"] > result.groups["few"]
