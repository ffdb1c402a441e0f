"""Reads the embeddings a command names and scores them: the work that score and report share."""

import argparse
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raremix.cli.console import Console, counted
from raremix.cli.enough import check_reference, check_rows
from raremix.cli.scored import Scored, shared_rows
from raremix.cli.scorers import make_scorer
from raremix.data.arrays import Array, list_members
from raremix.data.embeddings import pick_embeddings
from raremix.data.kinds import split_member
from raremix.data.listing import ImageList, read_image_list
from raremix.data.vectors import read_vector
from raremix.detection import FlagRate, OODDetector
from raremix.errors import (
    LabelError,
    NonFiniteError,
    OptionError,
    RaremixWarning,
)
from raremix.inputs import as_embeddings, finite_rows, what_is_not_finite

__all__ = ["LABEL_NAMES", "Rows", "class_names", "read_rows", "score_rows"]

LABEL_NAMES = ("label", "labels", "y", "class")


@dataclass(frozen=True)
class Rows:
    """Embeddings and what is known of each row.

    Attributes:
        file: Where they came from.
        member: Which array of the file, None where it holds nothing else.
        embeddings: (n, dim) tensor.
        finite: (n,) bool array, false for rows with NaN or infinity.
        ids: (n,) array, or None if a row's id is its number.
        siblings: (n,) int64, equal for rows with one id.
        images: The list of their files, or None.
        images_file: The file that list was read from, or None.
        labels: (n,) array, or None.
        label_names: Name of each label.
    """

    file: Path
    member: str | None
    embeddings: Any
    finite: Array
    ids: Array | None
    siblings: Array
    images: ImageList | None
    images_file: Path | None
    labels: Array | None
    label_names: dict[Any, str]

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return self.file.stem

    @property
    def source(self) -> str:
        """The file and what was taken of it, as one would name it on the command line."""
        return _source(self.file, self.member)

    @property
    def paths(self) -> list[str] | None:
        """The path of each row as its list has it, or None."""
        return None if self.images is None else self.images.files

    def id_of(self, row: int) -> Any:
        """The id of a row as the user knows it."""
        return row if self.ids is None else self.ids[row].item()

    def label_of(self, row: int) -> str:
        """The label of a row by name, empty without labels."""
        if self.labels is None:
            return ""
        label = self.labels[row].item()
        return self.label_names.get(label, str(label))


def read_rows(arguments: argparse.Namespace, console: Console) -> Rows:
    """Read the embeddings and the files that go with their rows."""
    if arguments.reference is not None and arguments.ids is not None:
        arguments.parser.error(
            "--ids says which rows are siblings of one another; with --reference, rows are compared "
            "with those of the reference only, so leave it out"
        )
    name, member = split_member(arguments.embeddings)
    if arguments.member is not None and member is not None:
        raise OptionError(f"raremix got a member twice: {member!r} and --member {arguments.member}")
    member = arguments.member or member
    file = Path(name)
    array, chosen = pick_embeddings(file, member=member)
    embeddings = as_embeddings(array, caller="raremix")
    n = len(embeddings)

    images, images_file = None, None
    beside = file.with_name(f"{file.stem}.paths.txt")
    if arguments.paths is not None:
        images, images_file = read_image_list(arguments.paths), Path(arguments.paths)
        _check_length(images.files, n, f"--paths {arguments.paths}")
    elif beside.is_file():
        found = read_image_list(beside)
        if len(found.files) == n:
            images, images_file = found, beside
            console.note(f"image paths from {beside}")
        else:
            listed = counted(len(found.files), "path")
            console.note(f"{beside} has {listed} for {counted(n, 'row')} and is not used")

    ids, siblings = None, np.arange(n)
    if arguments.ids is not None:
        ids = read_vector(*split_member(arguments.ids), names=("id", "ids"))
        _check_length(ids, n, f"--ids {arguments.ids}")
        siblings = np.unique(ids, return_inverse=True)[1].reshape(-1).astype(np.int64)

    labels, names = None, {}
    if arguments.labels is not None:
        label_file, label_member = split_member(arguments.labels)
        labels = read_vector(label_file, label_member, names=LABEL_NAMES)
        _check_length(labels, n, f"--labels {arguments.labels}")
        names = class_names(label_file, labels)
    return Rows(
        file=file,
        member=chosen,
        embeddings=embeddings,
        finite=finite_rows(embeddings).cpu().numpy(),
        ids=ids,
        siblings=siblings,
        images=images,
        images_file=images_file,
        labels=labels,
        label_names=names,
    )


def score_rows(rows: Rows, arguments: argparse.Namespace, console: Console) -> Scored:
    """Score every row against the others, or against the reference that was named."""
    if not rows.finite.any():
        raise NonFiniteError(
            f"every one of the {counted(len(rows.finite), 'row')} of {rows.file} holds NaN, infinity "
            "or numbers too large for float32; check the encoder that made them."
        )
    rule = FlagRate(arguments.rate, window=max(4096, round(4 / arguments.rate)))
    scorer, described = make_scorer(arguments)
    detector = OODDetector(scorer, rule)
    referenced, shared = None, 0
    if arguments.reference is None:
        check_rows(rows.finite, rows.siblings, rows.file, arguments)
        # Every row's own id as the id of its reference row: nobody is his own neighbour.
        found = detector.fit(rows.embeddings, ids=rows.siblings)
        against = "the other rows (leave-one-out)"
    else:
        name, member = split_member(arguments.reference)
        array, chosen = pick_embeddings(name, member=member)
        reference = as_embeddings(array, caller="raremix")
        if reference.shape[1] != rows.embeddings.shape[1]:
            raise OptionError(
                f"--reference {arguments.reference} is {reference.shape[1]} wide, "
                f"{rows.file} is {rows.embeddings.shape[1]} wide; both must come from one encoder."
            )
        usable = finite_rows(reference)
        left_out = len(reference) - int(usable.sum())
        if left_out == len(reference):
            raise NonFiniteError(
                f"every one of the {counted(left_out, 'row')} of --reference {arguments.reference} "
                f"holds {what_is_not_finite(array, reference)}; check the encoder that made them."
            )
        if left_out:
            console.note(
                f"left out {left_out} of {counted(len(reference), 'row')} of --reference "
                f"{arguments.reference}, which hold {what_is_not_finite(array, reference)}"
            )
            reference = reference[usable]
        check_reference(len(reference), arguments)
        detector.fit(reference)
        found = detector.detect(rows.embeddings)
        against = f"{counted(len(reference), 'row')} of {_source(name, chosen)}"
        referenced, shared = len(reference), shared_rows(rows.embeddings, reference)
    return Scored(
        scores=found.scores.cpu().numpy(),
        is_rare=found.is_rare.cpu().numpy(),
        threshold=found.threshold,
        scorer=described,
        reference=against,
        rate=arguments.rate,
        referenced=referenced,
        shared=shared,
    )


def _source(file: str | os.PathLike[str], member: str | None) -> str:
    return str(file) if member is None else f"{file}:{member}"


def class_names(file: str | os.PathLike[str], labels: Array) -> dict[Any, str]:
    """The names that a .npz keeps beside its labels, by class index; empty if there are none.

    Warns where they are too few for the labels, since names and numbers would stand side by side.
    """
    members = {member.name for member in list_members(file, caller="raremix")}
    if "class_names" not in members:
        return {}
    names = [str(name) for name in read_vector(file, "class_names")]
    highest = int(labels.max()) if labels.dtype.kind in "iu" else -1
    if highest >= len(names):
        warnings.warn(
            f"{file} has {counted(len(names), 'name')} in class_names and labels up to {highest}; "
            "classes without a name go by their number.",
            RaremixWarning,
            stacklevel=2,
        )
    return dict(enumerate(names))


def _check_length(values: Any, rows: int, what: str) -> None:
    if len(values) != rows:
        raise LabelError(
            f"{what} has {'1 entry' if len(values) == 1 else f'{len(values):,} entries'} for "
            f"{counted(rows, 'row')} of embeddings; there must be one per row, in the same order."
        )
