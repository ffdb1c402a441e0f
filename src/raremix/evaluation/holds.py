"""Reads which rare classes each sample holds, from flags per class or from one label per sample.

It says what is wrong with them and measures nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raremix.errors import LabelError, NonFiniteError, OptionError
from raremix.evaluation.scored import Bools, as_numpy

__all__ = ["check_kinds", "checked_holds"]


def checked_holds(
    holds: Any,
    names: Sequence[str] | Mapping[Any, str] | None,
    rare: Sequence[Any] | None,
    scored: int,
) -> tuple[Bools, list[str]]:
    """(n, C) bool, which rare classes a sample holds, and the name of each."""
    values = as_numpy(holds)
    if values.ndim not in (1, 2) or len(values) != scored:
        raise LabelError(
            f"evaluate_classes got {scored} scores and holds of shape {values.shape}; pass one row "
            "of C flags per score, or one label per score, in the same order."
        )
    if values.ndim == 1:
        if rare is None:
            raise OptionError(
                "evaluate_classes got one label per sample and not which of them are rare; pass "
                "rare=[...], or (n, C) flags. For one flag per sample there is evaluate."
            )
        known, codes = np.unique(values, return_inverse=True)
        place_of = {label: place for place, label in enumerate(known.tolist())}
        # A label that does not occur has no place, and its row says so.
        places = np.array([place_of.get(label, -1) for label in rare], dtype=np.int64)
        members = codes.reshape(-1, 1) == places[None]
    else:
        if rare is not None:
            raise OptionError(
                "evaluate_classes got (n, C) flags and rare=[...], which goes with labels; pass "
                "the columns of the rare classes alone."
            )
        if values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
            raise LabelError(
                f"evaluate_classes expects holds as true and false (or 1 and 0), got "
                f"{values.dtype} with values such as {np.unique(values)[:3].tolist()}; say of each "
                "class whether the sample holds it."
            )
        members = values.astype(np.bool_)
        if names is not None and len(names) != members.shape[1]:
            raise LabelError(
                f"evaluate_classes got {len(names)} names for the {members.shape[1]} columns of "
                "holds; pass one name per column."
            )
    titles = (
        dict(names)
        if isinstance(names, Mapping)
        else dict(enumerate(() if names is None else names))
    )
    labels = range(members.shape[1]) if rare is None else rare
    return members, [str(titles.get(label, label)) for label in labels]


def check_kinds(members: Bools, against: str) -> None:
    """Raise unless something was scored, some of it rare and, if need be, some of it common."""
    if len(members) == 0:
        raise NonFiniteError(
            "evaluate_classes got not one score, only NaN; there is nothing to judge, so look at "
            "what made the scores."
        )
    is_rare = members.any(axis=1)
    if not is_rare.any():
        raise LabelError(
            f"evaluate_classes needs rare and common samples, but of {len(members)} scored samples "
            "none holds a rare class; check the labels."
        )
    if against == "none" and is_rare.all():
        raise LabelError(
            f"evaluate_classes needs rare and common samples, but all {len(members)} scored "
            "samples hold a rare class; pass against='all' to compare each class with the others."
        )
