"""Says what a file is by its first bytes, whatever its name claims.

It opens no arrays and no images; it tells the readers which of them is meant, and tells the user
what they have passed instead.
"""

import os
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from raremix.errors import FileFormatError, OptionError

__all__ = ["FileKind", "PathLike", "file_kind", "split_member"]

PathLike: TypeAlias = str | os.PathLike[str]
FileKind: TypeAlias = Literal["npy", "npz", "torch", "text"]

_FOREIGN = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; read it with h5py and save the array with numpy.save",
    b"PAR1": "a Parquet file; read its column and save the array with numpy.save",
    b"ARROW1": "an Arrow file; read its column and save the array with numpy.save",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"BZh": "bzip2-compressed; unpack it first",
    b"\xfd7zXZ\x00": "xz-compressed; unpack it first",
    b"MATLAB": "a MATLAB file; read it with scipy.io.loadmat and save the array with numpy.save",
    b"\xff\xd8\xff": "a JPEG image; embed images first with `raremix embed`",
    b"\x89PNG": "a PNG image; embed images first with `raremix embed`",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
}


def file_kind(path: PathLike, *, caller: str) -> FileKind:
    """Look into a file and say which reader it needs.

    Args:
        path: The file.
        caller: The call to name in an error.

    Returns:
        ``"npy"``, ``"npz"`` (also one named .npy), ``"torch"`` (zip or older pickle layout) or
        ``"text"``.

    Raises:
        FileFormatError: If the file is missing, a folder, empty, cut short, or of another kind.
    """
    place = Path(path)
    if place.is_dir():
        raise FileFormatError(
            f"{caller} expects a file, and {place} is a folder; name a file in it."
        )
    try:
        with open(place, "rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise FileFormatError(f"{caller} finds no file {place}; check the path.") from None
    except OSError as error:
        raise FileFormatError(f"{caller} cannot open {place}: {error.strerror}.") from error
    if not head:
        raise FileFormatError(
            f"{caller}: {place} is empty (0 bytes); whatever wrote it was probably stopped. "
            "Write it again."
        )
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK"):
        return _zip_kind(place, caller=caller)
    # The older torch.save layout: a protocol-2 pickle that opens with this long integer.
    if head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"):
        return "torch"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise FileFormatError(f"{caller}: {place} is {what}.")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**32:
        raise FileFormatError(
            f"{caller}: {place} is a safetensors file; load it with safetensors.torch.load_file "
            "and save the tensor with torch.save or numpy.save."
        )
    if head.startswith(b"\x80"):
        raise FileFormatError(
            f"{caller}: {place} is a Python pickle, which can run code when opened and is refused; "
            "save the array with numpy.save or torch.save."
        )
    if b"\x00" not in head:
        return "text"
    raise FileFormatError(
        f"{caller} does not know the format of {place} (it begins with {head[:8]!r}); "
        "save the array with numpy.save or torch.save."
    )


def _zip_kind(place: Path, *, caller: str) -> FileKind:
    try:
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()
    except Exception as error:  # A damaged table fails as BadZipFile, ValueError and others.
        raise FileFormatError(
            f"{caller}: {place} begins like a .npz or .pt archive but has no readable table of "
            "contents, so it was cut short while written or copied, or is damaged; write or copy it "
            "again."
        ) from error
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    inside = ", ".join(names[:5]) or "nothing"
    raise FileFormatError(
        f"{caller}: {place} is a zip archive of neither numpy nor torch (it holds {inside}); "
        "unpack it, or save the arrays with numpy.savez."
    )


def split_member(text: str) -> tuple[str, str | None]:
    r"""Split ``FILE:MEMBER`` as typed on a command line.

    A file of exactly that name wins; the colon of a Windows drive, and one before a slash, splits
    nothing.

    Raises:
        OptionError: If the text before or after the colon is empty.

    Example:
        >>> split_member("crops.npz:label")
        ('crops.npz', 'label')
        >>> split_member(r"C:\data\crops.npz")
        ('C:\\data\\crops.npz', None)
    """
    head, colon, tail = text.rpartition(":")
    is_drive = len(head) == 1 and head.isalpha()
    if not colon or is_drive or "/" in tail or "\\" in tail or os.path.exists(text):
        return text, None
    if not head or not tail:
        raise OptionError(
            f"{text!r} should read FILE or FILE:MEMBER, with a name on both sides of the colon."
        )
    return head, tail
