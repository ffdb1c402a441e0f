"""The embeddings that count as seen.

A bank holds rows, knows how long ago each was refreshed, and tells a reader that keeps a prepared
copy which rows have changed. It measures no distances.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.detection.changes import ChangeLog
from raremix.errors import OptionError, StateMismatchError
from raremix.options import check_count
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["ReferenceBank"]


class ReferenceBank:
    """Up to ``capacity`` embeddings, keyed by id, or a queue where no ids are given.

    With ids, a sample that is seen again replaces its rows, and the sample not seen for longest
    leaves first. Several rows of one id in one call (sibling crops) are all kept. Without ids the
    oldest rows leave first, and a sample seen twice counts twice.

    Args:
        capacity: The most rows kept by ``add``; ``fill`` keeps every row it is given.
    """

    def __init__(self, capacity: int) -> None:
        capacity = check_count("ReferenceBank", "capacity", capacity, least=1)
        self.capacity = capacity
        self._rows: Tensor | None = None  # allocated rows; the first self._count are in use
        self._ids: Tensor | None = None
        self._count = 0
        self._next = 0  # the queue's oldest row once it is full
        self._rows_of: OrderedDict[int, list[int]] | None = (
            None  # oldest id first; made when needed
        )
        self._limit = capacity
        self._clock = 0  # rows added so far
        self._stamps = _no_stamps()  # what the clock said when a row was refreshed, beside _rows
        self._changes = ChangeLog()

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        """(n, dim) float32 rows in no particular order. Do not change them."""
        assert self._rows is not None, "an empty bank has no width yet"
        return self._rows[: self._count]

    @property
    def ids(self) -> Tensor | None:
        """(n,) int64 on the CPU, or None where no ids were given."""
        return None if self._ids is None else self._ids[: self._count]

    def check_ids(self, ids: Tensor | None, *, caller: str) -> None:
        """Raise ``OptionError`` if ids are given and the rows were added without any."""
        if ids is not None and self._ids is None:
            raise OptionError(
                f"{caller} got ids, but the reference was given without ids, so a row could not be "
                "told from itself; pass ids always or never."
            )

    def check_consistent(self, ids: Tensor | None, *, caller: str) -> None:
        """Raise ``OptionError`` if some rows would have ids and others none."""
        if self._count and (ids is None) != (self._ids is None):
            held, came = ("with", "without") if ids is None else ("without", "with")
            raise OptionError(
                f"{caller} got rows {came} ids, but the {self._count} rows of the reference were "
                f"added {held} ids; pass ids always or never."
            )

    @property
    def dim(self) -> int | None:
        """Width of the rows; None while the bank has never held any."""
        return None if self._rows is None else self._rows.shape[1]

    def find(self, ids: Tensor) -> Tensor:
        """(n,) int64 on the CPU: a row of each id, -1 where the bank holds none."""
        if self._ids is None:
            return torch.full((len(ids),), -1, dtype=torch.int64, device="cpu")
        owners = self._owners(self._ids)
        places = [owners[own][0] if own in owners else -1 for own in ids.tolist()]
        return torch.tensor(places, dtype=torch.int64, device="cpu")

    @property
    def ages(self) -> Tensor:
        """(n,) int64 on the CPU: how many rows have been added since each row was refreshed."""
        return self._clock - self._stamps[: self._count]

    @property
    def version(self) -> int:
        """A number that grows with every change of the rows."""
        return self._changes.version

    def changes_since(self, version: int) -> Tensor | None:
        """Say which rows have changed, for a reader that keeps a copy.

        The bank may also have grown or shrunk: its length tells. A row beyond the length that the
        reader knew is always among the changes.

        Args:
            version: What ``version`` was when the reader last looked.

        Returns:
            (m,) int64 on the CPU, ascending and distinct; or None if all rows must be read anew.
        """
        changed = self._changes.since(version)
        return None if changed is None else changed[changed < self._count]

    # Made in inference mode, the rows could not be replaced outside it.
    @torch.inference_mode(False)
    def fill(self, embeddings: Tensor, ids: Tensor | None) -> None:
        """Forget everything and hold exactly these rows, however many."""
        self._rows = embeddings.detach().clone()
        self._ids = None if ids is None else ids.detach().cpu().clone()
        self._count = len(embeddings)
        self._limit = max(self.capacity, self._count)
        self._next = 0
        self._rows_of = None
        self._clock = 0
        self._stamps = torch.zeros(self._count, dtype=torch.int64, device="cpu")
        self._changes.note(None, size=self._limit)

    @torch.inference_mode(False)
    def mirror(self, other: "ReferenceBank", rows: Tensor) -> None:
        """Hold (n, any dim) rows in the places in which ``other`` holds its n rows.

        What is added to both from then on, under the same ids, goes to the same places.
        """
        self.fill(rows, other.ids)
        self.capacity, self._limit = other.capacity, other._limit
        self._next, self._clock = other._next, other._clock
        self._stamps = other._stamps[: len(other)].clone()
        if other._rows_of is not None:
            self._rows_of = OrderedDict((own, [*held]) for own, held in other._rows_of.items())

    def clear(self) -> None:
        """Forget every row, but not how many may be held."""
        self._rows, self._ids, self._rows_of = None, None, None
        self._count = self._next = 0
        self._stamps = _no_stamps()
        self._changes.note(None, size=self._limit)

    @torch.inference_mode(False)
    def add(self, embeddings: Tensor, ids: Tensor | None) -> None:
        """Add (batch, dim) rows, letting the oldest leave when the bank is full."""
        self.check_consistent(ids, caller="ReferenceBank.add")
        embeddings = embeddings.detach()
        if self._rows is not None and self._rows.device != embeddings.device:
            # A bank loaded on the CPU moves to the accelerator once, not at every score.
            self._rows = self._rows.to(embeddings.device)
        self._clock += len(embeddings)
        if ids is None:
            changed = self._enqueue(embeddings[-self._limit :])
        else:
            changed = self._refresh(embeddings[-self._limit :], ids[-self._limit :].tolist())
        self._changes.note(torch.tensor(changed, dtype=torch.int64, device="cpu"), size=self._limit)

    def _grow(self, wanted: int, like: Tensor) -> Tensor:
        """Make room for ``wanted`` rows, doubling so that filling a bank costs linear time."""
        held = 0 if self._rows is None else len(self._rows)
        if self._rows is None or held < wanted:
            room = min(max(wanted, 2 * held, 1024), max(self._limit, wanted))
            rows = like.new_empty((room, like.shape[1]), dtype=torch.float32)
            if self._rows is not None:
                rows[: self._count] = self._rows[: self._count]
            self._rows = rows
        if self._ids is not None and len(self._ids) < len(self._rows):
            longer = torch.full((len(self._rows),), -1, dtype=torch.int64, device="cpu")
            longer[: len(self._ids)] = self._ids
            self._ids = longer
        if len(self._stamps) < len(self._rows):
            stamps = torch.zeros(len(self._rows), dtype=torch.int64, device="cpu")
            stamps[: self._count] = self._stamps[: self._count]
            self._stamps = stamps
        return self._rows

    def _enqueue(self, embeddings: Tensor) -> list[int]:
        fresh = min(len(embeddings), self._limit - self._count)
        rows = self._grow(self._count + fresh, embeddings)
        rest = len(embeddings) - fresh
        places = [
            *range(self._count, self._count + fresh),
            *((self._next + row) % self._limit for row in range(rest)),
        ]
        self._put(rows, places, embeddings)
        self._count += fresh
        self._next = (self._next + rest) % self._limit
        return places

    def _put(self, rows: Tensor, places: list[int], embeddings: Tensor) -> Tensor:
        where = torch.tensor(places, dtype=torch.int64, device="cpu")
        rows[where.to(rows.device)] = embeddings.to(rows.dtype)
        self._stamps[where] = self._clock
        return where

    def _refresh(self, embeddings: Tensor, ids: list[int]) -> list[int]:
        if self._ids is None:
            self._ids = torch.empty(0, dtype=torch.int64, device="cpu")
        owners = self._owners(self._ids)

        free: list[int] = []
        for known in dict.fromkeys(ids):
            free.extend(owners.pop(known, ()))
        while self._count - len(free) + len(ids) > self._limit:
            free.extend(owners.popitem(last=False)[1])

        rows = self._grow(self._count + max(0, len(ids) - len(free)), embeddings)
        new = range(self._count, self._count + max(0, len(ids) - len(free)))
        places = [*free[: len(ids)], *new]
        where = self._put(rows, places, embeddings)
        self._ids[where] = torch.tensor(ids, device="cpu")
        for known, row in zip(ids, places, strict=True):
            owners.setdefault(known, []).append(row)
        self._count += len(new)
        holes = sorted(free[len(ids) :], reverse=True)
        self._close_holes(holes, rows, owners)
        return places + holes

    def _owners(self, ids: Tensor) -> OrderedDict[int, list[int]]:
        """The rows of every id; made once, and kept up from then on."""
        if self._rows_of is None:
            self._rows_of = OrderedDict()
            for row, known in enumerate(ids[: self._count].tolist()):
                self._rows_of.setdefault(known, []).append(row)
        return self._rows_of

    def _close_holes(
        self, holes: list[int], rows: Tensor, owners: OrderedDict[int, list[int]]
    ) -> None:
        """Move the last rows into freed places, so that the rows in use stay contiguous."""
        assert self._ids is not None
        for hole in holes:  # from the back, so that the last row is never itself a hole
            last = self._count - 1
            if hole != last:
                moved = int(self._ids[last])
                rows[hole] = rows[last]
                self._ids[hole] = moved
                self._stamps[hole] = self._stamps[last]
                owners[moved] = [hole if row == last else row for row in owners[moved]]
            self._count = last

    def state_dict(self) -> State:
        """Rows, ids and ages, oldest first."""
        order = self.places_by_age()
        rows = None if self._rows is None else self.rows[order.to(self._rows.device)]
        ids = None if self._ids is None else self._ids[order]
        content: State = {
            "capacity": self.capacity,
            "limit": self._limit,
            "rows": rows,
            "ids": ids,
            "ages": self.ages[order],
        }
        return sealed_state("ReferenceBank", 1, content)

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved bank; its rows must be as wide as those held, if there are any."""
        keys = ("capacity", "limit", "rows", "ids", "ages")
        content = open_state(state, kind="ReferenceBank", version=1, keys=keys)
        check_settings("ReferenceBank", content, {"capacity": self.capacity})
        rows, ids = content["rows"], content["ids"]
        if self._rows is not None and rows is not None and rows.shape[1] != self._rows.shape[1]:
            raise StateMismatchError(
                f"ReferenceBank.load_state_dict got rows {rows.shape[1]} wide, and holds rows "
                f"{self._rows.shape[1]} wide; load it into a new one, or check that both come from "
                "the same layer."
            )
        self._rows = None if rows is None else rows.clone()
        self._ids = None if ids is None else ids.cpu().clone()
        self._count = 0 if rows is None else len(rows)
        self._limit = content["limit"]
        self._next = 0
        self._rows_of = None
        self._clock = 0
        self._stamps = -content["ages"].cpu()
        self._changes.note(None, size=self._limit)

    def places_by_age(self) -> Tensor:
        """(n,) int64 on the CPU: the rows, longest not refreshed first, as a saved bank has them."""
        if self._rows_of is not None:
            rows = [row for own in self._rows_of.values() for row in own]
            return torch.tensor(rows, dtype=torch.int64, device="cpu")
        order = torch.arange(self._count, device="cpu")
        if self._ids is None and self._count:
            return (self._next + order) % self._count
        return order


def _no_stamps() -> Tensor:
    return torch.empty(0, dtype=torch.int64, device="cpu")
