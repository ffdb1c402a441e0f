"""Tests of scorers in small worlds that are built to mislead them: noise, copies, wide classes.

Every world has a common part, a rare part, and something that is far without being rare.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from raremix.detection import (
    ClusterMass,
    FlagRate,
    KNNDistance,
    MeanDistance,
    NoiseGate,
    OODDetector,
    TwoScaleDistance,
)
from raremix.evaluation import average_precision

DIM = 32


@dataclass(frozen=True)
class World:
    """Unit-length embeddings of classes around random directions, and the class of each row."""

    rows: Tensor
    labels: Tensor

    def of(self, label: int) -> Tensor:
        return self.labels == label


def world(counts: list[int], *, spreads: list[float], noise: int = 0, seed: int = 0) -> World:
    """Classes of those sizes and spreads; ``noise`` rows, labelled -1, point anywhere."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(
        torch.randn(len(counts), DIM, generator=generator), dim=1
    )
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    jitter = torch.randn(len(labels), DIM, generator=generator) / DIM**0.5
    rows = centres[labels] + torch.tensor(spreads)[labels][:, None] * jitter
    stray = torch.randn(noise, DIM, generator=generator)
    rows = torch.nn.functional.normalize(torch.cat([rows, stray]), dim=1)
    return World(rows, torch.cat([labels, torch.full((noise,), -1)]))


def lift(flags: Tensor, group: Tensor) -> float:
    """The group's share of the flags beside its share of the rows."""
    return float(group[flags].float().mean() / group.float().mean())


COUNTS = [900, 500, 300, 120, 20, 16]
NOISY = world(COUNTS, spreads=[0.5] * 6, noise=57)  # 3 % of the rows
RARE = NOISY.labels >= 4


def test_a_distance_alone_fills_the_flags_with_noise_and_two_scales_do_not() -> None:
    noise, rate = NOISY.of(-1), 0.019  # as many flags as there are rare rows
    plain, scales = (
        OODDetector(scorer, FlagRate(rate)).fit(NOISY.rows).is_rare
        for scorer in (KNNDistance(k=36), TwoScaleDistance(k=36))
    )
    assert lift(plain, noise) > 5.0
    assert lift(scales, noise) <= 1.5
    assert lift(scales, RARE) > 40.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gate_rejects_most_noise_and_hardly_anything_rare(seed: int) -> None:
    noisy = world(COUNTS, spreads=[0.5] * 6, noise=57, seed=seed)
    passes = NoiseGate(KNNDistance(k=40)).fit(noisy.rows) > 0
    assert float(passes[noisy.of(-1)].float().mean()) < 0.25
    assert float(passes[noisy.labels >= 4].float().mean()) > 0.95
    assert float(passes[noisy.labels >= 0].float().mean()) > 0.9


def test_noise_costs_the_gate_and_the_two_scales_less_than_the_plain_distance() -> None:
    mean = average_precision(MeanDistance().fit(NOISY.rows), RARE)
    plain = average_precision(KNNDistance(k=40).fit(NOISY.rows), RARE)
    gated = average_precision(NoiseGate(KNNDistance(k=40)).fit(NOISY.rows), RARE)
    scales = average_precision(TwoScaleDistance(k=40).fit(NOISY.rows), RARE)
    assert mean < plain < gated < scales
    assert scales > 0.95


def test_k_finds_a_class_that_is_smaller_and_hides_one_that_is_larger() -> None:
    clean = world(COUNTS, spreads=[0.5] * 6)
    rare = clean.labels >= 4
    found = {k: average_precision(KNNDistance(k=k).fit(clean.rows), rare) for k in (3, 10, 40)}
    assert found[40] > 0.95
    assert found[3] < found[10] < found[40]


@pytest.mark.parametrize("reduce", ["kth", "mean"])
def test_a_common_class_twice_as_wide_takes_most_flags_of_a_small_k(reduce: str) -> None:
    wide = world([900, 500, 300, 20], spreads=[0.4, 0.8, 0.4, 0.4])
    small = KNNDistance(k=3, reduce=reduce).fit(wide.rows)  # type: ignore[arg-type]  # a literal
    flags = small > small.quantile(0.95)
    assert lift(flags, wide.of(1)) > 2.0


def test_a_common_class_twice_as_wide_stays_common_to_cluster_mass() -> None:
    wide = world([900, 500, 300, 20], spreads=[0.4, 0.8, 0.4, 0.4])
    flags = OODDetector(ClusterMass(clusters=4), FlagRate(0.05)).fit(wide.rows).is_rare
    assert lift(flags, wide.of(1)) <= 1.5
    assert lift(flags, wide.of(3)) > 10.0


def test_a_class_of_four_passes_the_gate_and_is_found() -> None:
    tiny = world([900, 500, 4], spreads=[0.5, 0.5, 0.4])
    flags = OODDetector(NoiseGate(KNNDistance(k=20)), FlagRate(0.02)).fit(tiny.rows).is_rare
    assert int(flags[tiny.of(2)].sum()) >= 3


def test_a_rare_image_seen_twenty_times_is_one_sample_by_its_id() -> None:
    common = world([900, 500], spreads=[0.5, 0.5]).rows
    odd = torch.nn.functional.normalize(torch.ones(1, DIM), dim=1)
    rows = torch.cat([common, odd.repeat(20, 1)])
    as_rows, as_one = (OODDetector(KNNDistance(k=10), FlagRate(0.02)) for _ in range(2))
    assert not as_rows.fit(rows).is_rare[1400:].any()  # twenty alike are not rare
    ids = torch.cat([torch.arange(1400), torch.full((20,), 1400)])
    assert as_one.fit(rows, ids).is_rare[1400:].all()


def test_a_rare_image_replayed_twenty_times_stays_rare_and_is_kept_once() -> None:
    common = world([900, 500], spreads=[0.5, 0.5]).rows
    odd = torch.nn.functional.normalize(torch.ones(1, DIM), dim=1)
    scorer = KNNDistance(k=10)
    detector = OODDetector(scorer, FlagRate(0.02))
    detector.fit(common, range(1400))
    found = [detector.observe(odd, [1400], is_replay=[visit > 0]).is_rare for visit in range(20)]
    assert torch.cat(found).all()
    assert len(scorer.bank) == 1401
