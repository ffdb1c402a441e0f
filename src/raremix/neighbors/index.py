"""A bank that is searched again and again, prepared once.

It chooses how a search runs; that the result is exact is for ``proof`` to see to.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.inputs import ArrayLike, as_embeddings, as_ids, as_whole_numbers, not_finite
from raremix.neighbors.choice import chosen_engine
from raremix.neighbors.engines import (
    CandidateEngine,
    EngineName,
    FaissEngine,
    TorchEngine,
    merge,
)
from raremix.neighbors.kernel import Lists
from raremix.neighbors.prepared import Int16Bank, PreparedBank, ProductBank, ReducedBank
from raremix.neighbors.proof import Search, shifted
from raremix.options import check_choice, check_count

__all__ = [
    "Metric",
    "NeighborIndex",
    "Neighbors",
    "check_id_window",
    "check_window_has_ids",
    "finished",
    "most_siblings",
    "search_blocks",
    "unit_rows",
]

Metric = Literal["euclidean", "cosine"]

# Candidates asked for beyond those needed, so that rounding in the product seldom leaves a true
# neighbour out, and the proof seldom fails.
_SLACK = 8
# A 16-bit float product cannot tell so many rows apart.
_HALF_SLACK = 4


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of a bank for each query, nearest first.

    Attributes:
        distances: (n, k) float32, on the device of the queries.
        indices: (n, k) int64, rows of the bank.
    """

    distances: Tensor
    indices: Tensor


class NeighborIndex:
    """A bank of rows, prepared for exact searches.

    ``nearest`` does the same for a single search. An index keeps what a search can reuse: the bank
    in the form the engine multiplies in. The bank itself is not copied (unless the metric is
    cosine) and must not change behind the index; ``replace`` tells it of changes.

    Args:
        bank: Finite floats of shape (m, dim), on any device.
        ids: (m,) integers. A search that passes ids leaves out the rows of the same id, siblings
            of the query.
        id_window: Rows whose ids differ from the query's by at most so much are siblings too, such
            as frames of a video some seconds apart, whose ids count milliseconds. It needs ids.
        metric: ``"euclidean"``, or ``"cosine"``: the Euclidean distance between the rows scaled to
            unit length, in [0, 2], which orders neighbours as the cosine does. A row of zeros stays
            zero and lies at distance 1 from every other.
        engine: Who proposes candidates; the result is the same with all.
            ``"int16"``: a compiled product of 16-bit integers, on x86-64 CPUs with AVX2;
            ``"half"``: a product of 16-bit floats, for GPUs and for CPUs made for bfloat16;
            ``"torch"``: a float32 product, anywhere; ``"faiss"``: FAISS's flat index on the CPU;
            ``"auto"``: whichever is fastest here, by a short trial on the first use;
            or an engine of your own.
        max_memory: Bytes of working memory to aim for, beyond the inputs and the result. A bank
            that is larger when prepared is searched in blocks, each prepared for every search.

    Raises:
        EmbeddingShapeError: If the bank is not (m, dim), or holds NaN or infinity.
        EngineUnavailableError: If the engine was asked for by name and cannot run here.
        OptionError: If id_window, metric, engine or max_memory is out of range, or id_window comes
            without ids.

    Example:
        >>> index = NeighborIndex(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
        >>> index.search(torch.tensor([[0.0, 0.0]]), k=2).distances
        tensor([[0., 5.]])
        >>> index.leave_one_out(k=1).indices
        tensor([[1],
                [0],
                [1]])
    """

    def __init__(
        self,
        bank: ArrayLike,
        ids: ArrayLike | None = None,
        *,
        id_window: int = 0,
        metric: Metric = "euclidean",
        engine: EngineName | CandidateEngine = "auto",
        max_memory: int = 2**29,
    ) -> None:
        self.id_window = check_id_window("NeighborIndex", id_window)
        check_window_has_ids("NeighborIndex", self.id_window, ids)
        check_choice("NeighborIndex", "metric", metric, get_args(Metric))
        if isinstance(engine, str):
            check_choice("NeighborIndex", "engine", engine, get_args(EngineName))
        self.metric: Metric = metric
        self.engine = engine
        self.max_memory = check_count("NeighborIndex", "max_memory", max_memory, least=2**20)
        self._prepared: dict[str, PreparedBank] = {}
        self._grows = False
        self._hold(as_embeddings(bank, caller="NeighborIndex"), ids)

    def _hold(self, bank: Tensor, ids: ArrayLike | None) -> None:
        if bank.stride(1) != 1:
            bank = bank.contiguous()
        if self.metric == "cosine":
            bank = unit_rows(bank)
        self._bank = bank
        self._fits_float32 = _squares_fit_float32(bank)
        if not self._fits_float32:
            self._bank = bank.double()
        self._ids: Tensor | None = None
        self._counted: Tensor | None = None  # a copy of the ids whose siblings were counted
        self._siblings = 0
        if ids is not None:
            own = as_ids(ids, caller="NeighborIndex", length=len(bank))
            self._siblings = most_siblings(own, self.id_window)
            self._ids = own.to(bank.device)

    def _follow_ids(self, ids: Tensor) -> None:
        # Most steps of a training loop bring samples that are known, each back to its place.
        # Compared with a copy, since the ids given may be those of a bank that changes in place.
        if self._counted is None or not torch.equal(ids, self._counted):
            self._siblings = most_siblings(ids, self.id_window)
            self._counted = ids.clone()
        self._ids = ids.to(self._bank.device)

    def __len__(self) -> int:
        return len(self._bank)

    @property
    def dim(self) -> int:
        """Width of the rows."""
        return self._bank.shape[1]

    @property
    def rows(self) -> Tensor:
        """The (m, dim) rows that are searched; unit length if the metric is cosine."""
        return self._bank

    @property
    def ids(self) -> Tensor | None:
        """(m,) int64 on the device of the rows, or None."""
        return self._ids

    @property
    def siblings(self) -> int:
        """The most rows that a search leaves out for one query, whatever its id; 0 without ids."""
        return self._siblings

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._bank.device

    def search(
        self, queries: ArrayLike, k: int, *, query_ids: ArrayLike | None = None
    ) -> Neighbors:
        """Find the k nearest rows of the bank for each query, exactly.

        Args:
            queries: Finite floats of shape (n, dim), on the device of the bank.
            k: How many neighbours, at least 1.
            query_ids: (n,) integers, if the index has ids; siblings are left out.

        Returns:
            Distances and rows, nearest first. Neighbours at equal distance come in any order.

        Raises:
            EmbeddingShapeError: If shapes do not fit, or a query holds NaN or infinity.
            NotEnoughReferenceError: If a query has fewer than k rows that are no siblings.
            OptionError: If k is out of range, or ids are passed to an index without ids.
        """
        squared, rows = self.squared(queries, k, query_ids=query_ids)
        return finished(squared, rows, k, len(self), self.id_window)

    def leave_one_out(self, k: int) -> Neighbors:
        """Find the k nearest other rows for each row of the bank.

        Rows that are siblings are left out for one another. Arguments, result and errors as for
        ``search``; the compiled kernel takes half the products of a search.
        """
        k = check_count("leave_one_out", "k", k, least=1)
        own = self._ids
        if own is None:
            own = torch.arange(len(self), device=self._bank.device)
        name = self._choice(len(self))
        search = self._search(self._bank, own, own, k, max(self._siblings, 1), name)
        if self._joins(search.count):
            prepared = self._ready("int16")
            assert isinstance(prepared, Int16Bank)
            proposal = prepared.propose_for_itself(self._bank, search.count)
            squared, rows = search.settle(prepared, proposal)
        elif self._in_blocks():
            squared, rows = self._over_blocks(self._bank, k, own, own)
        else:
            squared, rows = search.run(self._ready(name))
        return finished(squared, rows, k, len(self), self.id_window)

    def squared(
        self, queries: ArrayLike, k: int, *, query_ids: ArrayLike | None = None
    ) -> tuple[Tensor, Tensor]:
        """``search``, with squared distances, infinite where a query has too few neighbours."""
        k = check_count("nearest", "k", k, least=1)
        shown = as_embeddings(queries, caller="nearest", dim=self.dim)
        own: Tensor | None = None
        if query_ids is not None:
            if self._ids is None:
                raise OptionError(
                    "nearest expects query_ids and bank_ids together, got only query_ids; a "
                    "NeighborIndex takes the ids of its rows when it is built."
                )
            own = as_ids(query_ids, caller="nearest", length=len(shown)).to(shown.device)
        if len(self) < k:
            raise NotEnoughReferenceError(
                f"nearest was asked for k={k} neighbours in a bank of {len(self)} rows; "
                "add rows or lower k."
            )
        if self.metric == "cosine":
            shown = unit_rows(shown)
        if shown.stride(1) != 1:
            shown = shown.contiguous()
        known = None if own is None else self._ids
        if self._fits_float32 and not _squares_fit_float32(shown):
            # Rare enough to prepare a float64 bank for this one search.
            wide = copy.copy(self)
            wide._bank, wide._fits_float32, wide._prepared = self._bank.double(), False, {}
            return wide.squared(shown, k, query_ids=own)
        shown = shown.to(self._bank.dtype)
        if self._in_blocks():
            return self._over_blocks(shown, k, own, known)
        name = self._choice(len(shown))
        siblings = 0 if own is None else self._siblings
        return self._search(shown, own, known, k, siblings, name).run(self._ready(name))

    def replace(
        self,
        bank: ArrayLike,
        places: ArrayLike | Sequence[int] | None,
        ids: ArrayLike | Sequence[int] | None = None,
    ) -> None:
        """Follow a bank that has changed, preparing only what changed where that can be done.

        Args:
            bank: (m, dim) the whole bank as it is now; m may have changed.
            places: (c,) integers, the rows that are new or changed; None for all of them.
            ids: (m,) integers, if the index has ids; those it has stay if none are given, for as
                many rows as before.

        Raises:
            EmbeddingShapeError: If the bank is not (m, dim) of the width before, or holds NaN or
                infinity; if ids do not fit its rows.
            OptionError: If a place lies outside the bank, or ids are missing for new rows.
        """
        caller = "NeighborIndex.replace"
        rows = as_embeddings(bank, caller=caller, dim=self.dim)
        if ids is None and self._ids is not None:
            if len(rows) != len(self):
                raise OptionError(
                    f"{caller} expects ids, since the index has some for its {len(self)} rows and "
                    f"the bank has {len(rows)} now; pass one id per row."
                )
            ids = self._ids
        own = None if ids is None else as_ids(ids, caller=caller, length=len(rows))
        changed = None if places is None else _places(places, len(rows), caller)
        self._grows = self._grows or len(rows) > len(self)
        followed = False
        if changed is not None and self._fits_float32 and rows.stride(1) == 1:
            changed = changed.to(rows.device)
            fresh = rows[changed]
            if len(fresh) == 0 or _squares_fit_float32(fresh):
                if self.metric == "cosine":
                    grown = rows.new_empty(rows.shape)
                    kept = min(len(rows), len(self))
                    grown[:kept] = self._bank[:kept]
                    grown[changed] = unit_rows(fresh)
                    rows = grown
                self._prepared = {
                    name: prepared
                    for name, prepared in self._prepared.items()
                    if prepared.replace(rows, changed)
                }
                self._bank, followed = rows, True
        if not followed:
            self._prepared = {}
            self._hold(rows, None)
        if own is not None:
            self._follow_ids(own)

    def _search(
        self,
        queries: Tensor,
        own: Tensor | None,
        known: Tensor | None,
        k: int,
        siblings: int,
        name: str,
    ) -> Search:
        expected = siblings
        if self.id_window:
            # All crops of all frames in a window may be thousands; hardly any are near the query.
            expected = min(siblings, k + _SLACK)
        return Search(
            queries,
            self._bank,
            own,
            known,
            id_window=self.id_window,
            k=k,
            count=min(_count(k, expected, name), len(self)),
            enough=min(_count(k, siblings, name), len(self)),
            max_memory=self.max_memory,
        )

    def _choice(self, queries: int) -> str:
        if not isinstance(self.engine, str):
            return "own"
        if not self._fits_float32:
            return "torch"
        return chosen_engine(self.engine, queries=queries, device=self._bank.device)

    def _ready(self, name: str) -> PreparedBank:
        if name not in self._prepared:
            self._prepared[name] = self._prepare(name)
        return self._prepared[name]

    def _prepare(self, name: str) -> PreparedBank:
        if name == "int16":
            return Int16Bank(self._bank, spare=len(self) // 2 if self._grows else 0)
        if name == "half":
            dtype = torch.float16 if self._bank.device.type == "cuda" else torch.bfloat16
            return ReducedBank(self._bank, dtype, self.max_memory // 4)
        if name == "own":
            assert not isinstance(self.engine, str)
            return ProductBank(self._bank, self.engine)
        if name == "faiss":
            return ProductBank(self._bank, FaissEngine())
        return ProductBank(self._bank, TorchEngine(self.max_memory // 4))

    def _bytes_per_row(self) -> int:
        if self._choice(len(self)) == "int16":
            return Int16Bank.bytes_for(1, self.dim)
        return self.dim * self._bank.element_size()

    def _in_blocks(self) -> bool:
        # Half of it for the prepared bank, the rest for keys and candidates.
        return len(self) * self._bytes_per_row() > self.max_memory // 2

    def _joins(self, count: int) -> bool:
        """Whether leave-one-out can share its products between the two rows of a pair."""
        if self._choice(len(self)) != "int16" or count >= len(self):
            return False
        held = Int16Bank.bytes_for(2, self.dim) + 8 * Lists.room(count) + 24 * count
        return len(self) * held <= self.max_memory

    def _over_blocks(
        self, queries: Tensor, k: int, own: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = max(self.max_memory // 2 // self._bytes_per_row(), 1)
        parts = (slice(first, first + rows) for first in range(0, len(self), rows))
        blocks = (
            NeighborIndex(
                self._bank[part],
                None if known is None else known[part],
                id_window=0 if known is None else self.id_window,
                engine=self.engine,
                max_memory=self.max_memory,
            )
            for part in parts
        )
        return search_blocks(blocks, queries, k, own)


def search_blocks(
    blocks: Iterable[NeighborIndex], queries: Tensor, k: int, query_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k nearest in all blocks together: squared distances in float64, and rows.

    Both are (n, up to k), fewer where the blocks have fewer rows, and infinite where a query has.
    """
    best: tuple[Tensor, Tensor] | None = None
    done = 0
    for block in blocks:
        squared, rows = block.squared(queries, min(k, len(block)), query_ids=query_ids)
        best = merge(best, (squared.double(), rows + done), k)
        done += len(block)
    assert best is not None, "a bank of no rows is refused where it is read"
    return best


def _count(k: int, own: int, name: str) -> int:
    """How many candidates to ask an engine for, where up to ``own`` of them are not wanted."""
    return (k + own + _SLACK) * (_HALF_SLACK if name == "half" else 1)


def finished(
    squared: Tensor, rows: Tensor, k: int, bank_rows: int, id_window: int = 0
) -> Neighbors:
    """Turn squared distances into the result of a search, or say that there are too few rows."""
    if bool(torch.isinf(squared).any()):
        others, way = "that do not carry its own id", "add rows or lower k"
        if id_window:
            others = f"whose ids differ from its own by more than id_window={id_window}"
            way = "add rows, or lower k or id_window"
        raise NotEnoughReferenceError(
            f"nearest was asked for k={k} neighbours, but a query has fewer rows in the bank of "
            f"{bank_rows} {others}; {way}."
        )
    # In float64, so that a distance does not depend on the dtype that its square came in.
    return Neighbors(squared.double().sqrt().float(), rows)


def _places(places: ArrayLike | Sequence[int], rows: int, caller: str) -> Tensor:
    """(c,) int64 on the CPU, each in [0, rows)."""
    found = as_whole_numbers(
        places, caller=caller, what="places", hint="a place is the number of a row of the bank"
    )
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < rows:
        raise OptionError(
            f"{caller} expects places from 0 to {rows - 1}, got {int(found.min())} to "
            f"{int(found.max())}; pass the bank as it is now, and the rows of it that changed."
        )
    return found


def most_siblings(ids: Tensor, id_window: int = 0) -> int:
    """The most of (n,) int64 ids, n at least 1, that differ from any one id by at most the window.

    That id need not be among them: it is the most in any interval of 2 ``id_window`` + 1.
    """
    if not id_window:
        return int(torch.unique(ids, return_counts=True)[1].max())
    ascending = ids.sort().values
    ends = shifted(shifted(ascending, id_window), id_window)
    behind = torch.searchsorted(ascending, ends, right=True)
    return int((behind - torch.arange(len(ids), device=ids.device)).max())


def check_id_window(caller: str, id_window: int) -> int:
    """Return ``id_window`` as an int, or raise ``OptionError`` if ids cannot differ by so much."""
    checked = check_count(caller, "id_window", id_window, least=0)
    if checked > torch.iinfo(torch.int64).max:
        raise OptionError(f"{caller} expects id_window below 2**63, as ids are, got {id_window}.")
    return checked


def check_window_has_ids(caller: str, id_window: int, ids: object) -> None:
    """Raise ``OptionError`` if there is a window, and None in place of the ids it lies around."""
    if id_window and ids is None:
        raise OptionError(
            f"{caller} expects ids, since id_window={id_window} leaves out rows by their ids; pass "
            "one id per row, or no id_window."
        )


def unit_rows(rows: Tensor) -> Tensor:
    """Scale every row of (n, dim) floats to Euclidean length 1; a row of zeros stays zero."""
    # Dividing by the largest entry first keeps the squares of huge and tiny rows in range.
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    length = rows.norm(dim=1, keepdim=True)
    unit: Tensor = rows / torch.where(length > 0, length, 1.0)
    return unit


def _squares_fit_float32(rows: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish in float32; False asks for float64."""
    largest = float(torch.stack(rows.aminmax()).abs().amax())  # The GPU waits here, once a call.
    if not math.isfinite(largest):
        raise not_finite("nearest")
    return largest == 0 or 1e-10 < largest < 1e15
