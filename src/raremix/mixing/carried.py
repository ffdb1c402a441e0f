"""Rows that gave way to replays, kept until there are enough of them for a batch of their own.

It knows no buffer; rows come in and go out in the order in which they gave way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raremix.errors import LoaderError
from raremix.mixing.layouts import Leaf, rebuilt
from raremix.protocols import State
from raremix.state import open_state, sealed_state

__all__ = ["CarriedRows"]

_KEYS = ("width", "ids", "template", "paths", "views", "order", "rows")


class CarriedRows:
    """A queue of rows, copied out of their batches.

    Attributes:
        width: Rows of a batch made of them: as many as the first batch had.
    """

    def __init__(self) -> None:
        self.width = 0
        self._ids: list[int] = []
        # Leaves that say what a batch looks like; for each there is a tensor of rows or a list.
        self._leaves: list[Leaf] = []
        self._rows: list[Any] = []
        self._template: Any = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def is_due(self) -> bool:
        """Whether a whole batch can be made."""
        return 0 < self.width <= len(self)

    def take(self, batch: object, leaves: Sequence[Leaf], places: Tensor, ids: Tensor) -> None:
        """Copy the rows at ``places``, with the (batch,) ids, before they are overwritten.

        Raises:
            LoaderError: If the batch is nested in other containers than lists, tuples and dicts,
                or has other leaves than those before.
        """
        if self._leaves and [each.path for each in self._leaves] != [each.path for each in leaves]:
            raise LoaderError(
                'CropMixer.wrap with mode="stretch" expects batches that are all nested alike, got one '
                "with other parts than before; let the collate function return the same structure "
                "for every batch."
            )
        _check_plain(batch)
        # One row, of which only the kind of memory counts; what has no rows comes along as it is.
        self._leaves = [leaf.resized(1) for leaf in leaves]
        self._template = rebuilt(batch, {leaf.path: leaf.part for leaf in self._leaves}, clone=True)
        taken = [leaf.read(places) for leaf in leaves]
        if self._rows:
            taken = [_joined(*pair) for pair in zip(self._rows, taken, strict=True)]
        self._rows = taken
        self._ids += ids[places].tolist()

    def pop(self) -> tuple[Any, Tensor]:
        """A batch of the first ``width`` rows, in new memory, and their ids."""
        count = self.width
        parts = {}
        for leaf, rows in zip(self._leaves, self._rows, strict=True):
            whole = leaf.resized(count)
            whole.write(torch.arange(count, device="cpu"), rows[:count])
            parts[leaf.path] = whole.part
        ids = torch.tensor(self._ids[:count], dtype=torch.int64, device="cpu")
        self._ids = self._ids[count:]
        self._rows = [
            rows[count:].clone() if isinstance(rows, Tensor) else rows[count:]
            for rows in self._rows
        ]
        return rebuilt(self._template, parts, clone=True), ids

    def state_dict(self) -> State:
        """A deep copy; it holds the rows themselves."""
        content: State = {
            "width": self.width,
            "ids": list(self._ids),
            "template": rebuilt(self._template, {}, clone=True),
            "paths": [list(leaf.path) for leaf in self._leaves],
            "views": [leaf.views for leaf in self._leaves],
            "order": [leaf.order for leaf in self._leaves],
            "rows": rebuilt(self._rows, {}, clone=True),
        }
        return sealed_state("CarriedRows", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what was held when the state was saved."""
        content = open_state(state, kind="CarriedRows", version=1, keys=_KEYS)
        self.width, self._ids = content["width"], list(content["ids"])
        self._template = rebuilt(content["template"], {}, clone=True)
        self._rows = rebuilt(content["rows"], {}, clone=True)
        self._leaves = []
        for path, views, order in zip(
            content["paths"], content["views"], content["order"], strict=True
        ):
            part = self._template
            for key in path:
                part = part[key]
            is_tuple = isinstance(part, tuple)
            data = list(part) if is_tuple else part
            self._leaves.append(Leaf(tuple(path), data, 1, views, order, is_tuple))


def _joined(earlier: Any, later: Any) -> Any:
    if isinstance(earlier, Tensor):
        return torch.cat([earlier, later])
    return [*earlier, *later]


def _check_plain(batch: object) -> None:
    # Others could not be saved in a state that loads with weights_only=True.
    if type(batch) in (list, tuple, dict):
        parts: Any = batch.values() if isinstance(batch, dict) else batch
        for part in parts:
            _check_plain(part)
    elif isinstance(batch, (Mapping, list, tuple)):
        raise LoaderError(
            'CropMixer.wrap with mode="stretch" expects batches of plain lists, tuples and dicts, got '
            f"{type(batch).__name__}; let the collate function return one of these."
        )
