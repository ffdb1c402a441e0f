from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.data.vectors import read_lines, read_vector
from raremix.errors import FileFormatError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_arrays_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    values = np.arange(4)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", label=values, embedding=np.zeros((4, 2)))
    torch.save(torch.from_numpy(values), tmp_path / "a.pt")
    write(tmp_path / "a.txt", "0\n1\n2\n3\n")
    write(tmp_path / "a.csv", "label\n0\n1\n2\n3\n")
    for name in ("a.npy", "a.npz", "a.pt", "a.txt", "a.csv"):
        read = read_vector(tmp_path / name)
        np.testing.assert_array_equal(read, values)
        assert read.dtype == np.int64


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(width=64), min_size=1), heading=st.booleans())
def test_numbers_survive_text(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], heading: bool
) -> None:
    path = tmp_path_factory.mktemp("text") / "scores.txt"
    path.write_text("\n".join(["score"] * heading + [repr(value) for value in values]))
    np.testing.assert_array_equal(read_vector(path), np.array(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n2\n", np.array([1, 2])),
        ("1\n2.5\nnan\n", np.array([1, 2.5, np.nan])),
        ("is_rare\ntrue\nFalse\n", np.array([True, False])),
        ("\ufefflabel\r\ncar\r\nbus\r\n\r\n", np.array(["car", "bus"])),
        ("car\nbus\n", np.array(["car", "bus"])),
        ("5\n", np.array([5])),
    ],
)
def test_text_becomes_the_plainest_kind_that_fits(
    tmp_path: Path, text: str, expected: "np.ndarray[tuple[int], np.dtype[np.generic]]"
) -> None:
    read = read_vector(write(tmp_path / "a.txt", text))
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_a_column_is_chosen_by_its_heading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,path,score\n3,"a, b.jpg",0.5\n7,name,1.5\n')
    np.testing.assert_array_equal(read_vector(path, "id"), [3, 7])
    np.testing.assert_array_equal(read_vector(path, names=("scores", "score")), [0.5, 1.5])
    # A value that reads like a heading is still a value.
    assert read_vector(path, "path").tolist() == ["a, b.jpg", "name"]


def test_a_csv_of_several_columns_asks_for_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,score\n1,2\n")
    with pytest.raises(FileFormatError, match="has 2 columns; name one of: id, score"):
        read_vector(path)
    with pytest.raises(FileFormatError, match="no column 'rank'; name one of: id, score"):
        read_vector(path, "rank")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "1\n\n2\n", r"line 2 of .* is empty, and every line after"),
        ("a.txt", "\n\n", "holds no line of text"),
        ("a.txt", "label\n", "a heading and no values under it"),
        ("a.csv", "a,b\n1\n", r"line 2 of .* has 1 values where the first line has 2"),
    ],
)
def test_text_with_gaps_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_vector(write(tmp_path / name, text))


def test_an_empty_cell_and_an_empty_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"value 2 of the column .* is empty; write nan"):
        read_vector(write(tmp_path / "a.csv", "id,s\n1,2\n2,\n"), "s")
    with pytest.raises(FileFormatError, match="a heading and no values"):
        read_vector(write(tmp_path / "a.csv", "id,s\n"), "s")


def test_a_column_of_a_plain_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="one value per line and no column 'x'"):
        read_vector(write(tmp_path / "a.txt", "1\n2\n"), "x")


def test_several_vectors_ask_for_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=np.arange(3), is_rare=np.zeros(3, dtype=bool))
    with pytest.raises(FileFormatError, match=r"has 2 of them.*label \(3,\) int64; is_rare"):
        read_vector(tmp_path / "a.npz")
    assert read_vector(tmp_path / "a.npz", "is_rare").dtype == bool


def test_a_matrix_is_no_vector_and_an_empty_one_neither(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 1)))
    with pytest.raises(FileFormatError, match=r"one value per row, of shape \(n,\); "):
        read_vector(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros(0))
    with pytest.raises(FileFormatError, match="has no values"):
        read_vector(tmp_path / "a.npy")


def test_lines_are_read_as_they_stand(tmp_path: Path) -> None:
    path = write(tmp_path / "paths.txt", "a b.jpg\n1\nträume.png\n\n")
    assert read_lines(path) == ["a b.jpg", "1", "träume.png"]


def test_lines_of_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(FileFormatError, match=r"expects a text file .* is a npy file"):
        read_lines(tmp_path / "a.npy")
    (tmp_path / "a.txt").write_bytes("façade".encode("latin1"))
    with pytest.raises(FileFormatError, match=r"not UTF-8 text \(byte 2\); save it as UTF-8"):
        read_lines(tmp_path / "a.txt")


def test_the_real_labels_are_read(shared_data: Path) -> None:
    path = shared_data / "camvid_crops.npz"
    assert read_vector(path, "is_rare").sum() == 630
    assert read_vector(path, "class_names").shape == (13,)
    assert read_vector(shared_data / "camvid" / "classes.csv", "name")[0] == "sky"
