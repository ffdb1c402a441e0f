"""Tests of what the threshold rules ask of rows of scores, against scipy."""

import pytest
import torch
from scipy.stats import ks_2samp, spearmanr
from torch import Tensor

from raremix.detection.thresholds.ranks import rank_agreement, two_sample_distance


def rows(seed: int, levels: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    many = (torch.randn(300, generator=generator) * levels).round()
    few = (torch.randn(40, generator=generator) * levels * 0.8 + seed % 5).round()
    return many, few


@pytest.mark.parametrize("levels", [1.0, 3.0, 1e4])
def test_distance_and_agreement_are_those_of_kolmogorov_smirnov_and_spearman(levels: float) -> None:
    for seed in range(20):
        many, few = rows(seed, levels)
        assert two_sample_distance(many, few) == pytest.approx(ks_2samp(many, few).statistic)
        assert two_sample_distance(few, many) == pytest.approx(ks_2samp(many, few).statistic)
        expected = spearmanr(many[:40], few).statistic
        assert rank_agreement(many[:40], few) == pytest.approx(expected, abs=1e-12)


def test_rows_apart_and_rows_alike() -> None:
    assert two_sample_distance(torch.zeros(9), torch.ones(3)) == 1
    assert two_sample_distance(torch.ones(9), torch.ones(3)) == 0
    assert rank_agreement(torch.arange(9.0), torch.arange(9.0) ** 3) == pytest.approx(1)
    assert rank_agreement(torch.arange(9.0), torch.ones(9)) == 0
