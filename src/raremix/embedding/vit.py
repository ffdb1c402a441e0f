"""A plain vision transformer whose parameters are named as in DINO's public checkpoints.

It turns images into one embedding each, the class token's; heads, losses and weights are not here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raremix.errors import ImageInputError, OptionError

__all__ = ["VisionTransformer"]

_NORM_EPS = 1e-6  # DINO trains with this, not with torch's 1e-5.
_INIT_STD = 0.02  # As in ViT and DINO.


class _PatchEmbed(nn.Module):
    """Cuts an image into squares and projects each to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) to (batch, dim, H / patch, W / patch)."""
        patches: Tensor = self.proj(images)
        return patches


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, dim))
        return projected


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mapped


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = _Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        mapped: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mapped


class VisionTransformer(nn.Module):
    """Images of shape (batch, 3, H, W) to the class token's embeddings of shape (batch, dim).

    H and W may be any multiples of ``patch_size``: the positions, learned on the grid of
    ``image_size``, are interpolated (bicubic) to the grid that arrives.

    Args:
        patch_size: Side of a patch, in pixels.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads, a divisor of ``dim``.
        image_size: Side of the images that the positions are learned on, in pixels.

    Raises:
        OptionError: If ``heads`` does not divide ``dim``, or no patch fits into ``image_size``.

    Source:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021,
        https://arxiv.org/abs/2010.11929; without dropout, stochastic depth and head.

    Example:
        >>> model = VisionTransformer(patch_size=8, dim=12, depth=1, heads=3, image_size=32)
        >>> model(torch.zeros(2, 3, 16, 24)).shape
        torch.Size([2, 12])
    """

    def __init__(
        self, *, patch_size: int, dim: int, depth: int, heads: int, image_size: int = 224
    ) -> None:
        super().__init__()
        if dim % heads:
            raise OptionError(
                f"VisionTransformer expects heads to divide dim, got {heads} and {dim}."
            )
        if not 1 <= patch_size <= image_size:
            raise OptionError(
                "VisionTransformer expects patch_size between 1 and image_size, got "
                f"{patch_size} and {image_size}."
            )
        self.patch_size = patch_size
        self.dim = dim
        self.grid = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, dim))
        self.patch_embed = _PatchEmbed(patch_size, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        nn.init.trunc_normal_(self.cls_token, std=_INIT_STD)
        nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: Floats of shape (batch, 3, height, width), normalised, sides multiples of
                ``patch_size``.

        Returns:
            The normalised class token, of shape (batch, dim).

        Raises:
            ImageInputError: If the shape is another.
        """
        return self.tokens(images)[:, 0]

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens after the last norm: (batch, 1 + patches, dim), the class token first.

        The patches follow row by row, for scoring regions.

        Raises:
            ImageInputError: As ``forward``.
        """
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or any(side % self.patch_size or not side for side in images.shape[2:])
        ):
            raise ImageInputError(
                "VisionTransformer expects images of shape (batch, 3, height, width) with sides "
                f"that are multiples of {self.patch_size}, got {tuple(images.shape)}; crop or "
                "resize them."
            )
        patches = self.patch_embed(images)
        rows, columns = patches.shape[2:]
        tokens = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = tokens + self._positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def _positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        scaled = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)
