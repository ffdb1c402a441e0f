"""Whether there are rows enough for the score that was asked for, said before the work is done."""

import argparse
from pathlib import Path

import numpy as np

from raremix.cli.console import counted
from raremix.cli.scorers import by_neighbors
from raremix.data.arrays import Array
from raremix.detection import FusedDistance
from raremix.detection.scorers.reference import count_of
from raremix.errors import NotEnoughReferenceError

__all__ = ["check_reference", "check_rows"]

_GATE_NEIGHBORS = 3  # NoiseGate's own default, which no option of the command line changes.


def check_rows(
    finite: Array, siblings_of: Array, file: Path, arguments: argparse.Namespace
) -> None:
    """Raise ``NotEnoughReferenceError`` if a row has fewer others than the score asks for.

    Args:
        finite: (n,) bool, the rows without NaN.
        siblings_of: (n,) int64, equal for rows that are never compared.
        file: Where the rows came from.
        arguments: The options of scoring, settled.
    """
    n = int(finite.sum())
    siblings = int(np.bincount(siblings_of[finite]).max())
    others = n - siblings
    if others < 1 and (n == 1 or arguments.scorer == "fused" or by_neighbors(arguments)):
        kept = "rows, all with one id" if n > 1 else "row without NaN"
        raise NotEnoughReferenceError(
            f"{file} has {n:,} {kept}, so there is nothing to compare with; pass more rows, or a "
            "--reference."
        )
    _check_scorer(n, str(file), arguments)
    if by_neighbors(arguments) and others < count_of(arguments.k, n):
        of_others = "other rows with another id" if siblings > 1 else "other rows"
        raise NotEnoughReferenceError(
            f"--k {arguments.k} asks for the distance to neighbour {count_of(arguments.k, n):,}, and "
            f"a row of {file} has only {others:,} {of_others}; pass a smaller --k."
        )
    if arguments.gate and others < _GATE_NEIGHBORS:
        raise NotEnoughReferenceError(
            f"--gate looks at {_GATE_NEIGHBORS} neighbours of every row, and a row of {file} has only "
            f"{others:,} other rows with another id; leave --gate out, or pass more rows."
        )


def check_reference(usable: int, arguments: argparse.Namespace) -> None:
    """Raise ``NotEnoughReferenceError`` if a reference of so many rows is too small."""
    _check_scorer(usable, f"--reference {arguments.reference}", arguments)
    # The detector scores the reference against itself first, so one row more is needed.
    if by_neighbors(arguments) and usable <= count_of(arguments.k, usable):
        raise NotEnoughReferenceError(
            f"--k {arguments.k} needs more than {counted(count_of(arguments.k, usable), 'row')} "
            f"without NaN, and --reference {arguments.reference} has {usable:,}; pass a smaller --k."
        )


def _check_scorer(rows: int, file: str, arguments: argparse.Namespace) -> None:
    """Whether so many rows suit the scorer and the gate, whatever their ids."""
    if arguments.gate and rows <= _GATE_NEIGHBORS + 1:
        raise NotEnoughReferenceError(
            f"--gate compares at least {_GATE_NEIGHBORS + 2} rows, and {file} has "
            f"{counted(rows, 'row')} without NaN; leave --gate out, or pass more rows."
        )
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
