"""Sums scores up in a few numbers, by one rule wherever they are shown."""

from typing import Any

import numpy as np

__all__ = ["score_quantiles"]

_LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def score_quantiles(scores: Any) -> dict[str, float]:
    """The quantiles of scores by name, from ``p50`` to ``p99.9``; NaN takes no part.

    Between two scores lies what lies between them in proportion, as ``numpy.quantile`` has it;
    where scores are infinite, the nearest one is taken.

    Args:
        scores: (n,) floats, at least one not NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    known = values[~np.isnan(values)]
    method: Any = "linear" if np.isfinite(known).all() else "nearest"
    found = np.quantile(known, list(_LEVELS.values()), method=method).tolist()
    return dict(zip(_LEVELS, found, strict=True))
