from typing import Any, get_args

import pytest
import torch
from torch import nn

from raremix.embedding.backbones import BackboneName, backbone, guess_backbone
from raremix.errors import OptionError

DIMS: dict[BackboneName, int] = {
    "resnet18": 512,
    "resnet50": 2048,
    "vit_tiny": 192,
    "vit_small": 384,
    "vit_base": 768,
}


def test_every_name_is_known() -> None:
    assert set(get_args(BackboneName)) == set(DIMS)


# Leaves out vit_base, which differs from vit_small in its width alone and is slow to fill.
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny", "vit_small"])
def test_every_backbone_gives_one_row_per_image(name: BackboneName) -> None:
    model = backbone(name).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 48)).shape == (2, DIMS[name])


def test_a_resnet_has_the_names_of_torchvision_without_the_classifier() -> None:
    names = set(backbone("resnet50").state_dict())
    assert {"conv1.weight", "layer4.2.bn3.running_var"} <= names
    assert not any(name.startswith("fc.") for name in names)
    assert isinstance(backbone("resnet50").fc, nn.Identity)


def test_patch_and_image_size_reach_the_vit() -> None:
    model: Any = backbone("vit_tiny", patch_size=8, image_size=32)
    assert model.patch_size == 8
    assert model.grid == 4


def test_an_unknown_name_lists_the_known_ones() -> None:
    name: Any = "vgg"
    with pytest.raises(OptionError, match=r"knows resnet18, resnet50, vit_tiny.*got 'vgg'"):
        backbone(name)


def test_a_resnet_with_a_patch_size_is_refused() -> None:
    with pytest.raises(OptionError, match="resnet18 has no patches; leave out"):
        backbone("resnet18", patch_size=16)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_for_small_images_keeps_their_resolution(name: BackboneName) -> None:
    model: Any = backbone(name, small_images=True)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 8, 8))).shape == (1, 64, 8, 8)
    plain = set(backbone(name).state_dict())
    assert set(model.state_dict()) == plain


def test_a_vit_for_small_images_is_refused() -> None:
    with pytest.raises(OptionError, match="small_images is for a ResNet; for vit_tiny, pass"):
        backbone("vit_tiny", small_images=True)


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"small_images": True}),
        ("vit_tiny", {"patch_size": 8, "image_size": 64}),
        ("vit_small", {"patch_size": 16, "image_size": 224}),
    ],
)
def test_weights_tell_their_network(name: BackboneName, options: Any, prefix: str) -> None:
    state = {prefix + key: value for key, value in backbone(name, **options).state_dict().items()}
    guess = guess_backbone(state)
    assert guess is not None
    assert guess.name == name
    for option, value in options.items():
        assert getattr(guess, option) == value
    assert guess.small_images == options.get("small_images", False)


def test_weights_of_other_networks_tell_nothing() -> None:
    assert guess_backbone({"features.0.weight": torch.ones(2, 3, 3, 3)}) is None
    assert guess_backbone({"conv1.weight": torch.ones(64, 3, 7, 7)}) is None
