"""Rows that come in blocks: arrays in memory, memory-mapped files, iterators.

It reads and converts; it compares nothing.
"""

import mmap
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError
from raremix.inputs import ArrayLike, as_embeddings, check_embeddings

__all__ = ["RowSource", "in_memory", "row_blocks"]

RowSource: TypeAlias = ArrayLike | Iterable[ArrayLike]
"""Rows as an array, perhaps memory-mapped, or as an iterable of arrays of (some, dim)."""


def in_memory(source: RowSource) -> bool:
    """Whether the rows are one array that lies in memory already."""
    if isinstance(source, np.ndarray):
        return _mapping(source) is None
    return isinstance(source, Tensor)


def row_blocks(
    source: RowSource, block_bytes: int, *, caller: str, dim: int | None = None
) -> Iterator[Tensor]:
    """Yield float32 rows, so many at a time that a block takes about ``block_bytes``.

    Pages of a memory-mapped file are given back once they are read, so that a file larger than
    memory passes through without filling it.

    Args:
        source: The rows.
        block_bytes: Bytes a block may take as float32; a block has at least one row.
        caller: The call to name in an error.
        dim: The width expected, if it is known already.

    Raises:
        EmbeddingShapeError: If the source or one of its arrays is not (some, dim).
    """
    if not isinstance(source, np.ndarray | Tensor):
        if isinstance(source, str | bytes) or not isinstance(source, Iterable):
            raise EmbeddingShapeError(
                f"{caller} expects rows as an array, a memory-mapped array or an iterable of "
                f"arrays, got {type(source).__name__}."
            )
        is_empty = True
        for piece in source:
            for block in row_blocks(piece, block_bytes, caller=caller, dim=dim):
                dim, is_empty = block.shape[1], False
                yield block
        if is_empty:
            raise EmbeddingShapeError(
                f"{caller} got an iterable that yields no rows; an iterator that was read once "
                "before is at its end, so pass a list or a new one."
            )
        return
    check_embeddings(source, caller=caller, dim=dim)
    step = max(block_bytes // (4 * source.shape[1]), 1)
    mapping = _mapping(source) if isinstance(source, np.ndarray) else None
    for start in range(0, len(source), step):
        piece = source[start : start + step]
        if isinstance(piece, np.ndarray) and mapping is not None and _can_alias(piece):
            yield as_embeddings(_alias(piece), caller=caller, dim=dim)
        else:
            yield as_embeddings(piece, caller=caller, dim=dim)
        if mapping is not None:
            # A block that is still in use would be read from the file once more.
            mapping.madvise(mmap.MADV_DONTNEED)


def _can_alias(array: "np.ndarray[Any, np.dtype[Any]]") -> bool:
    return array.dtype == np.float32 and array.flags.c_contiguous


def _alias(array: "np.ndarray[Any, np.dtype[Any]]") -> Tensor:
    """A tensor over the pages of a file, which nobody writes to."""
    with warnings.catch_warnings():
        # torch knows no read-only tensors and says so once.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def _mapping(array: "np.ndarray[Any, np.dtype[Any]]") -> mmap.mmap | None:
    """The file mapping behind an array, if its pages can be given back without losing changes."""
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and getattr(base, "mode", None) == "c":
            return None  # changes of a private mapping exist nowhere else
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        return base
    return None
