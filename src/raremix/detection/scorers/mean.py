"""The distance to the mean of everything seen: the baseline this project began from.

It keeps a sum and a count, and no rows.
"""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from raremix.errors import NotEnoughReferenceError, StateMismatchError
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors import Metric
from raremix.neighbors.index import unit_rows
from raremix.options import check_choice
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["MeanDistance"]


class MeanDistance:
    """The distance to the mean of all embeddings seen: the baseline this project began from.

    It measures how far an image lies from the bulk, which is not how rare it is: a rare class near
    the mean is invisible, and a common one far from it is flagged. Prefer ``KNNDistance``.

    Args:
        metric: ``"euclidean"``, or ``"cosine"`` for the Euclidean distance between the embedding
            and the mean of unit-length embeddings, all scaled to unit length; in [0, 2].

    Example:
        >>> scorer = MeanDistance()
        >>> scorer.update(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> scorer.score(torch.tensor([[1.0, 3.0]]))
        tensor([3.])
    """

    def __init__(self, *, metric: Metric = "euclidean") -> None:
        check_choice("MeanDistance", "metric", metric, get_args(Metric))
        self.metric: Metric = metric
        # Float64, since a float32 sum stops growing after some ten million rows.
        self._sum: Tensor | None = None
        self._count = 0

    def __repr__(self) -> str:
        return f"MeanDistance(metric={self.metric!r})"

    @property
    def ready(self) -> bool:
        """Whether two embeddings have been seen."""
        return self._count >= 2

    def fit(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Forget everything, take these embeddings as the reference, and score them leave-one-out.

        Args:
            embeddings: Finite floats of shape (n, dim), n at least 2.
            ids: Not used; the mean has no rows.

        Returns:
            Float32 of shape (n,), each row's distance to the mean of the others.
        """
        rows = as_embeddings(embeddings, caller="MeanDistance.fit")
        if len(rows) < 2:
            raise NotEnoughReferenceError(
                f"MeanDistance.fit expects at least 2 embeddings, got {len(rows)}."
            )
        self._sum, self._count = None, 0
        self.update(rows)
        assert self._sum is not None
        directed = self._directed(rows)
        others = (self._sum - directed) / (self._count - 1)
        return self._distance(directed, others)

    def score(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Measure the distance to the mean; larger is rarer.

        Args:
            embeddings: Finite floats of shape (batch, dim).
            ids: Not used; the mean has no rows to leave out.

        Returns:
            Float32 of shape (batch,), on the device of ``embeddings``.

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (batch, dim) of the width seen before.
            NotEnoughReferenceError: If fewer than two embeddings have been seen.
        """
        dim = None if self._sum is None else len(self._sum)
        rows = as_embeddings(embeddings, caller="MeanDistance.score", dim=dim)
        if self._sum is None or not self.ready:
            raise NotEnoughReferenceError(
                f"MeanDistance.score needs at least 2 reference embeddings and has seen "
                f"{self._count}; call fit or update first."
            )
        return self._distance(self._directed(rows), (self._sum / self._count).to(rows.device))

    def update(self, embeddings: ArrayLike, ids: Tensor | None = None) -> None:
        """Add (batch, dim) embeddings to the mean; a sample seen twice counts twice."""
        dim = None if self._sum is None else len(self._sum)
        rows = as_embeddings(embeddings, caller="MeanDistance.update", dim=dim)
        total = self._directed(rows).sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total.to(self._sum.device)
        self._count += len(rows)

    def _directed(self, rows: Tensor) -> Tensor:
        return (unit_rows(rows) if self.metric == "cosine" else rows).to(torch.float64)

    def _distance(self, directed: Tensor, mean: Tensor) -> Tensor:
        if self.metric == "cosine":
            mean = unit_rows(mean if mean.ndim == 2 else mean[None])
        distance: Tensor = (directed - mean).norm(dim=1)
        return distance.to(torch.float32)

    def state_dict(self) -> State:
        """The settings, the sum in float64 and the number of rows."""
        total = None if self._sum is None else self._sum.clone()
        content: State = {"metric": self.metric, "sum": total, "count": self._count}
        return sealed_state("MeanDistance", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved mean; the metric must be the one it was saved with."""
        content = open_state(state, kind="MeanDistance", version=1, keys=("metric", "sum", "count"))
        check_settings("MeanDistance", content, {"metric": self.metric})
        total = content["sum"]
        if total is not None and self._sum is not None and len(total) != len(self._sum):
            raise StateMismatchError(
                f"MeanDistance.load_state_dict got a mean {len(total)} wide, and holds one "
                f"{len(self._sum)} wide; load it into a new one, or check that both come from the "
                "same layer."
            )
        self._sum = None if total is None else total.clone()
        self._count = content["count"]
