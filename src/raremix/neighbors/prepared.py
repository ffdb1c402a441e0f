"""Banks made ready for many searches, and how far their proposals can be trusted.

A prepared bank answers a batch of queries with candidates and a floor: a squared distance that no
row left out can lie below. How it comes to its floor is its own business; ``proof`` measures the
candidates again and needs nothing else to know that a result is exact.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raremix.neighbors.engines import CandidateEngine, least, merge
from raremix.neighbors.kernel import NARROW, WIDE, Panels, join_self, search

__all__ = ["Int16Bank", "PreparedBank", "ProductBank", "Proposal", "ReducedBank"]

# What the rounding of a product must be feared to add to that of its factors, as a share of the two
# lengths for each dimension: twice a float32 rounding, since tensor cores cut off where IEEE rounds.
_SUM_ERROR = 2.0**-23


class Proposal(Protocol):
    """Candidates for a batch of queries."""

    @property
    def rows(self) -> Tensor:
        """(n, count) int64, rows of the bank."""

    def floor(self, measured: Tensor, worst: Tensor) -> Tensor:
        """(n,): no row left out has a squared distance below this.

        Args:
            measured: (n, count) true squared distances of the candidates.
            worst: (n,) the squared distance that has to be undercut to matter.
        """


class PreparedBank(Protocol):
    """A bank that proposes neighbours."""

    def propose(self, queries: Tensor, count: int) -> Proposal:
        """Candidates for (n, dim) queries; ``count`` is no more than the rows of the bank."""

    def replace(self, rows: Tensor, places: Tensor) -> bool:
        """Follow a bank whose rows at ``places`` changed; False if it must be prepared anew.

        Args:
            rows: (m, dim) the whole bank as it is now, perhaps longer or shorter.
            places: (c,) int64, which of them are new or changed.
        """


@dataclass(frozen=True)
class KeyProposal:
    """Candidates with a floor that is known beforehand."""

    rows: Tensor
    known_floor: Tensor

    def floor(self, measured: Tensor, worst: Tensor) -> Tensor:
        """See ``Proposal``."""
        return self.known_floor


class Int16Bank:
    """The rows of a bank on the CPU as 16-bit integers, multiplied by the compiled kernel.

    Args:
        bank: (m, dim) float32.
        spare: Room for so many rows more, which ``replace`` may bring.
    """

    def __init__(self, bank: Tensor, *, spare: int = 0) -> None:
        self._panels = Panels(middle(bank), len(bank) + spare, WIDE)
        self._panels.append(bank)

    @staticmethod
    def bytes_for(rows: int, dim: int) -> int:
        """Bytes a prepared bank of this shape takes."""
        return rows * Panels.bytes_per_row(dim)

    def propose(self, queries: Tensor, count: int) -> KeyProposal:
        """See ``PreparedBank``."""
        shown = self._pack_narrow(queries)
        keys, rows = search(shown, self._panels, count)
        return self._proposal(keys, rows, shown)

    def propose_for_itself(self, bank: Tensor, count: int) -> KeyProposal:
        """Candidates for every row of the bank but itself, at half the work."""
        shown = self._pack_narrow(bank)
        keys, rows = join_self(shown, self._panels, count)
        return self._proposal(keys, rows, shown)

    def _pack_narrow(self, rows: Tensor) -> Panels:
        shown = Panels(self._panels.centre, len(rows), NARROW)
        shown.append(rows)
        return shown

    def _proposal(self, keys: Tensor, rows: Tensor, shown: Panels) -> KeyProposal:
        return KeyProposal(rows.long(), keys[:, -1].double() + shown.least_squares())

    def replace(self, rows: Tensor, places: Tensor) -> bool:
        """See ``PreparedBank``."""
        if len(rows) > self._panels.capacity or len(places) > len(rows) // 2:
            return False
        self._panels.resize(len(rows))
        self._panels.replace(rows[places], places)
        return True


@dataclass(frozen=True)
class ReducedProposal:
    """Candidates by keys in float32 that are too small only up to their own roundings."""

    rows: Tensor
    last_key: Tensor
    lengths: Tensor
    longest: Tensor

    def floor(self, measured: Tensor, worst: Tensor) -> Tensor:
        """See ``Proposal``."""
        lengths = self.lengths.double()
        # A row left out matters only if it is nearer than the worst, and then |b| <= |q| + worst.
        reach = torch.minimum(self.longest.double(), lengths + worst.double().sqrt())
        # A dozen roundings of 2^-24 in the squares, the products and their sum.
        return self.last_key.double() + lengths.square() - (lengths + reach).square() * 2.0**-20


class ReducedBank:
    """The rows of a bank at unit length in a short float format, on any device.

    Meant for GPUs, and for processors that multiply bfloat16 faster than float32.

    Args:
        bank: (m, dim) float32.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        max_memory: Bytes that the keys of one tile may take.
    """

    def __init__(self, bank: Tensor, dtype: torch.dtype, max_memory: int) -> None:
        self._dtype = dtype
        self._max_memory = max_memory
        self._centre = middle(bank)
        self._short, self._length, self._missed = self._shorten(bank)
        self._square = self._length.square()

    def _shorten(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit rows in the short format, their lengths, and the largest error among them."""
        rows = rows - self._centre
        length = rows.square().sum(dim=1).sqrt()  # norm() is ten times slower on a CPU
        unit = rows / torch.where(length > 0, length, 1.0)[:, None]
        short = unit.to(self._dtype)
        missed = (unit - short.float()).square().sum(dim=1).amax().sqrt()
        return short, length, missed

    def propose(self, queries: Tensor, count: int) -> ReducedProposal:
        """See ``PreparedBank``."""
        # A training loop's autocast would choose another format.
        with torch.autocast(queries.device.type, enabled=False):
            return self._propose(queries, count)

    def _propose(self, queries: Tensor, count: int) -> ReducedProposal:
        short, length, missed = self._shorten(queries)
        dim, bank_rows = self._short.shape[1], len(self._short)
        wide = _multiplies_to_float32(self._dtype, queries.device)
        # |q.b - q'.b'| <= |q - q'| |b'| + |q| |b - b'| for unit rows, and the format of the result.
        error = (missed + self._missed) * 1.01 + (dim + 16) * _SUM_ERROR
        if not wide:
            # Rounded once on a CPU; a GPU may also sum a few parts in the short format.
            roundings = 1 if queries.device.type == "cpu" else 8
            error = error + roundings * torch.finfo(self._dtype).eps
        query_tile = min(len(queries), 1024)
        bank_tile = min(bank_rows, max(self._max_memory // (8 * query_tile), count, 1024))
        keys = queries.new_empty((len(queries), count), dtype=torch.float32)
        rows = torch.empty((len(queries), count), dtype=torch.int64, device=queries.device)
        for start in range(0, len(queries), query_tile):
            own = slice(start, start + query_tile)
            best: tuple[Tensor, Tensor] | None = None
            for first in range(0, bank_rows, bank_tile):
                part = slice(first, first + bank_tile)
                other = self._short[part].T
                if wide:
                    tile = torch.mm(short[own], other, out_dtype=torch.float32)
                else:
                    tile = torch.mm(short[own], other).float()
                tile.add_(error).mul_(self._length[part]).mul_(-2.0 * length[own, None])
                values, found = least(tile.add_(self._square[part]), min(count, tile.shape[1]))
                best = merge(best, (values, found + first), count)
            assert best is not None
            keys[own], rows[own] = best
        return ReducedProposal(rows, keys.amax(dim=1), length, self._length.amax())

    def replace(self, rows: Tensor, places: Tensor) -> bool:
        """See ``PreparedBank``."""
        return False


@functools.cache
def _multiplies_to_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product of short floats can be had in float32, which CUDA offers since torch 2.8."""
    rows = torch.ones((16, 16), dtype=dtype, device=device)
    try:
        return torch.mm(rows, rows, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False


@dataclass(frozen=True)
class ProductProposal:
    """Candidates with squared distances as an engine's matrix product gave them."""

    rows: Tensor
    proposed: Tensor
    lengths: Tensor
    longest: Tensor
    share: float

    def floor(self, measured: Tensor, worst: Tensor) -> Tensor:
        """See ``Proposal``."""
        # |q|^2 - 2 q.b + |b|^2 is off by less than (dim + 4) u (|q| + |b|)^2: a product of dim
        # terms by dim u |q| |b| (Higham, Accuracy and Stability of Numerical Algorithms, section
        # 3.1), the two norms likewise, two sums and the shift by 4 u together.
        # A row left out matters only if it is nearer than the worst, and then |b| <= |q| + worst.
        reach = torch.minimum(self.longest, self.lengths + worst.sqrt())
        error = self.share * (self.lengths + reach).square()
        # A product that shows itself less exact (TF32, an engine of the user's) is trusted less.
        bound = self.share * (2 * self.lengths[:, None] + measured.sqrt()).square()
        excess = (
            (self.proposed - measured).abs() / bound.clamp_min(torch.finfo(bound.dtype).tiny)
        ).amax()
        return self.proposed[:, -1] - torch.where(excess > 1, 4 * excess * error, error)


class ProductBank:
    """A centred bank for an engine that answers with squared distances.

    Args:
        bank: (m, dim) float32 or float64.
        engine: Multiplies in the dtype of the rows, or in ``dtype``.
        dtype: What the engine multiplies in.
    """

    def __init__(
        self, bank: Tensor, engine: CandidateEngine, dtype: torch.dtype | None = None
    ) -> None:
        self._engine = engine
        # Far from the origin the product would cancel away all digits of a distance.
        self._centre = bank.mean(dim=0)
        self._shown = bank - self._centre
        self._longest = self._shown.square().sum(dim=1).amax().sqrt()
        unit = torch.finfo(bank.dtype if dtype is None else dtype).eps / 2
        self._share = (bank.shape[1] + 4) * unit

    def propose(self, queries: Tensor, count: int) -> ProductProposal:
        """See ``PreparedBank``."""
        shown = queries - self._centre
        proposed, rows = self._engine.candidates(shown, self._shown, count)
        lengths = shown.square().sum(dim=1).sqrt()
        return ProductProposal(rows, proposed, lengths, self._longest, self._share)

    def replace(self, rows: Tensor, places: Tensor) -> bool:
        """See ``PreparedBank``."""
        return False


def middle(bank: Tensor) -> Tensor:
    """A point (dim,) in the midst of (m, dim) rows, which a few far ones do not move."""
    step = max(len(bank) // 256, 1)
    return bank[::step].median(dim=0).values
