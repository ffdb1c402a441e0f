"""What a bank knows of its rows, and which of them become one.

It sees distances and moments and no embeddings: a row is a place, and the bank moves what lies there.
"""

import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raremix.protocols import State

__all__ = ["NEAREST", "Ledger"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NEAREST = 8
"""So many near rows are known of each: the next takes its place when the nearest becomes another's."""

# A pair counts as this much farther apart, the more regions the lesser of its rows stands for, since
# so many would be measured from elsewhere afterwards: up to 8 regions, and a factor of sqrt(2). In
# high dimensions, distances shrink about like a low power of the density; this one was measured, see
# tests/benchmarks/bench_regions.py.
_PRICE = (np.arange(9).clip(min=1) ** (1 / 6)).tolist()

_EARLIEST, _LATEST, _CLOSEST = range(3)
"""Of all the regions that a row has taken in, those that are remembered one by one."""


class Ledger:
    """Moments, counts and near rows of each row, and the merging of rows.

    Args:
        id_window: Moments that differ by at most so much are near-duplicates.
    """

    def __init__(self, id_window: int) -> None:
        self.id_window = id_window
        self.count = 0
        self.radius = 0.0
        self._next = 0
        # The moment of the row itself, and the last that was counted as another frame.
        self.moment: Integers = np.empty(0, np.int64)
        self._counted: Integers = np.empty(0, np.int64)
        self.frames: Integers = np.empty(0, np.int64)
        self.regions: Integers = np.empty(0, np.int64)
        # No region that a row stands for lies farther from it.
        self.reach: Floats = np.empty(0, np.float64)
        # Three that were taken in, each with a bound on its distance; infinite where there is none.
        self._seen_moment: Integers = np.empty((0, 3), np.int64)
        self._seen_distance: Floats = np.empty((0, 3), np.float64)
        # A place is given to row after row; its serial number tells which one is there, -1 for none.
        self._serial: Integers = np.empty(0, np.int64)
        self._near_place: Integers = np.empty((0, NEAREST), np.int64)
        self._near_serial: Integers = np.empty((0, NEAREST), np.int64)
        self._near_distance: Floats = np.empty((0, NEAREST), np.float64)

    _COLUMNS = (
        *("moment", "_counted", "frames", "regions", "reach", "_seen_moment", "_seen_distance"),
        *("_serial", "_near_place", "_near_serial", "_near_distance"),
    )

    def append(self, moments: Integers) -> None:
        """Put a row of each moment behind those there are; tell of its near rows next."""
        new = slice(self.count, self.count + len(moments))
        self._make_room(new.stop)
        self.moment[new] = self._counted[new] = moments
        self.frames[new] = self.regions[new] = 1
        self.reach[new] = 0.0
        self._seen_moment[new] = 0
        self._seen_distance[new] = np.inf
        self._serial[new] = np.arange(self._next, self._next + len(moments))
        self._near_place[new], self._near_serial[new], self._near_distance[new] = 0, -1, np.inf
        self._next += len(moments)
        self.count = new.stop

    def _make_room(self, wanted: int) -> None:
        held = len(self.moment)
        if wanted <= held:
            return
        room = max(wanted, 2 * held)
        for name in self._COLUMNS:
            column = getattr(self, name)
            longer = np.empty((room, *column.shape[1:]), column.dtype)
            longer[:held] = column
            setattr(self, name, longer)

    def tell_near(self, rows: Integers, distances: Floats, places: Integers) -> None:
        """Tell (n, any number) distances to near rows, and their places, of the rows at (n,) places.

        The nearest are kept; an infinite distance is that to no row.
        """
        order = distances.argsort(axis=1, kind="stable")[:, :NEAREST]
        told = order.shape[1]
        distances = np.take_along_axis(distances, order, axis=1)
        places = np.take_along_axis(places, order, axis=1)
        self._near_distance[rows, :told] = distances
        self._near_place[rows, :told] = places
        self._near_serial[rows, :told] = np.where(distances < np.inf, self._serial[places], -1)

    def there(self) -> Integers:
        """The places that hold a row."""
        return np.flatnonzero(self._serial[: self.count] >= 0)

    def lonely(self) -> Integers:
        """The places of rows all of whose near rows are gone."""
        return np.flatnonzero(~self._is_near(slice(0, self.count)).any(axis=1))

    def _is_near(self, rows: slice) -> Flags:
        """(n, NEAREST): which near rows are still there."""
        serial = self._near_serial[rows]
        is_near: Flags = (serial >= 0) & (self._serial[self._near_place[rows]] == serial)
        return is_near

    def merge(self, most: int) -> bool:
        """Make one of the two nearest rows, again and again, until ``most`` are left.

        Returns:
            False if there are more, and no near row of any is left; tell of them anew.
        """
        excess = len(self.there()) - most
        while excess > 0:
            merged = self._merge_some(excess)
            if not merged:
                return False
            excess -= merged
        return True

    def _merge_some(self, wanted: int) -> int:
        """Merge the cheapest pairs; fewer than wanted where one beyond those looked at may be next."""
        prices = self._prices()
        looked_at = min(4 * wanted + 64, len(prices))
        rows = np.argpartition(prices, looked_at - 1)[:looked_at]
        most = float(prices[rows].max())
        # Prices only rise while rows merge, so the least of the heap is right or can be put right.
        heap = list(zip(prices[rows].tolist(), rows.tolist(), strict=True))
        heapq.heapify(heap)
        merged = 0
        while heap and merged < wanted:
            price, row = heapq.heappop(heap)
            if self._serial[row] < 0:
                continue
            other, distance = self._nearest(row)
            now = self._price(row, other, distance)
            if now > price:
                if now <= most and now < math.inf:
                    heapq.heappush(heap, (now, row))
                continue
            if now == math.inf:
                break
            if self._merge(row, other, distance) == row:
                heapq.heappush(heap, (price, row))
            merged += 1
        return merged

    def _prices(self) -> Floats:
        is_near = self._is_near(slice(0, self.count))
        rows, first = np.arange(self.count), is_near.argmax(axis=1)
        is_some = is_near[rows, first] & (self._serial[: self.count] >= 0)
        other = np.where(is_some, self._near_place[rows, first], 0)
        fewer = np.minimum(self.regions[rows], self.regions[other]).clip(max=len(_PRICE) - 1)
        prices: Floats = np.where(
            is_some, self._near_distance[rows, first] * np.array(_PRICE)[fewer], np.inf
        )
        return prices

    def _nearest(self, row: int) -> tuple[int, float]:
        """The nearest row that is still there, and its distance; infinite where none is."""
        places, serials = self._near_place[row].tolist(), self._near_serial[row].tolist()
        for at, (place, serial) in enumerate(zip(places, serials, strict=True)):
            if serial >= 0 and self._serial[place] == serial:
                return place, float(self._near_distance[row, at])
        return row, math.inf

    def _price(self, row: int, other: int, distance: float) -> float:
        fewer = min(int(self.regions[row]), int(self.regions[other]), len(_PRICE) - 1)
        return float(distance * _PRICE[fewer])

    def _merge(self, row: int, other: int, distance: float) -> int:
        """Make one of two rows; return which stays."""
        stays, goes = row, other
        # Who stands for more stays, so that fewer are measured from elsewhere; of equals, the elder.
        more = int(self.regions[other]) - int(self.regions[row])
        if more > 0 or (more == 0 and self._serial[other] < self._serial[row]):
            stays, goes = other, row
        self.frames[stays], self._counted[stays] = self._joint_frames(stays, goes)
        self._note(stays, int(self.moment[goes]), distance)
        if self.regions[goes] > 1:
            for moment, apart in zip(
                self._seen_moment[goes].tolist(), self._seen_distance[goes].tolist(), strict=True
            ):
                if apart < math.inf:
                    self._note(stays, moment, distance + apart)
        self.regions[stays] += self.regions[goes]
        self.reach[stays] = max(self.reach[stays], distance + self.reach[goes])
        self.radius = max(self.radius, distance)
        self._serial[goes] = -1
        return stays

    def _joint_frames(self, one: int, two: int) -> tuple[int, int]:
        """How many frames two rows stand for together, and the last that was counted.

        Two moments of each are known. Of other frames only the number is, and they may be the same.
        """
        apart = [int(self.moment[one])]
        counts = int(self.frames[one]), int(self.frames[two])
        named = [int(self.moment[two])]
        named += [int(self._counted[row]) for row in (one, two) if self.frames[row] > 1]
        for moment in sorted(named):
            if all(abs(moment - known) > self.id_window for known in apart):
                apart.append(moment)
        others = max(counts) - min(max(counts), 2)
        return max(len(apart) + others, *counts), max(apart)

    def _note(self, row: int, moment: int, distance: float) -> None:
        """Remember a region that was taken in, if it is the earliest, the latest or the closest."""
        moments, distances = self._seen_moment[row], self._seen_distance[row]
        earliest, latest, _ = moments.tolist()
        known = distances.tolist()
        if known[_EARLIEST] == math.inf or (moment, distance) < (earliest, known[_EARLIEST]):
            moments[_EARLIEST], distances[_EARLIEST] = moment, distance
        if known[_LATEST] == math.inf or (-moment, distance) < (-latest, known[_LATEST]):
            moments[_LATEST], distances[_LATEST] = moment, distance
        # Beyond two windows it is another moment for every region that the row is no neighbour of.
        if distance < known[_CLOSEST] and (
            abs(moment - int(self.moment[row])) > 2 * self.id_window
        ):
            moments[_CLOSEST], distances[_CLOSEST] = moment, distance

    def close_gaps(self) -> tuple[Integers, Integers]:
        """Move the last rows to the places of those that are gone.

        Returns:
            Places now taken, and where their rows were before; both (n,).
        """
        is_there = self._serial[: self.count] >= 0
        left = int(is_there.sum())
        holes = np.flatnonzero(~is_there[:left])
        movers = left + np.flatnonzero(is_there[left:])
        for name in self._COLUMNS:
            column = getattr(self, name)
            column[holes] = column[movers]
        self._serial[left : self.count] = -1
        # Near rows that have moved are followed; of those that are gone nothing is left to follow.
        moved = np.zeros(self.count - left, np.int64)
        moved[movers - left] = holes
        near = self._near_place[:left]
        is_beyond = near >= left
        near[is_beyond] = moved[near[is_beyond] - left]
        self.count = left
        return holes, movers

    def alone(self, moments: Integers) -> Flags:
        """(n,): whether nothing was seen that is another moment than this one."""
        seen = self._seen_moment[: self.count][self._seen_distance[: self.count] < np.inf]
        every = np.concatenate([self.moment[: self.count], seen])
        # All lie within the window if the first and the last do.
        return self._within(every.min(), moments) & self._within(every.max(), moments)

    def reached(
        self, distances: Floats, places: Integers, moments: Integers, frames: int
    ) -> tuple[Floats, Flags]:
        """At which distance so many other frames are reached.

        Args:
            distances: (n, m) to the nearest rows, nearest first.
            places: (n, m) of those rows.
            moments: (n,) of who asks.
            frames: How many, at least 1.

        Returns:
            (n,) distances, infinite where there is no other frame, and that of the farthest where
            there are too few; and (n,) whether no row beyond the m could change it.
        """
        is_own = self._within(self.moment[places], moments[:, None])
        # What a row of one's own moment has taken in from others lies no farther than this.
        own = np.nonzero(is_own)
        seen, apart = self._seen_moment[places[own]], self._seen_distance[places[own]].copy()
        apart[self._within(seen, moments[own[0], None])] = np.inf
        closest = apart.argmin(axis=1)
        lies = distances.copy()
        lies[own] += apart[np.arange(len(apart)), closest]
        if frames == 1:
            values = lies.min(axis=1)
            is_reached = values < np.inf
        else:
            named = self.moment[places]
            named[own] = seen[np.arange(len(seen)), closest]
            values, is_reached = self._count_frames(lies, places, named, is_own, moments, frames)
        is_sure = is_reached & (values <= distances[:, -1])
        if places.shape[1] == self.count:
            is_sure[:] = True
        return values, is_sure

    def _count_frames(
        self,
        lies: Floats,
        places: Integers,
        named: Integers,
        is_own: Flags,
        moments: Integers,
        frames: int,
    ) -> tuple[Floats, Flags]:
        """``reached`` for several frames, each of which counts once however many rows are of it.

        Of a row two moments are known: one by name, and the last that was counted. Of the other
        frames it stands for only the number is, and those of several rows are taken for the same.
        """
        # Of frames equally far away, the order of their moments lets the most of them count.
        order = np.lexsort((named, lies), axis=1)
        lies = np.take_along_axis(lies, order, axis=1)
        places = np.take_along_axis(places, order, axis=1)
        named = np.take_along_axis(named, order, axis=1)
        is_own = np.take_along_axis(is_own, order, axis=1)
        counted, stands = self._counted[places], self.frames[places]
        has_counted = (stands > 1) & ~(is_own & self._within(counted, moments[:, None]))
        names = 1 + (has_counted & ~self._within(named, counted))
        others = (stands - is_own - names).clip(min=0)
        known = np.zeros((len(lies), frames), np.int64)
        filled, unnamed = np.zeros(len(lies), np.int64), np.zeros(len(lies), np.int64)
        values, is_reached = np.full(len(lies), np.inf), np.zeros(len(lies), np.bool_)
        for at in range(lies.shape[1]):
            is_open = ~is_reached & (lies[:, at] < np.inf)
            if not is_open.any():
                break
            before = filled + unnamed
            for moment, is_there in ((named[:, at], True), (counted[:, at], has_counted[:, at])):
                is_known = self._within(known, moment[:, None]) & (
                    np.arange(frames) < filled[:, None]
                )
                new = is_open & is_there & ~is_known.any(axis=1) & (filled < frames)
                known[new, filled[new]] = moment[new]
                filled[new] += 1
            unnamed = np.where(is_open, np.maximum(unnamed, others[:, at]), unnamed)
            values = np.where(filled + unnamed > before, lies[:, at], values)
            is_reached |= filled + unnamed >= frames
        return values, is_reached

    def _within(self, moments: Integers | np.int64, around: Integers) -> Flags:
        """Whether moments are near-duplicates, also near the ends of int64."""
        ends, window = np.iinfo(np.int64), self.id_window
        low = np.maximum(around, ends.min + window) - window
        high = np.minimum(around, ends.max - window) + window
        is_within: Flags = (moments >= low) & (moments <= high)
        return is_within

    def state_dict(self) -> State:
        """Everything but the window."""
        columns = {
            name.strip("_"): torch.from_numpy(getattr(self, name)[: self.count].copy())
            for name in self._COLUMNS
        }
        return {"count": self.count, "radius": self.radius, "next": self._next, **columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.count, self.radius, self._next = state["count"], state["radius"], state["next"]
        for name in self._COLUMNS:
            setattr(self, name, state[name.strip("_")].cpu().numpy().copy())
