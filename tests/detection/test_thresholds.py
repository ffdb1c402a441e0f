"""Tests of where each rule puts its threshold."""

import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection import FixedThreshold, FlagRate, QuantileThreshold
from raremix.errors import OptionError
from raremix.protocols import Threshold

SHARES = st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.25, 0.29, 0.5, 0.9])


def gamma(n: int, seed: int = 0) -> Tensor:
    return -torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)).log().sum(dim=1)


def step(rule: Threshold, scores: Tensor) -> Tensor:
    is_rare = scores > rule.value
    rule.update(scores, is_rare)
    return is_rare


def sorted_cut(scores: list[float], rare_in_100: int) -> float:
    """The oracle: sort, and leave a whole number of scores above."""
    ascending = sorted(scores)
    above = len(scores) * rare_in_100 // 100
    return ascending[len(scores) - 1 - above]


@given(share=SHARES, n=st.integers(1, 300), seed=st.integers(0, 99), levels=st.integers(1, 400))
@settings(deadline=None, max_examples=80)
def test_a_fitted_threshold_is_that_of_the_sorted_scores(
    share: float, n: int, seed: int, levels: int
) -> None:
    scores = (gamma(n, seed) * levels).round() / levels  # few levels make many ties
    expected = sorted_cut(scores.tolist(), round(share * 100))
    for rule in (FlagRate(share), QuantileThreshold(1 - share)):
        rule.fit(scores)
        assert rule.value == expected
        assert int((scores > rule.value).sum()) <= share * n + 1e-9


@pytest.mark.parametrize("n", [100, 4096, 4097, 20_000])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_after_fit_exactly_the_rate_lies_above(n: int, rate: float) -> None:
    rule, scores = FlagRate(rate), gamma(n)
    rule.fit(scores)
    assert int((scores > rule.value).sum()) == math.floor(n * rate + 1e-9)


def test_equal_scores_are_never_rare() -> None:
    for rule in (FlagRate(0.5), QuantileThreshold(0.5)):
        rule.fit(torch.ones(100))
        assert not (torch.ones(100) > rule.value).any()


def test_a_fixed_threshold_stays_where_it_is() -> None:
    rule = FixedThreshold(0.25)
    rule.fit(gamma(50))
    step(rule, gamma(50))
    assert rule.value == 0.25


def test_a_quantile_is_not_moved_by_later_scores() -> None:
    rule = QuantileThreshold(0.9)
    rule.fit(gamma(50))
    before = rule.value
    step(rule, 100 * gamma(5000))
    assert rule.value == before


@pytest.mark.parametrize("batch", [1, 30, 64, 100, 250])
def test_a_quantile_calibrates_on_the_first_scores_whatever_the_batch(batch: int) -> None:
    rule, scores = QuantileThreshold(0.9, calibration_scores=100), gamma(250)
    for part in torch.split(scores, batch):
        seen_before = math.isfinite(rule.value)
        assert seen_before or not step(rule, part).any()
    assert rule.value == sorted_cut(scores[:100].tolist(), 10)


def test_no_scores_change_nothing() -> None:
    rule = FlagRate(0.1, window=200, warmup_scores=10)
    rule.fit(gamma(50))
    before = rule.value
    rule.update(torch.empty(0), torch.empty(0, dtype=torch.bool))
    assert rule.value == before


@given(
    rate=st.sampled_from([0.1, 0.25, 0.5]),
    window=st.integers(20, 40),
    warmup=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_with_nothing_owed_it_is_the_quantile_of_the_last_scores(
    rate: float, window: int, warmup: int, sizes: list[int], seed: int
) -> None:
    # Of so much slack that a few flags more or less do not count.
    rule = FlagRate(rate, window=window, warmup_scores=warmup, slack=10**15)
    recent: deque[float] = deque(maxlen=window)
    for number, size in enumerate(sizes):
        scores = gamma(size, seed * 100 + number)
        step(rule, scores)
        recent.extend(scores.tolist())
        expected = (
            sorted_cut(list(recent), round(rate * 100)) if len(recent) >= warmup else math.inf
        )
        assert rule.value == expected


@pytest.mark.parametrize(
    ("rate", "fewest", "most"), [(0.05, 25, 75), (0.3, 150, 450), (0.9, 450, 950)]
)
def test_what_is_owed_moves_the_threshold_but_not_far(rate: float, fewest: int, most: int) -> None:
    rule, scores = FlagRate(rate, window=1000, warmup_scores=1), gamma(1000)
    for all_rare, above in ((True, fewest), (False, most)):
        rule.fit(scores)
        for _ in range(50):
            rule.update(gamma(8), torch.full((8,), all_rare))
        recent = rule.state_dict()["recent"]
        assert int((recent > rule.value).sum()) == pytest.approx(above, abs=4)  # eights are tied


def test_a_long_fit_is_forgotten_evenly() -> None:
    rule = FlagRate(0.1, window=1000, warmup_scores=500)
    rule.fit(gamma(50_000))
    before = rule.value
    step(rule, gamma(500, 1))  # half of the window, of the same distribution
    assert rule.value == pytest.approx(before, rel=0.06)


def test_numpy_numbers_leave_a_state_that_loads_safely(tmp_path: object) -> None:
    rule = FlagRate(np.float64(0.1), window=np.int64(50), min_stability=np.float64(0.1))
    torch.save(rule.state_dict(), f"{tmp_path}/state.pt")
    rule.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
    quantile = QuantileThreshold(np.float64(0.9), calibration_scores=np.int64(5))
    torch.save(quantile.state_dict(), f"{tmp_path}/state.pt")
    quantile.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_its_range_is_refused(bad: float) -> None:
    with pytest.raises(OptionError, match=r"FlagRate expects rate as a number in \(0, 1\), got"):
        FlagRate(bad)
    with pytest.raises(
        OptionError, match=r"QuantileThreshold expects quantile as a number in \(0, 1\), got"
    ):
        QuantileThreshold(bad)


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match=r"value as a number in \(-inf, inf\), got inf"):
        FixedThreshold(math.inf)
    with pytest.raises(
        OptionError, match="calibration_scores as a whole number of at least 1, got 0"
    ):
        QuantileThreshold(calibration_scores=0)
