"""Seeds of the views of samples: from what a sample is, not from when or where it is drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raremix.inputs import ArrayLike, as_whole_numbers
from raremix.options import check_count
from raremix.seeds import derive_seeds

__all__ = ["sample_seeds"]


def sample_seeds(seed: int, draw: int, ids: ArrayLike | Sequence[int]) -> Tensor:
    """Make the seeds of some samples for ``MultiCropTransform.batch``.

    They are those that ``ImageFiles`` and ``ImageArrays`` with ``seed=`` give their transforms, so that
    views are the same whichever way they are made.

    Args:
        seed: Of the run.
        draw: Number of the draw: the epoch, or ``id.draw`` of a mixed batch. Another one gives other
            views.
        ids: Whole numbers of shape (n,), each sample's place in the dataset.

    Returns:
        Int64 of shape (n,), from 0.

    Example:
        >>> sample_seeds(0, 3, [7, 8]).tolist() == sample_seeds(0, 3, torch.tensor([7, 8])).tolist()
        True
    """
    check_count("sample_seeds", "draw", draw, least=0)
    known = as_whole_numbers(
        ids, caller="sample_seeds", what="ids", hint="pass places in the dataset"
    )
    return torch.from_numpy(derive_seeds(seed, draw, last=known.numpy()))
