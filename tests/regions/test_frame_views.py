"""Frames by their ids and regions by their keys, in frames whose pixels say where they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from raremix.data.images import ImageArrays, ImageFiles
from raremix.errors import ImageInputError, OptionError
from raremix.mixing.batch import DrawnId
from raremix.regions.frame_views import FrameViews
from raremix.regions.keys import MOST_FRAMES, box_of, first_key, region_keys
from raremix.seeds import derive_seed, uniforms
from raremix.views import MultiCropTransform

HEIGHT, WIDTH = 120, 200


class Places:
    """Frames of which red is the column, green the row and blue the id of the frame."""

    def __init__(self, count: int = 5, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, id: int) -> tuple[Tensor, int]:
        y, x = torch.meshgrid(*map(torch.arange, self.size), indexing="ij")
        return torch.stack([x, y, torch.full_like(x, id)]).to(torch.uint8), id


def key_of(frame: int, box: tuple[int, int, int, int], size: Any = (HEIGHT, WIDTH)) -> int:
    return int(region_keys([frame], [box], size))


def square_of(pixels: Tensor) -> tuple[int, int, int, int]:
    """Where a part of such a frame was cut out, after making sure that it is all there."""
    left, top = int(pixels[0, 0, 0]), int(pixels[1, 0, 0])
    height, width = pixels.shape[1:]
    whole, _ = Places(1, (top + height, left + width))[0]
    assert torch.equal(pixels[:2], whole[:2, top:, left:])
    return left, top, left + width, top + height


def small() -> MultiCropTransform:
    return MultiCropTransform.recipe("small", global_crop_size=12, local_crop_size=8)


def test_an_id_gives_the_whole_frame() -> None:
    dataset = FrameViews(Places(), None)
    assert len(dataset) == 5
    pixels, id = dataset[3]
    assert id == 3
    assert torch.equal(pixels, Places()[3][0])
    assert dataset[-1][1] == 4
    assert torch.equal(dataset[-1][0], Places()[4][0])
    for outside in (5, -6, key_of(5, (0, 0, 9, 9))):
        with pytest.raises(IndexError, match=r"id (5|-6) is outside of a dataset of 5 images"):
            dataset[outside]


@settings(deadline=None, max_examples=300)
@given(
    corner=st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)),
    sides=st.tuples(st.integers(1, WIDTH), st.integers(1, HEIGHT)),
    context=st.sampled_from([(1.0, 1.0), (1.25, 2.0), (1.5, 6.0)]),
    least_side=st.sampled_from([1, 30, 500]),
    draw=st.integers(0, 2**40),
)
def test_a_key_gives_a_square_around_its_box_with_context(
    corner: tuple[int, int],
    sides: tuple[int, int],
    context: tuple[float, float],
    least_side: int,
    draw: int,
) -> None:
    left, top = corner
    box = left, top, min(left + sides[0], WIDTH), min(top + sides[1], HEIGHT)
    key = key_of(2, box)
    dataset = FrameViews(
        Places(), lambda image, *, seed: image, context=context, least_side=least_side, seed=0
    )
    pixels, id = dataset[DrawnId(key, draw)]
    assert id == key
    assert (pixels[2] == 2).all()
    square = square_of(pixels)
    assert square[0] <= box[0] < box[2] <= square[2] <= WIDTH
    assert square[1] <= box[1] < box[3] <= square[3] <= HEIGHT
    longest = max(box[2] - box[0], box[3] - box[1])
    for length, whole in ((square[2] - square[0], WIDTH), (square[3] - square[1], HEIGHT)):
        assert length >= min(max(longest * context[0], least_side), whole)
        assert length <= min(max(longest * context[1] + 1, least_side), whole)
    if longest * context[1] + 1 <= HEIGHT and least_side <= HEIGHT:
        assert square[2] - square[0] == square[3] - square[1]


def squares(dataset: FrameViews, key: int, draws: int = 200) -> Tensor:
    return torch.tensor([square_of(dataset[DrawnId(key, draw)][0]) for draw in range(draws)])


def test_sides_and_places_of_squares_are_spread_over_all_that_is_allowed() -> None:
    dataset = FrameViews(
        Places(), lambda image, *, seed: image, context=(1.25, 2.0), least_side=1, seed=0
    )
    key = key_of(2, (80, 50, 100, 70))
    left, top, right, bottom = squares(dataset, key).unbind(1)
    sides = right - left
    assert set(sides.tolist()) == set(range(26, 41))
    for before, after in ((80 - left, right - 100), (50 - top, bottom - 70)):
        assert before.min() == after.min() == 0
        assert before.max() >= 15
        assert abs((before - after).double().mean()) < 2
    assert torch.corrcoef(torch.stack([80 - left, 50 - top]).double())[0, 1] < 0.6
    # Nor do squares follow the numbers that the views are drawn from.
    numbers = [uniforms(derive_seed(0, draw, key), 3) for draw in range(200)]
    for number in torch.tensor(np.array(numbers)).T:
        assert abs(torch.corrcoef(torch.stack([sides.double(), number]))[0, 1]) < 0.3


def test_the_same_draw_is_the_same_square_and_other_draws_or_seeds_are_others() -> None:
    key = key_of(2, (80, 50, 100, 70))
    datasets = [
        FrameViews(Places(), lambda image, *, seed: image, least_side=1, seed=seed)
        for seed in (0, 0, 1)
    ]
    one, same, other = (squares(dataset, key, 40) for dataset in datasets)
    assert torch.equal(one, same)
    assert (one != other).any(dim=1).sum() > 35
    assert len({tuple(square) for square in one.tolist()}) > 35
    beside = squares(datasets[0], key_of(3, (80, 50, 100, 70)), 40)
    assert (one != beside).any(dim=1).sum() > 35


def test_plain_keys_follow_the_epoch() -> None:
    dataset = FrameViews(Places(), small(), least_side=1, seed=0)
    key = key_of(2, (80, 50, 100, 70))
    first = dataset[key][0]
    assert all(map(torch.equal, first, dataset[key][0]))
    assert all(map(torch.equal, first, dataset[DrawnId(key, 0)][0]))
    dataset.set_epoch(1)
    second = dataset[key][0]
    assert not torch.equal(first[0], second[0])
    assert all(map(torch.equal, second, dataset[DrawnId(key, 1)][0]))


def test_all_views_of_a_row_are_views_of_one_square() -> None:
    transform, key, draw = small(), key_of(1, (30, 20, 60, 44)), 2**32 + 5
    square = FrameViews(Places(), lambda image, *, seed: image, seed=3)[DrawnId(key, draw)][0]
    views, id = FrameViews(Places(), transform, seed=3)[DrawnId(key, draw)]
    assert id == key
    assert len(views) == len(transform.views)
    expected = transform(square, seed=derive_seed(3, draw, key))
    assert all(map(torch.equal, views, expected))
    whole, _ = FrameViews(Places(), transform, seed=3)[DrawnId(1, draw)]
    expected = transform(Places()[1][0], seed=derive_seed(3, draw, 1))
    assert all(map(torch.equal, whole, expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_same_views(workers: int) -> None:
    keys = region_keys([4, 0, 2, 2], [(30, 20, 60, 44), (0, 0, 9, 9)] * 2, (HEIGHT, WIDTH))
    asked = [DrawnId(int(key), 7 + at) for at, key in enumerate((*keys, *keys, 3, 4))]
    dataset = FrameViews(Places(), small(), seed=1)
    loader: Any = DataLoader(dataset, batch_size=5, sampler=asked, num_workers=workers)
    torch.manual_seed(workers)
    batches = list(loader)
    assert torch.cat([ids for _, ids in batches]).tolist() == asked
    for at, id in enumerate(asked):
        views, _ = dataset[id]
        for view, rows in zip(views, batches[at // 5][0], strict=True):
            assert torch.equal(view, rows[at % 5])


def test_without_a_seed_the_default_generator_draws() -> None:
    dataset = FrameViews(Places(), None, least_side=1)
    key = key_of(2, (80, 50, 100, 70))

    def drawn() -> list[tuple[int, int, int, int]]:
        torch.manual_seed(0)
        return [square_of(dataset[key][0]) for _ in range(20)]

    found = drawn()
    assert found == drawn()
    assert len(set(found)) > 15


def test_a_part_of_a_frame_does_not_take_the_frame_along() -> None:
    dataset = FrameViews(Places(), None)
    pixels, _ = dataset[key_of(2, (80, 50, 100, 70))]
    assert pixels.untyped_storage().nbytes() == pixels.numel() < 3 * HEIGHT * WIDTH


def test_a_transform_of_pil_images_gets_them() -> None:
    seen: list[tuple[Any, int]] = []
    key = key_of(2, (80, 50, 100, 70))

    def transform(image: Image.Image, *, id: int) -> Tensor:
        seen.append((image, id))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    dataset = FrameViews(Places(), transform, as_tensor=False)
    square = square_of(dataset[key][0])
    assert square[0] <= 80
    assert square[2] >= 100
    assert torch.equal(dataset[3][0], Places()[3][0])
    assert [id for _, id in seen] == [key, 3]
    assert {(type(image), image.mode) for image, _ in seen} == {(Image.Image, "RGB")}


def test_grey_frames_have_three_equal_channels() -> None:
    grey = ImageArrays(np.arange(48, dtype=np.uint8).reshape(1, 6, 8))
    pixels, _ = FrameViews(grey, None)[key_of(0, (2, 2, 5, 5), (6, 8))]
    assert pixels.shape == (3, 6, 8)
    assert torch.equal(pixels[0], pixels[2])


def test_a_dataset_says_below_which_number_its_keys_lie() -> None:
    dataset = FrameViews(Places(), None)
    assert dataset.keys_below == first_key(5)
    assert key_of(4, (0, 0, WIDTH, HEIGHT)) < dataset.keys_below <= key_of(5, (0, 0, 1, 1))


class Many(Places):
    def __len__(self) -> int:
        return MOST_FRAMES + 1


class Floats(Places):
    def __getitem__(self, id: int) -> tuple[Tensor, int]:
        return super().__getitem__(id)[0].float(), id


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"context of at least 1, .* got \(0.5, 2.0\)"):
        FrameViews(Places(), None, context=(0.5, 2.0))
    with pytest.raises(OptionError, match="FrameViews expects context as"):
        FrameViews(Places(), None, context=(2.0, 1.5))
    with pytest.raises(OptionError, match="FrameViews expects least_side"):
        FrameViews(Places(), None, least_side=0)
    with pytest.raises(OptionError, match=r"got 1073741825 frames, .* below 2\*\*30"):
        FrameViews(Many(), None)
    with pytest.raises(OptionError, match="takes neither seed= nor generator="):
        FrameViews(Places(), lambda image: image, seed=0)
    with pytest.raises(
        ImageInputError, match=r"FrameViews expects a uint8 tensor, got torch.float"
    ):
        FrameViews(Floats(), None)[0]


def test_regions_of_real_frames_are_parts_of_them(shared_data: Path) -> None:
    frames = ImageFiles(shared_data / "camvid" / "images")
    whole, _ = frames[200]
    size = whole.shape[1], whole.shape[2]
    key = key_of(200, (300, 120, 340, 200), size)
    dataset = FrameViews(frames, lambda image, *, seed: image, seed=0)
    for draw in range(3):
        pixels, id = dataset[DrawnId(key, draw)]
        assert id == key
        side = pixels.shape[1]
        assert 100 <= side <= 170
        found = [
            (left, top)
            for left in range(340 - side, 301)
            for top in range(max(200 - side, 0), 121)
            if left + side <= size[1]
            and top + side <= size[0]
            and torch.equal(whole[:, top, left : left + side], pixels[:, 0])
        ]
        assert len(found) == 1
        left, top = found[0]
        assert torch.equal(whole[:, top : top + side, left : left + side], pixels)
        box = box_of(key, size)
        assert left <= box[0] < box[2] <= left + side
        assert top <= box[1] < box[3] <= top + side
