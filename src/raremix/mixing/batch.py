"""What is known of the rows of a batch, and the ids that travel to the workers.

It draws nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FILLER", "FRESH", "Batch", "DrawnId", "fresh_batch"]

FRESH, FILLER = -1, -2
"""What stands for the entry of a row that was not replayed."""


@dataclass(frozen=True)
class Batch:
    """The rows of one delivered batch.

    Attributes:
        step: How many batches were delivered before it, over all epochs.
        ids: (batch,) int64, each row's place in the dataset.
        is_replay: (batch,) bool, true where the row was mixed in from the buffer.
        entry: (batch,) int64, the buffer's number of the entry a replayed row was drawn from; -1 for
            the others, or -2 for a filler: a fresh row besides the base order, where "stretch" or
            "extend" found too little to replay.
        probability: (batch,) float32, the chance that this draw had of taking the entry, of a
            replayed row; 1 for the others.
        age: (batch,) int64, steps the entry had been held, as far as the draw could see; 0 for the
            others.
    """

    step: int
    ids: Tensor
    is_replay: Tensor
    entry: Tensor
    probability: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def fresh_batch(step: int, ids: "np.ndarray[Any, np.dtype[np.int64]]") -> Batch:
    """A batch without replays yet, on the CPU; it shares the memory of ``ids``."""
    width = len(ids)
    return Batch(
        step,
        torch.from_numpy(ids),
        torch.from_numpy(np.zeros(width, bool)),
        torch.from_numpy(np.full(width, FRESH)),
        torch.from_numpy(np.ones(width, np.float32)),
        torch.from_numpy(np.zeros(width, np.int64)),
    )


class DrawnId(int):
    """An id that remembers the draw it came from, on its way to a dataset in a worker.

    A dataset may seed its augmentation by ``(seed, id.draw, id)``: two draws of one sample then
    differ, and yet every run is the same. Everywhere else it is a plain integer.

    Attributes:
        draw: The epoch, for a fresh row of a dataset that gives each id once in an epoch: its views are
            then the same whatever the number of ranks and the size of batches. Otherwise a number from
            2**32 that only the rows of this batch of this rank have.
    """

    draw: int

    def __new__(cls, value: int, draw: int) -> "DrawnId":
        """Make an id that carries its draw."""
        self = super().__new__(cls, value)
        self.draw = draw
        return self

    def __reduce__(self) -> tuple[type["DrawnId"], tuple[int, int]]:
        return DrawnId, (int(self), self.draw)
