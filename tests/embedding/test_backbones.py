from typing import Any, get_args

import pytest
import torch
from torch import nn

from raremix.embedding.backbones import BackboneName, backbone
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
