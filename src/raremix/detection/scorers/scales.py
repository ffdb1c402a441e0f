"""Distances at many scales, from a search near by in all rows and one far out in a thinned set.

It knows rows in one space and their ids; whose rows they are, and in which space, is the caller's.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raremix.errors import NotEnoughReferenceError
from raremix.neighbors import NeighborIndex, Neighbors

__all__ = ["NearRows", "Scales", "thinned"]

_FROM, _TO, _COUNT = 0.1, 4.0, 8
"""Neighbourhood sizes, evenly spaced in the logarithm, in units of the square root of the rows."""

_FAR, _FAR_WEIGHT = 10.0, 0.25
"""The size in the same units, and the weight, of the scale that the others are compared with."""

_NEAR = 0.85
"""Up to this size all rows are searched; beyond, a thinned set tells as much at a fraction of it."""

_SMOOTHED_OVER = 10
"""Neighbours whose scores are taken in."""

_COPIES = 32
"""Neighbours that may be copies of the row itself and are passed over."""

_COPY_SHARE = 0.05
"""Nearer than this share of the median nearest distance, a neighbour is a copy."""

_LEAST_SHARE = 0.75
"""Distances count as at least this share of it: how tight a small group is says nothing of its size."""

_FADING = 4
"""Power with which a neighbour's say fades with its distance, so that strangers of a small group,
all that its few members have for further neighbours, have none."""

_ALONE_FROM = 1.5
"""Farther than so many times the median nearest distance from its nearest neighbour, a row is alone,
and its own measure counts. One in a thousand rows of an encoder lies so far from all others."""


def _thinning(rows: int) -> int:
    """Every so-maniest row is in the thinned set: there, the far scale is some 320 neighbours."""
    return max(1, round(math.sqrt(rows) / 32))


def thinned(rows: Tensor) -> Tensor:
    """Places (m,) int64 of the thinned set of (n, dim) rows, spread evenly over their first column.

    Chosen by value, so that the order of rows does not matter.
    """
    chosen: Tensor = rows[:, 0].argsort(stable=True)[:: _thinning(len(rows))]
    return chosen


@dataclass(frozen=True)
class NearRows:
    """The near neighbours of each query.

    Attributes:
        places: (n, up to 10) int64, rows of the index.
        say: (n, up to 10) float64, the share of each in the query's next score; a row sums to at
            most a half.
    """

    places: Tensor
    say: Tensor

    def smoothed(self, own: Tensor, scores: Tensor) -> Tensor:
        """(n,) float64: the queries' own scores, with those of their neighbours among (m,) scores."""
        kept = 1.0 - self.say.sum(dim=1)
        return kept * own + (scores[self.places] * self.say).sum(dim=1)


class Scales:
    """Measures queries at all scales against a reference.

    Args:
        index: All rows, at least 4; it may follow them as they change.
        far: The thinned set as it was, with ids, or None where it would be all rows.
        typical: The median distance to the nearest neighbour, which sets what counts as a copy.
    """

    def __init__(
        self, index: NeighborIndex, far: NeighborIndex | None, typical: float = 1.0
    ) -> None:
        self.index = index
        self.far = far
        self.typical = typical

    @staticmethod
    def sizes(rows: int) -> tuple[list[int], int]:
        """Neighbourhood sizes for that many rows, ascending, and the far one."""
        root, most = math.sqrt(rows), rows - 1
        low, high = math.log(max(2.0, _FROM * root)), math.log(max(3.0, _TO * root))
        steps = [low + (high - low) * step / (_COUNT - 1) for step in range(_COUNT)]
        sizes = {min(round(math.exp(step)), most) for step in steps}
        return sorted(sizes), min(round(_FAR * root), most)

    def _split(self) -> tuple[list[int], list[int]]:
        """Sizes to look for among all rows, and those in the thinned set; the far one is last."""
        sizes, far = self.sizes(len(self.index))
        if self.far is None:
            return [*sizes, far], []
        near = [size for size in sizes if size <= _NEAR * math.sqrt(len(self.index))]
        share = len(self.far) / len(self.index)
        beyond = [max(1, round(size * share)) for size in (*sizes[len(near) :], far)]
        return near, beyond

    def measure(self, rows: Tensor, ids: Tensor | None) -> tuple[Tensor, NearRows]:
        """Raw scores (n,) float64, and the near neighbours that have a say in them.

        Args:
            rows: (n, dim) in the space of the rows.
            ids: (n,) own ids, whose siblings are left out; None to compare with all.
        """
        count = _at_most(self.index, self._count(), ids)
        return self._summed(self.index.search(rows, count, query_ids=ids), rows, ids)

    def measure_itself(self) -> tuple[Tensor, NearRows]:
        """``measure`` for all rows against one another; sets ``typical`` by what it finds."""
        rows, ids = self.index.rows, self.index.ids
        own = torch.arange(len(rows), device=rows.device) if ids is None else ids
        found = self.index.leave_one_out(_at_most(self.index, self._count(), own))
        medians = found.distances[:, [0, -1]].median(dim=0).values.tolist()
        # Where most rows have a twin, the farthest of their few neighbours.
        self.typical = next((median for median in medians if median > 0), 1.0)
        return self._summed(found, rows, own)

    def _count(self) -> int:
        """How many neighbours to look for among all rows."""
        return max(*self._split()[0], _SMOOTHED_OVER) + _COPIES

    def _summed(
        self, found: Neighbors, rows: Tensor, ids: Tensor | None
    ) -> tuple[Tensor, NearRows]:
        """The scores of rows whose neighbours among all rows were found."""
        sizes, beyond = self._split()
        logs = self._logs(found, sizes)
        if self.far is not None:
            count = _at_most(self.far, beyond[-1] + _COPIES, ids)
            outer = self.far.search(rows, count, query_ids=ids)
            logs = torch.cat([logs, self._logs(outer, beyond)], dim=1)
        raw = logs[:, :-1].mean(dim=1) - _FAR_WEIGHT * logs[:, -1]
        columns = self._places(found, torch.arange(_SMOOTHED_OVER, device=raw.device))
        distances = self._at_least(found.distances.gather(1, columns).double())
        say = (distances[:, :1] / distances) ** _FADING
        # In company the neighbours have half of the say, far from all others none.
        company = (_ALONE_FROM * self.typical / distances[:, :1]).clamp(max=1.0) ** _FADING
        near = found.indices.gather(1, columns)
        return raw, NearRows(near, 0.5 * company * say / say.sum(dim=1, keepdim=True))

    def _places(self, found: Neighbors, columns: Tensor) -> Tensor:
        """(n, len(columns)): the columns that are meant, behind the copies of each row."""
        copies = (found.distances < _COPY_SHARE * self.typical).sum(dim=1, keepdim=True)
        return (copies + columns).clamp(max=found.distances.shape[1] - 1)

    def _logs(self, found: Neighbors, sizes: list[int]) -> Tensor:
        columns = torch.tensor(sizes, dtype=torch.int64, device=found.distances.device) - 1
        return self._at_least(
            found.distances.gather(1, self._places(found, columns)).double()
        ).log()

    def _at_least(self, distances: Tensor) -> Tensor:
        return distances.clamp_min(_LEAST_SHARE * self.typical)


def _at_most(index: NeighborIndex, count: int, ids: Tensor | None) -> int:
    """How many neighbours can be asked for, when siblings are left out, a row itself among them."""
    most = len(index)
    if ids is not None:
        most -= max(index.siblings, 1)
    if most < 1 and index.id_window:
        raise NotEnoughReferenceError(
            "FusedDistance compares a row with rows whose ids differ from its own by more than "
            f"id_window={index.id_window}, and a single such window holds all {len(index)} rows of "
            "the reference; call fit or update with more, raise capacity or lower id_window."
        )
    if most < 1:
        raise NotEnoughReferenceError(
            "FusedDistance compares a row with rows of other ids, and the reference has only rows "
            "of one; call fit or update with more."
        )
    return min(count, most)
