"""Mean and covariance of rows that come in batches, exact to float64.

It knows no scores. Batches are merged, never summed as raw squares, so that a large offset costs
no digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from raremix.protocols import State

__all__ = ["Moments"]

# Where all rows are alike there is no spread to measure in. A variance this small beside the mean
# (or beside one, at zero) keeps scores finite, and far below any spread that float32 rows can have.
_LEAST_VARIANCE = 1e-16


@dataclass(frozen=True)
class Moments:
    """What a set of rows leaves behind: its weight, mean and scatter.

    Attributes:
        rows: How many rows were seen, forgotten or not.
        weight: How many of them still count; less than ``rows`` once some are forgotten.
        mean: (dim,) float64.
        scatter: (dim, dim) float64, the sum of outer products about the mean.

    Source:
        Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, The American
        Statistician 1983.
    """

    rows: int
    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """The moments of (n, dim) float64 rows."""
        mean = rows.mean(dim=0)
        gaps = rows - mean
        return cls(len(rows), float(len(rows)), mean, gaps.T @ gaps)

    def merged(self, other: "Moments", *, kept: float = 1.0) -> "Moments":
        """The moments of both sets together, where each row of this one counts ``kept``."""
        mine = kept * self.weight
        total = mine + other.weight
        gap = other.mean - self.mean
        between = torch.outer(gap, gap) * (mine * other.weight / total)
        return Moments(
            self.rows + other.rows,
            total,
            self.mean + gap * (other.weight / total),
            kept * self.scatter + other.scatter + between,
        )

    def shrinkage(self) -> float:
        """How much of the covariance to replace by a ball: the OAS intensity, in [0, 1]."""
        dim = len(self.mean)
        covariance = self.scatter / self.weight
        alpha = float(covariance.square().mean())
        mu = float(covariance.diagonal().mean())
        below = (self.weight + 1.0) * (alpha - mu**2 / dim)
        return 1.0 if below <= 0.0 else min(1.0, (alpha + mu**2) / below)

    def shrunk(self, *, rows: float | None = None) -> Tensor:
        """The covariance drawn towards a ball; the scatter over ``rows`` in place of the weight."""
        intensity = self.shrinkage()
        variance = float(self.scatter.diagonal().mean()) / self.weight
        least = _LEAST_VARIANCE * (float(self.mean.square().mean()) or variance or 1.0)
        ball = max(intensity * variance, least)
        covariance = self.scatter * ((1.0 - intensity) / (self.weight if rows is None else rows))
        covariance.diagonal().add_(ball)
        return covariance

    def to(self, device: torch.device) -> "Moments":
        """The same on another device."""
        if self.mean.device == device:
            return self
        return Moments(self.rows, self.weight, self.mean.to(device), self.scatter.to(device))

    def state(self) -> State:
        """Plain types and copies."""
        return {
            "rows": self.rows,
            "weight": self.weight,
            "mean": self.mean.clone(),
            "scatter": self.scatter.clone(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Take over what ``state`` returned."""
        return cls(state["rows"], state["weight"], state["mean"].clone(), state["scatter"].clone())
