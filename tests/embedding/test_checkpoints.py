import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from raremix.embedding.backbones import backbone, load_dino
from raremix.embedding.checkpoints import load_backbone
from raremix.embedding.vit import VisionTransformer
from raremix.errors import CheckpointMismatchError, FileFormatError

State = dict[str, Tensor]


def small(seed: int = 0, **options: int) -> VisionTransformer:
    torch.manual_seed(seed)
    sizes = {"patch_size": 4, "dim": 8, "depth": 2, "heads": 2, "image_size": 8, **options}
    return VisionTransformer(**sizes)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def with_head(state: State, prefix: str = "") -> State:
    return {
        **state,
        f"{prefix}head.mlp.0.weight": torch.ones(3),
        f"{prefix}head.last": torch.ones(1),
    }


def full_dino(state: State, other: State) -> dict[str, Any]:
    return {
        "student": with_head(prefixed(other, "module.backbone."), "module."),
        "teacher": with_head(prefixed(state, "backbone.")),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 7,
        "args": argparse.Namespace(arch="vit_small", betas=[0.9, 0.999], out_dim=65536),
        "dino_loss": {"center": torch.zeros(1, 5)},
    }


LAYOUTS: dict[str, Callable[[State, State], Any]] = {
    "bare": lambda state, _: state,
    "bare with head": lambda state, _: {**state, "fc.weight": torch.ones(2)},
    "state_dict": lambda state, _: {"state_dict": state, "epoch": 3},
    "model": lambda state, _: {"model": state},
    "module": lambda state, _: prefixed(state, "module."),
    "backbone": lambda state, _: with_head(prefixed(state, "backbone.")),
    "module.backbone": lambda state, _: with_head(prefixed(state, "module.backbone."), "module."),
    "compiled": lambda state, _: prefixed(state, "_orig_mod."),
    "compiled inside": lambda state, _: {
        key.replace("attn.", "_orig_mod.attn."): value for key, value in state.items()
    },
    "module compiled backbone": lambda state, _: prefixed(state, "module._orig_mod.backbone."),
    "encoder in state_dict": lambda state, _: {"state_dict": prefixed(state, "encoder.")},
    "dinov2": lambda state, other: {
        "model": {
            **prefixed(other, "student.backbone."),
            **prefixed(state, "teacher.backbone."),
            "teacher.dino_head.last_layer.weight": torch.ones(2),
        }
    },
    "full dino": full_dino,
}


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_fills_the_whole_model(tmp_path: Path, layout: str, old_format: bool) -> None:
    state, other = small(1).state_dict(), small(2).state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save(
        LAYOUTS[layout](dict(state), dict(other)),
        path,
        _use_new_zipfile_serialization=not old_format,
    )
    model = small(3)
    report = load_backbone(model, path)
    assert same(model, state)
    assert report.loaded == len(state)


def test_the_student_of_a_full_checkpoint_can_be_asked_for(tmp_path: Path) -> None:
    state, other = small(1).state_dict(), small(2).state_dict()
    for name in ("full dino", "dinov2"):
        torch.save(LAYOUTS[name](dict(state), dict(other)), tmp_path / "a.pth")
        model = small(3)
        load_backbone(model, tmp_path / "a.pth", which="student")
        assert same(model, other)


def test_the_report_says_where_the_weights_lay_and_what_was_left_out(tmp_path: Path) -> None:
    state = dict(small(1).state_dict())
    torch.save(full_dino(state, state), tmp_path / "a.pth")
    report = load_backbone(small(), tmp_path / "a.pth")
    assert report.layout == "teacher > backbone."
    assert report.dropped == ("head.mlp.0.weight", "head.last")
    assert str(report) == (
        f"30 tensors loaded from {tmp_path / 'a.pth'} (teacher > backbone.), 2 left out: "
        "head.mlp.0.weight, head.last"
    )
    torch.save(state, tmp_path / "b.pth")
    assert load_backbone(small(), tmp_path / "b.pth").layout == "bare state dict"


def test_a_network_that_is_not_there_is_not_replaced_by_the_other(tmp_path: Path) -> None:
    state = dict(small(1).state_dict())
    torch.save({"teacher": state}, tmp_path / "a.pth")
    torch.save(prefixed(state, "teacher.backbone."), tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(
            CheckpointMismatchError, match=r"holds no 'student', only 'teacher'.*which='teacher'"
        ):
            load_backbone(small(), tmp_path / name, which="student")


def test_two_encoders_of_the_same_names_ask_for_a_prefix(tmp_path: Path) -> None:
    state, other = dict(small(1).state_dict()), dict(small(2).state_dict())
    both = {**prefixed(state, "module.encoder_q."), **prefixed(other, "module.encoder_k.")}
    torch.save({"state_dict": both}, tmp_path / "moco.pth")
    with pytest.raises(
        CheckpointMismatchError,
        match=r"2 encoders that fit equally well, under 'module.encoder_q.', 'module.encoder_k.'",
    ):
        load_backbone(small(), tmp_path / "moco.pth")
    model = small(3)
    report = load_backbone(model, tmp_path / "moco.pth", prefix="module.encoder_k.")
    assert same(model, other)
    assert len(report.dropped) == len(state)


def mismatch(tmp_path: Path, change: Callable[[State], None]) -> str:
    state = dict(small(1).state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    model = small(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        load_backbone(model, tmp_path / "a.pth")
    assert same(model, before), "something was loaded"
    return str(caught.value)


def test_missing_keys_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    def change(state: State) -> None:
        for key in list(state):
            if key.startswith("blocks.1."):
                del state[key]

    text = mismatch(tmp_path, change)
    assert "(layout: bare state dict) into VisionTransformer; nothing was loaded." in text
    assert "Missing in the file (12): blocks.1.norm1.weight," in text
    assert "and 9 more." in text


def test_unknown_keys_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = mismatch(tmp_path, lambda state: state.update(mask_token=torch.ones(1)))
    assert "Unknown to the model (1): mask_token. Build the model with the parts" in text


def test_other_shapes_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = mismatch(tmp_path, lambda state: state.update(pos_embed=torch.ones(1, 17, 8)))
    assert "Other shapes, file for model (1): pos_embed (1, 17, 8) for (1, 5, 8)." in text
    assert "patch_size and image_size it was trained with" in text


def test_another_architecture_is_called_that(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointMismatchError, match="of another architecture"):
        load_backbone(small(), tmp_path / "a.pth")


def test_half_precision_is_widened_and_the_model_keeps_its_dtype(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in small(1).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    model = small(3)
    load_backbone(model, tmp_path / "a.pth")
    assert model.cls_token.dtype == torch.float32
    assert torch.equal(model.cls_token, state["cls_token"].float())


def test_older_batch_norms_without_a_count_are_loaded(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(
        {key: value for key, value in state.items() if "num_batches_tracked" not in key},
        tmp_path / "a.pth",
    )
    model = backbone("resnet18")
    assert load_backbone(model, tmp_path / "a.pth").dropped == ("fc.weight", "fc.bias")
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("cut", [0, 1, 10, 1000, 0.5, -30, -1])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_truncated_checkpoint_is_a_file_format_error(
    tmp_path: Path, cut: float, old_format: bool
) -> None:
    path = tmp_path / "a.pth"
    torch.save(dict(small().state_dict()), path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut) if isinstance(cut, float) else int(cut)])
    with pytest.raises(FileFormatError) as caught:
        load_backbone(small(), path)
    assert str(path) in str(caught.value)


class Settings:
    pass


def test_an_object_that_could_run_code_is_refused_and_named(tmp_path: Path) -> None:
    torch.save({"model": dict(small().state_dict()), "config": Settings()}, tmp_path / "a.pth")
    with pytest.raises(
        FileFormatError, match=r"object of type \S*Settings,.*weights_only=False\).*torch.save"
    ):
        load_backbone(small(), tmp_path / "a.pth")


def test_a_namespace_is_let_in_for_the_call_only(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    state = dict(small(1).state_dict())
    torch.save(full_dino(state, state), tmp_path / "a.pth")
    load_backbone(small(), tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileFormatError):
        load_backbone(small(), tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(FileFormatError, match=r"expects a checkpoint of torch.save, .* a npy file"):
        load_backbone(small(), tmp_path / "a.npy")
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "a.pth")
    with pytest.raises(
        FileFormatError, match=r"finds no weights .* a dict with the keys epoch, loss; save"
    ):
        load_backbone(small(), tmp_path / "a.pth")
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match=r"got a Tensor; save model.state_dict"):
        load_backbone(small(), tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match="finds no file"):
        load_backbone(small(), tmp_path / "none.pth")


def test_load_dino_gives_the_trained_function_in_evaluation_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = backbone("vit_tiny", patch_size=32, image_size=64)
    torch.save(full_dino(dict(trained.state_dict()), {}), tmp_path / "a.pth")
    model = load_dino("vit_tiny", tmp_path / "a.pth", patch_size=32, image_size=64)
    assert not model.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images))


def test_load_dino_takes_the_positions_from_the_checkpoint(tmp_path: Path) -> None:
    torch.save(backbone("vit_tiny", patch_size=8, image_size=32).state_dict(), tmp_path / "a.pth")
    model: Any = load_dino("vit_tiny", tmp_path / "a.pth", patch_size=8)
    assert model.grid == 4


def test_load_dino_says_which_network_would_fit(tmp_path: Path) -> None:
    torch.save(backbone("resnet18", small_images=True).state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointMismatchError, match=r'looks like backbone\("resnet18", small_images=True\)'
    ) as caught:
        load_dino("resnet50", tmp_path / "a.pth")
    assert len(str(caught.value)) < 700
    load_dino("resnet18", tmp_path / "a.pth", small_images=True)


def test_the_real_checkpoint_fills_its_architecture(shared_data: Path) -> None:
    model = torchvision.models.mobilenet_v2()
    model.classifier = nn.Identity()
    path = shared_data / "mobilenet_v2_imagenet.pt"
    report = load_backbone(model, path)
    saved = torch.load(path, weights_only=True)
    assert report.dropped == ()
    name = "features.0.0.weight"
    assert torch.equal(model.state_dict()[name], saved[name].float())
