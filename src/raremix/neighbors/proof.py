"""Measures the candidates of a prepared bank again and proves that no nearer row was left out.

It knows rows and ids, not metrics and not how a bank came to its proposals.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raremix.errors import EngineUnavailableError
from raremix.neighbors import kernel
from raremix.neighbors.engines import TorchEngine
from raremix.neighbors.prepared import PreparedBank, ProductBank, Proposal

__all__ = ["Search", "are_siblings", "shifted"]

# A row left out that is nearer by less than this share of the squared distance is a tie: the float32
# distance itself is no more certain.
_TIE = 2.0**-20

# How many times as many candidates a query is shown that could not be proven with those it had.
_WIDER = 16


def are_siblings(bank_ids: Tensor, query_ids: Tensor, id_window: int) -> Tensor:
    """Whether int64 ids, broadcast against each other, differ by at most ``id_window``."""
    if not id_window:
        return bank_ids == query_ids
    # The difference of two ids may not fit into an int64; the ends of the window are held there.
    found = bank_ids >= shifted(query_ids, -id_window)
    return found.logical_and_(bank_ids <= shifted(query_ids, id_window))


def shifted(ids: Tensor, by: int) -> Tensor:
    """Int64 ids plus a number, held at the ends of int64 where the sum lies beyond them."""
    ends = torch.iinfo(torch.int64)
    return (ids.clamp(max=ends.max - by) if by > 0 else ids.clamp(min=ends.min - by)) + by


@dataclass(frozen=True)
class Search:
    """One search: k neighbours among the rows of a bank that are no siblings of the query.

    Attributes:
        queries: (n, dim) float32 or float64.
        bank: (m, dim) of the same dtype, on the same device.
        query_ids: (n,) int64 on that device, or None.
        bank_ids: (m,) int64 on that device, or None together with ``query_ids``.
        id_window: Rows whose ids differ by at most so much are siblings; 0 for the same id only.
        k: How many neighbours.
        count: How many candidates to ask for at first.
        enough: How many leave k of them whichever are siblings: k, the most siblings, some slack.
        max_memory: Bytes of working memory to aim for.
    """

    queries: Tensor
    bank: Tensor
    query_ids: Tensor | None
    bank_ids: Tensor | None
    id_window: int
    k: int
    count: int
    enough: int
    max_memory: int

    def run(self, prepared: PreparedBank) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (n, k), nearest first.

        A distance is infinite where a query has fewer than k rows that are no siblings.
        """
        step = self._queries_at_once()
        parts = []
        for start in range(0, len(self.queries), step):
            own = self._of(slice(start, start + step))
            parts.append(own.settle(prepared, prepared.propose(own.queries, own.count)))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _queries_at_once(self) -> int:
        # Keys, rows and measured distances of the candidates, some of them twice.
        return max(self.max_memory // (4 * 64 * self.count), 64)

    def settle(self, prepared: PreparedBank, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """Measure a proposal for these queries, and search again what it does not prove."""
        squared, indices, unproven = self._judge(proposal)
        # The GPU waits at each nonzero: once a call, unless something could not be proven.
        doubtful = unproven.nonzero()[:, 0]
        most = self.count
        while len(doubtful) and most < self.enough:
            # Perhaps so many siblings were among the candidates that fewer than k are left.
            most = min(_WIDER * most, self.enough)
            doubtful = self._settle_again(prepared, doubtful, most, squared, indices)
        wider = min(_WIDER * most, len(self.bank))
        if len(doubtful) and wider > most:
            # Rows that lie closer together than a low-precision product can tell.
            doubtful = self._settle_again(prepared, doubtful, wider, squared, indices)
        if len(doubtful) and self.queries.dtype == torch.float32 and self._has_float64():
            # Ties and outliers: a product in float64 settles nearly all of them.
            exact = ProductBank(
                self.bank, TorchEngine(self.max_memory // 4, dtype=torch.float64), torch.float64
            )
            doubtful = self._settle_again(exact, doubtful, most, squared, indices)
        for row in doubtful.tolist():
            squared[row], indices[row] = self._compare_all(row)
        return squared, indices

    def _settle_again(
        self, prepared: PreparedBank, doubtful: Tensor, count: int, squared: Tensor, indices: Tensor
    ) -> Tensor:
        """Write what so many candidates say of the doubtful queries; return those still unproven."""
        again = replace(self._of(doubtful), count=count)
        step = again._queries_at_once()
        left = []
        for start in range(0, len(doubtful), step):
            rows = doubtful[start : start + step]
            part = again._of(slice(start, start + step))
            proposal = prepared.propose(part.queries, count)
            squared[rows], indices[rows], unproven = part._judge(proposal)
            left.append(rows[unproven])
        return torch.cat(left)

    def _has_float64(self) -> bool:
        return self.queries.device.type != "mps"

    def _of(self, rows: Tensor | slice) -> "Search":
        ids = None if self.query_ids is None else self.query_ids[rows]
        return replace(self, queries=self.queries[rows], query_ids=ids)

    def _judge(self, proposal: Proposal) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances and rows, and (n,) bool: for which queries they are not proven."""
        candidates = proposal.rows
        measured = self._measure(candidates)
        squared = measured
        if self.query_ids is not None and self.bank_ids is not None:
            own = are_siblings(self.bank_ids[candidates], self.query_ids[:, None], self.id_window)
            squared = measured.masked_fill(own, torch.inf)
        squared, order = squared.sort(dim=1, stable=True)
        squared = squared[:, : self.k].contiguous()
        indices = candidates.gather(1, order)[:, : self.k].contiguous()
        worst = squared[:, -1]
        if candidates.shape[1] == len(self.bank):
            return squared, indices, torch.zeros_like(worst, dtype=torch.bool)
        # A distance of zero cannot be undercut, however uncertain the rows left out are.
        unproven = (worst * (1 - _TIE) > proposal.floor(measured, worst)) & (worst > 0)
        return squared, indices, unproven

    def _measure(self, candidates: Tensor) -> Tensor:
        """Squared distances (n, count) from the differences of the rows themselves."""
        if self.queries.device.type == "cpu" and self.queries.dtype == torch.float32:
            try:
                return kernel.measure(self.queries, self.bank, candidates)
            except EngineUnavailableError:
                pass  # torch does the same, with more memory traffic
        step = max(1, self.max_memory // (16 * candidates.shape[1] * self.bank.shape[1]))
        squared = self.queries.new_empty(candidates.shape)
        for start in range(0, len(self.queries), step):
            stop = start + step
            difference = self.bank[candidates[start:stop]] - self.queries[start:stop, None, :]
            squared[start:stop] = difference.square_().sum(dim=2)
        return squared

    def _compare_all(self, row: int) -> tuple[Tensor, Tensor]:
        """The k nearest of one query, measured against every row of the bank."""
        only = self._of(slice(row, row + 1))
        step = max(1, self.max_memory // (16 * self.bank.shape[1]))
        parts = [
            torch.arange(start, min(start + step, len(self.bank)), device=self.bank.device)
            for start in range(0, len(self.bank), step)
        ]
        squared = torch.cat([only._measure(part[None])[0] for part in parts])
        if self.query_ids is not None and self.bank_ids is not None:
            own = are_siblings(self.bank_ids, self.query_ids[row], self.id_window)
            squared = squared.masked_fill(own, torch.inf)
        return squared.topk(self.k, largest=False)
