"""Builds the scorer that the options of score and report name, and says it in words."""

import argparse

from raremix.detection import (
    ClusterMass,
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


def by_neighbors(arguments: argparse.Namespace) -> bool:
    """Whether ``--k`` matters to the scorer that was named."""
    return arguments.scorer in ("knn", "two-scale")


def make_scorer(arguments: argparse.Namespace) -> tuple[Scorer, str]:
    """Build the scorer named by the options, and describe it.

    Raises:
        OptionError: If ``--gate`` stands before a scorer that keeps no rows.
    """
    metric, k = arguments.metric, arguments.k
    if by_neighbors(arguments):
        # Which engine "auto" takes depends on the machine, and none changes a score.
        by = "" if arguments.engine == "auto" else f", by {arguments.engine}"
        kind = KNNDistance if arguments.scorer == "knn" else TwoScaleDistance
        scorer: BankScorer = kind(
            k, metric=metric, engine=arguments.engine, capacity=1 + max(65_536, k)
        )
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
            "--scorer knn, two-scale or clusters."
        )
    elif arguments.scorer == "mahalanobis":
        return Mahalanobis(normalize=metric == "cosine"), f"Mahalanobis distance, {metric}"
    else:
        return MeanDistance(metric=metric), f"distance to the mean, {metric}"
    if arguments.gate:
        return NoiseGate(scorer, metric=metric), f"{described}, behind a noise gate"
    return scorer, described
