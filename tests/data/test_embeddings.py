from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.data.arrays import list_members
from raremix.data.embeddings import read_embeddings
from raremix.errors import FileFormatError

MATRIX = np.arange(60, dtype=np.float32).reshape(12, 5)


def save_as(kind: str, path: Path, array: "np.ndarray[Any, Any]") -> None:
    if kind == "npy":
        with open(path, "wb") as file:
            np.save(file, array)
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, embedding=array, label=np.arange(len(array)))
    elif kind == "npz compressed":
        with open(path, "wb") as file:
            np.savez_compressed(file, embedding=array, label=np.arange(len(array)))
    else:
        value = {"embeddings": torch.from_numpy(array), "names": ["a"]}
        torch.save(
            torch.from_numpy(array) if kind == "pt" else value,
            path,
            _use_new_zipfile_serialization=kind != "pt old dict",
        )


KINDS = ["npy", "npz", "npz compressed", "pt", "pt dict", "pt old dict"]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_what_is_read(tmp_path: Path, kind: str, mmap: bool) -> None:
    path = tmp_path / "wrong_suffix.txt"
    save_as(kind, path, MATRIX)
    read = read_embeddings(path, mmap=mmap)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, MATRIX)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_mapped_file_is_read_only_and_not_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    save_as(kind, path, MATRIX)
    mapped = read_embeddings(path)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    assert not isinstance(read_embeddings(path, mmap=False), np.memmap)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_a_file_format_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    save_as(kind, path, MATRIX)
    whole = path.read_bytes()
    cuts = [0, 1, 3, 8, 40, 100, 127, 130, len(whole) // 2, len(whole) - 20, len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(FileFormatError) as caught:
            read_embeddings(path)
        assert str(path) in str(caught.value), cut


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(KINDS), where=st.floats(0, 1), value=st.integers(0, 255))
def test_a_changed_byte_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, where: float, value: int
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a"
    save_as(kind, path, MATRIX)
    damaged = bytearray(path.read_bytes())
    damaged[int(where * (len(damaged) - 1))] = value
    path.write_bytes(bytes(damaged))
    try:
        read = read_embeddings(path, mmap=False)
    except FileFormatError:
        return
    assert read.ndim == 2


def test_a_truncated_npy_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, MATRIX)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        FileFormatError, match=r"promises \(12, 5\) float32, 368 bytes, and 328 are there"
    ):
        read_embeddings(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", "int8"])
@pytest.mark.parametrize("mmap", [True, False])
def test_every_real_dtype_and_order_is_read(
    tmp_path: Path, order: Any, dtype: str, mmap: bool
) -> None:
    matrix = np.asarray(MATRIX, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", matrix)
    np.savez(tmp_path / "a.npz", x=matrix)
    for name in ("a.npy", "a.npz"):
        read = read_embeddings(tmp_path / name, mmap=mmap)
        assert read.dtype == matrix.dtype
        np.testing.assert_array_equal(read, matrix)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(MATRIX).bfloat16(), tmp_path / "a.pt")
    read = read_embeddings(tmp_path / "a.pt")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, MATRIX)


def test_a_usual_name_wins_over_other_matrices(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", boxes=np.zeros((12, 4)), features=MATRIX)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.npz"), MATRIX)
    assert read_embeddings(tmp_path / "a.npz", member="boxes").shape == (12, 4)


def test_the_only_matrix_is_taken_whatever_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", whatever=MATRIX, label=np.arange(12), names=np.array(["a"] * 12))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.npz"), MATRIX)


def test_two_unnamed_matrices_leave_the_choice_to_the_user(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=MATRIX, two=MATRIX)
    with pytest.raises(FileFormatError, match=r"has 2 of them; name the one you mean") as caught:
        read_embeddings(tmp_path / "a.npz")
    assert "one (12, 5) float32; two (12, 5) float32" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"conv1.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(4, 5)},
        {"blocks.0.fc1.weight": torch.ones(4, 5), "blocks.0.fc2.weight": torch.ones(5, 4)},
        {"mean": torch.ones(1, 5), "model": {"a": torch.ones(4, 5), "b": {"c": torch.ones(5, 4)}}},
    ],
    ids=["one", "many", "nested"],
)
def test_weights_of_a_network_are_no_embeddings_unless_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match=r"a\.pth (has|holds|looks).*--member") as caught:
        read_embeddings(tmp_path / "a.pth")
    name = next(key for key in content if getattr(content[key], "ndim", 0) == 2)
    assert f"{name} (" in str(caught.value)
    assert read_embeddings(tmp_path / "a.pth", member=name).ndim == 2


def test_the_only_matrix_of_a_torch_file_is_taken(tmp_path: Path) -> None:
    torch.save({"mine": torch.from_numpy(MATRIX), "ids": torch.arange(12)}, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "a.pt"), MATRIX)


def test_a_message_names_a_file_of_one_array_once(tmp_path: Path) -> None:
    np.save(tmp_path / "vec.npy", np.zeros(128, np.float32))
    with pytest.raises(FileFormatError) as caught:
        read_embeddings(tmp_path / "vec.npy")
    assert str(caught.value).count("vec.npy") == 1
    assert "vec.npy has (128,) float32" in str(caught.value)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_a_wrong_member_lists_the_right_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, embedding=MATRIX)
    else:
        torch.save({"embedding": torch.from_numpy(MATRIX)}, path)
    with pytest.raises(
        FileFormatError, match=r"no member 'nope'. It holds: embedding \(12, 5\) float32"
    ):
        read_embeddings(path, member="nope")


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_a_file_of_one_array_has_no_members(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, MATRIX)
    else:
        torch.save(torch.from_numpy(MATRIX), path)
    with pytest.raises(FileFormatError, match=r"no member 'x'; leave the member out"):
        read_embeddings(path, member="x")


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((3, 2, 2)), np.zeros((3, 2), dtype=bool), np.zeros((3, 2), complex)],
)
def test_what_is_no_matrix_of_numbers_is_refused(
    tmp_path: Path, array: "np.ndarray[Any, Any]"
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FileFormatError, match=r"expects a matrix of real numbers .*a.npy has \(3"):
        read_embeddings(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", a=array)
    with pytest.raises(FileFormatError, match=r"and .* has none. It holds: a \(3"):
        read_embeddings(tmp_path / "a.npz")


def test_a_matrix_without_rows_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 4)))
    with pytest.raises(FileFormatError, match=r"shape \(0, 4\) and holds no numbers"):
        read_embeddings(tmp_path / "a.npy")


def test_python_objects_are_refused_with_the_way_out(tmp_path: Path) -> None:
    rows = np.empty(2, dtype=object)
    rows[:] = [np.zeros(3), np.zeros(3)]
    np.save(tmp_path / "a.npy", rows, allow_pickle=True)
    np.savez(tmp_path / "a.npz", embedding=rows)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(FileFormatError, match=r"Python objects.*numpy.stack"):
            read_embeddings(tmp_path / name)


class Custom:
    pass


def test_a_checkpoint_of_objects_is_refused_by_their_name(tmp_path: Path) -> None:
    torch.save({"embedding": torch.ones(2, 2), "made_by": Custom()}, tmp_path / "a.pt")
    with pytest.raises(FileFormatError, match=r"object of type \S*Custom\b.*could run code"):
        read_embeddings(tmp_path / "a.pt")


def test_a_list_of_tensors_is_not_a_matrix(tmp_path: Path) -> None:
    torch.save([torch.ones(2), torch.ones(2)], tmp_path / "a.pt")
    with pytest.raises(FileFormatError, match="got a list; save one stacked tensor"):
        read_embeddings(tmp_path / "a.pt")


def test_a_text_file_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    with pytest.raises(FileFormatError, match=r"is a text file.*numpy.loadtxt"):
        read_embeddings(tmp_path / "a.csv")


def test_a_header_of_version_2_and_3_is_read(tmp_path: Path) -> None:
    for version in ((2, 0), (3, 0)):
        with open(tmp_path / "a.npy", "wb") as file:
            np.lib.format.write_array(file, MATRIX, version=version)
        np.testing.assert_array_equal(read_embeddings(tmp_path / "a.npy"), MATRIX)


def test_members_are_listed_without_reading_them(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", big=np.zeros((1000, 1000)), label=np.arange(3))
    assert [str(member) for member in list_members(tmp_path / "a.npz", caller="f")] == [
        "big (1000, 1000) float64",
        "label (3,) int64",
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("camvid_crops.npz", (6521, 1280)),
        ("cifar10_lt_embeddings.npz", (12406, 1280)),
        ("cifar10_lt_ssl_embeddings.npz", (12406, 192)),
    ],
)
def test_the_real_files_are_read(shared_data: Path, name: str, shape: tuple[int, int]) -> None:
    read = read_embeddings(shared_data / name)
    assert read.shape == shape
    assert read.dtype == np.float16
    assert np.isfinite(read[:100].astype(np.float32)).all()
