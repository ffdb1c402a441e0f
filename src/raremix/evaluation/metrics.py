"""How well scores tell rare samples from common ones, when it is known which are which.

A high score means rare. It knows no embeddings and no classes: scores and true flags come in,
numbers go out. Samples with equal scores are never told apart, whatever order they come in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raremix.evaluation.scored import Floats, Ranking, checked
from raremix.inputs import ArrayLike

__all__ = [
    "FPR95",
    "area_under_roc",
    "area_under_steps",
    "auroc",
    "average_precision",
    "fpr_at_95_tpr",
]


@dataclass(frozen=True)
class FPR95:
    """The false-positive rate where 95 % of the positives are found, by both conventions in use.

    Attributes:
        rare_positive: Share of the common samples flagged when the cut lets 95 % of the rare ones
            through. OpenOOD and pytorch-ood mean this.
        common_positive: Share of the rare samples taken for common when the cut keeps 95 % of the
            common ones. The code of Sun et al. (2022) means this.
    """

    rare_positive: float
    common_positive: float


def auroc(scores: ArrayLike | Sequence[float], is_rare: ArrayLike | Sequence[bool]) -> float:
    """Chance that a rare sample scores above a common one, ties counted half.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.

    Returns:
        The area under the ROC curve, in [0, 1]; 0.5 is chance.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score is NaN.

    Source:
        Hanley and McNeil, The meaning and use of the area under a ROC curve, Radiology 1982,
        https://doi.org/10.1148/radiology.143.1.7063747.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
    """
    ranking = Ranking(*checked(scores, is_rare, caller="auroc"))
    return float(area_under_roc(ranking.rare[None], ranking.common[None])[0])


def average_precision(
    scores: ArrayLike | Sequence[float], is_rare: ArrayLike | Sequence[bool]
) -> float:
    """Mean, over the rare samples, of the precision when cutting at each of their scores.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.

    Returns:
        The area under the precision-recall steps, without interpolation, in (0, 1]; chance is the
        prevalence.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score is NaN.

    Source:
        Davis and Goadrich, The relationship between precision-recall and ROC curves, ICML 2006,
        https://doi.org/10.1145/1143844.1143874, on why the steps are not joined by lines.

    Example:
        >>> average_precision([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
        0.8333333333333333
    """
    ranking = Ranking(*checked(scores, is_rare, caller="average_precision"))
    return float(area_under_steps(ranking.rare[None], ranking.common[None])[0])


def fpr_at_95_tpr(
    scores: ArrayLike | Sequence[float], is_rare: ArrayLike | Sequence[bool]
) -> FPR95:
    """False-positive rate at the first cut that finds 95 % of the positives, both ways round.

    Args:
        scores: (n,) floats, larger is rarer; infinity is allowed, NaN is not.
        is_rare: (n,) bool, or integers 0 and 1.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,) numbers.
        LabelError: If ``is_rare`` is not as long, not true or false, or all the same.
        NonFiniteError: If a score is NaN.

    Example:
        >>> fpr_at_95_tpr([0.1, 0.5, 0.4, 0.8], [False, False, True, True])
        FPR95(rare_positive=0.5, common_positive=0.5)
    """
    ranking = Ranking(*checked(scores, is_rare, caller="fpr_at_95_tpr"))
    return FPR95(
        rare_positive=_fpr95(ranking.rare, ranking.common),
        common_positive=_fpr95(ranking.common[::-1], ranking.rare[::-1]),
    )


def area_under_roc(rare: Floats, common: Floats) -> Floats:
    """AUROC of each row of (b, distinct) counts, highest score first."""
    above = rare.cumsum(axis=1) - rare / 2
    pairs: Floats = rare.sum(axis=1) * common.sum(axis=1)
    area: Floats = (common * above).sum(axis=1) / pairs
    return area


def area_under_steps(rare: Floats, common: Floats) -> Floats:
    """Average precision of each row of (b, distinct) counts, highest score first."""
    found = rare.cumsum(axis=1)
    flagged = found + common.cumsum(axis=1)
    # A resample may hold none of the highest scores: no rare sample stands there either.
    precision = found / np.maximum(flagged, 1)
    area: Floats = (rare * precision).sum(axis=1) / rare.sum(axis=1)
    return area


def _fpr95(positive: Floats, negative: Floats) -> float:
    reached = positive.cumsum() / positive.sum() >= 0.95
    return float(negative.cumsum()[reached.argmax()] / negative.sum())
