"""The driving example, from a folder of frames to its page, as a user runs it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pages import read_page
from PIL import Image

from raremix.embedding.backbones import vit_tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "driving.py"
SIZES = [(48, 64), (64, 48), (40, 96)]  # of frames, in turn


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("driving_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an encoder that has learned nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit_tiny.pth"
    torch.save(vit_tiny().state_dict(), path)
    return path


def write_frames(folder: Path, count: int = 15) -> Path:
    """Frames of several sizes, of which number 7 is cut short."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (*SIZES[number % 3], 3), dtype=np.uint8)
        path = folder / f"ride_{number:03}.png"
        Image.fromarray(pixels).save(path)
        if number == 7:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def write_camvid(root: Path, count: int = 12) -> Path:
    """A set with masks: road everywhere, and a block of train in every fourth frame."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.csv").write_text("id,name\n0,road\n1,train\n2,unlabelled\n")
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 60, (96, 128, 3), dtype=np.uint8)
        mask = np.zeros((96, 128), dtype=np.uint8)
        if number % 4 == 1:
            pixels[30:66, 40:80], mask[30:66, 40:80] = 255, 1
        Image.fromarray(pixels).save(root / "images" / f"0001TP_{300 * number:06}.png")
        Image.fromarray(mask).save(root / "labels" / f"0001TP_{300 * number:06}.png")
    return root


def options(folder: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [
        *(str(folder), "--weights", str(weights), "--backbone", "vit_tiny", "--out", str(out)),
        *("--crop-size", "16", "--height", "64", "--rate", "0.2", "--device", "cpu", *more),
    ]


def test_one_command_makes_a_page_of_a_folder(tmp_path: Path, weights: Path) -> None:
    folder = write_frames(tmp_path / "frames")
    out = tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *options(folder, weights, out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "15 frames of 1 clip " in done.stdout
    # The unreadable frame in the middle is counted, named on the console and listed on the page.
    assert re.search(r"1 frame passed over\n  \S+ride_007\.png: ", done.stdout)
    assert re.search(
        r"regions a frame; ms a frame: reading [\d,]+, embedding [\d,]+, scoring [\d,]+",
        done.stdout,
    )
    page = read_page(out)
    assert re.search(r"frames judged\s*14\s*1 left out", page.text)
    assert re.search(r"Left out\s*what\s*why\s*\S+ride_007\.png", page.text)
    assert "taken to be 1 s apart" in page.text
    assert "python examples/driving.py" in page.text
    assert "By class" not in page.text
    assert f"wrote {out}" in done.stdout


def test_a_second_page_needs_no_encoder_and_is_the_same(
    tmp_path: Path, weights: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_frames(tmp_path / "frames")
    cache = tmp_path / "regions.npz"
    given = options(folder, weights, tmp_path / "page.html", "--cache", str(cache))
    example.main(given)
    first = (tmp_path / "page.html").read_text()
    monkeypatch.setattr(example, "encode_frames", None)
    example.main(given)
    # All but how long it took.
    times = r"<dt>ms a frame</dt><dd>[^<]*</dd>"
    second = (tmp_path / "page.html").read_text()
    assert re.findall(times, first) != re.findall(times, second)
    assert re.sub(times, "", first) == re.sub(times, "", second)


def test_a_cache_of_something_else_is_refused(
    tmp_path: Path, weights: Path, example: ModuleType
) -> None:
    folder = write_frames(tmp_path / "frames")
    cache = tmp_path / "regions.npz"
    given = options(folder, weights, tmp_path / "page.html", "--cache", str(cache))
    example.main([*given, "--regions", "map"])
    with pytest.raises(SystemExit, match=r"regions\.npz was made with other regions; remove it"):
        example.main(given)
    shutil.copy(folder / "ride_000.png", folder / "ride_900.png")
    with pytest.raises(SystemExit, match="was made with other frames"):
        example.main([*given, "--regions", "map"])
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="is no cache of this example"):
        example.main(given)


def test_labels_are_counted_and_named_on_the_page(
    tmp_path: Path, weights: Path, example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_camvid(tmp_path / "camvid")
    (root / "labels" / "0001TP_001500.png").write_bytes(b"cut short")
    out = tmp_path / "page.html"
    more = ("--layout", "camvid", "--rare-classes", "train")
    example.main([*options(root, weights, out), *more])
    said = capsys.readouterr().out
    assert "rare classes: train" in said
    assert "Regions, by their own score" in said
    # Of 12 frames every fourth has a train; the mask of one of these cannot be read.
    assert re.search(r"Frames, by their object score.*\n  train: 2 of 11;", said)
    page = read_page(out)
    assert re.search(r"class\s*holding it\s*judged\s*in groups\s*found at 1 %", page.text)
    assert re.search(r"the labels of 0001TP_001500\.png", page.text)
    assert re.search(r'class="tag">(train|road)<', out.read_text())


def test_the_rarest_classes_are_found_where_none_are_named(
    tmp_path: Path, weights: Path, example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_camvid(tmp_path / "camvid")
    given = options(root, weights, tmp_path / "page.html", "--layout", "camvid", "--limit", "8")
    example.main([*given, "--regions", "map"])
    said = capsys.readouterr().out
    assert "8 frames of 1 clip " in said
    assert "rare classes: train" in said


def test_what_is_wrong_is_said_before_anything_is_embedded(
    tmp_path: Path, weights: Path, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "encode_frames", None)
    out = tmp_path / "page.html"
    root = write_camvid(tmp_path / "camvid")
    with pytest.raises(SystemExit, match=r"driving: read_folder looks for images in .*gone"):
        example.main(options(tmp_path / "gone", weights, out))
    with pytest.raises(SystemExit, match="no class 'tram'; known are road, train"):
        example.main(options(root, weights, out, "--layout", "camvid", "--rare-classes", "tram"))
    with pytest.raises(SystemExit, match="cannot write to"):
        example.main(options(root, weights, tmp_path / "no" / "page.html"))
    with pytest.raises(SystemExit, match=r"gone\.pth"):
        example.main(options(root, tmp_path / "gone.pth", out))
    (tmp_path / "old.npz").touch()
    with pytest.raises(SystemExit, match="is no cache of this example"):
        example.main(options(root, weights, out, "--cache", str(tmp_path / "old.npz")))


def real(shared_data: Path, *more: str) -> list[str]:
    return [
        *(str(shared_data / "camvid"), "--layout", "camvid", "--backbone", "mobilenet_v2"),
        *("--weights", str(shared_data / "mobilenet_v2_imagenet.pt"), "--device", "cpu"),
        *("--same-padding", "--range11", *more),
    ]


def test_real_crops_get_the_embeddings_that_were_stored(
    shared_data: Path, example: ModuleType
) -> None:
    from raremix.data.pictures import read_pixels
    from raremix.regions import CropEncoder

    settings = example.parse(real(shared_data))
    encoder = CropEncoder(example.load_model(settings), mean=(0.5,) * 3, std=(0.5,) * 3)
    with np.load(shared_data / "camvid_crops.npz", allow_pickle=False) as held:
        chosen = np.flatnonzero(held["frame"] == held["frame"][0])
        name = str(held["frame_names"][held["frame"][0]])
        stored = torch.from_numpy(held["embedding"][chosen].astype(np.float32))
        boxes = held["box"][chosen][:, [1, 0, 3, 2]].astype(np.int64)
    frame = read_pixels(shared_data / "camvid" / "images" / f"{Path(name).stem}.jpg")
    found = encoder.of_boxes(frame, boxes, 0, context=1.0, least_side=1)
    similarity = torch.nn.functional.cosine_similarity(found.embeddings, stored)
    assert similarity.mean() > 0.99


def test_real_frames_make_a_small_page(
    shared_data: Path, tmp_path: Path, example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    more = ("--regions", "map", "--height", "224", "--limit", "12", "--rate", "0.25")
    example.main([*real(shared_data, *more), "--out", str(out)])
    said = capsys.readouterr().out
    assert "rare classes: pole, sign_symbol, fence, pedestrian, bicyclist" in said
    assert "0 frames passed over" in said
    assert out.stat().st_size < 1e6
    source = out.read_text()
    assert source.count("Heat map of 0") == len(re.findall(r'<li class="card find"', source)) > 0
