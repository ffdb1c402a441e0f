"""Tests of the Mahalanobis distance and its moments, with scikit-learn as the oracle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import OAS
from torch import Tensor

from raremix.detection import Mahalanobis
from raremix.detection.scorers.moments import Moments
from raremix.errors import OptionError, StateMismatchError


def skewed(n: int, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, dim, generator=generator) @ mixing + 2.0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n", [5, 30, 2000])
def test_scores_are_those_of_scikit_learn(n: int, normalize: bool) -> None:
    rows, fresh = skewed(n), skewed(20, seed=1)
    scorer = Mahalanobis(normalize=normalize)
    scorer.update(rows)
    shown = [F.normalize(part.double()) if normalize else part.double() for part in (rows, fresh)]
    oracle = OAS().fit(shown[0].numpy())
    expected = np.sqrt(oracle.mahalanobis(shown[1].numpy()))
    np.testing.assert_allclose(scorer.score(fresh).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [200, 2000, 20_000])
@pytest.mark.parametrize("dim", [4, 64])
def test_the_mean_square_is_the_width_whatever_the_number_of_rows(n: int, dim: int) -> None:
    scorer = Mahalanobis(normalize=False)
    squares = scorer.fit(torch.randn(n, dim, generator=torch.Generator().manual_seed(0))).square()
    # Without row i the covariance is a little too small for row i, most so where rows are few.
    assert float(squares.mean()) == pytest.approx(dim, rel=0.5 if n < 4 * dim else 0.05)


def test_fit_scores_are_those_of_an_explicit_leave_one_out_loop() -> None:
    rows = skewed(25).double()
    whole = Moments.of(rows)
    intensity, ball = whole.shrinkage(), float(whole.scatter.diagonal().mean()) / 25
    expected = []
    for row in range(25):
        others = torch.cat([rows[:row], rows[row + 1 :]])
        gaps = others - others.mean(dim=0)
        covariance = (1 - intensity) * gaps.T @ gaps / 24 + intensity * ball * torch.eye(8)
        gap = rows[row] - others.mean(dim=0)
        expected.append(float(gap @ torch.linalg.solve(covariance, gap)) ** 0.5)
    scores = Mahalanobis(normalize=False).fit(rows.float())
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_an_outlier_does_not_hide_behind_its_own_share_of_the_covariance() -> None:
    rows = torch.cat([skewed(60), torch.full((1, 8), 60.0)])
    scorer = Mahalanobis(normalize=False)
    fitted = float(scorer.fit(rows)[-1])
    assert fitted > 5 * float(scorer.score(rows)[-1])


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_merged_batches_equal_the_whole_in_float64(offset: float) -> None:
    rows = skewed(500).double() + offset
    merged = Moments.of(rows[:7])
    for part in torch.split(rows[7:], 31):
        merged = merged.merged(Moments.of(part))
    expected = np.cov(rows.numpy().T, bias=True)
    np.testing.assert_allclose(merged.scatter.numpy() / 500, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.mean.numpy(), rows.numpy().mean(axis=0), rtol=1e-12)
    assert (merged.rows, merged.weight) == (500, 500.0)


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_lengths_far_from_one_change_no_score(factor: float) -> None:
    rows = skewed(100)
    expected = Mahalanobis(normalize=False).fit(rows)
    found = Mahalanobis(normalize=False).fit(rows * factor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 100.0])
def test_rows_that_are_all_alike_score_zero_and_others_a_finite_number(value: float) -> None:
    for normalize in (False, True):
        scorer = Mahalanobis(normalize=normalize)
        assert (scorer.fit(torch.full((20, 4), value)) <= 1e-3).all()
        far = scorer.score(torch.tensor([[3.0, 1.0, -4.0, 2.0]]))
        assert torch.isfinite(far).all()
        assert float(far[0]) > 1.0


def test_what_was_seen_fades_with_its_half_life() -> None:
    fading, keeping = Mahalanobis(normalize=False, half_life=100), Mahalanobis(normalize=False)
    for step in range(40):
        for scorer in (fading, keeping):
            scorer.update(skewed(50, seed=step) + (30.0 if step >= 20 else 0.0))
    now = skewed(50, seed=99) + 30.0
    assert float(fading.score(now).mean()) == pytest.approx(8**0.5, rel=0.2)
    assert float(fading.score(now - 30.0).mean()) > 2 * float(keeping.score(now - 30.0).mean())
    state = fading.state_dict()["moments"]
    # 2,000 rows were seen; 1 / (1 - 2 ** -0.5) batches of 50 count.
    assert state["rows"] == 2000
    assert state["weight"] == pytest.approx(50 / (1 - 0.5**0.5), rel=0.01)


def test_another_width_or_half_life_is_refused() -> None:
    scorer, other = Mahalanobis(), Mahalanobis()
    scorer.update(skewed(9, 4))
    other.update(skewed(9, 5))
    with pytest.raises(StateMismatchError, match="a mean 5 wide, and holds one 4 wide"):
        scorer.load_state_dict(other.state_dict())
    with pytest.raises(OptionError, match="half_life as a whole number of at least 1, got 0"):
        Mahalanobis(half_life=0)
