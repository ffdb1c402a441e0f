import gzip
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from raremix.data.kinds import file_kind, split_member
from raremix.errors import FileFormatError, OptionError


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(2))
    assert file_kind(path, caller="f") == "npz"
    torch.save(torch.ones(2), path)
    assert file_kind(path, caller="f") == "torch"
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=False)
    assert file_kind(path, caller="f") == "torch"
    path.write_text("1\n2\n")
    assert file_kind(path, caller="f") == "text"
    np.save(path, np.ones(2))
    assert file_kind(path, caller="f") == "npy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\).*Write it again"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "HDF5 file; read it with h5py"),
        (b"PAR1\x00\x00", "Parquet file"),
        (gzip.compress(b"1 2 3"), "gzip-compressed; unpack it first"),
        (b"\xff\xd8\xff\xe0\x00", "JPEG image; embed images first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (struct.pack("<Q", 20) + b'{"a": 1}\x00', "safetensors file; load it with"),
        (pickle.dumps([1, 2]), "Python pickle, which can run code when opened and is refused"),
        (b"PK\x03\x04 cut short", "no readable table of contents, so it was cut short"),
        (b"\x01\x00\x02\x00", "does not know the format"),
    ],
)
def test_every_other_file_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "embeddings.npy"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        file_kind(path, caller="read_embeddings")
    assert str(path) in str(caught.value)
    assert str(caught.value).startswith("read_embeddings")


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"expects a file, and .* is a folder; name a file in it"
    ):
        file_kind(tmp_path, caller="f")
    with pytest.raises(FileFormatError, match=r"finds no file .*nowhere; check the path"):
        file_kind(tmp_path / "nowhere", caller="f")


def test_a_zip_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(FileFormatError, match=r"neither numpy nor torch \(it holds photo.jpg\)"):
        file_kind(path, caller="f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.npz", ("a.npz", None)),
        ("a.npz:label", ("a.npz", "label")),
        ("dir/a.npz:label", ("dir/a.npz", "label")),
        ("C:\\data\\a.npz", ("C:\\data\\a.npz", None)),
        ("C:a.npz", ("C:a.npz", None)),
        ("C:\\data\\a.npz:label", ("C:\\data\\a.npz", "label")),
        ("C:/data/a.npz:label", ("C:/data/a.npz", "label")),
        ("s3://bucket/a.npz", ("s3://bucket/a.npz", None)),
    ],
)
def test_a_member_is_what_follows_the_last_colon(
    text: str, expected: tuple[str, str | None]
) -> None:
    assert split_member(text) == expected


def test_a_file_whose_name_has_a_colon_wins(tmp_path: Path) -> None:
    path = tmp_path / "12:30.npy"
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("this system has no colons in names")
    assert split_member(str(path)) == (str(path), None)


@pytest.mark.parametrize("text", ["a.npz:", ":label", ":"])
def test_a_colon_without_a_name_on_both_sides_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="should read FILE or FILE:MEMBER"):
        split_member(text)
