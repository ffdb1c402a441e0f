"""Reads the embeddings a command names and scores them: the work that score and report share."""

import argparse
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.cli.console import Console, counted
from raremix.cli.scorers import by_neighbors, make_scorer
from raremix.data.arrays import Array, list_members
from raremix.data.embeddings import pick_embeddings
from raremix.data.kinds import split_member
from raremix.data.listing import ImageList, read_image_list
from raremix.data.vectors import read_vector
from raremix.detection import FlagRate, FusedDistance, OODDetector
from raremix.errors import (
    LabelError,
    NonFiniteError,
    NotEnoughReferenceError,
    OptionError,
    RaremixWarning,
)
from raremix.inputs import as_embeddings, finite_rows, what_is_not_finite

__all__ = ["LABEL_NAMES", "Rows", "Scored", "class_names", "read_rows", "score_rows"]

_FEW = 50
"""Of fewer rows, neither a group nor its surroundings can be told from chance."""

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
    """The scores of all rows, and what made them; ``notes`` are what a reader should see first.

    Attributes:
        scores: (n,) float32, NaN where there is none.
        is_rare: (n,) bool.
        threshold: Scores above it are rare.
        scorer: What measured them, in words.
        reference: What they were measured against, in words.
        rate: The share asked for, of the rows or of the reference.
        referenced: How many rows a reference has, None without one.
        shared: How many of the rows are rows of the reference, too.
    """

    scores: Array
    is_rare: Array
    threshold: float
    scorer: str
    reference: str
    rate: float
    referenced: int | None = None
    shared: int = 0

    @property
    def notes(self) -> list[str]:
        """What is odd about the scores as a whole."""
        known = self.scores[~np.isnan(self.scores)]
        others = len(known) if self.referenced is None else self.referenced
        notes = []
        if self.shared:
            notes.append(
                f"{self.shared:,} of {counted(len(self.scores), 'row')} lie in the reference, too, "
                "where each is its own nearest neighbour; leave them out of it, or score without "
                "--reference"
            )
        # Two rows are each other's only neighbour and always score the same.
        elif len(known) > 2 and known.max() == known.min():
            notes.append(
                "all scores are equal: the embeddings have collapsed, or rows are duplicates"
            )
        if self.referenced is None and math.floor(self.rate * len(known) + 1e-9) == 0:
            notes.append(
                f"a rate of {self.rate:g} of {counted(len(known), 'row')} is less than one row, so "
                "none is called rare; raise --rate"
            )
        if others < _FEW:
            notes.append(
                f"compared with {counted(others, 'row')} only: from fewer than {_FEW}, a score says "
                "little"
            )
        return notes


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
        _check_reference(len(reference), arguments)
        detector.fit(reference)
        found = detector.detect(rows.embeddings)
        against = f"{counted(len(reference), 'row')} of {_source(name, chosen)}"
        referenced, shared = len(reference), _shared(rows.embeddings, reference)
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


def _shared(rows: Tensor, reference: Tensor) -> int:
    """How many of the rows are rows of the reference, told by their product with one vector."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    # Summed row by row, equal rows give equal sums wherever they stand.
    ours, theirs = (
        torch.cat([(part.double() * vector).sum(dim=1) for part in torch.split(some, 8192)])
        for some in (rows, reference)
    )
    return int(torch.isin(ours, theirs).sum())


def _check_k(rows: Rows, arguments: argparse.Namespace) -> None:
    """Whether every row has as many others as the score asks for."""
    n = int(rows.finite.sum())
    siblings = int(np.bincount(rows.siblings[rows.finite]).max())
    others = n - siblings
    if others < 1 and (n == 1 or arguments.scorer == "fused" or by_neighbors(arguments)):
        kept = "rows, all with one id" if n > 1 else "row without NaN"
        raise NotEnoughReferenceError(
            f"{rows.file} has {n:,} {kept}, so there is nothing to compare with; pass more rows, or a "
            "--reference."
        )
    _check_scorer(n, str(rows.file), arguments)
    if by_neighbors(arguments) and others < _wanted(arguments.k, n):
        of_others = "other rows with another id" if siblings > 1 else "other rows"
        raise NotEnoughReferenceError(
            f"--k {arguments.k} asks for the distance to neighbour {_wanted(arguments.k, n):,}, and "
            f"a row of {rows.file} has only {others:,} {of_others}; pass a smaller --k."
        )


def _check_reference(usable: int, arguments: argparse.Namespace) -> None:
    """Whether a reference of so many rows is enough for the score."""
    _check_scorer(usable, f"--reference {arguments.reference}", arguments)
    # The detector scores the reference against itself first, so one row more is needed.
    if by_neighbors(arguments) and usable <= _wanted(arguments.k, usable):
        raise NotEnoughReferenceError(
            f"--k {arguments.k} needs more than {counted(_wanted(arguments.k, usable), 'row')} "
            f"without NaN, and --reference {arguments.reference} has {usable:,}; pass a smaller --k."
        )


def _check_scorer(rows: int, file: str, arguments: argparse.Namespace) -> None:
    """Whether so many rows suit the scorer, whatever their ids."""
    if arguments.scorer == "fused" and rows < FusedDistance.least_rows:
        raise NotEnoughReferenceError(
            f"{file} has {counted(rows, 'row')} without NaN, and --scorer fused compares at least "
            f"{FusedDistance.least_rows}; pass more rows, or --scorer knn with a small --k."
        )
    if arguments.scorer == "clusters" and rows <= arguments.clusters:
        raise NotEnoughReferenceError(
            f"--clusters {arguments.clusters} would make each of the {counted(rows, 'row')} of {file} "
            "a cluster of its own, all equally rare; pass fewer clusters, far fewer than rows."
        )


def _wanted(k: int | float, rows: int) -> int:
    """How many neighbours a count or share asks for, as ``KNNDistance`` rounds it."""
    return k if isinstance(k, int) else max(1, math.ceil(k * rows - 1e-9))


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
