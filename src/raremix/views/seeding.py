"""Seeds of the views of samples: from what a sample is, not from when or where it is drawn."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.inputs import ArrayLike, as_whole_numbers
from raremix.options import check_count
from raremix.seeds import derive_seeds

__all__ = ["sample_seeds"]


def sample_seeds(
    seed: int, draw: int | ArrayLike | Sequence[int], ids: ArrayLike | Sequence[int]
) -> Tensor:
    """Make the seeds of some samples for ``MultiCropTransform.batch``.

    They are those that ``ImageFiles`` and ``ImageArrays`` with ``seed=`` give their transforms, so that
    views are the same whichever way they are made.

    Args:
        seed: Of the run, at least 0.
        draw: Number of the draw: the epoch, or ``id.draw`` of each row of a mixed batch; of all, or
            whole numbers of shape (n,). Another one gives other views.
        ids: Whole numbers of shape (n,), each sample's place in the dataset.

    Returns:
        Int64 of shape (n,), from 0.

    Raises:
        OptionError: If the seed or the draw is out of its range.
        EmbeddingShapeError: If ids, or draws, are no whole numbers of shape (n,).

    Example:
        >>> sample_seeds(0, 3, [7, 8]).tolist() == sample_seeds(0, 3, torch.tensor([7, 8])).tolist()
        True
    """
    caller, hint = "sample_seeds", "pass places in the dataset"
    known = as_whole_numbers(ids, caller=caller, what="ids", hint=hint).numpy()
    if isinstance(draw, (int, Integral)):
        draws: Any = check_count(caller, "draw", int(draw), least=0)
    else:
        hint = "pass one for all, or one for each id"
        draws = as_whole_numbers(draw, caller=caller, what="draw", hint=hint).numpy()
        if draws.shape != known.shape or (draws < 0).any():
            raise OptionError(
                f"{caller} expects a draw from 0 for each of {len(known)} ids, got {len(draws)}; {hint}."
            )
    return torch.from_numpy(derive_seeds(check_count(caller, "seed", seed, least=0), draws, known))
