"""Reads one value per row: ids, labels, scores, flags or image paths, from arrays or plain text.

Line i belongs to row i of the embeddings, so nothing is ever skipped in the middle.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raremix.data.arrays import Array, Member, read_array
from raremix.data.kinds import PathLike, file_kind
from raremix.errors import FileFormatError

__all__ = ["read_lines", "read_vector"]

_BINARY = frozenset({".npy", ".npz", ".pt", ".pth"})

# Where every value is text, only these first lines are taken for a heading.
_HEADERS = frozenset(
    {"class", "file", "filename", "frame", "id", "ids", "image", "is_rare", "label", "labels"}
    | {"name", "path", "score", "scores", "target", "value"}
)


def read_vector(path: PathLike, member: str | None = None, *, names: Sequence[str] = ()) -> Array:
    """Read one value per row from a .npy, .npz, .pt, .csv or .txt file.

    Args:
        path: The file. A .txt has one value per line; a .csv or .tsv may have several columns.
            A heading is recognised where the first line is not of the kind of the others.
        member: Which array of a .npz or .pt, or which column of a .csv by its heading.
        names: Members to try, best first, where ``member`` is None and several would do.

    Returns:
        Array of shape (n,). What comes from text is int64 if every value is a whole number, else float64 if
        every value is a number (also ``nan``), else bool if every value is true or false, else
        text.

    Raises:
        FileFormatError: If the file is missing, damaged, of another kind, empty, has a gap, or
            leaves open which member is meant.
    """
    place = Path(path)
    if file_kind(place, caller="read_vector") == "text":
        if place.suffix.lower() in _BINARY:
            raise FileFormatError(
                f"read_vector: {place} is a text file; expected one value per row in a .npy, .npz "
                "or .pt file, as its name says. If it holds one value per line, rename it to .txt."
            )
        values, has_heading = _column(place, member, names)
        return _parse(values, place, has_heading=has_heading)
    vector = read_array(
        place,
        caller="read_vector",
        member=member,
        names=names,
        wanted=_is_vector,
        what="one value per row, of shape (n,)",
        mmap=False,
    )
    if vector.shape[0] == 0:
        raise FileFormatError(f"read_vector: the vector in {place} has no values.")
    return vector


def read_lines(path: PathLike) -> list[str]:
    """Read the lines of a text file, such as one image path per row; empty ones at the end go.

    Raises:
        FileFormatError: If it is no UTF-8 text, holds no line, or has an empty line in the middle,
            since every line after it would belong to the wrong row.
    """
    place = Path(path)
    kind = file_kind(place, caller="read_lines")
    if kind != "text":
        raise FileFormatError(
            f"read_lines expects a text file with one value per line, and {place} is a {kind} file."
        )
    return _lines(place, caller="read_lines")


def _is_vector(member: Member) -> bool:
    return len(member.shape) == 1 and member.kind in "fiubUS"


def _lines(place: Path, *, caller: str) -> list[str]:
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{caller}: {place} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise FileFormatError(f"{caller}: {place} holds no line of text.")
    if "" in lines:
        raise FileFormatError(
            f"{caller}: line {lines.index('') + 1} of {place} is empty, and every line after it "
            "would belong to the wrong row; write one value per line."
        )
    return lines


def _column(place: Path, member: str | None, names: Sequence[str]) -> tuple[list[str], bool | None]:
    """Take one column of text; whether a heading was taken off it, None where nobody can tell."""
    lines = _lines(place, caller="read_vector")
    delimiter = {".csv": ",", ".tsv": "\t"}.get(place.suffix.lower())
    if delimiter is None:
        if member is not None:
            raise FileFormatError(
                f"read_vector: {place} has one value per line and no column {member!r}; leave "
                "it out, or name a .csv."
            )
        return lines, None
    rows = list(csv.reader(lines, delimiter=delimiter))
    heading = [cell.strip() for cell in rows[0]]
    has_heading: bool | None
    for number, row in enumerate(rows, start=1):
        if len(row) != len(heading):
            raise FileFormatError(
                f"read_vector: line {number} of {place} has {len(row)} values where the first "
                f"line has {len(heading)}."
            )
    if member is None and len(heading) == 1:
        index = 0
        has_heading = None
    else:
        tried = [member] if member is not None else list(names)
        found = [name for name in tried if name in heading]
        if not found:
            asked = f"no column {member!r}" if member is not None else f"{len(heading)} columns"
            raise FileFormatError(
                f"read_vector: {place} has {asked}; name one of: {', '.join(heading)} "
                "(FILE:COLUMN on the command line)."
            )
        index = heading.index(found[0])
        rows = rows[1:]
        has_heading = True
    column = [row[index].strip() for row in rows]
    if not column:
        raise FileFormatError(f"read_vector: {place} has a heading and no values under it.")
    if "" in column:
        raise FileFormatError(
            f"read_vector: value {column.index('') + 1} of the column in {place} is empty; write "
            "nan where a score is unknown."
        )
    return column, has_heading


def _parse(values: list[str], place: Path, *, has_heading: bool | None) -> Array:
    numbers = _as_numbers(values)
    if numbers is not None:
        return numbers
    if has_heading is None:
        rest = _as_numbers(values[1:]) if len(values) > 1 else None
        if rest is not None:
            return rest  # The first line alone is no number: a heading.
        if values[0].lower() in _HEADERS:
            values = values[1:]
    if not values:
        raise FileFormatError(f"read_vector: {place} has a heading and no values under it.")
    return np.array(values)


def _as_numbers(values: list[str]) -> Array | None:
    truth = {"true": True, "false": False}
    if all(value.lower() in truth for value in values):
        return np.array([truth[value.lower()] for value in values])
    for kind, dtype in ((int, np.int64), (float, np.float64)):
        try:
            return np.array([kind(value) for value in values], dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return None
