"""Tests of what is drawn for the views: inside its ranges, and with the frequencies it promises."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from raremix.views import View, ViewParameters, from_rows, kernel
from raremix.views.draws import ViewTable, draw_rows

N = 4000
VIEW = View(
    size=8, scale=(0.1, 0.6), flip_p=0.5, grayscale_p=0.2, blur_p=0.1, solarize_p=0.3, jitter_p=0.8
)


def draw_parameters(
    views: Sequence[View], *, height: int, width: int, seed: int = 0
) -> list[ViewParameters]:
    rows = draw_rows(ViewTable(views), height=height, width=width, seeds=torch.tensor([seed]))
    return from_rows(rows[0])


@pytest.fixture(scope="module")
def rows() -> list[ViewParameters]:
    return draw_parameters([VIEW] * N, height=300, width=400)


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Kolmogorov and Smirnov's: the widest gap between two empirical distributions."""
    one, two = (torch.tensor(values, dtype=torch.float64).sort()[0] for values in (first, second))
    every = torch.cat([one, two])
    gaps = torch.searchsorted(one, every, right=True) / len(one) - torch.searchsorted(
        two, every, right=True
    ) / len(two)
    return float(gaps.abs().max())


def _uniform(low: float, high: float) -> list[float]:
    return [low + (high - low) * (step + 0.5) / 20000 for step in range(20000)]


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("flipped", 0.5),
        ("grayscale", 0.2),
        ("solarized", 0.3),
        ("blur_sigma", 0.1),
        ("jitter", 0.8),
    ],
)
def test_changes_happen_as_often_as_asked(
    rows: list[ViewParameters], name: str, rate: float
) -> None:
    count = sum(bool(getattr(row, name)) for row in rows)
    assert abs(count - N * rate) < 4 * math.sqrt(N * rate * (1 - rate))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ],
)
def test_jitter_factors_are_uniform(
    rows: list[ViewParameters], name: str, low: float, high: float
) -> None:
    factors = [dict(row.jitter)[name] for row in rows if row.jitter]
    assert low <= min(factors)
    assert max(factors) <= high
    # 1.95 / sqrt(n) is passed by chance once in a thousand.
    assert _distance(factors, _uniform(low, high)) < 1.95 / math.sqrt(len(factors))


def test_blur_is_uniform(rows: list[ViewParameters]) -> None:
    sigmas = [row.blur_sigma for row in rows if row.blur_sigma]
    assert _distance(sigmas, _uniform(0.1, 2.0)) < 1.95 / math.sqrt(len(sigmas))


def test_all_orders_of_the_jitter_are_equally_likely(rows: list[ViewParameters]) -> None:
    orders = Counter(tuple(name for name, _ in row.jitter) for row in rows if row.jitter)
    expected = sum(orders.values()) / 24
    # Chi-square of 23 degrees passes 49.7 once in a thousand.
    assert len(orders) == 24
    assert sum((count - expected) ** 2 / expected for count in orders.values()) < 49.7


def test_changes_are_independent_of_each_other(rows: list[ViewParameters]) -> None:
    names = ("flipped", "grayscale", "solarized", "blur_sigma", "jitter")
    table = torch.tensor(
        [[bool(getattr(row, name)) for name in names] for row in rows], dtype=torch.float64
    )
    correlations = torch.corrcoef(table.T) - torch.eye(len(names), dtype=torch.float64)
    assert correlations.abs().max() < 4 / math.sqrt(N)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (12, 9), (40, 400)])
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    rows = draw_parameters([VIEW] * N, height=height, width=width, seed=1)
    image = torch.empty(3, height, width, device="meta")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = [
            RandomResizedCrop.get_params(image, list(VIEW.scale), list(VIEW.ratio))
            for _ in range(N)
        ]
    ours = [(top, left, bottom - top, right - left) for left, top, right, bottom in _boxes(rows)]
    for mine, others in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert _distance(mine, others) < 1.95 * math.sqrt(2 / N)
    areas, others_areas = ([h * w for _, _, h, w in boxes] for boxes in (ours, theirs))
    assert _distance(areas, others_areas) < 1.95 * math.sqrt(2 / N)


def _boxes(rows: list[ViewParameters]) -> list[tuple[int, int, int, int]]:
    return [row.box for row in rows]


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted),
    seed=st.integers(0, 10),
)
def test_boxes_lie_inside_the_image_and_keep_area_and_shape_or_fall_back_to_the_middle(
    height: int, width: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    view = View(size=8, scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]))
    rows = draw_parameters([view] * 4, height=height, width=width, seed=seed)
    for left, top, right, bottom in _boxes(rows):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        middle = (left, top) == ((width - w) // 2, (height - h) // 2)
        whole_side = w == width or h == height
        # A side was rounded by up to half a pixel.
        slack = (w + 0.5) * (h + 0.5) - w * h
        fits = (
            scale[0] * height * width - slack <= w * h <= scale[1] * height * width + slack
            and (w - 0.5) / (h + 0.5) <= ratio[1]
            and (w + 0.5) / (h - 0.5) >= ratio[0]
        )
        assert fits or (middle and whole_side)


def test_a_wide_image_falls_back_to_its_middle_in_the_widest_shape() -> None:
    view = View(size=8, scale=(0.9, 1.0), ratio=(0.5, 2.0))
    (row,) = draw_parameters([view], height=10, width=1000)
    assert row.box == (490, 0, 510, 10)
    (row,) = draw_parameters([view], height=1000, width=10)
    assert row.box == (0, 490, 10, 510)


def test_one_pixel_is_cropped_whole_by_every_shape() -> None:
    for ratio in ((0.1, 0.2), (3 / 4, 4 / 3), (4.0, 5.0)):
        view = View(size=8, scale=(0.01, 1.0), ratio=ratio)
        (row,) = draw_parameters([view], height=1, width=1)
        assert row.box == (0, 0, 1, 1)


def test_a_strength_of_zero_leaves_its_change_out() -> None:
    view = View(size=8, scale=(0.5, 1.0), jitter_p=1.0, brightness=0, hue=0)
    rows = draw_parameters([view] * 20, height=9, width=9)
    assert {name for row in rows for name, _ in row.jitter} == {"contrast", "saturation"}


def test_a_strength_above_one_never_draws_a_negative_factor() -> None:
    view = View(size=8, scale=(0.5, 1.0), jitter_p=1.0, brightness=3.0)
    rows = draw_parameters([view] * 200, height=9, width=9)
    factors = [dict(row.jitter)["brightness"] for row in rows]
    assert 0 <= min(factors) < 0.5
    assert 3.5 < max(factors) <= 4


def test_probabilities_of_zero_and_one_are_never_and_always() -> None:
    never = View(8, (0.5, 1.0), flip_p=0, jitter_p=0, grayscale_p=0, blur_p=0, solarize_p=0)
    always = View(8, (0.5, 1.0), flip_p=1, jitter_p=1, grayscale_p=1, blur_p=1, solarize_p=1)
    for view, fires in ((never, False), (always, True)):
        for row in draw_parameters([view] * 50, height=9, width=9):
            done = (row.flipped, row.jitter, row.grayscale, row.blur_sigma, row.solarized)
            assert [bool(change) for change in done] == [fires] * 5


def test_a_view_is_drawn_alike_whatever_stands_beside_it() -> None:
    other = View(size=8, scale=(0.5, 1.0), hue=0.0)
    (alone,) = draw_parameters([VIEW], height=50, width=60)
    assert draw_parameters([VIEW, other, VIEW], height=50, width=60)[0] == alone
    rows = draw_rows(ViewTable([None, VIEW]), height=50, width=60, seeds=torch.tensor([0]))
    assert from_rows(rows[0]) == [draw_parameters([other, VIEW], height=50, width=60)[1]]


def test_an_image_is_drawn_alike_whatever_stands_beside_it() -> None:
    table, seeds = ViewTable([VIEW] * 3), torch.tensor([5, 2**63 - 1, 0, 5])
    together = draw_rows(table, height=50, width=60, seeds=seeds)
    for seed, rows in zip(seeds, together, strict=True):
        alone = draw_rows(table, height=50, width=60, seeds=seed[None])
        assert torch.equal(alone[0], rows)
    assert draw_rows(table, height=5, width=6, seeds=seeds[:0]).shape == (0, 3, 19)


def test_the_drawn_numbers_do_not_change_between_versions_or_machines() -> None:
    (row,) = draw_parameters([VIEW], height=300, width=400, seed=8)
    assert row.box == (92, 59, 321, 274)
    assert [name for name, _ in row.jitter] == ["hue", "contrast", "saturation", "brightness"]


@pytest.mark.skipif(not kernel.runs(), reason="the kernel is not built here")
@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    ratio=st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted),
    strengths=st.tuples(*[st.sampled_from([0.0, 0.2, 0.5, 1.7])] * 4),
    strong=st.booleans(),
    first_seed=st.integers(0, 2**62),
)
def test_the_kernel_draws_the_same_numbers_as_numpy(
    height: int,
    width: int,
    ratio: list[float],
    strengths: tuple[float, float, float, float],
    strong: bool,
    first_seed: int,
) -> None:
    brightness, contrast, saturation, hue = strengths
    view = View(
        8,
        (0.05, 0.9),
        (ratio[0], ratio[1]),
        interpolation="bilinear",
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=min(hue, 0.5),
        blur_p=0.4,
        blur_radius=4,
        solarize_p=0.3,
    )
    table, seeds = ViewTable([None, VIEW, view]), torch.arange(first_seed, first_seed + 40)
    strength = torch.linspace(0, 3, 40, dtype=torch.float64) if strong else None
    drawn = draw_rows(table, height=height, width=width, seeds=seeds, strength=strength)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "runs", lambda: False)
        expected = draw_rows(table, height=height, width=width, seeds=seeds, strength=strength)
    assert torch.equal(drawn, expected)


def test_strength_widens_the_spans_and_raises_the_chances() -> None:
    table, seeds = ViewTable([VIEW]), torch.arange(N)
    half, double = (
        from_rows(
            draw_rows(
                table,
                height=90,
                width=90,
                seeds=seeds,
                strength=torch.full((N,), strength, dtype=torch.float64),
            )[:, 0]
        )
        for strength in (0.5, 2.0)
    )
    assert _boxes(half) == _boxes(double)
    for rows, by in ((half, 0.5), (double, 2.0)):
        for name, p in (
            ("grayscale", 0.2),
            ("blur_sigma", 0.1),
            ("solarized", 0.3),
            ("jitter", 0.8),
        ):
            share = sum(bool(getattr(row, name)) for row in rows) / N
            p = min(p * by, 1.0)
            assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / N)
        factors = [dict(row.jitter)["brightness"] for row in rows if row.jitter]
        assert 0.95 * 0.4 * by < max(factors) - 1 <= 0.4 * by
