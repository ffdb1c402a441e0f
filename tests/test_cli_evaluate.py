"""``raremix evaluate``: labels in every form, and the tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raremix.cli import main
from raremix.evaluation import (
    auroc,
    average_precision,
    class_table,
    evaluate,
    evaluate_classes,
    threshold_at_rate,
    threshold_table,
)


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


@pytest.fixture
def frames(tmp_path: Path) -> dict[str, Any]:
    """Frames that hold up to three classes, of twelve clips."""
    generator = np.random.default_rng(1)
    holds = generator.random((240, 3)) < (0.3, 0.04, 0.1)
    scores = generator.normal(size=240) + holds @ (0.5, 2, 1)
    clips = generator.integers(12, size=240)
    names = np.array(["rider", "train", "bus"])
    np.save(tmp_path / "s.npy", scores)
    np.savez(
        tmp_path / "frames.npz",
        holds=holds,
        class_names=names,
        clip=clips,
        time=clips * 0.5,
        clip_names=np.array([f"night {clip}" for clip in clips]),
    )
    return {"scores": scores, "holds": holds, "clips": clips, "names": names, "here": tmp_path}


def _rows(one: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in one["rare_classes"]}


def test_intervals_redraw_the_groups_that_are_named(data: Any, capsys: Any) -> None:
    here, groups = data["here"], np.arange(200) % 23
    expected = evaluate(data["scores"], data["rare"], groups=groups, resamples=20)
    np.save(here / "groups.npy", groups)
    np.savez(here / "groups.npz", frame=groups.astype(np.int16), other=np.zeros(200))
    (here / "groups.txt").write_text("".join(f"frame {group:02d}\n" for group in groups))
    (here / "table.csv").write_text(
        "image,frame\n" + "".join(f"{place}.jpg,{group}\n" for place, group in enumerate(groups))
    )
    for name in ("groups.npy", "groups.npz", "groups.npz:frame", "groups.txt", "table.csv:frame"):
        words = [here / "s.npy", "--labels", here / "all.npz", "--groups", f"{here}/{name}"]
        found = _json(capsys, *words)
        (one,) = found["evaluations"]
        assert found["groups"] == f"{here}/{name}"
        assert one["groups"] == 23
        assert one["auroc_interval"] == vars(expected.auroc_interval)
        assert one["average_precision_interval"] == vars(expected.average_precision_interval)
        # The row of all rare classes comes from the same draws.
        assert (
            _rows(one)["any rare"]["average_precision_interval"]
            == one["average_precision_interval"]
        )


def test_the_text_says_what_the_intervals_redraw(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.save(here / "groups.npy", np.arange(200) // 5)
    words = ["evaluate", f"{here}/s.npy", "--labels", f"{here}/all.npz"]
    said = "intervals redraw whole groups"
    assert main([*words, "--groups", f"{here}/groups.npy"]) == 0
    out = capsys.readouterr().out
    assert f"{said}, 40 of {here}/groups.npy" in out
    assert "note: only 2 of 40 groups hold rare samples" in out
    assert main([*words, "--groups", f"{here}/groups.npy", "--resamples", "0"]) == 0
    assert said not in capsys.readouterr().out
    assert main(words) == 0
    assert said not in capsys.readouterr().out


def test_the_rows_of_rare_classes_are_those_of_the_library(frames: Any, capsys: Any) -> None:
    here, order = frames["here"], [1, 2, 0]  # the fewest first
    expected = evaluate_classes(
        frames["scores"],
        frames["holds"][:, order],
        names=frames["names"][order],
        groups=frames["clips"],
        resamples=20,
    )
    for labels in ("frames.npz", "frames.npz:holds"):
        words = [here / "s.npy", "--labels", here / labels, "--groups", here / "frames.npz:clip"]
        found = _json(capsys, *words)
        (one,) = found["evaluations"]
        assert found["rare"] == "holds train, bus, rider"
        assert one["rare"] == frames["holds"].any(axis=1).sum()
        assert [row["name"] for row in one["rare_classes"]] == ["train", "bus", "rider", "any rare"]
        for row, other in zip(one["rare_classes"], expected, strict=True):
            assert row["average_precision"] == other.average_precision
            assert row["average_precision_interval"] == vars(other.average_precision_interval)
            assert row["rates"] == [
                {**vars(cut), "recall_interval": vars(cut.recall_interval)} for cut in other.rates
            ]
        assert "classes" not in one


def test_clips_may_go_by_name(frames: Any, capsys: Any) -> None:
    here = frames["here"]
    by_number, by_name = (
        _json(
            capsys,
            *(here / "s.npy", "--labels", here / "frames.npz"),
            *("--groups", f"{here}/frames.npz:{member}"),
        )["evaluations"]
        for member in ("clip", "clip_names")
    )
    assert by_number[0]["groups"] == by_name[0]["groups"] == 12


def test_the_text_sets_each_recall_beside_the_best(frames: Any, capsys: Any) -> None:
    here = frames["here"]
    words = ["evaluate", f"{here}/s.npy", "--labels", f"{here}/frames.npz", "--rates", "0.02,0.1"]
    assert main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    place = next(n for n, line in enumerate(lines) if line[:2] == ["Rare", "class"])
    assert " ".join(lines[place]) == (
        "Rare class Samples AP 95 % interval Recall at 2 % Best Recall at 10 % Best"
    )
    held = frames["holds"][:, 2]
    (bus,) = (line for line in lines[place:] if line[:1] == ["bus"])
    is_judged = held | ~frames["holds"].any(axis=1)
    scores = frames["scores"]
    area = average_precision(scores[is_judged], held[is_judged])
    assert bus[1:3] == [str(held.sum()), f"{area:.4f}"]
    recalls = [(scores > threshold_at_rate(scores, rate))[held].mean() for rate in (0.02, 0.1)]
    assert bus[-4::2] == [f"{recall:.3g}" for recall in recalls]
    assert bus[-3::2] == [f"{min(1, flagged / held.sum()):.3g}" for flagged in (4, 24)]


def test_columns_can_be_chosen_and_go_by_number_without_names(frames: Any, capsys: Any) -> None:
    here, holds = frames["here"], frames["holds"]
    np.save(here / "holds.npy", holds)
    words = [here / "s.npy", "--labels"]
    named = _json(capsys, *words, here / "frames.npz", "--rare-classes", "bus,train")
    numbered = _json(capsys, *words, here / "holds.npy", "--rare-classes", "2,1")
    shared = _json(capsys, *words, here / "holds.npy", "--rare-share", "0.4")
    assert named["rare"] == "holds train, bus"
    assert numbered["rare"] == shared["rare"] == "holds 1, 2"
    for found in (named, numbered, shared):
        assert found["evaluations"][0]["rare"] == holds[:, 1:].any(axis=1).sum()
    rows = [list(_rows(found["evaluations"][0]).values()) for found in (named, numbered, shared)]
    assert [row["auroc"] for row in rows[0]] == [row["auroc"] for row in rows[1]]
    assert rows[1] == rows[2]


def test_a_column_that_no_frame_holds_is_shown_as_a_gap(frames: Any, capsys: Any) -> None:
    here = frames["here"]
    holds = np.c_[frames["holds"], np.zeros(240, bool)]
    np.save(here / "holds.npy", holds)
    words = [f"{here}/s.npy", "--labels", f"{here}/holds.npy"]
    assert main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert "note: 3: no scored sample holds the class" in out
    (line,) = (line.split() for line in out.splitlines() if line.split()[:2] == ["3", "0"])
    assert set(line[2:]) == {"-"}
    row = _rows(_json(capsys, *words)["evaluations"][0])["3"]
    assert (row["count"], row["average_precision"]) == (0, None)


def test_labels_of_one_class_each_have_rows_of_their_rare_classes(data: Any, capsys: Any) -> None:
    here = data["here"]
    words = [here / "s.npy", "--labels", here / "all.npz"]
    (one,) = _json(capsys, *words, "--rare-classes", "bus,train")["evaluations"]
    expected = evaluate_classes(
        data["scores"], data["labels"], rare=[2, 1], names={2: "train", 1: "bus"}, resamples=20
    )
    assert [row["name"] for row in one["rare_classes"]] == ["train", "bus", "any rare"]
    assert [row["auroc"] for row in one["rare_classes"]] == [row.auroc for row in expected]
    assert [row["name"] for row in one["classes"]] == ["train", "bus", "car"]
    (one,) = _json(capsys, *words)["evaluations"]
    assert list(_rows(one)) == ["train", "any rare"]


def test_flags_that_split_a_class_are_not_judged_by_class(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.savez(here / "split.npz", label=data["labels"], is_rare=np.arange(200) > 170)
    (one,) = _json(capsys, here / "s.npy", "--labels", here / "split.npz")["evaluations"]
    assert "rare_classes" not in one
    assert "classes" in one


def test_ignored_rows_are_judged_as_though_they_were_not_there(data: Any, capsys: Any) -> None:
    here = data["here"]
    is_ignored = np.arange(200) % 4 == 1
    groups = np.arange(200) // 3
    # What is ignored may have any label, a class of its own as well.
    labels = np.where(is_ignored, 255, data["labels"])
    np.savez(here / "part.npz", label=labels, is_ignored=is_ignored, frame=groups)
    left = {"label": labels[~is_ignored], "frame": groups[~is_ignored]}
    np.savez(here / "left.npz", **left)
    np.save(here / "kept.npy", data["scores"][~is_ignored])
    words = ["--rare-share", "0.3", "--groups"]
    part = _json(capsys, here / "s.npy", "--labels", here / "part.npz", *words, here / "part.npz")
    left = _json(
        capsys, here / "kept.npy", "--labels", here / "left.npz", *words, here / "left.npz"
    )
    assert (part["ignored"], left["ignored"]) == (50, 0)
    (one,), (other,) = part["evaluations"], left["evaluations"]
    note = one["notes"].pop(0)
    assert note.startswith(f"50 of 200 rows are ignored (is_ignored in {here}/part.npz)")
    assert {**one, "file": ""} == {**other, "file": ""}
    # Also where the labels are named.
    words = [f"{here}/s.npy", "--labels", f"{here}/part.npz:label", "--rare-classes", "2"]
    assert main(["evaluate", *words]) == 0
    assert "note: 50 of 200 rows are ignored" in capsys.readouterr().out


def test_rows_that_are_all_judged_need_no_note(data: Any, capsys: Any) -> None:
    here = data["here"]
    np.savez(here / "all_judged.npz", is_rare=data["rare"], is_ignored=np.zeros(200, bool))
    found = _json(capsys, here / "s.npy", "--labels", here / "all_judged.npz")
    assert found["ignored"] == 0
    assert found["evaluations"][0]["notes"] == []


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        ("frames.npz", ["--groups", "{here}/few.npy"], "few.npy has 2 values for 240 labels"),
        ("frames.npz", ["--groups", "{here}/frames.npz:time"], "holds float64 values where the"),
        ("frames.npz", ["--groups", "{here}/one.npy"], "all 240 samples are of one"),
        ("frames.npz", ["--groups", "{here}/no.npy"], "finds no file {here}/no.npy"),
        ("frames.npz", ["--rare-classes", "bus,tram"], "names tram, and {here}/frames.npz has no"),
        (
            "frames.npz",
            ["--rare-share", "0.01"],
            "has no class under a share of 0.01; its smallest",
        ),
        ("empty.npz", ["--rare-share", "0.1"], "no sample holds it, so none is rare"),
        ("empty.npz", [], "no sample holds it, so none is rare"),
        ("names.npz", [], "has 2 different names in class_names and holds of 3 columns"),
        ("bytes.npz", [], "holds (240, 3) uint8 in {here}/bytes.npz should be true and false"),
        ("flat.npz", [], "holds (240,) bool in {here}/flat.npz should be true and false"),
        ("short.npz", [], "s.npy has 240 scores and {here}/short.npz 5 labels"),
        ("twice.npz", [], "says twice what is rare: is_rare is true for 1 rows, and holds for"),
        ("frames.npz:clip", [], "holds classes and does not say which are rare"),
        ("ignored.npz", [], "is_ignored in {here}/ignored.npz leaves none of 240 rows"),
        ("ignored_few.npz", [], "should be true or false for each of 240 labels"),
    ],
)
def test_frames_and_groups_that_do_not_fit_are_explained(
    labels: str, words: list[str], message: str, frames: Any, capsys: Any
) -> None:
    here, holds = frames["here"], frames["holds"]
    np.save(here / "few.npy", np.array([0, 1]))
    np.save(here / "one.npy", np.zeros(240, int))
    np.savez(here / "empty.npz", holds=np.zeros((240, 3), bool))
    np.savez(here / "names.npz", holds=holds, class_names=np.array(["a", "b", "b"]))
    np.savez(here / "bytes.npz", holds=holds.astype(np.uint8), y=np.zeros(240))
    np.savez(here / "flat.npz", holds=holds[:, 0])
    np.savez(here / "short.npz", holds=holds[:5])
    np.savez(here / "twice.npz", holds=holds, is_rare=np.arange(240) == 3)
    np.savez(here / "ignored.npz", holds=holds, is_ignored=np.ones(240, bool))
    np.savez(here / "ignored_few.npz", holds=holds, is_ignored=np.ones(2, bool))
    words = [word.format(here=here) for word in words]
    assert main(["evaluate", f"{here}/s.npy", "--labels", f"{here}/{labels}", *words]) == 1
    assert message.format(here=here) in capsys.readouterr().err


def test_real_crops_are_judged_by_frame(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = shared_data / "camvid_crops.npz"
    with np.load(crops, allow_pickle=False) as arrays:
        embedding, rare = arrays["embedding"].astype(np.float32), arrays["is_rare"]
    scores = np.linalg.norm(embedding - embedding.mean(axis=0), axis=1)
    np.save(tmp_path / "far.npy", scores)
    (one,) = _json(capsys, tmp_path / "far.npy", "--labels", crops, "--groups", f"{crops}:frame")[
        "evaluations"
    ]
    assert (one["groups"], one["samples"], one["rare"]) == (367, 6521, rare.sum())
    rows = _rows(one)
    assert list(rows) == ["fence", "bicyclist", "pole", "sign_symbol", "pedestrian", "any rare"]
    assert rows["any rare"]["average_precision"] == average_precision(scores, rare)
    # 65 of 630 may be flagged.
    assert rows["any rare"]["rates"][0]["best_recall"] == 65 / 630
