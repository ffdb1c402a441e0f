"""Entries as columns: place 0 to n - 1, kept without gaps.

It knows no policy and no time. The same columns serve what is held now and what was held before.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["Array", "Columns"]

Array = np.ndarray[Any, np.dtype[Any]]

_FIRST_ROOM = 16


class Columns:
    """Columns of numbers by name, one row an entry; the last row moves into a gap that arises.

    Args:
        dtypes: The dtype of each column; "key" is one of them, and no key comes twice.

    Attributes:
        place: Where the row of each key is.
        came: How many rows were ever appended.
        replayed: How many replays had come back with feedback.
        key_range: No key was ever less or more.
    """

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self._arrays: dict[str, Array] = {
            name: np.empty(_FIRST_ROOM, dtype) for name, dtype in dtypes.items()
        }
        self.place: dict[int, int] = {}
        self.came = self.replayed = 0
        self.key_range = (0, 0)

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, name: str) -> Array:
        """The rows of a column, as a view: what is written to it is kept."""
        return self._arrays[name][: len(self.place)]

    def append(self, values: Mapping[str, Any]) -> int:
        """Add a row and return its place; columns without a value get 0."""
        place, key = len(self.place), int(values["key"])
        arrays = self._arrays
        if place == len(arrays["key"]):
            for name, array in arrays.items():
                arrays[name] = np.concatenate([array, np.empty_like(array)])
        for name, array in arrays.items():
            array[place] = values.get(name, 0)
        self.place[key] = place
        self.came += 1
        least, most = self.key_range
        if not least <= key <= most:
            self.key_range = (min(least, key), max(most, key))
        return place

    def exchange(self, places: Array, values: Mapping[str, Array]) -> Array:
        """Let new rows take these places and, as many as are left, those after the last one.

        As ``append`` of each, and ``remove`` of the places in this order once there is no more
        room. Returns where the new rows are.
        """
        held, more = len(self.place), len(values["key"]) - len(places)
        arrays = self._arrays
        for key in arrays["key"][places].tolist():
            del self.place[key]
        at = np.concatenate([np.arange(held, held + more), places])
        for name, array in arrays.items():
            if held + more > len(array):
                room = np.empty(max(len(array), more), array.dtype)
                array = arrays[name] = np.concatenate([array, room])
            array[at] = values.get(name, 0)
        keys = values["key"].tolist()
        self.place.update(zip(keys, at.tolist(), strict=True))
        self.came += len(keys)
        self.key_range = (min(self.key_range[0], *keys), max(self.key_range[1], *keys))
        return at

    def remove(self, place: int) -> int:
        """Take a row out; the last one moves there. Returns where the last one was."""
        last = len(self.place) - 1
        keys = self._arrays["key"]
        del self.place[int(keys[place])]
        if place != last:
            self.place[int(keys[last])] = place
            for array in self._arrays.values():
                array[place] = array[last]
        return last

    def row(self, place: int, names: Iterable[str]) -> dict[str, Any]:
        """Some columns of one row, as plain numbers."""
        return {name: self._arrays[name][place].item() for name in names}

    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._arrays)

    def copy(self) -> "Columns":
        """Columns of their own, equal to these."""
        twin = Columns({})
        twin._arrays = {name: array.copy() for name, array in self._arrays.items()}
        twin.place, twin.came = self.place.copy(), self.came
        twin.key_range, twin.replayed = self.key_range, self.replayed
        return twin

    def taken(self) -> dict[str, Array]:
        """Copies of all columns."""
        return {name: self[name].copy() for name in self._arrays}

    def fill(self, columns: Mapping[str, Array], came: int, replayed: int) -> None:
        """Hold these rows instead, in these places, as if these counts were reached."""
        self.came, self.replayed = came, replayed
        for name, array in self._arrays.items():
            given = np.asarray(columns[name]).astype(array.dtype)
            spare = np.empty(_FIRST_ROOM, array.dtype)
            self._arrays[name] = np.concatenate([given, spare])
        keys = columns["key"].tolist()
        self.place = {key: place for place, key in enumerate(keys)}
        self.key_range = (min(keys, default=0), max(keys, default=0))
