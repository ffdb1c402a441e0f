"""Tests of the prepared index: leave-one-out, changes of the bank, and banks in blocks."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError, OptionError
from raremix.neighbors import EngineName, Metric, NeighborIndex, Neighbors, nearest
from raremix.neighbors.choice import chosen_engine

TINY_MEMORY = 2**20


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def brute_force(
    queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None, ids: Tensor | None = None
) -> Tensor:
    # Differences, not a product.
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(queries.double(), bank.double(), compute_mode=mode)
    if own is not None and ids is not None:
        distances[own[:, None] == ids] = torch.inf
    ascending: Tensor = distances.sort(dim=1).values[:, :k]
    return ascending


def assert_distances(found: Neighbors, expected: Tensor) -> None:
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("max_memory", [TINY_MEMORY, 2**29])
@pytest.mark.parametrize("engine", ["auto", "torch", "faiss", "half"])
def test_leave_one_out_equals_brute_force_without_the_row(
    engine: EngineName, max_memory: int
) -> None:
    bank = normal(900, 300)
    own = torch.arange(900)
    found = NeighborIndex(bank, engine=engine, max_memory=max_memory).leave_one_out(7)
    assert_distances(found, brute_force(bank, bank, 7, own, own))
    assert (found.indices != own[:, None]).all()


@pytest.mark.parametrize("max_memory", [TINY_MEMORY, 2**29])
def test_leave_one_out_leaves_out_siblings(max_memory: int) -> None:
    ids = torch.arange(900) // 4
    bank = normal(225, 300)[ids] + 0.01 * normal(900, 300, 1)
    found = NeighborIndex(bank, ids, max_memory=max_memory).leave_one_out(5)
    assert_distances(found, brute_force(bank, bank, 5, ids, ids))


def test_leave_one_out_of_duplicates_finds_the_twins() -> None:
    bank = normal(40, 6).repeat(3, 1)
    found = NeighborIndex(bank).leave_one_out(3)
    assert (found.distances[:, :2] == 0).all()
    assert (found.distances[:, 2] > 0).all()


def test_leave_one_out_of_too_few_rows_is_refused() -> None:
    with pytest.raises(NotEnoughReferenceError, match="k=3 neighbours"):
        NeighborIndex(normal(3, 2)).leave_one_out(3)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_a_bank_in_blocks_gives_the_same_neighbours(metric: Metric) -> None:
    bank, queries = normal(3000, 257), normal(50, 257, 1)
    ids = torch.arange(3000) // 2
    own = torch.arange(50)
    whole = NeighborIndex(bank, ids, metric=metric).search(queries, 9, query_ids=own)
    small = NeighborIndex(bank, ids, metric=metric, max_memory=TINY_MEMORY)
    assert small._in_blocks()
    found = small.search(queries, 9, query_ids=own)
    assert torch.equal(found.indices, whole.indices)
    torch.testing.assert_close(found.distances, whole.distances, rtol=1e-6, atol=0)


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_an_index_follows_a_bank_that_changes_grows_and_shrinks(
    metric: Metric, engine: EngineName
) -> None:
    queries = normal(20, 16, 5)
    bank = normal(400, 16)
    index = NeighborIndex(bank[:300], metric=metric, engine=engine)
    index.search(queries, 5)
    for size, places in [(300, [0, 7, 299]), (303, [300, 301, 302]), (280, [5]), (280, [])]:
        rows = torch.tensor(places, dtype=torch.int64)
        bank[rows] = normal(len(places), 16, seed=size)
        index.replace(bank[:size], rows)
        assert len(index) == size
        fresh = NeighborIndex(bank[:size].clone(), metric=metric).search(queries, 5)
        torch.testing.assert_close(index.search(queries, 5).distances, fresh.distances)


def test_an_index_takes_new_ids_with_the_changed_rows() -> None:
    bank, ids = normal(100, 8), torch.arange(100)
    index = NeighborIndex(bank, ids)
    ids = ids.clone()
    ids[10] = 3
    index.replace(bank, torch.tensor([10]), ids)
    found = index.search(bank[:5], 1, query_ids=torch.full((5,), 3))
    expected = brute_force(bank[:5], bank, 1, torch.full((5,), 3), ids)
    assert_distances(found, expected)


@pytest.mark.parametrize("places", [None, [10], torch.tensor([10])])
def test_an_index_keeps_its_ids_where_only_rows_change(places: list[int] | Tensor | None) -> None:
    bank, ids = normal(20, 3), torch.arange(20) // 2
    index = NeighborIndex(bank, ids)
    bank = bank.clone()
    bank[10] = bank[11] + 1e-4  # its sibling, which must not become its neighbour
    index.replace(bank, places)
    assert index.siblings == 2
    assert_distances(index.leave_one_out(1), brute_force(bank, bank, 1, ids, ids))


def test_new_rows_of_an_index_with_ids_need_ids() -> None:
    index = NeighborIndex(normal(20, 3), torch.arange(20))
    for places in (None, [20]):
        with pytest.raises(OptionError, match=r"replace expects ids, since .* the bank has 21 now"):
            index.replace(normal(21, 3), places)
    assert len(index) == 20


@pytest.mark.parametrize(
    ("places", "error", "message"),
    [
        ([500], OptionError, "expects places from 0 to 19, got 500 to 500"),
        (torch.tensor([3, -1]), OptionError, "expects places from 0 to 19, got -1 to 3"),
        ([0.5], EmbeddingShapeError, "expects places as whole numbers"),
    ],
)
def test_places_outside_the_bank_are_refused_and_the_index_stays(
    places: list[int], error: type[Exception], message: str
) -> None:
    bank, ids = normal(20, 3), torch.arange(20)
    index = NeighborIndex(bank, ids)
    with pytest.raises(error, match=rf"NeighborIndex\.replace {message}"):
        index.replace(normal(20, 3, seed=1), places, ids)
    assert torch.equal(index.rows, bank)


def test_siblings_are_counted_anew_though_the_ids_are_changed_in_place() -> None:
    bank, ids = normal(20, 3), torch.arange(20)
    index = NeighborIndex(bank, ids)
    for own, most in ((0, 1), (4, 2), (5, 2), (6, 2), (0, 1)):
        ids[0] = own
        index.replace(bank, [0], ids)
        assert index.siblings == most
        assert_distances(index.leave_one_out(3), brute_force(bank, bank, 3, ids, ids))


def test_ids_that_are_known_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, ids = normal(20, 3), torch.arange(20)
    index = NeighborIndex(bank, ids)
    index.replace(bank, [3], ids)
    counted: list[Tensor] = []
    monkeypatch.setattr("raremix.neighbors.index.most_siblings", counted.append)
    index.replace(bank, [3], ids.clone())
    assert not counted  # it takes milliseconds over a whole bank
    assert index.siblings == 1


def test_a_changed_row_with_nan_is_refused_and_the_index_stays() -> None:
    bank = normal(100, 8)
    index = NeighborIndex(bank)
    before = index.search(bank, 2).distances
    broken = bank.clone()
    broken[4] = torch.nan
    with pytest.raises(EmbeddingShapeError, match="NaN or infinity"):
        index.replace(broken, torch.tensor([4]))
    assert torch.equal(index.search(bank, 2).distances, before)


def test_a_query_of_another_magnitude_is_compared_in_float64() -> None:
    bank = normal(50, 4)
    queries = normal(3, 4, 1) * 1e25
    assert_distances(NeighborIndex(bank).search(queries, 2), brute_force(queries, bank, 2))


def test_a_query_with_ids_needs_an_index_with_ids() -> None:
    with pytest.raises(OptionError, match="together"):
        NeighborIndex(normal(9, 2)).search(normal(2, 2), 1, query_ids=torch.arange(2))


def test_a_prepared_index_searches_as_a_single_search_does() -> None:
    bank, queries = normal(2000, 64), normal(100, 64, 1)
    index = NeighborIndex(bank)
    first, second = index.search(queries, 10), index.search(queries, 10)
    single = nearest(queries, bank, 10)
    assert torch.equal(first.distances, second.distances)
    assert torch.equal(first.distances, single.distances)
    assert torch.equal(first.indices, single.indices)


def test_rows_far_closer_than_the_low_precision_can_tell_are_still_exact() -> None:
    # A collapsed encoder: all rows within a millionth of each other, far from zero.
    bank = 1.0 + 1e-6 * normal(2000, 32)
    for engine in ("auto", "half", "torch"):
        index = NeighborIndex(bank, engine=chosen_engine(engine, queries=2000))
        assert_distances(
            index.leave_one_out(5),
            brute_force(bank, bank, 5, torch.arange(2000), torch.arange(2000)),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["auto", "half", "torch"])
def test_an_index_on_a_gpu_finds_the_same_distances(engine: EngineName) -> None:
    bank, queries = normal(20_000, 384) + 3, normal(500, 384, 1) + 3
    index = NeighborIndex(bank.cuda(), engine=engine)
    found = index.search(queries.cuda(), 10)
    assert found.distances.is_cuda
    expected = nearest(queries, bank, 10).distances
    torch.testing.assert_close(found.distances.cpu(), expected, rtol=1e-5, atol=0)
    ours = index.leave_one_out(5).distances.cpu()
    torch.testing.assert_close(ours, NeighborIndex(bank).leave_one_out(5).distances)
