"""How often each entry was drawn, and for which batch last.

Draws on their way to the loader count at once; those that are never delivered are taken back.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """Counts draws by entry."""

    def __init__(self) -> None:
        self._delivered: dict[int, tuple[int, int]] = {}  # uses and last batch, by entry
        self._all: dict[int, tuple[int, int]] = {}  # with those on their way
        self._on_the_way: deque[tuple[int, list[int]]] = deque()
        # Batch, rows drawn for it, and whether that was ahead of it.
        self._recent: deque[tuple[int, int, bool]] = deque()

    def __len__(self) -> int:
        return len(self._all)

    def uses(self, entry: int) -> int:
        """How often an entry was drawn."""
        return self._all.get(entry, (0, 0))[0]

    def last(self, entry: int) -> int | None:
        """The batch it was drawn for last."""
        found = self._all.get(entry)
        return None if found is None else found[1]

    def note(self, number: int, entries: Sequence[int]) -> None:
        """Count the draw for batch ``number``."""
        self._on_the_way.append((number, list(entries)))
        _count(self._all, number, entries)
        self._recent.append((number, len(entries), True))

    def note_delivered(self, number: int, entries: Sequence[int]) -> None:
        """Count a draw that is used at once, as for batch ``number``."""
        for counts in (self._all, self._delivered):
            _count(counts, number, entries)
        self._recent.append((number, len(entries), False))

    def since(self, step: int) -> int:
        """Rows drawn for batches after ``step``."""
        return sum(count for number, count, _ in self._recent if number > step)

    def forget(self, step: int) -> None:
        """Nobody will ask how many were drawn since a step before this one."""
        while self._recent and self._recent[0][0] <= step:
            self._recent.popleft()

    def deliver(self, number: int) -> None:
        """The draws up to batch ``number`` will not be taken back."""
        while self._on_the_way and self._on_the_way[0][0] <= number:
            when, entries = self._on_the_way.popleft()
            _count(self._delivered, when, entries)

    def rewind(self) -> None:
        """Take back what was not delivered."""
        if self._on_the_way:
            self._recent = deque(self._kept())
            self._on_the_way.clear()
            self._all = dict(self._delivered)

    def keep(self, is_known: Callable[[int], bool]) -> None:
        """Forget entries that nobody can draw any more."""
        self._all = {entry: found for entry, found in self._all.items() if is_known(entry)}
        self._delivered = {e: found for e, found in self._delivered.items() if e in self._all}

    def restart(self) -> None:
        """A new loader counts its batches from 0; how often an entry was used stays."""
        self.rewind()
        self._recent.clear()
        self._all = {entry: (uses, -1) for entry, (uses, _) in self._all.items()}
        self._delivered = dict(self._all)

    def state(self) -> dict[str, Any]:
        """Plain numbers: what was delivered."""
        rows = [[entry, *found] for entry, found in self._delivered.items()]
        return {"rows": rows, "recent": [list(drawn) for drawn in self._kept()]}

    def _kept(self) -> list[tuple[int, int, bool]]:
        """Recent draws that will not be taken back."""
        if not self._on_the_way:
            return list(self._recent)
        first = self._on_the_way[0][0]
        return [drawn for drawn in self._recent if drawn[0] < first or not drawn[2]]

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self._delivered = {entry: (uses, last) for entry, uses, last in state["rows"]}
        self._all = dict(self._delivered)
        self._on_the_way.clear()
        self._recent = deque((number, count, ahead) for number, count, ahead in state["recent"])


def _count(counts: dict[int, tuple[int, int]], number: int, entries: Sequence[int]) -> None:
    for entry in entries:
        counts[entry] = counts.get(entry, (0, 0))[0] + 1, number
