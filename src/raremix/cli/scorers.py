"""Builds the scorer that the options of score and report name, and says it in words."""

import argparse
import inspect
from typing import Any

from raremix.detection import (
    ClusterMass,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    TwoScaleDistance,
)
from raremix.detection.scorers import BankScorer
from raremix.errors import OptionError
from raremix.protocols import Scorer

__all__ = ["by_neighbors", "make_scorer"]


_TAKES = {
    "fused": ("engine",),
    "knn": ("k", "metric", "engine"),
    "two-scale": ("k", "metric", "engine"),
    "clusters": ("clusters", "metric"),
    "mahalanobis": ("metric",),
    "mean": ("metric",),
}
"""The options that each scorer knows."""

_KINDS: dict[str, type] = {
    "fused": FusedDistance,
    "knn": KNNDistance,
    "two-scale": TwoScaleDistance,
    "clusters": ClusterMass,
    "mahalanobis": Mahalanobis,
    "mean": MeanDistance,
}

_UNSET = {"k": None, "metric": None, "clusters": None, "engine": "auto"}


def by_neighbors(arguments: argparse.Namespace) -> bool:
    """Whether ``--k`` matters to the scorer that was named."""
    return arguments.scorer in ("knn", "two-scale")


def _settle(arguments: argparse.Namespace) -> None:
    """Put in what was not given, and refuse what the scorer would not look at.

    Raises:
        OptionError: If an option was given that the scorer does not know.
    """
    given = [name for name, unset in _UNSET.items() if getattr(arguments, name) != unset]
    if arguments.scorer is None:
        arguments.scorer = "knn" if {"k", "metric"} & {*given} else "fused"
    for name in given:
        if name not in _TAKES[arguments.scorer]:
            others = ", ".join(scorer for scorer, takes in _TAKES.items() if name in takes)
            raise OptionError(
                f"--{name} means nothing to --scorer {arguments.scorer}; leave it out, or name one "
                f"of the scorers that look at it: {others}."
            )
    for name in ("k", "metric", "clusters"):
        if name not in given:
            setattr(arguments, name, _default(_KINDS[arguments.scorer], name))


def _default(kind: type, name: str) -> Any:
    """What the class takes where nothing is given, so that the shell and Python score alike."""
    defaults = {key: known.default for key, known in inspect.signature(kind).parameters.items()}
    if name == "metric" and "normalize" in defaults:
        return "cosine" if defaults["normalize"] else "euclidean"
    return defaults.get(name)


def make_scorer(arguments: argparse.Namespace) -> tuple[Scorer, str]:
    """Build the scorer named by the options, and describe it.

    What was not given is put into ``arguments``.

    Raises:
        OptionError: If an option is given that the scorer does not know, or ``--gate`` stands
            before a scorer that keeps no rows.
    """
    _settle(arguments)
    metric, k = arguments.metric, arguments.k
    # Which engine "auto" takes depends on the machine, and none changes a score.
    by = "" if arguments.engine == "auto" else f", by {arguments.engine}"
    if arguments.scorer == "fused":
        scorer: BankScorer = FusedDistance(engine=arguments.engine)
        described = f"distance at many scales in three fused geometries, exact{by}"
    elif by_neighbors(arguments):
        kind = KNNDistance if arguments.scorer == "knn" else TwoScaleDistance
        scorer = kind(k, metric=metric, engine=arguments.engine, capacity=1 + max(65_536, k))
        if isinstance(scorer, TwoScaleDistance):
            described = f"k-NN at two scales, k={k} and {scorer.near}, {metric}, exact{by}"
        else:
            described = f"k-NN, k={k}, {metric}, exact{by}"
    elif arguments.scorer == "clusters":
        scorer = ClusterMass(arguments.clusters, normalize=metric == "cosine")
        described = f"cluster mass, {arguments.clusters} clusters, {metric}"
    elif arguments.gate:
        raise OptionError(
            f"--gate needs a scorer that keeps rows, and {arguments.scorer} keeps none; pass "
            "--scorer fused, knn, two-scale or clusters."
        )
    elif arguments.scorer == "mahalanobis":
        return Mahalanobis(normalize=metric == "cosine"), f"Mahalanobis distance, {metric}"
    else:
        return MeanDistance(metric=metric), f"distance to the mean, {metric}"
    if arguments.gate:
        return NoiseGate(scorer, metric=metric or "euclidean"), f"{described}, behind a noise gate"
    return scorer, described
