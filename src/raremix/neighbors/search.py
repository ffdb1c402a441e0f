"""Exact nearest neighbours: ids left out, candidates measured again, the result proven.

Whatever engine proposes the candidates, the distances that come out are the same to the bit,
because they are all taken from the rows themselves and not from a matrix product.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from raremix.errors import (
    EmbeddingShapeError,
    EngineUnavailableError,
    NotEnoughReferenceError,
    OptionError,
)
from raremix.inputs import ArrayLike, as_embeddings, as_ids
from raremix.neighbors.engines import CandidateEngine, EngineName, FaissEngine, TorchEngine
from raremix.neighbors.faiss_door import load_faiss
from raremix.neighbors.proof import Search
from raremix.options import check_choice

__all__ = ["Metric", "Neighbors", "chosen_engine", "nearest", "unit_rows"]

Metric = Literal["euclidean", "cosine"]

_log = logging.getLogger(__name__)

# Candidates asked for beyond those needed, so that rounding in the matrix product seldom leaves a
# true neighbour out, and the proof seldom fails.
_SLACK = 8
# FAISS's blocked product overtakes torch's product and top-k from about this many CPU queries on;
# tests/benchmarks/bench_neighbors.py measures both.
_FAISS_FROM_QUERIES = 512


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of a bank for each query, nearest first.

    Attributes:
        distances: (n, k) float32, on the device of the queries.
        indices: (n, k) int64, rows of the bank.
    """

    distances: Tensor
    indices: Tensor


def nearest(
    queries: ArrayLike,
    bank: ArrayLike,
    k: int,
    *,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    metric: Metric = "euclidean",
    engine: EngineName | CandidateEngine = "auto",
    max_memory: int = 2**29,
) -> Neighbors:
    """Find the k nearest rows of the bank for each query, exactly.

    An engine proposes k and a few more candidates by a matrix product over centred rows. Their
    distances are then measured again from the differences of the rows, and a bound on the
    product's rounding error proves that no row left out is nearer; a query for which it cannot be
    proven is searched again in float64, and at the last compared with the whole bank.

    Args:
        queries: Finite floats of shape (n, dim).
        bank: Finite floats of shape (m, dim), on the same device.
        k: How many neighbours, at least 1.
        query_ids: (n,) integers. A row of the bank with the id of the query is left out.
        bank_ids: (m,) integers; given together with ``query_ids``. Passing the same ids for the
            same rows as both makes the search leave-one-out.
        metric: ``"euclidean"``, or ``"cosine"``: the Euclidean distance between the rows scaled to
            unit length, in [0, 2], which orders neighbours as the cosine does. A row of zeros stays
            zero and lies at distance 1 from every other.
        engine: ``"torch"``, ``"faiss"``, ``"auto"`` (torch on a GPU and for small batches, FAISS
            for large ones on a CPU if it can be imported), or an engine of your own.
        max_memory: Bytes of working memory to aim for, beyond the inputs and the result.

    Returns:
        Distances and rows, nearest first. Neighbours at equal distance come in any order.

    Raises:
        EmbeddingShapeError: If shapes do not fit.
        NotEnoughReferenceError: If a query has fewer than k rows that are not its own.
        EngineUnavailableError: If FAISS was asked for by name and cannot run here.
        OptionError: If k, metric, engine or max_memory is out of range.

    Example:
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest(torch.tensor([[0.0, 0.0]]), bank, k=2).distances
        tensor([[0., 5.]])
        >>> rows = torch.arange(2)
        >>> nearest(bank, bank, k=1, query_ids=rows, bank_ids=rows).indices
        tensor([[1],
                [0]])
    """
    bank = as_embeddings(bank, caller="nearest")
    queries = as_embeddings(queries, caller="nearest", dim=bank.shape[1])
    if k < 1:
        raise OptionError(f"nearest expects k of at least 1, got {k}.")
    check_choice("nearest", "metric", metric, get_args(Metric))
    if max_memory < 2**20:
        raise OptionError(f"nearest expects max_memory of at least 1 MiB, got {max_memory} bytes.")
    if (query_ids is None) != (bank_ids is None):
        raise OptionError("nearest expects query_ids and bank_ids together, got only one of them.")
    siblings = 0
    if query_ids is not None and bank_ids is not None:
        query_ids = as_ids(query_ids, caller="nearest", length=len(queries))
        bank_ids = as_ids(bank_ids, caller="nearest", length=len(bank))
        siblings = int(torch.unique(bank_ids, return_counts=True)[1].max())
    if len(bank) < k:
        raise NotEnoughReferenceError(
            f"nearest was asked for k={k} neighbours in a bank of {len(bank)} rows; "
            "add rows or lower k."
        )
    if metric == "cosine":
        queries, bank = unit_rows(queries), unit_rows(bank)
    chosen: CandidateEngine
    if _squares_fit_float32(queries, bank):
        chosen = _engine(engine, queries, max_memory)
    else:
        chosen = TorchEngine(max_memory // 4)
        queries, bank = queries.double(), bank.double()

    squared, indices = Search(
        queries,
        bank,
        None if query_ids is None else query_ids.to(queries.device),
        None if bank_ids is None else bank_ids.to(queries.device),
        k=k,
        count=min(len(bank), k + siblings + _SLACK),
        max_memory=max_memory,
    ).run(chosen)
    if bool(torch.isinf(squared).any()):
        raise NotEnoughReferenceError(
            f"nearest was asked for k={k} neighbours, but a query has fewer rows in the bank of "
            f"{len(bank)} that do not carry its own id; add rows or lower k."
        )
    return Neighbors(squared.sqrt().float(), indices)


def unit_rows(rows: Tensor) -> Tensor:
    """Scale every row of (n, dim) floats to Euclidean length 1; a row of zeros stays zero."""
    # Dividing by the largest entry first keeps the squares of huge and tiny rows in range.
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    length = rows.norm(dim=1, keepdim=True)
    unit: Tensor = rows / torch.where(length > 0, length, 1.0)
    return unit


def _squares_fit_float32(queries: Tensor, bank: Tensor) -> bool:
    """Whether squared distances neither overflow nor vanish in float32; False asks for float64."""
    ends = torch.stack([*queries.aminmax(), *bank.aminmax()])
    largest = float(ends.abs().amax())  # The GPU waits here, once a call.
    if not math.isfinite(largest):
        raise EmbeddingShapeError(
            "nearest expects finite rows, got NaN or infinity; drop those rows first "
            "(raremix.inputs.finite_rows finds the others)."
        )
    return largest == 0 or 1e-10 < largest < 1e15


def chosen_engine(
    engine: EngineName, *, queries: int, device: torch.device | str = "cpu"
) -> Literal["torch", "faiss"]:
    """Say which engine a search of this size would use here.

    Args:
        engine: ``"auto"`` or the name of one.
        queries: How many queries the search has.
        device: Where they are.

    Raises:
        OptionError: If ``engine`` is none of the names.
    """
    check_choice("nearest", "engine", engine, get_args(EngineName))
    if engine != "auto":
        return engine
    if torch.device(device).type == "cpu" and queries >= _FAISS_FROM_QUERIES:
        try:
            load_faiss("nearest")
        except EngineUnavailableError as cause:
            _log.info("searching with torch instead of FAISS: %s", cause)
        else:
            return "faiss"
    return "torch"


def _engine(
    engine: EngineName | CandidateEngine, queries: Tensor, max_memory: int
) -> CandidateEngine:
    if not isinstance(engine, str):
        return engine
    if chosen_engine(engine, queries=len(queries), device=queries.device) == "faiss":
        return FaissEngine()
    return TorchEngine(max_memory // 4)
