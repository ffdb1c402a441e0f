"""Where the fresh rows come from: a dataset, a sampler or a batch sampler, as batches of ids.

An order of batches can be asked for by epoch and from any batch on. It knows no buffer.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from itertools import cycle, islice
from operator import index
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from raremix.errors import LoaderError, OptionError
from raremix.seeds import seeded_generator, uniforms

__all__ = ["BaseBatches", "GivenSampler", "SampledBatches", "SizedBatches", "base_batches"]

_REMEMBERED = 4096
"""Ids of a sampler that may serve as fillers."""


class BaseBatches(Protocol):
    """The batches of fresh ids of each epoch."""

    def batches(self, epoch: int, start: int, offset: int = 0) -> Iterator[list[int]]:
        """The batches of ids of an epoch, from number ``start`` on.

        The first ``offset`` rows of all ranks together went elsewhere before.
        """

    def fill(self, count: int, taken: Collection[int], *, seed: int) -> list[int]:
        """Ids besides the order, none of them taken if there are others.

        They are a function of the seed and of what ``batches`` gave in this epoch.
        """

    def rows_before(self, position: int, offset: int, ranks: int) -> int:
        """How many rows ``ranks`` ranks took until batch ``position``; -1 if nobody can tell."""

    @property
    def known_batch_size(self) -> int | None:
        """Rows of a full batch, if that is known."""

    @property
    def gives_once(self) -> bool:
        """Whether an epoch is known to give each id once, but for some that fill up the ranks."""

    @property
    def order(self) -> str:
        """What a state must fit: how the ids are ordered and cut."""

    def rows(self) -> int:
        """How many ids an epoch has on this rank; TypeError if that is not known."""

    def known_ids(self) -> int | None:
        """Ids lie in [0, this number); None if that is not known."""

    def keys_below(self) -> int | None:
        """Keys of a buffer that lie in [0, this number) can be drawn; None if that is not known."""


class SizedBatches:
    """All ids of a dataset in order or shuffled, split over the ranks.

    Ranks get equally many ids: as in torch's DistributedSampler, the first ids are given out again
    to fill up. The order of an epoch is a function of seed and epoch alone.
    """

    def __init__(
        self,
        source: Sized,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        ranks: Callable[[], tuple[int, int]],
    ) -> None:
        self._source = source
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._seed = seed
        self._ranks = ranks  # asked late: samplers are built before the process group

    def rows(self) -> int:
        """See ``BaseBatches``."""
        return -(-len(self._source) // self._ranks()[1])

    @property
    def gives_once(self) -> bool:
        """See ``BaseBatches``."""
        return True

    def known_ids(self) -> int | None:
        """See ``BaseBatches``."""
        return len(self._source)

    def keys_below(self) -> int | None:
        """See ``BaseBatches``."""
        # A dataset may give more than its ids, as FrameViews does: also regions of its frames.
        return int(getattr(self._source, "keys_below", len(self._source)))

    @property
    def known_batch_size(self) -> int | None:
        """See ``BaseBatches``."""
        return self._batch_size

    @property
    def order(self) -> str:
        """See ``BaseBatches``."""
        return ("shuffled" if self._shuffle else "in order") + _tail(self._drop_last)

    def rows_before(self, position: int, offset: int, ranks: int) -> int:
        """See ``BaseBatches``."""
        return min(offset + position * self._batch_size * ranks, len(self._source))

    def fill(self, count: int, taken: Collection[int], *, seed: int) -> list[int]:
        """See ``BaseBatches``."""
        total = len(self._source)
        drawn = (uniforms(seed, 4 * count + 16) * total).astype(np.int64).tolist()
        found = [key for key in dict.fromkeys(drawn) if key not in taken][:count]
        if len(found) < count:
            found = _fill_from(range(total), count, taken, seed)
        return found

    def batches(self, epoch: int, start: int, offset: int = 0) -> Iterator[list[int]]:
        """See ``BaseBatches``."""
        total = len(self._source)
        if self._shuffle:
            order = torch.randperm(
                total, generator=seeded_generator(self._seed, epoch), device="cpu"
            )
        else:
            order = torch.arange(total, device="cpu")
        rank, world = self._ranks()
        rows = -(-(total - offset) // world)
        own = order[(offset + torch.arange(rows, device="cpu") * world + rank) % total]
        width = self._batch_size
        for first in range(start * width, len(own), width):
            batch = own[first : first + width].tolist()
            if len(batch) == width or not self._drop_last:
                yield batch


class SampledBatches:
    """What a sampler of the user's yields: single ids, cut into batches, or batches already.

    The sampler shards for itself. To resume inside an epoch, it is iterated again and the batches
    already trained on are passed over, so its order must depend on its own seed and epoch.
    """

    def __init__(
        self,
        sampler: Iterable[int] | Iterable[list[int]],
        *,
        batch_size: int | None,
        drop_last: bool,
        fills: bool = False,
    ) -> None:
        self._sampler = sampler
        self._fills = fills
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)
        self._batch_size = batch_size
        self._drop_last = drop_last

    def rows(self) -> int:
        """See ``BaseBatches``."""
        if not isinstance(self._sampler, Sized):
            raise TypeError(
                f"BufferedMixSampler has no length, because its base {type(self._sampler).__name__} "
                "has none; the loader runs all the same."
            )
        return len(self._sampler) * (self._width() if self._batch_size is None else 1)

    @property
    def gives_once(self) -> bool:
        """See ``BaseBatches``."""
        return False

    def known_ids(self) -> int | None:
        """See ``BaseBatches``."""
        return None

    def keys_below(self) -> int | None:
        """See ``BaseBatches``."""
        return None

    def _width(self) -> int:
        width = getattr(self._sampler, "batch_size", None)
        if not isinstance(width, int):
            raise TypeError(
                f"BufferedMixSampler cannot count the rows of {type(self._sampler).__name__}, which "
                "has no batch_size; count its batches instead."
            )
        return width

    def batches(self, epoch: int, start: int, offset: int = 0) -> Iterator[list[int]]:
        """See ``BaseBatches``."""
        # A batch sampler often hides the sampler that has the epoch.
        for sampler in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)
        batches = self._grouped()
        return islice(self._remembered(batches) if self._fills else batches, start, None)

    def _remembered(self, batches: Iterator[list[int]]) -> Iterator[list[int]]:
        """The same batches, a step later: of the next one too the ids may serve as fillers.

        Nothing else may: a sampler can stand for a part of its dataset.
        """
        self._seen.clear()
        held: list[int] | None = None
        for batch in batches:
            self._seen.extend(batch)
            if held is not None:
                yield held
            held = batch
        if held is not None:
            yield held

    @property
    def known_batch_size(self) -> int | None:
        """See ``BaseBatches``."""
        if self._batch_size is not None:
            return self._batch_size
        width = getattr(self._sampler, "batch_size", None)
        return width if isinstance(width, int) else None

    @property
    def order(self) -> str:
        """See ``BaseBatches``."""
        return f"of {type(self._sampler).__name__}" + _tail(self._drop_last)

    def rows_before(self, position: int, offset: int, ranks: int) -> int:
        """See ``BaseBatches``."""
        return -1

    def fill(self, count: int, taken: Collection[int], *, seed: int) -> list[int]:
        """See ``BaseBatches``."""
        return _fill_from(list(dict.fromkeys(self._seen)), count, taken, seed)

    def _grouped(self) -> Iterator[list[int]]:
        if self._batch_size is None:
            for items in self._sampler:
                yield [self._as_id(item) for item in self._listed(items)]
            return
        batch: list[int] = []
        for item in self._sampler:
            batch.append(self._as_id(item))
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch and not self._drop_last:
            yield batch

    def _listed(self, items: object) -> Iterable[object]:
        if not isinstance(items, Iterable) or getattr(items, "ndim", 1) == 0:
            raise LoaderError(
                f"BufferedMixSampler expects batches of ids from {type(self._sampler).__name__}, "
                f"got {items!r}; pass the batch_size of the DataLoader if it yields single ids."
            )
        return items

    def _as_id(self, item: object) -> int:
        # Besides int, samplers yield numpy integers and tensors of no dimension.
        if isinstance(item, int) or getattr(item, "ndim", None) == 0:
            with suppress(TypeError):
                return index(item)  # type: ignore[arg-type]  # or it raises TypeError
        raise LoaderError(
            f"BufferedMixSampler expects whole numbers as ids from {type(self._sampler).__name__}, "
            f"got {item!r}; leave batch_size out if it yields batches."
        )


class GivenSampler(Sampler[Any]):
    """A loader's sampler that does not inherit from Sampler, such as a list of ids.

    Alone, a list would be taken for a dataset.
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        self.sampler = sampler  # under this name its set_epoch is found

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # without length it raises TypeError


def base_batches(
    base: object,
    *,
    batch_size: int | None,
    shuffle: bool,
    drop_last: bool,
    seed: int,
    ranks: Callable[[], tuple[int, int]],
    fills: bool = False,
) -> BaseBatches:
    """Understand what the user wants to mix into.

    Raises:
        LoaderError: If it yields no ids, or none can be made for it.
        OptionError: If a batch size is missing or out of range.
    """
    if isinstance(base, IterableDataset):
        raise LoaderError(
            f"BufferedMixSampler cannot mix into {type(base).__name__}, an IterableDataset: its "
            "samples have no ids to draw again. Use a map-style dataset, with __getitem__ and "
            "__len__."
        )
    if type(base) is BatchSampler:
        # What it does is done here as well, and then its sampler can be understood further.
        batch_size, drop_last, base = base.batch_size, base.drop_last, base.sampler
    batched = isinstance(base, BatchSampler) or _yields_lists(base)
    if batch_size is None and not batched and _yields_ids(base):
        raise OptionError(
            "BufferedMixSampler expects a batch_size, since its base yields single ids; pass the "
            "batch_size of the DataLoader."
        )
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"BufferedMixSampler expects batch_size of at least 1, got {batch_size}.")
    # A subclass may have an order of its own, so the types are compared exactly.
    if type(base) in (RandomSampler, SequentialSampler) and not _draws_freely(base):
        # Their order would come from the global generator; drawn from the seed it can be resumed.
        shuffle = isinstance(base, RandomSampler)
        base = base.data_source  # type: ignore[attr-defined]  # both samplers have one
    if _is_dataset(base):
        if not isinstance(base, Sized):
            raise LoaderError(
                f"BufferedMixSampler expects a dataset with a length, and {type(base).__name__} "
                "has no __len__; add one, or pass a sampler that yields its ids."
            )
        if len(base) == 0:
            raise LoaderError("BufferedMixSampler got an empty dataset; check where it looks.")
        assert batch_size is not None
        return SizedBatches(
            base,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            ranks=ranks,
        )
    if not isinstance(base, Iterable):
        raise LoaderError(
            "BufferedMixSampler expects a dataset, a sampler or a batch sampler, got "
            f"{type(base).__name__}; for a DataLoader use BufferedMixSampler.wrap(loader, buffer)."
        )
    return SampledBatches(
        base, batch_size=None if batched else batch_size, drop_last=drop_last, fills=fills
    )


def _tail(drop_last: bool) -> str:
    return ", without an incomplete batch" if drop_last else ""


def _fill_from(ids: Sequence[int], count: int, taken: Collection[int], seed: int) -> list[int]:
    """``count`` of the ids in a random order, those that are taken last and again if need be."""
    order = np.argsort(uniforms(seed, len(ids), start=2**32), kind="stable")
    mixed = [ids[place] for place in order.tolist()]
    mixed.sort(key=lambda key: key in taken)
    return list(islice(cycle(mixed), count))


def _draws_freely(sampler: object) -> bool:
    """Whether a RandomSampler does more than shuffle its dataset once."""
    if not isinstance(sampler, RandomSampler):
        return False
    return sampler.replacement or sampler.num_samples != len(sampler.data_source)


def _yields_ids(base: object) -> bool:
    """Whether it surely gives single ids; of other samplers, the first batch will tell."""
    if isinstance(base, (RandomSampler, SequentialSampler, DistributedSampler)):
        return True
    return _is_dataset(base)


def _is_dataset(base: object) -> bool:
    return not isinstance(base, Sampler) and hasattr(base, "__getitem__")


def _yields_lists(base: object) -> bool:
    """Whether a sampler of the user's own yields batches, as far as its attributes tell."""
    return isinstance(base, Sampler) and hasattr(base, "batch_size") and hasattr(base, "drop_last")
