"""``raremix score``: files, numbers and what is printed."""

import csv
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from raremix import (
    ClusterMass,
    FlagRate,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    OODDetector,
    TwoScaleDistance,
)
from raremix.cli import main
from raremix.cli.arguments import ENGINES
from raremix.neighbors import EngineName


@pytest.fixture
def rows() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path, rows: np.ndarray[Any, Any]) -> Path:
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def _run(*words: Any) -> None:
    assert main(["score", *map(str, words)]) == 0


def _listed(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_scores_are_those_of_the_detector(file: Path, rows: Any) -> None:
    gated = NoiseGate(ClusterMass(20, normalize=True), metric="cosine")
    for options, scorer in (
        ([], FusedDistance()),
        (["--scorer", "fused", "--engine", "torch"], FusedDistance(engine="torch")),
        (["--scorer", "knn"], KNNDistance()),
        (["--metric", "cosine"], KNNDistance(k=10, metric="cosine")),
        (["--k", "0.05", "--metric", "cosine"], KNNDistance(k=0.05, metric="cosine")),
        (["--scorer", "mean"], MeanDistance()),
        (["--scorer", "mean", "--metric", "cosine"], MeanDistance(metric="cosine")),
        (["--scorer", "two-scale", "--k", "10"], TwoScaleDistance(k=10)),
        (["--scorer", "mahalanobis"], Mahalanobis()),
        (["--scorer", "mahalanobis", "--metric", "euclidean"], Mahalanobis(normalize=False)),
        (["--scorer", "clusters"], ClusterMass()),
        (["--scorer", "clusters", "--clusters", "3"], ClusterMass(3)),
        (["--gate"], NoiseGate(FusedDistance())),
        (["--gate", "--scorer", "clusters", "--metric", "cosine"], gated),
    ):
        _run(file, "--out", file.parent, *options)
        expected = OODDetector(scorer, FlagRate(0.05)).fit(rows)
        written = np.load(file.parent / "rows.scores.npy")
        assert written.dtype == np.float32
        assert np.array_equal(written, expected.scores.numpy())


def test_two_scales_are_those_that_python_takes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    _run(tmp_path / "rows.npy", "--out", tmp_path, "--scorer", "two-scale")
    expected = OODDetector(TwoScaleDistance()).fit(rows).scores.numpy()
    assert np.array_equal(np.load(tmp_path / "rows.scores.npy"), expected)


def test_a_gate_before_a_scorer_without_rows_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(file), "--gate", "--scorer", "mean"]) != 0
    assert "--gate needs a scorer that keeps rows, and mean keeps none" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--scorer", "knn", "--k", "2"]])
@pytest.mark.parametrize("where", ["rows", "reference"])
def test_a_gate_before_too_few_rows_is_named_and_not_a_k_of_its_own(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    where: str,
) -> None:
    few = tmp_path / "few.npy"
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    given = ["--reference", str(few)] if where == "reference" else []
    scored = few if where == "rows" else tmp_path / "five.npy"
    np.save(tmp_path / "five.npy", rows)
    np.save(few, rows[:4])
    command = ["score", str(scored), *given, "--gate", *options, "--out", str(tmp_path / "out")]
    assert main(command) != 0
    error = capsys.readouterr().err
    assert "--gate compares at least 5 rows" in error
    assert "few.npy has 4 rows without NaN; leave --gate out, or pass more rows." in error
    assert "k + 1" not in error
    np.save(few, rows)
    assert main(command) == 0


def test_a_gate_before_too_few_ids_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(6, 8)))
    np.save(tmp_path / "ids.npy", np.array([0, 0, 0, 0, 1, 2]))
    paths = [str(tmp_path / "rows.npy"), "--ids", str(tmp_path / "ids.npy")]
    command = ["score", *paths, "--out", str(tmp_path), "--gate", "--scorer", "knn", "--k", "1"]
    assert main(command) != 0
    assert (
        "--gate looks at 3 neighbours of every row, and a row of "
        f"{tmp_path / 'rows.npy'} has only 2 other rows with another id" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scorer", "fused", "--k", "5"],
            "--k means nothing to --scorer fused; .* knn, two-scale",
        ),
        (["--scorer", "fused", "--metric", "cosine"], "--metric means nothing to --scorer fused"),
        (["--scorer", "mean", "--k", "5"], "--k means nothing to --scorer mean"),
        (["--clusters", "5"], "--clusters means nothing to --scorer fused; .*: clusters"),
        (["--scorer", "mahalanobis", "--engine", "torch"], "--engine means nothing"),
    ],
)
def test_an_option_that_the_scorer_would_not_look_at_is_refused(
    file: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(file), "--out", str(file.parent), *options]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_too_few_rows_for_the_default_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "few.npy", np.eye(3, dtype=np.float32))
    assert main(["score", str(tmp_path / "few.npy"), "--out", str(tmp_path)]) == 1
    assert "3 rows without NaN, and --scorer fused compares at least 4" in capsys.readouterr().err
    _run(tmp_path / "few.npy", "--out", tmp_path, "--k", 1)


def test_a_reference_too_small_for_the_default_is_named(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "few.npy", np.eye(3, 5, dtype=np.float32))
    words = [str(file), "--out", str(tmp_path), "--reference", str(tmp_path / "few.npy")]
    assert main(["score", *words]) == 1
    assert "--reference" in (err := capsys.readouterr().err)
    assert "3 rows without NaN, and --scorer fused compares at least 4" in err
    np.save(tmp_path / "few.npy", np.eye(4, 5, dtype=np.float32))
    _run(*words)


def test_rows_of_one_id_only_are_named_as_such(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("one\n" * 80)
    ids = ["--ids", str(tmp_path / "ids.txt")]
    assert main(["score", str(file), "--out", str(tmp_path), *ids]) == 1
    assert "80 rows, all with one id, so there is nothing to compare" in capsys.readouterr().err


def test_the_engines_offered_are_those_there_are() -> None:
    assert get_args(EngineName) == ENGINES


def test_the_list_begins_with_the_rarest(file: Path) -> None:
    _run(file, "--out", file.parent, "--top", 10, "--rate", 0.1)
    scores = np.load(file.parent / "rows.scores.npy")
    listed = _listed(file.parent / "rows.rarest.csv")
    assert list(listed[0]) == ["rank", "id", "score", "percentile", "is_rare"]
    assert [int(row["id"]) for row in listed] == np.argsort(-scores)[:10].tolist()
    assert [int(row["rank"]) for row in listed] == list(range(1, 11))
    assert [row["is_rare"] for row in listed] == ["true"] * 8 + ["false"] * 2
    assert float(listed[0]["percentile"]) == pytest.approx(100 * 79 / 80)
    assert np.float32(listed[0]["score"]) == scores.max()


def test_a_list_longer_than_the_rows_holds_them_all(file: Path) -> None:
    _run(file, "--out", file.parent, "--top", 1000)
    assert len(_listed(file.parent / "rows.rarest.csv")) == 80


def test_ids_paths_and_labels_stand_beside_the_scores(tmp_path: Path, file: Path) -> None:
    (tmp_path / "ids.txt").write_text("".join(f"img{n}\n" for n in range(80)))
    (tmp_path / "paths.txt").write_text("".join(f"a b/{n},.jpg\n" for n in range(80)))
    np.savez(tmp_path / "all.npz", label=np.zeros(80, np.int64), class_names=np.array(["car"]))
    _run(
        *(file, "--out", tmp_path, "--ids", tmp_path / "ids.txt"),
        *("--paths", tmp_path / "paths.txt", "--labels", tmp_path / "all.npz:label"),
    )
    best = _listed(tmp_path / "rows.rarest.csv")[0]
    row = int(np.load(tmp_path / "rows.scores.npy").argmax())
    assert (best["id"], best["path"], best["label"]) == (f"img{row}", f"a b/{row},.jpg", "car")


def test_the_paths_that_embed_wrote_are_found(tmp_path: Path, file: Path, capsys: Any) -> None:
    (tmp_path / "rows.paths.txt").write_text("".join(f"{n}.jpg\n" for n in range(80)))
    _run(file, "--out", tmp_path)
    assert "path" in _listed(tmp_path / "rows.rarest.csv")[0]
    (tmp_path / "rows.paths.txt").write_text("one.jpg\n")
    _run(file, "--out", tmp_path)
    assert "path" not in _listed(tmp_path / "rows.rarest.csv")[0]
    assert "has 1 path for 80 rows and is not used" in capsys.readouterr().err
    (tmp_path / "rows.paths.txt").write_text(
        "# root: /photos\n" + "".join(f"{n}.jpg\n" for n in range(80))
    )
    _run(file, "--out", tmp_path)
    best = _listed(tmp_path / "rows.rarest.csv")[0]
    assert best["path"] == f"{best['id']}.jpg"


def test_siblings_are_never_neighbours(tmp_path: Path, rows: Any) -> None:
    # Each row twice: without ids the twin hides its rarity.
    np.save(tmp_path / "twice.npy", np.repeat(rows, 2, axis=0))
    (tmp_path / "ids.txt").write_text("".join(f"{n // 2}\n" for n in range(160)))
    _run(tmp_path / "twice.npy", "--out", tmp_path, "--k", 1)
    assert np.load(tmp_path / "twice.scores.npy").max() == 0
    _run(tmp_path / "twice.npy", "--out", tmp_path, "--k", 1, "--ids", tmp_path / "ids.txt")
    assert np.load(tmp_path / "twice.scores.npy").min() > 0


def test_a_reference_is_what_rows_are_compared_with(tmp_path: Path, file: Path, rows: Any) -> None:
    reference = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    np.savez(tmp_path / "ref.npz", embedding=reference, other=np.zeros((2, 2)))
    _run(file, "--out", tmp_path, "--k", 3, "--reference", tmp_path / "ref.npz:embedding")
    distances = torch.cdist(torch.from_numpy(rows).double(), torch.from_numpy(reference).double())
    expected = distances.sort(dim=1).values[:, 2].numpy()
    assert np.load(tmp_path / "rows.scores.npy") == pytest.approx(expected, rel=1e-5)


def test_a_set_that_is_its_own_reference_counts_itself(
    tmp_path: Path, file: Path, capsys: Any
) -> None:
    _run(file, "--out", tmp_path, "--k", 1, "--reference", file)
    assert np.load(tmp_path / "rows.scores.npy").max() == 0
    err = capsys.readouterr().err
    assert "80 of 80 rows lie in the reference, too, where each is its own nearest" in err
    assert "collapsed" not in err


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_sparse_matrix_is_named_as_one(tmp_path: Path, capsys: Any) -> None:
    torch.save(torch.ones(9, 7).to_sparse(), tmp_path / "sparse.pt")
    assert main(["score", str(tmp_path / "sparse.pt"), "--out", str(tmp_path)]) == 1
    assert "It holds: (9, 7) sparse_coo float32" in capsys.readouterr().err


def test_rows_of_a_reference_without_a_score_are_left_out_and_named(
    tmp_path: Path, file: Path, rows: Any, capsys: Any
) -> None:
    reference = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    reference[3] = np.nan
    reference[4] = rows[7]
    np.save(tmp_path / "ref.npy", reference)
    _run(file, "--out", tmp_path, "--reference", tmp_path / "ref.npy")
    out, err = capsys.readouterr()
    assert f"left out 1 of 60 rows of --reference {tmp_path}/ref.npy, which hold NaN" in err
    assert "1 of 80 rows lie in the reference" in err
    assert "warning" not in err
    assert "against 59 rows of" in out


def test_few_rows_and_a_rate_of_less_than_one_row_are_pointed_out(
    tmp_path: Path, rows: Any, capsys: Any
) -> None:
    np.save(tmp_path / "few.npy", rows[:12])
    _run(tmp_path / "few.npy", "--out", tmp_path)
    out, err = capsys.readouterr()
    assert "rare      0 of 12" in out
    assert "a rate of 0.05 of 12 rows is less than one row, so none is called rare" in err
    assert "compared with 12 rows only: from fewer than 50, a score says little" in err


def test_rows_with_nan_are_left_out_and_reported(tmp_path: Path, rows: Any, capsys: Any) -> None:
    rows[7, 2] = np.nan
    rows[9] = np.inf
    np.save(tmp_path / "holes.npy", rows)
    _run(tmp_path / "holes.npy", "--out", tmp_path)
    out, err = capsys.readouterr()
    assert np.flatnonzero(np.isnan(np.load(tmp_path / "holes.scores.npy"))).tolist() == [7, 9]
    assert "left out  2 rows with NaN or infinity: 7, 9" in out
    assert "raremix: warning: " in err
    assert len(_listed(tmp_path / "holes.rarest.csv")) == 78


@pytest.mark.parametrize("options", [[], ["--reference", "{file}"]])
def test_rows_that_are_all_nan_are_an_error(options: list[str], file: Path, capsys: Any) -> None:
    np.save(file.parent / "nan.npy", np.full((30, 5), np.nan))
    words = [option.format(file=file) for option in options]
    assert main(["score", f"{file.parent}/nan.npy", "--out", str(file.parent), *words]) == 1
    assert "every one of the 30 rows" in capsys.readouterr().err


def test_the_text_says_what_ran_and_what_was_written(file: Path, capsys: Any) -> None:
    _run(file, "--out", file.parent, "--engine", "torch", "--rate", 0.1)
    out = capsys.readouterr().out
    assert "80 rows, 5 wide" in out
    assert "at many scales in three fused geometries, exact, by torch; against the other" in out
    assert "rare      8 of 80 (10.00 %) above" in out
    for word in ("p50", "p90", "p99", "p99.9", "rows.scores.npy", "rows.rarest.csv"):
        assert word in out


def test_json_is_one_object_and_quiet_is_silent(file: Path, capsys: Any) -> None:
    _run(file, "--out", file.parent, "--json", "--top", 3)
    out, _ = capsys.readouterr()
    found = json.loads(out)
    scores = np.load(file.parent / "rows.scores.npy")
    assert found["flagged"] == 4
    assert len(found["rarest"]) == 3
    assert found["percentiles"]["p50"] == pytest.approx(float(np.median(scores)))
    assert (scores > found["threshold"]).sum() == 4
    _run(file, "--out", file.parent, "--quiet")
    assert capsys.readouterr() == ("", "")


def test_html_writes_the_report_of_the_same_scores(tmp_path: Path, file: Path) -> None:
    images = np.zeros((80, 6, 6, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    page = tmp_path / "r.html"
    _run(file, "--out", tmp_path, "--html", page, "--images", tmp_path / "images.npz", "--top", 5)
    text = page.read_text()
    assert text.count('class="card"') == 5
    assert f"{np.load(tmp_path / 'rows.scores.npy').max():.4g}" in text


def test_the_page_may_lie_in_the_folder_that_is_made(tmp_path: Path, file: Path) -> None:
    _run(file, "--out", tmp_path / "new", "--html", tmp_path / "new" / "r.html")
    assert (tmp_path / "new" / "r.html").is_file()


def test_the_folder_is_made_and_older_files_are_replaced(file: Path) -> None:
    out = file.parent / "deep" / "er"
    _run(file, "--out", out)
    (out / "rows.scores.npy").write_bytes(b"old")
    (out / "mine.txt").write_text("keep")
    _run(file, "--out", out)
    assert len(np.load(out / "rows.scores.npy")) == 80
    assert sorted(f.name for f in out.iterdir()) == [
        "mine.txt",
        "rows.rarest.csv",
        "rows.scores.npy",
    ]


def test_a_member_can_be_named_in_two_ways_but_once(tmp_path: Path, rows: Any, capsys: Any) -> None:
    np.savez(tmp_path / "two.npz", a=rows, b=2 * rows)
    _run(f"{tmp_path}/two.npz:b", "--out", tmp_path)
    first = np.load(tmp_path / "two.scores.npy")
    _run(f"{tmp_path}/two.npz", "--member", "b", "--out", tmp_path)
    assert np.array_equal(first, np.load(tmp_path / "two.scores.npy"))
    assert main(["score", f"{tmp_path}/two.npz:b", "--member", "a"]) == 1
    assert "got a member twice" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_the_array_that_was_taken_is_named(
    suffix: str, tmp_path: Path, rows: Any, capsys: Any
) -> None:
    file = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(file, features=rows, boxes=np.zeros((80, 4)))
    else:
        torch.save({"features": torch.from_numpy(rows), "boxes": torch.zeros(80, 4)}, file)
    _run(file, "--out", tmp_path)
    assert capsys.readouterr().out.startswith(f"{file}:features: 80 rows, 5 wide\n")
    _run(file, "--out", tmp_path, "--reference", file, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["member"]) == (str(file), "features")
    assert found["reference"] == f"80 rows of {file}:features"


def test_a_file_of_one_array_has_no_member(tmp_path: Path, file: Path, capsys: Any) -> None:
    _run(file, "--out", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out)["member"] is None


def test_the_weights_of_a_network_are_not_scored_unasked(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "net.pth"
    torch.save({"conv1.weight": torch.ones(8, 3, 3, 3), "fc.weight": torch.eye(40)}, file)
    assert main(["score", str(file), "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "looks like the weights of a network" in err
    assert "--member" in err
    assert "fc.weight (40, 40) float32" in err
    _run(file, "--member", "fc.weight", "--out", tmp_path)


def test_equal_scores_are_pointed_out_on_both_sides(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "same.npy", np.ones((100, 6), np.float32))
    page = tmp_path / "r.html"
    _run(tmp_path / "same.npy", "--out", tmp_path, "--html", page, "--json")
    out, err = capsys.readouterr()
    note = "all scores are equal: the embeddings have collapsed, or rows are duplicates"
    assert err.count(note) == 1
    assert note in page.read_text()
    assert json.loads(out)["notes"] == [note]


def test_scores_that_differ_get_no_note(tmp_path: Path, file: Path, capsys: Any) -> None:
    _run(file, "--out", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_the_page_and_the_terminal_show_the_same_quantiles(
    tmp_path: Path, rows: Any, capsys: Any
) -> None:
    np.save(tmp_path / "few.npy", rows[:59])
    _run(tmp_path / "few.npy", "--out", tmp_path, "--html", tmp_path / "r.html")
    printed = next(line for line in capsys.readouterr().out.splitlines() if "p99.9" in line).split()
    page = (tmp_path / "r.html").read_text()
    scores = np.load(tmp_path / "few.scores.npy")
    assert float(printed[printed.index("p99") + 1]) == pytest.approx(
        np.quantile(scores, 0.99), rel=1e-3
    )
    for level in ("p99", "p99.9"):
        shown = re.search(rf"{re.escape(level)} ([\d.]+\d)", page)
        assert shown is not None
        assert shown[1] == printed[printed.index(level) + 1]


REAL = {
    "camvid_crops": (0.759, 0.236),
    "cifar10_lt_embeddings": (0.741, 0.291),
    "cifar10_lt_ssl_embeddings": (0.548, 0.077),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_embeddings_are_scored_as_well_as_measured_before(
    name: str, shared_data: Path, tmp_path: Path, capsys: Any
) -> None:
    source = shared_data / f"{name}.npz"
    _run(f"{source}:embedding", "--labels", source, "--out", tmp_path, "--quiet")
    scores = str(tmp_path / f"{name}.scores.npy")
    assert main(["evaluate", scores, "--labels", str(source), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    area, precision = REAL[name]
    assert found["auroc"] == pytest.approx(area, abs=0.002)
    assert found["average_precision"] == pytest.approx(precision, abs=0.002)
    assert found["auroc_interval"]["low"] < area < found["auroc_interval"]["high"]


def test_a_negative_k_is_told_what_a_count_must_be(file: Path, capsys: Any) -> None:
    assert main(["score", str(file), "--k", "-1"]) == 2
    assert "whole number of at least 1" in capsys.readouterr().err
