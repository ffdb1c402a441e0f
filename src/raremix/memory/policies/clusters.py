"""As much of every kind: clusters of features stand in for the classes that nobody has named."""

import math
from collections.abc import Callable

import numpy as np

from raremix.memory.columns import Array, Columns
from raremix.memory.held import Held
from raremix.memory.policies.base import Chosen, Policy, draw_weighted, features_of
from raremix.options import check_count
from raremix.seeds import uniforms

__all__ = ["ClusterBalanced"]

_ROUNDS = 5
"""Of Lloyd's algorithm, each time."""


class ClusterBalanced(Policy):
    """Keeps and draws equally many of every cluster of features.

    The oldest entry of the largest cluster leaves, and every cluster has the same chance in a
    draw. Clusters are found among the entries themselves by spherical k-means, anew whenever half
    of the entries have been exchanged, since an encoder in training moves; in between an entry joins
    the nearest. ``add`` must be given features.

    Args:
        clusters: How many, at least 2; about as many kinds as are expected, or more. Small buffers
            have fewer: one for every two entries.

    Source:
        Class-balancing reservoir sampling (Chrysakis and Moens, ICML 2020) keeps classes equal;
        here clusters take their place.
    """

    columns = {"cluster": "int64"}  # noqa: RUF012  # read only
    drawn_by = ("cluster",)
    needs_features = True

    def __init__(self, *, clusters: int = 32) -> None:
        self.clusters = check_count("ClusterBalanced", "clusters", clusters, least=2)

    def enter(self, held: Held, place: int) -> None:
        """See ``Policy``."""
        shared = held.shared
        if "centroids" not in shared:
            shared["centroids"] = np.zeros((0, features_of(held).shape[1]), np.float32)
            shared["news"] = np.zeros(1, np.int64)
        shared["news"] += 1
        held.rows["cluster"][place] = self._nearest(held, place)

    def refresh(self, held: Held, place: int) -> None:
        """See ``Policy``."""
        cluster = held.rows["cluster"][place].item()
        nearest = self._nearest(held, place)
        if nearest != cluster:
            held.set("cluster", [place], [nearest])

    def _nearest(self, held: Held, place: int) -> int:
        centroids = held.shared["centroids"]
        return int((centroids @ features_of(held)[place]).argmax()) if len(centroids) else 0

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        if 2 * held.shared["news"][0] > len(held) and len(held) >= 8:
            self._cluster(held, seed)
        if len(held) <= held.limit:
            return None
        cluster = held.rows["cluster"]
        own = np.flatnonzero(cluster == np.bincount(cluster).argmax())
        return int(own[held.rows["entry"][own].argmin()])

    def _cluster(self, held: Held, seed: int) -> None:
        features = features_of(held)
        count = max(2, min(self.clusters, math.ceil(len(held) / 2)))
        centroids = _spread_out(features, count, seed)
        for _ in range(_ROUNDS):
            nearest = (features @ centroids.T).argmax(axis=1)
            sums = np.zeros((count, features.shape[1]))
            np.add.at(sums, nearest, features)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            filled = norms[:, 0] > 0  # an empty cluster keeps its centre
            centroids[filled] = (sums[filled] / norms[filled]).astype(np.float32)
        held.shared["centroids"] = centroids
        held.shared["news"][:] = 0
        held.set("cluster", np.arange(len(held)), (features @ centroids.T).argmax(axis=1))

    def draw(
        self, rows: Columns, count: int, allowed: Callable[[int], bool] | None, seed: int
    ) -> Chosen:
        """See ``Policy``."""
        if not len(rows):
            return Chosen([], [])
        cluster = rows["cluster"]
        return draw_weighted(1.0 / np.bincount(cluster)[cluster], count, allowed, seed)


def _spread_out(features: Array, count: int, seed: int) -> Array:
    """First centres: each drawn in proportion to the squared distance to those before (k-means++)."""
    drawn = uniforms(seed, count)
    chosen = [int(drawn[0] * len(features))]
    distance = np.full(len(features), np.inf)
    for step in range(1, count):
        distance = np.minimum(distance, np.maximum(1.0 - features @ features[chosen[-1]], 0.0))
        total = np.cumsum(distance)
        chosen.append(min(int(np.searchsorted(total, drawn[step] * total[-1])), len(features) - 1))
    centres: Array = features[chosen].copy()
    return centres
