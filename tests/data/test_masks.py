import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from raremix.data.masks import (
    CAMVID_SEGNET,
    CITYSCAPES_INSTANCES,
    CITYSCAPES_LABELS,
    CITYSCAPES_TRAIN,
    IGNORED,
    MaskConvention,
    read_instances,
    read_label_colours,
    read_mask,
)
from raremix.errors import FileFormatError, LabelError, OptionError

# The 35 rows of helpers/labels.py: which labelId has which trainId.
TRAIN_IDS = [
    *(255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255),
    *(5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18),
]
COLOURS = "64 128 64\tAnimal\n128 0 0\t\tBuilding\n0 0 0\t\tVoid\n64 192 0\tWall\n"


def save(path: Path, values: Any, mode: str | None = None) -> Path:
    image = Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def save_palette(path: Path, values: Any) -> Path:
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    image = image.convert("P")
    image.putdata(np.asarray(values).ravel().tolist())
    # Every index has the colour of another: whoever read colours would be wrong everywhere.
    image.putpalette([(index * 7 + 3) % 256 for index in range(256) for _ in range(3)])
    image.save(path)
    return path


def save_grey_of(bits: int, path: Path, values: "np.ndarray[Any, Any]") -> Path:
    """A grey PNG of 1, 2, 4, 8 or 16 bits a pixel, of which Pillow writes only some."""
    height, width = values.shape
    shifts = np.arange(bits - 1, -1, -1)
    rows = np.packbits(
        (values[..., None] >> shifts & 1).reshape(height, -1).astype(np.uint8), axis=1
    )
    data = b"".join(b"\x00" + row.tobytes() for row in rows)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in parts
        )
    )
    return path


def test_label_ids_of_cityscapes_become_train_ids(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(34, dtype=np.uint8)[None])
    mask = read_mask(path, convention=CITYSCAPES_LABELS)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [TRAIN_IDS]
    assert [CITYSCAPES_LABELS.names[id] for id in (0, 10, 16, 18)] == [
        *("road", "sky", "train", "bicycle")
    ]


def test_train_ids_stay_and_255_is_ignored_in_both(tmp_path: Path) -> None:
    values = np.array([[*range(19), 255]], dtype=np.uint8)
    path = save(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_mask(path, convention=CITYSCAPES_TRAIN), values)
    plate = save(tmp_path / "b.png", np.array([[255, 7]], dtype=np.uint8))
    assert read_mask(plate, convention=CITYSCAPES_LABELS).tolist() == [[IGNORED, 0]]


def test_the_unlabelled_pixels_of_camvid_are_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(12, dtype=np.uint8)[None])
    assert read_mask(path, convention=CAMVID_SEGNET).tolist() == [[*range(11), IGNORED]]
    assert CAMVID_SEGNET.names[10] == "bicyclist"


def test_of_a_palette_image_the_indices_count(tmp_path: Path) -> None:
    path = save_palette(tmp_path / "a.png", [[0, 1, 2], [9, 10, 11]])
    mask = read_mask(path, convention=CAMVID_SEGNET)
    assert mask.tolist() == [[0, 1, 2], [9, 10, IGNORED]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_not_spread(tmp_path: Path, bits: int) -> None:
    # Pillow would give 17 for a 1 of four bits: a motorcycle where a sidewalk is.
    values = np.arange(15).reshape(3, 5) % min(2**bits, 12)
    path = save_grey_of(bits, tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_mask(path, convention=CITYSCAPES_TRAIN), values)


@settings(deadline=None, max_examples=50)
@given(
    values=arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 33)
    ),
    as_palette=st.booleans(),
)
def test_any_mask_is_what_the_table_says(
    tmp_path_factory: pytest.TempPathFactory, values: "np.ndarray[Any, Any]", as_palette: bool
) -> None:
    write = save_palette if as_palette else save
    path = write(tmp_path_factory.mktemp("masks") / "a.png", values)
    mask = read_mask(path, convention=CITYSCAPES_LABELS, size=values.shape)
    assert mask.tolist() == [[TRAIN_IDS[value] for value in row] for row in values.tolist()]


@pytest.mark.parametrize("convention", [CITYSCAPES_TRAIN, CAMVID_SEGNET, CITYSCAPES_LABELS])
def test_unknown_numbers_are_listed_with_their_pixels(
    tmp_path: Path, convention: MaskConvention
) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 90, 90], [40, 90, 0]], dtype=np.uint8))
    with pytest.raises(
        LabelError, match=r"a\.png holds numbers .* 90 \(3 pixels\), 40 \(1 pixels\)\. Pass"
    ):
        read_mask(path, convention=convention)


def test_of_many_unknown_numbers_the_commonest_are_listed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.arange(100, 130, dtype=np.uint8)[None])
    with pytest.raises(LabelError, match=r"109 \(1 pixels\) and 20 others"):
        read_mask(path, convention=CAMVID_SEGNET)


def test_a_mask_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((4, 6), dtype=np.uint8))
    assert read_mask(path, convention=CAMVID_SEGNET, size=(4, 6)).shape == (4, 6)
    with pytest.raises(LabelError, match="is 6 x 4 pixels, its frame 4 x 6"):
        read_mask(path, convention=CAMVID_SEGNET, size=(6, 4))


def test_instances_are_told_apart_and_have_classes(tmp_path: Path) -> None:
    # Two cars, a group of cars (26 alone), a person, road, and the first object of a class ignored.
    values = np.array([[26000, 26001, 26], [24000, 7, 1000]])
    path = save_grey_of(16, tmp_path / "a.png", values)
    classes, instances = read_instances(path, size=(2, 3))
    assert classes.tolist() == [[13, 13, 13], [11, 0, IGNORED]]
    assert instances.dtype == np.int32
    assert instances.tolist() == [[26000, 26001, 0], [24000, 0, 1000]]
    np.testing.assert_array_equal(read_mask(path, convention=CITYSCAPES_INSTANCES), classes)


@pytest.mark.parametrize("value", [40, 255001, 65535, 40000])
def test_unknown_instances_are_named_as_they_stand(tmp_path: Path, value: int) -> None:
    path = save_grey_of(16, tmp_path / "a.png", np.array([[7, value]]))
    with pytest.raises(LabelError, match=rf"\b{value % 65536} \(1 pixels\)"):
        read_instances(path)


def test_each_kind_of_file_is_refused_where_another_is_expected(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.zeros((2, 2), dtype=np.uint8))
    deep = save_grey_of(16, tmp_path / "deep.png", np.full((2, 2), 26001))
    colours = save(tmp_path / "colours.png", np.zeros((2, 2, 3), dtype=np.uint8))
    (tmp_path / "label_colors.txt").write_text(COLOURS)
    camvid = read_label_colours(tmp_path / "label_colors.txt")
    for path, convention, message in (
        (colours, CITYSCAPES_TRAIN, r"colours\.png holds colours \(RGB\), not 8-bit numbers"),
        (colours, CITYSCAPES_INSTANCES, "holds colours .*, not 16-bit numbers"),
        (deep, CITYSCAPES_LABELS, "holds 16-bit .* pass CITYSCAPES_INSTANCES"),
        (grey, CITYSCAPES_INSTANCES, r"holds 8-bit .*, not 16-bit numbers; pass CITYSCAPES_LABELS"),
        (grey, camvid, r"holds 8-bit numbers, not colours"),
        (deep, camvid, r"holds 16-bit numbers, not colours"),
    ):
        with pytest.raises(FileFormatError, match=message):
            read_mask(path, convention=convention)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK"])
def test_other_kinds_of_pixels_are_named(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (2, 2)).save(path)
    with pytest.raises(FileFormatError, match=f"holds pixels of the kind {mode}, not 8-bit"):
        read_mask(path, convention=CAMVID_SEGNET)


def test_a_lossy_mask_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(FileFormatError, match="is a JPEG, which blends the class ids"):
        read_mask(path, convention=CAMVID_SEGNET)


def test_a_missing_or_damaged_mask_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"none\.png cannot be read: there is no such file"):
        read_mask(tmp_path / "none.png", convention=CAMVID_SEGNET)
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.png", rng.integers(0, 11, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(FileFormatError, match=r"the mask .*a\.png cannot be read"):
        read_mask(path, convention=CAMVID_SEGNET)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    place=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    cut=st.integers(0, 10**6) | st.none(),
    bits=st.sampled_from([4, 8, 16]),
)
def test_damage_gives_a_named_error_or_known_classes(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int | None, bits: int
) -> None:
    values = np.random.default_rng(bits).integers(0, 11, (12, 12))
    path = save_grey_of(bits, tmp_path_factory.mktemp("damage") / "a.png", values)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data if cut is None else data[: cut % len(data)])
    convention = CITYSCAPES_INSTANCES if bits == 16 else CITYSCAPES_LABELS
    try:
        mask = read_mask(path, convention=convention)
    except (FileFormatError, LabelError):
        return
    assert set(np.unique(mask)) <= {*convention.names, IGNORED}


def test_colours_of_the_original_camvid_become_class_ids(tmp_path: Path) -> None:
    (tmp_path / "label_colors.txt").write_text(COLOURS, newline="\r\n")
    convention = read_label_colours(tmp_path / "label_colors.txt")
    assert convention.names == {0: "Animal", 1: "Building", 2: "Wall"}
    pixels = np.array([[[64, 128, 64], [0, 0, 0]], [[64, 192, 0], [128, 0, 0]]], dtype=np.uint8)
    path = save(tmp_path / "a_L.png", pixels)
    assert read_mask(path, convention=convention).tolist() == [[0, IGNORED], [2, 1]]
    pixels[0, 0] = (64, 128, 65)
    with pytest.raises(
        LabelError, match=r"colours .* none of the 4 .* \[64, 128, 65\] \(1 pixels\)"
    ):
        read_mask(save(path, pixels), convention=convention)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64 128 64\tAnimal\n64 128\tBridge\n", r"line 2 of .* reads '64 128\\tBridge'"),
        ("64 128 256\tAnimal\n", "line 1 .* expected red, green and blue of 0 to 255"),
        ("64 128 64\n", "line 1"),
        ("-1 128 64\tAnimal\n", "line 1"),
        ("1 2 3\tCar\n1 2 3\tBus\n", "line 2 .* repeats the colour or the name"),
        ("1 2 3\tCar\n1 2 4\tCar\n", "line 2 .* repeats the colour or the name"),
    ],
)
def test_a_list_of_colours_that_reads_otherwise_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "label_colors.txt").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_label_colours(tmp_path / "label_colors.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskConvention({0: "car"}), "either values or colours"),
        (lambda: MaskConvention({0: "car"}, {0: 0}, {(0, 0, 0): 0}), "either values or colours"),
        (lambda: MaskConvention({0: "car"}, {0: 1}), r"no name for \[1\]"),
        (lambda: MaskConvention({255: "car"}, {0: 255}), "class ids of 0 to 254"),
        (lambda: MaskConvention({0: "car"}, {256: 0}), "values of 0 to 255"),
        (
            lambda: MaskConvention({0: "car"}, colours={(0, 0, 0): 0}, has_instances=True),
            "only numbers have instances",
        ),
    ],
)
def test_a_convention_that_contradicts_itself_is_refused(
    make: Callable[[], MaskConvention], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_instances_need_a_convention_that_has_them(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(OptionError, match="files hold instances"):
        read_instances(path, convention=CITYSCAPES_LABELS)


def test_the_masks_of_camvid_hold_the_classes_of_their_table(shared_data: Path) -> None:
    labels = sorted((shared_data / "camvid" / "labels").glob("*.png"))[::40]
    for path in labels:
        with Image.open(path) as image:
            expected = np.where(np.asarray(image) == 11, IGNORED, np.asarray(image))
        mask = read_mask(path, convention=CAMVID_SEGNET, size=(360, 480))
        np.testing.assert_array_equal(mask, expected)
