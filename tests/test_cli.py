"""The command line as a whole: help, exit codes, where it prints what."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raremix import __version__
from raremix.cli import main
from raremix.cli.console import Console

WITH_PAGE = ["score", "{rows}", "--out", "{here}/s", "--html", "{here}/r.html"]


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("command", [[], ["embed"], ["score"], ["evaluate"], ["report"]])
def test_help_shows_an_example_and_succeeds(command: Any, capsys: Any) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "example:\n  raremix " in out


def test_version_is_that_of_the_package(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raremix {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["guess"], "invalid choice: 'guess'"),
        (["score"], "required: EMBEDDINGS"),
        (["score", "x.npy", "--rate", "5"], "expected a share between 0 and 1, got 5"),
        (["score", "x.npy", "--rate", "nan"], "expected a number, got 'nan'"),
        (
            ["score", "x.npy", "--k", "0"],
            "whole number of at least 1, or a share between 0 and 1, got 0",
        ),
        (
            ["score", "x.npy", "--k", "1.0"],
            "whole number of at least 1, or a share between 0 and 1",
        ),
        (
            ["score", "x.npy", "--k", "1e2"],
            "whole number of at least 1, or a share between 0 and 1",
        ),
        (
            ["score", "x.npy", "--ids", "i.txt", "--reference", "r.npy"],
            "--ids says which rows are siblings of one another; with --reference",
        ),
        (
            ["report", "x", "--out", "y", "--top", "150"],
            "a page shows 100 samples at most, got 150",
        ),
        (["score", "x.npy", "--top", "-3"], "expected a whole number of at least 1, got -3"),
        (["score", "x.npy", "--engine", "annoy"], "invalid choice: 'annoy'"),
        (["score", "x.npy", "--images", "d"], "add --html FILE"),
        (["evaluate", "x.npy"], "required: --labels"),
        (["evaluate", "x", "--labels", "y", "--rates", "0.1,2"], "between 0 and 1, got 2"),
        (
            ["evaluate", "x", "--labels", "y", "--rare-share", ".1", "--rare-classes", "a"],
            "not allowed with",
        ),
        (["report", "x.npy"], "required: --out"),
        (
            ["report", "x", "--out", "y", "--scores", "z", "--reference", "r"],
            "with --scores nothing is scored",
        ),
        (
            ["report", "x", "--out", "y", "--scores", "z", "--k", "5"],
            "--k says how to score; with --scores nothing is scored",
        ),
        (
            ["report", "x", "--out", "y", "--scores", "z", "--scorer", "knn"],
            "--scorer says how to score",
        ),
        (["report", "x", "--out", "y", "--scores", "z", "--gate"], "--gate says how to score"),
        (["embed", "x", "--out", "y.npy"], "random weights gives no embeddings worth scoring"),
        (
            [
                "embed",
                "x",
                "--weights",
                "w",
                "--out",
                "y.npy",
                "--small-images",
                "--backbone",
                "vit_tiny",
            ],
            "--small-images is for a ResNet; with --backbone vit_tiny, pass a small --patch-size",
        ),
        (
            ["embed", "x", "--weights", "random", "--out", "y.txt"],
            "the embeddings are written as .npy, so name a file that ends in .npy",
        ),
    ],
)
def test_a_command_that_is_not_understood_exits_with_2(
    words: list[str], message: str, capsys: Any
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "gone.npy"], "gone.npy"),
        (["score", "{here}/bad.npy"], "bad.npy"),
        (["score", "{rows}", "--k", "60"], "has only 59 other rows; pass a smaller --k"),
        (["score", "{rows}", "--out", "{rows}"], "--out is a folder; {rows} is a file"),
        (["score", "{rows}", "--ids", "{here}/few.txt"], "has 2 entries for 60 rows"),
        (["score", "{rows}", "--paths", "{here}/few.txt"], "has 2 entries for 60 rows"),
        (["score", "{rows}", "--labels", "{here}/few.txt"], "has 2 entries for 60 rows"),
        (["score", "{rows}", "--reference", "{here}/wide.npy"], "is 7 wide"),
        (["score", "{rows}", "--member", "x"], "no member 'x'"),
        (["score", "{rows}", "--html", "{here}/no/r.html"], "does not exist"),
        (["report", "{rows}", "--out", "{here}/r.html", "--images", "{here}/few.txt"], "2 images"),
        (["report", "{rows}", "--out", "{here}/r.html", "--scores", "{here}/few.txt"], "2 scores"),
        (["report", "{rows}", "--out", "{here}"], "it is a folder"),
        (
            [*WITH_PAGE, "--images", "{here}/none"],
            "--images: no such folder or file: {here}/none",
        ),
        (
            [*WITH_PAGE, "--images", "{here}/empty"],
            "found no image in {here}/empty",
        ),
        (
            [*WITH_PAGE, "--images", "{here}/few.txt"],
            "has 2 images for 60 rows",
        ),
        (["score", "{rows}", "--reference", "{here}/wide.npy:a"], "no member 'a'"),
        (["score", "{rows}", "--reference", "{rows}", "--k", "60"], "has 60; pass a smaller --k"),
        (
            ["score", "{rows}", "--scorer", "clusters", "--clusters", "60"],
            "--clusters 60 would make each of the 60 rows of {rows} a cluster of its own",
        ),
        (
            ["score", "{rows}", "--reference", "{here}/nan.npy"],
            "every one of the 30 rows of --reference {here}/nan.npy holds NaN or infinity",
        ),
        (["score", "{here}/none.npy"], "(0, 8) and holds no numbers; look at what wrote it"),
        (["score", "{here}/one.npy"], "has 1 row without NaN, so there is nothing to compare with"),
        (["score", "{rows}", "--k", "40", "--ids", "{here}/half.txt"], "only 30 other rows with"),
        (["score", "{rows}", "--scorer", "mean", "--ids", "{here}/few.txt"], "2 entries for"),
        (["score", "{here}/text.npy"], "text.npy is a text file; expected a matrix"),
        (
            ["evaluate", "{here}/text.npy", "--labels", "{here}/half.txt"],
            "text.npy is a text file; expected one value per row",
        ),
        (["evaluate", "{here}/few.txt", "--labels", "{here}/gone.npz"], "gone.npz"),
        (
            ["evaluate", "{here}/nan.txt", "--labels", "{here}/few.txt"],
            "nan.txt holds 2 values and not one score, only NaN",
        ),
        (
            ["report", "{rows}", "--out", "{here}/r.html", "--scores", "{here}/nan.txt"],
            "nan.txt holds 2 values and not one score, only NaN",
        ),
        (
            ["embed", "{here}/none", "--weights", "random", "--out", "{here}/e.npy"],
            "no such folder or file: {here}/none",
        ),
        (
            ["embed", "{here}/one.jpg", "--weights", "random", "--out", "{here}/e.npy"],
            "expects a folder of images, or a .npz with uint8 images; {here}/one.jpg is one image",
        ),
        (
            ["embed", "{here}/few.txt", "--weights", "random", "--out", "{here}/e.npy"],
            "few.txt is a text file",
        ),
    ],
)
def test_work_that_fails_exits_with_1_and_one_line(
    words: list[str], message: str, embeddings: Path, capsys: Any
) -> None:
    here = embeddings.parent
    (here / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00 cut")
    (here / "few.txt").write_text("1\n2\n")
    (here / "nan.txt").write_text("nan\nnan\n")
    (here / "half.txt").write_text("".join(f"{n // 30}\n" for n in range(60)))
    (here / "text.npy").write_text("some\nwords\n")
    (here / "one.jpg").write_bytes(b"\xff\xd8\xff an image")
    (here / "empty").mkdir()
    np.save(here / "wide.npy", np.zeros((9, 7), np.float32))
    np.save(here / "one.npy", np.ones((1, 7), np.float32))
    np.save(here / "nan.npy", np.full((30, 4), np.nan))
    np.save(here / "none.npy", np.ones((0, 8), np.float32))
    before = {file.name for file in here.iterdir()}
    code = main([word.format(here=here, rows=embeddings) for word in words])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("raremix: error: ")
    assert err.count("\n") == 1
    assert message.format(here=here, rows=embeddings) in err
    assert {file.name for file in here.iterdir()} == before


def test_an_interrupt_exits_with_130(
    embeddings: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("raremix.cli.scoring.pick_embeddings", stop)
    assert main(["score", str(embeddings)]) == 130
    assert capsys.readouterr().err == "raremix: interrupted\n"


def test_an_interrupt_before_the_end_leaves_no_half_file(
    embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    out = embeddings.parent / "out"
    assert main(["score", str(embeddings), "--out", str(out)]) == 130
    assert list(out.iterdir()) == []


def test_running_out_of_memory_is_said_in_one_line(
    embeddings: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("raremix.cli.scoring.pick_embeddings", fail)
    assert main(["score", str(embeddings)]) == 1
    assert "not enough memory" in capsys.readouterr().err


def _python(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
        **options,
    )


def test_the_module_runs_and_writes_json_alone_to_standard_output(embeddings: Path) -> None:
    done = _python("-m", "raremix", "score", "rows.npy", "--json", cwd=embeddings.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 60
    assert (embeddings.parent / "rows.scores.npy").is_file()


def test_help_and_usage_errors_load_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from raremix.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'numpy', 'PIL', 'jinja2'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    assert _python("-c", code, "--help").returncode == 0
    assert _python("-c", code, "score", "--help").returncode == 0
    failed = _python("-c", code, "score", "x.npy", "--rate", "7")
    assert (failed.returncode, "heavy" in failed.stderr) == (2, False)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with pipes")
def test_a_reader_that_leaves_early_meets_no_traceback(embeddings: Path) -> None:
    code = "import sys, time; sys.stdin.read(0); sys.exit(0)"
    command = f"{sys.executable} -m raremix score rows.npy | {sys.executable} -c '{code}'"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        cwd=embeddings.parent,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""


def test_numbers_that_json_lacks_become_null(capsys: Any) -> None:
    Console(json=True).result(
        {"a": float("nan"), "b": np.float32("inf"), "c": np.int64(3), "d": [(1, True, None)]}
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": None,
        "c": 3,
        "d": [[1, True, None]],
    }


def test_columns_line_up(capsys: Any) -> None:
    Console().table(["name", "n"], [["a", "10"], ["long", "2"]], left=1)
    assert capsys.readouterr().out == "  name   n\n  a     10\n  long   2\n"
