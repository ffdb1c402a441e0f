"""Builds the encoders that the examples and the command line know by name, without weights.

Weights come from a local file through ``load_dino``; nothing is ever fetched. Any other
``nn.Module`` that maps images to rows serves as well.
"""

import logging
from typing import Literal, TypeAlias, get_args

import torchvision
from torch import nn

from raremix.data.kinds import PathLike
from raremix.embedding.checkpoints import load_backbone
from raremix.embedding.vit import VisionTransformer
from raremix.errors import OptionError

__all__ = [
    "BackboneName",
    "backbone",
    "load_dino",
    "resnet18",
    "resnet50",
    "vit_base",
    "vit_small",
    "vit_tiny",
]

BackboneName: TypeAlias = Literal["resnet18", "resnet50", "vit_tiny", "vit_small", "vit_base"]

_logger = logging.getLogger(__name__)


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
    name: BackboneName, *, patch_size: int | None = None, image_size: int | None = None
) -> nn.Module:
    """Build an encoder by its name, with random weights.

    Args:
        name: ``"resnet18"`` (512 wide), ``"resnet50"`` (2048), ``"vit_tiny"`` (192),
            ``"vit_small"`` (384) or ``"vit_base"`` (768).
        patch_size: Side of a patch of a ViT; 16 by default.
        image_size: Side of the images a ViT's positions belong to; 224 by default. Images of
            other sizes are taken all the same.

    Returns:
        A module from (batch, 3, H, W) to (batch, dim), in training mode as every new module.

    Raises:
        OptionError: If the name is unknown, or a ResNet is given a patch or image size.

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
        return resnet18() if name == "resnet18" else resnet50()
    build = {"vit_tiny": vit_tiny, "vit_small": vit_small, "vit_base": vit_base}[name]
    return build(patch_size or 16, image_size=image_size or 224)


def load_dino(
    name: BackboneName,
    path: PathLike,
    *,
    which: Literal["teacher", "student"] = "teacher",
    patch_size: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Build an encoder and fill it from a local DINO checkpoint, ready to embed images.

    Both the backbone-only files and the full ones that training leaves behind are read; see
    ``load_backbone`` for the layouts.

    Args:
        name: As for ``backbone``.
        path: The checkpoint.
        which: Which network of a full checkpoint.
        patch_size: As for ``backbone``.
        image_size: As for ``backbone``.

    Returns:
        The module on the CPU, in evaluation mode.

    Raises:
        OptionError: As for ``backbone``.
        FileFormatError: If the file cannot be read safely.
        CheckpointMismatchError: If its weights belong to another architecture.

    Source:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
        https://arxiv.org/abs/2104.14294.
    """
    model = backbone(name, patch_size=patch_size, image_size=image_size)
    report = load_backbone(model, path, which=which)
    _logger.info("%s", report)
    return model.eval()


def _without_classifier(model: nn.Module) -> nn.Module:
    model.fc = nn.Identity()
    return model
