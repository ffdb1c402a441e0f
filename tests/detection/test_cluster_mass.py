"""Tests of cluster mass: counts against a plain loop, and clusters that follow a stream."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from raremix.detection import ClusterMass
from raremix.detection.scorers.clusters import assign, find_centres
from raremix.errors import OptionError


def blobs(counts: list[int], seed: int = 0, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = spread * torch.randn(len(labels), 8, generator=generator)
    return 5.0 * torch.eye(8)[labels] + noise, labels


def test_a_score_is_minus_the_log_of_the_share_of_its_class() -> None:
    counts = [600, 300, 80, 20]
    rows, labels = blobs(counts)
    expected = torch.tensor([-math.log(count / 1000) for count in counts])[labels]
    for normalize in (False, True):
        scores = ClusterMass(clusters=4, repeats=1, normalize=normalize).fit(rows)
        torch.testing.assert_close(scores, expected)


def test_the_score_is_the_mean_over_the_repeats() -> None:
    rows, _ = blobs([100, 50, 10], spread=1.5)
    singles = [ClusterMass(clusters=6, repeats=1, seed=seed).fit(rows) for seed in (4, 5, 6)]
    assert not torch.equal(singles[0], singles[1])
    expected = torch.stack(singles).double().mean(dim=0).float()
    torch.testing.assert_close(ClusterMass(clusters=6, repeats=3, seed=4).fit(rows), expected)


def test_a_fresh_row_is_counted_in_and_its_own_rows_out() -> None:
    rows, _ = blobs([60, 30, 10])
    scorer = ClusterMass(clusters=3, repeats=1)
    scorer.fit(rows, torch.arange(100) // 2)  # every sample has two crops
    tail = rows[95:96]
    assert float(scorer.score(tail)[0]) == pytest.approx(-math.log(11 / 101))
    known = scorer.score(tail, torch.tensor([47]))
    assert float(known[0]) == pytest.approx(-math.log(9 / 99))
    moved = scorer.score(tail, torch.tensor([0]))  # its earlier rows lie in another cluster
    assert float(moved[0]) == pytest.approx(-math.log(11 / 99))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_k_means_is_about_as_good_as_that_of_scikit_learn(offset: float) -> None:
    rows, _ = blobs([500, 200, 100, 50, 20], spread=1.5)
    rows = rows + offset
    centres = find_centres(rows, 8, seed=0)
    own = float((rows.double() - centres[assign(rows, centres)]).square().sum())
    oracle = KMeans(8, n_init=1, random_state=0).fit(rows.double().numpy()).inertia_
    assert own < 1.05 * oracle


def test_clusters_are_the_same_for_every_order_of_the_rows() -> None:
    rows, _ = blobs([100, 50, 10], spread=1.5)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    centres = find_centres(rows, 6, seed=3)
    torch.testing.assert_close(find_centres(rows[order], 6, seed=3), centres)
    assert torch.equal(find_centres(rows, 6, seed=3), centres)


def test_there_are_no_more_centres_than_distinct_rows() -> None:
    assert find_centres(torch.ones(20, 3), 5, seed=0).shape == (1, 3)
    assert (ClusterMass(clusters=5).fit(torch.ones(20, 3)) == 0).all()


def test_a_class_that_appears_in_the_stream_becomes_a_cluster_of_its_own() -> None:
    rows, _ = blobs([400, 200])
    scorer = ClusterMass(clusters=3, repeats=1)
    scorer.update(rows, torch.arange(600))
    newcomers = 0.3 * torch.randn(60, 8, generator=torch.Generator().manual_seed(5))
    newcomers[:, 5] += 5.0
    for visit in range(4):
        scorer.update(newcomers, torch.arange(600, 660))
        scorer.update(rows[:150], torch.arange(150 * visit, 150 * visit + 150) % 600)
    expected = -math.log(61 / 661)
    assert float(scorer.score(newcomers[:1])[0]) == pytest.approx(expected, rel=0.01)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="clusters as a whole number of at least 2, got 1"):
        ClusterMass(1)
    with pytest.raises(OptionError, match="capacity of at least clusters=20, got 10"):
        ClusterMass(capacity=10)
    scorer = ClusterMass(2)
    scorer.fit(torch.randn(9, 3))
    with pytest.raises(OptionError, match="reference was given without ids"):
        scorer.score(torch.randn(1, 3), torch.tensor([1]))
