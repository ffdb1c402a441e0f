"""Tests of the search itself against float64 brute force, on data that breaks careless searches."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import (
    EmbeddingShapeError,
    EngineUnavailableError,
    NotEnoughReferenceError,
    OptionError,
)
from raremix.neighbors import EngineName, Metric, Neighbors, choice, nearest
from raremix.neighbors.choice import chosen_engine


def _runs(engine: EngineName) -> bool:
    try:
        nearest(torch.eye(3), torch.eye(3), 1, engine=engine)
    except EngineUnavailableError:
        return False
    return True


ENGINES: list[EngineName] = [name for name in get_args(EngineName) if _runs(name)]
TINY_MEMORY = 2**20


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def true_distances(queries: Tensor, bank: Tensor, k: int, metric: Metric = "euclidean") -> Tensor:
    """The oracle: every difference, in float64."""
    if metric == "cosine":
        queries, bank = (F.normalize(rows.double(), eps=1e-300) for rows in (queries, bank))
    differences = queries.double()[:, None] - bank.double()
    ascending: Tensor = torch.linalg.vector_norm(differences, dim=2).sort(dim=1).values
    return ascending[:, :k]


def assert_exact(found: Neighbors, expected: Tensor) -> None:
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=0.0)


def _duplicated() -> Tensor:
    return normal(100, 16).repeat(3, 1)


def _with_zeros() -> Tensor:
    rows = normal(300, 16)
    rows[::7] = 0.0
    return rows


def _with_outlier() -> Tensor:
    rows = normal(300, 16)
    rows[7] *= 1e6
    return rows


AWKWARD = {
    "ordinary": normal(300, 16),
    "far from the origin": normal(300, 16) + 100.0,
    "very far and narrow": normal(300, 16) * 0.01 + 100.0,
    "tiny": normal(300, 16) * 1e-20,
    "subnormal": normal(300, 16) * 1e-39,
    "huge": normal(300, 16) * 1e18,
    "at the end of float32": normal(300, 16) * 1e37,
    "duplicates": _duplicated(),
    "zero rows": _with_zeros(),
    "one outlier": _with_outlier(),
    "integers with ties": normal(300, 16).round(),
    "all alike": torch.ones(300, 16),
    "one column": normal(300, 1),
    "wide": normal(300, 700),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", AWKWARD)
def test_distances_equal_float64_brute_force(name: str, engine: EngineName) -> None:
    bank = AWKWARD[name]
    queries = torch.cat([bank[:20], bank[:20] * 1.01])
    found = nearest(queries, bank, 5, engine=engine)
    # Below float32's smallest normal number no relative exactness can be had.
    expected = true_distances(queries, bank, 5)
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=1e-42)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["ordinary", "far from the origin", "tiny", "huge", "zero rows"])
def test_cosine_distances_equal_float64_brute_force(name: str, engine: EngineName) -> None:
    bank = AWKWARD[name]
    found = nearest(bank[:40] * 3, bank[60:], 5, metric="cosine", engine=engine)
    expected = true_distances(bank[:40], bank[60:], 5, "cosine")
    # Scaling to unit length rounds each entry, so only what is left of it is exact.
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", AWKWARD)
def test_all_engines_give_the_same_distances_to_the_bit(name: str) -> None:
    queries, bank = AWKWARD[name][:50], AWKWARD[name]
    first, *others = (nearest(queries, bank, 7, engine=engine) for engine in ENGINES)
    for other in others:
        assert torch.equal(first.distances, other.distances)


@pytest.mark.parametrize("engine", ENGINES)
def test_indices_name_rows_at_the_distances_given(engine: EngineName) -> None:
    queries, bank = normal(30, 8, seed=1), normal(200, 8)
    found = nearest(queries, bank, 4, engine=engine)
    gathered = (bank[found.indices] - queries[:, None]).norm(dim=2)
    torch.testing.assert_close(gathered, found.distances)
    assert all(len(set(row)) == 4 for row in found.indices.tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_k_may_be_all_but_the_row_itself(engine: EngineName) -> None:
    rows, own = normal(60, 8), torch.arange(60)
    found = nearest(rows, rows, 59, query_ids=own, bank_ids=own, engine=engine)
    assert_exact(found, true_distances(rows, rows, 60)[:, 1:])


@pytest.mark.parametrize("engine", ENGINES)
def test_tiles_smaller_than_the_data_change_nothing(engine: EngineName) -> None:
    queries, bank = normal(530, 12, seed=1), normal(3000, 12)
    tiled = nearest(queries, bank, 9, engine=engine, max_memory=TINY_MEMORY)
    whole = nearest(queries, bank, 9, engine=engine, max_memory=2**31)
    assert torch.equal(tiled.distances, whole.distances)
    assert_exact(tiled, true_distances(queries, bank, 9))


def test_more_candidates_than_a_tile_holds_are_found_across_tiles() -> None:
    queries, bank = normal(64, 4, seed=1), normal(3000, 4)
    found = nearest(queries, bank, 2500, engine="torch", max_memory=TINY_MEMORY)
    assert_exact(found, true_distances(queries, bank, 2500))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", get_args(Metric))
def test_rows_with_the_id_of_the_query_are_left_out(engine: EngineName, metric: Metric) -> None:
    rows = normal(90, 6)
    ids = torch.arange(90) // 3  # three sibling crops to an image
    found = nearest(rows, rows, 5, query_ids=ids, bank_ids=ids, metric=metric, engine=engine)
    for row in range(90):
        others = rows[ids != ids[row]]
        expected = true_distances(rows[row : row + 1], others, 5, metric)
        torch.testing.assert_close(
            found.distances[row : row + 1].double(), expected, rtol=1e-5, atol=1e-7
        )
    assert (ids[found.indices] != ids[:, None]).all()


def test_a_twin_under_another_id_stays_a_neighbour_at_distance_zero() -> None:
    rows, own = normal(40, 6).repeat(2, 1), torch.arange(80)
    found = nearest(rows, rows, 1, query_ids=own, bank_ids=own)
    assert (found.distances == 0).all()
    assert torch.equal(found.indices[:, 0], (own + 40) % 80)


def test_ids_that_the_bank_does_not_hold_leave_nothing_out() -> None:
    queries, bank = normal(10, 6, seed=1), normal(50, 6)
    found = nearest(queries, bank, 3, query_ids=torch.arange(-10, 0), bank_ids=torch.arange(50))
    assert torch.equal(found.distances, nearest(queries, bank, 3).distances)


def test_a_huge_row_in_the_batch_does_not_change_the_others() -> None:
    queries, bank = normal(5, 6, seed=1), normal(50, 6)
    together = nearest(torch.cat([queries, torch.full((1, 6), 1e35)]), bank, 3)
    torch.testing.assert_close(together.distances[:5], nearest(queries, bank, 3).distances)


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_does_not_reach_the_search(engine: EngineName) -> None:
    # Neighbours one thousandth apart: a bfloat16 product cannot tell them from one another.
    bank = torch.cat([normal(4000, 32) * 1e-3 + 1.0, torch.zeros(4000, 32)])
    plain = nearest(bank[:50], bank, 3, engine=engine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nearest(bank[:50], bank, 3, engine=engine)
    assert inside.distances.dtype == torch.float32
    assert torch.equal(inside.distances, plain.distances)


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_random_shapes_ids_and_scales_agree_with_brute_force(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 60))
    dim, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    seed, engine = data.draw(st.integers(0, 99)), data.draw(st.sampled_from(ENGINES))
    offset = data.draw(st.sampled_from([0.0, 3.0, 100.0]))
    grid = data.draw(st.booleans())
    rows = normal(n + m, dim, seed) * 2
    rows = (rows.round() if grid else rows) + offset
    queries, bank = rows[:n], rows[n:]
    bank_ids = torch.randint(0, 8, (m,), generator=torch.Generator().manual_seed(seed))
    query_ids = torch.randint(0, 8, (n,), generator=torch.Generator().manual_seed(seed + 1))
    enough = all(int((bank_ids != own).sum()) >= k for own in query_ids)
    if not enough or m < k:
        with pytest.raises(NotEnoughReferenceError):
            nearest(queries, bank, k, query_ids=query_ids, bank_ids=bank_ids, engine=engine)
        return
    found = nearest(queries, bank, k, query_ids=query_ids, bank_ids=bank_ids, engine=engine)
    for row in range(n):
        others = bank[bank_ids != query_ids[row]]
        expected = true_distances(queries[row : row + 1], others, k)
        torch.testing.assert_close(
            found.distances[row : row + 1].double(), expected, rtol=1e-5, atol=1e-12
        )


@given(seed=st.integers(0, 99), cut=st.integers(1, 19), engine=st.sampled_from(ENGINES))
@settings(deadline=None, max_examples=20)
def test_shuffling_and_splitting_the_queries_changes_no_distance(
    seed: int, cut: int, engine: EngineName
) -> None:
    queries, bank = normal(20, 33, seed), normal(80, 33, seed + 1)
    whole = nearest(queries, bank, 3, engine=engine).distances
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(nearest(queries[order], bank, 3, engine=engine).distances, whole[order])
    parts = [nearest(part, bank, 3, engine=engine) for part in (queries[:cut], queries[cut:])]
    assert torch.equal(torch.cat([part.distances for part in parts]), whole)


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50, width=32))
@settings(deadline=None, max_examples=20)
def test_moving_everything_moves_no_distance(seed: int, shift: float) -> None:
    queries, bank = normal(8, 5, seed), normal(40, 5, seed + 1)
    moved = nearest(queries + shift, bank + shift, 2).distances
    torch.testing.assert_close(moved, nearest(queries, bank, 2).distances, rtol=1e-4, atol=1e-5)


def test_numpy_and_half_precision_are_taken() -> None:
    rows = normal(50, 6).half()
    from_numpy = nearest(rows[:5].numpy(), rows.double().numpy(), 2)
    assert torch.equal(from_numpy.distances, nearest(rows[:5], rows, 2).distances)


def test_inputs_are_not_changed() -> None:
    rows = normal(50, 6) + 10
    before = rows.clone()
    nearest(rows[:5], rows, 2, metric="cosine")
    nearest(rows[:5], rows, 2)
    assert torch.equal(rows, before)


def test_equal_inputs_give_equal_results_without_gradient() -> None:
    rows = normal(50, 6).requires_grad_()
    first, second = nearest(rows, rows, 2), nearest(rows, rows, 2)
    assert torch.equal(first.distances, second.distances)
    assert not first.distances.requires_grad
    assert (first.distances.dtype, first.indices.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k as a whole number of at least 1, got 0"),
        ({"metric": "manhattan"}, "'euclidean' or 'cosine', got 'manhattan'"),
        ({"engine": "annoy"}, "'torch' or 'faiss', got 'annoy'"),
        ({"max_memory": 1000}, "at least 1048576, got 1000"),
        ({"query_ids": torch.arange(4)}, "query_ids and bank_ids together"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"k": 1, **options}
    with pytest.raises(OptionError, match=message):
        nearest(normal(4, 3), normal(9, 3), **arguments)  # type: ignore[arg-type]  # on purpose


def test_a_bank_smaller_than_k_is_refused() -> None:
    with pytest.raises(NotEnoughReferenceError, match="k=5 neighbours in a bank of 4 rows"):
        nearest(normal(2, 3), normal(4, 3), 5)


def test_a_query_whose_siblings_fill_the_bank_is_refused() -> None:
    ids = torch.tensor([0, 0, 0, 1])
    with pytest.raises(NotEnoughReferenceError, match="do not carry its own id"):
        nearest(normal(4, 3), normal(4, 3), 2, query_ids=ids, bank_ids=ids)


def test_widths_that_differ_name_both() -> None:
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 3\), got \(2, 4\)"):
        nearest(normal(2, 4), normal(9, 3), 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["queries", "bank"])
def test_rows_that_are_not_finite_are_refused(bad: float, where: str) -> None:
    rows = {"queries": normal(2, 3), "bank": normal(9, 3)}
    rows[where][1, 1] = bad
    with pytest.raises(EmbeddingShapeError, match="expects finite rows"):
        nearest(rows["queries"], rows["bank"], 1)


@pytest.mark.parametrize("ids", [torch.arange(3), torch.arange(8).reshape(4, 2)])
def test_ids_that_do_not_match_the_rows_are_refused(ids: Tensor) -> None:
    with pytest.raises(EmbeddingShapeError, match="ids"):
        nearest(normal(4, 3), normal(9, 3), 1, query_ids=ids, bank_ids=torch.arange(9))


def test_real_embeddings_agree_with_brute_force(shared_data: object) -> None:
    with np.load(f"{shared_data}/cifar10_lt_ssl_embeddings.npz", allow_pickle=False) as file:
        rows = torch.from_numpy(file["embedding"][:3000]).float()
    own = torch.arange(3000)
    found = nearest(rows[:300], rows, 10, query_ids=own[:300], bank_ids=own)
    expected = torch.cdist(rows[:300].double(), rows.double()).sort(dim=1).values[:, 1:11]
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_finds_the_same_distances_where_the_rows_are(metric: Metric, tf32: bool) -> None:
    queries, bank = normal(700, 24, seed=1) + 5, normal(4000, 24) + 5
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        found = nearest(queries.cuda(), bank.cuda(), 9, metric=metric)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found.distances.is_cuda
    assert found.indices.is_cuda
    expected = nearest(queries, bank, 9, metric=metric).distances
    torch.testing.assert_close(found.distances.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("best", ["int16", "half"])
def test_the_fastest_product_is_chosen_whatever_the_size(
    best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_best_product", lambda: best)
    assert chosen_engine("auto", queries=10) == best
    assert chosen_engine("auto", queries=100_000) == best
    assert chosen_engine("torch", queries=100_000) == "torch"
    assert chosen_engine("auto", queries=10, device="cuda") == "half"
    assert chosen_engine("auto", queries=10, device="mps") == "torch"


def test_without_a_fast_product_faiss_is_chosen_for_many_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "_best_product", lambda: "torch")
    assert chosen_engine("auto", queries=10) == "torch"
    assert chosen_engine("auto", queries=100_000) == "faiss"


def test_the_trial_of_products_names_one_that_runs_here() -> None:
    assert _runs(choice._best_product())
