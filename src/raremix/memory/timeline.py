"""What was held some steps ago, so that a draw does not depend on how far ahead it is made.

Changes are written down step by step. ``base`` is what the next batch's draw reads; a draw further
ahead reads a copy that has followed more of the changes. It knows no policy and no pixels.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from raremix.memory.columns import Columns

__all__ = ["BEFORE", "Change", "Timeline"]

Change = tuple[str, Any, Any, Any]
"""("in", row, -, -), ("out", key, -, -), ("set", column, keys, values) or ("replayed", count, -, -)."""

BEFORE = -1
"""The step before the first, to which belongs what is held when a loader begins."""


class Timeline:
    """The columns that a draw needs, as they were ``lag`` steps before the batch drawn.

    Args:
        dtypes: Those columns.
        lag: Steps that a draw looks back; 0 while nobody draws ahead, and then nothing is kept.
    """

    def __init__(self, dtypes: Mapping[str, str], lag: int = 0) -> None:
        self.dtypes = dict(dtypes)
        self.lag = lag
        self._base = Columns(dtypes)
        self._base_step = BEFORE
        self._ahead: Columns | None = None
        self._ahead_step = BEFORE
        self._log: deque[tuple[int, Change]] = deque()  # of steps after the base's, in order

    def begin(self, held: Columns, lag: int) -> None:
        """Start before step 0 with what is held now."""
        self.lag = lag
        self._base = Columns(self.dtypes)
        self._base.fill({name: held[name] for name in self.dtypes}, held.came, held.replayed)
        if "born" in self.dtypes:
            self._base["born"][:] = BEFORE
        self._base_step = BEFORE
        self._ahead = None
        self._log.clear()

    @property
    def first(self) -> int:
        """The earliest step that a draw may ask for."""
        return self._base_step

    @property
    def last_change(self) -> int:
        """The last step in which anything changed, as far as that is remembered."""
        return self._log[-1][0] if self._log else self._base_step

    def record(self, step: int, change: Change) -> None:
        """Write down what happened in ``step``; steps never go back."""
        if not self.lag:
            return
        if step <= self._base_step:
            _apply(self._base, change)
            self._ahead = None
        else:
            self._log.append((step, change))

    def at(self, step: int) -> Columns:
        """What was held after the feedback of ``step``, not before the base; only to be read."""
        if step == self._base_step:
            return self._base
        if self._ahead is None or self._ahead_step > step:
            self._ahead, self._ahead_step = self._base.copy(), self._base_step
        if self._ahead_step < step:
            for when, change in self._log:
                if self._ahead_step < when <= step:
                    _apply(self._ahead, change)
            self._ahead_step = step
        return self._ahead

    def forget(self, step: int) -> None:
        """Bring the base to ``step``: no draw will ask for an earlier one."""
        if step <= self._base_step:
            return
        while self._log and self._log[0][0] <= step:
            _apply(self._base, self._log.popleft()[1])
        self._base_step = step
        if self._ahead_step <= step:
            self._ahead = None

    def rewind(self) -> None:
        """Forget what was read ahead."""
        self._ahead = None

    def state(self) -> dict[str, Any]:
        """Plain numbers and arrays; arrays are copies."""
        return {
            "lag": self.lag,
            "step": self._base_step,
            "base": self._base.taken(),
            "came": self._base.came,
            "replayed": self._base.replayed,
            "log": [(step, _plain(change)) for step, change in self._log],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.lag, self._base_step = state["lag"], state["step"]
        self._base = Columns(self.dtypes)
        self._base.fill(state["base"], state["came"], state["replayed"])
        self._ahead = None
        self._log = deque((step, _plain(change)) for step, change in state["log"])


def _apply(columns: Columns, change: Change) -> None:
    kind, first, second, third = change
    if kind == "in":
        columns.append(first)
    elif kind == "out":
        columns.remove(columns.place[first])
    elif kind == "replayed":
        columns.replayed += first
    else:
        place = columns.place
        places = [place[key] for key in second]
        columns[first][places] = third


def _plain(change: Sequence[Any]) -> Change:
    """A copy that shares nothing."""
    kind, first, second, third = change
    first = dict(first) if kind == "in" else first
    if kind == "set":
        return kind, first, list(second), list(third)
    return kind, first, None, None
