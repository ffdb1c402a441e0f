"""Tests of rows that come in blocks: memory-mapped files, iterators, and what is refused."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError, OptionError
from raremix.neighbors import nearest
from raremix.neighbors.blocks import in_memory, row_blocks

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def bank() -> Array:
    return np.random.default_rng(0).standard_normal((5000, 64), dtype=np.float32)


@pytest.fixture
def queries() -> Array:
    return np.random.default_rng(1).standard_normal((300, 64), dtype=np.float32)


def mapped(rows: Array, folder: Path, name: str = "rows.npy") -> Array:
    np.save(folder / name, rows)
    opened: Array = np.load(folder / name, mmap_mode="r")
    return opened


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_mapped_bank_gives_the_neighbours_of_one_in_memory(
    bank: Array, queries: Array, tmp_path: Path, dtype: str
) -> None:
    bank = bank.astype(dtype)
    expected = nearest(queries, bank, 7)
    found = nearest(queries, mapped(bank, tmp_path), 7, max_memory=2**20)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.distances, expected.distances)


def test_mapped_queries_are_read_in_blocks_too(bank: Array, queries: Array, tmp_path: Path) -> None:
    expected = nearest(bank, queries, 4)
    found = nearest(mapped(bank, tmp_path), mapped(queries, tmp_path, "q.npy"), 4, max_memory=2**20)
    assert torch.equal(found.indices, expected.indices)


def test_ids_follow_the_blocks(bank: Array, tmp_path: Path) -> None:
    ids = np.arange(len(bank)) // 3
    expected = nearest(bank[:40], bank, 5, query_ids=ids[:40], bank_ids=ids)
    found = nearest(
        bank[:40],
        mapped(bank, tmp_path),
        5,
        query_ids=ids[:40],
        bank_ids=ids,
        max_memory=2**20,
    )
    assert torch.equal(found.indices, expected.indices)


def test_iterators_of_arrays_and_tensors_are_searched(bank: Array, queries: Array) -> None:
    def blocks() -> Iterator[Array | torch.Tensor]:
        yield bank[:10]
        yield torch.from_numpy(bank[10:4000])
        yield bank[4000:]

    expected = nearest(queries, bank, 6)
    assert torch.equal(nearest(queries, blocks(), 6).indices, expected.indices)
    halves = [queries[:100], queries[100:]]
    assert torch.equal(nearest(halves, list(blocks()), 6).indices, expected.indices)


def test_a_bank_that_can_be_read_once_needs_queries_in_one_block(
    bank: Array, queries: Array
) -> None:
    with pytest.raises(OptionError, match="can be read only once"):
        nearest([queries[:100], queries[100:]], iter([bank]), 3)


def test_too_few_rows_in_all_blocks_together_are_named(queries: Array) -> None:
    with pytest.raises(NotEnoughReferenceError, match="k=9 neighbours in a bank of 4 rows"):
        nearest(queries, [queries[:2], queries[2:4]], 9)


def test_the_wrong_number_of_ids_is_named(bank: Array, queries: Array) -> None:
    with pytest.raises(EmbeddingShapeError, match="got 9 bank_ids for 300 or more rows"):
        nearest(queries, [queries], 3, query_ids=np.arange(300), bank_ids=np.arange(9))
    with pytest.raises(EmbeddingShapeError, match="9 query_ids for 300 or more queries"):
        nearest([queries], bank, 3, query_ids=np.arange(9), bank_ids=np.arange(5000))


def test_blocks_of_another_width_are_refused(bank: Array, queries: Array) -> None:
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 64\), got \(5000, 63\)"):
        nearest(queries, [bank, bank[:, 1:]], 3)


def test_what_holds_no_rows_is_refused() -> None:
    with pytest.raises(EmbeddingShapeError, match="iterable of arrays, got str"):
        list(row_blocks("rows.npy", 1000, caller="a test"))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(EmbeddingShapeError, match="iterable of arrays, got int"):
        list(row_blocks(3, 1000, caller="a test"))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(EmbeddingShapeError, match=r"got \(5,\)"):
        list(row_blocks(np.zeros(5), 1000, caller="a test"))


def test_an_iterator_at_its_end_is_named(queries: Array) -> None:
    message = "iterable that yields no rows; an iterator"
    with pytest.raises(EmbeddingShapeError, match=message):
        nearest(queries, iter([]), k=1)
    with pytest.raises(EmbeddingShapeError, match=message):
        nearest([], queries, k=1)


def test_changes_of_a_private_mapping_are_kept(bank: Array, tmp_path: Path) -> None:
    mapped(bank, tmp_path)
    private: Array = np.load(tmp_path / "rows.npy", mmap_mode="c")
    private[:] = 7.0
    assert in_memory(private)  # its pages must not be given back
    list(row_blocks(private, 1000, caller="a test"))
    assert (private == 7.0).all()


MEASURE = """
    import resource, sys
    import numpy as np, torch
    from raremix.neighbors import nearest
    bank = np.load(sys.argv[1], mmap_mode="r")
    queries = np.random.default_rng(1).standard_normal((64, 256), dtype=np.float32)
    nearest(queries, queries, 5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest(queries, bank, 5, max_memory=2**25)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_file_passes_through_within_the_memory_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((1, 1), dtype=np.float32))
    rows = np.lib.format.open_memmap(
        tmp_path / "rows.npy", mode="w+", dtype=np.float32, shape=(150_000, 256)
    )
    for start in range(0, len(rows), 50_000):
        part = np.random.default_rng(start).standard_normal((50_000, 256), dtype=np.float32)
        rows[start : start + 50_000] = part
    del rows
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    # The file has 146 MiB; 32 MiB were asked for, and kilobytes are printed.
    assert int(done.stdout) < 64 * 1024
