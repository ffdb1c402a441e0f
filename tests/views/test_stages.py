"""The two stages: what is cut in a worker and finished elsewhere is what a call makes at once."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from raremix import (
    BufferedMixSampler,
    BufferEntries,
    CropMixer,
    ImageArrays,
    RareMemoryBuffer,
)
from raremix.errors import ImageInputError, OptionError
from raremix.seeds import derive_seed
from raremix.views import MultiCropTransform, View, from_rows, sample_seeds, to_rows

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 40, 60, 3), dtype=np.uint8)
BATCH = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
SMALL = MultiCropTransform(global_crop_size=32, local_crop_size=16, n_local_views=3)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_finishing_what_was_cut_is_a_call() -> None:
    assert equal(SMALL.finish(SMALL.cut(IMAGES[0], seed=4)), SMALL(IMAGES[0], seed=4))


def test_a_batch_is_collated_by_torch_and_finished_at_once() -> None:
    batch = default_collate([SMALL.cut(image, seed=at) for at, image in enumerate(IMAGES)])
    shapes = {name: (tuple(part.shape), part.dtype) for name, part in batch.items()}
    assert shapes == {
        "32": ((12, 2, 3, 32, 32), torch.uint8),
        "16": ((12, 3, 3, 16, 16), torch.uint8),
        "rows": ((12, 5, 19), torch.float32),
    }
    views = SMALL.finish(batch)
    for at, image in enumerate(IMAGES):
        assert equal([view[at] for view in views], SMALL(image, seed=at))


def test_views_keep_their_order_where_sizes_alternate() -> None:
    sizes = [View(size=size, scale=(0.2, 1.0)) for size in (24, 16, 24, 8, 16)]
    transform = MultiCropTransform.from_views(sizes[:2], sizes[2:])
    views = transform.finish(transform.cut(IMAGES[0], seed=1))
    assert [view.shape[-1] for view in views] == [24, 16, 24, 8, 16]
    assert equal(views, transform(IMAGES[0], seed=1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_of_images_gives_the_views_of_each(layout: torch.memory_format) -> None:
    seeds = torch.tensor([7, 0, 2**63 - 1, *range(9)])
    views = SMALL.batch(BATCH.contiguous(memory_format=layout), seeds=seeds)
    assert [tuple(view.shape) for view in views] == [(12, 3, 32, 32)] * 2 + [(12, 3, 16, 16)] * 3
    for at, image in enumerate(IMAGES):
        assert equal([view[at] for view in views], SMALL(image, seed=int(seeds[at])))
    assert equal(SMALL.batch(BATCH[3:5], seeds=seeds[3:5]), [view[3:5] for view in views])


def test_a_gray_batch_and_an_empty_one() -> None:
    gray = BATCH[:, :1]
    views = SMALL.batch(gray, seeds=range(12))
    assert equal(views, SMALL.batch(gray.repeat(1, 3, 1, 1), seeds=range(12)))
    assert [len(view) for view in SMALL.batch(BATCH[:0], seeds=[])] == [0] * 5


def test_seeds_of_a_batch_come_from_a_generator_or_from_torch() -> None:
    first, second = (
        SMALL.batch(BATCH, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert equal(first, second)
    assert not torch.equal(first[0][0], SMALL.batch(BATCH)[0][0])


def test_strength_may_differ_within_a_batch() -> None:
    strength = np.linspace(0, 2, 12)
    views = SMALL.batch(BATCH, seeds=range(12), strength=strength)
    for at, image in enumerate(IMAGES):
        alone = SMALL(image, seed=at, strength=float(strength[at]))
        assert equal([view[at] for view in views], alone)
    plain = MultiCropTransform.from_views([View(32, (0.4, 1.0), jitter_p=0, grayscale_p=0)])
    assert torch.equal(views[0][0], plain(IMAGES[0], seed=0)[0])


class _Loaded:
    """Batches of a loader, by the ids they hold."""

    def __init__(self, workers: int, **options: Any) -> None:
        data = ImageArrays(IMAGES, transform=SMALL.cut, seed=5)
        self.data = data
        self.loader = DataLoader(
            data,
            batch_size=options.pop("batch_size", 4),
            num_workers=workers,
            persistent_workers=workers > 0,
            **options,
        )

    def views(self, epoch: int) -> dict[int, list[Tensor]]:
        self.data.set_epoch(epoch)
        found = {}
        for batch, ids in self.loader:
            views = SMALL.finish(batch)
            found.update({int(id): [view[at] for view in views] for at, id in enumerate(ids)})
        return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_crops_are_the_same_for_any_number_of_workers_and_size_of_batches() -> None:
    expected = None
    for workers, width in ((0, 4), (1, 3), (3, 4)):
        loaded = _Loaded(workers, batch_size=width, shuffle=True)
        epochs = [loaded.views(epoch) for epoch in (0, 1)]
        assert not torch.equal(epochs[0][2][0], epochs[1][2][0])
        expected = expected or epochs
        for found, wanted in zip(epochs, expected, strict=True):
            assert all(equal(found[id], wanted[id]) for id in range(12))
    for epoch, wanted in enumerate(expected or []):
        views = SMALL.batch(BATCH, seeds=sample_seeds(5, epoch, range(12)))
        assert all(equal([view[id] for view in views], wanted[id]) for id in range(12))


def _mixed(workers: int) -> tuple[Any, RareMemoryBuffer]:
    data = ImageArrays(IMAGES, transform=SMALL.cut, seed=5)
    base = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    buffer = RareMemoryBuffer(4)
    return BufferedMixSampler.wrap(base, buffer, replay=0.25, seed=1, lag=8), buffer


def _trained(loader: Any, buffer: Any, steps: int) -> list[list[Tensor]]:
    found: list[list[Tensor]] = []
    while len(found) < steps:
        for batch, ids in loader:
            found.append([*SMALL.finish(batch), ids])
            flags = _Flags(torch.rand(4, generator=torch.Generator().manual_seed(len(found))))
            buffer.add(loader.batch, flags)
            if len(found) == steps:
                break
    return found


class _Flags:
    def __init__(self, scores: Tensor) -> None:
        self.scores, self.is_rare = scores, scores > 0.5


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_crops_of_mixed_batches_are_the_same_for_any_number_of_workers_and_after_a_resume() -> None:
    straight, parallel = (_trained(*_mixed(workers), steps=12) for workers in (0, 3))
    assert all(map(equal, parallel, straight))
    loader, buffer = _mixed(0)
    stepped = _trained(loader, buffer, steps=4)
    state = loader.state_dict()
    resumed, other = _mixed(1)
    resumed.load_state_dict(state)
    rest = []
    for batch, ids in resumed:
        rest.append([*SMALL.finish(batch), ids])
        scores = torch.rand(4, generator=torch.Generator().manual_seed(4 + len(rest)))
        other.add(resumed.batch, _Flags(scores))
    assert all(map(equal, stepped + rest, straight[: 4 + len(rest)]))
    assert rest


def test_crops_of_a_buffer_are_mixed_in_before_they_are_finished() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.admit(
        BufferEntries(torch.tensor([70]), torch.ones(1), torch.full((1, 3, 30, 30), 200).byte())
    )
    black = [SMALL.cut(np.zeros((40, 60, 3), np.uint8), seed=at) for at in range(8)]
    batch, rows = CropMixer(buffer, SMALL.cut, replay=0.125)(default_collate(black))
    assert rows.ids[rows.is_replay].tolist() == [70]
    for view in SMALL.finish(batch):
        bright = view.amax(dim=(1, 2, 3)) > -1
        assert bright.tolist() == rows.is_replay.tolist()


def test_a_function_makes_its_own_view_in_its_place() -> None:
    calls: list[Any] = []

    def own(image: Any, generator: torch.Generator) -> Tensor:
        calls.append(image)
        return torch.rand(3, 5, 5, generator=generator)

    plain = View(size=16, scale=(0.2, 1.0))
    transform = MultiCropTransform.from_views([plain, own], [plain])
    picture = Image.fromarray(IMAGES[0])
    views = transform(picture, seed=3)
    assert [view.shape[-1] for view in views] == [16, 5, 16]
    assert calls[0] is picture
    assert equal(views, transform(picture, seed=3))
    others = MultiCropTransform.from_views([plain] * 3)(picture, seed=3)
    assert torch.equal(views[2], others[2])  # as if the function were not there


def test_a_transform_of_torchvision_is_repeatable_and_leaves_no_trace() -> None:
    peer = v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(16), v2.ToDtype(torch.float32, scale=True)]
    )
    transform = MultiCropTransform.from_views([View(16, (0.5, 1.0)), peer])
    before = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    first, second = (transform(Image.fromarray(IMAGES[0]), seed=8) for _ in range(2))
    assert equal(first, second)
    assert before == (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))


def test_what_only_described_views_can_do_is_refused_by_name() -> None:
    transform = MultiCropTransform.from_views([View(16, (0.5, 1.0)), torch.Tensor.float])
    for call in (
        lambda: transform.cut(IMAGES[0]),
        lambda: transform.batch(BATCH),
        lambda: transform.with_rows(IMAGES[0]),
        lambda: transform.draw(height=8, width=8),
        lambda: transform.finish({}),
    ):
        with pytest.raises(OptionError, match=r"cannot say what view 1 does, .* describe the view"):
            call()
    text = MultiCropTransform.from_views([repr])  # type: ignore[list-item]  # The mistake under test.
    with pytest.raises(OptionError, match=r"to return a tensor, got str; end it with ToTensor"):
        text(IMAGES[0])


def test_a_batch_of_another_transform_is_refused() -> None:
    batch = default_collate([SMALL.cut(IMAGES[0])])
    with pytest.raises(ImageInputError, match=r'dict with "224", "96" and "rows", got \[\'32\''):
        MultiCropTransform().finish(batch)
    with pytest.raises(ImageInputError, match=r"expects what cut made, .* got list"):
        SMALL.finish([batch])  # type: ignore[arg-type]  # The mistake under test.
    more = MultiCropTransform(global_crop_size=32, local_crop_size=16, n_local_views=4)
    with pytest.raises(
        ImageInputError, match=r"expects rows of shape \(n, 6, 19\), got \(1, 5, 19"
    ):
        more.finish(batch)
    with pytest.raises(ImageInputError, match=r'"32" as uint8 of shape \(1, 2, 3, 32, 32\), got'):
        SMALL.finish({**batch, "32": batch["32"].float()})


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (0, -1.0, "left of a view from 0"),
        (4, 1e9, "size of a view from 1 to 32768, got 1e"),
        (8, float("nan"), "blur_sigma of a view"),
        (11, 4.0, "kind_0 of a view from -1 to 3, got 4"),
    ],
)
def test_rows_that_no_view_can_have_are_refused(column: int, value: float, said: str) -> None:
    _, rows = SMALL.with_rows(IMAGES[0])
    rows = rows.clone()
    rows[1, column] = value
    with pytest.raises(OptionError, match=said):
        SMALL.apply(IMAGES[0], rows)
    with pytest.raises(
        OptionError, match=r"expects rows of shape \(views, 19\) as .* got \(5, 4\)"
    ):
        SMALL.apply(IMAGES[0], rows[:, :4])


def test_seeds_and_strengths_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="expects a seed or a generator, got both"):
        SMALL(IMAGES[0], seed=1, generator=torch.Generator())
    with pytest.raises(OptionError, match=r"expects seed as a whole number .* got -1"):
        SMALL(IMAGES[0], seed=-1)
    with pytest.raises(OptionError, match="a seed below"):
        SMALL(IMAGES[0], seed=2**63)
    with pytest.raises(OptionError, match="a seed for each of 12 images, got 3; make them"):
        SMALL.batch(BATCH, seeds=[1, 2, 3])
    with pytest.raises(OptionError, match=r"seeds from 0 and below 2\*\*63, got another"):
        SMALL.batch(BATCH[:1], seeds=[-1])
    with pytest.raises(OptionError, match=r"seeds as whole numbers .* got dtype float64"):
        SMALL.batch(BATCH[:1], seeds=[0.5])  # type: ignore[list-item]  # The mistake.
    with pytest.raises(OptionError, match=r"expects a torch.Generator, got int; a number goes to"):
        SMALL(IMAGES[0], generator=3)  # type: ignore[arg-type]  # The mistake under test.
    for wrong in ("1", None, 1e39, torch.nan, [1.0, 2.0]):
        with pytest.raises(OptionError, match=r"expects strength as a number in \[0, 1000\], got"):
            SMALL(IMAGES[0], seed=0, strength=wrong)  # type: ignore[arg-type]  # The mistake.
    with pytest.raises(OptionError, match="expects height of at most 16777216 pixels"):
        SMALL.draw(height=2**24 + 1, width=3)
    with pytest.raises(OptionError, match=r"expects strength .* got -0.5"):
        SMALL(IMAGES[0], strength=-0.5)
    with pytest.raises(OptionError, match=r"in \[0, 1000\], or 12 of them, got shape \(2,\)"):
        SMALL.batch(BATCH, strength=[1.0, 2.0])  # type: ignore[arg-type]  # The mistake.
    with pytest.raises(ImageInputError, match=r"got \(3, 40, 60\); add the batch with"):
        SMALL.batch(BATCH[0])
    with pytest.raises(ImageInputError, match=r"uint8 tensor of shape .* got torch.float32; stack"):
        SMALL.batch(BATCH.float())


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int32, np.uint64, np.int64, torch.tensor, torch.IntTensor]
)
def test_a_seed_may_be_any_kind_of_whole_number(kind: Any) -> None:
    expected = SMALL(IMAGES[0], seed=7)
    seed: Any = kind([7])[0] if kind is torch.IntTensor else kind(7)
    for _ in range(20):
        assert equal(SMALL(IMAGES[0], seed=seed), expected)
    assert equal(SMALL.batch(BATCH[:1], seeds=kind([7])), [view[None] for view in expected])


def test_seeds_of_samples_follow_the_draw_of_each() -> None:
    draws, ids = [0, 3, 2**32 + 5], [4, 4, 9]
    seeds = sample_seeds(np.int64(5), draws, ids)
    assert seeds.tolist() == [derive_seed(5, draw, id) for draw, id in zip(draws, ids, strict=True)]
    assert sample_seeds(5, 3, ids)[1] == seeds[1]
    with pytest.raises(OptionError, match="a draw from 0 for each of 3 ids, got 2"):
        sample_seeds(5, [1, 2], ids)
    with pytest.raises(OptionError, match=r"expects seed as a whole number .* got 1.5"):
        sample_seeds(1.5, 0, ids)  # type: ignore[arg-type]  # The mistake under test.


def test_functions_may_be_called_by_threads() -> None:
    def own(image: Any) -> Tensor:
        return torch.rand(3, 2, 2)

    transform = MultiCropTransform.from_views([View(8, (0.5, 1.0)), own])
    expected = [transform(IMAGES[0], seed=seed) for seed in range(60)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: transform(IMAGES[0], seed=seed), range(60)))
    assert all(map(equal, found, expected))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_that_were_cast_or_of_a_whole_batch_are_refused() -> None:
    batch = default_collate([SMALL.cut(IMAGES[0], seed=0)])
    with pytest.raises(
        OptionError, match=r'rows as float32, got torch.bfloat16.*"rows" out of a cast'
    ):
        SMALL.finish({**batch, "rows": batch["rows"].bfloat16()})
    with pytest.raises(OptionError, match=r'got \(1, 5, 19\); of a batch, .* batch\["rows"\]\[0\]'):
        from_rows(batch["rows"])
    with pytest.raises(OptionError, match=r"views, 19\), got \(19,\); pass those of one image"):
        SMALL.apply(IMAGES[0], batch["rows"][0, 0])
    assert equal(SMALL.apply(IMAGES[0], batch["rows"][0].numpy()), SMALL(IMAGES[0], seed=0))
    (drawn, *_) = from_rows(batch["rows"][0])
    assert torch.equal(SMALL.apply(IMAGES[0], drawn)[0], SMALL(IMAGES[0], seed=0)[0])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"up to 4 pairs of a name .* got \(\('bogus', 1.0\),\)"):
        to_rows([replace(drawn, jitter=(("bogus", 1.0),))])
    with pytest.raises(OptionError, match=r"to_rows expects ViewParameters .* got int"):
        to_rows([3])  # type: ignore[list-item]  # The mistake under test.
    with pytest.raises(OptionError, match="expects global_views as a list of views, got View"):
        MultiCropTransform.from_views(View(8, (0.5, 1.0)))  # type: ignore[arg-type]  # The mistake.


def test_a_view_is_cut_again_from_its_source_with_a_wider_box() -> None:
    _, rows = SMALL.with_rows(IMAGES[0], seed=2)
    wider = rows.clone()
    wider[:, :2] = (wider[:, :2] - 3).clamp(min=0)
    (view, *_) = SMALL.apply(IMAGES[0], wider)
    assert view.shape == (3, 32, 32)
    assert from_rows(wider)[0].jitter == from_rows(rows)[0].jitter


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_gpu_are_those_of_the_processor() -> None:
    expected = SMALL.batch(BATCH, seeds=range(12))
    made = SMALL.batch(BATCH.cuda(), seeds=range(12))
    cut = default_collate([SMALL.cut(image, seed=at) for at, image in enumerate(IMAGES)])
    for view, other, finished in zip(expected, made, SMALL.finish(cut, device="cuda"), strict=True):
        assert other.is_cuda
        assert finished.is_cuda
        torch.testing.assert_close(finished.cpu(), view, atol=1e-3, rtol=0)
        off = (other.cpu() - view).abs()  # a level here and there
        assert off.max() < 0.1
        assert off.mean() < 1e-3
