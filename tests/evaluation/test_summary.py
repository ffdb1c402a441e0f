"""The whole evaluation, its intervals and its warnings."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redrawing import quantiles, redrawn_rows

from raremix.errors import LabelError, NonFiniteError, OptionError
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


def _width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def _grouped(groups: int = 12, n: int = 90, seed: int = 0) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    rare = generator.random(n) < 0.2
    # Few distinct scores, so that ties are common, and groups of different sizes.
    scores = generator.integers(0, 8, size=n) + rare
    return scores.astype(float), rare, generator.integers(groups, size=n) ** 2


def test_without_groups_rare_and_common_rows_are_copied_apart() -> None:
    scores, rare, _ = _grouped()
    found = bootstrap_intervals(scores, rare, resamples=60, seed=4)
    generator = np.random.default_rng(4)
    kinds = np.flatnonzero(rare), np.flatnonzero(~rare)
    copies = [
        np.concatenate([rows[generator.integers(len(rows), size=len(rows))] for rows in kinds])
        for _ in range(60)
    ]
    for interval, measure in zip(found, (auroc, average_precision), strict=True):
        expected = quantiles([measure(scores[copy], rare[copy]) for copy in copies])
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_redrawing_groups_is_copying_their_rows(kind: str) -> None:
    scores, rare, groups = _grouped()
    named = groups if kind == "numbers" else np.array([f"clip {group:03d}" for group in groups])
    area, precision = bootstrap_intervals(scores, rare, groups=named, resamples=60, seed=4)
    rows = redrawn_rows(groups, seed=4)
    copies = [next(rows) for _ in range(60)]
    for found, measure in ((area, auroc), (precision, average_precision)):
        expected = quantiles([measure(scores[copy], rare[copy]) for copy in copies])
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_resamples_of_one_kind_are_drawn_anew_and_counted() -> None:
    scores, _, groups = _grouped(groups=4, n=40, seed=2)
    rare = (groups == 9) & (scores > 2)
    result = evaluate(scores, rare, groups=groups, resamples=50, seed=1)
    kept: list[float] = []
    empty = 0
    for rows in redrawn_rows(groups, seed=1):
        if not rare[rows].any():
            empty += 1
            continue
        kept.append(average_precision(scores[rows], rare[rows]))
        if len(kept) == 50:
            break
    assert empty > 0
    assert result.redrawn == empty
    assert result.groups == 4
    found = result.average_precision_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx(quantiles(kept), abs=1e-12)
    assert result.notes == (
        f"only 1 of 4 groups holds rare samples ({empty} resamples held one kind only and were "
        "drawn anew): from fewer than 5 an interval says nothing, and the truth may lie far "
        "outside.",
    )


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(0, 10_000))
def test_a_group_per_sample_is_no_narrower_than_no_groups(seed: int) -> None:
    scores, rare = _data(150, seed)
    plain = bootstrap_intervals(scores, rare, resamples=1000)
    single = bootstrap_intervals(scores, rare, groups=np.arange(150), resamples=1000)
    # The same draws of samples, but the prevalence varies as well.
    for one, other in zip(single, plain, strict=True):
        assert _width(one) > 0.85 * _width(other)
    assert _width(single[1]) < 2 * _width(plain[1])


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.integers(4, 8))
def test_copies_within_a_group_narrow_the_plain_interval_only(seed: int, copies: int) -> None:
    scores, rare = _data(80, seed)
    groups = np.arange(80) // 4
    repeated = [np.repeat(values, copies) for values in (scores, rare, groups)]
    once = bootstrap_intervals(scores, rare, groups=groups, resamples=60)
    often = bootstrap_intervals(repeated[0], repeated[1], groups=repeated[2], resamples=60)
    for one, other in zip(once, often, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)
    plain = bootstrap_intervals(scores, rare, resamples=200)
    narrow = bootstrap_intervals(repeated[0], repeated[1], resamples=200)
    assert _width(narrow[0]) < 0.9 * _width(plain[0])


def test_only_groups_cover_the_truth_where_the_samples_of_a_group_are_alike() -> None:
    # As above, but of every group there are ten copies: 60 groups are 60 samples, not 600.
    groups = np.repeat(np.arange(60), 10)
    covered = {"groups": 0, "samples": 0}
    for seed in range(60):
        scores, rare = _data(60, seed)
        scores, rare = np.repeat(scores, 10), np.repeat(rare, 10)
        for kind, said in (("groups", groups), ("samples", None)):
            found, _ = bootstrap_intervals(scores, rare, groups=said, resamples=100, level=0.9)
            covered[kind] += found.low <= 0.7602 <= found.high
    assert covered["groups"] >= 45
    assert covered["samples"] <= 40


def test_groups_change_the_intervals_and_nothing_else() -> None:
    scores, rare, groups = _grouped(groups=30, n=300)
    plain = evaluate(scores, rare, resamples=50, thresholds=[4.5])
    grouped = evaluate(scores, rare, groups=groups, resamples=50, thresholds=[4.5])
    assert (plain.groups, plain.redrawn) == (None, 0)
    assert grouped.groups == len(np.unique(groups))
    assert grouped.auroc_interval != plain.auroc_interval
    assert grouped.thresholds == plain.thresholds
    assert (grouped.auroc, grouped.notes) == (plain.auroc, plain.notes)
    bare = bootstrap_intervals(scores, rare, groups=groups, resamples=50)
    assert bare == (grouped.auroc_interval, grouped.average_precision_interval)


def test_a_group_without_a_score_is_no_group() -> None:
    scores, rare, groups = _grouped(groups=30, n=300)
    holes = np.r_[scores, np.nan, np.nan, np.nan]
    found = evaluate(
        holes,
        np.r_[rare, True, False, False],
        groups=np.r_[groups, -1, -1, groups[0]],
        resamples=40,
        skip_nan=True,
    )
    expected = evaluate(scores, rare, groups=groups, resamples=40)
    assert found.groups == expected.groups
    assert found.auroc_interval == expected.auroc_interval
    assert found.notes == ("3 of 303 samples have no score (NaN).",)


def test_few_groups_of_a_kind_are_warned_of_though_samples_are_many() -> None:
    scores, rare = _data()
    (note,) = evaluate(scores, rare, groups=np.arange(400) // 40, resamples=20).notes
    assert note.startswith("only 2 of 10 groups hold rare samples")
    (note,) = evaluate(-scores, ~rare, groups=np.arange(400) // 40, resamples=20).notes
    assert note.startswith("only 2 of 10 groups hold common samples")
    assert evaluate(scores, rare, groups=np.arange(400) // 10, resamples=20).notes == ()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], r"got 400 scores and groups of shape \(2,\)"),
        (np.zeros((400, 1), int), r"groups of shape \(400, 1\)"),
        (np.arange(400.0), "groups as whole numbers or strings, got float64"),
        (np.arange(400) > 5, "groups as whole numbers or strings, got bool"),
        (["a"] * 400, "all 400 samples are of one"),
    ],
)
def test_groups_that_do_not_fit_are_explained(groups: Any, message: str) -> None:
    scores, rare = _data()
    for call in (evaluate, bootstrap_intervals):
        with pytest.raises(LabelError, match=message):
            call(scores, rare, groups=groups)
