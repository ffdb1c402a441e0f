"""Tests of the conformal threshold: its oracle, its proof, and the choice of a whole batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, false_discovery_control, kstest
from torch import Tensor

from raremix.detection import (
    ConformalThreshold,
    KNNDistance,
    OODDetector,
    benjamini_hochberg,
)
from raremix.errors import EmbeddingShapeError, NotEnoughCalibrationError, OptionError

LEVELS = st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.15, 0.3, 1 / 3, 1 - 0.9, 0.5, 0.7, 0.9])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calibrated(level: float, scores: Tensor) -> ConformalThreshold:
    rule = ConformalThreshold(level)
    rule.fit(scores)
    return rule


# --- oracle ---


@given(
    level=LEVELS,
    n=st.integers(1, 250),
    seed=st.integers(0, 99),
    values=st.sampled_from([3, 40, 9999]),
)
@settings(deadline=None, max_examples=100)
def test_threshold_and_p_values_say_the_same_as_counting(
    level: float, n: int, seed: int, values: int
) -> None:
    calibration = torch.randint(0, values, (n,), generator=generator(seed)).float()
    scores = torch.cat([calibration[:20], torch.randint(-1, values + 1, (30,)).float()])
    if 1 / (n + 1) > level:
        with pytest.raises(NotEnoughCalibrationError):
            calibrated(level, calibration)
        return
    rule = calibrated(level, calibration)
    expected = [
        (1 + sum(c >= score for c in calibration.tolist())) / (n + 1) for score in scores.tolist()
    ]
    assert rule.p_values(scores).tolist() == expected
    assert (scores > rule.value).tolist() == [p <= level for p in expected]


@pytest.mark.parametrize(("n", "level"), [(19, 0.05), (99, 0.01), (1000, 0.05), (57, 0.123)])
def test_the_threshold_is_the_calibration_score_of_the_paper(n: int, level: float) -> None:
    scores = torch.rand(n, generator=generator(0))
    rank = math.ceil((n + 1) * (1 - level) - 1e-9)
    assert calibrated(level, scores).value == float(scores.sort().values[rank - 1])


@given(level=st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=100)
def test_too_few_scores_are_refused_and_the_number_named_is_enough(level: float) -> None:
    with pytest.raises(NotEnoughCalibrationError) as caught:
        calibrated(level, torch.empty(0))
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert math.isfinite(calibrated(level, torch.zeros(needed)).value)
    with pytest.raises(NotEnoughCalibrationError):
        calibrated(level, torch.zeros(needed - 1))


def test_the_refusal_says_how_many_scores_it_takes() -> None:
    message = (
        "ConformalThreshold.fit needs at least 99 calibration scores, got 98; pass more, or build "
        "it with a larger level than 0.01."
    )
    rule = calibrated(0.01, torch.arange(200.0))
    with pytest.raises(NotEnoughCalibrationError, match=message):
        rule.fit(torch.zeros(98))
    assert rule.value == 198  # as before
    with pytest.raises(NotEnoughCalibrationError, match=r"p_values needs calibration scores"):
        ConformalThreshold().p_values(torch.zeros(3))


def test_before_it_is_calibrated_nothing_is_rare() -> None:
    rule = ConformalThreshold(0.1)
    rule.update(torch.ones(50), torch.zeros(50, dtype=torch.bool))
    assert rule.value == math.inf


def test_no_score_has_no_p_value() -> None:
    p_values = calibrated(0.5, torch.arange(9.0)).p_values(torch.tensor([math.nan, 99.0]))
    assert p_values[0].isnan()
    assert p_values[1] == 0.1


# --- proof ---


def assert_in_band(alarms: int, trials: int, rate: float) -> None:
    """Inside the exact two-sided binomial band that chance leaves once in 1e4."""
    low, high = binom.ppf([5e-5, 1 - 5e-5], trials, rate)
    assert low <= alarms <= high, f"{alarms} of {trials}, expected {low} to {high}"


@pytest.mark.parametrize(("n", "level"), [(19, 0.05), (50, 0.1), (200, 0.05), (300, 0.01)])
def test_a_hold_out_gives_exactly_the_level(n: int, level: float) -> None:
    trials = 4000
    scores = torch.randn(trials, n + 1, generator=generator(n)).exp()
    alarms = sum(float(row[-1]) > calibrated(level, row[:-1]).value for row in scores)
    assert_in_band(alarms, trials, math.floor(level * (n + 1) + 1e-9) / (n + 1))


def test_the_rate_over_calibration_sets_has_the_beta_distribution() -> None:
    n, level = 199, 0.1
    uniform = torch.rand(2000, n, generator=generator(1), dtype=torch.float64)
    rates = [1 - calibrated(level, row).value for row in uniform]  # of uniform scores
    allowed = round(level * (n + 1))
    assert kstest(rates, "beta", args=(allowed, n + 1 - allowed)).pvalue > 1e-3


def test_ties_make_false_alarms_only_rarer() -> None:
    trials, n, level = 3000, 99, 0.1
    scores = torch.randint(0, 6, (trials, n + 1), generator=generator(2)).float()
    alarms = sum(float(row[-1]) > calibrated(level, row[:-1]).value for row in scores)
    assert alarms <= binom.ppf(1 - 1e-4, trials, level)
    assert not (torch.ones(9) > calibrated(level, torch.ones(99)).value).any()


@pytest.mark.parametrize("is_held_out", [False, True])
def test_neighbour_distances_hold_the_level(is_held_out: bool) -> None:
    trials, n, level = 500, 59, 0.1
    rows = torch.randn(trials, 2 * n + 1, 6, generator=generator(3))
    alarms = 0
    for trial in rows:
        detector = OODDetector(KNNDistance(k=3), ConformalThreshold(level))
        detector.fit(trial[:n])
        if is_held_out:
            detector.threshold.fit(detector.score(trial[n : 2 * n]))
        alarms += int(detector.detect(trial[-1:]).is_rare.sum())
    assert_in_band(alarms, trials, math.floor(level * (n + 1) + 1e-9) / (n + 1))


# --- a whole batch ---


@given(
    p_values=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    exponent=st.integers(1, 6),
    rate=st.sampled_from([0.01, 0.05, 0.2, 0.5]),
)
@settings(deadline=None, max_examples=100)
def test_the_choice_is_that_of_scipy(p_values: list[float], exponent: int, rate: float) -> None:
    values = np.array(p_values) ** exponent
    adjusted = false_discovery_control(values)
    clear = np.abs(adjusted - rate) > 1e-12  # not decided by the last digit
    chosen = benjamini_hochberg(values, rate).numpy()
    assert (chosen == (adjusted <= rate))[clear].all()


def test_few_of_the_chosen_are_common() -> None:
    shares, found = [], []
    for seed in range(200):
        scores = torch.randn(1200, generator=generator(seed))
        rule = calibrated(0.05, scores[:1000])
        mixed = torch.cat([scores[1000:], torch.full((20,), 6.0)])  # 20 of 220 are rare
        chosen = benjamini_hochberg(rule.p_values(mixed), 0.2)
        shares.append(int(chosen[:200].sum()) / max(int(chosen.sum()), 1))
        found.append(int(chosen[200:].sum()))
    assert np.mean(shares) <= 0.2 * 200 / 220 + 3 * np.std(shares) / math.sqrt(200)
    assert np.mean(found) > 19


def test_no_p_value_is_neither_chosen_nor_counted() -> None:
    p_values = torch.tensor([0.04, math.nan, math.nan, 0.9])
    assert benjamini_hochberg(p_values, 0.08).tolist() == [True, False, False, False]
    assert benjamini_hochberg(torch.full((3,), math.nan), 0.5).tolist() == [False] * 3
    assert benjamini_hochberg(torch.empty(0), 0.5).tolist() == []


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_a_p_value_equal_to_the_rate_is_chosen_in_every_precision(rate: float) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert benjamini_hochberg(torch.tensor([rate], dtype=dtype), rate).tolist() == [True]


def test_scores_and_p_values_may_be_arrays_and_lists() -> None:
    rule = calibrated(0.2, torch.arange(9.0))
    expected = rule.p_values(torch.tensor([3.0, 7.5]))
    for given_as in (np.array([3.0, 7.5]), [3.0, 7.5], np.array([3.0, 7.5], dtype=">f4")):
        assert torch.equal(rule.p_values(given_as), expected)
    assert benjamini_hochberg([0.01, 0.9], 0.05).tolist() == [True, False]


def test_what_are_no_p_values_is_refused() -> None:
    with pytest.raises(EmbeddingShapeError, match=r"p_values as real numbers .*, got dtype object"):
        benjamini_hochberg(None, 0.1)  # type: ignore[arg-type]  # what is refused here
    with pytest.raises(EmbeddingShapeError, match=r"p_values expects scores .* shape \(1, 2\)"):
        calibrated(0.5, torch.arange(9.0)).p_values(torch.zeros(1, 2))
    with pytest.raises(OptionError, match=r"in \[0, 1\], got some outside; pass what"):
        benjamini_hochberg(torch.tensor([0.5, 1.5]), 0.1)
    with pytest.raises(EmbeddingShapeError, match=r"p_values .* \(n,\), got .* shape \(1, 2\)"):
        benjamini_hochberg(torch.zeros(1, 2), 0.1)
    with pytest.raises(OptionError, match=r"rate as a number in \(0, 1\), got 1"):
        benjamini_hochberg(torch.zeros(2), 1.0)
    with pytest.raises(OptionError, match=r"level as a number in \(0, 1\), got 0"):
        ConformalThreshold(0.0)
