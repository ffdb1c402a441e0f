"""Tests of the flag budget: what it holds through, what it cannot hold, when it begins."""

import logging
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection import FlagRate, KNNDistance, OODDetector
from raremix.errors import OptionError

LENGTH = 24_576
WARMUP = 1024
RUN = 4096


def gamma(n: int, seed: int = 0) -> Tensor:
    return -torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)).log().sum(dim=1)


def step(rule: FlagRate, scores: Tensor) -> Tensor:
    """As the detector's ``observe``."""
    is_rare = scores > rule.value_for(scores)
    rule.update(scores, is_rare)
    return is_rare


def flags_of(rule: FlagRate, scores: Tensor, batch: int) -> Tensor:
    return torch.cat([step(rule, part) for part in torch.split(scores, batch)])


def extremes(flags: Tensor, run: int = RUN) -> tuple[float, float]:
    """The least and the greatest share of flags of any run of consecutive scores."""
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), flags.cumsum(0)])
    shares = (sums[run:] - sums[:-run]).double() / run
    return float(shares.min()), float(shares.max())


# --- streams of scores ---


def rising() -> Tensor:
    return torch.linspace(0, 1, LENGTH)


def jumping(seed: int, *factors: float) -> Tensor:
    """The scale of a stream that jumps by the factors, at random steps."""
    generator = torch.Generator().manual_seed(1000 + seed)
    scale = torch.ones(LENGTH)
    for factor in factors:
        scale[int(torch.randint(2000, LENGTH, (1,), generator=generator)) :] *= factor
    return scale


def heavy(seed: int) -> Tensor:
    return 1 / torch.rand(LENGTH, generator=torch.Generator().manual_seed(seed))


STREAMS: dict[str, Callable[[int], Tensor]] = {
    "still": lambda seed: gamma(LENGTH, seed),
    "threefold up": lambda seed: gamma(LENGTH, seed) * 3 ** rising(),
    "threefold down": lambda seed: gamma(LENGTH, seed) * 3 ** -rising(),
    "threefold up within 4,096": lambda seed: (
        gamma(LENGTH, seed) * 3 ** (rising() * 6 - 2).clamp(0, 1)
    ),
    "threefold down within 4,096": lambda seed: (
        gamma(LENGTH, seed) * 3 ** -(rising() * 6 - 2).clamp(0, 1)
    ),
    "narrowing": lambda seed: 9 + (gamma(LENGTH, seed) - 3) * 3 ** -rising(),
    "widening": lambda seed: 9 + (gamma(LENGTH, seed) - 3) * 3 ** rising(),
    "a jump up": lambda seed: gamma(LENGTH, seed) * jumping(seed, 1.5),
    "a jump down": lambda seed: gamma(LENGTH, seed) * jumping(seed, 0.5),
    "jumps up and down": lambda seed: gamma(LENGTH, seed) * jumping(seed, 1.5, 0.5, 0.5, 1.5),
    "rising, with jumps": lambda seed: (
        gamma(LENGTH, seed) * 3 ** rising() * jumping(seed, 0.5, 1.5)
    ),
    "falling, with jumps": lambda seed: (
        gamma(LENGTH, seed) * 3 ** -rising() * jumping(seed, 0.5, 1.5)
    ),
    "heavy tails": heavy,
    "heavy tails, with jumps": lambda seed: heavy(seed) * jumping(seed, 1.5, 0.5),
    "forty values": lambda seed: (gamma(LENGTH, seed) * 5).round(),
    "ten values": lambda seed: gamma(LENGTH, seed).round(),
}


@pytest.mark.parametrize("batch", [32, 512])
@pytest.mark.parametrize("name", STREAMS)
def test_any_4096_scores_are_flagged_within_a_point_of_the_budget(name: str, batch: int) -> None:
    for seed in range(2 if batch == 32 else 8):
        flags = flags_of(FlagRate(0.05), STREAMS[name](seed), batch)
        assert not flags[:WARMUP].any()
        least, greatest = extremes(flags[WARMUP:])
        assert least >= 0.04, f"{least:.4f} of seed {seed}"
        assert greatest <= 0.06, f"{greatest:.4f} of seed {seed}"


@pytest.mark.parametrize("batch", [32, 512])
def test_clusters_are_flagged_beyond_the_share_of_their_batch(batch: int) -> None:
    scores = gamma(LENGTH)
    starts = torch.arange(WARMUP + 5, LENGTH - 20, 1031)
    for start in starts.tolist():
        scores[start : start + 12] += 50
    flags = flags_of(FlagRate(0.05), scores, batch)
    found = torch.stack([flags[start : start + 12] for start in starts.tolist()])
    assert float(found.float().mean()) > 0.97  # 12 of 32, where the share is 1.6
    least, greatest = extremes(flags[WARMUP:])
    assert least >= 0.04
    assert greatest <= 0.06


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    factors=st.lists(st.floats(0.01, 100), min_size=30, max_size=30),
    rate=st.sampled_from([0.01, 0.05, 0.3]),
    slack=st.integers(2, 40),
)
@settings(deadline=None, max_examples=60)
def test_no_batches_whatever_flag_more_than_their_share_and_the_slack(
    sizes: list[int], factors: list[float], rate: float, slack: int
) -> None:
    rule, owed = FlagRate(rate, slack=slack), [0.0]
    rule.fit(gamma(500))
    for number, (size, factor) in enumerate(zip(sizes, factors, strict=False)):
        flagged = int(step(rule, gamma(size, number) * factor).sum())
        owed.append(owed[-1] + rate * size - flagged)
        assert max(owed) - owed[-1] <= slack + 1e-6  # the run from where most was owed


def test_the_threshold_for_a_batch_is_pure_and_no_lower_than_needed() -> None:
    rule, scores = FlagRate(0.05), gamma(2000, 1)
    rule.fit(gamma(4096))
    before, recent = rule.value, rule.state_dict()["recent"]
    assert rule.value_for(gamma(40, 2)) == before  # nothing out of the ordinary
    assert rule.value_for(torch.empty(0)) == before
    for factor in (0.2, 5.0):
        count = int((factor * scores > rule.value_for(factor * scores)).sum())
        assert count == (84 if factor < 1 else 116)  # 100 less, or plus, half the slack
    assert rule.value == before
    assert torch.equal(rule.state_dict()["recent"], recent)


def test_a_common_score_alone_in_its_batch_is_not_rare_whatever_is_owed() -> None:
    rule = FlagRate(0.05)
    rule.fit(gamma(4096))
    for _ in range(500):
        assert not step(rule, torch.tensor([0.5])).any()


def test_rows_that_come_one_by_one_are_judged_too() -> None:
    rule = FlagRate(0.05)
    scores = gamma(6144) * torch.tensor([1.0, 0.5, 1.5]).repeat_interleave(2048)
    least, greatest = extremes(flags_of(rule, scores, 1)[WARMUP:])
    assert least >= 0.04
    assert greatest <= 0.06


@pytest.mark.parametrize("batch", [1, 32, 512])
def test_equal_scores_are_never_rare(batch: int) -> None:
    rule = FlagRate(0.05)
    assert not flags_of(rule, torch.ones(6144 if batch > 1 else 2048), batch).any()
    # And what could not be flagged is not made up for.
    flags = flags_of(rule, 1 + gamma(4096), 512)
    assert extremes(flags, 512)[1] < 0.12


def test_observe_spends_the_budget_and_detect_judges_every_row_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, far = torch.randn(400, 4, generator=generator), torch.randn(200, 4, generator=generator)
    far = 9 * far
    detector = OODDetector(KNNDistance(k=3), FlagRate(0.1))
    detector.fit(rows)
    assert int(detector.detect(far).is_rare.sum()) > 190
    is_replay = torch.arange(200) < 50
    found = detector.observe(far, is_replay=is_replay)
    assert int(found.is_rare[~is_replay].sum()) == 15 + 16  # its share and half of the slack
    assert torch.equal(found.is_rare, found.scores > found.threshold)


# --- regimes ---


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_jump_resets_once_and_is_told(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    rule = FlagRate(0.05)
    flags_of(rule, gamma(8192), 32)
    assert rule.resets == 0
    with caplog.at_level(logging.INFO, logger="raremix"):
        flags_of(rule, factor * gamma(8192, 1), 32)
    assert rule.resets == 1
    assert "forgets 3840 scores: the newest 256 lie at a distance of 0.2" in caplog.text


def test_still_scores_are_not_forgotten() -> None:
    for seed in range(3):
        rule = FlagRate(0.05)
        flags_of(rule, gamma(LENGTH, seed), 64)
        assert rule.resets == 0
    fitted = FlagRate(0.05)
    fitted.fit(gamma(3000).sort().values)  # the order of a set says nothing
    flags_of(fitted, gamma(320), 32)
    assert fitted.resets == 0


# --- warm-up ---


def test_nothing_is_rare_before_the_warmup_ends() -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=100)
    for number in range(10):
        assert rule.value == math.inf
        assert not step(rule, gamma(10, number)).any()
    assert math.isfinite(rule.value)


def test_nothing_is_rare_while_revisited_samples_rank_at_random() -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=100, min_stability=0.6)
    flags_of(rule, gamma(200), 50)
    assert math.isfinite(rule.value)  # nothing was revisited yet
    rule.update_revisits(gamma(511, 1), gamma(511, 2))
    assert math.isfinite(rule.value)
    rule.update_revisits(gamma(1, 3), gamma(1, 4))
    assert rule.value == math.inf
    assert not step(rule, 100 * gamma(50)).any()

    state = rule.state_dict()
    rule = FlagRate(0.1, window=200, warmup_scores=100, min_stability=0.6)
    rule.load_state_dict(state)
    rule.update_revisits(gamma(400, 5), 7 * gamma(400, 5) ** 3)  # in the same order
    assert math.isfinite(rule.value)
    rule.update_revisits(gamma(600, 1), gamma(600, 2))  # it is not asked again
    assert math.isfinite(rule.value)


def test_a_fit_needs_no_stability() -> None:
    rule = FlagRate(0.1, min_stability=0.6)
    rule.fit(gamma(400))
    rule.update_revisits(gamma(600, 1), gamma(600, 2))
    assert math.isfinite(rule.value)


@pytest.mark.parametrize("is_stable", [False, True])
def test_a_detector_tells_its_threshold_how_revisited_samples_scored_before(
    is_stable: bool,
) -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=100, min_stability=0.6)
    detector = OODDetector(KNNDistance(k=3), rule)
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(300)
    images = torch.randn(300, 8, generator=generator)
    for _ in range(4):
        noise = 0.0 if is_stable else 1.5
        rows = images + noise * torch.randn(300, 8, generator=generator)
        for part in torch.split(ids, 50):
            found = detector.observe(rows[part], part)
    assert math.isfinite(found.threshold) == is_stable


def test_without_ids_the_number_of_scores_ends_the_warmup() -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=100, min_stability=0.6)
    detector = OODDetector(KNNDistance(k=3), rule)
    for seed in range(30):
        rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed))
        found = detector.observe(rows)
    assert math.isfinite(found.threshold)


def test_replays_are_no_witnesses_of_stability() -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=100, min_stability=0.6)
    detector = OODDetector(KNNDistance(k=3), rule)
    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    for visit in range(10):
        detector.observe(rows, range(100), is_replay=[visit > 0] * 100)
    assert len(rule.state_dict()["later"]) == 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="window of at least 2 / rate = 40 scores, got 39"):
        FlagRate(0.05, window=39, warmup_scores=5)
    with pytest.raises(OptionError, match="warmup_scores from 1 to window=100, got 101"):
        FlagRate(0.05, window=100, warmup_scores=101)
    with pytest.raises(OptionError, match="slack as a whole number of at least 2, got 1"):
        FlagRate(slack=1)
    for bad in (1.0, -1.1, math.nan):
        with pytest.raises(OptionError, match=r"min_stability as a number in \[-1, 1\), got"):
            FlagRate(min_stability=bad)
