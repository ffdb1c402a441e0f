"""Tests of the encoders: pixels against PIL and torch, one frame against many, and the model's state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from raremix.embedding.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from raremix.embedding.vit import VisionTransformer
from raremix.errors import EmbeddingShapeError, ImageInputError, OptionError
from raremix.regions import CropEncoder, MapEncoder, RegionDetector, RegionEncoder, Regions
from raremix.regions.boxes import square_boxes, window_grid


class Pixels(nn.Module):
    """Gives an image itself, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return images.flatten(1)


def frames_of(count: int, height: int = 45, width: int = 60, seed: int = 0) -> Tensor:
    """Smooth noise with sharp edges in it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 6 + 1, width // 6 + 1, generator=generator) * 255
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    smooth[:, :, height // 3 : height // 2, width // 4 :] = 255
    return smooth.round().to(torch.uint8)


def levels(rows: Tensor, size: int) -> Tensor:
    """(n, 3, size, size) values in 0..255 that rows of a normalised image stand for."""
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (IMAGENET_MEAN, IMAGENET_STD))
    return (rows.view(-1, 3, size, size) * std + mean) * 255


def by_pil(frame: Tensor, box: list[int], size: int) -> Tensor:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy()).crop((box[0], box[1], box[2], box[3]))
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [8, 24, 60])
def test_crops_are_what_pil_cuts_and_resizes(size: int) -> None:
    # Away from black and white: PIL clips to a byte between its two passes, torch does not.
    frames = frames_of(2) // 2 + 64
    found = CropEncoder(Pixels(), crop_size=size, scene_size=32)(frames, ids=[5, 9])
    boxes, scale = window_grid(45, 60)
    assert torch.equal(found.boxes, boxes.repeat(2, 1))
    assert torch.equal(found.scale, scale.repeat(2))
    assert found.frame.tolist() == [0] * len(boxes) + [1] * len(boxes)
    assert found.ids.tolist() == [5, 9]
    assert found.sizes.tolist() == [[45, 60]] * 2
    seen = levels(found.embeddings, size)
    for row in range(0, len(found), 7):
        expected = by_pil(frames[int(found.frame[row])], found.boxes[row].tolist(), size)
        assert float((seen[row] - expected).abs().max()) <= 1.01
    for frame, scene in zip(frames, levels(found.scenes, 32), strict=True):
        assert float((scene - by_pil(frame, [0, 0, 60, 45], 32)).abs().max()) <= 1.01


def test_crops_are_what_torch_resizes() -> None:
    frames = frames_of(1, 90, 120)
    found = CropEncoder(Pixels(), crop_size=20)(frames, ids=[0])
    seen = levels(found.embeddings, 20)
    for row in range(0, len(found), 11):
        left, top, right, bottom = found.boxes[row].tolist()
        crop = frames[:, :, top:bottom, left:right].float()
        expected = F.interpolate(crop, (20, 20), mode="bicubic", antialias=True)[0].clamp(0, 255)
        assert float((seen[row] - expected).abs().max()) <= 1.01


def test_mean_and_std_are_those_given() -> None:
    frames = frames_of(1)
    half = CropEncoder(Pixels(), crop_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    plain = CropEncoder(Pixels(), crop_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ids = [0]
    torch.testing.assert_close(
        half(frames, ids).embeddings, plain(frames, ids).embeddings * 2 - 1, rtol=0, atol=1e-6
    )


def encoders() -> dict[str, Callable[[], RegionEncoder]]:
    torch.manual_seed(0)
    vit = VisionTransformer(patch_size=8, dim=12, depth=1, heads=2, image_size=32)
    conv = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.ReLU(), nn.BatchNorm2d(6))
    pooled = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return {
        "crops": lambda: CropEncoder(pooled, crop_size=16, scene_size=24),
        "vit": lambda: MapEncoder(vit, height=32),
        "conv": lambda: MapEncoder(conv, height=32, multiple=8),
    }


@pytest.fixture(params=["crops", "vit", "conv"])
def encoder(request: pytest.FixtureRequest) -> RegionEncoder:
    return encoders()[request.param]()


def test_several_frames_are_embedded_as_each_alone(encoder: RegionEncoder) -> None:
    frames = frames_of(3)
    found = encoder(frames, [3, 4, 5])
    single = Regions.joined(
        [encoder(frame[None], [at]) for at, frame in enumerate(frames, start=3)]
    )
    torch.testing.assert_close(found.embeddings, single.embeddings)
    torch.testing.assert_close(found.scenes, single.scenes)
    for name in ("boxes", "scale", "frame", "ids", "sizes"):
        assert torch.equal(getattr(found, name), getattr(single, name))


def test_it_is_an_encoder_and_its_frames_can_be_judged(encoder: RegionEncoder) -> None:
    assert isinstance(encoder, RegionEncoder)
    regions = encoder(frames_of(24), range(24))
    assert regions.embeddings.dtype == regions.scenes.dtype == torch.float32
    found = RegionDetector().fit(regions)
    assert torch.isfinite(found.object_scores).all()


def test_embeddings_are_plain_tensors_without_gradient(encoder: RegionEncoder) -> None:
    found = encoder(frames_of(1), [0])
    for part in (found.embeddings, found.scenes):
        assert not part.requires_grad
        assert not part.is_inference()
        part += 1.0  # an inference tensor would refuse


def test_one_channel_is_gray(encoder: RegionEncoder) -> None:
    gray = frames_of(1)[:, :1]
    found, expected = encoder(gray, [0]), encoder(gray.expand(-1, 3, -1, -1).contiguous(), [0])
    torch.testing.assert_close(found.embeddings, expected.embeddings)
    torch.testing.assert_close(found.scenes, expected.scenes)


def test_frames_and_ids_that_do_not_fit_are_named(encoder: RegionEncoder) -> None:
    name = type(encoder).__name__
    with pytest.raises(EmbeddingShapeError, match=f"{name} got 1 ids for 2 rows"):
        encoder(frames_of(2), [1])
    with pytest.raises(EmbeddingShapeError, match=f"{name} expects .*ids"):
        encoder(frames_of(1), torch.tensor([0.5]))
    with pytest.raises(ImageInputError, match=f"{name} got no frame; leave empty batches out"):
        encoder(frames_of(1)[:0], [])
    with pytest.raises(ImageInputError, match=f"{name} expects a uint8 tensor"):
        encoder(frames_of(1).float(), [0])
    with pytest.raises(ImageInputError, match=r"add the batch with .unsqueeze\(0\)"):
        encoder(frames_of(1)[0], [0])


def test_a_model_is_run_in_evaluation_and_left_as_it_was() -> None:
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Pixels()
            self.frozen = nn.BatchNorm2d(3).eval()
            self.dropout = nn.Dropout(0.9)

        def forward(self, images: Tensor) -> Tensor:
            pixels: Tensor = self.inner(self.dropout(self.frozen(images)))
            return pixels

    model = Training().train()
    model.frozen.eval()
    encoder = CropEncoder(model, crop_size=4, scene_size=8)
    first = encoder(frames_of(1), [0])
    assert torch.equal(encoder(frames_of(1), [0]).embeddings, first.embeddings)
    assert set(model.inner.modes) == {(False, False)}
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training


def test_a_model_that_fails_is_left_in_training() -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = Failing().train()
    for encoder in (CropEncoder(model), MapEncoder(model)):
        with pytest.raises(ZeroDivisionError):
            encoder(frames_of(1), [0])
        assert model.training


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_no_pass_has_more_crops_than_a_batch(batch_size: int) -> None:
    model = Pixels()
    frames = frames_of(2)
    found = CropEncoder(model, crop_size=8, scene_size=8, batch_size=batch_size)(frames, [0, 1])
    assert max(model.batches) == min(batch_size, len(found) // 2)
    assert sum(model.batches) == len(found) + 2
    expected = CropEncoder(Pixels(), crop_size=8, scene_size=8)(frames, [0, 1])
    assert torch.equal(found.embeddings, expected.embeddings)


def test_boxes_are_seen_as_squares_around_them_and_returned_as_given() -> None:
    frame = frames_of(1)[0] // 2 + 64
    boxes = np.array([[10.5, 5, 20, 12], [0, 0, 60, 45], [59, 44, 60, 45]])
    encoder = CropEncoder(Pixels(), crop_size=16, scene_size=8)
    found = encoder.of_boxes(frame, boxes, 17, context=1.5, least_side=10)
    assert found.boxes.tolist() == [[10, 5, 20, 12], [0, 0, 60, 45], [59, 44, 60, 45]]
    assert found.scale.tolist() == found.frame.tolist() == [0, 0, 0]
    assert found.ids.tolist() == [17]
    squares = square_boxes(found.boxes, (45, 60), context=1.5, least_side=10)
    assert squares.tolist() == [[7, 1, 22, 16], [7, 0, 52, 45], [50, 35, 60, 45]]
    for seen, square in zip(levels(found.embeddings, 16), squares.tolist(), strict=True):
        assert float((seen - by_pil(frame, square, 16)).abs().max()) <= 1.01


def test_a_frame_without_boxes_has_a_scene_and_no_region() -> None:
    encoder = CropEncoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), crop_size=16)
    frame = frames_of(1)[0]
    found = encoder.of_boxes(frame, [], 3)
    assert found.embeddings.shape == (0, 12)
    assert found.scenes.shape == (1, 12)
    joined = Regions.joined([found, encoder.of_boxes(frame, [[0, 0, 9, 9]], 4)])
    assert joined.frame.tolist() == [1]


def test_boxes_and_frames_that_are_none_are_named() -> None:
    encoder = CropEncoder(Pixels())
    with pytest.raises(OptionError, match=r"CropEncoder.of_boxes got box 0, .* reaches outside"):
        encoder.of_boxes(frames_of(1)[0], [[0, 0, 61, 4]], 0)
    with pytest.raises(
        ImageInputError, match=r"of_boxes expects one frame, .* got \(1, 3, 45, 60\)"
    ):
        encoder.of_boxes(frames_of(1), [], 0)
    with pytest.raises(ImageInputError, match="got str"):
        encoder.of_boxes("frame.jpg", [], 0)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "CropEncoder expects crop_size"),
        ({"scene_size": 0.5}, "CropEncoder expects scene_size"),
        ({"batch_size": 0}, "CropEncoder expects batch_size"),
        ({"shares": (0.5, 2.0)}, "expects shares"),
        ({"overlap": 1.0}, "expects overlap"),
        ({"mean": (0.5, 0.5)}, "CropEncoder expects mean as 3 finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "CropEncoder expects std above 0"),
    ],
)
def test_options_of_crops_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CropEncoder(Pixels(), **options)


def test_a_model_without_rows_is_named() -> None:
    encoder = CropEncoder(nn.Conv2d(3, 4, 3))
    message = r"CropEncoder expects the model to give embeddings of shape \(1, dim\) .* got \(1, 4,"
    with pytest.raises(EmbeddingShapeError, match=message):
        encoder(frames_of(1), [0])


def test_models_that_return_a_dict_are_read() -> None:
    class Dict(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"pooler_output": images.mean(dim=(2, 3))}

    assert CropEncoder(Dict(), crop_size=8)(frames_of(1), [0]).embeddings.shape[1] == 3


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    side=st.sampled_from([24, 40, 100]),
    multiple=st.sampled_from([8, 16]),
)
def test_cells_of_a_map_divide_the_frame(height: int, width: int, side: int, multiple: int) -> None:
    encoder = MapEncoder(nn.Conv2d(3, 2, multiple, stride=multiple), height=side, multiple=multiple)
    found = encoder(frames_of(1, height, width), [0])
    covered = torch.zeros(height, width, dtype=torch.int64)
    for left, top, right, bottom in found.boxes.tolist():
        covered[top:bottom, left:right] += 1
    assert bool((covered == 1).all())
    rows = max(round(side / multiple), 1)
    columns = max(round(width * side / height / multiple), 1)
    assert len(found) == rows * columns
    order = found.boxes[:, 1] * width + found.boxes[:, 0]
    assert bool((order.diff() > 0).all())


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (IMAGENET_MEAN, IMAGENET_STD))
    large = F.interpolate(frames.float(), size, mode="bicubic", antialias=True)
    return (large.clamp(0, 255) / 255 - mean) / std


def test_cells_of_a_convolution_are_its_map_row_by_row() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 16, stride=16)
    frames = frames_of(2)
    # 45 x 60 becomes 32 x 48: neither side was a multiple, nor is the shape kept to the pixel.
    found = MapEncoder(model, height=37, multiple=16)(frames, [0, 1])
    expected = model(resized(frames, (32, 48)))
    assert expected.shape == (2, 5, 2, 3)
    rows = [expected[frame, :, y, x] for frame in range(2) for y in range(2) for x in range(3)]
    torch.testing.assert_close(found.embeddings, torch.stack(rows).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.scenes, expected.mean(dim=(2, 3)).detach(), rtol=1e-4, atol=1e-5
    )
    assert found.boxes[:4].tolist() == [
        [0, 0, 20, 22],
        [20, 0, 40, 22],
        [40, 0, 60, 22],
        [0, 22, 20, 45],
    ]
    assert torch.unique(found.scale).tolist() == [0]


def test_cells_of_a_transformer_are_its_patch_tokens() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=8, dim=12, depth=2, heads=3, image_size=32)
    frames = frames_of(2)
    encoder = MapEncoder(model, height=32)
    assert encoder.multiple == 8
    found = encoder(frames, [0, 1])
    tokens = model.tokens(resized(frames, (32, 40))).detach()
    torch.testing.assert_close(found.scenes, tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.embeddings, tokens[:, 1:].reshape(40, 12), rtol=1e-4, atol=1e-5
    )
    assert len(found.boxes) == 40


def test_a_map_is_found_where_select_says() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 32, stride=32)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"map": self.conv(images), "pooled": images.mean(dim=(2, 3))}

    model = Named()
    assert MapEncoder(model, height=64, select=lambda out: out["map"])(
        frames_of(1), [0]
    ).embeddings.shape == (6, 4)
    with pytest.raises(EmbeddingShapeError, match=r"map of shape \(1, dim, h, w\), got dict; pass"):
        MapEncoder(model, height=64)(frames_of(1), [0])
    with pytest.raises(
        EmbeddingShapeError, match=r"got \(1, 3\); pass the part before the pooling"
    ):
        MapEncoder(model, height=64, select=lambda out: out["pooled"])(frames_of(1), [0])


def test_a_map_finer_than_the_frame_is_refused() -> None:
    encoder = MapEncoder(nn.Identity(), height=64)
    with pytest.raises(ImageInputError, match="64 x 96 cells for a frame of 45 x 60 pixels"):
        encoder(frames_of(1), [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": 0}, "MapEncoder expects multiple"),
        ({"multiple": 12}, "multiple as one of the model's patch size, 8, got 12"),
        ({"height": 7}, "MapEncoder expects height as a whole number of at least 8"),
        ({"std": (1.0, -1.0, 1.0)}, "MapEncoder expects std above 0"),
    ],
)
def test_options_of_maps_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    model = VisionTransformer(patch_size=8, dim=12, depth=1, heads=3, image_size=32)
    with pytest.raises(OptionError, match=message):
        MapEncoder(model, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["crops", "vit", "conv"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_frames_are_embedded_on_the_device_of_the_model(name: str, where: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = encoders()[name]()(frames_of(2), [0, 1])
    encoder: Any = encoders()[name]()
    encoder.model.cuda()
    found = encoder(frames_of(2).to(where), [0, 1])
    assert found.embeddings.device.type == found.scenes.device.type == "cuda"
    assert found.boxes.device.type == found.frame.device.type == "cpu"
    # Within a level of a pixel, which a few weights turn into less than this.
    torch.testing.assert_close(found.embeddings.cpu(), expected.embeddings, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.scenes.cpu(), expected.scenes, rtol=0.02, atol=0.02)
    assert torch.isfinite(
        RegionDetector().fit(encoder(frames_of(24).to(where), range(24))).object_scores
    ).all()
