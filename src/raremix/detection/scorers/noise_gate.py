"""A gate in front of a scorer: what stands alone is noise, and noise is not rare.

It rejects and never ranks. The score of a row that passes is that of the scorer behind it.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank
from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors import Metric, NeighborIndex
from raremix.options import check_count, check_number
from raremix.protocols import Scorer, State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["BankScorer", "NoiseGate"]


@runtime_checkable
class BankScorer(Scorer, Protocol):
    """A scorer that keeps the embeddings it has seen."""

    @property
    def bank(self) -> ReferenceBank:
        """The embeddings that count as seen."""


class NoiseGate:
    """Gives the least score, 0, to rows that lie far more alone than their own neighbours do.

    A blurred or corrupted image lies by itself; the members of a rare class lie near each other. A
    row passes if its local outlier factor is at most ``most``. The others keep their place in the
    results and in the threshold's budget, with a score of 0, which no threshold ever calls rare.

    It also rejects a rare image that is the only one of its kind: nothing in one embedding tells it
    from noise. On clean images it costs precision: before ``KNNDistance(k=10)``, average precision
    goes from 0.181 to 0.154 on CamVid crops and from 0.229 to 0.209 on CIFAR-10-LT, both by
    MobileNetV2, and from 0.072 to 0.073 by SimCLR. It pays where corrupted images are expected.

    Scoring a batch searches the bank for the neighbours of its neighbours as well, about k + k^2
    searches for a row in place of one. ``fit`` needs one.

    Siblings, for the gate, are rows of the same id, whatever ``id_window`` its scorer has: a row
    that comes again some frames later does not stand alone.

    Args:
        scorer: A scorer with a bank and scores of at least 0, such as ``KNNDistance(k=20)``.
        most: The largest local outlier factor that passes, above 1.
        k: Neighbours of the local outlier factor. A class passes when it has more than k members,
            so at 3 a class of 4 does; larger values reject more noise and more of the tail.
        metric: How the gate measures, ``"euclidean"`` or ``"cosine"``.

    Source:
        Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000. In small worlds
        with 3 % of rows at random the gate keeps 97 to 100 % of the tail and 5 to 50 % of the noise,
        most where classes are tight: noise whose neighbours are noise looks like a class.

    Example:
        >>> rows = torch.tensor([[0.0], [0.1], [0.2], [0.3], [5.0], [5.1], [5.2], [20.0]])
        >>> NoiseGate(raremix.KNNDistance(k=3), k=2).fit(rows)
        tensor([0.3000, 0.2000, 0.2000, 0.3000, 4.7000, 4.8000, 4.9000, 0.0000])
    """

    def __init__(
        self, scorer: BankScorer, *, most: float = 1.35, k: int = 3, metric: Metric = "euclidean"
    ) -> None:
        if not isinstance(scorer, BankScorer) or isinstance(scorer, type):
            raise OptionError(
                "NoiseGate expects a scorer that keeps a bank, such as KNNDistance(k=20), got "
                f"{scorer!r}."
            )
        self.scorer = scorer
        self.most = check_number("NoiseGate", "most", most, above=1.0)
        self.k = check_count("NoiseGate", "k", k, least=1)
        self.metric: Metric = metric

    def __repr__(self) -> str:
        return f"NoiseGate({self.scorer!r}, most={self.most:g}, k={self.k})"

    @property
    def bank(self) -> ReferenceBank:
        """The bank of the scorer behind the gate."""
        return self.scorer.bank

    @property
    def ready(self) -> bool:
        """Whether the scorer is, and the bank holds enough rows for the gate too."""
        return self.scorer.ready and len(self.bank) > self.k + 1

    def fit(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Take these (n, dim) embeddings as the reference; return their leave-one-out scores."""
        rows = as_embeddings(embeddings, caller="NoiseGate.fit")
        if len(rows) <= self.k + 1:
            raise NotEnoughReferenceError(
                f"NoiseGate.fit expects more than k + 1 = {self.k + 1} embeddings, got {len(rows)}."
            )
        found = NeighborIndex(rows, ids, metric=self.metric).leave_one_out(self.k)
        distances = found.distances.to(torch.float64)
        reach = _reach(distances, distances[:, -1][found.indices])
        passes = _outlier_factor(reach, reach[found.indices]) <= self.most
        return self._gated(self.scorer.fit(rows, ids), passes)

    def score(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """(batch, dim) floats to (batch,) float32, 0 where the gate rejects. Changes nothing."""
        rows = as_embeddings(embeddings, caller="NoiseGate.score", dim=self.bank.dim)
        if not self.ready:
            raise NotEnoughReferenceError(
                f"NoiseGate.score needs more than k + 1 = {self.k + 1} reference embeddings and "
                f"has seen {len(self.bank)}; call fit or update with more."
            )
        return self._gated(self.scorer.score(rows, ids), self._factors(rows, ids) <= self.most)

    def _gated(self, scores: Tensor, passes: Tensor) -> Tensor:
        if bool((scores < 0).any()):  # The GPU waits here, once a step.
            raise OptionError(
                f"NoiseGate expects a scorer whose scores are at least 0, and {self.scorer!r} gave "
                f"{float(scores.min()):g}; a rejected row could then outrank one that passes."
            )
        return torch.where(passes.to(scores.device), scores, 0.0)

    def _factors(self, rows: Tensor, ids: Tensor | None) -> Tensor:
        """The local outlier factor of each row against the bank."""
        reference = self.bank.rows.to(rows.device)
        known = self.bank.ids
        # Without ids a row of the bank is told from itself by its place.
        places = torch.arange(len(reference), device="cpu") if known is None else known
        index = NeighborIndex(reference, places, metric=self.metric)

        def found(queries: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            of = index.search(queries, self.k, query_ids=own)
            return of.distances.to(torch.float64), of.indices

        def found_in_bank(wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            each, back = torch.unique(wanted, return_inverse=True)
            return (*found(reference[each], places[each.cpu()]), back)

        near, first = found(rows, ids)
        near_first, second, back = found_in_bank(first)
        near_second, _, back_second = found_in_bank(second)
        reach_first = _reach(near_first, near_second[:, -1][back_second])
        own = _reach(near, near_first[:, -1][back])
        return _outlier_factor(own, reach_first[back])

    def update(self, embeddings: ArrayLike, ids: Tensor | None = None) -> None:
        """Add (batch, dim) embeddings to the reference of the scorer."""
        rows = as_embeddings(embeddings, caller="NoiseGate.update", dim=self.bank.dim)
        self.scorer.update(rows, ids)

    def state_dict(self) -> State:
        """The settings and the state of the scorer."""
        content: State = {**self._settings(), "scorer": self.scorer.state_dict()}
        return sealed_state("NoiseGate", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved scorer; the settings must be those it was saved with."""
        keys = (*self._settings(), "scorer")
        content = open_state(state, kind="NoiseGate", version=1, keys=keys)
        check_settings("NoiseGate", content, self._settings())
        self.scorer.load_state_dict(content["scorer"])

    def _settings(self) -> State:
        return {"most": self.most, "k": self.k, "metric": self.metric}


def _reach(distances: Tensor, of_neighbours: Tensor) -> Tensor:
    """The mean reachability distance: no nearer than a neighbour's own k-th neighbour."""
    return torch.maximum(distances, of_neighbours).mean(dim=1)


def _outlier_factor(reach: Tensor, of_neighbours: Tensor) -> Tensor:
    """How much farther a row must reach than its neighbours do; 1 among copies of itself."""
    ratio = reach[:, None] / of_neighbours
    return torch.where((reach[:, None] == 0) & (of_neighbours == 0), 1.0, ratio).mean(dim=1)
