"""The compiled kernel makes the views that torch makes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.compiled import compiled
from raremix.views import MultiCropTransform, View, multicrop
from raremix.views.draws import ViewParameters
from raremix.views.kernel import finished, kernel_path
from raremix.views.multicrop import IMAGENET_MEAN, IMAGENET_STD
from raremix.views.pixels import recolour

pytestmark = pytest.mark.skipif(
    isinstance(compiled(kernel_path()), str), reason="the kernel is not built here"
)

ORDERS = st.permutations(
    [("brightness", 0.0), ("contrast", 0.0), ("saturation", 0.0), ("hue", 0.0)]
)


def by_torch(small: Tensor, parameters: ViewParameters) -> Tensor:
    mean, std = (torch.tensor(n).view(3, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD))
    return recolour(small, parameters).sub_(mean).div_(std)


def by_kernel(small: Tensor, parameters: ViewParameters) -> Tensor:
    view = finished(small, parameters, IMAGENET_MEAN, IMAGENET_STD)
    assert view is not None
    return view


@st.composite
def parameters_of_a_view(draw: st.DrawFn) -> ViewParameters:
    order = draw(ORDERS)[: draw(st.integers(0, 4))]
    factor = st.floats(0.0, 2.0, width=32)
    jitter = tuple(
        (name, draw(st.floats(-0.5, 0.5, width=32) if name == "hue" else factor))
        for name, _ in order
    )
    return ViewParameters(
        (0, 0, 1, 1),
        1,
        flipped=draw(st.booleans()),
        jitter=jitter,
        grayscale=draw(st.booleans()),
        blur_sigma=draw(st.sampled_from([0.0, 0.1, 0.7, 2.0, 11.0])),
        solarized=draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(
    parameters=parameters_of_a_view(),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    layout=st.sampled_from(["planes", "channels last", "every other"]),
    seed=st.integers(0, 99),
)
def test_it_agrees_with_torch(
    parameters: ViewParameters, height: int, width: int, channels: int, layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, height, width)
    small = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if layout == "channels last":
        small = small[None].contiguous(memory_format=torch.channels_last)[0]
    elif layout == "every other":
        small = small.repeat_interleave(2, dim=2)[:, :, ::2]
    before = small.clone()
    expected = by_torch(small, parameters)
    # A hue is lost where a colour is nearly gray, and a contrast or saturation widens rounding.
    torch.testing.assert_close(by_kernel(small, parameters), expected, atol=2e-4, rtol=0)
    assert torch.equal(small, before)


def test_no_view_of_dinos_recipe_is_further_off_than_said() -> None:
    transform = MultiCropTransform(global_crop_size=64, local_crop_size=32)
    generator = torch.Generator().manual_seed(0)
    furthest = 0.0
    for _ in range(50):
        small = torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        for row in transform.draw(height=64, width=64, generator=generator):
            off = (by_kernel(small, row) - by_torch(small, row)).abs().max()
            furthest = max(furthest, float(off))
    assert 0 < furthest < 1e-4


def test_every_byte_value_survives() -> None:
    small = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    view = finished(small, ViewParameters((0, 0, 1, 1), 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert view is not None
    assert torch.equal(view, small.float() / 255)


def test_a_blur_too_wide_for_it_is_left_to_torch() -> None:
    small = torch.zeros(3, 8, 8, dtype=torch.uint8)
    parameters = ViewParameters((0, 0, 8, 8), 8, blur_sigma=200.0)
    assert finished(small, parameters, IMAGENET_MEAN, IMAGENET_STD) is None
    wide = View(size=8, scale=(0.9, 1.0), blur_p=1.0, blur_sigma=(200.0, 200.0))
    (view,) = MultiCropTransform.from_views([wide])(small)
    assert bool(torch.isfinite(view).all())


def test_the_transform_uses_it_and_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randint(256, (3, 90, 120), dtype=torch.uint8)
    transform = MultiCropTransform(global_crop_size=32, local_crop_size=16)
    rows = transform.draw(height=90, width=120, generator=torch.Generator().manual_seed(3))
    views = transform.apply(image, rows)
    called = []
    monkeypatch.setattr(multicrop, "finished", lambda *given: called.append(given))
    for view, other in zip(views, transform.apply(image, rows), strict=True):
        torch.testing.assert_close(view, other, atol=1e-4, rtol=0)
    assert len(called) == len(views)
