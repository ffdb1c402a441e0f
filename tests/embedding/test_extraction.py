import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from raremix.embedding.extraction import extract_embeddings
from raremix.errors import EmbeddingShapeError, LoaderError, OptionError, RaremixWarning

IMAGES = torch.randn(11, 3, 4, 5, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.map = nn.Linear(60, 7)

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.map(self.norm(images).flatten(1))
        return rows


class Returns(nn.Module):
    """Gives its images' rows, wrapped as some framework does."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(images.flatten(1))


def loader(batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES), batch_size=batch_size, **options)


def expected(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        rows: Tensor = model(IMAGES)
    model.train()
    return rows


@settings(deadline=None, max_examples=20)
@given(batch_size=st.integers(1, 13), to_file=st.booleans())
def test_rows_do_not_depend_on_the_batch_size_or_the_target(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, to_file: bool
) -> None:
    model = Encoder()
    out = tmp_path_factory.mktemp("rows") / "rows.npy" if to_file else None
    rows = extract_embeddings(model, loader(batch_size), out=out, progress=False)
    torch.testing.assert_close(torch.as_tensor(np.asarray(rows).copy()), expected(model))


def test_a_file_is_mapped_read_only_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    rows = extract_embeddings(Encoder(), loader(), out=path, dtype=torch.float16, progress=False)
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable
    assert rows.dtype == np.float16
    assert os.listdir(tmp_path) == ["rows.npy"]
    np.testing.assert_array_equal(np.load(path), rows)


def test_a_run_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    extract_embeddings(Encoder(), loader(), out=path, progress=False)
    before = path.read_bytes()

    def breaking() -> Iterator[Tensor]:
        yield IMAGES[:4]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        extract_embeddings(Encoder(), breaking(), out=path, progress=False)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.npy"]


def test_every_module_comes_back_in_the_mode_it_was_in() -> None:
    model = Encoder().train()
    model.norm.eval()
    statistics = model.norm.running_mean.clone() if model.norm.running_mean is not None else None
    extract_embeddings(model, loader(), progress=False)
    assert model.training
    assert model.map.training
    assert not model.norm.training
    assert statistics is not None
    assert model.norm.running_mean is not None
    assert torch.equal(model.norm.running_mean, statistics)
    with pytest.raises(LoaderError):
        extract_embeddings(model, [], progress=False)
    assert model.training
    assert not model.norm.training


def test_the_result_can_be_used_with_autograd() -> None:
    rows = extract_embeddings(Encoder(), loader(), progress=False)
    assert isinstance(rows, Tensor)
    assert not rows.is_inference()
    weight = torch.ones(7, requires_grad=True)
    (gradient,) = torch.autograd.grad((rows @ weight).sum(), weight)
    torch.testing.assert_close(gradient, rows.sum(0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: rows,
        lambda rows: rows[:, :, None, None],
        lambda rows: (rows, "more"),
        lambda rows: [rows],
        lambda rows: {"x_norm_clstoken": rows, "x_norm_patchtokens": rows[:, None]},
        lambda rows: {"image_embeds": rows, "last_hidden_state": rows[:, None] + 1},
        lambda rows: {
            "last_hidden_state": torch.stack([rows, rows + 1], dim=1),
            "pooler_output": rows + 2,
        },
        lambda rows: {
            "last_hidden_state": rows[:, :, None, None].expand(-1, -1, 2, 2),
            "pooler_output": rows[:, :, None, None],
        },
    ],
)
def test_the_embedding_is_found_in_what_frameworks_return(wrap: Any) -> None:
    rows = extract_embeddings(Returns(wrap), loader(), progress=False)
    torch.testing.assert_close(rows, IMAGES.flatten(1))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda rows: rows[:, :, None], r"shape \(4, dim\) for 4 images, got \(4, 60, 1\); pool"),
        (lambda rows: rows[:-1], r"got \(3, 60\)"),
        (lambda rows: rows[:, :0], r"got \(4, 0\)"),
        (lambda rows: None, "got NoneType"),
        (lambda rows: {"logits": rows}, "a dict of logits; wrap the model"),
    ],
)
def test_what_is_not_a_row_per_image_is_refused(wrap: Any, message: str) -> None:
    with pytest.raises(EmbeddingShapeError, match=message):
        extract_embeddings(Returns(wrap), loader(), progress=False)


def test_a_width_that_changes_is_refused() -> None:
    batches = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)]
    with pytest.raises(EmbeddingShapeError, match="60 wide after rows 48 wide"):
        extract_embeddings(nn.Flatten(), batches, progress=False)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: images,
        lambda images: (images, 1, 2),
        lambda images: [images],
        lambda images: {"image": images, "label": 1},
        lambda images: {"pixel_values": images},
    ],
)
def test_every_usual_batch_is_understood(wrap: Any) -> None:
    batches = [wrap(part) for part in IMAGES.tensor_split(3)]
    rows = extract_embeddings(nn.Flatten(), batches, progress=False)
    torch.testing.assert_close(rows, IMAGES.flatten(1))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"label": 1}, "to hold 'image' or 'pixel_values', got label"),
        (([IMAGES, IMAGES], 1), "got a list of views; embed one view per image"),
        ("text", "got a str"),
        (IMAGES.to(torch.uint8), r"expects float images, got torch.uint8 .*=eval_transform\(\)"),
    ],
)
def test_other_batches_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        extract_embeddings(nn.Flatten(), [batch], progress=False)


def test_loaders_out_of_order_are_refused() -> None:
    dataset = TensorDataset(IMAGES)
    for shuffled in (
        loader(shuffle=True),
        loader(sampler=SubsetRandomSampler(range(11))),
        loader(sampler=WeightedRandomSampler([1.0] * 11, 11)),
    ):
        with pytest.raises(LoaderError, match=r"draws with a \w+Sampler, .* shuffle=False"):
            extract_embeddings(nn.Flatten(), shuffled, progress=False)
    part = loader(sampler=DistributedSampler(dataset, num_replicas=2, rank=0, shuffle=False))
    with pytest.raises(LoaderError, match="DistributedSampler gives each process a part"):
        extract_embeddings(nn.Flatten(), part, progress=False)


def test_dropping_the_last_batch_is_refused_unless_nothing_is_dropped() -> None:
    with pytest.raises(LoaderError, match="drop_last=True would leave out the last ones"):
        extract_embeddings(nn.Flatten(), loader(drop_last=True), progress=False)
    rows = extract_embeddings(nn.Flatten(), loader(11, drop_last=True), progress=False)
    assert len(rows) == 11


def skip_one(samples: list[tuple[Tensor]]) -> Tensor:
    return torch.stack([sample[0] for sample in samples[:-1]])


def test_a_collate_function_that_leaves_images_out_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(LoaderError, match="got 8 images from a dataset of 11, so row i"):
        extract_embeddings(
            nn.Flatten(), loader(collate_fn=skip_one), out=tmp_path / "a.npy", progress=False
        )
    assert os.listdir(tmp_path) == []


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from IMAGES


@pytest.mark.parametrize("to_file", [False, True])
def test_a_stream_of_unknown_length_is_embedded_whole(tmp_path: Path, to_file: bool) -> None:
    out = tmp_path / "a.npy" if to_file else None
    rows = extract_embeddings(nn.Flatten(), DataLoader(Stream(), 2), out=out, progress=False)
    np.testing.assert_array_equal(np.asarray(rows), IMAGES.flatten(1).numpy())
    with pytest.raises(LoaderError, match="drop_last=True"):
        extract_embeddings(nn.Flatten(), DataLoader(Stream(), 2, drop_last=True), progress=False)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(LoaderError, match="got no batch from the loader: its dataset is empty"):
        extract_embeddings(nn.Flatten(), iter([]), progress=False)


def test_rows_that_are_not_finite_are_kept_and_counted(tmp_path: Path) -> None:
    images = IMAGES.clone()
    images[2, 0, 0, 0] = float("nan")
    images[9, 0, 0, 0] = 1e5  # Finite in float32, infinite in float16.
    with pytest.warns(RaremixWarning, match=r"2 of 11 embeddings hold NaN or infinity \(rows 2, 9"):
        rows = extract_embeddings(
            nn.Flatten(), images.tensor_split(3), dtype=torch.float16, progress=False
        )
    assert isinstance(rows, Tensor)
    assert torch.isfinite(rows).all(dim=1).logical_not().nonzero().flatten().tolist() == [2, 9]


def test_autocast_runs_in_low_precision_and_returns_float32() -> None:
    seen: list[torch.dtype] = []
    model = Encoder()
    model.map.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    rows = extract_embeddings(model, loader(), amp=True, progress=False)
    assert isinstance(rows, Tensor)
    assert set(seen) == {torch.bfloat16}
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected(Encoder()), atol=0.05, rtol=0.05)


def test_options_that_cannot_work_are_refused_before_any_image_is_read(tmp_path: Path) -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError("an image was read")
        yield

    with pytest.raises(OptionError, match="cannot use device 'nonsense' here"):
        extract_embeddings(nn.Flatten(), never(), device="nonsense", progress=False)
    with pytest.raises(OptionError, match=r"float16, float32 or float64, got torch.bfloat16"):
        extract_embeddings(nn.Flatten(), never(), dtype=torch.bfloat16, progress=False)
    with pytest.raises(OptionError, match=r"extract_embeddings cannot write to .* does not exist"):
        extract_embeddings(nn.Flatten(), never(), out=tmp_path / "no" / "a.npy", progress=False)


def test_no_progress_is_written_when_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    extract_embeddings(Encoder(), loader(), progress=False)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_used_and_the_model_comes_back() -> None:
    seen: list[str] = []
    model = Encoder()
    model.map.register_forward_hook(lambda module, inputs, output: seen.append(output.device.type))
    rows = extract_embeddings(model, loader(), device="cuda", progress=False)
    assert isinstance(rows, Tensor)
    assert set(seen) == {"cuda"}
    assert rows.device.type == "cpu"
    assert model.map.weight.device.type == "cpu"
    torch.testing.assert_close(rows, expected(model), atol=1e-4, rtol=1e-4)


def test_real_images_get_the_embeddings_that_were_stored(shared_data: Path) -> None:
    """The whole way: file, preprocessing, checkpoint, encoder, rows."""
    torchvision = pytest.importorskip("torchvision")
    from raremix.data.embeddings import read_embeddings
    from raremix.data.images import ImageArrays
    from raremix.embedding.checkpoints import load_backbone

    class SamePadded(nn.Module):
        """A stride-2 convolution with the padding that this checkpoint was trained with."""

        def __init__(self, convolution: nn.Conv2d) -> None:
            super().__init__()
            self.convolution = convolution
            self.convolution.padding = (0, 0)

        def forward(self, images: Tensor) -> Tensor:
            rows: Tensor = self.convolution(nn.functional.pad(images, (0, 1, 0, 1)))
            return rows

    def resized(image: Tensor) -> Tensor:
        large = nn.functional.interpolate(image[None], (128, 128), mode="bicubic", antialias=True)
        return large[0].float() / 127.5 - 1

    model = torchvision.models.mobilenet_v2()
    model.classifier = nn.Identity()
    load_backbone(model, shared_data / "mobilenet_v2_imagenet.pt")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                setattr(module, name, SamePadded(child))
    whole = ImageArrays.from_npz(shared_data / "cifar10_lt.npz", transform=resized)
    some = torch.utils.data.Subset(whole, range(8))
    rows = extract_embeddings(model, DataLoader(some, batch_size=8), progress=False)
    stored = read_embeddings(shared_data / "cifar10_lt_embeddings.npz")[:8].astype(np.float32)
    assert isinstance(rows, Tensor)
    similarity = nn.functional.cosine_similarity(rows, torch.from_numpy(stored))
    assert similarity.mean() > 0.99
