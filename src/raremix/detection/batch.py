"""Takes a user's batch in: rows, ids, which rows are usable, and what to say of the others.

It knows shapes and numbers, no scores.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raremix.errors import OptionError, RaremixWarning
from raremix.inputs import (
    ArrayLike,
    as_embeddings,
    as_ids,
    finite_rows,
    loses_digits,
    what_is_not_finite,
)

__all__ = ["as_mask", "enter", "select", "spread"]


def enter(
    embeddings: ArrayLike, ids: ArrayLike | Sequence[int] | None, caller: str
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Float32 rows, int64 ids, and which rows hold neither NaN nor infinity."""
    rows = as_embeddings(embeddings, caller=caller)
    own_ids = None if ids is None else as_ids(ids, caller=caller, length=len(rows))
    valid = finite_rows(rows)
    left_out = len(rows) - int(valid.sum())
    if left_out:
        warnings.warn(
            f"{caller} left out {left_out} of {len(rows)} rows that hold "
            f"{what_is_not_finite(embeddings, rows)}; they get the score NaN.",
            RaremixWarning,
            stacklevel=3,
        )
    if loses_digits(embeddings, rows):
        warnings.warn(
            f"{caller} works in float32, which rounds away more than a hundredth of how these "
            "float64 rows differ; subtract their common offset first.",
            RaremixWarning,
            stacklevel=3,
        )
    return rows, own_ids, valid


def as_mask(value: ArrayLike | Sequence[bool] | None, length: int, caller: str) -> Tensor:
    """(length,) bool on the CPU from a user's is_replay; all false if there is none."""
    if value is None:
        return torch.zeros(length, dtype=torch.bool, device="cpu")
    if isinstance(value, Tensor):
        mask = value.detach().cpu()
    else:  # A copy, since torch takes no read-only array.
        mask = torch.tensor(np.asarray(value).tolist(), device="cpu")
    if mask.dtype != torch.bool or mask.shape != (length,):
        raise OptionError(
            f"{caller} expects is_replay as {length} booleans, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}; pass loader.batch.is_replay."
        )
    return mask


def select(rows: Tensor, ids: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows and ids where the mask is true."""
    if bool(mask.all()):
        return rows, ids
    return rows[mask], None if ids is None else ids[mask.to(ids.device)]


def spread(scores: Tensor, valid: Tensor) -> Tensor:
    """Put the scores of the valid rows in their places, NaN elsewhere."""
    if len(scores) == len(valid):
        return scores
    placed = scores.new_full((len(valid),), math.nan)
    placed[valid] = scores
    return placed
