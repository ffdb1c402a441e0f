"""Measures the candidates of an engine again and proves that no nearer row was left out.

It knows rows and ids, not metrics and not how an engine is chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raremix.neighbors.engines import CandidateEngine, TorchEngine

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

    def run(self, engine: CandidateEngine) -> tuple[Tensor, Tensor]:
        """Squared distances and rows, both (n, k), nearest first.

        A distance is infinite where a query has fewer than k rows that are not its own.
        """
        # Far from the origin the product would cancel away all digits of a distance.
        centre = self.bank.mean(dim=0)
        squared, indices, unproven = self._attempt(
            engine, self.queries - centre, self.bank - centre, self.queries.dtype
        )
        # The GPU waits at each nonzero: once a call, unless something could not be proven.
        doubtful = unproven.nonzero()[:, 0]
        if len(doubtful) and self.queries.dtype == torch.float32 and self._has_float64():
            # Ties and outliers: a product in float64 settles nearly all of them.
            again = self._of(doubtful)
            exact = TorchEngine(self.max_memory // 4, dtype=torch.float64)
            squared[doubtful], indices[doubtful], unproven = again._attempt(
                exact, again.queries, again.bank, torch.float64
            )
            doubtful = doubtful[unproven]
        for row in doubtful.tolist():
            squared[row], indices[row] = self._compare_all(row)
        return squared, indices

    def _has_float64(self) -> bool:
        return self.queries.device.type != "mps"

    def _of(self, rows: Tensor) -> "Search":
        ids = None if self.query_ids is None else self.query_ids[rows]
        return Search(
            self.queries[rows],
            self.bank,
            ids,
            self.bank_ids,
            k=self.k,
            count=self.count,
            max_memory=self.max_memory,
        )

    def _attempt(
        self, engine: CandidateEngine, shown_queries: Tensor, shown_bank: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances and rows, and (n,) bool: for which queries they are not proven.

        The engine is shown rows that may be shifted, and multiplies them in ``dtype``.
        """
        proposed, candidates = engine.candidates(shown_queries, shown_bank, self.count)
        measured = self._measure(candidates)
        squared = measured
        if self.query_ids is not None and self.bank_ids is not None:
            own = self.bank_ids[candidates] == self.query_ids[:, None]
            squared = measured.masked_fill(own, torch.inf)
        squared, order = squared.sort(dim=1, stable=True)
        squared = squared[:, : self.k].contiguous()
        indices = candidates.gather(1, order)[:, : self.k].contiguous()
        if self.count == len(self.bank):
            return squared, indices, torch.zeros_like(squared[:, 0], dtype=torch.bool)

        # |q|^2 - 2 q.b + |b|^2 is off by less than (dim + 4) u (|q| + |b|)^2: a product of dim
        # terms by dim u |q| |b| (Higham, Accuracy and Stability of Numerical Algorithms, section
        # 3.1), the two norms likewise, two sums and the shift by 4 u together.
        share = (self.bank.shape[1] + 4) * torch.finfo(dtype).eps / 2
        lengths = shown_queries.square().sum(dim=1).sqrt()  # norm() is ten times slower on a CPU
        worst = squared[:, -1]
        # A row left out matters only if it is nearer than the worst, and then |b| <= |q| + worst.
        reach = torch.minimum(shown_bank.square().sum(dim=1).amax().sqrt(), lengths + worst.sqrt())
        error = share * (lengths + reach).square()
        # A product that shows itself less exact (TF32, an engine of the user's) is trusted less.
        bound = share * (2 * lengths[:, None] + measured.sqrt()).square()
        excess = (
            (proposed - measured).abs() / bound.clamp_min(torch.finfo(bound.dtype).tiny)
        ).amax()
        error = torch.where(excess > 1, 4 * excess * error, error)
        # A distance of zero cannot be undercut, however uncertain the rows left out are.
        unproven = (worst * (1 - _TIE) > proposed[:, -1] - error) & (worst > 0)
        return squared, indices, unproven

    def _measure(self, candidates: Tensor) -> Tensor:
        """Squared distances (n, count) from the differences of the rows themselves."""
        step = max(1, self.max_memory // (16 * candidates.shape[1] * self.bank.shape[1]))
        squared = self.queries.new_empty(candidates.shape)
        for start in range(0, len(self.queries), step):
            stop = start + step
            difference = self.bank[candidates[start:stop]] - self.queries[start:stop, None, :]
            squared[start:stop] = difference.square_().sum(dim=2)
        return squared

    def _compare_all(self, row: int) -> tuple[Tensor, Tensor]:
        """The k nearest of one query, measured against every row of the bank."""
        step = max(1, self.max_memory // (16 * self.bank.shape[1]))
        parts: tuple[Tensor, ...] = torch.split(self.bank, step)
        squared = torch.cat([(part - self.queries[row]).square_().sum(dim=1) for part in parts])
        if self.query_ids is not None and self.bank_ids is not None:
            squared = squared.masked_fill(self.bank_ids == self.query_ids[row], torch.inf)
        return squared.topk(self.k, largest=False)
