"""The bootstrap over groups as one would write it down: rows are copied, group by group."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def redrawn_rows(groups: Any, seed: int) -> Iterator[Any]:
    """The rows of one resample after the other, from the draws that the package makes."""
    names, codes = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    while True:
        drawn = generator.integers(len(names), size=len(names))
        yield np.concatenate([np.flatnonzero(codes == group) for group in drawn])


def quantiles(values: Any) -> Any:
    """The ends of a 95 % interval."""
    return np.quantile(values, [0.025, 0.975])
