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

__all__ = ["Search"]

# A row left out that is nearer by less than this share of the squared distance is a tie: the float32
# distance itself is no more certain.
_TIE = 2.0**-20


@dataclass(frozen=True)
class Search:
    """One search: k neighbours among the rows of a bank that do not carry the query's id.

    Attributes:
        queries: (n, dim) float32 or float64.
        bank: (m, dim) of the same dtype, on the same device.
        query_ids: (n,) int64 on that device, or None.
        bank_ids: (m,) int64 on that device, or None together with ``query_ids``.
        k: How many neighbours.
        count: How many candidates to ask for, k plus the most rows of one id plus some slack.
        max_memory: Bytes of working memory to aim for.
    """

    queries: Tensor
    bank: Tensor
    query_ids: Tensor | None
    bank_ids: Tensor | None
    k: int
    count: int
    max_memory: int

    def run(self, prepared: PreparedBank) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (n, k), nearest first.

        A distance is infinite where a query has fewer than k rows that are not its own.
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
        wider = min(16 * self.count, len(self.bank))
        if len(doubtful) and wider > self.count:
            # Rows that lie closer together than a low-precision product can tell.
            again = replace(self._of(doubtful), count=wider)
            step = again._queries_at_once()
            left = []
            for start in range(0, len(doubtful), step):
                rows = doubtful[start : start + step]
                part = again._of(slice(start, start + step))
                proposal = prepared.propose(part.queries, wider)
                squared[rows], indices[rows], unproven = part._judge(proposal)
                left.append(rows[unproven])
            doubtful = torch.cat(left)
        if len(doubtful) and self.queries.dtype == torch.float32 and self._has_float64():
            # Ties and outliers: a product in float64 settles nearly all of them.
            again = self._of(doubtful)
            exact = ProductBank(
                self.bank, TorchEngine(self.max_memory // 4, dtype=torch.float64), torch.float64
            )
            proposal = exact.propose(again.queries, again.count)
            squared[doubtful], indices[doubtful], unproven = again._judge(proposal)
            doubtful = doubtful[unproven]
        for row in doubtful.tolist():
            squared[row], indices[row] = self._compare_all(row)
        return squared, indices

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
            own = self.bank_ids[candidates] == self.query_ids[:, None]
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
            squared = squared.masked_fill(self.bank_ids == self.query_ids[row], torch.inf)
        return squared.topk(self.k, largest=False)
