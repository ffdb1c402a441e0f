"""Tests of what each scorer measures, against explicit loops."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raremix.detection import KNNDistance, MeanDistance
from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.neighbors import Metric


def normal(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1.0


def directed(rows: Tensor, metric: Metric) -> Tensor:
    return F.normalize(rows.double()) if metric == "cosine" else rows.double()


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("k", [1, 5, 39])
def test_knn_fit_scores_are_those_of_an_explicit_leave_one_out_loop(k: int, metric: Metric) -> None:
    rows = normal(40)
    scores = KNNDistance(k=k, metric=metric).fit(rows)
    for row in range(40):
        others = directed(torch.cat([rows[:row], rows[row + 1 :]]), metric)
        distances = (
            others - directed(rows[row], metric)
            if metric == "euclidean"
            else others - directed(rows[row : row + 1], metric)
        ).norm(dim=1)
        assert float(scores[row]) == pytest.approx(float(distances.sort().values[k - 1]), rel=1e-5)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_mean_fit_scores_are_those_of_an_explicit_leave_one_out_loop(metric: Metric) -> None:
    rows = normal(40)
    scores = MeanDistance(metric=metric).fit(rows)
    for row in range(40):
        mean = directed(torch.cat([rows[:row], rows[row + 1 :]]), metric).mean(dim=0, keepdim=True)
        gap = directed(rows[row : row + 1], metric) - directed(mean, metric)
        assert float(scores[row]) == pytest.approx(float(gap.norm()), rel=1e-5)


def test_sibling_crops_are_never_each_others_neighbours() -> None:
    rows = normal(30).repeat_interleave(2, dim=0)
    rows[1::2] += 1e-3
    alone = KNNDistance(k=1).fit(rows)
    as_siblings = KNNDistance(k=1).fit(rows, torch.arange(60) // 2)
    assert (alone < 0.01).all()
    assert (as_siblings > 0.1).all()


def test_a_known_id_is_not_compared_with_its_own_row() -> None:
    scorer = KNNDistance(k=1)
    scorer.fit(normal(30), torch.arange(30))
    rows = normal(30)[:5]
    assert (scorer.score(rows) == 0).all()
    assert (scorer.score(rows, torch.arange(5)) > 0.1).all()
    assert (scorer.score(rows, torch.arange(5) + 500) == 0).all()


def test_a_revisit_replaces_the_row_of_its_id() -> None:
    scorer = KNNDistance(k=1)
    scorer.fit(normal(30), torch.arange(30))
    scorer.update(torch.full((1, 6), 99.0), torch.tensor([3]))
    assert len(scorer.bank) == 30
    assert float(scorer.score(normal(30)[3:4])[0]) > 0.1
    assert float(scorer.score(torch.full((1, 6), 99.0))[0]) == 0.0


@pytest.mark.parametrize(
    ("share", "n", "count"), [(0.07, 100, 7), (0.1, 41, 5), (0.01, 50, 1), (0.5, 9, 5)]
)
def test_a_share_counts_neighbours_rounded_up(share: float, n: int, count: int) -> None:
    rows = normal(n)
    assert torch.equal(KNNDistance(k=share).fit(rows), KNNDistance(k=count).fit(rows))


def test_scores_with_cosine_lie_between_zero_and_two_at_any_length() -> None:
    rows = normal(50) - 1.0
    rows[0] = 0.0
    scorer = KNNDistance(k=2, metric="cosine")
    scores = scorer.fit(rows * torch.logspace(-15, 15, 50)[:, None])
    assert ((scores >= 0) & (scores <= 2)).all()
    torch.testing.assert_close(scores, KNNDistance(k=2, metric="cosine").fit(rows))


def test_a_failed_fit_leaves_the_reference_as_it_was() -> None:
    scorer = KNNDistance(k=3)
    scorer.update(normal(10), torch.arange(10))
    with pytest.raises(NotEnoughReferenceError, match="own id"):
        scorer.fit(normal(8), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2]))
    assert scorer.bank.ids is not None
    assert scorer.bank.ids.tolist() == list(range(10))


def test_a_mean_of_millions_of_equal_rows_does_not_drift() -> None:
    scorer = MeanDistance()
    scorer.update(torch.full((1000, 1), 0.1))
    state = scorer.state_dict()
    state["sum"], state["count"] = state["sum"] * 1e6, state["count"] * 10**6
    scorer.load_state_dict(state)
    scorer.update(torch.full((1, 1), 0.1))
    assert float(scorer.score(torch.full((1, 1), 0.1))[0]) < 1e-6


def test_numpy_integers_and_floats_are_taken_for_k() -> None:
    assert KNNDistance(k=np.int64(7)).k == 7
    assert type(KNNDistance(k=np.float64(0.5)).k) is float


@pytest.mark.parametrize("k", [0, -1, 0.0, 1.0, 1.5, float("nan"), True])
def test_a_k_out_of_range_is_refused(k: float) -> None:
    with pytest.raises(OptionError, match=r"count of at least 1 or a share in \(0, 1\), got"):
        KNNDistance(k=k)


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="'euclidean' or 'cosine', got 'l1'"):
        KNNDistance(metric="l1")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match="'euclidean' or 'cosine', got 'l1'"):
        MeanDistance(metric="l1")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match=r"expects engine .* 'faiss', got 'annoy'"):
        KNNDistance(engine="annoy")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match="capacity above k=10, got 10"):
        KNNDistance(k=10, capacity=10)


def test_ids_are_refused_where_the_reference_has_none() -> None:
    scorer = KNNDistance(k=2)
    scorer.fit(torch.randn(10, 3))
    with pytest.raises(OptionError, match="reference was given without ids"):
        scorer.score(torch.randn(2, 3), torch.tensor([0, 1]))


def test_a_bank_emptied_and_filled_without_ids_is_searched_without_them() -> None:
    scorer = KNNDistance(k=1)
    scorer.fit(torch.arange(20.0)[:, None], torch.arange(20))
    scorer.bank.clear()
    scorer.update(torch.tensor([[0.0], [5.0]]))
    assert scorer.score(torch.tensor([[1.0], [7.0]])).tolist() == [1.0, 2.0]
