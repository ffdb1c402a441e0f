"""Builds the encoders that the examples and the command line know by name, without weights.

Weights come from a local file through ``load_dino``; nothing is ever fetched. Any other
``nn.Module`` that maps images to rows serves as well.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torchvision
from torch import Tensor, nn

from raremix.data.kinds import PathLike
from raremix.embedding.checkpoints import load_backbone, read_weights
from raremix.embedding.vit import VisionTransformer
from raremix.errors import CheckpointMismatchError, OptionError

__all__ = [
    "BackboneGuess",
    "BackboneName",
    "backbone",
    "guess_backbone",
    "load_dino",
    "resnet18",
    "resnet50",
    "vit_base",
    "vit_small",
    "vit_tiny",
]

BackboneName: TypeAlias = Literal["resnet18", "resnet50", "vit_tiny", "vit_small", "vit_base"]

_logger = logging.getLogger(__name__)

_VIT_WIDTHS: dict[int, BackboneName] = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}


@dataclass(frozen=True)
class BackboneGuess:
    """Which of the known encoders some weights belong to, as their names and shapes say."""

    name: BackboneName
    patch_size: int | None = None
    image_size: int | None = None
    small_images: bool = False

    def is_like(self, name: str, patch_size: int | None, small_images: bool) -> bool:
        """Whether these options of ``backbone`` build it."""
        patch = None if self.patch_size is None else patch_size or 16
        return (self.name, self.patch_size, self.small_images) == (name, patch, small_images)

    def __str__(self) -> str:
        """The call that builds it."""
        patch = "" if self.patch_size is None else f", patch_size={self.patch_size}"
        small = ", small_images=True" if self.small_images else ""
        return f'backbone("{self.name}"{patch}{small})'


def resnet18() -> nn.Module:
    """ResNet-18 of torchvision without its classifier: (batch, 3, H, W) to (batch, 512)."""
    return _without_classifier(torchvision.models.resnet18(weights=None))


def resnet50() -> nn.Module:
    """ResNet-50 of torchvision without its classifier: (batch, 3, H, W) to (batch, 2048)."""
    return _without_classifier(torchvision.models.resnet50(weights=None))


def vit_tiny(patch_size: int = 16, *, image_size: int = 224) -> VisionTransformer:
    """ViT-Ti: 192 wide, 12 blocks, 3 heads."""
    return VisionTransformer(
        patch_size=patch_size, dim=192, depth=12, heads=3, image_size=image_size
    )


def vit_small(patch_size: int = 16, *, image_size: int = 224) -> VisionTransformer:
    """ViT-S as in DINO: 384 wide, 12 blocks, 6 heads."""
    return VisionTransformer(
        patch_size=patch_size, dim=384, depth=12, heads=6, image_size=image_size
    )


def vit_base(patch_size: int = 16, *, image_size: int = 224) -> VisionTransformer:
    """ViT-B: 768 wide, 12 blocks, 12 heads."""
    return VisionTransformer(
        patch_size=patch_size, dim=768, depth=12, heads=12, image_size=image_size
    )


def backbone(
    name: BackboneName,
    *,
    patch_size: int | None = None,
    image_size: int | None = None,
    small_images: bool = False,
) -> nn.Module:
    """Build an encoder by its name, with random weights.

    Args:
        name: ``"resnet18"`` (512 wide), ``"resnet50"`` (2048), ``"vit_tiny"`` (192),
            ``"vit_small"`` (384) or ``"vit_base"`` (768).
        patch_size: Side of a patch of a ViT; 16 by default.
        image_size: Side of the images a ViT's positions belong to; 224 by default. Images of
            other sizes are taken all the same.
        small_images: Build a ResNet for images of some 32 to 64 pixels: a 3x3 convolution of
            stride 1 at its foot and no pooling after it, as is usual on CIFAR.

    Returns:
        A module from (batch, 3, H, W) to (batch, dim), in training mode as every new module.

    Raises:
        OptionError: If the name is unknown, a ResNet is given a patch or image size, or a ViT is
            asked to be one for small images.

    Source:
        The foot for small images: Chen et al., A Simple Framework for Contrastive Learning of
        Visual Representations, ICML 2020, appendix B.9, https://arxiv.org/abs/2002.05709.

    Example:
        >>> sum(p.numel() for p in backbone("resnet18").parameters())
        11176512
    """
    if name not in get_args(BackboneName):
        raise OptionError(
            f"backbone knows {', '.join(get_args(BackboneName))}, got {name!r}; pass your own "
            "nn.Module to extract_embeddings for any other encoder."
        )
    if name.startswith("resnet"):
        if patch_size is not None or image_size is not None:
            raise OptionError(f"backbone: {name} has no patches; leave out patch and image size.")
        model = resnet18() if name == "resnet18" else resnet50()
        return _for_small_images(model) if small_images else model
    if small_images:
        raise OptionError(
            f"backbone: small_images is for a ResNet; for {name}, pass a small patch_size instead."
        )
    build = {"vit_tiny": vit_tiny, "vit_small": vit_small, "vit_base": vit_base}[name]
    return build(patch_size or 16, image_size=image_size or 224)


def load_dino(
    name: BackboneName,
    path: PathLike,
    *,
    which: Literal["teacher", "student"] = "teacher",
    patch_size: int | None = None,
    image_size: int | None = None,
    small_images: bool = False,
) -> nn.Module:
    """Build an encoder and fill it from a local DINO checkpoint, ready to embed images.

    Both the backbone-only files and the full ones that training leaves behind are read; see
    ``load_backbone`` for the layouts.

    Args:
        name: As for ``backbone``.
        path: The checkpoint.
        which: Which network of a full checkpoint.
        patch_size: As for ``backbone``.
        image_size: As for ``backbone``, but by default that of the checkpoint's positions.
        small_images: As for ``backbone``; it must be what the checkpoint was trained with.

    Returns:
        The module on the CPU, in evaluation mode.

    Raises:
        OptionError: As for ``backbone``.
        FileFormatError: If the file cannot be read safely.
        CheckpointMismatchError: If its weights belong to another architecture; the message says
            which of the known ones they look like.

    Source:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
        https://arxiv.org/abs/2104.14294.
    """
    # Built first, so that a wrong name is told before a missing file.
    model = backbone(name, patch_size=patch_size, image_size=image_size, small_images=small_images)
    guess = guess_backbone(read_weights(path, which=which))
    if guess is not None and image_size is None and guess.name == name and guess.image_size:
        model = backbone(name, patch_size=patch_size, image_size=guess.image_size)
    try:
        report = load_backbone(model, path, which=which)
    except CheckpointMismatchError as error:
        if guess is None or guess.is_like(name, patch_size, small_images):
            raise
        raise CheckpointMismatchError(f"{error} It looks like {guess}.") from error
    _logger.info("%s", report)
    return model.eval()


def guess_backbone(weights: Mapping[str, Tensor]) -> BackboneGuess | None:
    """Say which known encoder these weights are of, whatever stands before their names.

    Args:
        weights: Tensors by name, as in a state dict.

    Returns:
        The guess, or None if they look like none of them.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}

    def shape(name: str) -> tuple[int, ...]:
        return next((s for key, s in shapes.items() if f".{key}".endswith(f".{name}")), ())

    def blocks(stem: str) -> int:
        found = (re.search(rf"(?:^|\.){stem}\.(\d+)\.", key) for key in shapes)
        return len({match[1] for match in found if match})

    patches = shape("patch_embed.proj.weight")
    if len(patches) == 4 and patches[0] in _VIT_WIDTHS and blocks("blocks") == 12:
        positions = shape("pos_embed")
        grid = math.isqrt(positions[1] - 1) if len(positions) == 3 else 0
        whole = grid > 0 and grid**2 + 1 == positions[1]
        size = grid * patches[2] if whole else None
        return BackboneGuess(_VIT_WIDTHS[patches[0]], patch_size=patches[2], image_size=size)
    # Every block has a conv1, too; the foot's is the shortest name.
    feet = [key for key in shapes if f".{key}".endswith(".conv1.weight")]
    stem = shapes[min(feet, key=len)] if feet else ()
    depths = [blocks(f"layer{number}") for number in (1, 2, 3, 4)]
    deep = bool(shape("layer1.0.conv3.weight"))
    if len(stem) == 4 and (deep, depths) in ((False, [2, 2, 2, 2]), (True, [3, 4, 6, 3])):
        return BackboneGuess("resnet50" if deep else "resnet18", small_images=stem[2] == 3)
    return None


def _for_small_images(model: Any) -> nn.Module:
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    network: nn.Module = model
    return network


def _without_classifier(model: nn.Module) -> nn.Module:
    model.fc = nn.Identity()
    return model
