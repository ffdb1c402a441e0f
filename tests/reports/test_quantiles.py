"""One rule for quantiles."""

import numpy as np
import pytest

from raremix.reports import score_quantiles


def test_the_quantiles_are_those_of_numpy_without_nan() -> None:
    scores = np.random.default_rng(0).normal(size=59)
    found = score_quantiles(np.r_[scores, np.nan])
    assert list(found) == ["p50", "p90", "p99", "p99.9"]
    assert list(found.values()) == np.quantile(scores, [0.5, 0.9, 0.99, 0.999]).tolist()


def test_infinite_scores_make_no_nan() -> None:
    found = score_quantiles([1.0, 2.0, np.inf])
    assert found == pytest.approx({"p50": 2.0, "p90": np.inf, "p99": np.inf, "p99.9": np.inf})
