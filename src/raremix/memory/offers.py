"""What a call of ``add`` or ``admit`` brings: checked, gathered over the ranks, row by row.

It decides nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raremix import distributed
from raremix.errors import EmbeddingShapeError, OptionError
from raremix.inputs import ArrayLike, as_embeddings, finite_rows
from raremix.memory.columns import Array
from raremix.seeds import derive_seed

__all__ = ["Layout", "Offers", "owner"]

Layout = Literal["replicated", "sharded", "local"]


def owner(key: int, world: int) -> int:
    """The rank that holds a key when buffers are sharded."""
    return derive_seed(key) % world


@dataclass(frozen=True)
class Offers:
    """Rows that a buffer may admit, and rows that tell it of what it holds.

    Attributes:
        keys: (n,) int64.
        scores: (n,) float64.
        entry: (n,) int64, which entry a replayed row was drawn from; -1 if that is not known.
        is_wanted: (n,) bool, rare and fresh.
        is_replay: (n,) bool.
        crops: (wanted, channels, height, width) uint8, one for each row wanted, or None.
        features: (n, dim) float32 unit rows, or None.
    """

    keys: Array
    scores: Array
    entry: Array
    is_wanted: Array
    is_replay: Array
    crops: Tensor | None
    features: Tensor | None

    def of(self, rows: Array) -> "Offers":
        """Only these rows, by number, in ascending order; their crops on the CPU."""
        wanted = self.is_wanted[rows]
        crops = self.crops
        if crops is not None:
            if len(crops) > np.count_nonzero(wanted):
                at = torch.from_numpy((np.cumsum(self.is_wanted) - 1)[rows[wanted]])
                crops = crops[at.to(crops.device)]
            crops = crops.cpu()
        return Offers(
            self.keys[rows],
            self.scores[rows],
            self.entry[rows],
            wanted,
            self.is_replay[rows],
            crops,
            None if self.features is None else self.features[torch.from_numpy(rows)],
        )

    def shared(self, layout: Layout) -> "Offers":
        """The rows of all ranks that belong here, in the order of the ranks; a collective call."""
        world = distributed.world_size()
        if layout == "local" or world == 1:
            return self
        flags = self.is_wanted + 2 * self.is_replay.astype(np.int64)
        # One message for what every rank must know; float64 keeps its bits in an int64.
        columns = [self.keys, self.scores.view(np.int64), self.entry, flags]
        packed = distributed.gather_rows(torch.from_numpy(np.stack(columns, axis=1))).numpy()
        every = Offers(
            packed[:, 0].copy(),
            packed[:, 1].copy().view(np.float64),
            packed[:, 2].copy(),
            packed[:, 3] % 2 == 1,
            packed[:, 3] >= 2,
            None if self.crops is None else distributed.gather_rows(self.crops),
            None if self.features is None else distributed.gather_rows(self.features),
        )
        if layout == "replicated":
            return every
        own = [owner(key, world) == distributed.rank() for key in every.keys.tolist()]
        return every.of(np.flatnonzero(own))


def checked_crops(crops: Tensor | None, length: int, *, caller: str) -> None:
    """Refuse crops that are no rows of uint8 pixels."""
    if crops is None:
        return
    if crops.dtype != torch.uint8 or crops.ndim != 4 or len(crops) != length:
        raise OptionError(
            f"{caller} expects crops as uint8 of shape ({length}, channels, height, width), got "
            f"{crops.dtype} of shape {tuple(crops.shape)}; keep the pixels from before "
            "normalisation."
        )


def unit_features(
    features: ArrayLike | None, length: int, dim: int | None, *, caller: str
) -> Tensor | None:
    """Features as float32 unit rows on the CPU; a row that is not finite becomes zero."""
    if features is None:
        return None
    if length == 0 and features.ndim == 2 and len(features) == 0:
        # Not None: under several ranks all have to take part in what some have rows for.
        return torch.zeros(0, features.shape[1], device="cpu")
    rows = as_embeddings(features, caller=caller, dim=dim).cpu()
    if len(rows) != length:
        raise EmbeddingShapeError(
            f"{caller} got {len(rows)} features for {length} ids; pass the features of this batch."
        )
    rows = torch.where(finite_rows(rows)[:, None], rows, 0.0)
    largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    scaled = rows / largest  # so that squares neither overflow nor vanish
    units: Tensor = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return units
