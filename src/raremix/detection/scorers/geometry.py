"""One space made of three views of the same embeddings, so that no score hangs on a single one.

It knows rows and distances, no scores and no ids.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.neighbors import NeighborIndex
from raremix.neighbors.index import unit_rows
from raremix.protocols import State
from raremix.state import open_state, sealed_state

__all__ = ["FusedGeometry"]

_COMPONENTS = 64
"""Principal components kept; 32, 64 and 128 find equally much."""

_MEDIAN_OF = 50
"""The neighbour whose median distance is the unit of a view."""

_SAMPLE = 1000
"""Rows whose neighbours are looked at for that median."""

# Variances below this share of the largest are rounding, and would be blown up by whitening.
_LEAST_VARIANCE = 1e-6


class FusedGeometry:
    """Three views side by side, each in units of its own typical distance to a neighbour.

    - The 64 first principal components of the signed square root of the entries: what varies most,
      with the large activations tamed.
    - The rows at unit length: the direction alone.
    - The same components at equal variance, at unit length: what varies little counts as well.

    No single one is good everywhere: where the length of an embedding carries rarity the first is
    best, where it is noise the second, where common variation drowns the rest the third. Distances
    in the fused space are those in which two of them agree.

    Source:
        The square root: Arandjelović and Zisserman, Three things everyone should know to improve
        object retrieval, CVPR 2012. The fusion: this project, see ``FusedDistance``.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether ``fit`` has seen rows."""
        return self._parts is not None

    def fit(self, rows: Tensor, *, max_memory: int) -> None:
        """Learn scale, axes and units from (n, dim) float32 rows, n at least 2."""
        scale = rows.double().square().mean().sqrt()
        scale = torch.where(scale > 0, scale, 1.0).to(rows.dtype)
        roots = _signed_roots(rows, scale).double()
        mean = roots.mean(dim=0)
        roots -= mean
        kept = min(_COMPONENTS, rows.shape[1], len(rows) - 1)
        variances, axes = torch.linalg.eigh(roots.T @ roots / len(rows))
        variances, axes = variances.flip(0)[:kept], axes.flip(1)[:, :kept]
        least = (_LEAST_VARIANCE * variances[0]).clamp_min(1e-30)
        self._parts = {
            "scale": scale,
            "mean": mean,
            "axes": axes.contiguous(),
            "deviations": variances.clamp_min(least).sqrt(),
            "units": torch.ones(3, dtype=rows.dtype, device=rows.device),
        }
        views = self._views(rows)
        # Chosen by value, so that the order of rows does not matter.
        spread = views[0].square().sum(dim=1).argsort(stable=True)
        sample = spread[:: max(1, len(rows) // _SAMPLE)]
        k = min(_MEDIAN_OF, len(rows) - 1)
        ids = torch.arange(len(rows), device=rows.device)
        units = []
        for view in views:
            index = NeighborIndex(view, ids, max_memory=max_memory)
            found = index.search(view[sample], k, query_ids=ids[sample])
            units.append(found.distances[:, -1].median())
        unit = torch.stack(units)
        self._parts["units"] = torch.where(unit > 0, unit, 1.0)

    def transform(self, rows: Tensor) -> Tensor:
        """(n, dim) float32 to (n, fused) float32, on the device of the rows."""
        assert self._parts is not None, "fit comes first"
        units = self._parts["units"].to(rows.device)
        return torch.cat(
            [view / unit for view, unit in zip(self._views(rows), units, strict=True)], dim=1
        )

    def _views(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self._parts is not None
        parts = {name: part.to(rows.device) for name, part in self._parts.items()}
        # In float64, so that a row's place hardly depends on the batch it comes in.
        roots = _signed_roots(rows, parts["scale"]).double() - parts["mean"]
        components = roots @ parts["axes"]
        whitened = unit_rows((components / parts["deviations"]).float())
        return components.float(), unit_rows(rows), whitened

    def state_dict(self) -> State:
        """What was learnt, or nothing yet."""
        parts = None
        if self._parts is not None:
            parts = {name: part.detach().cpu().clone() for name, part in self._parts.items()}
        return sealed_state("FusedGeometry", 1, {"parts": parts})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was learnt."""
        content = open_state(state, kind="FusedGeometry", version=1, keys=("parts",))
        parts = content["parts"]
        self._parts = (
            None if parts is None else {name: part.clone() for name, part in parts.items()}
        )


def _signed_roots(rows: Tensor, scale: Tensor) -> Tensor:
    rows = rows / scale
    return rows.sign() * rows.abs().sqrt()
