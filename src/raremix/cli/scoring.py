"""Reads the embeddings a command names and scores them: the work that score and report share."""

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raremix.cli.console import Console, counted
from raremix.cli.scorers import by_neighbors, make_scorer
from raremix.data.arrays import Array, list_members
from raremix.data.embeddings import pick_embeddings
from raremix.data.kinds import split_member
from raremix.data.listing import ImageList, read_image_list
from raremix.data.vectors import read_vector
from raremix.detection import FlagRate, FusedDistance, OODDetector
from raremix.errors import LabelError, NonFiniteError, NotEnoughReferenceError, OptionError
from raremix.inputs import as_embeddings, finite_rows

__all__ = ["LABEL_NAMES", "Rows", "Scored", "class_names", "read_rows", "score_rows"]

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


@dataclass(frozen=True)
class Scored:
    """The scores of all rows, and what made them; ``notes`` are what a reader should see first."""

    scores: Array
    is_rare: Array
    threshold: float
    scorer: str
    reference: str

    @property
    def notes(self) -> list[str]:
        """What is odd about the scores as a whole."""
        known = self.scores[~np.isnan(self.scores)]
        # Two rows are each other's only neighbour and always score the same.
        if len(known) > 2 and known.max() == known.min():
            return ["all scores are equal: the embeddings have collapsed, or rows are duplicates"]
        return []


def read_rows(arguments: argparse.Namespace, console: Console) -> Rows:
    """Read the embeddings and the files that go with their rows."""
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
        names = class_names(label_file)
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


def score_rows(rows: Rows, arguments: argparse.Namespace) -> Scored:
    """Score every row against the others, or against the reference that was named."""
    if not rows.finite.any():
        raise NonFiniteError(
            f"every one of the {counted(len(rows.finite), 'row')} of {rows.file} holds NaN or infinity; check "
            "the encoder that made them."
        )
    rule = FlagRate(arguments.rate, window=max(4096, round(4 / arguments.rate)))
    scorer, described = make_scorer(arguments)
    detector = OODDetector(scorer, rule)
    if arguments.reference is None:
        _check_k(rows, arguments)
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
        usable = int(finite_rows(reference).sum())
        # The detector scores the reference against itself first, so one row more is needed.
        if by_neighbors(arguments) and 0 < usable <= _wanted(arguments.k, usable):
            raise NotEnoughReferenceError(
                f"--k {arguments.k} needs more than {counted(_wanted(arguments.k, usable), 'row')} "
                f"without NaN, and --reference {arguments.reference} has {usable:,}; pass a smaller "
                "--k"
            )
        if arguments.scorer == "fused" and usable:
            _check_fused(usable, f"--reference {arguments.reference}")
        detector.fit(reference)
        found = detector.detect(rows.embeddings)
        against = f"{counted(len(reference), 'row')} of {_source(name, chosen)}"
    return Scored(
        scores=found.scores.cpu().numpy(),
        is_rare=found.is_rare.cpu().numpy(),
        threshold=found.threshold,
        scorer=described,
        reference=against,
    )


def _check_k(rows: Rows, arguments: argparse.Namespace) -> None:
    """Whether every row has as many others as the score asks for."""
    n = int(rows.finite.sum())
    siblings = int(np.bincount(rows.siblings[rows.finite]).max())
    others = n - siblings
    if arguments.scorer == "fused":
        if others >= 1:
            _check_fused(n, rows.file)
            return
    elif not by_neighbors(arguments):
        if n > 1:
            return
    elif others >= _wanted(arguments.k, n):
        return
    if others < 1:
        kept = "all with one id" if n > 1 else "without NaN"
        raise NotEnoughReferenceError(
            f"{rows.file} has {counted(n, 'row')}, {kept}, so there is nothing to compare with; "
            "pass more rows, or a --reference"
        )
    of_others = "other rows with another id" if siblings > 1 else "other rows"
    raise NotEnoughReferenceError(
        f"--k {arguments.k} asks for the distance to neighbour {_wanted(arguments.k, n):,}, and a "
        f"row of {rows.file} has only {others:,} {of_others}; pass a smaller --k"
    )


def _check_fused(rows: int, file: str | os.PathLike[str]) -> None:
    if rows < FusedDistance.least_rows:
        raise NotEnoughReferenceError(
            f"{file} has {counted(rows, 'row')} without NaN, and --scorer fused compares at least "
            f"{FusedDistance.least_rows}; pass more rows, or --scorer knn with a small --k"
        )


def _wanted(k: int | float, rows: int) -> int:
    """How many neighbours a count or share asks for, as ``KNNDistance`` rounds it."""
    return k if isinstance(k, int) else max(1, math.ceil(k * rows - 1e-9))


def _source(file: str | os.PathLike[str], member: str | None) -> str:
    return str(file) if member is None else f"{file}:{member}"


def class_names(file: str | os.PathLike[str]) -> dict[Any, str]:
    """The names that a .npz keeps beside its labels, by class index; empty if there are none."""
    members = {member.name for member in list_members(file, caller="raremix")}
    if "class_names" not in members:
        return {}
    return dict(enumerate(str(name) for name in read_vector(file, "class_names")))


def _check_length(values: Any, rows: int, what: str) -> None:
    if len(values) != rows:
        raise LabelError(
            f"{what} has {'1 entry' if len(values) == 1 else f'{len(values):,} entries'} for "
            f"{counted(rows, 'row')} of embeddings; there must be one per row, in the same order."
        )
