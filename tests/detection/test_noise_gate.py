"""Tests of the noise gate: scikit-learn's factor is the oracle, and a class of four passes."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from raremix.detection import FlagRate, KNNDistance, MeanDistance, NoiseGate, OODDetector
from raremix.errors import NotEnoughReferenceError, OptionError


def normal(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("most", [1.1, 1.35])
def test_it_rejects_in_fit_what_the_factor_of_scikit_learn_does(k: int, most: float) -> None:
    rows = normal(300)
    factors = -LocalOutlierFactor(n_neighbors=k).fit(rows.double().numpy()).negative_outlier_factor_
    scores = NoiseGate(KNNDistance(k=7), most=most, k=k).fit(rows)
    assert ((scores == 0).numpy() == (factors > most)).all()
    passed = scores > 0
    assert torch.equal(scores[passed], KNNDistance(k=7).fit(rows)[passed])


@pytest.mark.parametrize("with_ids", [False, True])
def test_it_rejects_fresh_rows_as_scikit_learn_does(with_ids: bool) -> None:
    rows, fresh = normal(300), normal(100, seed=1)
    oracle = LocalOutlierFactor(n_neighbors=3, novelty=True).fit(rows.double().numpy())
    factors = -oracle.score_samples(fresh.double().numpy())
    gate = NoiseGate(KNNDistance(k=7))
    gate.fit(rows, torch.arange(300) if with_ids else None)
    scores = gate.score(fresh, torch.arange(300, 400) if with_ids else None)
    assert 0.02 < float((scores == 0).float().mean()) < 0.5
    np.testing.assert_array_equal((scores == 0).numpy(), factors > 1.35)


@pytest.mark.parametrize("members", [4, 5, 20])
def test_a_class_of_four_passes_and_a_single_row_does_not(members: int) -> None:
    group = 0.5 * normal(members, seed=1) + torch.tensor([12.0, 0, 0, 0, 0, 0])
    single = torch.tensor([[0.0, 12.0, 0, 0, 0, 0]])
    scores = NoiseGate(KNNDistance(k=21)).fit(torch.cat([normal(300), group, single]))
    assert (scores[300:-1] > scores[:300].max()).float().mean() >= 0.75
    assert float(scores[-1]) == 0.0


def test_copies_pass() -> None:
    rows = torch.cat([normal(50), torch.full((6, 6), 9.0)])
    scores = NoiseGate(KNNDistance(k=10)).fit(rows)
    assert (scores[50:] > 0).all()


def test_what_is_rejected_is_never_rare() -> None:
    rows = torch.cat([normal(200), 40.0 * torch.eye(6)])
    plain = OODDetector(KNNDistance(k=10), FlagRate(0.05)).fit(rows)
    gated = OODDetector(NoiseGate(KNNDistance(k=10)), FlagRate(0.05)).fit(rows)
    assert plain.is_rare[200:].all()
    assert not gated.is_rare[200:].any()
    assert int(gated.is_rare.sum()) == int(plain.is_rare.sum())  # the budget goes to others


def test_it_needs_a_bank_and_scores_of_at_least_zero() -> None:
    with pytest.raises(OptionError, match=r"such as KNNDistance\(k=20\), got MeanDistance"):
        NoiseGate(MeanDistance())  # type: ignore[arg-type]  # on purpose

    class Negative(KNNDistance):
        def fit(self, embeddings: object, ids: object = None) -> Tensor:
            return -super().fit(embeddings)  # type: ignore[arg-type]  # a test double

    with pytest.raises(OptionError, match="whose scores are at least 0, and KNNDistance"):
        NoiseGate(Negative(k=2)).fit(normal(20))
    with pytest.raises(OptionError, match=r"most as a number in \(1, inf\), got 1"):
        NoiseGate(KNNDistance(), most=1.0)


def test_it_waits_for_enough_rows() -> None:
    gate = NoiseGate(KNNDistance(k=1), k=5)
    gate.update(normal(4))
    assert not gate.ready
    with pytest.raises(NotEnoughReferenceError, match="needs more than k \\+ 1 = 6"):
        gate.score(normal(1))
