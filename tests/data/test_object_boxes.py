import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raremix.data import boxes as module
from raremix.data.boxes import BDD100K_CLASSES, ObjectBoxes, Skipped, read_bdd100k_boxes
from raremix.errors import FileFormatError, LabelError

DETECTION_2020: list[dict[str, Any]] = [
    {
        "name": "b1c66a42-6f7d68ca.jpg",
        "attributes": {"weather": "overcast", "timeofday": "daytime", "scene": "city street"},
        "timestamp": 10000,
        "labels": [
            {
                "id": "0",
                "attributes": {"occluded": False, "truncated": True, "trafficLightColor": "NA"},
                "category": "traffic sign",
                "manualShape": True,
                "box2d": {"x1": 1000.698742, "y1": 281.992415, "x2": 1040.626872, "y2": 326.91156},
            },
            {
                "id": "1",
                "attributes": {"occluded": False, "truncated": False, "crowd": True},
                "category": "pedestrian",
                "box2d": {"x1": 10, "y1": 20, "x2": 30, "y2": 40},
            },
            {
                "id": "2",
                "category": "other vehicle",
                "box2d": {"x1": 0, "y1": 0, "x2": 3, "y2": 4},
            },
        ],
    },
    {"name": "b1ca2e5d-84cf9134.jpg", "labels": None},
    {"name": "b1cac6a7-04e33135.jpg", "timestamp": 10000},
]
IMAGES_2018: list[dict[str, Any]] = [
    {
        "name": "0000f77c-6257be58.jpg",
        "attributes": {"weather": "clear"},
        "labels": [
            {"category": "lane", "poly2d": [{"vertices": [[1, 2]], "types": "L"}], "id": 1},
            {"category": "drivable area", "attributes": {"areaType": "direct"}, "poly2d": []},
            {
                "category": "person",
                "attributes": {"truncated": False},
                "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4},
            },
            {"category": "motor", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}},
            {"category": "bike", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}},
        ],
    }
]


def write(folder: Path, value: Any, name: str = "det.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def frame(*boxes: tuple[float, ...], category: str = "car", name: str = "a.jpg") -> dict[str, Any]:
    corners = [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes]
    return {"name": name, "labels": [{"category": category, "box2d": box} for box in corners]}


def objects_of(count: int) -> ObjectBoxes:
    return ObjectBoxes(
        np.array([[i, 0, i + 1, 2] for i in range(count)], dtype=np.float32).reshape(-1, 4),
        np.arange(count),
        np.arange(count) % 2 == 0,
        np.zeros(count, dtype=bool),
    )


def test_boxes_of_2020_are_read_with_their_classes_and_attributes(tmp_path: Path) -> None:
    objects, skipped = read_bdd100k_boxes(write(tmp_path, DETECTION_2020))
    assert list(objects) == [entry["name"] for entry in DETECTION_2020]
    first = objects["b1c66a42-6f7d68ca.jpg"]
    np.testing.assert_allclose(
        first.boxes[0], [1000.6987, 281.9924, 1040.6269, 326.9116], rtol=1e-6
    )
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [9, 0, -1]  # a crowd keeps its class
    assert first.is_truncated.tolist() == [True, False, False]
    assert first.is_ignored.tolist() == [False, True, True]
    assert skipped == []


def test_a_frame_listed_without_labels_has_no_objects(tmp_path: Path) -> None:
    objects, _ = read_bdd100k_boxes(write(tmp_path, DETECTION_2020))
    for name in ("b1ca2e5d-84cf9134.jpg", "b1cac6a7-04e33135.jpg"):
        assert len(objects[name]) == 0
        assert objects[name].boxes.shape == (0, 4)


def test_words_of_2018_are_those_of_2020_and_lanes_are_passed_over(tmp_path: Path) -> None:
    objects, skipped = read_bdd100k_boxes(write(tmp_path, IMAGES_2018))
    (found,) = objects.values()
    assert [BDD100K_CLASSES[id] for id in found.labels.tolist()] == [
        *("pedestrian", "motorcycle", "bicycle")
    ]
    assert skipped == []


def test_the_ten_classes_have_the_ids_of_their_order(tmp_path: Path) -> None:
    names = "pedestrian,rider,car,truck,bus,train,motorcycle,bicycle,traffic light,traffic sign"
    labels = [frame((0, 0, 1, 1), category=name)["labels"][0] for name in names.split(",")]
    objects, _ = read_bdd100k_boxes(write(tmp_path, [{"name": "a.jpg", "labels": labels}]))
    assert objects["a.jpg"].labels.tolist() == list(range(10))


def test_attributes_of_tracking_files_are_read_with_their_capitals(tmp_path: Path) -> None:
    entry = frame((0, 0, 9, 9), (0, 0, 9, 9))
    entry["labels"][0]["attributes"] = {"Crowd": True, "Truncated": False}
    entry["labels"][1]["attributes"] = {"Crowd": False, "Truncated": True}
    (found,) = read_bdd100k_boxes(write(tmp_path, [entry]))[0].values()
    assert found.is_ignored.tolist() == [True, False]
    assert found.is_truncated.tolist() == [False, True]


def test_boxes_are_cut_off_at_the_frame_or_left_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, [frame((-5, -6, 1300, 730), (1270, 700, 1280, 720))])
    inside = [[0, 0, 1280, 720], [1270, 700, 1280, 720]]
    assert read_bdd100k_boxes(path)[0]["a.jpg"].boxes.tolist() == inside
    small = read_bdd100k_boxes(path, size=(100, 200))[0]["a.jpg"]
    assert small.boxes.tolist() == [[0, 0, 200, 100]]
    free = read_bdd100k_boxes(path, size=None)[0]["a.jpg"]
    assert free.boxes[0].tolist() == [-5, -6, 1300, 730]


def test_boxes_without_area_are_skipped_and_listed(tmp_path: Path) -> None:
    entries = [
        frame((5, 5, 5, 9), (1, 1, 2, 2), name="b.jpg"),
        frame((1290, 5, 1300, 9), (9, 9, 8, 10), name="a.jpg"),
    ]
    entries[1]["labels"].insert(0, {"category": "bus", "attributes": {}})
    objects, skipped = read_bdd100k_boxes(write(tmp_path, entries))
    assert [len(found) for found in objects.values()] == [1, 0]
    assert skipped == [
        Skipped(Path("b.jpg"), "object 0 (car) has no area: its box2d is [5, 5, 5, 9]"),
        Skipped(Path("a.jpg"), "object 0 (bus) has no box2d"),
        Skipped(
            Path("a.jpg"),
            "object 1 (car) has no area inside of the frame: its box2d is [1290, 5, 1300, 9]",
        ),
        Skipped(Path("a.jpg"), "object 2 (car) has no area: its box2d is [9, 9, 8, 10]"),
    ]


def test_unknown_categories_are_counted_and_named_together(tmp_path: Path) -> None:
    entries = [
        frame((0, 0, 1, 1), (0, 0, 1, 1), category="tram", name="a.jpg"),
        frame((0, 0, 1, 1), category="dog", name="b.jpg"),
        frame((0, 0, 1, 1), category="bus", name="c.jpg"),
    ]
    with pytest.raises(LabelError, match=r"'tram' \(2\), 'dog' \(1\)\. It knows pedestrian, rider"):
        read_bdd100k_boxes(write(tmp_path, entries))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": []}, r"begins with '\{\"frames\": \[\]\}' instead of a list"),
        ([{"filename": "a.jpg"}], "its element 0 has no name"),
        ([frame(name="a.jpg"), 7], "its element 1 has no name"),
        ([frame(), frame()], "it describes the frame a.jpg twice"),
        ([{"name": "a.jpg", "labels": {"car": 1}}], "the labels of frame a.jpg are no list"),
        ([{"name": "a.jpg", "labels": ["car"]}], "label 0 of frame a.jpg has not the shape of one"),
        ([{"name": "a.jpg", "labels": [{"box2d": {}}]}], "has not the shape of one .*category"),
        ([{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}], "'y1'"),
        ([frame((0, 0, "9", 9))], "has not the shape of one"),  # type: ignore[arg-type]  # on purpose
        ([frame((0, 0, 10**400, 9))], "has not the shape of one"),
        ([frame((0, 0, 1e300, 9))], r"a box of frame a.jpg has the corners \[0.0, 0.0, 1e\+300, 9"),
        ("[" + json.dumps(frame((0, 0, 1, 2))).replace("2}", "NaN}") + "]", "has the corners"),
        ([{"name": "a.jpg", "labels": [{"category": "car", "poly2d": []}]}], "none has a box2d"),
        ("[" * 100_000, "cannot be read after 0 elements"),
        ('[{"name": ' + "9" * 10_000 + "}]", "cannot be read after 0 elements"),
        ('[{"name": "a.jpg"} {"name": "b.jpg"}]', "goes on with '{' after its element 0"),
        ('[{"name": "a.jpg"}] []', "goes on after the end of its list"),
        ('[{"name": "a.jpg"},]', "cannot be read after 1 elements"),
    ],
)
def test_what_is_no_list_of_frames_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_bdd100k_boxes(write(tmp_path, content))


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="read_bdd100k_boxes finds no file"):
        read_bdd100k_boxes(tmp_path / "none.json")
    with pytest.raises(FileFormatError, match="is empty"):
        read_bdd100k_boxes(write(tmp_path, ""))
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(FileFormatError, match="is a npy file, not JSON"):
        read_bdd100k_boxes(tmp_path / "a.npy")
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'[{"name": "Stra\xdfe.jpg"}]')
    with pytest.raises(FileFormatError, match="is no JSON"):
        read_bdd100k_boxes(latin)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_the_size_of_pieces_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    path = write(
        tmp_path, "\ufeff \n" + json.dumps(DETECTION_2020 + IMAGES_2018, indent=2) + "\n\n"
    )
    expected, _ = read_bdd100k_boxes(path)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    objects, _ = read_bdd100k_boxes(path)
    assert list(objects) == list(expected)
    for name, found in objects.items():
        np.testing.assert_array_equal(found.boxes, expected[name].boxes)


@settings(deadline=None, max_examples=100)
@given(cut=st.integers(0, 10**6), chunk=st.sampled_from([16, 2**22]))
@example(cut=1, chunk=2**22)
def test_a_file_cut_short_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, chunk: int
) -> None:
    text = json.dumps(DETECTION_2020)
    path = write(tmp_path_factory.mktemp("cut"), text[: cut % len(text)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        with pytest.raises(FileFormatError):
            read_bdd100k_boxes(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "labels", "category", "box2d", "attributes", "x1"]), inner
        )
    ),
    max_leaves=8,
)
LABEL = st.fixed_dictionaries(
    {"category": st.sampled_from(["car", "lane", "tram"]) | JSON, "box2d": JSON},
    optional={"attributes": JSON},
)


@settings(deadline=None, max_examples=300)
@given(
    value=st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=3) | JSON, "labels": st.lists(LABEL) | JSON}
        )
        | JSON,
        max_size=3,
    )
    | JSON
)
def test_any_json_gives_objects_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = write(tmp_path_factory.mktemp("json"), value)
    try:
        objects, _ = read_bdd100k_boxes(path)
    except (FileFormatError, LabelError):
        return
    assert list(objects) == [entry["name"] for entry in value]


CORNER = st.floats(-100, 1500, width=32)


@settings(deadline=None, max_examples=100)
@given(frames=st.lists(st.lists(st.tuples(*[CORNER] * 4), max_size=5), max_size=5))
def test_every_box_is_inside_of_its_frame_or_listed(
    tmp_path_factory: pytest.TempPathFactory, frames: list[list[tuple[float, ...]]]
) -> None:
    entries = [frame(*boxes, name=f"{number}.jpg") for number, boxes in enumerate(frames)]
    path = write(tmp_path_factory.mktemp("boxes"), entries)
    objects, skipped = read_bdd100k_boxes(path)
    for number, boxes in enumerate(frames):
        expected = []
        for x1, y1, x2, y2 in boxes:
            left, right = (min(max(x, 0), 1280) for x in (x1, x2))
            top, bottom = (min(max(y, 0), 720) for y in (y1, y2))
            if left < right and top < bottom:
                expected.append([left, top, right, bottom])
        assert objects[f"{number}.jpg"].boxes.tolist() == expected
        listed = sum(one.path == Path(f"{number}.jpg") for one in skipped)
        assert listed == len(boxes) - len(expected)


def test_reading_holds_a_part_of_the_text_at_most(tmp_path: Path) -> None:
    # A road of many corners and a box: as in the files of 2018, most of the text is passed over.
    road = {"category": "drivable area", "poly2d": [{"vertices": [[1.5, 2.5]] * 400}]}
    text = json.dumps({"name": "{}", "labels": [road, *frame((1, 2, 3, 4))["labels"]]}, indent=12)
    path = write(tmp_path, "[" + ",".join(text.replace("{}", f"{n}.jpg") for n in range(400)) + "]")
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    try:
        objects, _ = read_bdd100k_boxes(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(objects) == 400
    assert peak < 0.6 * path.stat().st_size


def test_rows_are_taken_by_number_or_by_truth() -> None:
    objects = objects_of(4)
    for rows in ([3, 1], np.array([3, 1])):
        taken = objects.of(rows)
        assert taken.labels.tolist() == [3, 1]
        assert taken.boxes.tolist() == [[3, 0, 4, 2], [1, 0, 2, 2]]
        assert taken.is_truncated.tolist() == [False, False]
    assert objects.of(objects.labels > 1).labels.tolist() == [2, 3]
    assert len(objects.of([])) == 0
    assert len(objects) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((4, 3), dtype=np.float32)}, r"boxes as float32 of shape \(4, 4\)"),
        ({"boxes": np.ones((4, 4))}, r"got float64 \(4, 4\)"),
        ({"is_ignored": np.zeros(3, dtype=bool)}, r"is_ignored as bool of shape \(4,\)"),
        ({"boxes": np.zeros((4, 4), dtype=np.float32)}, "left < right"),
        ({"boxes": np.full((4, 4), np.nan, dtype=np.float32)}, "left < right"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    objects = objects_of(4)
    arrays = {
        name: getattr(objects, name) for name in ("boxes", "labels", "is_truncated", "is_ignored")
    }
    with pytest.raises(LabelError, match=message):
        ObjectBoxes(**{**arrays, **change})
