"""Turns frames into embedded regions: windows and boxes cut out one by one, or cells of a feature map.

It scores nothing. Models are the caller's: any module that gives a row for an image, or a map.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raremix.embedding.extraction import evaluating, rows_of
from raremix.embedding.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from raremix.embedding.vit import VisionTransformer
from raremix.errors import EmbeddingShapeError, ImageInputError, OptionError
from raremix.inputs import ArrayLike, as_ids
from raremix.options import check_count, check_numbers
from raremix.regions.boxes import as_boxes, square_boxes, window_grid
from raremix.regions.regions import Regions
from raremix.views.images import as_images
from raremix.views.making import make_views
from raremix.views.rows import ViewParameters, to_rows

__all__ = ["CropEncoder", "MapEncoder", "RegionEncoder"]


@runtime_checkable
class RegionEncoder(Protocol):
    """Embeds regions of frames, and the frames as wholes."""

    def __call__(self, frames: Tensor, ids: ArrayLike | Sequence[int]) -> Regions:
        """Uint8 frames of one size, (b, 3, height, width), and their ids to regions."""


class CropEncoder:
    """Embeds square crops of a frame, each resized for the model, and the whole frame likewise.

    It sees small objects at the resolution the model was made for, whatever model that is. Its price is
    one forward pass for each region.

    Args:
        model: Gives a row for each image: what ``extract_embeddings`` takes. It is run in evaluation
            mode and without gradients, where it is.
        crop_size: Side of the crops as the model gets them, in pixels.
        scene_size: Side of the whole frame as the model gets it, squeezed to a square.
        shares: Scales of the windows, as of ``window_grid``.
        overlap: Of neighbouring windows, as of ``window_grid``.
        mean: What is taken from red, green and blue in [0, 1]; ImageNet's if not given.
        std: What they are divided by then.
        batch_size: Crops in one forward pass.

    Raises:
        OptionError: If an option is out of its range.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> encoder = CropEncoder(model, crop_size=32)
        >>> regions = encoder(torch.zeros(1, 3, 90, 160, dtype=torch.uint8), ids=[7])
        >>> regions.embeddings.shape, regions.ids
        (torch.Size([328, 12]), tensor([7]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        crop_size: int = 128,
        scene_size: int = 224,
        shares: Sequence[float] = (0.18, 0.27, 0.45),
        overlap: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        batch_size: int = 64,
    ) -> None:
        caller = "CropEncoder"
        self.model = model
        self.crop_size = check_count(caller, "crop_size", crop_size, least=1)
        self.scene_size = check_count(caller, "scene_size", scene_size, least=1)
        self.batch_size = check_count(caller, "batch_size", batch_size, least=1)
        window_grid(64, 64, shares=shares, overlap=overlap)  # Says what is wrong with them now.
        self.shares, self.overlap = tuple(shares), overlap
        self._constants = _constants(caller, mean, std)

    def __call__(self, frames: Tensor, ids: ArrayLike | Sequence[int]) -> Regions:
        """Embed the windows of frames of one size.

        Args:
            frames: Uint8 of shape (b, 3, height, width), on the CPU or the device of the model.
            ids: (b,) integers, each frame's place in its dataset.

        Returns:
            The windows of ``window_grid`` for each frame.

        Raises:
            ImageInputError: If these are no frames.
            EmbeddingShapeError: If the model does not give one row per crop, or ids do not fit the
                frames.
        """
        frames = _as_frames(frames, "CropEncoder")
        boxes, scale = window_grid(
            frames.shape[2], frames.shape[3], shares=self.shares, overlap=self.overlap
        )
        return self._embedded(frames, ids, [boxes] * len(frames), [scale] * len(frames))

    def of_boxes(
        self,
        frame: Tensor,
        boxes: ArrayLike | Sequence[Sequence[float]],
        id: int,
        *,
        context: float = 1.25,
        least_side: int = 32,
    ) -> Regions:
        """Embed the boxes of one frame, such as a detector's, instead of windows.

        Args:
            frame: Uint8 of shape (3, height, width).
            boxes: (n, 4) left, top, right and bottom edge in pixels, inside the frame; n may be 0.
            id: The frame's place in its dataset.
            context: The model sees a square around each box, so many times as long as its longer side.
            least_side: Of that square, in pixels.

        Returns:
            One region for each box, in their order, all of one scale. ``boxes`` of the result are
            those given, in whole pixels.

        Raises:
            OptionError: If a box is empty or reaches outside the frame.
            ImageInputError: If the frame is none.
        """
        caller = "CropEncoder.of_boxes"
        if not isinstance(frame, Tensor) or frame.ndim != 3:
            got = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            raise ImageInputError(
                f"{caller} expects one frame, a uint8 tensor of shape (3, height, width), got {got}."
            )
        frames = _as_frames(frame[None], caller)
        size = (frames.shape[2], frames.shape[3])
        given = as_boxes(boxes, size, caller=caller)
        scale = torch.zeros(len(given), dtype=torch.int64, device="cpu")
        seen = square_boxes(given, size, context=context, least_side=least_side)
        return self._embedded(frames, [id], [given], [scale], seen=[seen])

    def _embedded(
        self,
        frames: Tensor,
        ids: ArrayLike | Sequence[int],
        boxes: list[Tensor],
        scales: list[Tensor],
        seen: list[Tensor] | None = None,
    ) -> Regions:
        rows, scenes = [], []
        numbers = as_ids(ids, caller="CropEncoder", length=len(frames))
        height, width = frames.shape[2:]
        whole = torch.tensor([[0, 0, width, height]], device="cpu")
        with evaluating(self.model) as device, torch.inference_mode():
            for frame, own in zip(frames, boxes if seen is None else seen, strict=True):
                scenes.append(self._rows(frame, whole, self.scene_size, device))
                rows.append(self._rows(frame, own, self.crop_size, device))
        # Made out here, they are no inference tensors, which nobody could write to or learn from.
        scene = torch.cat(scenes)
        embeddings = torch.cat(rows) if any(map(len, rows)) else scene.new_empty(0, scene.shape[1])
        counts = torch.tensor([len(own) for own in boxes], device="cpu")
        return Regions(
            embeddings,
            torch.cat(boxes),
            torch.cat(scales),
            torch.arange(len(frames), device="cpu").repeat_interleave(counts),
            scene,
            numbers.clone(),
            torch.tensor([[height, width]] * len(frames), device="cpu"),
        )

    def _rows(self, frame: Tensor, boxes: Tensor, size: int, device: torch.device) -> Tensor:
        if not len(boxes):
            return torch.empty(0, 0, device=device)
        parts = []
        for some in torch.split(boxes, self.batch_size):
            cut = to_rows(ViewParameters(tuple(box), size) for box in some.tolist())
            crops = make_views(frame[None], cut[None], self._constants, [size] * len(some))
            # Depthwise convolutions of a CPU take half as long again in planes.
            images = torch.cat(crops).to(
                device, memory_format=torch.channels_last, non_blocking=True
            )
            parts.append(rows_of(self.model(images), len(images), caller="CropEncoder").float())
        return torch.cat(parts)


class MapEncoder:
    """Embeds all cells of a feature map at once: patch tokens of a ViT, or a ResNet's last map.

    One forward pass for a frame, at the price of resolution: a cell has seen more than its patch.

    Args:
        model: A ``VisionTransformer``, whose tokens are taken; or a module that gives a map (b, dim, h,
            w), such as the features of a torchvision model without its pooling.
        height: Height of the frames as the model gets them, in pixels; their width follows.
        multiple: Both are rounded to multiples of it; the patch size of a ViT if not given, else 32.
        select: Finds the map, (b, dim, h, w), in what the model returns, where that is another.
        mean: As of ``CropEncoder``.
        std: As of ``CropEncoder``.

    Raises:
        OptionError: If an option is out of its range.

    Example:
        >>> encoder = MapEncoder(nn.Conv2d(3, 8, 16, stride=16), height=64, multiple=16)
        >>> regions = encoder(torch.zeros(2, 3, 120, 160, dtype=torch.uint8), ids=[0, 1])
        >>> len(regions), regions.boxes[0].tolist()
        (40, [0, 0, 32, 30])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        height: int = 448,
        multiple: int | None = None,
        select: Callable[[Any], Tensor] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        caller = "MapEncoder"
        self.model = model
        if multiple is None:
            multiple = model.patch_size if isinstance(model, VisionTransformer) else 32
        self.multiple = check_count(caller, "multiple", multiple, least=1)
        if isinstance(model, VisionTransformer) and self.multiple % model.patch_size:
            raise OptionError(
                f"{caller} expects multiple as one of the model's patch size, {model.patch_size}, got "
                f"{multiple}."
            )
        self.height = check_count(caller, "height", height, least=self.multiple)
        self.select = select
        self._constants = _constants(caller, mean, std)

    def __call__(self, frames: Tensor, ids: ArrayLike | Sequence[int]) -> Regions:
        """Embed the cells of frames of one size.

        Args:
            frames: Uint8 of shape (b, 3, height, width), on the CPU or the device of the model.
            ids: (b,) integers, each frame's place in its dataset.

        Returns:
            One region for each cell, row by row; boxes are the parts of the frame they are in the place
            of. The scene is the class token of a ``VisionTransformer``, else the mean of the map.

        Raises:
            ImageInputError: If these are no frames.
            EmbeddingShapeError: If the model gives no map, or ids do not fit the frames.
            OptionError: If the map has more cells than the frame has pixels.
        """
        frames = _as_frames(frames, "MapEncoder")
        own = as_ids(ids, caller="MapEncoder", length=len(frames))
        height, width = frames.shape[2:]
        size = tuple(
            max(round(side * self.height / height / self.multiple), 1) * self.multiple
            for side in (height, width)
        )
        with evaluating(self.model) as device, torch.inference_mode():
            mean, std = self._constants.to(device).view(2, 3, 1, 1)
            images = F.interpolate(
                frames.to(device, non_blocking=True).float().expand(-1, 3, -1, -1),
                size,
                mode="bicubic",
                antialias=True,
                align_corners=False,
            )
            images = (images.clamp_(0, 255).div_(255) - mean) / std
            if isinstance(self.model, VisionTransformer):
                tokens = self.model.tokens(images)
                scenes, patches = tokens[:, 0], tokens[:, 1:]
                rows, columns = (side // self.model.patch_size for side in size)
            else:
                output = self.model(images)
                found = output if self.select is None else self.select(output)
                if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(frames):
                    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                    raise EmbeddingShapeError(
                        f"MapEncoder expects the model to give a map of shape ({len(frames)}, dim, h, w), "
                        f"got {got}; pass the part before the pooling, or select= to find it."
                    )
                rows, columns = found.shape[2:]
                scenes, patches = found.mean(dim=(2, 3)), found.flatten(2).transpose(1, 2)
        boxes = _cells(height, width, rows, columns)
        count = len(boxes)
        # Cloned out here, they are no inference tensors, which nobody could write to or learn from.
        return Regions(
            patches.reshape(-1, patches.shape[2]).float().clone(),
            boxes.repeat(len(frames), 1),
            torch.zeros(count * len(frames), dtype=torch.int64, device="cpu"),
            torch.arange(len(frames), device="cpu").repeat_interleave(count),
            scenes.float().clone(),
            own.clone(),
            torch.tensor([[height, width]] * len(frames), device="cpu"),
        )


def _as_frames(frames: Tensor, caller: str) -> Tensor:
    frames = as_images(frames, caller=caller)
    if not len(frames):
        raise ImageInputError(f"{caller} got no frame; leave empty batches out.")
    return frames


def _cells(height: int, width: int, rows: int, columns: int) -> Tensor:
    """(rows * columns, 4) boxes that divide a frame, row by row."""
    if rows > height or columns > width:
        raise ImageInputError(
            f"MapEncoder got a map of {rows} x {columns} cells for a frame of {height} x {width} pixels; "
            "pass larger frames or a lower height."
        )
    tops = torch.linspace(0, height, rows + 1, dtype=torch.float64, device="cpu").round().long()
    lefts = torch.linspace(0, width, columns + 1, dtype=torch.float64, device="cpu").round().long()
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).unbind(1)
    return torch.stack([lefts[column], tops[row], lefts[column + 1], tops[row + 1]], dim=1)


def _constants(caller: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    constants = [
        check_numbers(caller, "mean", mean, length=3),
        check_numbers(caller, "std", std, length=3),
    ]
    if min(constants[1]) <= 0:
        raise OptionError(f"{caller} expects std above 0, got {std!r}.")
    return torch.tensor(constants, dtype=torch.float32, device="cpu")
