"""``raremix evaluate``: labels in every form, and the tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raremix.cli import main
from raremix.evaluation import auroc, class_table, threshold_at_rate, threshold_table


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [150, 40, 10])
    scores = (generator.normal(size=200) + labels).astype(np.float32)
    np.save(tmp_path / "s.npy", scores)
    np.savez(
        tmp_path / "all.npz",
        label=labels,
        is_rare=labels == 2,
        class_names=np.array(["car", "bus", "train"]),
        embedding=np.zeros((200, 2)),
    )
    return {"scores": scores, "labels": labels, "rare": labels == 2, "here": tmp_path}


def _json(capsys: Any, *words: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json", "--resamples", "20"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_numbers_are_those_of_the_library(data: Any, capsys: Any) -> None:
    found = _json(capsys, data["here"] / "s.npy", "--labels", data["here"] / "all.npz")
    (one,) = found["evaluations"]
    assert one["auroc"] == auroc(data["scores"], data["rare"])
    assert [row["precision"] for row in one["thresholds"]] == [
        row.precision for row in threshold_table(data["scores"], data["rare"])
    ]
    cut = threshold_at_rate(data["scores"], 0.05)
    assert one["class_threshold"] == cut
    assert [row["name"] for row in one["classes"]] == ["train", "bus", "car"]
    expected = class_table(data["scores"], data["labels"], threshold=cut, is_rare=data["rare"])
    assert [row["auroc"] for row in one["classes"]] == [row.auroc for row in expected]


def test_every_way_to_say_what_is_rare_agrees(data: Any, capsys: Any) -> None:
    here, labels = data["here"], data["labels"]
    np.save(here / "flags.npy", data["rare"])
    np.save(here / "ones.npy", data["rare"].astype(np.uint8))
    (here / "classes.txt").write_text("".join(f"{n}\n" for n in labels))
    names = np.array(["car", "bus", "train"])[labels]
    (here / "t.csv").write_text(
        "image,class\n" + "".join(f"{n}.jpg,{v}\n" for n, v in enumerate(names))
    )
    ways = [
        ["--labels", here / "all.npz"],
        ["--labels", f"{here}/all.npz:is_rare"],
        ["--labels", here / "flags.npy"],
        ["--labels", here / "ones.npy"],
        ["--labels", f"{here}/all.npz:label", "--rare-classes", "2"],
        ["--labels", here / "all.npz", "--rare-classes", "train"],
        ["--labels", here / "all.npz", "--rare-share", "0.1"],
        ["--labels", here / "classes.txt", "--rare-classes", "2"],
        ["--labels", f"{here}/t.csv:class", "--rare-classes", "train"],
        ["--labels", here / "t.csv", "--rare-share", "0.2"],
    ]
    found = [_json(capsys, here / "s.npy", *way)["evaluations"][0] for way in ways]
    assert {one["auroc"] for one in found} == {auroc(data["scores"], data["rare"])}
    assert {one["rare"] for one in found} == {10}


def test_scores_come_from_npy_csv_and_text(data: Any, capsys: Any) -> None:
    here = data["here"]
    lines = [f"{score:.9g}" for score in data["scores"]]
    (here / "s.txt").write_text("\n".join(lines))
    (here / "s.csv").write_text("id,score\n" + "".join(f"{n},{s}\n" for n, s in enumerate(lines)))
    files = [here / "s.npy", here / "s.txt", here / "s.csv"]
    found = _json(capsys, *files, "--labels", here / "all.npz")
    assert [one["file"] for one in found["evaluations"]] == [str(file) for file in files]
    assert len({one["auroc"] for one in found["evaluations"]}) == 1


def test_the_text_holds_the_table_and_both_false_positive_rates(data: Any, capsys: Any) -> None:
    here = data["here"]
    assert main(["evaluate", f"{here}/s.npy", "--labels", f"{here}/all.npz"]) == 0
    out = capsys.readouterr().out
    assert "200 samples, 10 rare (prevalence 5.00 %" in out
    heading = next(line.split() for line in out.splitlines() if "Threshold" in line)
    assert heading[:5] == ["Flagged", "Threshold", "Precision", "Recall", "F1"]
    assert out.count("FPR95") == 2
    assert "times chance" in out
    assert "train" in out


def test_each_file_of_scores_gets_its_own_table(data: Any, capsys: Any) -> None:
    here = data["here"]
    assert main(["evaluate", *[f"{here}/s.npy"] * 3, "--labels", f"{here}/all.npz"]) == 0
    assert capsys.readouterr().out.count("Threshold") == 3


def test_thresholds_and_rates_can_be_chosen(data: Any, capsys: Any) -> None:
    here = data["here"]
    words = (here / "s.npy", "--labels", here / "all.npz")
    (one,) = _json(capsys, *words, "--thresholds", "0.5,-2")["evaluations"]
    assert [row["threshold"] for row in one["thresholds"]] == [0.5, -2.0]
    (one,) = _json(capsys, *words, "--rates", "0.3")["evaluations"]
    assert [row["flagged"] for row in one["thresholds"]] == [60]
    assert sum(row["flagged"] for row in one["classes"]) == 60
    (one,) = _json(capsys, *words, "--thresholds", "0.5")["evaluations"]
    assert one["class_threshold"] == 0.5


def test_scores_that_are_nan_are_counted_and_left_out(data: Any, capsys: Any) -> None:
    here, scores = data["here"], data["scores"].copy()
    scores[:3] = np.nan
    np.save(here / "holes.npy", scores)
    assert main(["evaluate", f"{here}/holes.npy", "--labels", f"{here}/all.npz"]) == 0
    out = capsys.readouterr().out
    assert "197 samples" in out
    assert "note: 3 of 200 samples have no score (NaN)." in out


def test_an_area_below_chance_is_pointed_out(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.save(here / "turned.npy", -data["scores"])
    assert main(["evaluate", f"{here}/turned.npy", "--labels", f"{here}/all.npz"]) == 0
    assert "note: AUROC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ("s.npy", ["few.npy"], "s.npy has 200 scores and"),
        ("s.npy", ["abc.txt"], "s.npy has 200 scores and {here}/abc.txt 3 labels"),
        ("s.npy", ["all.npz:label"], "which are rare; add --rare-classes train (the smallest"),
        ("s.npy", ["all.npz", "--rare-classes", "plane,2"], "names plane, and"),
        (
            "s.npy",
            ["flags.npy", "--rare-share", "0.001"],
            "--rare-share 0.001: {here}/flags.npy has no class under a share",
        ),
        ("s.npy", ["all.npz:is_rare", "--rare-classes", "7"], "has no sample of it"),
        ("s.npy", ["none.npy"], "of 200 scored samples none is rare"),
        ("list.csv", ["all.npz"], "pass the .scores.npy that was written beside it"),
        ("words.txt", ["all.npz"], "values where scores are expected"),
    ],
)
def test_labels_and_scores_that_do_not_fit_are_explained(
    scores: str, labels: list[str], message: str, data: Any, capsys: Any
) -> None:
    here = data["here"]
    np.save(here / "few.npy", np.array([True, False]))
    np.save(here / "flags.npy", data["rare"])
    np.save(here / "none.npy", np.zeros(200, bool))
    (here / "list.csv").write_text("rank,id,score\n1,7,0.5\n")
    (here / "words.txt").write_text("a\nb\n")
    (here / "abc.txt").write_text("a\nb\nc\n")
    code = main(["evaluate", f"{here}/{scores}", "--labels", f"{here}/{labels[0]}", *labels[1:]])
    assert code == 1
    assert message.format(here=here) in capsys.readouterr().err


def test_every_file_is_checked_before_the_first_result_is_printed(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.save(here / "short.npy", data["scores"][:50])
    words = [f"{here}/s.npy", f"{here}/short.npy", "--labels", f"{here}/all.npz"]
    assert main(["evaluate", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "short.npy has 50 scores" in err


def test_too_few_names_of_classes_are_warned_of(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.savez(here / "named.npz", label=data["labels"], class_names=["car", "bus"])
    words = [f"{here}/s.npy", "--labels", f"{here}/named.npz", "--rare-classes", "2"]
    assert main(["evaluate", *words]) == 0
    assert "has 2 names in class_names and labels up to 2" in capsys.readouterr().err
