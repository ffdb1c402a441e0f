"""Tests of the whole transform."""

import copy
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

from raremix.errors import ImageInputError, OptionError
from raremix.views import COLUMNS, MultiCropTransform, View, from_rows, to_rows
from raremix.views.recipes import IMAGENET_MEAN, IMAGENET_STD

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMALL = MultiCropTransform(global_crop_size=32, local_crop_size=16)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_defaults_are_two_global_and_six_local_views_of_float32() -> None:
    views = MultiCropTransform()(PIXELS, generator=_generator())
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 6
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in views)


def test_the_recipe_is_that_of_dino() -> None:
    first, second, *local = MultiCropTransform(n_local_views=8).views
    shared = View(224, (0.4, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert first == replace(shared, blur_p=1.0, blur_sigma=(0.1, 2.0), solarize_p=0.0)
    assert second == replace(shared, blur_p=0.1, solarize_p=0.2)
    assert local == [replace(shared, size=96, scale=(0.05, 0.4), blur_p=0.5)] * 8


def test_further_global_views_are_like_the_second() -> None:
    transform = MultiCropTransform(n_global_views=4, n_local_views=0)
    assert transform.views[2:] == (transform.views[1],) * 2
    assert transform.n_global_views == 4
    assert len(MultiCropTransform(n_global_views=1, n_local_views=0)(PIXELS)) == 1


def test_the_same_generator_state_gives_the_same_views_and_the_next_gives_others() -> None:
    generator = _generator(5)
    first, second = SMALL(PIXELS, generator=generator), SMALL(PIXELS, generator=generator)
    assert _equal(first, SMALL(PIXELS, generator=_generator(5)))
    assert not _equal(first, second)


def test_views_do_not_depend_on_the_number_of_threads() -> None:
    transform = MultiCropTransform()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [transform(PIXELS, generator=_generator(seed)) for seed in range(4)]
        torch.set_num_threads(4)
        together = [transform(PIXELS, generator=_generator(seed)) for seed in range(4)]
        assert all(map(_equal, alone, together))
    finally:
        torch.set_num_threads(threads)


def _global_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def test_no_global_randomness_is_touched_when_a_generator_is_given() -> None:
    before = _global_states()
    SMALL(PIXELS, generator=_generator())
    SMALL.with_rows(PIXELS, generator=_generator())
    SMALL.cut(PIXELS, seed=1)
    SMALL.batch(torch.from_numpy(PIXELS).permute(2, 0, 1)[None], seeds=[3])
    SMALL.draw(height=9, width=9, generator=_generator())
    assert _global_states() == before


def test_without_a_generator_only_the_default_one_of_torch_is_used() -> None:
    before = _global_states()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        views = SMALL(PIXELS)
        torch.manual_seed(3)
        assert _equal(SMALL(PIXELS), views)
        assert _equal(SMALL(PIXELS, generator=_generator(3)), views)
    assert _global_states() == before


def test_views_do_not_depend_on_torch_s_default_dtype_device_or_grad_mode() -> None:
    expected = SMALL(PIXELS, generator=_generator())
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            views, rows = SMALL.with_rows(PIXELS, generator=_generator())
            finished = SMALL.finish(SMALL.cut(PIXELS, generator=_generator()))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert rows.device.type == "cpu"
    assert _equal(views, expected)
    assert _equal(finished, expected)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).contiguous(),
    ],
    ids=["pil", "rgba", "channels-last", "planes"],
)
def test_every_holder_of_the_same_pixels_gives_the_same_views(image: Any) -> None:
    assert _equal(SMALL(image, generator=_generator()), SMALL(PIXELS, generator=_generator()))


@pytest.mark.parametrize("to_gray", [Image.fromarray, torch.as_tensor, np.asarray])
def test_a_gray_image_gives_the_views_of_its_three_equal_channels(
    to_gray: Callable[[Any], Any],
) -> None:
    gray = PIXELS[..., 0].copy()
    image = to_gray(gray[None] if to_gray is torch.as_tensor else gray)
    colored = np.repeat(gray[..., None], 3, axis=2)
    assert _equal(SMALL(image, generator=_generator()), SMALL(colored, generator=_generator()))


def test_views_of_one_pixel_can_be_made() -> None:
    transform = MultiCropTransform(global_crop_size=1, local_crop_size=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        image = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].contiguous(memory_format=layout)
        assert all(bool(view.isfinite().all()) for view in transform(image[0]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (8, 8), (4000, 3)])
def test_tiny_and_long_images_give_finite_views(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    plain = View(size=16, scale=(0.05, 1.0), jitter_p=0, grayscale_p=0, blur_p=1)
    flat = MultiCropTransform.from_views([plain] * 8)
    expected = (77 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    for view in flat(image, generator=_generator()):
        torch.testing.assert_close(view, expected.view(3, 1, 1).expand(3, 16, 16))
    assert all(bool(view.isfinite().all()) for view in SMALL(image, generator=_generator()))


def test_mean_and_std_are_those_that_were_given() -> None:
    raw = MultiCropTransform(mean=(0, 0, 0), std=(1, 1, 1), global_crop_size=32, local_crop_size=16)
    for view, normalised in zip(
        raw(PIXELS, generator=_generator()), SMALL(PIXELS, generator=_generator()), strict=True
    ):
        assert 0 <= view.min() < view.max() <= 1
        torch.testing.assert_close(T.Normalize(IMAGENET_MEAN, IMAGENET_STD)(view), normalised)


def test_rows_tell_what_was_drawn_for_the_views_of_a_call() -> None:
    views, rows = SMALL.with_rows(PIXELS, generator=_generator(4))
    assert _equal(views, SMALL(PIXELS, generator=_generator(4)))
    assert (rows.shape, rows.dtype) == ((8, len(COLUMNS)), torch.float32)
    drawn = SMALL.draw(height=48, width=64, generator=_generator(4))
    assert from_rows(rows) == drawn
    assert torch.equal(to_rows(drawn), rows)
    assert _equal(SMALL.apply(PIXELS, rows), views)


def test_a_box_cut_by_hand_is_what_the_view_shows() -> None:
    plain = View(48, (0.1, 1.0), jitter_p=0, grayscale_p=0, flip_p=0)
    transform = MultiCropTransform.from_views([plain] * 4, mean=(0, 0, 0), std=(1, 1, 1))
    views, rows = transform.with_rows(PIXELS, generator=_generator())
    for view, box in zip(views, rows[:, :4].tolist(), strict=True):
        cut = Image.fromarray(PIXELS).crop(box).resize((48, 48), Image.Resampling.BICUBIC)
        # PIL clips to a byte between its two passes, which shows on noise such as this.
        assert (view.permute(1, 2, 0) * 255 - torch.tensor(np.array(cut))).abs().mean() < 0.5


def test_drawing_and_applying_is_a_call() -> None:
    rows = SMALL.draw(height=48, width=64, generator=_generator(6))
    views = SMALL.apply(PIXELS, rows)
    assert _equal(views, SMALL(PIXELS, generator=_generator(6)))
    mirrored = SMALL.apply(PIXELS, [replace(row, flipped=not row.flipped) for row in rows])
    torch.testing.assert_close([view.flip(-1) for view in mirrored], views, rtol=0, atol=0.05)


def test_applying_what_was_drawn_for_a_larger_image_is_refused() -> None:
    rows = SMALL.draw(height=480, width=640, generator=_generator())
    with pytest.raises(ImageInputError, match="boxes inside the image of 64 x 48 pixels, got"):
        SMALL.apply(PIXELS, rows)


def test_any_views_can_stand_in_for_those_of_dino() -> None:
    large, small = View(size=40, scale=(0.5, 1.0)), View(size=20, scale=(0.1, 0.5))
    transform = MultiCropTransform.from_views([large], [small, small, large])
    assert [view.shape[-1] for view in transform(PIXELS)] == [40, 20, 20, 40]
    assert transform.n_global_views == 1


def test_small_images_keep_their_detail() -> None:
    digit = np.arange(64, dtype=np.uint8).reshape(8, 8)
    transform = MultiCropTransform.recipe(
        "small",
        global_crop_size=16,
        local_crop_size=8,
        n_global_views=3,
        n_local_views=2,
        flip_p=0.0,
    )
    views, rows = transform.with_rows(digit, generator=_generator())
    assert [view.shape[-1] for view in views] == [16, 16, 16, 8, 8]
    assert not any(row.blur_sigma or row.flipped for row in from_rows(rows))
    assert int((rows[:, 2:4] - rows[:, :2]).min()) >= 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("global_crop_size", 0),
        ("local_crop_size", 9.5),
        ("n_global_views", 0),
        ("n_local_views", -1),
        ("n_local_views", True),
        ("global_scale", (0.4, 1.2)),
        ("local_scale", (0.4, 0.05)),
        ("ratio", (0, 1)),
        ("mean", (0.5, 0.5)),
        ("mean", (123.7, 116.3, 103.5)),
        ("std", (1, 1, 0)),
        ("std", (1, 1, math.nan)),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(OptionError) as caught:
        MultiCropTransform(**options)
    assert str(caught.value).startswith(f"MultiCropTransform expects {option}")
    assert f"got {value!r}" in str(caught.value)


def test_wrong_views_sizes_and_small_image_options_are_refused() -> None:
    with pytest.raises(OptionError, match="expects at least one global view, got none"):
        MultiCropTransform.from_views([])
    with pytest.raises(OptionError, match="expects View objects or functions, got 224"):
        MultiCropTransform.from_views([224])  # type: ignore[list-item]  # The mistake under test.
    with pytest.raises(OptionError, match=r"recipe expects local_crop_size .* got 0"):
        MultiCropTransform.recipe("small", local_crop_size=0)
    with pytest.raises(
        OptionError, match="local_crop_size=32 for no local view; pass n_local_views"
    ):
        MultiCropTransform.recipe("simclr", local_crop_size=32)
    with pytest.raises(OptionError, match=r"recipe expects name .*dinov2.* got 'moco'"):
        MultiCropTransform.recipe("moco")  # type: ignore[arg-type]  # The mistake under test.
    with pytest.raises(OptionError, match=r"draw expects height .* got 0"):
        SMALL.draw(height=0, width=5)


def test_a_wrong_image_names_the_call() -> None:
    with pytest.raises(ImageInputError, match=r"^MultiCropTransform expects a uint8 tensor"):
        SMALL(torch.zeros(3, 8, 8))
    with pytest.raises(ImageInputError, match=r"^MultiCropTransform.with_rows expects an image"):
        SMALL.with_rows("cat.jpg")  # type: ignore[arg-type]  # The mistake under test.


def test_repr_counts_equal_views() -> None:
    shown = repr(SMALL)
    assert shown.startswith("MultiCropTransform(\n    1 global: View(size=32, scale=(0.4, 1.0)")
    assert "    6 local: View(size=16" in shown
    assert shown.endswith("    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),\n)")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_pickles_make_the_same_views(
    clone: Callable[[MultiCropTransform], MultiCropTransform],
) -> None:
    views = clone(SMALL)(PIXELS, generator=_generator())
    assert _equal(views, SMALL(PIXELS, generator=_generator()))


def test_threads_may_share_a_transform() -> None:
    expected = [SMALL(PIXELS, generator=_generator(seed)) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        views = pool.map(lambda seed: SMALL(PIXELS, generator=_generator(seed)), range(12))
        assert all(map(_equal, views, expected))


def test_workers_of_a_loader_draw_different_views_of_one_image() -> None:
    # One image, twice: each worker makes the views of one of the two.
    transform = MultiCropTransform(global_crop_size=16, local_crop_size=8, n_local_views=2)
    loader = DataLoader(
        FakeData(size=1, image_size=(3, 24, 24), transform=transform),
        sampler=[0, 0],
        num_workers=2,
        multiprocessing_context="spawn",
        generator=_generator(0),
    )
    first, second = (views for views, _ in loader)
    assert [tuple(view.shape) for view in first] == [(1, 3, 16, 16)] * 2 + [(1, 3, 8, 8)] * 2
    assert not any(map(torch.equal, first, second))


def test_importing_the_views_does_not_import_torchvision() -> None:
    code = "import sys, raremix.views; raise SystemExit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The recipe as PIL and torchvision make it, from its description: the distribution to agree with.


class _Sometimes:
    def __init__(self, change: Callable[[Image.Image], Image.Image], p: float) -> None:
        self.change, self.p = change, p

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.change(image) if float(torch.rand(())) < self.p else image


def _pil_blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * float(torch.rand(()))))


def _pil_recipe(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float) -> Any:
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            _Sometimes(_pil_blur, blur_p),
            _Sometimes(ImageOps.solarize, solarize_p),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _statistics(view: Tensor) -> list[float]:
    """Brightness, contrast, colourfulness, sharpness, left against right, red against blue."""
    half = view.shape[-1] // 2
    return [
        float(view.mean()),
        float(view.std()),
        float(view.std(0).mean()),
        float(view.diff(dim=-1).abs().mean() / view.std()),
        float(view[..., :half].mean() - view[..., half:].mean()),
        float(view[0].mean() - view[2].mean()),
    ]


def test_views_are_distributed_as_those_of_pil_and_torchvision() -> None:
    n = 500
    rows, columns = np.mgrid[0:60, 0:80]
    planes = [128 + 90 * np.sin(rows / a + columns / b) for a, b in ((5, 9), (7, 6), (11, 4))]
    scene = (np.stack(planes, axis=2) + PIXELS[:1, :1] % 20).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(scene)
    transform = MultiCropTransform(global_crop_size=32, local_crop_size=16, n_local_views=1)
    peers = [
        _pil_recipe(32, (0.4, 1.0), 1.0, 0.0),
        _pil_recipe(32, (0.4, 1.0), 0.1, 0.2),
        _pil_recipe(16, (0.05, 0.4), 0.5, 0.0),
    ]
    generator = _generator(1)
    ours = [transform(picture, generator=generator) for _ in range(n)]
    with _seeded(2):
        theirs = [[peer(picture) for peer in peers] for _ in range(n)]
    for place in range(3):
        mine, others = (
            torch.tensor([_statistics(views[place]) for views in sample], dtype=torch.float64)
            for sample in (ours, theirs)
        )
        for one, two in zip(mine.T.contiguous(), others.T.contiguous(), strict=True):
            every = torch.cat([one, two])
            shares = [
                torch.searchsorted(values.sort()[0], every, right=True) / n for values in (one, two)
            ]
            # Kolmogorov-Smirnov: passed by chance once in a thousand.
            assert (shares[0] - shares[1]).abs().max() < 1.95 * math.sqrt(2 / n)
