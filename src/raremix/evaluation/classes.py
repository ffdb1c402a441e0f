"""How the flags and the scores spread over the classes, one row per class.

A rare class that resembles a common one is invisible to any density, and an overall number hides
it. Classes are whatever the labels say; it knows no embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raremix.errors import LabelError
from raremix.evaluation.metrics import auroc
from raremix.evaluation.scored import as_numpy

__all__ = ["ClassRow", "class_table"]


@dataclass(frozen=True)
class ClassRow:
    """One class among the scored samples.

    Attributes:
        label: As it stands in the labels.
        name: Its name, or the label as text.
        count: Scored samples of the class.
        share: Of all scored samples.
        is_rare: Whether most of the class is rare; None if that is not known.
        auroc: Chance that a sample of the class scores above a common sample of another class;
            NaN if there is none, None if it is not known what is common.
        flagged: Samples of the class above the threshold.
        flagged_share: The same as a share of the class: its recall, if the class is rare.
        lift: ``flagged_share`` divided by the flagged share of all samples; 1 is chance, NaN if
            nothing is flagged.
    """

    label: Any
    name: str
    count: int
    share: float
    is_rare: bool | None
    auroc: float | None
    flagged: int
    flagged_share: float
    lift: float


def class_table(
    scores: Any,
    labels: Any,
    *,
    threshold: float,
    is_rare: Any = None,
    names: Mapping[Any, str] | None = None,
) -> tuple[ClassRow, ...]:
    """Count the flags of each class and, if it is known what is rare, measure its AUROC.

    Args:
        scores: (n,) floats, larger is rarer; samples whose score is NaN are left out.
        labels: (n,) class labels, integers or strings.
        threshold: Scores above it count as flagged.
        is_rare: (n,) bool, or None.
        names: Name of each label, where it has one.

    Returns:
        One row per class that has a score, the least frequent class first.

    Raises:
        LabelError: If ``labels`` or ``is_rare`` is not as long as ``scores``.

    Example:
        >>> for row in class_table([1.0, 2.0, 9.0], ["car", "car", "train"], threshold=5.0):
        ...     print(row.name, row.count, row.flagged_share)
        train 1 1.0
        car 2 0.0
    """
    values, classes = as_numpy(scores).astype(np.float64), as_numpy(labels)
    rare = None if is_rare is None else as_numpy(is_rare).astype(np.bool_)
    for what, array in (("labels", classes), ("is_rare", rare)):
        if array is not None and array.shape != values.shape:
            raise LabelError(
                f"class_table got {len(values)} scores and {what} of shape {array.shape}; pass one "
                "per score, in the same order."
            )
    kept = ~np.isnan(values)
    values, classes = values[kept], classes[kept]
    rare = None if rare is None else rare[kept]
    is_flagged = values > threshold
    overall = float(is_flagged.mean()) if len(values) else float("nan")
    rows = []
    for label in np.unique(classes):
        members = classes == label
        area: float | None = None
        if rare is not None:
            others = ~members & ~rare
            judged = members | others
            area = auroc(values[judged], members[judged]) if others.any() else float("nan")
        share = float(is_flagged[members].mean())
        plain = label.item() if isinstance(label, np.generic) else label
        rows.append(
            ClassRow(
                label=plain,
                name=(names or {}).get(plain, str(plain)),
                count=int(members.sum()),
                share=float(members.mean()),
                is_rare=None if rare is None else bool(rare[members].mean() > 0.5),
                auroc=area,
                flagged=int(is_flagged[members].sum()),
                flagged_share=share,
                lift=share / overall if overall > 0 else float("nan"),
            )
        )
    return tuple(sorted(rows, key=lambda row: row.count))
