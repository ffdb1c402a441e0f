"""What every scorer must do. A new scorer is one more line in the list."""

from collections.abc import Callable

import pytest
import torch
from feedback import through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection import (
    ClusterMass,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    TwoScaleDistance,
)
from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError, StateMismatchError
from raremix.protocols import Scorer

Maker = Callable[[], Scorer]

SCORERS: dict[str, Maker] = {
    "fused": lambda: FusedDistance(),
    "fused, small bank": lambda: FusedDistance(capacity=64, engine="torch"),
    "knn": lambda: KNNDistance(k=3),
    "knn, nearest": lambda: KNNDistance(k=1, engine="torch"),
    "knn, share": lambda: KNNDistance(k=0.1),
    "knn, cosine": lambda: KNNDistance(k=4, metric="cosine", engine="faiss"),
    "knn, small bank": lambda: KNNDistance(k=3, capacity=20),
    "knn, mean": lambda: KNNDistance(k=5, reduce="mean"),
    "two scales": lambda: TwoScaleDistance(k=6, near=2),
    "two scales, share": lambda: TwoScaleDistance(k=0.1, metric="cosine"),
    "noise gate": lambda: NoiseGate(KNNDistance(k=3), most=1e9),
    "noise gate, cosine": lambda: NoiseGate(TwoScaleDistance(k=6), metric="cosine", most=1e9),
    "cluster mass": lambda: ClusterMass(clusters=4, normalize=True),
    "cluster mass, lengths": lambda: ClusterMass(clusters=2, repeats=2),
    "mahalanobis": lambda: Mahalanobis(),
    "mahalanobis, lengths": lambda: Mahalanobis(normalize=False),
    "mean": lambda: MeanDistance(),
    "mean, cosine": lambda: MeanDistance(metric="cosine"),
}
# Their score is a step function: rows of one cluster score alike, however far they lie.
STEPS = {"cluster mass", "cluster mass, lengths"}
# Others of the same class, whose state must be refused.
OTHERS: dict[str, tuple[Maker, str]] = {
    "fused": (lambda: FusedDistance(capacity=64), "capacity was 64, is 65536"),
    "fused, small bank": (lambda: FusedDistance(), "capacity was 65536, is 64"),
    "knn": (lambda: KNNDistance(k=4), "k was 4, is 3"),
    "knn, nearest": (lambda: KNNDistance(k=1, capacity=9), "capacity was 9, is 65536"),
    "knn, share": (lambda: KNNDistance(k=0.2), "k was 0.2, is 0.1"),
    "knn, cosine": (lambda: KNNDistance(k=4), "metric was 'euclidean', is 'cosine'"),
    "knn, small bank": (lambda: KNNDistance(k=3, capacity=21), "capacity was 21, is 20"),
    "knn, mean": (lambda: KNNDistance(k=5), "reduce was 'kth', is 'mean'"),
    "two scales": (lambda: TwoScaleDistance(k=6), "near was 3, is 2"),
    "two scales, share": (lambda: TwoScaleDistance(k=0.2), "k was 0.2, is 0.1"),
    "noise gate": (lambda: NoiseGate(KNNDistance(k=4), most=1e9), "k was 4, is 3"),
    "noise gate, cosine": (lambda: NoiseGate(KNNDistance(), most=2.0), "most was 2.0, is 1000000"),
    "cluster mass": (lambda: ClusterMass(clusters=5), "clusters was 5, is 4; normalize was False"),
    "cluster mass, lengths": (lambda: ClusterMass(clusters=2), "repeats was 5, is 2"),
    "mahalanobis": (lambda: Mahalanobis(half_life=9), "half_life was 9, is None"),
    "mahalanobis, lengths": (lambda: Mahalanobis(), "normalize was True, is False"),
    "mean": (lambda: MeanDistance(metric="cosine"), "metric was 'cosine', is 'euclidean'"),
    "mean, cosine": (lambda: MeanDistance(), "metric was 'euclidean', is 'cosine'"),
}


def normal(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1.0


def equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


@pytest.fixture(params=SCORERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scorer(name: str) -> Scorer:
    return SCORERS[name]()


@pytest.fixture
def fitted(scorer: Scorer) -> Scorer:
    scorer.fit(normal(60), torch.arange(60))
    return scorer


def test_it_has_the_seam_of_a_scorer(scorer: Scorer) -> None:
    assert isinstance(scorer, Scorer)


def test_a_score_is_larger_farther_from_the_reference(name: str, scorer: Scorer) -> None:
    if name in STEPS:
        pytest.skip("all rows of a cluster score alike")
    # All of the reference lies near one direction, so that both metrics agree on what is far.
    scorer.fit(torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.01 * (normal(60) - 1))
    near, far = torch.tensor([1.0, 0, 0, 0, 0, 0]), torch.tensor([-9.0, 5, 0, 0, 0, 0])
    scores = scorer.score(torch.stack([near, (near + far) / 2, far]))
    assert scores[0] < scores[1] < scores[2]


def test_scores_are_float32_one_a_row_without_gradient(fitted: Scorer) -> None:
    for rows in (normal(1), normal(7).double(), normal(7).requires_grad_()):
        scores = fitted.score(rows)
        assert (scores.dtype, scores.shape) == (torch.float32, (len(rows),))
        assert not scores.requires_grad
        assert (scores >= 0).all()


def test_scoring_changes_nothing(fitted: Scorer) -> None:
    before, rows = fitted.state_dict(), normal(9, seed=1)
    copy = rows.clone()
    first = fitted.score(rows, torch.arange(9))
    assert torch.equal(fitted.score(rows, torch.arange(9)), first)
    assert equal(fitted.state_dict(), before)
    assert torch.equal(rows, copy)


@pytest.mark.parametrize("kind", SCORERS)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99), with_ids=st.booleans())
@settings(deadline=None, max_examples=15)
def test_batch_size_and_order_do_not_matter(kind: str, cut: int, seed: int, with_ids: bool) -> None:
    scorer = SCORERS[kind]()
    scorer.fit(normal(60), torch.arange(60))
    rows, ids = normal(20, seed=seed), torch.arange(50, 70)
    whole = scorer.score(rows, ids if with_ids else None)
    parts = [
        scorer.score(rows[part], ids[part] if with_ids else None)
        for part in (slice(0, cut), slice(cut, 20))
    ]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(scorer.score(rows[order], ids[order] if with_ids else None), whole[order])


def test_the_order_of_the_reference_does_not_matter(name: str) -> None:
    rows, order = normal(60), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    first, second = SCORERS[name](), SCORERS[name]()
    scores = first.fit(rows)
    torch.testing.assert_close(second.fit(rows[order]), scores[order], rtol=1e-6, atol=1e-7)


def test_fit_forgets_what_came_before(name: str) -> None:
    fresh, used = SCORERS[name](), SCORERS[name]()
    used.fit(normal(70, 4, seed=5))
    used.update(normal(9, 4, seed=6))
    assert torch.equal(used.fit(normal(30)), fresh.fit(normal(30)))
    assert equal(used.state_dict(), fresh.state_dict())


def test_fitting_in_two_halves_is_learning_the_same(name: str) -> None:
    if name == "knn, small bank":
        pytest.skip("fit keeps everything, update only the capacity")
    whole, halves = SCORERS[name](), SCORERS[name]()
    whole.fit(normal(40))
    halves.fit(normal(40)[:25])
    halves.update(normal(40)[25:])
    rows = normal(9, seed=1)
    torch.testing.assert_close(halves.score(rows), whole.score(rows), rtol=1e-6, atol=1e-7)


def test_it_is_not_ready_before_it_has_seen_enough(scorer: Scorer) -> None:
    assert not scorer.ready
    with pytest.raises(NotEnoughReferenceError, match="fit or update"):
        scorer.score(normal(2))
    scorer.update(normal(1))
    assert not scorer.ready
    scorer.update(normal(15, seed=1))
    assert scorer.ready
    assert scorer.score(normal(2)).shape == (2,)


def test_fitting_too_few_rows_is_refused_and_changes_nothing(scorer: Scorer) -> None:
    scorer.update(normal(12))
    before = scorer.state_dict()
    with pytest.raises(NotEnoughReferenceError, match=r"\.fit expects .* embeddings, got 1"):
        scorer.fit(normal(1))
    assert equal(scorer.state_dict(), before)


def test_another_width_is_refused_and_names_both(fitted: Scorer) -> None:
    kind = type(fitted).__name__
    for call, method in (("score", fitted.score), ("update", fitted.update)):
        with pytest.raises(EmbeddingShapeError) as caught:
            method(normal(2, 5))
        assert str(caught.value).startswith(
            f"{kind}.{call} expects embeddings of shape (batch, 6), got (2, 5)."
        )


@pytest.mark.parametrize("with_ids", [False, True])
def test_saved_and_resumed_equals_never_stopped(name: str, with_ids: bool) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor | None]:
        ids = torch.randint(0, 30, (8,), generator=torch.Generator().manual_seed(step))
        return normal(8, seed=step), ids if with_ids else None

    straight, stopped = SCORERS[name](), SCORERS[name]()
    for step in range(12):
        straight.update(*batch(step))
        stopped.update(*batch(step))
        if step in (0, 2, 7):
            state = through_a_file(stopped.state_dict())
            stopped = SCORERS[name]()
            stopped.load_state_dict(state)
            assert equal(stopped.state_dict(), state)
    assert equal(straight.state_dict(), stopped.state_dict())
    rows, ids = batch(99)
    assert torch.equal(straight.score(rows, ids), stopped.score(rows, ids))


def test_a_saved_state_does_not_change_afterwards(fitted: Scorer) -> None:
    state = fitted.state_dict()
    copy = through_a_file(state)
    fitted.update(normal(30, seed=8), torch.arange(30))
    assert equal(state, copy)
    assert not equal(fitted.state_dict(), copy)


def test_the_state_of_other_settings_is_refused_by_name(name: str, fitted: Scorer) -> None:
    other, message = OTHERS[name]
    before = fitted.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        fitted.load_state_dict(other().state_dict())
    assert equal(fitted.state_dict(), before)


def test_the_state_of_another_class_or_version_is_refused(fitted: Scorer) -> None:
    kind = type(fitted).__name__
    for change, message in (
        ({"kind": "Cosine"}, f"{kind}.load_state_dict got the state of a Cosine"),
        ({"version": 99}, "version 1 of its state, got version 99"),
        ({"extra": 1}, r"missing \[\], unknown \['extra'\]"),
    ):
        with pytest.raises(StateMismatchError, match=message):
            fitted.load_state_dict({**fitted.state_dict(), **change})


def test_autocast_and_inference_mode_change_no_score(name: str) -> None:
    rows, plain, inside = normal(30), SCORERS[name](), SCORERS[name]()
    expected = plain.fit(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(inside.fit(rows), expected)
    for scorer in (plain, inside):
        scorer.update(normal(5, seed=2))
    assert torch.equal(inside.score(rows), plain.score(rows))


def test_its_repr_says_its_settings(name: str) -> None:
    assert repr(SCORERS[name]()).startswith(type(SCORERS[name]()).__name__ + "(")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores_where_the_rows_are(name: str) -> None:
    on_cpu, on_gpu, rows = SCORERS[name](), SCORERS[name](), normal(60)
    torch.testing.assert_close(on_gpu.fit(rows.cuda()).cpu(), on_cpu.fit(rows))
    for scorer, device in ((on_cpu, "cpu"), (on_gpu, "cuda")):
        scorer.update(normal(9, seed=3).to(device))
    found = on_gpu.score(normal(5, seed=4).cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), on_cpu.score(normal(5, seed=4)))
