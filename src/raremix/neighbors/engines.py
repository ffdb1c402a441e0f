"""Engines that propose the nearest rows of a bank.

An engine is shown rows that are centred and scaled, and answers with more candidates than are
wanted, with distances as a matrix product gives them. It does not know ids or metrics, and it need
not be exact: ``nearest`` measures the candidates again and proves that none is missing.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from raremix.neighbors.faiss_door import load_faiss

__all__ = ["CandidateEngine", "EngineName", "FaissEngine", "TorchEngine"]

EngineName = Literal["auto", "int16", "half", "torch", "faiss"]

_GROUP = 64


class CandidateEngine(Protocol):
    """Proposes, for each query, the rows of the bank that look nearest."""

    def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return squared distances and bank rows, (n, count) float32 and int64, ascending.

        ``queries`` (n, dim) and ``bank`` (m, dim) are float32 on one device, ``count`` <= m.
        """


class TorchEngine:
    """A matrix product and a top-k for each tile of queries and bank, on any device.

    Args:
        max_memory: Bytes that the distances of one tile may take.
        dtype: What to multiply in; that of the rows if not given.
    """

    def __init__(self, max_memory: int, *, dtype: torch.dtype | None = None) -> None:
        self.max_memory = max_memory
        self.dtype = dtype

    def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See ``CandidateEngine``."""
        # A training loop's autocast would multiply in bfloat16.
        with torch.autocast(queries.device.type, enabled=False):
            return self._candidates(queries, bank, count)

    def _candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        # |q - b|^2 = |q|^2 - 2 q.b + |b|^2, and |q|^2 is the same for the whole row.
        dtype = queries.dtype if self.dtype is None else self.dtype
        query_tile, bank_tile = self._tiles(len(queries), len(bank), count)
        parts: tuple[Tensor, ...] = torch.split(bank, bank_tile)
        bank_norms = [part.to(dtype).square().sum(dim=1) for part in parts]
        squared = queries.new_empty((len(queries), count), dtype=dtype)
        indices = torch.empty((len(queries), count), dtype=torch.int64, device=queries.device)
        for start in range(0, len(queries), query_tile):
            tile = queries[start : start + query_tile].to(dtype)
            best: tuple[Tensor, Tensor] | None = None
            for place, part in enumerate(parts):
                partial = torch.addmm(bank_norms[place], tile, part.to(dtype).T, alpha=-2.0)
                values, rows = least(partial, min(count, len(part)))
                best = merge(best, (values, rows + place * bank_tile), count)
            assert best is not None
            squared[start : start + query_tile] = best[0] + tile.square().sum(dim=1, keepdim=True)
            indices[start : start + query_tile] = best[1]
        return squared, indices

    def _tiles(self, n_queries: int, n_bank: int, count: int) -> tuple[int, int]:
        cells = max(self.max_memory // 4, 1)
        # Wide tiles keep the matrix product fast; beyond this size they only cost memory.
        query_tile = min(n_queries, 512)
        bank_tile = min(n_bank, max(cells // query_tile, count, 1024))
        return query_tile, bank_tile


def least(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` least of each row of (n, m) keys, and their columns, ascending.

    They lie in the ``count`` groups with the least minima, and a minimum of every group costs one
    pass over the keys where a top-k of all of them costs several.
    """
    columns = keys.shape[1]
    groups = columns // _GROUP
    if groups < 4 * count:
        values, found = keys.topk(count, dim=1, largest=False)
        return values, found
    # A group is every so-maniest column, so that the minimum runs along memory.
    body = keys[:, : groups * _GROUP].view(len(keys), _GROUP, groups)
    best = body.amin(dim=1).topk(count, dim=1, largest=False).indices
    offsets = groups * torch.arange(_GROUP, device=keys.device)
    places = (best[:, :, None] + offsets).flatten(1)
    rest = torch.arange(groups * _GROUP, columns, device=keys.device).expand(len(keys), -1)
    places = torch.cat([places, rest], dim=1)
    values, found = keys.gather(1, places).topk(count, dim=1, largest=False)
    return values, places.gather(1, found)


def merge(
    best: tuple[Tensor, Tensor] | None, found: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` least of two lists of values (n, ...) with their rows, ascending."""
    if best is None:
        return found
    found = torch.cat([best[0], found[0]], dim=1), torch.cat([best[1], found[1]], dim=1)
    values, order = found[0].topk(min(count, found[0].shape[1]), dim=1, largest=False)
    return values, found[1].gather(1, order)


class FaissEngine:
    """FAISS's exact flat search, on the CPU.

    Raises:
        EngineUnavailableError: On use, if FAISS cannot be imported or runs in a loader's worker.
    """

    def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See ``CandidateEngine``; tensors on another device are copied to the CPU and back."""
        faiss = load_faiss("FaissEngine.candidates")
        squared, indices = faiss.knn(
            queries.cpu().contiguous().numpy(), bank.cpu().contiguous().numpy(), count
        )
        home = queries.device
        return torch.from_numpy(squared).to(home), torch.from_numpy(indices).to(home)
