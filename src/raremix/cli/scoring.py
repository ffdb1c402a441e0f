"""Reads the embeddings a command names and scores them: the work that score and report share."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raremix.cli.console import Console
from raremix.data.arrays import Array, list_members
from raremix.data.embeddings import read_embeddings
from raremix.data.kinds import split_member
from raremix.data.vectors import read_lines, read_vector
from raremix.detection import FlagRate, KNNDistance, MeanDistance, OODDetector
from raremix.errors import LabelError, NonFiniteError, OptionError
from raremix.inputs import as_embeddings, finite_rows
from raremix.neighbors.search import chosen_engine

__all__ = ["LABEL_NAMES", "Rows", "Scored", "class_names", "read_rows", "score_rows"]

LABEL_NAMES = ("label", "labels", "y", "class")


@dataclass(frozen=True)
class Rows:
    """Embeddings and what is known of each row.

    Attributes:
        file: Where they came from.
        embeddings: (n, dim) tensor.
        finite: (n,) bool array, false for rows with NaN or infinity.
        ids: (n,) array, or None if a row's id is its number.
        siblings: (n,) int64, equal for rows with one id.
        paths: One per row, or None.
        labels: (n,) array, or None.
        label_names: Name of each label.
    """

    file: Path
    embeddings: Any
    finite: Array
    ids: Array | None
    siblings: Array
    paths: list[str] | None
    labels: Array | None
    label_names: dict[Any, str]

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return self.file.stem

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
    """The scores of all rows, and what made them."""

    scores: Array
    is_rare: Array
    threshold: float
    scorer: str
    reference: str


def read_rows(arguments: argparse.Namespace, console: Console) -> Rows:
    """Read the embeddings and the files that go with their rows."""
    name, member = split_member(arguments.embeddings)
    if arguments.member is not None and member is not None:
        raise OptionError(f"raremix got a member twice: {member!r} and --member {arguments.member}")
    member = arguments.member or member
    file = Path(name)
    embeddings = as_embeddings(read_embeddings(file, member=member), caller="raremix")
    n = len(embeddings)

    paths = None
    beside = file.with_name(f"{file.stem}.paths.txt")
    if arguments.paths is not None:
        paths = read_lines(arguments.paths)
        _check_length(paths, n, f"--paths {arguments.paths}")
    elif beside.is_file():
        found = read_lines(beside)
        if len(found) == n:
            paths = found
            console.note(f"image paths from {beside}")
        else:
            console.note(f"{beside} has {len(found)} lines for {n} rows and is not used")

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
        embeddings=embeddings,
        finite=finite_rows(embeddings).cpu().numpy(),
        ids=ids,
        siblings=siblings,
        paths=paths,
        labels=labels,
        label_names=names,
    )


def score_rows(rows: Rows, arguments: argparse.Namespace) -> Scored:
    """Score every row against the others, or against the reference that was named."""
    if not rows.finite.any():
        raise NonFiniteError(
            f"every one of the {len(rows.finite)} rows of {rows.file} holds NaN or infinity; check "
            "the encoder that made them."
        )
    rule = FlagRate(arguments.rate, window=max(4096, round(4 / arguments.rate)))
    scorer: KNNDistance | MeanDistance
    if arguments.scorer == "knn":
        scorer = KNNDistance(
            arguments.k,
            metric=arguments.metric,
            capacity=1 + max(65_536, arguments.k),
            engine=arguments.engine,
        )
        engine = chosen_engine(arguments.engine, queries=int(rows.finite.sum()))
        described = f"k-NN, k={arguments.k}, {arguments.metric}, exact, by {engine}"
    else:
        scorer = MeanDistance(metric=arguments.metric)
        described = f"distance to the mean, {arguments.metric}"
    detector = OODDetector(scorer, rule)
    if arguments.reference is None:
        # Every row's own id as the id of its reference row: nobody is his own neighbour.
        found = detector.fit(rows.embeddings, ids=rows.siblings)
        against = "the other rows (leave-one-out)"
    else:
        name, member = split_member(arguments.reference)
        reference = as_embeddings(read_embeddings(name, member=member), caller="raremix")
        if reference.shape[1] != rows.embeddings.shape[1]:
            raise OptionError(
                f"--reference {arguments.reference} is {reference.shape[1]} wide, "
                f"{rows.file} is {rows.embeddings.shape[1]} wide; both must come from one encoder."
            )
        detector.fit(reference)
        found = detector.detect(rows.embeddings)
        against = f"{len(reference):,} rows of {name}"
    return Scored(
        scores=found.scores.cpu().numpy(),
        is_rare=found.is_rare.cpu().numpy(),
        threshold=found.threshold,
        scorer=described,
        reference=against,
    )


def class_names(file: str | os.PathLike[str]) -> dict[Any, str]:
    """The names that a .npz keeps beside its labels, by class index; empty if there are none."""
    members = {member.name for member in list_members(file, caller="raremix")}
    if "class_names" not in members:
        return {}
    return dict(enumerate(str(name) for name in read_vector(file, "class_names")))


def _check_length(values: Any, rows: int, what: str) -> None:
    if len(values) != rows:
        raise LabelError(
            f"{what} has {len(values)} entries for {rows} rows of embeddings; there must be one "
            "per row, in the same order."
        )
