"""The compiled kernel makes the views that torch makes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from raremix.views import MultiCropTransform, View, ViewParameters, kernel, to_rows
from raremix.views.pixels import recolour
from raremix.views.recipes import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.skipif(not kernel.runs(), reason="the kernel is not built here")

CONSTANTS = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])


def noise(
    channels: int, height: int, width: int, *, layout: str = "planes", seed: int = 0
) -> Tensor:
    """An image of the hardest kind: nothing in it is smooth."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8)
    if layout == "channels last":
        image = image[None].contiguous(memory_format=torch.channels_last)[0]
    return image


def cut(image: Tensor, *parameters: ViewParameters) -> list[Tensor]:
    out = [torch.empty(1, 3, row.size, row.size, dtype=torch.uint8) for row in parameters]
    kernel.cut(image[None], to_rows(parameters)[None], out)
    return [view[0] for view in out]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    layout=st.sampled_from(["planes", "channels last"]),
    flipped=st.booleans(),
    bilinear=st.booleans(),
    data=st.data(),
)
def test_crops_are_those_of_torchvision_on_floats(
    height: int,
    width: int,
    size: int,
    channels: int,
    layout: str,
    flipped: bool,
    bilinear: bool,
    data: st.DataObject,
) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = (
        data.draw(st.integers(start + 1, end)) for start, end in ((left, width), (top, height))
    )
    image = noise(channels, height, width, layout=layout)
    before = image.clone()
    box = left, top, right, bottom
    (view,) = cut(image, ViewParameters(box, size, flipped=flipped, bilinear=bilinear))
    mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    expected = oracle.resized_crop(
        image.double(), top, left, bottom - top, right - left, [size, size], mode, antialias=True
    ).clamp(0, 255)
    expected = expected.flip(-1) if flipped else expected
    # Half a level of rounding, and weights of 15 bits.
    off = (view.double() - expected).abs()
    assert off.max() < 0.6
    assert (off > 0.55).double().mean() < 0.01
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(720, 1280), (4000, 3), (3, 4000), (256, 256)])
@pytest.mark.parametrize("size", [1, 16, 96, 224])
def test_large_and_long_images_are_cut_as_well(shape: tuple[int, int], size: int) -> None:
    image = noise(3, *shape, layout="channels last")
    box = (0, 0, shape[1], shape[0])
    (view,) = cut(image, ViewParameters(box, size))
    expected = oracle.resize(
        image.double(), [size, size], InterpolationMode.BICUBIC, antialias=True
    ).clamp(0, 255)
    assert (view.double() - expected).abs().max() < 0.75


def test_an_even_image_stays_even() -> None:
    for level in (0, 1, 77, 254, 255):
        image = torch.full((3, 37, 53), level, dtype=torch.uint8)
        for view in cut(image, *[ViewParameters((1, 2, 50, 30), size) for size in (5, 24, 96)]):
            assert bool((view == level).all())


def test_nothing_beyond_the_box_is_looked_at() -> None:
    image = noise(3, 40, 60)
    framed = torch.full((3, 60, 80), 255, dtype=torch.uint8)
    framed[:, 10:50, 10:70] = image
    (alone,) = cut(image, ViewParameters((0, 0, 60, 40), 24))
    (inside,) = cut(framed, ViewParameters((10, 10, 70, 50), 24))
    assert torch.equal(alone, inside)


def test_nothing_beyond_the_views_is_written() -> None:
    for size in (1, 7, 8, 17, 33):
        room = torch.full((3 * size * size + 64,), 9, dtype=torch.uint8)
        out = room[32:-32].view(1, 3, size, size)
        row = to_rows([ViewParameters((0, 0, 30, 20), size)])[None]
        kernel.cut(noise(3, 20, 30)[None], row, [out])
        assert bool((room[:32] == 9).all() and (room[-32:] == 9).all())


@st.composite
def parameters_of_a_view(draw: st.DrawFn) -> ViewParameters:
    order = draw(st.permutations(["brightness", "contrast", "saturation", "hue"]))
    factor = st.floats(0.0, 2.0, width=32)
    jitter = tuple(
        (name, draw(st.floats(-0.5, 0.5, width=32) if name == "hue" else factor))
        for name in order[: draw(st.integers(0, 4))]
    )
    return ViewParameters(
        (0, 0, 1, 1),
        1,
        jitter=jitter,
        grayscale=draw(st.booleans()),
        blur_sigma=draw(st.sampled_from([0.0, 0.1, 0.7, 2.0, 11.0])),
        blur_radius=draw(st.sampled_from([0, 1, 4, 40])),
        solarized=draw(st.booleans()),
    )


def finished(small: Tensor, parameters: ViewParameters) -> Tensor:
    out = torch.empty(1, *small.shape)
    assert kernel.finish([small[None]], sized(parameters, small)[None], CONSTANTS, [out])
    return out[0]


def sized(parameters: ViewParameters, small: Tensor) -> Tensor:
    row = to_rows([parameters])
    row[:, 4] = small.shape[-1]
    return row


def by_torch(small: Tensor, parameters: ViewParameters) -> Tensor:
    mean, std = CONSTANTS.view(2, 3, 1, 1)
    return recolour(small, parameters).sub_(mean).div_(std)


@settings(max_examples=200, deadline=None)
@given(parameters=parameters_of_a_view(), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_colours_are_those_of_torch(parameters: ViewParameters, size: int, seed: int) -> None:
    small = noise(3, size, size, seed=seed)
    before = small.clone()
    # A hue is lost where a colour is nearly gray, and a contrast or saturation widens rounding.
    torch.testing.assert_close(
        finished(small, parameters), by_torch(small, parameters), atol=2e-4, rtol=0
    )
    assert torch.equal(small, before)


def test_no_view_of_dinos_recipe_is_further_off_than_said() -> None:
    transform = MultiCropTransform(global_crop_size=64, local_crop_size=64)
    furthest = 0.0
    for seed in range(50):
        small = noise(3, 64, 64, seed=seed)
        for row in transform.draw(height=64, width=64, seed=seed):
            off = (finished(small, row) - by_torch(small, row)).abs().max()
            furthest = max(furthest, float(off))
    assert 0 < furthest < 1e-4


def test_every_byte_value_survives() -> None:
    small = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)
    out = torch.empty(1, 3, 16, 16)
    row = sized(ViewParameters((0, 0, 1, 1), 1), small)
    plain = torch.tensor([[0.0] * 3, [1.0] * 3])
    assert kernel.finish([small[None]], row[None], plain, [out])
    assert torch.equal(out[0], small.float() / 255)


def test_a_blur_too_wide_for_it_is_left_to_torch() -> None:
    wide = View(size=8, scale=(0.9, 1.0), blur_p=1.0, blur_sigma=(200.0, 200.0))
    transform = MultiCropTransform.from_views([wide])
    (view,) = transform(noise(3, 8, 8), seed=0)
    assert bool(view.isfinite().all())
    (views,) = transform.batch(noise(3, 8, 8).repeat(3, 1, 1, 1), seeds=[0, 1, 0])
    torch.testing.assert_close(views[2], view, atol=1e-5, rtol=0)
    out = torch.empty(1, 3, 8, 8)
    row = to_rows([ViewParameters((0, 0, 8, 8), 8, blur_sigma=200.0)])[None]
    assert not kernel.finish([noise(3, 8, 8)[None]], row, CONSTANTS, [out])


def test_the_transform_uses_it_and_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(np.linspace(0, 255, 3 * 90 * 120).astype(np.uint8)).view(3, 90, 120)
    transform = MultiCropTransform(global_crop_size=32, local_crop_size=16)
    views, rows = transform.with_rows(image, seed=3)
    several = transform.batch(image.repeat(2, 1, 1, 1), seeds=[3, 4])
    monkeypatch.setattr(kernel, "runs", lambda images=None: False)
    others, same = transform.with_rows(image, seed=3)
    assert torch.equal(rows, same)
    whole = transform.batch(image.repeat(2, 1, 1, 1), seeds=[3, 4])
    assert [tuple(view.shape) for view in transform.batch(image[None][:0])][1:3] == [
        (0, 3, 32, 32),
        (0, 3, 16, 16),
    ]
    for view, other, mine, theirs in zip(views, others, several, whole, strict=True):
        # A level where a sum lies between two.
        for made, expected in ((view, other), (mine, theirs)):
            off = (made - expected).abs()
            assert off.max() < 0.1
            assert off.mean() < 1e-3
        assert torch.equal(mine[0], view)


def test_threads_share_a_batch_out_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = MultiCropTransform.recipe("small")
    images = torch.stack([noise(3, 32, 32, seed=seed) for seed in range(50)])
    made = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        made.append(transform.batch(images, seeds=range(50)))
    assert all(map(torch.equal, *made))


def test_want_of_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: -1

    monkeypatch.setattr(kernel, "_loaded", lambda: Full())
    with pytest.raises(MemoryError, match="no memory left to make views with"):
        MultiCropTransform().apply(noise(3, 8, 8), [ViewParameters((0, 0, 8, 8), 8)])
