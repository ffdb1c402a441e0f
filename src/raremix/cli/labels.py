"""Reads the labels, the groups and the rows to leave out, in the forms people keep them.

It does not settle what is rare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raremix.cli.console import counted
from raremix.cli.scoring import LABEL_NAMES, class_names
from raremix.data.arrays import Array, Member, list_members, read_array
from raremix.data.kinds import split_member
from raremix.data.vectors import read_vector
from raremix.errors import FileFormatError, LabelError

__all__ = ["Labels", "judged_rows", "read_groups", "read_labels"]

_GROUP_NAMES = ("group", "groups", "frame", "frames", "clip", "clips")


@dataclass(frozen=True)
class Labels:
    """What a file of labels holds; at least one of the arrays is there.

    Attributes:
        flags: (n,) what should be true and false, or None.
        classes: (n,) class labels, or None.
        holds: (n, C) bool, which of C classes a row holds, or None.
        names: Name of each class, by its label or column; empty if there are none.
    """

    flags: Array | None
    classes: Array | None
    holds: Array | None
    names: dict[Any, str]

    def __len__(self) -> int:
        return len(
            next(values for values in (self.holds, self.flags, self.classes) if values is not None)
        )

    def of(self, rows: Array) -> "Labels":
        """Those of some rows, given as bool."""
        flags, classes, holds = (
            None if values is None else values[rows]
            for values in (self.flags, self.classes, self.holds)
        )
        return Labels(flags, classes, holds, self.names)


def read_labels(text: str, *, by_class: bool) -> Labels:
    """Read the labels of all rows from FILE or FILE:MEMBER.

    Args:
        text: What was typed.
        by_class: Whether labels of two values are classes, not flags.
    """
    name, member = split_member(text)
    members = {found.name: found for found in list_members(name, caller="raremix evaluate")}
    holds = _read_holds(name, member, members)
    if holds is not None:
        flags = read_vector(name, "is_rare") if member is None and "is_rare" in members else None
        return Labels(flags, None, holds, _column_names(name, members, holds.shape[1]))
    flags = classes = None
    if member is None and len(members) > 1:
        if "is_rare" in members:
            flags = read_vector(name, "is_rare")
        named = next((label for label in LABEL_NAMES if label in members), None)
        if named is not None:
            classes = read_vector(name, named)
    if flags is None and classes is None:
        values = read_vector(name, member, names=("is_rare", *LABEL_NAMES))
        if values.dtype == np.bool_ and not by_class:
            flags = values
        else:
            classes = values
    return Labels(flags, classes, None, {} if classes is None else class_names(name, classes))


def _read_holds(name: str, member: str | None, members: Mapping[str, Member]) -> Array | None:
    """The flags by class of a file: those named, else its member ``holds``, else its only array."""
    if member is None:
        member = "holds" if "holds" in members or len(members) != 1 else next(iter(members))
    found = members.get(member)
    if found is None or (member != "holds" and len(found.shape) != 2):
        return None
    if len(found.shape) != 2 or 0 in found.shape or found.kind != "b":
        raise FileFormatError(
            f"{found} in {name} should be true and false of shape (n, C): whether sample i holds "
            "an object of class c. Save it as bool, or name other labels, as in FILE:MEMBER."
        )
    return read_array(
        name,
        caller="raremix evaluate",
        member=member if len(members) > 1 else None,
        names=(member,),
        wanted=lambda other: other == found,
        what="true and false of shape (n, C)",
        mmap=False,
    )


def _column_names(name: str, members: Mapping[str, Member], columns: int) -> dict[Any, str]:
    """The name of each column of the flags by class; empty if the file holds none."""
    if "class_names" not in members:
        return {}
    names = [str(title) for title in read_vector(name, "class_names")]
    if len(set(names)) != columns or len(names) != columns:
        raise LabelError(
            f"{name} has {counted(len(set(names)), 'different name')} in class_names and holds of "
            f"{counted(columns, 'column')}; there must be one name per column, in the same order."
        )
    return dict(enumerate(names))


def read_groups(text: str | None, rows: int) -> Array | None:
    """The group of each row, from FILE or FILE:MEMBER."""
    if text is None:
        return None
    name, member = split_member(text)
    groups = read_vector(name, member, names=_GROUP_NAMES)
    if groups.dtype.kind not in "iuUS":
        raise FileFormatError(
            f"--groups {text} holds {groups.dtype} values where the number or the name of each "
            "row's frame is expected; name the array or column, as in FILE:MEMBER."
        )
    if len(groups) != rows:
        raise LabelError(
            f"--groups {text} has {counted(len(groups), 'value')} for {counted(rows, 'label')}; "
            "there must be one per row, in the same order."
        )
    return groups


def judged_rows(text: str, rows: int) -> tuple[Array, tuple[str, ...]]:
    """Which rows are judged, and a note if the file says of some that they are not."""
    name, _ = split_member(text)
    if "is_ignored" not in {found.name for found in list_members(name, caller="raremix evaluate")}:
        return np.ones(rows, dtype=np.bool_), ()
    is_ignored = read_vector(name, "is_ignored")
    if len(is_ignored) != rows or not np.isin(is_ignored, (0, 1)).all():
        raise LabelError(
            f"is_ignored in {name} should be true or false for each of {counted(rows, 'label')}, "
            f"and is {is_ignored.dtype} of shape {is_ignored.shape}."
        )
    is_judged = is_ignored == 0
    count = rows - int(is_judged.sum())
    if count == rows:
        raise LabelError(
            f"is_ignored in {name} leaves none of {counted(rows, 'row')} to judge; it should be "
            "true for those that are not judged."
        )
    if not count:
        return is_judged, ()
    return is_judged, (
        f"{count:,} of {counted(rows, 'row')} are ignored (is_ignored in {name}) and not judged; "
        "rates are shares of the others.",
    )
