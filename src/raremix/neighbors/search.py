"""Exact nearest neighbours in one call, of arrays in memory or of rows that come in blocks.

Whatever engine proposes the candidates, the distances that come out are the same to the bit,
because they are all taken from the rows themselves and not from a matrix product.
"""

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError, OptionError
from raremix.inputs import ArrayLike, as_ids
from raremix.neighbors.blocks import RowSource, in_memory, row_blocks
from raremix.neighbors.engines import CandidateEngine, EngineName
from raremix.neighbors.index import (
    Metric,
    NeighborIndex,
    Neighbors,
    check_id_window,
    finished,
    search_blocks,
)
from raremix.options import check_choice, check_count

__all__ = ["nearest"]


def nearest(
    queries: RowSource,
    bank: RowSource,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    bank_ids: ArrayLike | None = None,
    id_window: int = 0,
    metric: Metric = "euclidean",
    engine: EngineName | CandidateEngine = "auto",
    max_memory: int = 2**29,
) -> Neighbors:
    """Find the k nearest rows of the bank for each query, exactly.

    An engine proposes k and a few more candidates by a matrix product over centred rows, in low
    precision where that is faster. Their distances are then measured again from the differences of
    the rows, and a bound on the product's error proves that no row left out is nearer; a query for
    which it cannot be proven is searched again, in float64 if need be, and at the last compared
    with the whole bank.

    Queries and bank may also be memory-mapped numpy arrays larger than memory, or iterables of
    arrays of shape (some, dim). They are then read block by block: the bank once for every block of
    queries, so that an iterable that can be read only once needs queries that lie in memory.

    Args:
        queries: Finite floats of shape (n, dim).
        bank: Finite floats of shape (m, dim), on the same device.
        k: How many neighbours, at least 1.
        query_ids: (n,) integers. A row of the bank with the id of the query is left out.
        bank_ids: (m,) integers; given together with ``query_ids``. Passing the same ids for the
            same rows as both makes the search leave-one-out (``NeighborIndex.leave_one_out`` is
            faster).
        id_window: Rows whose ids differ from the query's by at most so much are left out too, such
            as frames of a video some seconds apart, whose ids count milliseconds. It needs ids.
        metric: ``"euclidean"`` or ``"cosine"``; see ``NeighborIndex``.
        engine: ``"auto"``, ``"int16"``, ``"half"``, ``"torch"``, ``"faiss"``, or an engine of your
            own; see ``NeighborIndex``.
        max_memory: Bytes of working memory to aim for, beyond the inputs and the result.

    Returns:
        Distances and rows, nearest first. Neighbours at equal distance come in any order.

    Raises:
        EmbeddingShapeError: If shapes do not fit, or a row holds NaN or infinity.
        NotEnoughReferenceError: If a query has fewer than k rows that are not its own.
        EngineUnavailableError: If an engine was asked for by name and cannot run here.
        OptionError: If k, id_window, metric, engine or max_memory is out of range, or id_window
            comes without ids.

    Example:
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest(torch.tensor([[0.0, 0.0]]), bank, k=2).distances
        tensor([[0., 5.]])
        >>> rows = torch.arange(2)
        >>> nearest(bank, bank, k=1, query_ids=rows, bank_ids=rows).indices
        tensor([[1],
                [0]])
    """
    k = check_count("nearest", "k", k, least=1)
    check_choice("nearest", "metric", metric, get_args(Metric))
    max_memory = check_count("nearest", "max_memory", max_memory, least=2**20)
    if (query_ids is None) != (bank_ids is None):
        raise OptionError("nearest expects query_ids and bank_ids together, got only one of them.")
    id_window = check_id_window("nearest", id_window)
    if id_window and query_ids is None:
        raise OptionError(
            f"nearest expects query_ids and bank_ids, since id_window={id_window} leaves out rows by "
            "their ids; pass one id per row, or no id_window."
        )
    if in_memory(queries) and in_memory(bank):
        # The narrowing that in_memory does is beyond the type checker.
        index = NeighborIndex(
            bank,  # type: ignore[arg-type]
            bank_ids,
            id_window=id_window,
            metric=metric,
            engine=engine,
            max_memory=max_memory,
        )
        return index.search(queries, k, query_ids=query_ids)  # type: ignore[arg-type]

    own = None if query_ids is None else as_ids(query_ids, caller="nearest")
    known = None if bank_ids is None else as_ids(bank_ids, caller="nearest")
    parts: list[Neighbors] = []
    done = 0
    for shown in row_blocks(queries, max_memory // 4, caller="nearest"):
        if done and not in_memory(bank) and iter(bank) is bank:
            raise OptionError(
                "nearest got a bank that can be read only once, and queries that come in several "
                "blocks; pass the bank as an array or a list, or the queries in one array."
            )
        ids = None if own is None else own[done : done + len(shown)]
        if own is not None and len(own) < done + len(shown):
            raise _wrong_number("query_ids", len(own), done + len(shown), "or more queries")
        parts.append(
            _over_blocks(shown, bank, k, ids, known, id_window, metric, engine, max_memory)
        )
        done += len(shown)
    if own is not None and len(own) != done:
        raise _wrong_number("query_ids", len(own), done, "queries")
    return Neighbors(
        torch.cat([part.distances for part in parts]), torch.cat([part.indices for part in parts])
    )


def _over_blocks(
    queries: Tensor,
    bank: RowSource,
    k: int,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    id_window: int,
    metric: Metric,
    engine: EngineName | CandidateEngine,
    max_memory: int,
) -> Neighbors:
    done = 0

    def blocks() -> Iterator[NeighborIndex]:
        nonlocal done
        # The rows, and the prepared ones, half as large again; the rest is for candidates.
        for block in row_blocks(bank, max_memory // 4, caller="nearest", dim=queries.shape[1]):
            part = None
            if bank_ids is not None:
                part = bank_ids[done : done + len(block)]
                if len(part) < len(block):
                    raise _wrong_number(
                        "bank_ids", len(bank_ids), done + len(block), "or more rows"
                    )
            done += len(block)
            yield NeighborIndex(
                block,
                part,
                id_window=id_window,
                metric=metric,
                engine=engine,
                max_memory=max_memory,
            )

    squared, rows = search_blocks(blocks(), queries, k, query_ids)
    if bank_ids is not None and len(bank_ids) != done:
        raise _wrong_number("bank_ids", len(bank_ids), done, "rows")
    if squared.shape[1] < k:
        raise NotEnoughReferenceError(
            f"nearest was asked for k={k} neighbours in a bank of {done} rows; add rows or lower k."
        )
    return finished(squared, rows, k, done, id_window)


def _wrong_number(name: str, ids: int, rows: int, what: str) -> EmbeddingShapeError:
    return EmbeddingShapeError(f"nearest got {ids} {name} for {rows} {what}; pass one id per row.")
