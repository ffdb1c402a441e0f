"""The reference trainer, run as a user runs it: as a script, in a process of its own."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = [
    *("--epochs", "2", "--warmup-epochs", "1", "--eval-every", "1", "--n-local-views", "2"),
    *("--out-dim", "32", "--head-hidden-dim", "32", "--flag-rate", "0.2", "--warmup-images", "64"),
]


def start(*options: str, out: Path, processes: int = 1) -> "subprocess.Popen[str]":
    script = [str(EXAMPLES / "train_dino.py"), "--out", str(out), *options]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, *script]
    else:
        command = [sys.executable, *script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def train(*options: str, out: Path, processes: int = 1, rc: int = 0) -> tuple[str, str]:
    process = start(*options, out=out, processes=processes)
    said, complained = process.communicate(timeout=300)
    assert process.returncode == rc, complained
    return said, complained


def encoder(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "encoder.pt", weights_only=True)
    return state


def metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    times = ("images_per_s", "data_wait_share")
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that was never stopped."""
    pytest.importorskip("sklearn", reason="the digits ship with scikit-learn")
    out = tmp_path_factory.mktemp("straight")
    said, _ = train("--preset", "digits", *QUICK, out=out)
    assert f"wrote {out / 'encoder.pt'}" in said
    return out


def test_a_finished_run_says_so(straight: Path) -> None:
    said, _ = train("--preset", "digits", *QUICK, out=straight)
    assert "this run is finished" in said


def test_a_run_too_short_to_find_anything_says_so(tmp_path: Path) -> None:
    options = ("--preset", "digits", *QUICK, "--warmup-images", "4000", "--epochs", "1")
    said, _ = train(*options, out=tmp_path)
    assert "nothing will be called rare" in said


def test_training_logs_every_step_and_judges_by_group(straight: Path) -> None:
    rows = metrics(straight)
    assert [int(row["step"]) for row in rows] == list(range(24))
    assert {float(rows[-1][f"knn_{group}"]) <= 1 for group in ("many", "medium", "few")} == {True}
    assert float(rows[-1]["tail_in_data"]) == pytest.approx(25 / 405, rel=1e-4)
    assert rows[0]["knn"] == ""
    assert int(rows[-1]["replayed"]) == 4


def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(
    straight: Path, tmp_path: Path
) -> None:
    options = ("--preset", "digits", *QUICK)
    said, _ = train(*options, "--stop-after-steps", "5", out=tmp_path)
    assert "stopped after step 5" in said
    assert not (tmp_path / "encoder.pt").exists()
    train(*options, "--stop-after-steps", "17", out=tmp_path)
    said, _ = train(*options, out=tmp_path)
    assert "going on from" in said
    for name, weight in encoder(straight).items():
        assert torch.equal(weight, encoder(tmp_path)[name]), name
    assert without_times(metrics(tmp_path)) == without_times(metrics(straight))


def test_interrupting_leaves_a_run_that_can_go_on(straight: Path, tmp_path: Path) -> None:
    process = start("--preset", "digits", *QUICK, out=tmp_path)
    log = tmp_path / "metrics.csv"
    patience = time.monotonic() + 120
    while not log.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 130, complained
    assert "the same command goes on from there" in said
    train("--preset", "digits", *QUICK, out=tmp_path)
    for name, weight in encoder(straight).items():
        assert torch.equal(weight, encoder(tmp_path)[name]), name


def test_a_run_cannot_be_continued_with_other_settings(straight: Path) -> None:
    _, complained = train("--preset", "digits", *QUICK, "--replay", "0.5", out=straight, rc=1)
    assert "was trained with replay=0.125, not 0.5" in complained
    assert "Traceback" not in complained


def test_the_baseline_replays_nothing(tmp_path: Path) -> None:
    train("--preset", "digits", *QUICK, "--no-mix", out=tmp_path)
    assert {row["replayed"] for row in metrics(tmp_path)} == {"0"}


def test_plain_dino_runs_without_detector_and_buffer(tmp_path: Path) -> None:
    options = ("--preset", "digits", *QUICK, "--epochs", "1")
    train(*options, "--no-detect", out=tmp_path)
    assert {(row["flag_rate"], row["buffer"]) for row in metrics(tmp_path)} == {("", "0")}


def test_two_processes_share_the_data_and_agree(tmp_path: Path) -> None:
    train("--preset", "digits", *QUICK, out=tmp_path, processes=2)
    rows = metrics(tmp_path)
    # 405 images over two processes are 203 each, 12 full batches of 16.
    assert [int(row["step"]) for row in rows] == list(range(24))
    assert int(rows[-1]["buffer"]) > 0


def write_frames(root: Path, count: int = 12) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(pixels):
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(root / f"{index:03}.png")
    return root


SMALL_RUN = [
    *("--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--workers", "1"),
    *("--out-dim", "16", "--head-hidden-dim", "16", "--n-local-views", "1"),
    *("--global-crop-size", "32", "--local-crop-size", "16"),
]


@pytest.mark.parametrize("preset", ["paper", "resnet50", "vit"])
def test_every_large_preset_takes_a_step_on_a_folder_of_frames(preset: str, tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames")
    said, _ = train(
        *("--preset", preset, "--data", str(frames), *SMALL_RUN, "--patch-size", "8"),
        *("--stop-after-steps", "1"),
        out=tmp_path / "out",
    )
    assert "12 images, 3 steps an epoch" in said


def test_an_archive_of_images_with_labels_is_judged(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    archive = tmp_path / "images.npz"
    np.savez(
        archive,
        images=random.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8),
        labels=np.arange(32) % 4,
        test_images=random.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        test_labels=np.arange(16) % 4,
    )
    train(
        *("--preset", "small", "--data", str(archive), "--arch", "tiny", *SMALL_RUN),
        *("--global-crop-size", "16", "--local-crop-size", "8", "--workers", "0"),
        out=tmp_path / "out",
    )
    assert metrics(tmp_path / "out")[-1]["knn"] != ""


def test_a_missing_folder_is_named_without_a_traceback(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    _, complained = train("--data", gone, out=tmp_path / "out", rc=1)
    assert gone in complained
    assert "Traceback" not in complained


def test_too_few_images_for_a_batch_say_what_to_do(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames", count=3)
    _, complained = train(
        "--preset", "paper", "--data", str(frames), *SMALL_RUN, out=tmp_path / "out", rc=1
    )
    assert "lower --batch-size" in complained


def test_the_published_setup_is_a_preset() -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import train_dino as t; s = t.parse(['--preset', 'paper']); print(s)",
        ],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for part in (
        "arch='resnet50'", "n_local_views=6", "batch_size=1024", "epochs=100", "scorer='mean'",
        "optimizer='adamw'", "lr_per_256=0.0005", "buffer_capacity=32",
    ):  # fmt: skip
        assert part in said
