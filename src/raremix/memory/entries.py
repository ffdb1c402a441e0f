"""How entries of a buffer are handed in and out, several at a time.

It knows no capacity and no order.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["BufferEntries", "Drawn"]


@dataclass(frozen=True)
class BufferEntries:
    """Some entries of a buffer, row by row.

    The first four are what ``admit`` takes; the others are known of entries that come out.

    Attributes:
        keys: (n,) int64, ids of the samples.
        scores: (n,) float32, the score each sample last got.
        crops: (n, channels, height, width) uint8, or None if the buffer holds no pixels.
        features: (n, dim) float32 unit rows, or None if the buffer holds none.
        entry: (n,) int64, the number of each admission. An id that left and came again has another.
        probability: (n,) float32, the chance each had of being in this draw.
        age: (n,) int64, steps since admission.
        uses: (n,) int64, replays that came back with feedback.
    """

    keys: Tensor
    scores: Tensor
    crops: Tensor | None = None
    features: Tensor | None = None
    entry: Tensor | None = None
    probability: Tensor | None = None
    age: Tensor | None = None
    uses: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)


class Drawn(NamedTuple):
    """What a draw gave; see ``raremix.protocols.DrawnRows``."""

    keys: list[int]
    entries: list[int]
    probabilities: list[float]
    ages: list[int]
