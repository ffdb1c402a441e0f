"""Which rows of a table have changed since a reader last looked.

It knows row numbers and versions, and never sees a row.
"""

from collections import deque

import torch
from torch import Tensor

__all__ = ["ChangeLog"]

# Changed rows remembered, as a share of the table: beyond that, reading all anew is as cheap.
_SHARE = 0.25
_AT_LEAST = 1024


class ChangeLog:
    """A bounded log of changed rows, under version numbers that only grow."""

    def __init__(self) -> None:
        self.version = 0
        self._entries: deque[tuple[int, Tensor]] = deque()
        self._rows = 0  # in all entries
        self._complete_from = 0  # every later change is in the log

    def note(self, rows: Tensor | None, *, size: int) -> None:
        """Begin a new version in which these rows of a table of ``size``, or all, have changed."""
        self.version += 1
        if rows is None:
            self._entries.clear()
            self._rows, self._complete_from = 0, self.version
            return
        self._entries.append((self.version, rows))
        self._rows += len(rows)
        while self._rows > max(_AT_LEAST, _SHARE * size):
            self._complete_from, forgotten = self._entries.popleft()
            self._rows -= len(forgotten)

    def since(self, version: int) -> Tensor | None:
        """Ascending distinct int64 rows changed after ``version``; None where that may be all."""
        if not self._complete_from <= version <= self.version:
            return None
        rows = [rows for made, rows in self._entries if made > version]
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        changed: Tensor = torch.unique(torch.cat([none, *rows]))
        return changed
