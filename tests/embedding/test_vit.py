import math

import pytest
import torch
from torch import Tensor

from raremix.embedding.backbones import vit_base, vit_small, vit_tiny
from raremix.embedding.vit import VisionTransformer
from raremix.errors import ImageInputError, OptionError

# As listed in DINO's dino_deitsmall16_pretrain.pth.
BLOCK = {
    "norm1.weight": (384,),
    "norm1.bias": (384,),
    "attn.qkv.weight": (1152, 384),
    "attn.qkv.bias": (1152,),
    "attn.proj.weight": (384, 384),
    "attn.proj.bias": (384,),
    "norm2.weight": (384,),
    "norm2.bias": (384,),
    "mlp.fc1.weight": (1536, 384),
    "mlp.fc1.bias": (1536,),
    "mlp.fc2.weight": (384, 1536),
    "mlp.fc2.bias": (384,),
}
OUTSIDE = {
    "cls_token": (1, 1, 384),
    "pos_embed": (1, 197, 384),
    "patch_embed.proj.weight": (384, 3, 16, 16),
    "patch_embed.proj.bias": (384,),
    "norm.weight": (384,),
    "norm.bias": (384,),
}


def tiny() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(patch_size=4, dim=12, depth=2, heads=3, image_size=16).double()


def by_hand(model: VisionTransformer, image: Tensor) -> Tensor:
    """One image, one head and one token at a time, with nothing but sums and products."""
    weights = dict(model.named_parameters())

    def norm(tokens: Tensor, name: str) -> Tensor:
        centred = tokens - tokens.mean(1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(tokens: Tensor, name: str) -> Tensor:
        return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    kernel = weights["patch_embed.proj.weight"].reshape(12, -1)
    tokens = [weights["cls_token"][0, 0]]
    for row in range(0, 16, 4):
        for column in range(0, 16, 4):
            patch = image[:, row : row + 4, column : column + 4].reshape(-1)
            tokens.append(kernel @ patch + weights["patch_embed.proj.bias"])
    state = torch.stack(tokens) + weights["pos_embed"][0]
    for block in range(2):
        name = f"blocks.{block}"
        query, key, value = linear(norm(state, f"{name}.norm1"), f"{name}.attn.qkv").tensor_split(
            3, 1
        )
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            logits = query[:, part] @ key[:, part].T / math.sqrt(4)
            shares = logits.exp() / logits.exp().sum(1, keepdim=True)
            heads.append(shares @ value[:, part])
        state = state + linear(torch.cat(heads, 1), f"{name}.attn.proj")
        hidden = linear(norm(state, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        state = state + linear(hidden, f"{name}.mlp.fc2")
    return norm(state, "norm")


def test_tokens_equal_the_sums_and_products_done_by_hand() -> None:
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        expected = torch.stack([by_hand(model, image) for image in images])
        torch.testing.assert_close(model.tokens(images), expected)
        torch.testing.assert_close(model(images), expected[:, 0])


def test_the_parameters_are_named_and_shaped_as_in_dino() -> None:
    expected = dict(OUTSIDE)
    for block in range(12):
        expected.update({f"blocks.{block}.{name}": shape for name, shape in BLOCK.items()})
    with torch.device("meta"):
        state = vit_small().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize(
    ("build", "dim", "millions"),
    [(vit_tiny, 192, 5.5), (vit_small, 384, 21.7), (vit_base, 768, 85.8)],
)
def test_the_sizes_are_the_published_ones(build: object, dim: int, millions: float) -> None:
    assert callable(build)
    with torch.device("meta"):  # Shapes alone: filling 86 million numbers takes seconds.
        model = build()
    assert model.dim == dim
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_patch_size_of_8_has_785_positions() -> None:
    with torch.device("meta"):
        assert vit_tiny(8).pos_embed.shape == (1, 785, 192)


def test_other_image_sizes_are_taken_and_the_own_one_is_not_interpolated() -> None:
    model = tiny()
    assert model(torch.zeros(1, 3, 8, 24).double()).shape == (1, 12)
    assert model.tokens(torch.zeros(1, 3, 8, 24).double()).shape == (1, 13, 12)
    assert model._positions(4, 4) is model.pos_embed


def test_positions_that_are_linear_stay_linear_inside_a_larger_grid() -> None:
    model = VisionTransformer(patch_size=4, dim=3, depth=1, heads=1, image_size=32)
    ramp = torch.arange(8.0).repeat(8, 1)
    with torch.no_grad():
        model.pos_embed[0, 1:] = ramp.reshape(-1, 1).expand(-1, 3)
        scaled = model._positions(8, 16)[0, 1:].reshape(8, 16, 3)
    # Twice as many columns: their centres lie at (column + 1/2) / 2 - 1/2. Torch's bicubic kernel
    # (a = -0.75) bends a straight line by 3/64.
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(scaled[3, 4:12, 1], expected[4:12], atol=0.05, rtol=0)


def test_the_order_of_a_batch_does_not_matter() -> None:
    model = tiny()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images.flip(0)), model(images).flip(0))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 15, 16), (1, 3, 0, 16)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageInputError, match=r"multiples of 4, got .*crop or resize"):
        tiny()(torch.zeros(shape).double())


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="heads to divide dim, got 5 and 12"):
        VisionTransformer(patch_size=4, dim=12, depth=1, heads=5)
    with pytest.raises(OptionError, match="patch_size between 1 and image_size, got 64 and 32"):
        VisionTransformer(patch_size=64, dim=12, depth=1, heads=3, image_size=32)
