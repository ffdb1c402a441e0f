"""Reads scores, and settles by the labels which samples are judged and which of them are rare."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raremix.cli.console import counted
from raremix.cli.labels import Labels, judged_rows, read_groups, read_labels
from raremix.data.arrays import Array
from raremix.data.kinds import split_member
from raremix.data.vectors import read_lines, read_vector
from raremix.errors import FileFormatError, LabelError, NonFiniteError
from raremix.evaluation import rarest_of

__all__ = ["Truth", "read_scores", "read_truth"]


@dataclass(frozen=True)
class Truth:
    """What is rare, and why, of the samples that are judged.

    Attributes:
        is_judged: (rows,) bool; the other arrays have one row for each that is.
        is_rare: (n,) bool.
        classes: (n,) class labels, or None.
        class_names: Name of each class.
        definition: What makes a sample rare, in words.
        holds: (n, C) bool, which rare classes a sample holds; None if rarity is not by class.
        rare_names: Name of each of the C classes.
        groups: (n,) the group of each sample, or None.
        notes: What a reader should know of the rows that are not judged.
    """

    is_judged: Array
    is_rare: Array
    classes: Array | None
    class_names: dict[Any, str]
    definition: str
    holds: Array | None
    rare_names: list[str]
    groups: Array | None
    notes: tuple[str, ...]


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
    """Read the labels and settle which samples are judged, and which of them are rare.

    Args:
        arguments: Those of ``raremix evaluate``.
        lengths: How many scores each of the files holds, which must be as many as labels.
    """
    labels = read_labels(arguments.labels, by_class=_is_by_class(arguments))
    for file, count in zip(arguments.scores, lengths, strict=True):
        if count != len(labels):
            raise LabelError(
                f"{file} has {counted(count, 'score')} and {arguments.labels} "
                f"{counted(len(labels), 'label')}; there must be one per row, in the same order."
            )
    groups = read_groups(arguments.groups, len(labels))
    is_judged, notes = judged_rows(arguments.labels, len(labels))
    return replace(
        _settled(arguments, labels.of(is_judged)),
        is_judged=is_judged,
        groups=None if groups is None else groups[is_judged],
        notes=notes,
    )


def _is_by_class(arguments: argparse.Namespace) -> bool:
    return arguments.rare_classes is not None or arguments.rare_share is not None


def _settled(arguments: argparse.Namespace, labels: Labels) -> Truth:
    """What is rare by the labels of the rows that are judged."""
    flags, classes, names = labels.flags, labels.classes, labels.names
    file, _ = split_member(arguments.labels)
    if labels.holds is not None:
        return _settled_by_columns(arguments, labels.holds, labels)
    if _is_by_class(arguments):
        if classes is None:
            raise LabelError(
                f"--rare-classes and --rare-share need class labels, and {arguments.labels} holds "
                "flags only; name the class labels, as in FILE:MEMBER."
            )
        if arguments.rare_classes is not None:
            rare = _named_classes(arguments.rare_classes, classes, names, arguments.labels)
        else:
            found, sizes = np.unique(classes, return_counts=True)
            counts = dict(zip(found.tolist(), sizes.tolist(), strict=True))
            rare = _small_classes(counts, arguments.rare_share, arguments.labels)
        words = ", ".join(names.get(label, str(label)) for label in rare)
        return _truth(np.isin(classes, rare), f"of class {words}", classes, names)
    if flags is None:
        assert classes is not None
        if not np.isin(classes, (0, 1)).all():
            found, sizes = np.unique(classes, return_counts=True)
            smallest = found[sizes.argmin()].item()
            raise LabelError(
                f"{arguments.labels} holds classes and does not say which are rare; add "
                f"--rare-classes {names.get(smallest, smallest)} (the smallest; several with commas "
                "between them) or --rare-share 0.1."
            )
        return _truth(classes.astype(np.bool_), f"1 in {arguments.labels}")
    return _truth(_as_flags(flags, file), f"is_rare in {file}", classes, names)


def _settled_by_columns(arguments: argparse.Namespace, holds: Array, labels: Labels) -> Truth:
    """What is rare where each row says of each class whether it holds it."""
    if not holds.any():
        raise LabelError(
            f"{arguments.labels} says of every class that no sample holds it, so none is rare; "
            "check what made the labels."
        )
    names = {place: labels.names.get(place, str(place)) for place in range(holds.shape[1])}
    counts = dict(enumerate(holds.sum(axis=0).tolist()))
    if arguments.rare_classes is not None:
        place_of = {title: place for place, title in names.items()}
        missing = [text for text in arguments.rare_classes if text not in place_of]
        if missing:
            raise LabelError(
                f"--rare-classes names {', '.join(missing)}, and {arguments.labels} has no column "
                f"of it; its classes are {', '.join(place_of)}."
            )
        rare = [place_of[text] for text in dict.fromkeys(arguments.rare_classes)]
    elif arguments.rare_share is not None:
        rare = _small_classes(counts, arguments.rare_share, arguments.labels)
    else:
        rare = list(names)
    rare.sort(key=lambda place: counts[place])
    kept = holds[:, rare]
    is_rare = np.asarray(kept.any(axis=1))
    file, _ = split_member(arguments.labels)
    flags = None if _is_by_class(arguments) else labels.flags
    if flags is not None and not np.array_equal(_as_flags(flags, file), is_rare):
        raise LabelError(
            f"{file} says twice what is rare: is_rare is true for {int(flags.sum()):,} rows, and "
            f"holds for {int(is_rare.sum()):,}, not the same ones; name the one you mean, as in "
            f"{file}:holds, or the rare columns with --rare-classes."
        )
    titles = [names[place] for place in rare]
    return replace(_truth(is_rare, f"holds {', '.join(titles)}"), holds=kept, rare_names=titles)


def _as_flags(flags: Array, file: str) -> Array:
    if not np.isin(flags, (0, 1)).all():
        raise LabelError(f"is_rare in {file} holds other values than true and false.")
    return flags.astype(np.bool_)


def _truth(
    is_rare: Array,
    definition: str,
    classes: Array | None = None,
    names: Mapping[Any, str] | None = None,
) -> Truth:
    """What is rare; by class as well, if every class is rare or common as a whole."""
    titles = dict(names or {})
    holds, rare_names = None, []
    if classes is not None:
        found, counts = np.unique(classes[is_rare], return_counts=True)
        if len(found) and np.array_equal(np.isin(classes, found), is_rare):
            rare = found[np.argsort(counts, kind="stable")]
            holds = classes[:, None] == rare[None]
            rare_names = [titles.get(label, str(label)) for label in rare.tolist()]
    return Truth(
        is_judged=np.ones(len(is_rare), dtype=np.bool_),
        is_rare=is_rare,
        classes=classes,
        class_names=titles,
        definition=definition,
        holds=holds,
        rare_names=rare_names,
        groups=None,
        notes=(),
    )


def _small_classes(counts: Mapping[Any, int], share: float, where: str) -> list[Any]:
    smallest, total = min(count for count in counts.values() if count), sum(counts.values())
    if smallest >= share * total:
        raise LabelError(
            f"--rare-share {share:g}: {where} has no class under a share of {share:g}; its "
            f"smallest has {smallest / total:.4g}. Pass a larger "
            "--rare-share, or name the classes with --rare-classes."
        )
    return rarest_of(counts, share)


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
