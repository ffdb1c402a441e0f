"""Writes files that are whole or not there, however the process ends.

Everything goes to a file beside the target first and is renamed at the end, so a killed process
leaves the old file as it was.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from typing_extensions import Self

from raremix.data.arrays import Array
from raremix.data.kinds import PathLike
from raremix.errors import EmbeddingShapeError, OptionError

__all__ = ["NpyWriter", "replacing", "target_path", "write_npy"]

_HEADER_BYTES = 128


def target_path(path: PathLike, *, caller: str) -> Path:
    """Check early that a file can be written there, before hours of work.

    Returns:
        The file itself, where ``path`` is a symbolic link to it.

    Raises:
        OptionError: If its folder is missing or cannot be written to, or a folder has its name.
    """
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise OptionError(f"{caller} cannot write to {path}: it is a folder; name a file in it.")
    if not place.parent.is_dir():
        raise OptionError(
            f"{caller} cannot write to {path}: the folder {place.parent} does not exist; "
            "create it first."
        )
    # Tried out, since permissions do not tell of file systems that take no files.
    trial = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise OptionError(
            f"{caller} cannot write to {path}: {error.strerror}; name a file in another folder."
        ) from None
    return place


@contextmanager
def replacing(path: PathLike, *, caller: str) -> Iterator[Path]:
    """Hand out a name to write to; the file takes the place of ``path`` once the block is done.

    An error in the block deletes what was written, and an older file is left as it was.

    Raises:
        OptionError: If nothing can be written at ``path``.
    """
    place = target_path(path, caller=caller)
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_npy(path: PathLike, array: Array) -> None:
    """Write an array to exactly ``path``, replacing an older file in one step.

    Raises:
        OptionError: If nothing can be written there, or the array holds Python objects.
    """
    if array.dtype.hasobject:
        raise OptionError(
            f"write_npy cannot write dtype {array.dtype} to {path}: Python objects need pickle; "
            "convert them to numbers or text first."
        )
    with replacing(path, caller="write_npy") as part, open(part, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


class NpyWriter:
    """Writes a .npy row by row, for as many rows as come, in constant memory.

    Rows are appended to ``<path>.part``; leaving the ``with`` block in peace writes the number of
    rows into the header and renames the file, leaving it by an error deletes it. Plain writes, not
    a memory map: on a full disk a map kills the process, a write raises ``OSError``.

    Args:
        path: Where the finished file goes.
        dim: Width of a row.
        dtype: Real numpy dtype of the file; rows are converted to it.

    Raises:
        OptionError: If nothing can be written there, or ``dim`` or ``dtype`` is unusable.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with NpyWriter(f"{folder}/rows.npy", dim=2, dtype="float32") as writer:
        ...         writer.write(np.ones((3, 2)))
        ...         writer.write(np.ones((1, 2)))
        ...     np.load(f"{folder}/rows.npy").shape
        (4, 2)
    """

    def __init__(self, path: PathLike, *, dim: int, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        if dim < 1 or self.dtype.kind not in "fiu":
            raise OptionError(
                f"NpyWriter expects dim of 1 or more and a dtype of real numbers, got {dim} and "
                f"{self.dtype}."
            )
        self.dim = dim
        self.rows = 0
        self._place = target_path(path, caller="NpyWriter")
        self._part = self._place.with_name(f"{self._place.name}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Open the file beside the target."""
        self._file = open(self._part, "wb")  # __exit__ closes it.
        self._file.write(self._header())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish and rename the file, or delete it after an error."""
        assert self._file is not None
        try:
            with self._file as file:
                if error is None:
                    file.seek(0)
                    file.write(self._header())
                    file.flush()
                    os.fsync(file.fileno())
            if error is None:
                os.replace(self._part, self._place)
        finally:
            self._file = None
            self._part.unlink(missing_ok=True)

    def write(self, rows: Array) -> None:
        """Append rows of shape (batch, dim).

        Raises:
            EmbeddingShapeError: If they have another shape.
            OptionError: Outside of the ``with`` block.
        """
        if self._file is None:
            raise OptionError("NpyWriter.write works inside `with NpyWriter(...) as writer:` only.")
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise EmbeddingShapeError(
                f"NpyWriter.write expects rows of shape (batch, {self.dim}), got {rows.shape}."
            )
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += rows.shape[0]

    def _header(self) -> bytes:
        # Format version 1.0 of numpy.lib.format, padded to a fixed length so that the final
        # number of rows can be written over the first one.
        described = {
            "descr": self.dtype.str,
            "fortran_order": False,
            "shape": (self.rows, self.dim),
        }
        text = repr(described).encode("latin1").ljust(_HEADER_BYTES - 11) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
