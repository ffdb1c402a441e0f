"""Tests of a window of ids: near-duplicates in time are siblings, and never one another's neighbours."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import EngineUnavailableError, NotEnoughReferenceError, OptionError
from raremix.neighbors import (
    ApproximateIndex,
    EngineName,
    IndexKind,
    Metric,
    NeighborIndex,
    Neighbors,
    TorchEngine,
    nearest,
)
from raremix.neighbors.index import most_siblings
from raremix.neighbors.proof import Search


def _runs(engine: EngineName) -> bool:
    try:
        nearest(torch.eye(3), torch.eye(3), 1, engine=engine)
    except EngineUnavailableError:
        return False
    return True


ENGINES: list[EngineName] = [name for name in get_args(EngineName) if _runs(name)]
METRICS: tuple[Metric, ...] = get_args(Metric)
TINY_MEMORY = 2**20
LEAST, MOST = -(2**63), 2**63 - 1


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def siblings(own: Tensor, ids: Tensor, window: int) -> Tensor:
    """(n, m) bool; the larger less the smaller id always fits into 64 bits without a sign."""
    one, other = own.numpy()[:, None], ids.numpy()
    larger, smaller = np.maximum(one, other), np.minimum(one, other)
    return torch.from_numpy(larger.view(np.uint64) - smaller.view(np.uint64) <= np.uint64(window))


def brute_force(
    queries: Tensor,
    bank: Tensor,
    k: int,
    own: Tensor,
    ids: Tensor,
    window: int,
    metric: Metric = "euclidean",
) -> Tensor:
    """The oracle: every difference, in float64."""
    queries, bank = queries.double(), bank.double()
    if metric == "cosine":
        queries, bank = (torch.nn.functional.normalize(rows) for rows in (queries, bank))
    # Differences, not a product.
    distances = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(siblings(own, ids, window), torch.inf)
    ascending: Tensor = distances.sort(dim=1).values
    return ascending[:, :k]


def assert_distances(found: Neighbors, expected: Tensor) -> None:
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=1e-7)


def drive(frames: int, regions: int, dim: int, clips: int = 1) -> tuple[Tensor, Tensor]:
    """Regions that change slowly from frame to frame, and ids of frames half a second apart."""
    tracks = normal(clips * regions, dim).view(clips, 1, regions, dim)
    rows = tracks + 0.05 * normal(clips * frames * regions, dim, 1).view(
        clips, frames, regions, dim
    )
    times = torch.arange(clips)[:, None] * 2**32 + 500 * torch.arange(frames)
    return rows.flatten(0, 2), times.flatten().repeat_interleave(regions)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The queries that were compared with the whole bank."""
    rows: list[int] = []
    whole = Search._compare_all

    def counting(search: Search, row: int) -> tuple[Tensor, Tensor]:
        rows.append(row)
        return whole(search, row)

    monkeypatch.setattr(Search, "_compare_all", counting)
    return rows


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", METRICS)
def test_rows_within_the_window_are_left_out(engine: EngineName, metric: Metric) -> None:
    rows, ids = drive(frames=20, regions=6, dim=9, clips=3)
    found = nearest(
        rows,
        rows,
        7,
        query_ids=ids,
        bank_ids=ids,
        id_window=2000,
        metric=metric,
        engine=engine,
    )
    assert_distances(found, brute_force(rows, rows, 7, ids, ids, 2000, metric))
    assert ((ids[found.indices] - ids[:, None]).abs() > 2000).all()
    without = nearest(rows, rows, 7, query_ids=ids, bank_ids=ids, metric=metric, engine=engine)
    assert (found.distances > without.distances).any()


@pytest.mark.parametrize("max_memory", [TINY_MEMORY, 2**29])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", METRICS)
def test_leave_one_out_leaves_out_the_window(
    engine: EngineName, max_memory: int, metric: Metric
) -> None:
    rows, ids = drive(frames=30, regions=10, dim=300, clips=3)
    index = NeighborIndex(
        rows, ids, id_window=1500, metric=metric, engine=engine, max_memory=max_memory
    )
    assert index._in_blocks() == (max_memory == TINY_MEMORY)
    assert_distances(index.leave_one_out(5), brute_force(rows, rows, 5, ids, ids, 1500, metric))


def test_the_end_of_the_window_belongs_to_it() -> None:
    rows, ids = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([10, 15, 16, 4])
    found = NeighborIndex(rows, ids, id_window=5).search(rows[:1], 2, query_ids=ids[:1])
    assert found.indices.tolist() == [[2, 3]]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_window_is_the_same_id_alone(engine: EngineName) -> None:
    rows, ids = drive(frames=20, regions=6, dim=9)
    plain = NeighborIndex(rows, ids, engine=engine)
    found = NeighborIndex(rows, ids, id_window=0, engine=engine)
    assert found.siblings == plain.siblings == 6
    assert torch.equal(found.leave_one_out(5).distances, plain.leave_one_out(5).distances)
    assert_distances(found.leave_one_out(5), brute_force(rows, rows, 5, ids, ids, 0))


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_random_ids_and_windows_agree_with_brute_force(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 60))
    dim, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    seed, engine = data.draw(st.integers(0, 99)), data.draw(st.sampled_from(ENGINES))
    near = data.draw(st.sampled_from([0, 7 * 2**32, 2**62, -(2**62), MOST - 20, LEAST + 20]))
    window = data.draw(
        st.one_of(st.integers(0, 15), st.sampled_from([2**62, 2**63 - 40, MOST - 1, MOST]))
    )
    numbers = st.one_of(
        st.integers(near - 20, near + 20), st.sampled_from([LEAST, -(2**62), 0, 2**62, MOST])
    )
    bank_ids = torch.tensor(data.draw(st.lists(numbers, min_size=m, max_size=m)))
    query_ids = torch.tensor(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    queries, bank = normal(n, dim, seed), normal(m, dim, seed + 1)
    expected = brute_force(queries, bank, k, query_ids, bank_ids, window)

    def found() -> Neighbors:
        return nearest(
            queries,
            bank,
            k,
            query_ids=query_ids,
            bank_ids=bank_ids,
            id_window=window,
            engine=engine,
        )

    if m < k or bool(torch.isinf(expected).any()):
        with pytest.raises(NotEnoughReferenceError):
            found()
        return
    assert_distances(found(), expected)


@given(
    ids=st.lists(
        st.one_of(st.integers(-30, 30), st.integers(LEAST, MOST)), min_size=1, max_size=40
    ),
    window=st.one_of(st.integers(0, 20), st.integers(0, MOST)),
)
@settings(deadline=None, max_examples=200)
def test_most_siblings_is_the_most_in_any_window(ids: list[int], window: int) -> None:
    # A window may lie anywhere; one that holds the most can be moved until it begins at an id.
    expected = max(sum(low <= other <= low + 2 * window for other in ids) for low in ids)
    assert most_siblings(torch.tensor(ids), window) == expected


@pytest.mark.parametrize("near", [2**62, -(2**62), MOST - 10, LEAST + 10])
@pytest.mark.parametrize("engine", ENGINES)
def test_ids_at_the_ends_of_int64_are_compared_without_overflow(
    near: int, engine: EngineName
) -> None:
    rows = normal(80, 6)
    far = torch.tensor([2**62, -(2**62), 0, MOST, LEAST])
    ids = torch.cat([near + torch.arange(80 - len(far)) % 10, far])
    found = NeighborIndex(rows, ids, id_window=3, engine=engine).leave_one_out(4)
    assert_distances(found, brute_force(rows, rows, 4, ids, ids, 3))


def test_a_window_as_wide_as_all_ids_leaves_nobody() -> None:
    ids = torch.tensor([-MOST, 0, MOST])
    assert NeighborIndex(normal(3, 2), ids, id_window=MOST).siblings == 3
    # Twice as far apart as the widest window reaches, the ends are no siblings of each other.
    assert NeighborIndex(normal(2, 2), ids[[0, 2]], id_window=MOST).leave_one_out(
        1
    ).indices.tolist() == [[1], [0]]
    with pytest.raises(
        NotEnoughReferenceError, match=f"by more than id_window={MOST}; add rows, or"
    ):
        NeighborIndex(normal(3, 2), ids, id_window=MOST).leave_one_out(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mapped_bank_and_one_in_pieces_leave_out_the_window(
    engine: EngineName, tmp_path: Path
) -> None:
    rows, ids = drive(frames=40, regions=20, dim=64, clips=5)
    np.save(tmp_path / "bank.npy", rows.numpy())
    expected = brute_force(rows[:50], rows, 6, ids[:50], ids, 1000)

    def pieces() -> Iterator[Tensor]:
        yield rows[:7]
        yield rows[7:3000]
        yield rows[3000:]

    for bank in (np.load(tmp_path / "bank.npy", mmap_mode="r"), pieces()):
        found = nearest(
            rows[:50],
            bank,
            6,
            query_ids=ids[:50],
            bank_ids=ids,
            id_window=1000,
            engine=engine,
            max_memory=TINY_MEMORY,
        )
        assert_distances(found, expected)


def test_a_block_that_is_all_siblings_adds_nothing() -> None:
    rows, ids = normal(90, 4), torch.arange(90)
    pieces = [rows[:10], rows[10:]]
    found = nearest(rows[:3], pieces, 5, query_ids=ids[:3], bank_ids=ids, id_window=20)
    assert_distances(found, brute_force(rows[:3], rows, 5, ids[:3], ids, 20))


@pytest.mark.parametrize("engine", ENGINES)
def test_more_siblings_near_by_than_candidates_are_passed_over(
    engine: EngineName, compared: list[int]
) -> None:
    # All 900 rows of a clip lie nearer to one another than to any other clip.
    ids = torch.arange(2700) % 900 + 2**32 * (torch.arange(2700) // 900)
    rows = 10 * normal(3, 16)[torch.arange(2700) // 900] + normal(2700, 16, 1)
    index = NeighborIndex(rows, ids, id_window=900, engine=engine)
    assert index.siblings == 900
    expected = brute_force(rows[::30], rows, 3, ids[::30], ids, 900)
    assert_distances(index.search(rows[::30], 3, query_ids=ids[::30]), expected)
    assert_distances(index.leave_one_out(3), brute_force(rows, rows, 3, ids, ids, 900))
    assert compared == []


def test_siblings_that_are_not_near_cost_no_candidates() -> None:
    asked: list[int] = []

    class Asked(TorchEngine):
        def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
            asked.append(count)
            return super().candidates(queries, bank, count)

    rows, ids = normal(3000, 32), torch.arange(3000)
    index = NeighborIndex(rows, ids, id_window=500, engine=Asked(2**24))
    assert index.siblings == 1001
    found = index.search(rows[:20], 4, query_ids=ids[:20])
    assert_distances(found, brute_force(rows[:20], rows, 4, ids[:20], ids, 500))
    assert max(asked) < 50


def test_the_comparison_with_the_whole_bank_leaves_out_the_window(compared: list[int]) -> None:
    # Rows a few roundings apart and far from the others, which no product can tell apart; some
    # eight in a row are the same.
    steps = torch.randint(0, 4, (2000, 4), generator=torch.Generator().manual_seed(0))
    steps = steps[(steps @ torch.tensor([64, 16, 4, 1])).argsort()]
    bank, ids = torch.cat([1000.0 + steps * 2.0**-14, torch.zeros(4000, 4)]), torch.arange(6000)
    found = nearest(bank[:4], bank, 30, query_ids=ids[:4], bank_ids=ids, id_window=3)
    assert compared
    expected = brute_force(bank[:4], bank, 30, ids[:4], ids, 3)
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=0)


def test_a_search_without_ids_of_the_queries_compares_with_all() -> None:
    rows, ids = normal(60, 5), torch.arange(60)
    found = NeighborIndex(rows, ids, id_window=10).search(rows, 3)
    assert torch.equal(found.distances, NeighborIndex(rows).search(rows, 3).distances)
    small = NeighborIndex(normal(2000, 200), torch.arange(2000), id_window=10, max_memory=2**20)
    assert small._in_blocks()
    assert (small.search(small.rows[:5], 1).distances == 0).all()


def test_a_query_of_another_magnitude_leaves_out_the_window_too() -> None:
    bank, queries, ids = normal(50, 4), normal(3, 4, 1) * 1e25, torch.arange(50)
    found = NeighborIndex(bank, ids, id_window=9).search(queries, 2, query_ids=ids[20:23])
    expected = brute_force(queries, bank, 2, ids[20:23], ids, 9)
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=0)


def test_an_index_follows_new_ids_with_its_window() -> None:
    rows, ids = normal(40, 3), 100 * torch.arange(40)
    index = NeighborIndex(rows, ids, id_window=100)
    assert index.siblings == 3
    rows, ids = torch.cat([rows, normal(5, 3, 1)]), torch.cat([ids, 700 + torch.arange(5)])
    index.replace(rows, [40, 41, 42, 43, 44], ids)
    assert index.siblings == 8  # 600 to 800
    assert_distances(index.leave_one_out(4), brute_force(rows, rows, 4, ids, ids, 100))


def test_a_window_that_leaves_too_few_names_it() -> None:
    with pytest.raises(
        NotEnoughReferenceError, match="differ from its own by more than id_window=4"
    ):
        NeighborIndex(normal(9, 2), torch.arange(9), id_window=4).leave_one_out(1)
    pieces = [normal(5, 2), normal(4, 2)]
    with pytest.raises(NotEnoughReferenceError, match="lower k or id_window"):
        nearest(
            normal(1, 2),
            pieces,
            1,
            query_ids=torch.tensor([4]),
            bank_ids=torch.arange(9),
            id_window=4,
        )


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (-1, "id_window as a whole number of at least 0, got -1"),
        (0.5, "id_window as a whole number of at least 0, got 0.5"),
        (2**63, r"id_window below 2\*\*63, as ids are, got 9223372036854775808"),
    ],
)
def test_a_window_that_no_ids_can_differ_by_is_refused(window: int, message: str) -> None:
    rows, ids = normal(9, 2), torch.arange(9)
    with pytest.raises(OptionError, match=f"NeighborIndex expects {message}"):
        NeighborIndex(rows, ids, id_window=window)
    with pytest.raises(OptionError, match=f"nearest expects {message}"):
        nearest(rows, rows, 1, query_ids=ids, bank_ids=ids, id_window=window)
    with pytest.raises(OptionError, match=f"ApproximateIndex expects {message}"):
        ApproximateIndex(rows, ids, id_window=window)


def test_a_window_without_ids_is_refused_and_says_to_pass_them() -> None:
    rows = normal(9, 2)
    message = "id_window=2 leaves out rows by their ids; pass one id per row, or no id_window"
    with pytest.raises(OptionError, match=f"NeighborIndex expects ids, since {message}"):
        NeighborIndex(rows, id_window=2)
    with pytest.raises(OptionError, match=f"ApproximateIndex expects ids, since {message}"):
        ApproximateIndex(rows, id_window=2)
    for bank in (rows, [rows]):
        with pytest.raises(
            OptionError, match=f"nearest expects query_ids and bank_ids, since {message}"
        ):
            nearest(rows, bank, 1, id_window=2)


@pytest.mark.parametrize("kind", get_args(IndexKind))
@pytest.mark.parametrize("metric", METRICS)
def test_an_approximate_index_leaves_out_the_window(kind: IndexKind, metric: Metric) -> None:
    rows, ids = drive(frames=40, regions=25, dim=16, clips=2)
    # A scene that one clip stays in for a while: all that is near it are siblings.
    rows[:100] += 8.0
    index = ApproximateIndex(rows, ids, id_window=7000, kind=kind, metric=metric)
    truth = brute_force(rows, rows, 8, ids, ids, 7000, metric)[:, -1]
    found = index.score(rows, 8, query_ids=ids, top=0.02, rescore=0.06)
    scores = found.scores.double()
    assert 0 < int(found.is_exact.sum()) < len(rows)
    # It asks for so many candidates that enough are left without the siblings.
    assert found.agreement.short == 0
    torch.testing.assert_close(scores[found.is_exact], truth[found.is_exact], rtol=1e-4, atol=1e-6)
    assert (scores >= truth * (1 - 1e-4)).all()
    if metric == "euclidean":
        assert set(scores.topk(20).indices.tolist()) <= set(range(100))
    # Without ids of the queries nothing is left out.
    assert (index.score(rows[:50], 1, rescore=1.0).scores < 1e-3).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", METRICS)
def test_a_gpu_leaves_out_the_window(metric: Metric) -> None:
    rows, ids = drive(frames=50, regions=20, dim=24, clips=3)
    ids = torch.cat([ids[:-2], torch.tensor([LEAST, MOST])])
    index = NeighborIndex(rows.cuda(), ids, id_window=3000, metric=metric)
    expected = NeighborIndex(rows, ids, id_window=3000, metric=metric).leave_one_out(9).distances
    found = index.leave_one_out(9)
    torch.testing.assert_close(found.distances.cpu(), expected, rtol=1e-5, atol=1e-6)
