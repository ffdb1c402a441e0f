"""Tests of the default score: against a plain float64 oracle, on worlds with a known tail, in streams."""

import math

import pytest
import torch
from torch import Tensor

from raremix.detection import FusedDistance, KNNDistance, OODDetector, ReferenceBank
from raremix.detection.scorers.geometry import FusedGeometry
from raremix.detection.scorers.scales import thinned
from raremix.errors import NotEnoughReferenceError, StateMismatchError
from raremix.evaluation import average_precision


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def long_tailed(counts: tuple[int, ...], dim: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows and labels of one cluster per count, shuffled."""
    centres = 3.0 * normal(len(counts), dim, seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return centres[labels] + normal(len(labels), dim, seed + 1), labels


COUNTS = (500, 300, 150, 30, 12, 6)


def oracle(rows: Tensor) -> Tensor:
    """The formula of the docstring, with every distance in one float64 matrix; no thinned set."""
    rows = rows.double()
    n = len(rows)
    roots = rows.sign() * (rows.abs() / rows.square().mean().sqrt()).sqrt()
    roots = roots - roots.mean(0)
    variances, axes = torch.linalg.eigh(roots.T @ roots / n)
    variances, axes = variances.flip(0)[:64], axes.flip(1)[:, :64]
    first = roots @ axes
    third = first / variances.sqrt()
    views = [first, rows / rows.norm(dim=1, keepdim=True), third / third.norm(dim=1, keepdim=True)]
    order = first.square().sum(1).argsort()[:: max(1, n // 1000)]
    units = [
        torch.cdist(view, view).sort(dim=1).values[order, min(50, n - 1)].median() for view in views
    ]
    fused = torch.cat([view / unit for view, unit in zip(views, units, strict=True)], dim=1)
    distances, places = torch.cdist(fused, fused).fill_diagonal_(math.inf).sort(dim=1)
    typical = distances[:, 0].median()
    distances = distances.clamp_min(0.75 * typical)
    root = n**0.5
    low, high = math.log(max(2.0, 0.1 * root)), math.log(4 * root)
    sizes = sorted({round(math.exp(low + (high - low) * i / 7)) for i in range(8)})
    far = min(round(10 * root), n - 1)
    score = torch.stack([distances[:, size - 1].log() for size in sizes]).mean(0)
    score = score - 0.25 * distances[:, far - 1].log()
    say = (distances[:, :1] / distances[:, :10]) ** 4
    say = say / say.sum(dim=1, keepdim=True)
    share = 0.5 * (1.5 * typical / distances[:, 0]).clamp(max=1.0) ** 4
    for _ in range(4):
        score = (1 - share) * score + share * (say * score[places[:, :10]]).sum(dim=1)
    return score.exp()


@pytest.mark.parametrize("n", [60, 400])
def test_a_small_set_scores_as_the_formula_says(n: int) -> None:
    rows, _ = long_tailed((n // 2, n // 4, n - n // 2 - n // 4))
    torch.testing.assert_close(FusedDistance().fit(rows).double(), oracle(rows), rtol=1e-4, atol=0)


def test_the_thinned_set_hardly_changes_a_score() -> None:
    rows, _ = long_tailed((2500, 900, 400, 150, 50))
    found, expected = FusedDistance().fit(rows).double(), oracle(rows)
    assert len(thinned(rows)) < len(rows)
    assert (found / expected).log().abs().max() < 0.1
    assert torch.corrcoef(torch.stack([found.log(), expected.log()]))[0, 1] > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_tail_better_than_one_scale(seed: int) -> None:
    rows, labels = long_tailed(COUNTS, seed=seed)
    is_rare = labels >= 3
    ours = average_precision(FusedDistance().fit(rows), is_rare)
    theirs = average_precision(KNNDistance(k=10).fit(rows), is_rare)
    assert ours > 0.9
    assert ours >= theirs - 0.02


def test_a_small_group_is_found_however_tight_it_is() -> None:
    for spread in (1e-4, 0.1, 1.0):
        rows = normal(1000, 32)
        rows[:5] = 3.0 + spread * normal(5, 32, 1)
        assert set(FusedDistance().fit(rows).topk(5).indices.tolist()) == set(range(5))


def test_a_single_row_far_from_all_others_is_the_rarest() -> None:
    rows, _ = long_tailed((500, 300, 100))
    rows[17] = 40.0
    scorer = FusedDistance()
    assert int(scorer.fit(rows).argmax()) == 17
    new = scorer.score(torch.full((1, rows.shape[1]), -40.0))
    assert new > scorer.score(rows).median() * 2


def test_a_rare_image_that_is_there_twenty_times_is_still_rare() -> None:
    rows, labels = long_tailed(COUNTS)
    before = FusedDistance().fit(rows)
    rare = int((labels == 5).nonzero()[0])
    rank = (before >= before[rare]).float().mean()
    assert rank < 0.05
    copies = torch.cat([rows, rows[rare].expand(19, -1) + 1e-4 * normal(19, rows.shape[1], 3)])
    after = FusedDistance().fit(copies)
    assert (after >= after[rare]).float().mean() < 0.07


def test_the_scale_and_the_order_of_the_rows_do_not_matter() -> None:
    rows, _ = long_tailed((300, 100, 20))
    expected = FusedDistance().fit(rows)
    torch.testing.assert_close(FusedDistance().fit(rows * 1e4), expected, rtol=1e-3, atol=0)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        FusedDistance().fit(rows[shuffled]), expected[shuffled], rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(50, 4),
        torch.ones(50, 4),
        torch.eye(30),
        normal(5, 3).repeat(20, 1),
        normal(9, 1),
    ],
    ids=["zeros", "alike", "corners", "copies", "one column"],
)
def test_degenerate_sets_get_finite_scores(rows: Tensor) -> None:
    assert torch.isfinite(FusedDistance().fit(rows)).all()


def test_rows_of_one_id_alone_cannot_be_compared() -> None:
    with pytest.raises(NotEnoughReferenceError, match="rows of one"):
        FusedDistance().fit(normal(20, 3), torch.zeros(20, dtype=torch.int64))


def test_a_stream_scores_like_a_set() -> None:
    rows, labels = long_tailed(COUNTS)
    ids = torch.arange(len(rows))
    streamed = FusedDistance()
    for _ in range(2):
        for batch in torch.split(ids, 64):
            streamed.update(rows[batch], batch)
    whole = FusedDistance()
    expected = whole.fit(rows, ids).log()
    found = streamed.score(rows, ids).log()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
    assert average_precision(found, labels >= 3) > 0.9


def test_a_known_id_is_left_out_and_replaced() -> None:
    rows, _ = long_tailed((300, 100))
    ids = torch.arange(len(rows))
    scorer = FusedDistance()
    scorer.fit(rows, ids)
    own = scorer.score(rows[:7], ids[:7])
    torch.testing.assert_close(own, scorer.fit(rows, ids)[:7], rtol=1e-3, atol=0)
    scorer.update(rows[:7] + 50.0, ids[:7])
    assert len(scorer.bank) == len(rows)
    torch.testing.assert_close(scorer.bank.rows[:7], rows[:7] + 50.0)


def test_what_lies_beside_the_bank_stays_beside_it() -> None:
    scorer = FusedDistance(capacity=100)
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 130, (9,), generator=generator)
        scorer.update(normal(9, 5, step), ids)
    assert torch.equal(scorer.bank.ids, scorer._beside.ids)  # type: ignore[arg-type]  # there are ids
    shown = scorer._geometry.transform(scorer.bank.rows)
    torch.testing.assert_close(scorer._shown, shown)


def test_a_bank_that_was_emptied_begins_anew() -> None:
    detector = OODDetector(FusedDistance(capacity=64))
    for step in range(4):
        detector.observe(normal(32, 6, step), torch.arange(32) + 32 * step)
    scorer = detector.scorer
    assert isinstance(scorer, FusedDistance)
    scorer.bank.clear()
    assert not scorer.ready
    assert torch.isnan(detector.observe(normal(32, 6, 9), torch.arange(32)).scores).all()
    assert torch.isfinite(detector.observe(normal(32, 6, 10), torch.arange(32, 64)).scores).all()


def test_a_reference_that_outgrew_its_scales_comes_back_as_it_was() -> None:
    rows, _ = long_tailed((1500, 700, 300), dim=6)
    scorer, loaded = FusedDistance(), FusedDistance()
    scorer.fit(rows[:2000])  # searched whole
    scorer.update(rows[2000:])  # and large enough for a thinned set, if it were learnt anew
    loaded.load_state_dict(scorer.state_dict())
    new = normal(20, 6, 3)
    assert torch.equal(loaded.score(new), scorer.score(new))


def test_scoring_a_batch_before_adding_it_changes_nothing_that_is_kept() -> None:
    rows, _ = long_tailed((300, 100), dim=6)
    ids = torch.arange(len(rows))
    watched, plain = FusedDistance(), FusedDistance()
    for scorer in (watched, plain):
        scorer.fit(rows[:300], ids[:300])
        for start in (300, 340, 310):  # the last one again, with what has come since
            own = slice(start, start + 40)
            if scorer is watched:
                scorer.score(rows[own], ids[own])
            scorer.update(rows[own], ids[own])
    assert torch.equal(watched._beside.rows, plain._beside.rows)
    assert torch.equal(watched.score(rows), plain.score(rows))


def test_a_state_of_another_width_is_refused_and_changes_nothing() -> None:
    scorer, other = FusedDistance(), FusedDistance()
    scorer.fit(normal(50, 6))
    other.fit(normal(50, 7))
    before = scorer.score(normal(5, 6, 1))
    with pytest.raises(StateMismatchError, match="7 wide"):
        scorer.load_state_dict(other.state_dict())
    assert torch.equal(scorer.score(normal(5, 6, 1)), before)


def test_a_mirrored_bank_gives_the_same_places_to_what_comes_later() -> None:
    for with_ids in (False, True):
        first, second = ReferenceBank(20), ReferenceBank(20)
        for step in range(30):
            ids = torch.randint(0, 30, (4,), generator=torch.Generator().manual_seed(step))
            own = ids if with_ids else None
            rows = normal(4, 3, step)
            first.add(rows, own)
            if step == 12:
                second.mirror(first, 2 * first.rows)
            elif step > 12:
                second.add(2 * rows, own)
        torch.testing.assert_close(second.rows, 2 * first.rows)
        assert torch.equal(first.places_by_age(), second.places_by_age())


def test_the_geometry_weighs_its_three_views_alike() -> None:
    rows, _ = long_tailed((300, 100))
    geometry = FusedGeometry()
    geometry.fit(rows, max_memory=2**29)
    shown = geometry.transform(rows)
    kept = min(64, rows.shape[1])
    assert shown.shape == (len(rows), 2 * kept + rows.shape[1])
    for view in torch.split(shown, [kept, rows.shape[1], kept], dim=1):
        median = torch.cdist(view, view).sort(dim=1).values[:, 50].median()
        assert 0.8 < float(median) < 1.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_a_cpu_does() -> None:
    rows, _ = long_tailed(COUNTS)
    expected, found = FusedDistance().fit(rows), FusedDistance().fit(rows.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=0)
