"""Checks scores and true flags once, where they enter, and ranks them.

It measures nothing.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raremix.errors import EmbeddingShapeError, LabelError, NonFiniteError

__all__ = ["Bools", "Floats", "Ranking", "as_numpy", "checked", "checked_scores"]

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]


def as_numpy(value: Any) -> npt.NDArray[Any]:
    """A tensor of any device, an array or a list, as an array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = (value.double() if value.is_floating_point() else value).numpy()
    array: npt.NDArray[Any] = np.asarray(value)
    return array


def checked_scores(scores: Any, *, caller: str, skip_nan: bool = False) -> Floats:
    """(n,) float64 scores; raises on another shape, and on NaN unless it is to be skipped."""
    values = as_numpy(scores)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise EmbeddingShapeError(
            f"{caller} expects scores as numbers of shape (n,), got {values.dtype} of shape "
            f"{values.shape}."
        )
    missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    if missing and not skip_nan:
        raise NonFiniteError(
            f"{caller} got {missing} of {len(values)} scores that are NaN; leave these samples out "
            "of scores and labels, or call evaluate(..., skip_nan=True), which counts them."
        )
    return values.astype(np.float64)


def checked(
    scores: Any, is_rare: Any, *, caller: str, skip_nan: bool = False
) -> tuple[Floats, Bools]:
    """Scores that are numbers with their flags, of which some are rare and some common."""
    values = checked_scores(scores, caller=caller, skip_nan=skip_nan)
    flags = as_numpy(is_rare)
    if flags.shape != values.shape:
        raise LabelError(
            f"{caller} got {len(values)} scores and is_rare of shape {flags.shape}; pass one flag "
            "per score, in the same order."
        )
    if flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
        raise LabelError(
            f"{caller} expects is_rare as true and false (or 1 and 0), got {flags.dtype} with "
            f"values such as {np.unique(flags)[:3].tolist()}; compare class labels with the rare "
            "classes first."
        )
    rare = flags.astype(np.bool_)
    kept = ~np.isnan(values)
    values, rare = values[kept], rare[kept]
    if len(values) == 0:
        raise NonFiniteError(
            f"{caller} got {len(flags)} samples and not one score, only NaN; there is nothing to "
            "judge, so look at what made the scores."
        )
    if not rare.any() or rare.all():
        raise LabelError(
            f"{caller} needs rare and common samples, but of {len(values)} scored samples none is "
            f"{'common' if rare.any() else 'rare'}; check the labels."
        )
    return values, rare


class Ranking:
    """How many rare and common samples share each distinct score, highest score first.

    Attributes:
        ranks: (n,) integers, 0 for the samples of the highest score.
        distinct: How many distinct scores there are.
        rare: (distinct,) rare samples of each rank.
        common: (distinct,) common samples of each rank.
    """

    def __init__(self, values: Floats, rare: Bools) -> None:
        # Zero and minus zero are equal to unique, as they should be.
        _, inverse = np.unique(-values, return_inverse=True)
        self.ranks = inverse.reshape(-1)
        self.distinct = int(self.ranks.max()) + 1
        self.rare: Floats = np.bincount(self.ranks[rare], minlength=self.distinct).astype(float)
        self.common: Floats = np.bincount(self.ranks[~rare], minlength=self.distinct).astype(float)
