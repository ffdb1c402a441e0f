"""Tests of the score at two scales: groups before singles, and copies last."""

import pytest
import torch
from torch import Tensor

from raremix.detection import KNNDistance, TwoScaleDistance
from raremix.errors import OptionError


def normal(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_far_distance_over_the_root_of_the_near_one() -> None:
    rows = normal(60)
    near, far = KNNDistance(k=3).fit(rows), KNNDistance(k=12).fit(rows)
    expected = far / near.sqrt()
    torch.testing.assert_close(TwoScaleDistance(k=12, near=3).fit(rows), expected)


def test_a_tight_group_outranks_single_rows_as_far_away() -> None:
    group = 0.3 * normal(6, seed=1) + torch.tensor([8.0, 0, 0, 0, 0, 0])
    singles = 8.0 * torch.nn.functional.normalize(normal(6, seed=2))
    rows = torch.cat([normal(400), group, singles])
    scores = TwoScaleDistance(k=20, near=3).fit(rows)
    plain = KNNDistance(k=20).fit(rows)
    assert float(scores[400:406].min()) > float(scores[406:].max())
    assert float(plain[400:406].min()) < float(plain[406:].max())


def test_copies_of_one_row_gain_no_more_than_a_tight_group() -> None:
    few = torch.cat([normal(100), torch.full((5, 6), 3.0)])
    scores = TwoScaleDistance(k=20, near=3).fit(few)
    assert torch.isfinite(scores).all()
    far = KNNDistance(k=20).fit(few)
    torch.testing.assert_close(scores[100:], (far / (0.1 * far).sqrt())[100:])


def test_rows_all_alike_score_zero() -> None:
    assert (TwoScaleDistance(k=5, near=1).fit(torch.ones(20, 3)) == 0).all()


def test_a_share_of_a_small_reference_may_mean_fewer_neighbours_than_near() -> None:
    scores = TwoScaleDistance(k=0.01, near=3).fit(normal(50))
    torch.testing.assert_close(scores, KNNDistance(k=1).fit(normal(50)).sqrt())


def test_a_far_scale_within_the_near_one_is_refused() -> None:
    with pytest.raises(OptionError, match="k above near=3, got k=3"):
        TwoScaleDistance(k=3)
