"""Regions of frames with their embeddings: what encoders give and detectors take.

It knows neither how they were embedded nor what is rare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError
from raremix.inputs import ArrayLike, as_whole_numbers

__all__ = ["Regions"]


@dataclass(frozen=True)
class Regions:
    """Some regions of each of some frames, and the frames as wholes.

    Attributes:
        embeddings: (n, dim) floats, one row per region.
        boxes: (n, 4) int64 on the CPU: left, top, right and bottom edge in pixels of the frame, right
            and bottom exclusive.
        scale: (n,) int64 on the CPU, at least 0: regions are compared with those of their scale.
        frame: (n,) int64 on the CPU: which row of ``ids`` a region is of, ascending.
        scenes: (b, dim of scenes) floats, one row per frame.
        ids: (b,) int64 on the CPU: each frame's place in its dataset.
        sizes: (b, 2) int64 on the CPU: height and width of the frames in pixels.

    Raises:
        EmbeddingShapeError: If the parts do not fit each other, or one is of another kind.
    """

    embeddings: Tensor
    boxes: Tensor
    scale: Tensor
    frame: Tensor
    scenes: Tensor
    ids: Tensor
    sizes: Tensor

    def __post_init__(self) -> None:
        n, b = len(self.embeddings), len(self.ids)
        expected = {
            "embeddings": (n, *self.embeddings.shape[1:2]),
            "boxes": (n, 4),
            "scale": (n,),
            "frame": (n,),
            "scenes": (b, *self.scenes.shape[1:2]),
            "ids": (b,),
            "sizes": (b, 2),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape or (name in ("embeddings", "scenes") and len(found) != 2):
                raise EmbeddingShapeError(
                    f"Regions expects {name} of shape {shape} for {n} regions of {b} frames, got {found}."
                )
        for name in expected:
            column = getattr(self, name)
            if name in ("embeddings", "scenes"):
                is_right, kind = column.is_floating_point(), "floats"
            else:
                is_right = column.dtype == torch.int64 and column.device.type == "cpu"
                kind = "int64 on the CPU"
            if not is_right:
                raise EmbeddingShapeError(
                    f"Regions expects {name} as {kind}, got {column.dtype} on {column.device}."
                )
        if n and int(self.scale.min()) < 0:
            raise EmbeddingShapeError(
                f"Regions expects scale of at least 0, got {int(self.scale.min())}."
            )
        if n and (int(self.frame.min()) < 0 or int(self.frame.max()) >= b):
            raise EmbeddingShapeError(
                f"Regions expects frame to count the {b} frames from 0, got {int(self.frame.min())} to "
                f"{int(self.frame.max())}."
            )
        if bool((self.frame.diff() < 0).any()):
            raise EmbeddingShapeError(
                "Regions expects the regions of each frame one after the other."
            )

    def __len__(self) -> int:
        return len(self.embeddings)

    @classmethod
    def joined(cls, parts: Sequence["Regions"]) -> "Regions":
        """The regions of all parts, frames in their order.

        Raises:
            EmbeddingShapeError: If there is no part, or their embeddings differ in width.
        """
        if not parts:
            raise EmbeddingShapeError("Regions.joined expects at least one part, got none.")
        for name in ("embeddings", "scenes"):
            widths = {getattr(part, name).shape[1] for part in parts}
            if len(widths) > 1:
                raise EmbeddingShapeError(
                    f"Regions.joined got {name} of different widths, {sorted(widths)}; embed all frames "
                    "with one encoder."
                )
        columns = {
            field.name: torch.cat([getattr(part, field.name) for part in parts])
            for field in fields(cls)
        }
        starts = torch.tensor([0, *[len(part.ids) for part in parts[:-1]]], device="cpu").cumsum(0)
        columns["frame"] = torch.cat(
            [part.frame + start for part, start in zip(parts, starts, strict=True)]
        )
        return cls(**columns)

    def of_frames(self, rows: ArrayLike | Sequence[int]) -> "Regions":
        """Only these frames, given as ascending rows of ``ids``, with their regions.

        Raises:
            EmbeddingShapeError: If the rows do not ascend, or there is no such frame.
        """
        rows = as_whole_numbers(
            rows, caller="Regions.of_frames", what="rows", hint="they count the frames from 0"
        )
        if len(rows) and not (
            0 <= int(rows.min()) <= int(rows.max()) < len(self.ids)
            and bool((rows.diff() > 0).all())
        ):
            raise EmbeddingShapeError(
                f"Regions.of_frames expects ascending rows from 0 to {len(self.ids) - 1}, got "
                f"{rows.tolist()}."
            )
        new = torch.full((len(self.ids),), -1, dtype=torch.int64, device="cpu")
        new[rows] = torch.arange(len(rows), device="cpu")
        kept = new[self.frame] >= 0
        here = kept.to(self.embeddings.device)
        return Regions(
            self.embeddings[here],
            self.boxes[kept],
            self.scale[kept],
            new[self.frame[kept]],
            self.scenes[rows.to(self.scenes.device)],
            self.ids[rows],
            self.sizes[rows],
        )
