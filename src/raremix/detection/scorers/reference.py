"""A bank that is searched: what all scores that look at neighbours share.

It finds neighbours and leaves out a row's own. What their distances mean is the scorer's to say.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank
from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors import EngineName, Metric, NeighborIndex, Neighbors
from raremix.neighbors.index import check_id_window, check_window_has_ids
from raremix.options import check_choice, check_count, is_number
from raremix.protocols import State

__all__ = [
    "NeighborReference",
    "check_k",
    "count_of",
    "saved_window",
    "shown_window",
    "with_window",
]


def check_k(owner: str, name: str, k: int | float) -> int | float:
    """Return k as a plain number: a count of at least 1, or a share in (0, 1)."""
    if not is_number(k) or not (k >= 1 if isinstance(k, numbers.Integral) else 0.0 < k < 1.0):
        raise OptionError(
            f"{owner} expects {name} as a count of at least 1 or a share in (0, 1), got {k!r}."
        )
    # A plain number, since a saved state may hold no numpy scalars.
    return int(k) if isinstance(k, numbers.Integral) else float(k)


def count_of(k: int | float, rows: int) -> int:
    """How many neighbours k means in a reference of that many rows."""
    if isinstance(k, int):
        return k
    # 0.07 * 100 is a little above 7 in floating point.
    return max(1, math.ceil(k * rows - 1e-9))


def saved_window(id_window: int) -> State:
    """What a state says of an id_window: nothing of 0, as before there was one."""
    return {"id_window": id_window} if id_window else {}


def with_window(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved state that says its id_window, also where that is 0."""
    # What is no state at all is for open_state to refuse.
    return {"id_window": 0, **state} if isinstance(state, Mapping) else state


def shown_window(id_window: int) -> str:
    """What the repr of a scorer says of an id_window."""
    return f", id_window={id_window}" if id_window else ""


class NeighborReference:
    """A reference bank and the way it is searched.

    Args:
        owner: The scorer to name in errors.
        k: The largest k it will be asked for, checked.
        metric: ``"euclidean"`` or ``"cosine"``.
        capacity: The most embeddings kept by ``update``.
        engine: Who searches, as for ``NeighborIndex``.
        max_memory: Bytes of working memory a search aims for.
        id_window: Rows whose ids differ by at most so much are not compared, as for
            ``NeighborIndex``.
    """

    def __init__(
        self,
        owner: str,
        k: int | float,
        *,
        metric: Metric,
        capacity: int,
        engine: EngineName,
        max_memory: int,
        id_window: int,
    ) -> None:
        check_choice(owner, "metric", metric, get_args(Metric))
        check_choice(owner, "engine", engine, get_args(EngineName))
        self.owner = owner
        self.k = k
        self.bank = ReferenceBank(capacity)
        if isinstance(k, int) and capacity <= k:
            raise OptionError(
                f"{owner} expects a capacity above k={k}, got {capacity}; raise capacity."
            )
        self.metric: Metric = metric
        self.engine: EngineName = engine
        self.max_memory = check_count(owner, "max_memory", max_memory, least=2**20)
        self.id_window = check_id_window(owner, id_window)
        self._index: NeighborIndex | None = None  # of the bank as it was at self._version
        self._version = -1

    def count(self) -> int:
        """How many neighbours k means for the reference at hand."""
        return count_of(self.k, len(self.bank))

    @property
    def ready(self) -> bool:
        """Whether the bank holds more than k rows."""
        return len(self.bank) > self.count()

    def fit(self, embeddings: ArrayLike, ids: Tensor | None) -> Neighbors:
        """Hold exactly these rows, and return each one's neighbours among the others."""
        rows = as_embeddings(embeddings, caller=f"{self.owner}.fit")
        if len(rows) <= (self.k if isinstance(self.k, int) else 1):
            raise NotEnoughReferenceError(
                f"{self.owner}.fit expects more than k={self.k} embeddings, got {len(rows)}; "
                f"pass more, or build {self.owner} with a smaller k."
            )
        check_window_has_ids(f"{self.owner}.fit", self.id_window, ids)
        # The search before the bank changes: all or nothing.
        index = self._index_of(rows, ids)
        found = index.leave_one_out(count_of(self.k, len(rows)))
        self.bank.fill(rows, ids)
        # The bank has copied the rows; what was prepared of them stays good.
        index.replace(
            self.bank.rows, torch.empty(0, dtype=torch.int64, device="cpu"), self.bank.ids
        )
        self._index, self._version = index, self.bank.version
        return found

    def search(self, embeddings: ArrayLike, ids: Tensor | None) -> Neighbors:
        """Return the neighbours of each row; with ids, none of its siblings. Changes nothing."""
        rows = as_embeddings(embeddings, caller=f"{self.owner}.score", dim=self.bank.dim)
        k = self.count()
        if len(self.bank) < k:
            raise NotEnoughReferenceError(
                f"{self.owner}.score needs k={k} reference embeddings and has seen "
                f"{len(self.bank)}; call fit or update with more, or build it with a smaller k."
            )
        self.bank.check_ids(ids, caller=f"{self.owner}.score")
        return self._prepared(rows.device).search(rows, k, query_ids=ids)

    def _index_of(self, rows: Tensor, ids: Tensor | None) -> NeighborIndex:
        return NeighborIndex(
            rows,
            ids,
            id_window=self.id_window,
            metric=self.metric,
            engine=self.engine,
            max_memory=self.max_memory,
        )

    def _prepared(self, device: torch.device) -> NeighborIndex:
        """The index of the bank as it is now, of which only what changed is prepared anew."""
        rows, index = self.bank.rows.to(device), self._index
        # Ids that come or go do so with a bank that was emptied.
        is_other = index is not None and (index.ids is None) != (self.bank.ids is None)
        if index is None or is_other or index.device != device or index.dim != rows.shape[1]:
            index = self._index_of(rows, self.bank.ids)
        elif self._version != self.bank.version:
            index.replace(rows, self.bank.changes_since(self._version), self.bank.ids)
        self._index, self._version = index, self.bank.version
        return index

    def update(self, embeddings: ArrayLike, ids: Tensor | None) -> None:
        """Add rows; a known id replaces its rows."""
        rows = as_embeddings(embeddings, caller=f"{self.owner}.update", dim=self.bank.dim)
        check_window_has_ids(f"{self.owner}.update", self.id_window, ids)
        self.bank.add(rows, ids)
