"""Where the pixels of entries lie: one block of memory, a slot an entry.

It knows no entries. Pixels are copied in and out; no tensor of a batch is kept.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raremix.memory.columns import Array

__all__ = ["PixelSlots"]


class PixelSlots:
    """Slots for crops of one shape. Memory grows with what is held, and no slot is ever moved twice.

    Args:
        most: The most slots there will be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._block: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._crop_bytes = 0
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one crop; None while there is none."""
        return self._shape if len(self) else None

    @property
    def nbytes(self) -> int:
        """Bytes of the crops held."""
        return len(self) * self._crop_bytes

    def claim(self, shape: tuple[int, ...]) -> int:
        """Take a free slot for a crop of this shape, which is to be written before it is read."""
        if self._block is None or not len(self):
            # The first crop says the shape; also when others of another shape have all left.
            self._free, self._used = [], 0
            if self._block is None or self._shape != shape:
                self._shape = shape
                self._block = torch.empty(
                    (min(self._most, 16), *shape), dtype=torch.uint8, device="cpu"
                )
                self._crop_bytes = self._block[0].nbytes
        if self._free:
            return self._free.pop()
        slot, self._used = self._used, self._used + 1
        if slot == len(self._block):
            room = min(2 * slot, max(self._most, slot + 1))
            larger = torch.empty((room, *shape), dtype=torch.uint8, device="cpu")
            larger[:slot] = self._block
            self._block = larger
        return slot

    def write(self, rows: Mapping[int, int], crops: Tensor) -> None:
        """Copy crops into slots: by slot, which row of ``crops``."""
        if not rows:
            return
        assert self._block is not None
        # All at once and by numpy, since torch copies scattered rows of bytes one by one.
        block, given = self._block.numpy(), crops.cpu().numpy()
        chosen = list(rows.values())
        if chosen != list(range(len(given))):
            given = given[chosen]
        slots = np.array(list(rows))
        block.reshape(len(block), -1)[slots] = given.reshape(len(given), -1)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def take(self, slots: Array) -> Tensor:
        """Copies of the crops in these slots."""
        assert self._block is not None
        rows = self._block.numpy().reshape(len(self._block), -1).take(slots, axis=0)
        return torch.from_numpy(rows).view(len(slots), *self._shape)
