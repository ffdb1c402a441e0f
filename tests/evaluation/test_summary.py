"""The whole evaluation, its intervals and its warnings."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from raremix.errors import NonFiniteError, OptionError
from raremix.evaluation import (
    Interval,
    auroc,
    average_precision,
    bootstrap_intervals,
    evaluate,
    fpr_at_95_tpr,
    threshold_table,
)


def _data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rare = np.arange(n) < n // 5
    return generator.normal(size=n) + rare, rare


def test_the_evaluation_holds_what_the_single_measures_say() -> None:
    scores, rare = _data()
    result = evaluate(scores, rare, resamples=50)
    assert result.auroc == auroc(scores, rare)
    assert result.average_precision == average_precision(scores, rare)
    assert result.fpr95 == fpr_at_95_tpr(scores, rare)
    assert result.thresholds == threshold_table(scores, rare)
    assert (result.samples, result.rare, result.prevalence) == (400, 80, 0.2)
    assert result.lift == pytest.approx(result.average_precision / 0.2)
    assert result.notes == ()


def test_the_evaluation_cannot_be_changed() -> None:
    result = evaluate(*_data(), resamples=0)
    with pytest.raises(FrozenInstanceError):
        result.auroc = 1.0  # type: ignore[misc]


def test_an_interval_holds_the_measure_and_narrows_with_the_samples() -> None:
    few = evaluate(*_data(100), resamples=300)
    many = evaluate(*_data(10_000), resamples=300)
    for small, large, value in (
        (few.auroc_interval, many.auroc_interval, many.auroc),
        (
            few.average_precision_interval,
            many.average_precision_interval,
            many.average_precision,
        ),
    ):
        assert small is not None
        assert large is not None
        assert large.low < value < large.high
        assert large.high - large.low < (small.high - small.low) / 3


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Two normals one standard deviation apart: AUROC is Phi(1 / sqrt 2) = 0.7602.
    covered = 0
    for seed in range(100):
        interval, _ = bootstrap_intervals(*_data(300, seed), resamples=100, level=0.9)
        covered += interval.low <= 0.7602 <= interval.high
    assert 80 <= covered <= 98


def test_the_width_of_the_interval_is_that_of_delong() -> None:
    scores, rare = _data(1000)
    interval, _ = bootstrap_intervals(scores, rare, resamples=1000)
    above = scores[rare][:, None] > scores[~rare][None, :]
    variance = above.mean(1).var(ddof=1) / 200 + above.mean(0).var(ddof=1) / 800
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.12)


def test_one_seed_gives_one_interval_and_leaves_the_global_generator_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first = bootstrap_intervals(*_data(), resamples=20, seed=1)
    assert bootstrap_intervals(*_data(), resamples=20, seed=1) == first
    assert bootstrap_intervals(*_data(), resamples=20, seed=2) != first
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_a_perfect_ranking_has_no_width() -> None:
    rare = np.arange(50) < 10
    assert bootstrap_intervals(rare.astype(float), rare, resamples=20) == (
        Interval(1.0, 1.0),
        Interval(1.0, 1.0),
    )


def test_no_resamples_means_no_interval() -> None:
    result = evaluate(*_data(), resamples=0)
    assert result.auroc_interval is None
    assert result.average_precision_interval is None


def test_an_area_below_one_half_warns_of_sign_or_features() -> None:
    scores, rare = _data()
    (note,) = evaluate(-scores, rare, resamples=0).notes
    assert "below chance" in note
    assert "sign of the score" in note
    assert "features" in note


def test_skipped_nan_scores_are_counted_and_change_nothing_else() -> None:
    scores, rare = _data()
    holes = np.r_[scores, np.nan, np.nan]
    result = evaluate(holes, np.r_[rare, True, False], resamples=0, skip_nan=True)
    assert result.left_out == 2
    assert result.notes == ("2 of 402 samples have no score (NaN).",)
    assert result.auroc == auroc(scores, rare)
    assert result.samples == 400


def test_options_out_of_range_are_named() -> None:
    scores, rare = _data()
    for resamples in (-1, 1, 19):
        message = f"evaluate expects 0 resamples, .* or at least 20, got {resamples}"
        with pytest.raises(OptionError, match=message):
            evaluate(scores, rare, resamples=resamples)
    with pytest.raises(OptionError, match="expects at least 20 resamples, got 1"):
        bootstrap_intervals(scores, rare, resamples=1)
    with pytest.raises(OptionError, match=r"level in \(0, 1\), got 95"):
        bootstrap_intervals(scores, rare, level=95)


def test_an_interval_of_few_rare_samples_is_said_to_mean_nothing() -> None:
    scores = np.arange(100.0)
    (note,) = evaluate(scores, scores == 90, resamples=50).notes
    assert note.startswith("only 1 of 100 samples is rare: from fewer than 5")
    (note,) = evaluate(scores, scores >= 3, resamples=50).notes
    assert note.startswith("only 3 of 100 samples are common")
    assert evaluate(scores, scores >= 95, resamples=50).notes == ()
    assert evaluate(scores, scores == 90, resamples=0).notes == ()


def test_an_area_whose_interval_holds_chance_is_not_called_below_it() -> None:
    scores = np.arange(100.0)
    rare = np.isin(scores, (5, 20, 45, 50, 60, 80))
    found = evaluate(scores, rare, resamples=200)
    assert found.auroc < 0.5 < found.auroc_interval.high  # type: ignore[union-attr]  # asked for
    assert found.notes == ()
    assert "below chance" in evaluate(scores, scores < 6, resamples=200).notes[0]


def test_scores_that_are_all_nan_are_said_to_be_none() -> None:
    with pytest.raises(NonFiniteError, match="evaluate got 4 samples and not one score, only NaN"):
        evaluate([np.nan] * 4, [False, True, False, True], skip_nan=True)
