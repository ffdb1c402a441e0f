"""Golden tests of the named recipes: their numbers, their draws and their pixels.

The numbers stand here once more, as the published code has them; draws are compared with what
torchvision draws, and finished views with torchvision's changes on floats.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Lambda, RandomApply, RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from raremix.views import COLUMNS, MultiCropTransform, View, ViewParameters, from_rows, kernel
from raremix.views.draws import ViewTable, draw_rows
from raremix.views.recipes import RecipeName

RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)

# What ColorJitter is given: brightness, contrast, saturation, hue.
WEAK, STRONG = (0.4, 0.4, 0.2, 0.1), (0.8, 0.8, 0.8, 0.2)
RED, GREEN_AND_BLUE = 0.229, (0.224, 0.225)


class Published(NamedTuple):
    """What one view of a published recipe is; what no recipe changes stands in `_whole`."""

    times: int
    size: int
    scale: tuple[float, float]
    interpolation: str
    jitter: tuple[float, float, float, float]
    blur_p: float
    solarize_p: float
    blur_radius: int | None = None


# dino: main_dino.py, DataAugmentationDINO and the defaults of its arguments.
# dinov2: data/augmentations.py, data/transforms.py and configs/ssl_default_config.yaml; chances of
#   blur as its code makes them, see below.
# swav: src/multicropdataset.py and the sizes of its README.
# simclr: appendix A of the paper at strength 1, and data_util.py.
# small: ours.
TABLE: dict[RecipeName, list[Published]] = {
    "dino": [
        Published(1, 224, (0.4, 1.0), "bicubic", WEAK, 1.0, 0.0),
        Published(1, 224, (0.4, 1.0), "bicubic", WEAK, 0.1, 0.2),
        Published(8, 96, (0.05, 0.4), "bicubic", WEAK, 0.5, 0.0),
    ],
    "dinov2": [
        Published(1, 224, (0.32, 1.0), "bicubic", WEAK, 0.0, 0.0, blur_radius=4),
        Published(1, 224, (0.32, 1.0), "bicubic", WEAK, 0.9, 0.2, blur_radius=4),
        Published(8, 96, (0.05, 0.32), "bicubic", WEAK, 0.5, 0.0, blur_radius=4),
    ],
    "swav": [
        Published(2, 224, (0.14, 1.0), "bilinear", STRONG, 0.5, 0.0),
        Published(6, 96, (0.05, 0.14), "bilinear", STRONG, 0.5, 0.0),
    ],
    "simclr": [Published(2, 224, (0.08, 1.0), "bicubic", STRONG, 0.5, 0.0)],
    "small": [
        Published(1, 32, (0.5, 1.0), "bicubic", WEAK, 0.0, 0.0),
        Published(1, 32, (0.5, 1.0), "bicubic", WEAK, 0.0, 0.2),
        Published(6, 16, (0.2, 0.5), "bicubic", WEAK, 0.0, 0.0),
    ],
}
N_GLOBAL = 2
MEAN = (0.485, 0.456, 0.406)
STD = {name: (0.228 if name == "swav" else RED, *GREEN_AND_BLUE) for name in RECIPES}

N = 4000
HEIGHT, WIDTH = 375, 500
# Some 500 numbers are compared below; each is passed by chance 2 times in 10 million at most.
CHI_SQUARE = {1: 27.0, 23: 75.0}
KOLMOGOROV = 2.85

AT = {name: at for at, name in enumerate(COLUMNS)}
RATES = ("flipped", "jitter", "grayscale", "blur_sigma", "solarized")


def _whole(published: Published) -> dict[str, object]:
    brightness, contrast, saturation, hue = published.jitter
    return {
        "size": published.size,
        "scale": published.scale,
        "ratio": (3 / 4, 4 / 3),
        "interpolation": published.interpolation,
        "flip_p": 0.5,
        "jitter_p": 0.8,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "grayscale_p": 0.2,
        "blur_p": published.blur_p,
        "blur_sigma": (0.1, 2.0),
        "blur_radius": published.blur_radius,
        "solarize_p": published.solarize_p,
    }


def _views(name: RecipeName) -> list[Published]:
    return [published for published in TABLE[name] for _ in range(published.times)]


@functools.cache
def _drawn(name: RecipeName) -> Tensor:
    """(N, views, 19), float64."""
    transform = MultiCropTransform.recipe(name)
    views = [view for view in transform.views if isinstance(view, View)]
    first = RECIPES.index(name) * N
    seeds = torch.arange(first, first + N)
    return draw_rows(ViewTable(views), height=HEIGHT, width=WIDTH, seeds=seeds).double()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_views_that_were_published(name: RecipeName) -> None:
    transform = MultiCropTransform.recipe(name)
    views = [view for view in transform.views if isinstance(view, View)]
    assert [asdict(view) for view in views] == [_whole(published) for published in _views(name)]
    assert transform.n_global_views == N_GLOBAL


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_normalises_as_published(name: RecipeName) -> None:
    transform = MultiCropTransform.recipe(name)
    flat = ViewParameters((0, 0, 8, 8), 4)
    black, white = (
        transform.apply(torch.full((3, 8, 8), value, dtype=torch.uint8), [flat])[0].double()
        for value in (0, 255)
    )
    mean, std = (torch.tensor(row, dtype=torch.float64) for row in (MEAN, STD[name]))
    expected = torch.stack([-mean / std, (1 - mean) / std])
    made = torch.stack([black[:, 0, 0], white[:, 0, 0]])
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_of_a_recipe_says_size_and_filters(name: RecipeName) -> None:
    for rows, published in zip(_drawn(name).unbind(1), _views(name), strict=True):
        assert bool((rows[:, AT["size"]] == published.size).all())
        assert bool((rows[:, AT["bilinear"]] == (published.interpolation == "bilinear")).all())
        assert bool((rows[:, AT["blur_radius"]] == (published.blur_radius or 0)).all())


# How often


def _fired(rows: Tensor, what: str) -> Tensor:
    return rows[:, AT["kind_0"]] >= 0 if what == "jitter" else rows[:, AT[what]] > 0


def _chi_square(counts: Sequence[int], chances: Sequence[float]) -> float:
    total = sum(counts)
    return sum(
        (count - total * chance) ** 2 / (total * chance)
        for count, chance in zip(counts, chances, strict=True)
    )


@pytest.mark.parametrize("what", RATES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_each_change_as_often_as_published(name: RecipeName, what: str) -> None:
    for rows, published in zip(_drawn(name).unbind(1), _views(name), strict=True):
        rate = {
            "flipped": 0.5,
            "jitter": 0.8,
            "grayscale": 0.2,
            "blur_sigma": published.blur_p,
            "solarized": published.solarize_p,
        }[what]
        count = int(_fired(rows, what).sum())
        if rate in (0, 1):
            assert count == N * rate
        else:
            assert _chi_square([count, N - count], [rate, 1 - rate]) < CHI_SQUARE[1]


def test_dinov2_blurs_as_often_as_its_code_does_and_not_as_its_names_say() -> None:
    """Its blur hands `1 - p` to RandomApply, which takes the chance to apply, not to skip."""
    rates = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in (1.0, 0.1, *[0.5] * 8):
            blur = RandomApply([Lambda(lambda blurred: blurred + 1)], p=1 - p)
            rates.append(sum(blur(0) for _ in range(N)) / N)
    ours = _fired(_drawn("dinov2").flatten(0, 1), "blur_sigma").view(N, -1).double().mean(dim=0)
    assert [round(rate, 1) for rate in ours.tolist()] == [0.0, 0.9, *[0.5] * 8]
    for rate, theirs in zip(ours.tolist(), rates, strict=True):
        assert abs(rate - theirs) <= 5 * math.sqrt(2 * theirs * (1 - theirs) / N)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_all_24_orders_of_jitter_equally_often(name: RecipeName) -> None:
    for rows in _drawn(name).unbind(1):
        kinds = rows[_fired(rows, "jitter"), AT["kind_0"] :: 2]
        orders = Counter(map(tuple, kinds.int().tolist()))
        assert len(orders) == 24
        assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
        assert _chi_square(list(orders.values()), [1 / 24] * 24) < CHI_SQUARE[23]


# How far


def _gap(ours: Tensor, cumulative: Tensor) -> float:
    """Kolmogorov and Smirnov's, of n values whose true shares below are known; in sqrt(n)."""
    steps = torch.arange(len(ours) + 1, dtype=torch.float64) / len(ours)
    gap = torch.maximum((cumulative - steps[:-1]).abs(), (cumulative - steps[1:]).abs()).max()
    return float(gap) * math.sqrt(len(ours))


def _gap_to_uniform(values: Tensor, low: float, high: float) -> float:
    values = values.sort()[0]
    # A row is float32, and may round a value by its last digit beyond the end.
    assert low - 1e-6 <= float(values[0])
    assert float(values[-1]) <= high + 1e-6
    return _gap(values, (values - low) / (high - low))


def _gap_between(first: Tensor, second: Tensor) -> float:
    first, second = first.sort()[0], second.sort()[0]
    every = torch.cat([first, second])
    shares = [torch.searchsorted(one, every, right=True) / len(one) for one in (first, second)]
    n = len(first) * len(second) / (len(first) + len(second))
    return float((shares[0] - shares[1]).abs().max()) * math.sqrt(n)


@functools.cache
def _torchvision_boxes(scale: tuple[float, float]) -> Tensor:
    """(2 N, 2): heights and widths."""
    image = torch.empty(3, HEIGHT, WIDTH, device="meta")
    with torch.random.fork_rng():
        torch.manual_seed(round(scale[0] * 100))
        boxes = [
            RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])[2:]
            for _ in range(2 * N)
        ]
    return torch.tensor(boxes, dtype=torch.float64)


@pytest.mark.parametrize("name", RECIPES)
def test_crops_of_a_recipe_are_as_large_and_as_wide_as_those_of_torchvision(
    name: RecipeName,
) -> None:
    for rows, published in zip(_drawn(name).unbind(1), _views(name), strict=True):
        left, top, right, bottom = rows[:, :4].unbind(1)
        width, height = right - left, bottom - top
        their_height, their_width = _torchvision_boxes(published.scale).unbind(1)
        whole = HEIGHT * WIDTH
        assert _gap_between(width * height / whole, their_height * their_width / whole) < KOLMOGOROV
        ratios, their_ratios = (width / height).log(), (their_width / their_height).log()
        assert _gap_between(ratios, their_ratios) < KOLMOGOROV


@pytest.mark.parametrize("name", RECIPES)
def test_jitter_of_a_recipe_is_uniform_and_as_strong_as_published(name: RecipeName) -> None:
    for rows, published in zip(_drawn(name).unbind(1), _views(name), strict=True):
        rows = rows[_fired(rows, "jitter")]
        kinds, factors = rows[:, AT["kind_0"] :: 2], rows[:, AT["factor_0"] :: 2]
        for kind, strength in enumerate(published.jitter):
            middle = 0 if kind == 3 else 1
            drawn = factors[kinds == kind]
            assert len(drawn) == len(rows)
            assert _gap_to_uniform(drawn, middle - strength, middle + strength) < KOLMOGOROV


@pytest.mark.parametrize("name", RECIPES)
def test_blur_of_a_recipe_is_uniform_from_a_tenth_to_two_pixels(name: RecipeName) -> None:
    for rows, published in zip(_drawn(name).unbind(1), _views(name), strict=True):
        if published.blur_p > 0:
            sigmas = rows[_fired(rows, "blur_sigma"), AT["blur_sigma"]]
            assert _gap_to_uniform(sigmas, 0.1, 2.0) < KOLMOGOROV


# Pixels


def _synthetic() -> Tensor:
    """Waves of three colours with a little noise, as an image is, and a patch of pure noise."""
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
    waves = [(x / a + y / b).sin() for a, b in ((60, 90), (45, -70), (-80, 50))]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 300, 400, generator=generator)
    image = 128 + 90 * torch.stack(waves) + 6 * noise
    image[:, 100:140, 100:140] = 256 * torch.rand(3, 40, 40, generator=generator)
    return image.clamp(0, 255).to(torch.uint8)


def _reference_bytes(image: Tensor, row: ViewParameters) -> Tensor:
    left, top, right, bottom = row.box
    mode = InterpolationMode.BILINEAR if row.bilinear else InterpolationMode.BICUBIC
    crop = oracle.resized_crop(
        image.float(),
        *(top, left, bottom - top, right - left, [row.size, row.size]),
        interpolation=mode,
        antialias=True,
    )
    small: Tensor = crop.round().clamp(0, 255).to(torch.uint8)
    return small.flip(-1) if row.flipped else small


def _reference_finish(
    small: Tensor, row: ViewParameters, std: Sequence[float], radius: int | None = None
) -> Tensor:
    view: Tensor = small.float() / 255
    for kind, factor in row.jitter:
        view = getattr(oracle, f"adjust_{kind}")(view, factor)
    if row.grayscale:
        view = oracle.rgb_to_grayscale(view, num_output_channels=3)
    if row.blur_sigma > 0:
        reach = radius or row.blur_radius or math.ceil(3 * row.blur_sigma)
        view = oracle.gaussian_blur(view, [2 * reach + 1] * 2, [row.blur_sigma] * 2)
    if row.solarized:
        view = oracle.solarize(view, 0.5)
    finished: Tensor = oracle.normalize(view, list(MEAN), list(std))
    return finished


class Differences:
    """How far finished views lie apart, in levels of 255 whatever they are divided by."""

    def __init__(self, std: Sequence[float]) -> None:
        self._scale = 255 * torch.tensor(std).view(3, 1, 1)
        self._sum, self._count, self.most = 0.0, 0, 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        off = ((ours - theirs) * self._scale).abs()
        self.most = max(self.most, float(off.max()))
        self._sum, self._count = self._sum + float(off.sum()), self._count + off.numel()

    @property
    def mean(self) -> float:
        return self._sum / self._count


def _compare(name: RecipeName, images: Sequence[Tensor], *, each: int) -> dict[str, Differences]:
    """Some 50 rows of a recipe on each image, against torchvision."""
    transform = MultiCropTransform.recipe(name)
    std = STD[name]
    bytes_, finish, whole = (Differences(one) for one in ((1 / 255,) * 3, std, std))
    for number, image in enumerate(images):
        for seed in range(number * each, (number + 1) * each):
            cut = transform.cut(image, seed=seed)
            finished = transform.finish(cut)
            assert all(map(torch.equal, transform.apply(image, cut["rows"]), finished))
            taken = {size: iter(part) for size, part in cut.items() if size != "rows"}
            for row, view in zip(from_rows(cut["rows"]), finished, strict=True):
                small = next(taken[str(row.size)])
                theirs = _reference_bytes(image, row)
                bytes_.add(small.float(), theirs.float())
                finish.add(view, _reference_finish(small, row, std))
                whole.add(view, _reference_finish(theirs, row, std))
    return {"bytes": bytes_, "finish": finish, "whole": whole}


def _check(found: dict[str, Differences]) -> None:
    # Bytes differ where a value lies so near the middle of two levels that the last digits of the
    # weights decide: by one level, in a few pixels of a thousand.
    assert found["bytes"].most <= 1
    assert found["bytes"].mean < 0.006
    # From the same bytes on, only the last digits of floats differ.
    assert found["finish"].most < 0.005
    assert found["finish"].mean < 1e-4
    # Jitter makes the one level larger, most of all that of "swav" and "simclr".
    assert found["whole"].most < 8
    assert found["whole"].mean < 0.01


def _seeds(name: RecipeName, rows: int) -> int:
    return -(-rows // len(_views(name)))


@pytest.mark.parametrize("by", ["kernel", "torch"])
@pytest.mark.parametrize("name", RECIPES)
def test_views_of_a_recipe_equal_those_of_torchvision_on_floats(
    name: RecipeName, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "torch":
        monkeypatch.setattr(kernel, "runs", lambda *_: False)
    elif not kernel.runs():
        pytest.skip("the kernel is not built here")
    _check(_compare(name, [_synthetic()], each=_seeds(name, 48)))


@pytest.mark.parametrize("name", RECIPES)
def test_views_of_real_frames_equal_those_of_torchvision_on_floats(
    name: RecipeName, shared_data: Path
) -> None:
    frames = sorted((shared_data / "camvid" / "images").glob("*.jpg"))[::100][:4]
    if not frames:
        pytest.skip("the real data holds no frames of camvid")
    images = []
    for frame in frames:
        with Image.open(frame) as picture:
            images.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
    _check(_compare(name, images, each=_seeds(name, 12)))


def test_the_rows_that_are_compared_hold_every_change() -> None:
    for name in RECIPES:
        seeds = torch.arange(_seeds(name, 48))
        views = [view for view in MultiCropTransform.recipe(name).views if isinstance(view, View)]
        rows = draw_rows(ViewTable(views), height=300, width=400, seeds=seeds).flatten(0, 1)
        for what in RATES:
            fired = int(_fired(rows, what).sum())
            possible = {
                "blur_sigma": any(view.blur_p for view in views),
                "solarized": any(view.solarize_p for view in views),
            }.get(what, True)
            assert (fired > 0) == possible, (name, what)


@pytest.mark.parametrize("name", ["swav", "simclr"])
def test_a_blur_of_three_sigma_is_that_of_the_published_kernel_of_23(name: RecipeName) -> None:
    transform = MultiCropTransform.recipe(name)
    wide = Differences(STD[name])
    image = _synthetic()
    for seed in range(_seeds(name, 48)):
        views, rows = transform.with_rows(image, seed=seed)
        cut = transform.cut(image, seed=seed)
        taken = {size: iter(part) for size, part in cut.items() if size != "rows"}
        for row, view in zip(from_rows(rows), views, strict=True):
            small = next(taken[str(row.size)])
            if row.blur_sigma > 0:
                wide.add(view, _reference_finish(small, row, STD[name], radius=11))
    assert wide.most < 0.2
    assert wide.mean < 0.002
