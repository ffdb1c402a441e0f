"""Where the pixels of entries lie: one block of memory, a slot an entry.

It knows no entries. Pixels are copied in and out; no tensor of a batch is kept.
"""

import torch
from torch import Tensor

__all__ = ["PixelSlots"]


class PixelSlots:
    """Slots for crops of one shape. Memory grows with what is held, and no slot is ever moved twice.

    Args:
        most: The most slots there will be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._block: Tensor | None = None
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one crop; None while there is none."""
        return None if self._block is None or not len(self) else tuple(self._block.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the crops held."""
        return 0 if self._block is None or not len(self) else len(self) * self._block[0].nbytes

    def put(self, crop: Tensor) -> int:
        """Copy a crop into a free slot and return the slot."""
        if self._block is None or not len(self):
            # The first crop says the shape; also when others of another shape have all left.
            self._free, self._used = [], 0
            if self._block is None or self._block.shape[1:] != crop.shape:
                self._block = torch.empty(
                    (min(self._most, 16), *crop.shape), dtype=crop.dtype, device="cpu"
                )
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._used = self._used, self._used + 1
            if slot == len(self._block):
                room = min(2 * slot, max(self._most, slot + 1))
                larger = torch.empty((room, *crop.shape), dtype=self._block.dtype, device="cpu")
                larger[:slot] = self._block
                self._block = larger
        self._block[slot] = crop
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def take(self, slots: Tensor) -> Tensor:
        """Copies of the crops in these slots."""
        assert self._block is not None
        return self._block.index_select(0, slots)
