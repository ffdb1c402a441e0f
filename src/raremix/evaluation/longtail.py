"""Cuts a balanced labelled set down to a long tail, as the published benchmarks do.

It returns ids and never touches the samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raremix.errors import LabelError, OptionError

__all__ = ["long_tail_counts", "long_tail_subset"]


def long_tail_counts(n_max: int, n_classes: int, imbalance: float) -> list[int]:
    """How many samples each class keeps, falling exponentially from the first to the last.

    Class i of C keeps ``int(n_max * imbalance ** (-i / (C - 1)))``.

    Args:
        n_max: Samples of the first class, at least 1.
        n_classes: C, at least 2.
        imbalance: First class divided by last, at least 1; 100 is usual.

    Returns:
        C counts, never rising.

    Raises:
        OptionError: If an argument is out of range, or the last class would keep no sample.

    Source:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
        https://arxiv.org/abs/1901.05555.

    Example:
        >>> long_tail_counts(5000, 10, 100)
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if n_max < 1 or n_classes < 2 or not 1 <= imbalance < float("inf"):
        raise OptionError(
            "long_tail_counts expects n_max of at least 1, n_classes of at least 2 and a finite "
            f"imbalance of at least 1, got {n_max}, {n_classes} and {imbalance}."
        )
    # In floating point 49 * 49 ** -1 is just below 1 and would be cut to 0.
    counts = [
        int(n_max * imbalance ** (-place / (n_classes - 1)) * (1 + 1e-12))
        for place in range(n_classes)
    ]
    if counts[-1] == 0:
        raise OptionError(
            f"long_tail_counts({n_max}, {n_classes}, {imbalance:g}) leaves the last class without "
            f"a sample; n_max must be at least the imbalance."
        )
    return counts


def long_tail_subset(
    labels: Any,
    imbalance: float,
    *,
    seed: int,
    class_order: Sequence[Any] | None = None,
    n_max: int | None = None,
) -> npt.NDArray[np.int64]:
    """Draw a long-tailed subset of a labelled set, without replacement.

    Args:
        labels: (n,) class labels of the whole set, integers or strings.
        imbalance: First class divided by last, at least 1.
        seed: Seed of the draw. Each class is shuffled by its own generator, so that what is drawn
            of a class depends on the seed and the class's count only.
        class_order: All classes, most frequent first; in sorting order if not given. Shuffle it
            to learn whether a result hangs on which classes are rare.
        n_max: Samples of the first class; the count of the smallest class if not given, so that
            every class has enough.

    Returns:
        Ids of the samples kept, ascending, int64.

    Raises:
        LabelError: If ``class_order`` does not hold every class once, or a class is too small.
        OptionError: If ``imbalance`` or ``n_max`` is out of range.

    Example:
        >>> labels = [0] * 4 + [1] * 4
        >>> len(long_tail_subset(labels, imbalance=2, seed=0))
        6
    """
    values = np.asarray(labels)
    if values.ndim != 1 or len(values) == 0:
        raise LabelError(
            f"long_tail_subset expects labels of shape (n,), got shape {values.shape}."
        )
    classes, sizes = np.unique(values, return_counts=True)
    order = classes.tolist() if class_order is None else list(class_order)
    if sorted(order, key=str) != sorted(classes.tolist(), key=str):
        raise LabelError(
            f"long_tail_subset expects class_order to name each of the classes {classes.tolist()} "
            f"once, got {order}."
        )
    counts = long_tail_counts(int(sizes.min()) if n_max is None else n_max, len(order), imbalance)
    available = dict(zip(classes.tolist(), sizes.tolist(), strict=True))
    place_of = {label: place for place, label in enumerate(classes.tolist())}
    kept = []
    for label, count in zip(order, counts, strict=True):
        if count > available[label]:
            raise LabelError(
                f"long_tail_subset wants {count} samples of class {label!r}, which has "
                f"{available[label]}; lower n_max or move the class back in class_order."
            )
        generator = np.random.default_rng([seed, place_of[label]])
        ids = np.flatnonzero(values == label)
        # The first of a shuffle, so that a shorter tail of the same seed is part of a longer one.
        kept.append(generator.permutation(ids)[:count])
    return np.sort(np.concatenate(kept)).astype(np.int64)
