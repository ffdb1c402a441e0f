"""Reads scores and the labels that say what is rare, in the forms people keep them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raremix.cli.console import counted
from raremix.cli.scoring import LABEL_NAMES, class_names
from raremix.data.arrays import Array, list_members
from raremix.data.kinds import split_member
from raremix.data.vectors import read_lines, read_vector
from raremix.errors import FileFormatError, LabelError, NonFiniteError
from raremix.evaluation import rarest_classes

__all__ = ["Truth", "read_scores", "read_truth"]


@dataclass(frozen=True)
class Truth:
    """What is rare, and why.

    Attributes:
        is_rare: (n,) bool.
        classes: (n,) class labels, or None.
        class_names: Name of each class.
        definition: What makes a sample rare, in words.
    """

    is_rare: Array
    classes: Array | None
    class_names: dict[Any, str]
    definition: str


def read_scores(text: str) -> Array:
    """Read one score per row from FILE or FILE:MEMBER."""
    name, member = split_member(text)
    if Path(name).suffix.lower() == ".csv" and read_lines(name)[0].startswith("rank,"):
        raise FileFormatError(
            f"{name} lists the rarest rows in order of rarity, not one score per row; pass the "
            ".scores.npy that was written beside it."
        )
    scores = read_vector(name, member, names=("score", "scores"))
    if scores.dtype.kind not in "fiu":
        raise FileFormatError(
            f"{text} holds {scores.dtype} values where scores are expected; name the array or "
            "column of the scores, as in FILE:MEMBER."
        )
    if scores.dtype.kind == "f" and np.isnan(scores).all():
        raise NonFiniteError(
            f"{text} holds {counted(len(scores), 'value')} and not one score, only NaN; look at what "
            "made it."
        )
    return scores.astype(np.float64)


def read_truth(arguments: argparse.Namespace, lengths: Sequence[int]) -> Truth:
    """Read the labels and settle which samples are rare.

    Args:
        arguments: Those of ``raremix evaluate``.
        lengths: How many scores each of the files holds, which must be as many as labels.
    """
    flags, classes, names = _read_labels(arguments)
    labels = classes if flags is None else flags
    assert labels is not None
    for file, count in zip(arguments.scores, lengths, strict=True):
        if count != len(labels):
            raise LabelError(
                f"{file} has {counted(count, 'score')} and {arguments.labels} "
                f"{counted(len(labels), 'label')}; there must be one per row, in the same order."
            )
    return _settled(arguments, flags, classes, names)


def _read_labels(
    arguments: argparse.Namespace,
) -> tuple[Array | None, Array | None, dict[Any, str]]:
    """True flags, class labels and the names of the classes; at least one of the first two."""
    name, member = split_member(arguments.labels)
    flags: Array | None = None
    classes: Array | None = None
    present = [found.name for found in list_members(name, caller="raremix evaluate")]
    if member is None and len(present) > 1:
        if "is_rare" in present:
            flags = read_vector(name, "is_rare")
        named = next((label for label in LABEL_NAMES if label in present), None)
        if named is not None:
            classes = read_vector(name, named)
    if flags is None and classes is None:
        values = read_vector(name, member, names=("is_rare", *LABEL_NAMES))
        if values.dtype == np.bool_ and not _is_by_class(arguments):
            flags = values
        else:
            classes = values
    return flags, classes, {} if classes is None else class_names(name, classes)


def _is_by_class(arguments: argparse.Namespace) -> bool:
    return arguments.rare_classes is not None or arguments.rare_share is not None


def _settled(
    arguments: argparse.Namespace,
    flags: Array | None,
    classes: Array | None,
    names: dict[Any, str],
) -> Truth:
    if _is_by_class(arguments):
        if classes is None:
            raise LabelError(
                f"--rare-classes and --rare-share need class labels, and {arguments.labels} holds "
                "flags only; name the class labels, as in FILE:MEMBER."
            )
        if arguments.rare_classes is not None:
            rare = _named_classes(arguments.rare_classes, classes, names, arguments.labels)
        else:
            rare = _small_classes(classes, arguments.rare_share, arguments.labels)
        words = ", ".join(names.get(label, str(label)) for label in rare)
        return Truth(np.isin(classes, rare), classes, names, f"of class {words}")
    file, _ = split_member(arguments.labels)
    if flags is None:
        assert classes is not None
        if not np.isin(classes, (0, 1)).all():
            found, counts = np.unique(classes, return_counts=True)
            smallest = found[counts.argmin()].item()
            raise LabelError(
                f"{arguments.labels} holds classes and does not say which are rare; add "
                f"--rare-classes {names.get(smallest, smallest)} (the smallest; several with commas "
                "between them) or --rare-share 0.1."
            )
        return Truth(classes.astype(np.bool_), None, {}, f"1 in {arguments.labels}")
    if not np.isin(flags, (0, 1)).all():
        raise LabelError(f"is_rare in {file} holds other values than true and false.")
    return Truth(flags.astype(np.bool_), classes, names, f"is_rare in {file}")


def _small_classes(classes: Array, share: float, where: str) -> list[Any]:
    smallest = np.unique(classes, return_counts=True)[1].min() / len(classes)
    if smallest >= share:
        raise LabelError(
            f"--rare-share {share:g}: {where} has no class under a share of {share:g}; its "
            f"smallest has {smallest:.4g}. Pass a larger --rare-share, or name the classes with "
            "--rare-classes."
        )
    return rarest_classes(classes, share)


def _named_classes(
    wanted: list[str], classes: Array, names: dict[Any, str], where: str
) -> list[Any]:
    """Turn what was typed, labels or class names, into labels that occur."""
    known = {str(label): label for label in np.unique(classes).tolist()}
    known.update({names[label]: label for label in list(known.values()) if label in names})
    missing = [text for text in wanted if text not in known]
    if missing:
        raise LabelError(
            f"--rare-classes names {', '.join(missing)}, and {where} has no sample of it; its "
            f"classes are {', '.join(known)}."
        )
    return [known[text] for text in wanted]
