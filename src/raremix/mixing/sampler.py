"""Batches of ids in which rows of the base order give way to rare samples.

A sampler decides ahead of training: loader workers prefetch. So draw number j reads the buffer as
it was after step j - lag, with a generator of its own. The stream is then a function of seed and
feedback, not of how far ahead the workers run, and it can be resumed anywhere.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from raremix import distributed
from raremix.errors import LagError, LoaderError, OptionError
from raremix.mixing.base import BaseBatches, base_batches
from raremix.options import check_count, check_number
from raremix.protocols import ReplaySource, State
from raremix.seeds import derive_seed, seeded_generator
from raremix.state import check_settings, open_state, sealed_state

if TYPE_CHECKING:
    from raremix.mixing.loader import MixedLoader

__all__ = ["DEFAULT_LAG", "Batch", "BufferedMixSampler", "DrawnId"]

# Enough for 15 workers that prefetch two batches each; a smaller lag listens sooner.
DEFAULT_LAG = 32

_BatchT = TypeVar("_BatchT")


@dataclass(frozen=True)
class Batch:
    """The rows of one delivered batch.

    Attributes:
        step: How many batches were delivered before it, over all epochs.
        ids: (batch,) int64, each row's place in the dataset.
        is_replay: (batch,) bool, true where the row was mixed in from the buffer.
        entry: (batch,) int64, the buffer's number of the entry a replayed row was drawn from; -1 for
            the others.
        probability: (batch,) float32, the chance that this draw had of taking the entry, of a
            replayed row; 1 for the others.
        age: (batch,) int64, steps the entry had been held, as far as the draw could see; 0 for the
            others.
    """

    step: int
    ids: Tensor
    is_replay: Tensor
    entry: Tensor
    probability: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class DrawnId(int):
    """An id that remembers the draw it came from, on its way to a dataset in a worker.

    A dataset may seed its augmentation by ``(seed, id.draw, id)``: two draws of one sample then
    differ, and yet every run is the same. Everywhere else it is a plain integer.

    Attributes:
        draw: Number of the batch it was drawn for, different on every rank.
    """

    draw: int

    def __new__(cls, value: int, draw: int) -> "DrawnId":
        """Make an id that carries its draw."""
        self = super().__new__(cls, value)
        self.draw = draw
        return self

    def __reduce__(self) -> tuple[type["DrawnId"], tuple[int, int]]:
        return DrawnId, (int(self), self.draw)


class BufferedMixSampler(DistributedSampler[int]):
    """Yields the ids of a base order, with a share of each batch replaced by ids from a buffer.

    The width and the number of batches never depend on the buffer: while it holds too little, base
    rows stay where they are. No id comes twice in a batch.

    ``wrap`` puts it into an existing DataLoader. To build the loader yourself, pass it as
    ``DataLoader(dataset, batch_size=b, sampler=mix)`` and call ``mix.deliver()`` once for every
    batch that you get.

    Args:
        base: What to mix into: a map-style dataset, a sampler of ids (which shards for itself under
            torch.distributed), or a batch sampler.
        buffer: The buffer of rare ids.
        batch_size: Rows of a batch, the same as the loader's; None if ``base`` yields batches.
        replay: The share of each batch taken from the buffer, in [0, 1); rounded to whole rows, at
            least one row and at most all but one. 0 turns mixing off.
        shuffle: Whether to shuffle a dataset given as ``base``.
        drop_last: Whether to leave out a last batch that is not full.
        seed: Seed of the order and of the draws.
        lag: A draw reads the buffer as it was this many steps earlier. At least one more than
            the batches that the loader draws ahead: num_workers * prefetch_factor.
        num_replicas: How many processes share the dataset; asked of torch.distributed when needed
            if not given.
        rank: This process's place among them; likewise.

    Example:
        >>> from raremix import RareMemoryBuffer
        >>> mix = BufferedMixSampler(range(10), RareMemoryBuffer(4), batch_size=5, replay=0.2)
        >>> sorted(mix)
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        base: object,
        buffer: ReplaySource,
        *,
        batch_size: int | None = None,
        replay: float = 0.125,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        lag: int = DEFAULT_LAG,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        # DistributedSampler is inherited so that trainers recognise a sampler that shards for
        # itself; its own constructor would ask for the process group, which may not exist yet.
        caller = "BufferedMixSampler"
        replay = check_number(caller, "replay", replay, least=0.0, below=1.0)
        lag = check_count(caller, "lag", lag, least=1)
        if replay > 0 and batch_size == 1:
            raise OptionError(
                "BufferedMixSampler cannot replay in batches of one row; raise batch_size, or set "
                "replay=0."
            )
        if num_replicas is not None and not 0 <= (rank or 0) < num_replicas:
            raise OptionError(
                f"BufferedMixSampler expects a rank in [0, {num_replicas}), got {rank} of "
                f"num_replicas={num_replicas}."
            )
        if not isinstance(buffer, ReplaySource):
            raise OptionError(
                f"BufferedMixSampler expects a buffer such as RareMemoryBuffer(1024), got {buffer!r}."
            )
        self.buffer = buffer
        self.batch_size = batch_size
        self.replay = replay
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.lag = lag
        self.epoch = 0
        self._replicas_given = num_replicas
        self._rank_given = rank
        self._delivered = 0  # batches delivered over all epochs
        self._position = 0  # batches delivered in this epoch
        self._in_flight: deque[Batch] = deque()
        self._exhausted = False
        self._resumed = False  # loaded, and nothing delivered since
        self._chosen = False  # set_epoch was called for the next iteration
        self._iteration = 0
        self._base: BaseBatches = base_batches(
            base,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            ranks=lambda: (self.rank, self.num_replicas),
        )
        buffer.attach(lag)

    @classmethod
    def wrap(
        cls,
        loader: "DataLoader[_BatchT]",
        buffer: ReplaySource,
        *,
        replay: float = 0.125,
        seed: int = 0,
        lag: int = DEFAULT_LAG,
        prefetched: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> "MixedLoader[_BatchT]":
        """Make a loader like this one whose batches mix in samples from the buffer.

        The new loader has the dataset, workers, collate function and all other settings of
        ``loader``, the same length and the same batch width. After each batch it gives,
        ``loader.batch`` says which rows it holds.

        Args:
            loader: A DataLoader over a map-style dataset. If it shuffles, the order is drawn from
                ``seed``; a sampler of its own is kept.
            buffer: The buffer of rare ids.
            replay: The share of each batch taken from the buffer, in [0, 1); rounded to whole
                rows, at least one: of four rows, one is the least. 0 turns mixing off.
            seed: Seed of the order and of the draws.
            lag: A draw reads the buffer as it was this many steps earlier; at least
                num_workers * prefetch_factor + 1.
            prefetched: Whether something around the new loader takes each batch one step before
                it gives it on, as timm's PrefetchLoader does. ``loader.batch`` then names the rows
                of the batch given on, and ``lag`` has to be one larger.
            num_replicas: How many processes share the dataset; asked of torch.distributed when
                needed if not given.
            rank: This process's place among them; likewise.

        Raises:
            LoaderError: If the loader cannot be mixed: an iterable dataset, no batching, batches
                out of order, or a subclass of DataLoader whose additions would be lost.
            LagError: If its workers draw further ahead than ``lag``.
        """
        from raremix.mixing.loader import mixed_loader

        return mixed_loader(
            loader,
            buffer,
            replay=replay,
            seed=seed,
            lag=lag,
            prefetched=prefetched,
            num_replicas=num_replicas,
            rank=rank,
        )

    # DistributedSampler keeps these as attributes; here they are asked for when needed.
    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """How many processes share the dataset."""
        given = self._replicas_given
        return distributed.world_size() if given is None else given

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process's place among them."""
        return distributed.rank() if self._rank_given is None else self._rank_given

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to draw next. Never needed: epochs count up by themselves."""
        if epoch != self.epoch:
            self._begin_epoch(epoch)
        self._chosen = True

    def __len__(self) -> int:
        """Ids an epoch has on this rank, those of an incomplete last batch included."""
        return self._base.rows()

    def __iter__(self) -> Iterator[int]:
        for batch in self.lists():
            yield from batch

    def lists(self) -> Iterator[list[int]]:
        """The mixed batches as lists of ids that remember their draw; for a batch sampler."""
        for batch in self.batches():
            draw = batch.step * self.num_replicas + self.rank
            yield [DrawnId(key, draw) for key in batch.ids.tolist()]

    def batches(self) -> Iterator[Batch]:
        """Draw the batches of the epoch, lazily; nothing happens before the first is asked for."""
        self._start()
        iteration = self._iteration
        draw = self._delivered
        for fresh in self._base.batches(self.epoch, self._position):
            self.check_current(iteration)
            batch = self._mix(draw, fresh)
            self._in_flight.append(batch)
            yield batch
            draw += 1
        if iteration == self._iteration:
            self._exhausted = True
            self.close_epoch()

    def deliver(self) -> Batch:
        """Say that the loader has handed over its next batch, and learn which rows it holds.

        Raises:
            LagError: If no batch is on its way.
        """
        batch = self.hand_over()
        self.close_epoch()
        return batch

    def due(self) -> Batch:
        """The batch that will be handed over next.

        Raises:
            LagError: If no batch is on its way.
        """
        if not self._in_flight:
            raise LagError(
                "BufferedMixSampler.deliver was called with no batch on its way; call it exactly "
                "once for each batch that the loader gives."
            )
        return self._in_flight[0]

    def hand_over(self) -> Batch:
        """``deliver`` for a loader that notices the end of an epoch and calls ``close_epoch``."""
        batch = self.due()
        self._in_flight.popleft()
        self._delivered += 1
        self._position += 1
        self._resumed = False
        self.buffer.advance(batch.step)
        return batch

    def close_epoch(self) -> None:
        """Go on to the next epoch if every batch of this one was drawn and handed over."""
        if self._exhausted and not self._in_flight and self._position:
            self._begin_epoch(self.epoch + 1)

    @property
    def iteration(self) -> int:
        """Number of the iteration that is under way; only one can be."""
        return self._iteration

    def check_current(self, iteration: int) -> None:
        """Refuse to go on with an iteration after another one has begun.

        Raises:
            LoaderError: If ``iteration`` is not the one under way.
        """
        if iteration != self._iteration:
            raise LoaderError(
                "BufferedMixSampler was iterated anew while an earlier iteration still went on, so "
                "batches and rows could no longer be matched; finish one loop over the loader "
                "before the next, or wrap a second loader with a buffer of its own."
            )

    def _start(self) -> None:
        # Batches drawn by an iterator that was left early were never trained on: they are drawn
        # again, under the same numbers.
        self._in_flight.clear()
        self.buffer.rewind(self._delivered)
        if self._position and not self._resumed:
            self._begin_epoch(self.epoch + (0 if self._chosen else 1))
        self._chosen = False
        self._exhausted = False
        self._iteration += 1

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        self._resumed = False

    def _mix(self, draw: int, fresh: list[int]) -> Batch:
        step = draw - self.lag
        if step >= self._delivered:
            raise LagError(
                f"BufferedMixSampler was asked for batch {draw} when {self._delivered} batches had "
                f"been delivered, further ahead than lag={self.lag} allows. Do not turn the sampler "
                "into a list; without wrap(), call deliver() once for each batch; with more "
                "workers or prefetching, pass a larger lag."
            )
        ids = torch.tensor(fresh, dtype=torch.int64)
        width = len(fresh)
        is_replay = torch.zeros(width, dtype=torch.bool)
        entry = torch.full((width,), -1, dtype=torch.int64)
        probability = torch.ones(width)
        age = torch.zeros(width, dtype=torch.int64)
        rows = self._replay_rows(width)
        if rows:
            seed = derive_seed(self.seed, self.rank, draw)
            drawn = self.buffer.draw_ahead(
                draw, rows, taken=set(fresh), below=self._base.known_ids(), seed=seed
            )
            generator = seeded_generator(seed, 1)
            places = torch.randperm(width, generator=generator)[: len(drawn.keys)]
            ids[places] = torch.tensor(drawn.keys, dtype=torch.int64)
            entry[places] = torch.tensor(drawn.entries, dtype=torch.int64)
            probability[places] = torch.tensor(drawn.probabilities)
            age[places] = torch.tensor(drawn.ages, dtype=torch.int64)
            is_replay[places] = True
        return Batch(draw, ids, is_replay, entry, probability, age)

    def _replay_rows(self, width: int) -> int:
        if self.replay == 0:
            return 0
        rows = round(self.replay * width)
        # A full batch always has room for one; a short last one may be too short for its share.
        if width == self.batch_size or self.batch_size is None:
            rows = max(rows, 1)
        return min(rows, width - 1)

    def state_dict(self) -> State:
        """Where the stream stands; save it together with the buffer's state."""
        content: State = {
            **self._settings(),
            "epoch": self.epoch,
            "position": self._position,
            "delivered": self._delivered,
        }
        return sealed_state("BufferedMixSampler", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that had been delivered; the next iteration continues there.

        Raises:
            StateMismatchError: If batch size, replay, seed, lag or the number of ranks differ.
        """
        settings = self._settings()
        keys = (*settings, "epoch", "position", "delivered")
        content = open_state(state, kind="BufferedMixSampler", version=1, keys=keys)
        check_settings("BufferedMixSampler", content, settings)
        self.epoch = content["epoch"]
        self._position = content["position"]
        self._delivered = content["delivered"]
        self._in_flight.clear()
        self._iteration += 1  # an iteration under way ends here
        self._resumed = True
        self._chosen = False

    def _settings(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "replay": self.replay,
            "seed": self.seed,
            "lag": self.lag,
            "num_replicas": self.num_replicas,
        }
