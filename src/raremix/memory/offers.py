"""What a call of ``add`` or ``admit`` brings: checked, gathered over the ranks, row by row.

It decides nothing.
"""

from dataclasses import dataclass, replace
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
        crops = self.crops
        if len(rows) == len(self.keys):
            return self if crops is None else replace(self, crops=crops.cpu())
        wanted = self.is_wanted[rows]
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
        # One message for what every rank must know; float64 keeps its bits in an int64. Its first
        # row says what else there is to send, as all have to take part in that.
        more = [_sizes(self.crops, self.is_wanted.any()), _sizes(self.features, len(self.keys))]
        columns = [self.keys, self.scores.view(np.int64), self.entry, flags]
        rows = np.concatenate([[[*more, 0, -1]], np.stack(columns, axis=1)])
        packed = distributed.gather_rows(torch.from_numpy(rows)).numpy()
        heads, packed = packed[packed[:, 3] < 0], packed[packed[:, 3] >= 0]
        crops = _agreed("crops", self.crops, heads[:, 0], torch.uint8)
        features = _agreed("features", self.features, heads[:, 1], torch.float32)
        every = Offers(
            packed[:, 0].copy(),
            packed[:, 1].copy().view(np.float64),
            packed[:, 2].copy(),
            packed[:, 3] % 2 == 1,
            packed[:, 3] >= 2,
            None if crops is None else distributed.gather_rows(crops),
            None if features is None else distributed.gather_rows(features),
        )
        if layout == "replicated":
            return every
        own = [owner(key, world) == distributed.rank() for key in every.keys.tolist()]
        return every.of(np.flatnonzero(own))


_ABSENT, _NOTHING = 0, -1
"""Instead of sizes: not given though there are rows for it, and not given since there are none."""

_BITS = 20  # of a size; three of them fit into an int64


def _sizes(rows: Tensor | None, is_due: object) -> int:
    """The sizes of one row as one number."""
    if rows is None:
        return _ABSENT if is_due else _NOTHING
    number = 0
    for size in rows.shape[1:]:
        number = number << _BITS | size
    return number


def _agreed(name: str, own: Tensor | None, said: Array, dtype: torch.dtype) -> Tensor | None:
    """What this rank gives, perhaps no rows, of that which all ranks give or none."""
    numbers = sorted(set(said.tolist()) - {_NOTHING})
    shapes = [[n >> _BITS * i & 2**_BITS - 1 for i in (2, 1, 0) if n >> _BITS * i] for n in numbers]
    if len(shapes) > 1:
        described = " and ".join(f"rows of shape {tuple(s)}" if s else "none" for s in shapes)
        raise OptionError(
            f"RareMemoryBuffer got {name} that differ between the ranks: {described}; pass {name} of "
            'one shape on every rank or on none, or use layout="local".'
        )
    if own is None and shapes and shapes[0]:
        return torch.empty(0, *shapes[0], dtype=dtype, device="cpu")
    return own


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
