"""``raremix embed``: images to rows, in order, without the broken ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from raremix.cli import main
from raremix.data.images import ImageFiles
from raremix.embedding.backbones import backbone
from raremix.embedding.preprocessing import eval_transform

SMALL = ("--backbone", "resnet18", "--image-size", "32", "--workers", "0", "--device", "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.save(backbone("resnet18").state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_rows_are_the_embeddings_of_the_files_in_order(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.npy"
    assert main(["embed", str(photos), "--out", str(out), "--weights", str(weights), *SMALL]) == 0
    model = backbone("resnet18")
    model.load_state_dict(torch.load(weights, weights_only=True))
    images = ImageFiles(photos, transform=eval_transform(32, 37))
    with torch.no_grad():
        expected = model.eval()(torch.stack([image for image, _ in images]))  # type: ignore[attr-defined]
    assert np.load(out) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)
    lines = (tmp_path / "e.paths.txt").read_text().splitlines()
    assert lines == [f"# root: {photos}", *(f"{n}.png" for n in range(6))]


def test_broken_images_are_left_out_counted_and_listed(
    photos: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / "2.png").write_bytes(b"broken")
    out = tmp_path / "e.npy"
    words = ["embed", str(photos), "--out", str(out), "--weights", str(weights), *SMALL]
    assert main([*words, "--json"]) == 0
    printed, err = capsys.readouterr()
    found = json.loads(printed)
    assert [Path(one["path"]).name for one in found["left_out"]] == ["2.png"]
    assert found["rows"] == 5
    assert "left out" in err
    assert len(np.load(out)) == 5
    lines = (tmp_path / "e.paths.txt").read_text().splitlines()
    assert lines[1:] == ["0.png", "1.png", "3.png", "4.png", "5.png"]


def test_what_was_embedded_can_be_scored_and_shown(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.npy"
    assert main(["embed", str(photos), "--out", str(out), "--weights", str(weights), *SMALL]) == 0
    page = tmp_path / "r.html"
    words = ["report", str(out), "--images", str(photos), "--out", str(page), "--k", "2"]
    assert main(words) == 0
    assert "data:image/" in page.read_text()


def test_images_of_an_array_need_no_paths(weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", images=np.zeros((3, 20, 20, 3), np.uint8))
    out = tmp_path / "e.npy"
    words = ["embed", str(tmp_path / "i.npz"), "--out", str(out), "--weights", str(weights)]
    assert main([*words, *SMALL]) == 0
    assert np.load(out).shape == (3, 512)
    assert not (tmp_path / "e.paths.txt").exists()


def test_random_weights_must_be_asked_for_and_are_the_same_each_time(
    photos: Path, tmp_path: Path, capsys: Any
) -> None:
    state = torch.random.get_rng_state()
    for name in ("a.npy", "b.npy"):
        words = ["embed", str(photos), "--out", str(tmp_path / name), "--weights", "random"]
        assert main([*words, *SMALL]) == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert "know nothing of the images' content" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "gone.pth"], "gone.pth"),
        (["--weights", "random", "--patch-size", "8"], "no patches"),
        (["--weights", "random", "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_run_is_said_in_one_line_and_nothing_is_written(
    words: list[str], message: str, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "e.npy"
    assert main(["embed", str(photos), "--out", str(out), *SMALL, *words]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("raremix: error: ")
    assert message in err
    assert [file.name for file in tmp_path.iterdir()] == ["photos"]


def test_a_folder_of_broken_images_is_an_error(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"x")
    words = ["embed", str(tmp_path / "p"), "--out", str(tmp_path / "e.npy"), *SMALL]
    assert main([*words, "--weights", "random"]) == 1
    assert "found 1 image in" in capsys.readouterr().err


def test_one_image_is_not_called_images(
    photos: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    for number in range(1, 5):
        (photos / f"{number}.png").unlink()
    (photos / "5.png").write_bytes(b"broken")
    out = tmp_path / "e.npy"
    assert main(["embed", str(photos), "--out", str(out), "--weights", str(weights), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 image, 512 wide")
    assert "1 image could not be read and was left out" in printed


@pytest.mark.parametrize(
    ("built", "options", "asked", "hint"),
    [
        ("resnet18", {}, ["--backbone", "resnet50"], "look like --backbone resnet18"),
        (
            "resnet18",
            {},
            ["--backbone", "resnet18", "--small-images"],
            "look like --backbone resnet18",
        ),
        (
            "resnet18",
            {"small_images": True},
            ["--backbone", "resnet18"],
            "look like --backbone resnet18 --small-images",
        ),
        (
            "vit_tiny",
            {"patch_size": 8, "image_size": 32},
            ["--backbone", "vit_tiny"],
            "do not fit --backbone vit_tiny; they look like --backbone vit_tiny --patch-size 8",
        ),
    ],
)
def test_weights_of_another_network_name_the_options_that_fit(
    built: Any,
    options: dict[str, Any],
    asked: list[str],
    hint: str,
    photos: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    torch.save({"teacher": backbone(built, **options).state_dict()}, tmp_path / "w.pth")
    words = ["embed", str(photos), "--out", f"{tmp_path}/e.npy", "--weights", f"{tmp_path}/w.pth"]
    assert main([*words, *asked]) == 1
    err = capsys.readouterr().err
    assert err.rstrip().endswith(hint.removeprefix("do not fit --backbone vit_tiny; they "))
    assert hint in err
    assert len(err) < 300


def test_small_images_are_embedded_as_their_own_network_would(
    photos: Path, tmp_path: Path, capsys: Any
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # Built as the reference trainer builds it, not by the option under test.
        model: Any = torchvision.models.resnet18()
        model.fc = nn.Identity()
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    out = tmp_path / "e.npy"
    words = ["embed", str(photos), "--out", str(out), "--weights", str(tmp_path / "w.pth")]
    small = ["--backbone", "resnet18", "--small-images", "--workers", "0", "--device", "cpu"]
    assert main([*words, *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == 32
    images = ImageFiles(photos, transform=eval_transform(32, 32))
    with torch.no_grad():
        expected = model.eval()(torch.stack([image for image, _ in images]))  # type: ignore[attr-defined]
    assert np.load(out) == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_a_folder_that_moved_is_found_again_by_images(
    photos: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "e.npy"
    assert main(["embed", str(photos), "--out", str(out), "--weights", str(weights), *SMALL]) == 0
    words = ["report", str(out), "--out", str(tmp_path / "r.html"), "--k", "2"]
    assert main(words) == 0
    assert (tmp_path / "r.html").read_text().count("<img") > 6
    photos.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(words) == 0
    assert f"the folder {photos} is gone; pass --images DIR" in capsys.readouterr().err
    assert "<img" not in (tmp_path / "r.html").read_text()
    assert main([*words, "--images", str(tmp_path / "elsewhere"), "--json"]) == 0
    assert (tmp_path / "r.html").read_text().count("<img") > 6
    assert json.loads(capsys.readouterr().out)["pictures"] == {"shown": 6, "unreadable": 0}
    scored = ["score", str(out), "--out", str(tmp_path), "--k", "2"]
    assert main([*scored, "--html", f"{tmp_path}/s.html", "--images", f"{tmp_path}/elsewhere"]) == 0
    assert (tmp_path / "s.html").read_text().count("<img") > 6
