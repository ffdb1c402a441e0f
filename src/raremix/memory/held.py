"""What a policy sees of a buffer: the entries now held, their features, and what it keeps of its own.

It knows which changes have to be written down, and to whom to tell them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raremix.memory.columns import Array, Columns
from raremix.memory.timeline import Change

__all__ = ["BASE_COLUMNS", "Held"]

BASE_COLUMNS = {
    "key": "int64",
    "entry": "int64",
    "score": "float64",
    "born": "int64",
    "uses": "int64",
    "slot": "int64",  # where its pixels lie; -1 for none
}


class Held:
    """The entries of a buffer.

    Attributes:
        rows: Columns "key", "entry" (number of the admission, later ones are larger), "score",
            "born" (step of admission), "uses" (replays that came back), and the policy's own.
        features: Float32 of shape (n, dim), unit rows; None if the buffer was given none.
        shared: Arrays of the policy's own, kept and saved with the buffer.
        capacity: The most entries the buffer may hold.
        limit: How many it may hold now: the capacity, or less if the bytes are spent.
        offers: How many samples have been offered for admission so far, this one included.
    """

    def __init__(self, capacity: int, columns: Mapping[str, str], drawn_by: Sequence[str]) -> None:
        self.rows = Columns({**BASE_COLUMNS, **columns})
        self.shared: dict[str, Array] = {}
        self.capacity = self.limit = capacity
        self.offers = 0
        self.record: Callable[[Change], None] | None = None  # nobody listens
        self.drawn_by = tuple(drawn_by)
        self._features: Array | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def features(self) -> Array | None:
        """See above; a view."""
        return None if self._features is None else self._features[: len(self.rows)]

    def append(self, values: dict[str, Any], feature: Array | None) -> int:
        """Add an entry and return its place."""
        place = self.rows.append(values)
        if feature is not None:
            self._room_for_features(len(feature))[place] = feature
        return place

    def _room_for_features(self, dim: int) -> Array:
        """The array of features, with a row for every place."""
        if self._features is None:
            self._features = np.empty((16, dim), np.float32)
        missing = len(self.rows) - len(self._features)
        if missing > 0:
            room = np.empty((max(missing, len(self._features)), dim), np.float32)
            self._features = np.concatenate([self._features, room])
        return self._features

    def announce(self, place: int) -> None:
        """Let draws know of a new entry, once the policy has filled its columns."""
        if self.record is not None:
            self.record(("in", self.rows.row(place, self.drawn_by), None, None))

    def remove(self, place: int) -> None:
        """Take an entry out; the last one moves into its place."""
        if self.record is not None:
            self.record(("out", int(self.rows["key"][place]), None, None))
        last = self.rows.remove(place)
        if self._features is not None and place != last:
            self._features[place] = self._features[last]

    def exchange(self, places: Array, values: Mapping[str, Array], features: Array | None) -> None:
        """Let new entries take these places, and more after the last one; see ``Columns``.

        For policies that have no columns of their own.
        """
        gone = self.rows["key"][places].tolist()
        at = self.rows.exchange(places, values)
        if features is not None:
            self._room_for_features(features.shape[1])[at] = features
        if self.record is not None:
            first = len(at) - len(gone)  # who came when all places were taken made one leave
            for row, place in enumerate(at.tolist()):
                self.announce(place)
                if row >= first:
                    self.record(("out", gone[row - first], None, None))

    def set(self, name: str, places: Sequence[int] | Array, values: Sequence[Any] | Array) -> None:
        """Change a column of some entries, also for the draws to come."""
        self.rows[name][places] = values
        if self.record is not None and name in self.drawn_by:
            keys = self.rows["key"][places].tolist()
            self.record(("set", name, keys, np.asarray(values).tolist()))

    def set_one(self, name: str, place: int, value: float) -> None:
        """As ``set``, of one entry, which is most of what a batch of replays brings."""
        if self.record is not None and name in self.drawn_by:
            self.set(name, [place], [value])
        else:
            self.rows[name][place] = value

    def set_feature(self, place: int, feature: Array) -> None:
        """Take a newer feature of an entry."""
        assert self._features is not None
        self._features[place] = feature

    def fill_features(self, features: Array | None) -> None:
        """Hold these features instead, in the order of the rows."""
        if features is None:
            self._features = None
        else:
            room = np.empty((16, features.shape[1]), np.float32)
            self._features = np.concatenate([features.astype(np.float32), room])
