"""Tests of the views of whole batches, against torchvision's crops and against single views."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from raremix.views import batched, pixels
from raremix.views.batched import cut_batch, finish_batch
from raremix.views.rows import Box, ViewParameters, to_rows

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _images(count: int, height: int, width: int, *, channels: int = 3) -> Tensor:
    """Bytes with flat parts, slopes, edges and noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images[:, :, : height // 4] = 255
    images[:, :, height // 4 : height // 2] = torch.linspace(0, 255, width).to(torch.uint8)
    images[:, 0, :, : width // 3] = 0
    return images


def _boxes(count: int, height: int, width: int) -> list[Box]:
    """Large and small ones, the whole image among them, and boxes that are one pixel wide."""
    generator = torch.Generator().manual_seed(1)

    def ends(length: int) -> tuple[int, int]:
        start = int(torch.randint(length, (1,), generator=generator))
        return start, int(torch.randint(start + 1, length + 1, (1,), generator=generator))

    boxes = [(0, 0, width, height), (0, 0, 1, height), (width - 1, 0, width, 1)]
    while len(boxes) < count:
        (left, right), (top, bottom) = ends(width), ends(height)
        boxes.append((left, top, right, bottom))
    return boxes[:count]


def _all_sorts(count: int, height: int, width: int, size: int) -> list[ViewParameters]:
    """Views of which any two differ in what is done to them."""
    changes = [("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.3), ("hue", -0.1)]
    return [
        ViewParameters(
            box,
            size,
            flipped=at % 2 == 1,
            bilinear=at % 3 == 1,
            jitter=tuple(changes[(at + step) % 4] for step in range(at % 5)),
            grayscale=at % 4 == 3,
            blur_sigma=(0.0, 0.5, 1.3, 2.0)[at % 4],
            blur_radius=(0, 0, 2, 4, 9)[at % 5],
            solarized=at % 6 == 2,
        )
        for at, box in enumerate(_boxes(count, height, width))
    ]


def _cut_by_torchvision(image: Tensor, view: ViewParameters) -> Tensor:
    left, top, right, bottom = view.box
    mode = InterpolationMode.BILINEAR if view.bilinear else InterpolationMode.BICUBIC
    cut = oracle.resized_crop(
        image.float(), top, left, bottom - top, right - left, [view.size] * 2, mode, antialias=True
    )
    assert isinstance(cut, Tensor)
    return (cut.flip(-1) if view.flipped else cut).clamp(0, 255)


def _assert_cut(cut: Tensor, images: Tensor, views: Sequence[ViewParameters]) -> None:
    expected = torch.stack(
        [_cut_by_torchvision(image, view) for image, view in zip(images, views, strict=True)]
    )
    assert cut.dtype == torch.uint8
    assert cut.shape == expected.shape
    # Nothing but the rounding: what lies midway may go either way.
    assert (cut.float() - expected).abs().max() < 0.501


def _finished_singly(views: Tensor, parameters: Sequence[ViewParameters]) -> Tensor:
    finished = [pixels.recolour(*both) for both in zip(views, parameters, strict=True)]
    return (torch.stack(finished) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(44, 60, 32), (32, 32, 32), (40, 30, 96), (256, 200, 64), (700, 33, 48), (9, 500, 24)],
)
def test_crops_are_those_of_torchvision(height: int, width: int, size: int, channels: int) -> None:
    images = _images(12, height, width, channels=channels)
    views = _all_sorts(12, height, width, size)
    _assert_cut(cut_batch(images, to_rows(views)), images, views)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_crops_to_a_few_pixels_are_those_of_torchvision(size: int) -> None:
    images, views = _images(20, 50, 70), _all_sorts(20, 50, 70, size)
    _assert_cut(cut_batch(images, to_rows(views)), images, views)


def test_boxes_at_every_edge_are_cut_where_they_are() -> None:
    images = _images(5, 20, 30)
    boxes = [(0, 0, 5, 5), (25, 0, 30, 5), (0, 15, 5, 20), (25, 15, 30, 20), (3, 2, 30, 20)]
    views = [ViewParameters(box, 16) for box in boxes]
    _assert_cut(cut_batch(images, to_rows(views)), images, views)


def test_an_image_of_one_pixel_fills_its_view() -> None:
    images = torch.tensor([[7, 0, 255]], dtype=torch.uint8).view(1, 3, 1, 1)
    cut = cut_batch(images, to_rows([ViewParameters((0, 0, 1, 1), 4)]))
    assert torch.equal(cut, images.expand(-1, -1, 4, 4))


def test_a_box_of_the_size_of_the_view_is_copied() -> None:
    images = _images(4, 40, 50)
    views = [ViewParameters((at, 2 * at, at + 32, 2 * at + 32), 32) for at in range(4)]
    expected = [image[:, 2 * at : 2 * at + 32, at : at + 32] for at, image in enumerate(images)]
    assert torch.equal(cut_batch(images, to_rows(views)), torch.stack(expected))


@pytest.mark.parametrize("bilinear", [False, True])
def test_white_stays_white(bilinear: bool) -> None:
    images = torch.full((9, 3, 61, 83), 255, dtype=torch.uint8)
    views = [ViewParameters(box, 45, bilinear=bilinear) for box in _boxes(9, 61, 83)]
    assert torch.equal(cut_batch(images, to_rows(views)), images[:, :, :45, :45])


def test_a_flip_mirrors_the_crop() -> None:
    images = _images(6, 44, 60)
    straight = [ViewParameters(box, 24) for box in _boxes(6, 44, 60)]
    flipped = [ViewParameters(view.box, 24, flipped=True) for view in straight]
    cut = cut_batch(images, to_rows(straight))
    assert torch.equal(cut_batch(images, to_rows(flipped)), cut.flip(-1))


def test_many_views_are_cut_from_few_images() -> None:
    images, rows = _images(3, 44, 60), to_rows(_all_sorts(12, 44, 60, 20))
    sources = torch.tensor([0, 1, 2, 0, 0, 1, 2, 2, 1, 0, 0, 1])
    assert torch.equal(cut_batch(images, rows, sources=sources), cut_batch(images[sources], rows))


def test_a_crop_does_not_hang_on_its_neighbours() -> None:
    """Equal to the bit: sums are over a sample's own taps, in order; other taps weigh nothing."""
    images, rows = _images(12, 300, 400), to_rows(_all_sorts(12, 300, 400, 32))
    together = cut_batch(images, rows)
    for at in range(12):
        alone = cut_batch(images[at : at + 1], rows[at : at + 1])
        assert torch.equal(together[at : at + 1], alone)
    order = torch.arange(11, -1, -1)
    assert torch.equal(cut_batch(images[order], rows[order]), together[order])


@pytest.mark.parametrize("max_bytes", [1, 100_000])
def test_crops_are_the_same_in_chunks(max_bytes: int) -> None:
    images, rows = _images(12, 90, 120), to_rows(_all_sorts(12, 90, 120, 32))
    whole = cut_batch(images, rows, max_bytes=2**30)
    assert torch.equal(cut_batch(images, rows, max_bytes=max_bytes), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["channels last", "strided", "shared"])
def test_images_may_lie_in_memory_as_they_like(layout: str, channels: int) -> None:
    images = _images(6, 44, 60, channels=channels)
    rows = to_rows(_all_sorts(6, 44, 60, 20))
    if layout == "channels last":
        other = images.to(memory_format=torch.channels_last)
    elif layout == "strided":
        other = images.repeat_interleave(2, dim=3).repeat_interleave(2, dim=0)[::2, :, :, ::2]
    else:
        other = images[:1].expand(6, -1, -1, -1)
        images = other.contiguous()
    cut = cut_batch(other, rows)
    assert cut.is_contiguous()
    assert torch.equal(cut, cut_batch(images, rows))
    square = other[:, :, :20, :20]
    assert torch.equal(
        finish_batch(square, rows, MEAN, STD), finish_batch(square.contiguous(), rows, MEAN, STD)
    )


def test_an_empty_batch_gives_no_views() -> None:
    rows = to_rows([])
    assert cut_batch(_images(0, 8, 8), rows).shape[:2] == (0, 3)
    assert cut_batch(_images(0, 8, 8, channels=1), rows, size=5).shape == (0, 1, 5, 5)
    finished = finish_batch(_images(0, 8, 8, channels=1), rows, MEAN, STD)
    assert finished.shape == (0, 3, 8, 8)
    assert finished.dtype == torch.float32


def test_inputs_stay_as_they_are() -> None:
    images, rows = _images(9, 24, 24), to_rows(_all_sorts(9, 24, 24, 24))
    before = images.clone(), rows.clone()
    cut_batch(images, rows)
    finish_batch(images, rows, MEAN, STD)
    assert torch.equal(images, before[0])
    assert torch.equal(rows, before[1])


def _colours() -> Iterator[st.SearchStrategy[tuple[str, float]]]:
    for name in ("brightness", "contrast", "saturation"):
        yield st.tuples(st.just(name), st.floats(0, 3))
    yield st.tuples(st.just("hue"), st.floats(-0.5, 0.5))


RECOLOURED = st.builds(
    ViewParameters,
    box=st.just((0, 0, 9, 9)),
    size=st.just(9),
    jitter=st.lists(st.one_of(*_colours()), max_size=4).map(tuple),
    grayscale=st.booleans(),
    blur_sigma=st.one_of(st.just(0.0), st.floats(0.1, 4)),
    blur_radius=st.integers(0, 20),
    solarized=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(parameters=st.lists(RECOLOURED, min_size=1, max_size=6), channels=st.sampled_from([1, 3]))
def test_colours_change_as_in_a_single_view(
    parameters: list[ViewParameters], channels: int
) -> None:
    small = _images(len(parameters), 9, 9, channels=channels)
    finished = finish_batch(small, to_rows(parameters), MEAN, STD)
    expected = _finished_singly(small, parameters)
    # A hue is lost where a colour is nearly gray, and brightness widens what is left of it.
    torch.testing.assert_close(finished, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_views_of_all_sorts_finish_as_single_views_do(size: int) -> None:
    parameters = _all_sorts(24, size, size, size)
    small = _images(24, size, size)
    finished = finish_batch(small, to_rows(parameters), MEAN, STD)
    assert finished.is_contiguous()
    expected = _finished_singly(small, parameters)
    torch.testing.assert_close(finished, expected, rtol=0, atol=1e-5)


def _blurred_plainly(view: Tensor, sigma: float, radius: int) -> Tensor:
    """The same sum spelled out, in float64, with a mirror that can be followed by hand."""
    size = view.shape[-1]
    radius = min(radius, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for at in range(size):
        for step in range(-radius, radius + 1):
            mirrored = abs(at + step)
            mirrored = mirrored if mirrored < size else 2 * (size - 1) - mirrored
            matrix[at, mirrored] += torch.exp(torch.tensor(-0.5 * (step / sigma) ** 2).double())
    matrix /= matrix[size // 2].sum()
    return matrix @ view.double() @ matrix.T


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_each_blur_has_its_own_sigma_and_reach(size: int) -> None:
    # Sigma, the reach asked for, and the one that this means.
    blurs = [(0.1, 0, 1), (0.8, 0, 3), (2.0, 0, 6), (2.0, 4, 4), (1.3, 11, 11), (5.0, 1, 1)]
    small = _images(len(blurs), size, size)
    rows = to_rows(
        ViewParameters((0, 0, size, size), size, blur_sigma=sigma, blur_radius=asked)
        for sigma, asked, _ in blurs
    )
    finished = finish_batch(small, rows, torch.zeros(3), torch.ones(3))
    for view, after, (sigma, _, reach) in zip(small, finished, blurs, strict=True):
        expected = _blurred_plainly(view / 255, sigma, reach).float()
        torch.testing.assert_close(after, expected, rtol=0, atol=2e-6)


def test_the_finish_does_not_hang_on_its_neighbours() -> None:
    """To 1e-6, for a device may add up the mean gray in another order when there are more."""
    parameters = _all_sorts(24, 33, 33, 33)
    small, rows = _images(24, 33, 33), to_rows(parameters)
    together = finish_batch(small, rows, MEAN, STD)
    for at in range(24):
        alone = finish_batch(small[at : at + 1], rows[at : at + 1], MEAN, STD)
        torch.testing.assert_close(together[at : at + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [1, 200_000])
def test_finished_views_are_the_same_in_chunks(max_bytes: int) -> None:
    small, rows = _images(24, 33, 33), to_rows(_all_sorts(24, 33, 33, 33))
    whole = finish_batch(small, rows, MEAN, STD, max_bytes=2**30)
    chunked = finish_batch(small, rows, MEAN, STD, max_bytes=max_bytes)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)


def test_nothing_becomes_half_under_autocast() -> None:
    images, rows = _images(12, 60, 60), to_rows(_all_sorts(12, 60, 60, 32))
    cut = cut_batch(images, rows)
    finished = finish_batch(cut, rows, MEAN, STD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cut_batch(images, rows), cut)
        assert torch.equal(finish_batch(cut, rows, MEAN, STD), finished)


def test_devices_without_bags_of_embeddings_sum_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand((30, 21), generator=generator)
    index = torch.randint(30, (50, 5), generator=generator)
    weights = torch.rand((50, 5), generator=generator)
    expected = torch.nn.functional.embedding_bag(
        index, table, mode="sum", per_sample_weights=weights
    )
    torch.testing.assert_close(batched._sums_by_tap(table, index, weights), expected)


def test_nobody_looks_at_what_is_on_the_device() -> None:
    """Tensors without values stand for a device: whoever asked them for one would fail."""
    images, rows = _images(12, 60, 60).to("meta"), to_rows(_all_sorts(12, 60, 60, 32))
    cut = cut_batch(images, rows)
    finished = finish_batch(cut, rows, MEAN, STD)
    assert cut.device == finished.device == images.device
    assert finished.shape == (12, 3, 32, 32)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_cuts_as_the_cpu_does() -> None:
    images, rows = _images(12, 300, 200), to_rows(_all_sorts(12, 300, 200, 64))
    cut = cut_batch(images.cuda(), rows)
    assert cut.is_cuda
    assert (cut.cpu().int() - cut_batch(images, rows).int()).abs().max() <= 1


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_finishes_as_the_cpu_does() -> None:
    small, rows = _images(24, 64, 64), to_rows(_all_sorts(24, 64, 64, 64))
    finished = finish_batch(small.cuda(), rows, MEAN, STD)
    assert finished.is_cuda
    expected = finish_batch(small, rows, MEAN, STD)
    torch.testing.assert_close(finished.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_asked_for_speed_stays_exact() -> None:
    images, rows = _images(12, 64, 64), to_rows(_all_sorts(12, 64, 64, 64))
    images = images.cuda()
    cut, finished = cut_batch(images, rows), finish_batch(images, rows, MEAN, STD)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", dtype=torch.float16):
            quick = cut_batch(images, rows), finish_batch(images, rows, MEAN, STD)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(quick[0], cut)
    torch.testing.assert_close(quick[1], finished, rtol=0, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_nobody_waits_for_the_gpu() -> None:
    images, rows = _images(12, 64, 64).cuda(), to_rows(_all_sorts(12, 64, 64, 64))
    torch.cuda.set_sync_debug_mode("error")
    try:
        finish_batch(cut_batch(images, rows), rows, MEAN, STD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
