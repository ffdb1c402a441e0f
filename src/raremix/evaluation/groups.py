"""Which classes count as many, medium and few, and which as rare, by how often they occur.

It counts labels and knows neither scores nor embeddings.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from raremix.errors import LabelError, OptionError

__all__ = ["GROUPS", "Group", "class_groups", "rarest_classes"]

Group = Literal["many", "medium", "few"]

GROUPS: tuple[Group, Group, Group] = ("many", "medium", "few")
"""Thirds of the classes, from the head of the distribution to its tail."""


def class_groups(counts: Sequence[int]) -> list[Group]:
    """Divide classes into thirds by their number of training samples.

    If the classes cannot be divided by three, the earlier groups get one more: 10 classes give
    4, 3 and 3; 100 give 34, 33 and 33. Of classes with equal counts, the one that comes first in
    ``counts`` counts as the larger.

    Args:
        counts: Training samples of each class, at least three classes.

    Returns:
        ``"many"``, ``"medium"`` or ``"few"`` for each class, in the order of ``counts``.

    Raises:
        LabelError: If there are fewer than three classes, or a count is negative.

    Source:
        The division by thirds of Jiang et al., Self-Damaging Contrastive Learning, ICML 2021,
        https://arxiv.org/abs/2106.02990.

    Example:
        >>> class_groups([50, 5000, 200])
        ['few', 'many', 'medium']
    """
    sizes = np.asarray(counts)
    if sizes.ndim != 1 or len(sizes) < 3 or (sizes < 0).any():
        raise LabelError(
            f"class_groups expects counts of at least 3 classes, none negative, got {list(counts)}."
        )
    groups: list[Group] = ["many"] * len(sizes)
    order = np.argsort(-sizes, kind="stable")
    for group, classes in zip(GROUPS, np.array_split(order, 3), strict=True):
        for index in classes.tolist():
            groups[index] = group
    return groups


def rarest_classes(labels: Any, share: float) -> list[Any]:
    """The classes with the fewest samples that together stay under a share of all samples.

    Args:
        labels: (n,) class labels, integers or strings.
        share: In (0, 1).

    Returns:
        The classes, fewest samples first. Of classes with equal counts, the smaller label (in
        sorting order) is taken first.

    Raises:
        OptionError: If ``share`` lies outside (0, 1).
        LabelError: If even the smallest class reaches the share, so that none would be rare.

    Example:
        >>> rarest_classes(["car"] * 90 + ["bus"] * 6 + ["train"] * 2, share=0.1)
        ['train', 'bus']
    """
    if not 0 < share < 1:
        raise OptionError(f"rarest_classes expects a share in (0, 1), got {share}.")
    values = np.asarray(labels)
    classes, counts = np.unique(values, return_counts=True)
    order = np.argsort(counts, kind="stable")
    together = np.cumsum(counts[order])
    taken = order[together < share * len(values)]
    if len(taken) == 0:
        smallest = f"the smallest has {counts.min() / len(values):.4g}" if len(values) else "none"
        raise LabelError(
            f"rarest_classes finds no class under a share of {share:g} of {len(values)} samples "
            f"({smallest}); raise the share, or name the rare classes."
        )
    return list(classes[taken].tolist())
