import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from raremix.data.images import ImageArrays, ImageFiles
from raremix.errors import FileFormatError, ImageInputError, LabelError, OptionError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def noise(image: Any, *, generator: torch.Generator | None = None) -> Tensor:
    return torch.rand(3, generator=generator)


def make_tree(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(path)
    return root


def test_images_are_found_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    make_tree(tmp_path, "b/2.png", "a.PNG", "b/c/1.jpg", "B/x.webp", "z.tif")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = ImageFiles(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in dataset.paths]
    assert found == ["B/x.webp", "a.PNG", "b/2.png", "b/c/1.jpg", "z.tif"]
    assert len(dataset) == 5


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.png", ".thumbs/b.png", "__MACOSX/c.png", "d/.e.png")
    assert [path.name for path in ImageFiles(tmp_path).paths] == ["a.png"]


def test_a_link_back_up_does_not_loop(tmp_path: Path) -> None:
    make_tree(tmp_path, "sub/a.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert len(ImageFiles(tmp_path)) == 1


def test_an_item_is_the_pixels_and_the_id(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.png", "b.png", "c.png")
    image, id = ImageFiles(tmp_path)[1]
    assert id == 1
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.full((3, 4, 5), 1, dtype=torch.uint8))


def test_a_transform_gets_the_rgb_pil_image(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.png")
    (mode, size), _ = ImageFiles(tmp_path, transform=lambda image: (image.mode, image.size))[0]
    assert (mode, size) == ("RGB", (5, 4))


def test_negative_ids_count_from_the_end_and_others_are_index_errors(tmp_path: Path) -> None:
    dataset = ImageFiles(make_tree(tmp_path, "a.png", "b.png"))
    assert dataset[-1][1] == 1
    for id in (2, -3):
        with pytest.raises(IndexError, match=f"id {id} is outside of a dataset of 2 images"):
            dataset[id]


def test_first_folders_are_classes(tmp_path: Path) -> None:
    dataset = ImageFiles(make_tree(tmp_path, "dog/1.png", "cat/2.png", "dog/deep/3.png"))
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "names",
    [
        ["images/a.png", "images/b.png"],
        ["train/a.png", "val/b.png"],
        ["a.png", "dog/b.png", "cat/c.png"],
    ],
)
def test_folders_that_are_no_classes_give_no_labels(tmp_path: Path, names: list[str]) -> None:
    dataset = ImageFiles(make_tree(tmp_path, *names))
    assert dataset.labels is None
    assert dataset.class_names == []


def test_given_files_are_taken_in_their_order(tmp_path: Path) -> None:
    make_tree(tmp_path, "a.png", "b.png", "c.png")
    dataset = ImageFiles(tmp_path, files=["c.png", tmp_path / "a.png"])
    assert [path.name for path in dataset.paths] == ["c.png", "a.png"]
    assert dataset[0][0][0, 0, 0] == 2


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"found no image in .* it looks for \.bmp, \.jpeg"):
        ImageFiles(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"expects a folder of images, and .* is a file"):
        ImageFiles(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match="does not exist; check the path"):
        ImageFiles(tmp_path / "none")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    make_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n")
    loader = DataLoader(ImageFiles(tmp_path), num_workers=workers)
    with pytest.raises(FileFormatError, match=r"The image .*b\.png cannot be read"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same_for_any_number_of_workers(workers: int) -> None:
    dataset = ImageArrays(COLOUR, transform=noise, seed=1)
    expected = torch.stack([dataset[id][0] for id in range(5)])
    views = torch.cat([batch for batch, _ in DataLoader(dataset, 2, num_workers=workers)])
    assert torch.equal(views, expected)


class Drawn(int):
    draw = 7


def test_a_draw_number_changes_the_views_and_not_the_id(tmp_path: Path) -> None:
    datasets: list[Any] = [
        ImageArrays(COLOUR, transform=noise, seed=1),
        ImageFiles(make_tree(tmp_path, "a.png", "b.png"), transform=noise, seed=1),
    ]
    for dataset in datasets:
        view, id = dataset[Drawn(1)]
        assert id == 1
        assert type(id) is int
        assert torch.equal(view, dataset[Drawn(1)][0])
        assert not torch.equal(view, dataset[1][0])


def test_a_seed_without_a_transform_that_takes_it_is_refused() -> None:
    with pytest.raises(OptionError, match="ImageArrays got seed=1"):
        ImageArrays(COLOUR, transform=len, seed=1)


@pytest.mark.parametrize("images", [COLOUR, torch.from_numpy(COLOUR)])
def test_arrays_are_viewed_and_not_copied(images: Any) -> None:
    image, id = ImageArrays(images)[3]
    assert id == 3
    assert image.data_ptr() == torch.from_numpy(COLOUR)[3].data_ptr()
    assert image.stride() == (1, 21, 3)
    assert torch.equal(image, torch.from_numpy(COLOUR)[3].permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1)])
def test_grey_images_are_repeated_to_three_channels(shape: tuple[int, ...]) -> None:
    grey = COLOUR[..., 0].copy().reshape(shape)
    image, _ = ImageArrays(grey)[2]
    assert image.shape == (3, 6, 7)
    for channel in image:
        np.testing.assert_array_equal(channel.numpy(), COLOUR[2, ..., 0])


def test_a_read_only_map_is_read_without_a_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOUR)
    image, _ = ImageArrays(np.load(tmp_path / "a.npy", mmap_mode="r"))[4]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), COLOUR[4])


def test_labels_stay_beside_the_images() -> None:
    labels = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    labels.flags.writeable = False
    dataset = ImageArrays(COLOUR, labels=labels)
    assert dataset.labels is not None
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.zeros((5, 1), int), np.zeros(5)])
def test_labels_that_do_not_fit_are_refused(labels: Any) -> None:
    with pytest.raises(LabelError, match=r"whole numbers of shape \(5,\), one per image, got"):
        ImageArrays(COLOUR, labels=labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (COLOUR.astype(np.float32), r"expects uint8 images .* got float32 \(5, 6, 7, 3\)"),
        (COLOUR.transpose(0, 3, 1, 2), r"looks channels-first; pass images.transpose"),
        (COLOUR[0, 0], r"got uint8 \(7, 3\)"),
        (COLOUR[:0], r"at least one, got uint8 \(0, 6, 7, 3\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"got uint8 \(2, 4, 4, 4\)"),
    ],
)
def test_images_of_another_kind_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        ImageArrays(images)


def test_an_npz_brings_its_labels_and_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path,
        images=COLOUR,
        labels=np.arange(5),
        class_names=np.array(list("abcde")),
        test_images=COLOUR[:2],
        test_labels=np.array([4, 2]),
    )
    dataset = ImageArrays.from_npz(path)
    np.testing.assert_array_equal(dataset.images, COLOUR)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.class_names == list("abcde")
    other = ImageArrays.from_npz(path, images="test_images", labels="test_labels")
    assert other.labels is not None
    assert other.labels.tolist() == [4, 2]
    # Labels of the training images are not those of the test images.
    assert ImageArrays.from_npz(path, images="test_images").labels is None


def test_an_npz_without_images_lists_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", embedding=np.zeros((3, 2)))
    with pytest.raises(FileFormatError, match=r"uint8 images .* It holds: embedding \(3, 2\)"):
        ImageArrays.from_npz(tmp_path / "a.npz")


@pytest.mark.skipif(os.name == "nt", reason="paths differ")
def test_datasets_survive_pickling_for_spawned_workers(tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(ImageFiles(make_tree(tmp_path, "a.png"), seed=1)))
    assert files[0][1] == 0
    arrays = pickle.loads(pickle.dumps(ImageArrays(COLOUR, transform=noise, seed=1)))
    assert torch.equal(arrays[2][0], ImageArrays(COLOUR, transform=noise, seed=1)[2][0])


def test_the_real_images_are_read(shared_data: Path) -> None:
    frames = ImageFiles(shared_data / "camvid" / "images")
    assert len(frames) == 367
    assert frames.labels is None
    assert frames[366][0].shape == (3, 360, 480)
    cifar = ImageArrays.from_npz(shared_data / "cifar10_lt.npz")
    assert len(cifar) == 12406
    assert cifar.labels is not None
    assert torch.bincount(cifar.labels).tolist() == [
        *(5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    ]
