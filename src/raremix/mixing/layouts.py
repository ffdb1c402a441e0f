"""Where the rows of a nested batch lie, and how whole rows are written, read and moved.

What one sample looks like says where its row is: every part of the batch is paired with the same
part of a sample. It knows no buffer and draws nothing.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raremix.errors import LoaderError

__all__ = ["Leaf", "Order", "fresh_rows", "rebuilt", "tensors"]

Order = Literal["view-major", "row-major"]
"""View v of row i lies at i + v * rows, or at i * views + v."""

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Leaf:
    """A part of a batch that holds rows: a tensor, or a list with one object a row.

    Attributes:
        path: The keys and places that lead to it.
        data: The tensor or list itself, not a copy; of a tuple, its items in a new list.
        width: How many rows the batch has.
        views: How many rows of ``data`` belong to each of them.
        order: How these lie, if there are several.
        is_tuple: Whether the batch has a tuple here, which cannot be written to.
    """

    path: Path
    data: Any
    width: int
    views: int = 1
    order: Order = "view-major"
    is_tuple: bool = False

    @property
    def part(self) -> Any:
        """What belongs into the batch: ``data``, or a tuple of it."""
        return tuple(self.data) if self.is_tuple else self.data

    def _at(self, rows: Tensor) -> Tensor:
        """(n * views,) places in ``data``, those of a row one after the other."""
        view = torch.arange(self.views, device="cpu")
        if self.order == "view-major":
            return (rows[:, None] + view * self.width).flatten()
        return (rows[:, None] * self.views + view).flatten()

    def read(self, rows: Tensor) -> Any:
        """Copies of some rows: (n, views, ...), or a list."""
        if isinstance(self.data, Tensor):
            at = self._at(rows).to(self.data.device)
            found = self.data.detach().index_select(0, at)
            return found.reshape(len(rows), self.views, *found.shape[1:])
        return [copy.deepcopy(self.data[row]) for row in rows.tolist()]

    def write(self, rows: Tensor, values: Any) -> None:
        """Overwrite rows in place, so that pinned memory stays pinned.

        Args:
            rows: (n,) places in the batch.
            values: What ``read`` would give, or a list of its n rows.
        """
        if not isinstance(self.data, Tensor):
            for row, value in zip(rows.tolist(), values, strict=True):
                self.data[row] = value
            return
        whole = values if isinstance(values, Tensor) else torch.stack(values)
        device = self.data.device
        with torch.no_grad():
            self.data.index_copy_(0, self._at(rows).to(device), whole.flatten(0, 1).to(device))

    def resized(self, width: int) -> "Leaf":
        """New memory of the same kind for another number of rows, with nothing written to it."""
        data: Any = [None] * width
        if isinstance(self.data, Tensor):
            shape = (width * self.views, *self.data.shape[1:])
            data = self.data.new_empty(shape, pin_memory=self.data.is_pinned())
        return replace(self, data=data, width=width)

    def extended(self, width: int) -> "Leaf":
        """A copy with more rows, of which those behind its own are still to be written."""
        every = torch.arange(self.width, device="cpu")
        longer = self.resized(width)
        longer.write(every, self.read(every))
        return longer


def fresh_rows(
    batch: object, samples: Sequence[object], *, width: int, order: Order, caller: str
) -> list[tuple[Leaf, list[Any]]]:
    """Pair each leaf of a batch with the rows that samples have for it.

    Args:
        batch: Tensors and lists, nested in lists, tuples and mappings.
        samples: At least one sample as the dataset yields it, before collating. ``...`` stands for a
            part that stays as it is.
        width: Rows of the batch.
        order: How a tensor that holds several views of each row is laid out.
        caller: The call to name in an error.

    Returns:
        Each leaf with a list of n tensors (views, ...) of its dtype, or of n objects.

    Raises:
        LoaderError: Naming the part of the batch that a sample does not fit.
    """
    pairing = _Pairing(width, order, caller)
    columns = [list(pairing.pairs(batch, sample, ())) for sample in samples]
    leaves = [leaf for leaf, _ in columns[0]]
    for column in columns:
        if [leaf.path for leaf, _ in column] != [leaf.path for leaf in leaves]:
            raise LoaderError(
                f"{caller} got samples that differ in which parts they leave as they are; let every "
                "one return ... in the same places."
            )
    rows = zip(*([value for _, value in column] for column in columns), strict=True)
    return [(leaf, list(values)) for leaf, values in zip(leaves, rows, strict=True)]


def rebuilt(batch: Any, parts: Mapping[Path, Any], *, path: Path = (), clone: bool = False) -> Any:
    """A batch of the same containers with some parts exchanged; ``clone`` copies the others too."""
    if path in parts:
        return parts[path]
    if isinstance(batch, Mapping):
        twin: Any = copy.copy(batch)
        for key, value in batch.items():
            twin[key] = rebuilt(value, parts, path=(*path, key), clone=clone)
        return twin
    if isinstance(batch, (list, tuple)):
        items = [
            rebuilt(value, parts, path=(*path, place), clone=clone)
            for place, value in enumerate(batch)
        ]
        if hasattr(batch, "_fields"):  # a named tuple
            return type(batch)(*items)
        return items if isinstance(batch, list) else tuple(items)
    if clone:
        return batch.clone() if isinstance(batch, Tensor) else copy.deepcopy(batch)
    return batch


def tensors(batch: object) -> Iterator[Tensor]:
    """The tensors of a nested batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors(value)


@dataclass(frozen=True)
class _Pairing:
    """Walks through a batch and a sample side by side."""

    width: int
    order: Order
    caller: str

    def pairs(self, batch: Any, sample: Any, path: Path) -> Iterator[tuple[Leaf, Any]]:
        if sample is ... or (batch is None and sample is None):
            return
        if isinstance(batch, Mapping):
            if not isinstance(sample, Mapping) or set(batch) != set(sample):
                has = sorted(map(str, sample)) if isinstance(sample, Mapping) else _named(sample)
                raise self._misfit(path, f"has the keys {sorted(map(str, batch))}", f"has {has}")
            for key, value in batch.items():
                yield from self.pairs(value, sample[key], (*path, key))
        elif isinstance(batch, Tensor):
            yield self._tensor(batch, sample, path)
        elif isinstance(batch, (list, tuple)) and isinstance(sample, (list, tuple)):
            if len(batch) != len(sample):
                raise self._misfit(path, f"has {len(batch)} parts", f"has {len(sample)}")
            for place, (value, part) in enumerate(zip(batch, sample, strict=True)):
                yield from self.pairs(value, part, (*path, place))
        elif isinstance(batch, (list, tuple)):
            yield self._objects(batch, sample, path)
        else:
            raise self._misfit(path, f"is {_named(batch)}, which has no rows", "is a row")

    def _objects(self, batch: Any, sample: Any, path: Path) -> tuple[Leaf, Any]:
        kinds = {type(each) for each in batch}
        if len(batch) != self.width or not isinstance(sample, tuple(kinds)):
            what = f"is a {type(batch).__name__} of {len(batch)} for {self.width} rows"
            raise self._misfit(path, what, f"is {_named(sample)}")
        if isinstance(batch, tuple):
            return Leaf(path, list(batch), self.width, is_tuple=True), sample
        return Leaf(path, batch, self.width), sample

    def _tensor(self, batch: Tensor, sample: Any, path: Path) -> tuple[Leaf, Tensor]:
        views = 1
        if isinstance(sample, (list, tuple)) and sample:
            parts = [self._row(part, batch, path) for part in sample]
            if len({part.shape for part in parts}) > 1:
                shapes = [tuple(part.shape) for part in parts]
                raise self._misfit(path, "is one tensor", f"has views of shapes {shapes}")
            row = torch.stack(parts)
            if batch.ndim == row.ndim:  # all views in the first dimension, not one behind it
                views = len(parts)
            else:
                row = row[None]
        else:
            row = self._row(sample, batch, path)[None]
        rows = "rows" if views == 1 else f"rows of {views} views"
        if batch.shape != (self.width * views, *row.shape[1:]):
            what = f"has shape {tuple(batch.shape)} for {self.width} {rows}"
            raise self._misfit(path, what, f"has shape {tuple(row.shape[1:])}")
        if batch.dtype != row.dtype:
            raise self._misfit(path, f"holds {batch.dtype}", f"holds {row.dtype}")
        if any(
            size > 1 and step == 0 for size, step in zip(batch.shape, batch.stride(), strict=True)
        ):
            raise self._misfit(
                path, "shows the same memory in several rows", "needs its own (.contiguous())"
            )
        return Leaf(path, batch, self.width, views, self.order), row

    def _row(self, part: Any, batch: Tensor, path: Path) -> Tensor:
        if isinstance(part, Tensor):
            return part.detach()
        if isinstance(part, (bool, int, float)):  # as weakly typed as in torch's arithmetic
            kind = torch.result_type(torch.empty(0, dtype=batch.dtype), part)
            return torch.tensor(part, dtype=kind, device="cpu")
        if isinstance(part, (np.ndarray, np.generic)):
            return torch.tensor(part, device="cpu")
        raise self._misfit(path, "is a tensor", f"is {_named(part)}")

    def _misfit(self, path: Path, what: str, sample: str) -> LoaderError:
        name = "batch" + "".join(f"[{key!r}]" for key in path)
        return LoaderError(
            f"{self.caller} cannot write a fresh row into {name}, which {what}, where the fresh sample "
            f"{sample}. Let transform, or sample=, return what the dataset yields for one "
            "row, with ... for parts that shall stay as they are; if the number of rows is wrong, "
            "pass rows=."
        )


def _named(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
