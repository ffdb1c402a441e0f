"""What a buffer holds of a sample, and how several are handed out together.

It knows no capacity and no order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NEVER", "BufferEntries", "Drawn", "Entry", "as_entries"]

NEVER = 2**62
"""The step an entry leaves in while it has not left."""


@dataclass(frozen=True)
class BufferEntries:
    """Some entries of a buffer, row by row.

    Attributes:
        keys: (n,) int64, ids of the samples.
        scores: (n,) float32, the score each sample last got.
        crops: (n, channels, height, width) uint8, or None if the buffer holds no pixels.
    """

    keys: Tensor
    scores: Tensor
    crops: Tensor | None


class Drawn(NamedTuple):
    """What a draw gave; see ``raremix.protocols.DrawnRows``."""

    keys: list[int]
    entries: list[int]
    probabilities: list[float]
    ages: list[int]


@dataclass(slots=True)
class Entry:
    """One sample in a buffer, or one that was there some steps ago."""

    key: int
    score: float
    born: int  # the step it was admitted in
    died: int = NEVER  # the step it left in
    uses: int = 0
    crop: Tensor | None = None


def as_entries(entries: Iterable[Entry]) -> BufferEntries:
    """Put entries into rows; crops only if every one has one."""
    chosen = list(entries)
    crops = [entry.crop for entry in chosen if entry.crop is not None]
    return BufferEntries(
        keys=torch.tensor([entry.key for entry in chosen], dtype=torch.int64),
        scores=torch.tensor([entry.score for entry in chosen], dtype=torch.float32),
        crops=torch.stack(crops) if crops and len(crops) == len(chosen) else None,
    )
