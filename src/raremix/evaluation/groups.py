"""Which classes count as many, medium and few, and which as rare, by how often they occur.

It looks at labels and counts, and knows neither scores nor embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raremix.errors import LabelError, OptionError

__all__ = ["GROUPS", "Group", "class_groups", "rarest_classes", "rarest_of"]

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
    values = np.asarray(labels)
    classes, counts = np.unique(values, return_counts=True)
    return _rarest(
        classes.tolist(), counts, share, caller="rarest_classes", whole=f"{len(values)} samples"
    )


def rarest_of(counts: Mapping[Any, int], share: float) -> list[Any]:
    """The classes with the smallest counts that together stay under a share of all counts.

    As ``rarest_classes``, where the counts are known and are of pixels, objects or frames.

    Args:
        counts: The count of each class, none negative. A class whose count is 0 does not occur,
            so it is not rare either: it is left out.
        share: In (0, 1).

    Returns:
        The classes, smallest count first. Of classes with equal counts, the one that comes first
        in ``counts`` is taken first.

    Raises:
        OptionError: If ``share`` lies outside (0, 1).
        LabelError: If a count is negative or not whole, or if even the smallest class reaches the
            share, so that none would be rare.

    Example:
        >>> rarest_of({"road": 9000, "train": 2, "bus": 60, "plane": 0}, share=0.1)
        ['train', 'bus']
    """
    sizes = np.asarray(list(counts.values()) or np.empty(0, np.int64))
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or (sizes < 0).any():
        raise LabelError(
            f"rarest_of expects counts as whole numbers of at least 0, got {dict(counts)}; count "
            "the pixels, objects or frames of each class."
        )
    occurs = sizes > 0
    classes = [label for label, is_there in zip(counts, occurs, strict=True) if is_there]
    whole = f"a count of {sizes.sum()}"
    return _rarest(classes, sizes[occurs], share, caller="rarest_of", whole=whole)


def _rarest(
    classes: list[Any], counts: npt.NDArray[Any], share: float, *, caller: str, whole: str
) -> list[Any]:
    """The first classes, by their counts, whose sum stays under the share of all."""
    if not 0 < share < 1:
        raise OptionError(f"{caller} expects a share in (0, 1), got {share}.")
    total = counts.sum()
    order = np.argsort(counts, kind="stable")
    taken = order[np.cumsum(counts[order]) < share * total]
    if len(taken) == 0:
        smallest = f"the smallest has {counts.min() / total:.4g}" if len(counts) else "none"
        raise LabelError(
            f"{caller} finds no class under a share of {share:g} of {whole} ({smallest}); raise "
            "the share, or name the rare classes."
        )
    return [classes[place] for place in taken]
