"""Opens one array of a .npy, .npz or .pt file, without reading the others and without pickle.

It knows members, shapes and damage; it does not know what the numbers mean.
"""

import ast
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raremix.data.kinds import PathLike, file_kind
from raremix.errors import FileFormatError

__all__ = ["Array", "Member", "list_members", "pick_array", "read_array", "read_torch"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_LONGEST_HEADER = 2**20
_CHUNK = 2**20
_LISTED = 10
_NAME_IT = "name the one you mean (on the command line FILE:MEMBER, or --member for embeddings)"

# What the tensors of a network are called. The only matrix of a ResNet is its classifier.
_PARAMETER = re.compile(
    r"(?:^|[._])(?:weight|bias|kernel|weight_[gv]|running_mean|running_var)$|^(?:cls|mask)_token$"
)


@dataclass(frozen=True)
class Member:
    """One array of a file: its name, shape and kind of numbers, known without reading it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """numpy's letter: f, i, u are numbers; b is bool; U and S are text; O is Python objects."""

    def __str__(self) -> str:
        """Name, shape and dtype, as in ``embedding (6521, 1280) float16``."""
        return f"{self.name} {self.shape} {self.dtype}"


Wanted: TypeAlias = Callable[[Member], bool]


def pick_array(
    path: PathLike,
    *,
    caller: str,
    member: str | None,
    names: Sequence[str],
    wanted: Wanted,
    what: str,
    mmap: bool = True,
) -> tuple[Array, str | None]:
    """Read the one array of a file that is meant, and say which it was.

    The member is chosen in this order: ``member`` if given; else the first of ``names`` that is
    there and wanted; else the only wanted array. In a .pt, dicts within dicts are searched too
    before an array is called the only one, and one that is named like a network's weights is not
    taken unasked.

    Args:
        path: A .npy, .npz or .pt file; its content decides, not its name.
        caller: The call to name in an error.
        member: Which array, or None to choose.
        names: Names to try, best first.
        wanted: Whether a member could be the one meant.
        what: What ``wanted`` asks for, in words for an error.
        mmap: Map the file into memory instead of reading it, where the layout allows.

    Returns:
        The array, and the name of its member, None where the file holds nothing else. Mapped
        arrays are read-only; other pages of the file are never read.

    Raises:
        FileFormatError: If the file is damaged, holds objects, or leaves the choice open.
    """
    place = Path(path)
    kind = file_kind(place, caller=caller)
    if kind == "text":
        raise FileFormatError(
            f"{caller}: {place} is a text file; expected {what} in a .npy, .npz or .pt file. "
            "Read the text with numpy.loadtxt and save it with numpy.save."
        )
    if kind == "npy":
        array = _open_npy(place, caller=caller, mmap=mmap)
        found = Member(place.name, array.shape, str(array.dtype), array.dtype.kind)
        if member is not None:
            raise FileFormatError(
                f"{caller}: {place} holds a single array and no member {member!r}; "
                "leave the member out."
            )
        _check(found, place, caller=caller, wanted=wanted, what=what)
        return array, None
    if kind == "npz":
        with zipfile.ZipFile(place) as archive:
            members = _npz_members(archive, place, caller=caller)
            chosen = _choose(members, place, caller, member, names, wanted, what)
            return _open_member(archive, place, chosen, caller=caller, mmap=mmap), chosen.name
    loaded = read_torch(place, caller=caller, mmap=mmap)
    tensors = _tensors(loaded, place, caller=caller)
    if member is not None and not isinstance(loaded, dict):
        raise FileFormatError(
            f"{caller}: {place} holds a single tensor and no member {member!r}; "
            "leave the member out."
        )
    members = [_tensor_member(name, tensor) for name, tensor in tensors.items()]
    chosen = _choose(members, place, caller, member, names, wanted, what)
    if isinstance(loaded, Tensor):
        return _to_numpy(loaded), None
    if member is None and chosen.name not in names:
        count = sum(wanted(_tensor_member("", tensor)) for tensor in _all_tensors(loaded))
        if count > 1 or _PARAMETER.search(chosen.name):
            inside = "holds several of them" if count > 1 else "looks like the weights of a network"
            raise FileFormatError(
                f"{caller} expects {what}, and {place} {inside}; {_NAME_IT}. "
                f"It holds: {_listed([chosen, *(m for m in members if m != chosen)], place)}."
            )
    return _to_numpy(tensors[chosen.name]), chosen.name


def read_array(
    path: PathLike,
    *,
    caller: str,
    member: str | None,
    names: Sequence[str],
    wanted: Wanted,
    what: str,
    mmap: bool = True,
) -> Array:
    """Read the one array of a file that is meant; as ``pick_array``, without its name."""
    return pick_array(
        path, caller=caller, member=member, names=names, wanted=wanted, what=what, mmap=mmap
    )[0]


def list_members(path: PathLike, *, caller: str) -> list[Member]:
    """Say what arrays a .npy, .npz or .pt file holds, reading only their headers where it can."""
    place = Path(path)
    kind = file_kind(place, caller=caller)
    if kind == "text":
        return []
    if kind == "npy":
        array = _open_npy(place, caller=caller, mmap=True)
        return [Member(place.name, array.shape, str(array.dtype), array.dtype.kind)]
    if kind == "npz":
        with zipfile.ZipFile(place) as archive:
            return _npz_members(archive, place, caller=caller)
    tensors = _tensors(read_torch(place, caller=caller), place, caller=caller)
    return [_tensor_member(name, tensor) for name, tensor in tensors.items()]


def read_torch(path: Path, *, caller: str, mmap: bool = True) -> Any:
    """Load a .pt file to the CPU without running any code it may carry.

    Raises:
        FileFormatError: If it is damaged, or holds anything but tensors and plain containers.
    """
    # The older layout cannot be mapped.
    mapped = mmap and zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # Damaged bytes reach every branch of the reader, so any type.
        refused = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if refused:
            raise FileFormatError(
                f"{caller}: {path} holds a Python object of type {refused[1]}, and loading it "
                "could run code, so it is refused. If you trust the file, open it once with "
                "torch.load(path, weights_only=False) and save the tensors alone with torch.save."
            ) from error
        raise FileFormatError(
            f"{caller} cannot read {path} as a torch file, so it is damaged or was cut short; "
            f"write or copy it again ({_first_line(error)})."
        ) from error


def _open_npy(place: Path, *, caller: str, mmap: bool) -> Array:
    try:
        with open(place, "rb") as file:
            shape, fortran, dtype = _read_header(file)
            start = file.tell()
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"{caller}: the header of {place} is damaged or cut short; write or copy the file "
            f"again ({_first_line(error)})."
        ) from error
    _refuse_objects(Member(place.name, shape, str(dtype), dtype.kind), place, caller=caller)
    expected = start + _bytes_of(shape, dtype)
    size = place.stat().st_size
    if size < expected:
        raise FileFormatError(
            f"{caller}: {place} is cut short: its header promises {shape} {dtype}, {expected:,} "
            f"bytes, and {size:,} are there. Write or copy it again."
        )
    return _map_or_read(place, shape, dtype, start, fortran=fortran, mmap=mmap)


def _map_or_read(
    place: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    start: int,
    *,
    fortran: bool,
    mmap: bool,
) -> Array:
    order = "F" if fortran else "C"
    if mmap and _bytes_of(shape, dtype):
        try:
            return np.memmap(place, dtype=dtype, mode="r", offset=start, shape=shape, order=order)  # type: ignore[call-overload,no-any-return]  # order is narrowed to a Literal in numpy's stubs only
        except OSError:
            pass  # Some network file systems cannot map; reading works there.
    flat = np.fromfile(place, dtype=dtype, count=int(np.prod(shape, dtype=np.int64)), offset=start)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header as numpy.lib.format describes it; anything odd is a ValueError."""
    start = file.read(8)
    # Version 1 counts its header in two bytes, 2 and 3 in four; 3 is in UTF-8.
    if start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise ValueError("it does not begin like a .npy file")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"it announces a header of {length} bytes")
    try:
        header = ast.literal_eval(file.read(length).decode("utf-8" if start[6] == 3 else "latin1"))
        shape, fortran, dtype = (
            header["shape"],
            header["fortran_order"],
            np.lib.format.descr_to_dtype(header["descr"]),
        )
    except Exception as error:  # Damaged text can fail in the parser or in numpy, in any way.
        raise ValueError("its description of the array makes no sense") from error
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"it announces the shape {shape}")
    return shape, bool(fortran), dtype


def _npz_members(archive: zipfile.ZipFile, place: Path, *, caller: str) -> list[Member]:
    members = []
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        try:
            with archive.open(info) as file:
                shape, _, dtype = _read_header(file)
        except Exception as error:  # Each way of packing has its own errors.
            raise _damaged_member(info.filename, place, caller, error) from error
        members.append(Member(info.filename[:-4], shape, str(dtype), dtype.kind))
    return members


def _open_member(
    archive: zipfile.ZipFile, place: Path, member: Member, *, caller: str, mmap: bool
) -> Array:
    info = archive.getinfo(f"{member.name}.npy")
    try:
        if mmap and info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 0x1:
            # numpy.savez stores its members as they are, so each is a .npy at some offset.
            with open(place, "rb") as file:
                file.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                file.seek(name_length + extra_length, 1)
                shape, fortran, dtype = _read_header(file)
                start = file.tell()
            if start + _bytes_of(shape, dtype) <= place.stat().st_size:
                return _map_or_read(place, shape, dtype, start, fortran=fortran, mmap=True)
        with archive.open(info) as file:
            shape, fortran, dtype = _read_header(file)
            flat = _read_exactly(file, _bytes_of(shape, dtype)).view(dtype)
            return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    except MemoryError:
        raise
    except Exception as error:  # Each way of packing has its own errors.
        raise _damaged_member(info.filename, place, caller, error) from error


def _read_exactly(file: IO[bytes], count: int) -> Array:
    """Read ``count`` bytes and the end, where the archive's checksum is compared."""
    filled = 0
    # Grows with what comes, so that a damaged header cannot ask for all memory at once.
    buffer = bytearray()
    while filled < count:
        chunk = file.read(min(count - filled, _CHUNK))
        if not chunk:
            raise EOFError(f"{count - filled} bytes are missing")
        buffer += chunk
        filled += len(chunk)
    if file.read(1):
        raise ValueError("there are more bytes than its header announces")
    return np.frombuffer(buffer, dtype=np.uint8)


def _damaged_member(name: str, place: Path, caller: str, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{caller}: member {name.removesuffix('.npy')!r} of {place} cannot be read, so the file "
        f"is damaged or was packed in an unusual way; write or copy it again "
        f"({_first_line(error)})."
    )


def _tensors(loaded: Any, place: Path, *, caller: str) -> dict[str, Tensor]:
    if isinstance(loaded, Tensor):
        return {place.name: loaded}
    if isinstance(loaded, dict):
        return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    raise FileFormatError(
        f"{caller} expects {place} to hold a tensor or a dict of tensors, got a "
        f"{type(loaded).__name__}; save one stacked tensor with torch.save."
    )


def _all_tensors(loaded: Any) -> Iterator[Tensor]:
    if isinstance(loaded, Tensor):
        yield loaded
    elif isinstance(loaded, dict):
        for value in loaded.values():
            yield from _all_tensors(value)


def _tensor_member(name: str, tensor: Tensor) -> Member:
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "V"
    elif tensor.is_complex():
        kind = "c"
    elif tensor.dtype == torch.bool:
        kind = "b"
    else:
        kind = "f" if tensor.is_floating_point() else "i"
    words = [str(tensor.dtype)]
    if tensor.layout != torch.strided:
        words.insert(0, str(tensor.layout))
    dtype = " ".join(word.removeprefix("torch.") for word in words)
    return Member(name, tuple(tensor.shape), dtype, kind)


def _to_numpy(tensor: Tensor) -> Array:
    plain = tensor.detach()
    if plain.is_floating_point() and plain.dtype not in (
        torch.float16,
        torch.float32,
        torch.float64,
    ):
        plain = plain.float()  # numpy has no bfloat16 and no float8.
    array: Array = plain.numpy()
    return array


def _choose(
    members: list[Member],
    place: Path,
    caller: str,
    member: str | None,
    names: Sequence[str],
    wanted: Wanted,
    what: str,
) -> Member:
    listed = _listed(members, place)
    if member is not None:
        for candidate in members:
            if candidate.name == member:
                _check(candidate, place, caller=caller, wanted=wanted, what=what)
                return candidate
        raise FileFormatError(f"{caller}: {place} has no member {member!r}. It holds: {listed}.")
    fitting = [candidate for candidate in members if wanted(candidate)]
    for name in names:
        for candidate in fitting:
            if candidate.name == name:
                return candidate
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        for candidate in members:
            _refuse_objects(candidate, place, caller=caller)
        raise FileFormatError(f"{caller} expects {what}, and {place} has none. It holds: {listed}.")
    raise FileFormatError(
        f"{caller} expects {what}, and {place} has {len(fitting)} of them; {_NAME_IT}. "
        f"They are: {_listed(fitting, place)}."
    )


def _check(found: Member, place: Path, *, caller: str, wanted: Wanted, what: str) -> None:
    _refuse_objects(found, place, caller=caller)
    if not wanted(found):
        raise FileFormatError(f"{caller} expects {what}; {place} has {_shown(found, place)}.")


def _listed(members: Sequence[Member], place: Path) -> str:
    shown = "; ".join(_shown(member, place) for member in members[:_LISTED]) or "no array"
    more = len(members) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _shown(member: Member, place: Path) -> str:
    # A lone array goes by the name of its file, which the message has named already.
    return f"{member.shape} {member.dtype}" if member.name == place.name else str(member)


def _refuse_objects(found: Member, place: Path, *, caller: str) -> None:
    if found.kind == "O":
        raise FileFormatError(
            f"{caller}: {_shown(found, place)} in {place} holds Python objects, which can run code when opened "
            "and are refused; stack the rows with numpy.stack(...).astype('float32') and save "
            "that."
        )


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    count = dtype.itemsize
    for length in shape:
        count *= length
    return count


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
