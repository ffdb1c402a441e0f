"""Tests of the inverted index: it may be vague about the common, never about the rarest."""

from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError, OptionError
from raremix.neighbors import ApproximateIndex, IndexKind, Metric, nearest

KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
K = 12


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def long_tail(n: int, dim: int, classes: int = 40) -> Tensor:
    """Clusters whose sizes fall as 1 / rank, far from the origin, with a falling spectrum."""
    sizes = torch.arange(1, classes + 1).double().reciprocal()
    sizes = (sizes / sizes.sum() * n).ceil().long()
    spectrum = torch.arange(1, dim + 1).rsqrt()
    centres = normal(classes, dim, 1) * spectrum * 1.5 + 5.0
    rows = torch.repeat_interleave(centres, sizes, dim=0)[:n]
    rows = rows + normal(n, dim, 2) * spectrum
    return rows[torch.randperm(n, generator=torch.Generator().manual_seed(3))]


ROWS = long_tail(2000, 16)
OWN = torch.arange(len(ROWS))


def exact_scores(rows: Tensor, ids: Tensor, metric: Metric = "euclidean") -> Tensor:
    found = nearest(rows, rows, K, query_ids=ids, bank_ids=ids, metric=metric)
    return found.distances[:, -1]


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return exact_scores(ROWS, OWN)


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest) -> ApproximateIndex:
    return ApproximateIndex(ROWS, OWN, kind=request.param)


def test_the_rarest_are_the_exact_ones_where_it_says_so(
    index: ApproximateIndex, truth: Tensor
) -> None:
    found = index.score(ROWS, K, query_ids=OWN)
    assert found.agreement.proven == 1.0
    top = found.scores.topk(20).indices
    assert torch.equal(top, truth.topk(20).indices)
    assert torch.equal(found.scores[top], truth[top])


def test_a_score_is_never_too_small_and_exact_where_it_says_so(
    index: ApproximateIndex, truth: Tensor
) -> None:
    found = index.score(ROWS, K, query_ids=OWN)
    assert (found.scores >= truth * (1 - 1e-5)).all()
    assert torch.equal(found.scores[found.is_exact], truth[found.is_exact])
    assert 0.05 <= float(found.is_exact.float().mean()) < 0.16


@pytest.mark.parametrize("probes", [1, 3, 8])
def test_what_is_called_proven_is_in_the_true_top_list(probes: int, truth: Tensor) -> None:
    found = ApproximateIndex(ROWS, OWN, probes=probes).score(ROWS, K, query_ids=OWN, rescore=0.01)
    true_top = truth.topk(20).indices
    exact = torch.where(found.is_exact, found.scores, 0.0)
    shared = torch.isin(exact.topk(20).indices, true_top).float().mean()
    assert found.agreement.proven <= float(shared)


def test_the_recall_is_that_of_the_index(truth: Tensor) -> None:
    weak = ApproximateIndex(ROWS, OWN, probes=1).score(ROWS, K, query_ids=OWN).agreement
    good = ApproximateIndex(ROWS, OWN, probes=8).score(ROWS, K, query_ids=OWN).agreement
    low, high = good.recall_interval
    assert weak.recall < low <= good.recall <= high <= 1.0
    assert good.sampled == 200
    full = ApproximateIndex(ROWS, OWN, lists=20, probes=20).score(ROWS, K, query_ids=OWN)
    assert (full.agreement.recall, full.agreement.kept) == (1.0, 1.0)
    torch.testing.assert_close(full.scores, truth, rtol=1e-5, atol=0)


def test_with_everything_searched_again_every_score_is_exact(
    index: ApproximateIndex, truth: Tensor
) -> None:
    found = index.score(ROWS, K, query_ids=OWN, top=1.0, rescore=1.0)
    assert found.is_exact.all()
    assert torch.equal(found.scores, truth)


def test_a_query_with_too_short_a_list_is_searched_exactly_and_not_called_rare() -> None:
    # Two lists of 300 and of 4 rows: in the short one there are no 5 neighbours to be found.
    rows = torch.cat([normal(300, 4), normal(4, 4, 1) * 0.01 + 30.0])
    own = torch.arange(304)
    found = ApproximateIndex(rows, own, lists=2, probes=1).score(
        rows, 5, query_ids=own, rescore=0.01, top=0.01, sample=1
    )
    assert found.agreement.short == 4
    assert found.is_exact[300:].all()
    assert torch.isfinite(found.scores).all()
    expected = nearest(rows, rows, 5, query_ids=own, bank_ids=own).distances[300:, -1]
    assert torch.equal(found.scores[300:], expected)


def test_siblings_are_left_out() -> None:
    ids = OWN // 3
    found = ApproximateIndex(ROWS, ids).score(ROWS, K, query_ids=ids)
    truth = exact_scores(ROWS, ids)
    assert found.agreement.proven == 1.0
    assert torch.equal(found.scores.topk(20).indices, truth.topk(20).indices)
    assert (found.scores >= truth * (1 - 1e-5)).all()


def test_cosine_scores_are_those_of_unit_rows() -> None:
    found = ApproximateIndex(ROWS, OWN, metric="cosine").score(ROWS, K, query_ids=OWN)
    truth = exact_scores(ROWS, OWN, "cosine")
    assert found.agreement.proven == 1.0
    assert torch.equal(found.scores[found.is_exact], truth[found.is_exact])
    assert (found.scores >= truth * (1 - 1e-5)).all()


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_rows_of_any_scale_are_found(scale: float, truth: Tensor) -> None:
    rows = ROWS * scale
    found = ApproximateIndex(rows, OWN).score(rows, K, query_ids=OWN)
    assert found.agreement.proven == 1.0
    torch.testing.assert_close(found.scores.topk(20).values, truth.topk(20).values * scale)


def test_all_rows_alike_are_all_at_distance_zero() -> None:
    found = ApproximateIndex(torch.ones(300, 4), lists=3).score(torch.ones(20, 4), 5)
    assert (found.scores == 0).all()


def test_training_drops_no_row_of_a_bank_up_to_the_size_stated() -> None:
    index = ApproximateIndex(ROWS, lists=2, training_rows=len(ROWS))
    # FAISS's own sample is 256 rows a centre, 512 of these 2,000.
    assert index._index.cp.max_points_per_centroid * index.lists >= len(ROWS)


def test_of_a_larger_bank_a_sample_is_trained_on() -> None:
    index = ApproximateIndex(ROWS, OWN, training_rows=500, lists=30)
    found = index.score(ROWS, K, query_ids=OWN)
    assert index._index.ntotal == len(ROWS)
    assert found.agreement.proven == 1.0


def test_small_memory_and_a_mapped_file_change_nothing(
    index: ApproximateIndex, tmp_path: Path
) -> None:
    np.save(tmp_path / "bank.npy", ROWS.numpy())
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    whole = index.score(ROWS, K, query_ids=OWN)
    parts = ApproximateIndex(mapped, OWN.numpy(), kind=index.kind, max_memory=2**20).score(
        mapped, K, query_ids=OWN.numpy()
    )
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=0)
    assert torch.equal(parts.scores.topk(20).indices, whole.scores.topk(20).indices)


def test_equal_inputs_give_equal_results_and_another_seed_another_sample(
    index: ApproximateIndex,
) -> None:
    first = index.score(ROWS, K, query_ids=OWN)
    second, other = (
        ApproximateIndex(ROWS, OWN, kind=index.kind, seed=seed).score(ROWS, K, query_ids=OWN)
        for seed in (0, 1)
    )
    assert torch.equal(first.scores, second.scores)
    assert first.agreement == second.agreement
    assert not torch.equal(first.is_exact, other.is_exact)


@given(
    n=st.integers(1, 40),
    m=st.integers(2, 60),
    k=st.integers(1, 4),
    grid=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15)
def test_scores_are_never_too_small_for_random_shapes(
    n: int, m: int, k: int, grid: bool, seed: int
) -> None:
    k = min(k, m)
    rows = normal(n + m, 3, seed) * 2
    rows = rows.round() if grid else rows
    found = ApproximateIndex(rows[n:], seed=seed).score(rows[:n], k, top=0.2, rescore=0.3)
    truth = nearest(rows[:n], rows[n:], k).distances[:, -1]
    assert (found.scores >= truth * (1 - 1e-5) - 1e-6).all()
    assert torch.equal(found.scores[found.is_exact], truth[found.is_exact])
    assert 0.0 <= found.agreement.kept <= 1.0
    assert 0.0 <= found.agreement.proven <= 1.0


def test_queries_of_another_width_are_named_as_they_were_given() -> None:
    with pytest.raises(EmbeddingShapeError, match=r"of shape \(batch, 4\), got \(5, 3\)"):
        ApproximateIndex(normal(300, 4)).score(normal(5, 3), 3)


def test_inputs_are_not_changed() -> None:
    rows = ROWS[:600].clone()
    ApproximateIndex(rows, kind="ivfpq").score(rows, 3)
    assert torch.equal(rows, ROWS[:600])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hnsw"}, "expects kind 'ivf' or 'ivfpq', got 'hnsw'"),
        ({"metric": "manhattan"}, "expects metric 'euclidean' or 'cosine'"),
        ({"lists": 0}, "expects lists as a whole number of at least 1, got 0"),
        ({"lists": 301}, "at most as many lists as rows to make them from, got lists=301"),
        ({"probes": 0}, "expects probes"),
        ({"probes": 18}, "at most as many probes as lists, got probes=18 for lists=17"),
        ({"kind": "ivfpq", "codes": 3}, "expects codes to divide the width 4, got 3"),
        ({"kind": "ivfpq", "training_rows": 200}, "at least 256 rows to make its codes from"),
        ({"codes": 2}, 'of kind "ivf" keeps whole rows and no codes, got codes=2'),
        ({"seed": -1}, "expects seed"),
        ({"max_memory": 10}, "expects max_memory"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"ApproximateIndex .*{message}"):
        ApproximateIndex(normal(300, 4), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "expects k as a whole number of at least 1, got 0"),
        ({"top": 0.0}, r"expects top as a number in \(0, 1\], got 0"),
        ({"top": 0.2, "rescore": 0.1}, r"expects rescore as a number in \[0.2, 1\], got 0.1"),
        ({"sample": 0}, "expects sample"),
        ({"query_ids": range(5)}, "the index was made without ids"),
    ],
)
def test_an_option_of_a_search_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    index = ApproximateIndex(normal(300, 4))
    with pytest.raises(OptionError, match=f"ApproximateIndex.score .*{message}"):
        index.score(normal(5, 4), **{"k": 2, **options})


def test_broken_rows_and_wrong_shapes_are_refused() -> None:
    rows = normal(300, 4)
    broken = rows.clone()
    broken[7, 2] = torch.nan
    with pytest.raises(EmbeddingShapeError, match="ApproximateIndex expects finite rows"):
        ApproximateIndex(broken)
    index = ApproximateIndex(rows)
    with pytest.raises(EmbeddingShapeError, match="ApproximateIndex expects finite rows"):
        index.score(broken, 3)
    with pytest.raises(EmbeddingShapeError, match=r"ApproximateIndex.score .*\(batch, 4\)"):
        index.score(rows[:, :3], 3)
    with pytest.raises(EmbeddingShapeError, match="2 ids for 300 rows"):
        ApproximateIndex(rows, [1, 2])


def test_a_bank_too_small_for_k_is_refused() -> None:
    rows = normal(20, 4)
    index = ApproximateIndex(rows, range(20))
    with pytest.raises(NotEnoughReferenceError, match="k=21 neighbours in a bank of 20 rows"):
        index.score(rows, 21)
    with pytest.raises(NotEnoughReferenceError):
        index.score(rows, 20, query_ids=range(20))


def test_training_prints_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    faiss.IndexFlatL2(2)  # whatever importing prints, it has printed
    capfd.readouterr()
    for kind in KINDS:
        ApproximateIndex(normal(300, 4), kind=kind)
    assert capfd.readouterr() == ("", "")


def test_repr_says_what_it_is() -> None:
    assert repr(ApproximateIndex(normal(300, 4))) == (
        "ApproximateIndex(300 rows of 4, kind='ivf', lists=17, probes=8, metric='euclidean')"
    )
