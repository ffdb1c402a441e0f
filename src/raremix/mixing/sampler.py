"""Batches of ids of a base order, with rare samples in some of their rows or beside them.

A sampler decides ahead of training: loader workers prefetch. So draw number j reads the buffer as
it was after step j - lag, with a generator of its own. The stream is then a function of seed and
feedback, not of how far ahead the workers run, and it can be resumed anywhere.
"""

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

from raremix import distributed
from raremix.errors import (
    LagError,
    LoaderError,
    OptionError,
    RaremixWarning,
    StateMismatchError,
)
from raremix.mixing.base import BaseBatches, base_batches
from raremix.mixing.batch import FILLER, FRESH, Batch, DrawnId, fresh_batch
from raremix.mixing.modes import Mode, Plan
from raremix.options import check_choice, check_count, check_number
from raremix.protocols import ReplaySource, State
from raremix.seeds import derive_seed, uniforms
from raremix.state import check_settings, open_state, sealed_state

if TYPE_CHECKING:
    from raremix.mixing.loader import MixedLoader

__all__ = ["DEFAULT_LAG", "BufferedMixSampler"]

# Enough for 15 workers that prefetch two batches each; a smaller lag listens sooner.
DEFAULT_LAG = 32
# Draws below are epochs; from here on, each is of one batch of one rank.
_OTHER_DRAWS = 1 << 32

_BatchT = TypeVar("_BatchT")


class BufferedMixSampler(DistributedSampler[int]):
    """Yields the ids of a base order, with a share of each batch taken from a buffer.

    The width and the number of batches never depend on what the buffer holds. No id comes twice in
    a batch, unless there are fewer ids than rows.

    Modes, for batches of B rows of which K are to be replays:

    - "replace": K rows of each batch of the base give way. The epoch keeps its length; which rows
      were left out is drawn anew in each. While the buffer holds too little, they stay.
    - "stretch": each batch has B - K rows of the base beside K replays, so every row of the base is
      seen once in an epoch that is B / (B - K) as long.
    - "extend": each batch has the B rows of the base and K more.

    In the latter two, *fillers* stand in while the buffer holds too little: ids of the base, drawn
    besides its order, at random from a dataset, or from what a sampler has given in this epoch.

    ``wrap`` puts it into an existing DataLoader. To build the loader yourself, pass it as
    ``DataLoader(dataset, batch_size=b, sampler=mix)`` and call ``mix.deliver()`` once for every
    batch that you get.

    Args:
        base: What to mix into: a map-style dataset, a sampler of ids (which shards for itself under
            torch.distributed), or a batch sampler.
        buffer: The buffer of rare ids.
        batch_size: Rows of a batch, the same as the loader's; None if ``base`` yields batches.
        replay: K / B, in [0, 1); K is rounded to a whole number, at least 1 and (but for "extend")
            at most B - 1. 0 turns mixing off.
        mode: "replace", "stretch" or "extend".
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
        mode: Mode = "replace",
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
        check_choice(caller, "mode", mode, get_args(Mode))
        if replay > 0 and batch_size == 1 and mode != "extend":
            raise OptionError(
                "BufferedMixSampler cannot replay in batches of one row; raise batch_size, set "
                'replay=0, or pass mode="extend".'
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
        self.replay = replay
        self.mode: Mode = mode
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.lag = lag
        self.epoch = 0
        self._replicas_given = num_replicas
        self._rank_given = rank
        self._delivered = 0  # batches delivered over all epochs
        self._position = 0  # batches delivered in this epoch
        self._offset = 0  # rows of this epoch that went to another number of ranks before
        self._in_flight: deque[Batch] = deque()
        self._drawn: deque[tuple[int, int]] = deque()  # replays and fillers of those
        self._exhausted = False
        self._resumed = False  # loaded, and nothing delivered since
        self._chosen = False  # set_epoch was called for the next iteration
        self._iteration = 0
        self._counts = dict.fromkeys(("issued", "rolled_back", "replayed", "fillers"), 0)
        self._ahead_most = 0
        self._plan = Plan(mode, batch_size, replay)
        self._base: BaseBatches = base_batches(
            base,
            batch_size=self._plan.base_rows,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            ranks=lambda: (self.rank, self.num_replicas),
            fills=mode != "replace" and replay > 0,
        )
        self._plan.check_base(self._base.known_batch_size)
        # Rows of a full batch, replays included, as the loader around this sampler counts them.
        self.batch_size = self._plan.width
        buffer.attach(lag)

    @classmethod
    def wrap(
        cls,
        loader: "DataLoader[_BatchT]",
        buffer: ReplaySource,
        *,
        replay: float = 0.125,
        mode: Mode = "replace",
        seed: int = 0,
        lag: int | Literal["auto"] = DEFAULT_LAG,
        prefetched: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> "MixedLoader[_BatchT]":
        """Make a loader like this one whose batches mix in samples from the buffer.

        The new loader has the dataset, workers, collate function and all other settings of
        ``loader``; unless ``mode`` says otherwise, also its length and batch width. After each
        batch it gives, ``loader.batch`` says which rows it holds. Of a torchdata
        ``StatefulDataLoader``, the new one is a ``StatefulDataLoader`` too.

        Args:
            loader: A DataLoader over a map-style dataset. If it shuffles, the order is drawn from
                ``seed``; a sampler of its own is kept.
            buffer: The buffer of rare ids.
            replay: The share of each batch taken from the buffer, in [0, 1); rounded to whole
                rows, at least one: of four rows, one is the least. 0 turns mixing off.
            mode: "replace" rows of the base, or "stretch" the epoch or "extend" the batches so that
                none is left out; see the class.
            seed: Seed of the order and of the draws.
            lag: A draw reads the buffer as it was this many steps earlier; at least
                num_workers * prefetch_factor + 1. "auto" takes that least value, which listens
                sooner, but then another number of workers is another stream.
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
            mode=mode,
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
        return self._plan.rows(self._base.rows())

    def __iter__(self) -> Iterator[int]:
        for batch in self.lists():
            yield from batch

    def lists(self) -> Iterator[list[int]]:
        """The mixed batches as lists of ids that remember their draw; for a batch sampler."""
        for batch in self.batches():
            other = _OTHER_DRAWS + batch.step * self.num_replicas + self.rank
            # A fresh row is drawn once in its epoch, whatever rank or batch it falls to.
            fresh = self.epoch if self._base.gives_once else other
            yield [
                DrawnId(key, fresh if entry == FRESH else other)
                for key, entry in zip(batch.ids.tolist(), batch.entry.tolist(), strict=True)
            ]

    def batches(self) -> Iterator[Batch]:
        """Draw the batches of the epoch, lazily; nothing happens before the first is asked for."""
        self._start()
        iteration = self._iteration
        draw = self._delivered
        for fresh in self._base.batches(self.epoch, self._position, self._offset):
            self.check_current(iteration)
            batch = self._mix(draw, fresh)
            self._in_flight.append(batch)
            self._counts["issued"] += 1
            self._ahead_most = max(self._ahead_most, len(self._in_flight))
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
        replayed, fillers = self._drawn.popleft()
        self._counts["replayed"] += replayed
        self._counts["fillers"] += fillers
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
        if self._exhausted and self._in_flight and not self._position:
            self._warn_of_no_delivery()
        # Batches drawn by an iterator that was left early were never trained on: they are drawn
        # again, under the same numbers.
        self._counts["rolled_back"] += len(self._in_flight)
        self._in_flight.clear()
        self._drawn.clear()
        self.buffer.rewind(self._delivered)
        if self._position and not self._resumed:
            self._begin_epoch(self.epoch + (0 if self._chosen else 1))
        self._chosen = False
        self._exhausted = False
        self._iteration += 1

    def _warn_of_no_delivery(self) -> None:
        warnings.warn(
            "BufferedMixSampler gave out a whole epoch and was told of no batch that arrived, so it "
            "begins that epoch again and replays nothing. Without wrap(), call deliver() once for "
            "each batch that the loader gives.",
            RaremixWarning,
            stacklevel=4,
        )

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = self._offset = 0
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
        wanted = self._plan.replays(len(fresh))
        if not wanted:
            self._drawn.append((0, 0))
            return fresh_batch(draw, np.array(fresh, np.int64))
        seed = derive_seed(self.seed, self.rank, draw)
        taken = set(fresh)
        drawn = self.buffer.draw_ahead(
            draw, wanted, taken=taken, below=self._base.keys_below(), seed=seed
        )
        count = len(drawn.keys)
        fillers: list[int] = []
        if self.mode != "replace" and count < wanted:
            fillers = self._base.fill(wanted - count, taken.union(drawn.keys), seed=seed + 1)
        width = len(fresh) if self.mode == "replace" else len(fresh) + wanted
        # Replays lie anywhere, since some take the first or the last rows for something else.
        places = np.argsort(uniforms(seed + 2, width), kind="stable")
        ids = np.empty(width, np.int64)
        if self.mode == "replace":
            ids[:] = fresh
        else:
            ids[np.sort(places[wanted:])] = fresh
        batch = fresh_batch(draw, ids)
        own, others = places[:count], places[count:wanted]
        ids[own] = drawn.keys
        batch.is_replay.numpy()[own] = True
        batch.entry.numpy()[own] = drawn.entries
        batch.probability.numpy()[own] = drawn.probabilities
        batch.age.numpy()[own] = drawn.ages
        if fillers:
            ids[others] = fillers
            batch.entry.numpy()[others] = FILLER
        self._drawn.append((count, len(fillers)))
        return batch

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger.

        Batches ``issued`` to the loader = ``delivered`` + ``in_flight`` + ``rolled_back`` (drawn
        ahead and given up when a loop was left early or resumed); rows ``replayed`` and
        ``fillers`` among those delivered; ``lag`` in force and ``draw_ahead_max`` batches seen.
        """
        return {
            **{name: float(count) for name, count in self._counts.items()},
            "delivered": float(self._delivered),
            "in_flight": float(len(self._in_flight)),
            "lag": float(self.lag),
            "draw_ahead_max": float(self._ahead_most),
        }

    def state_dict(self) -> State:
        """Where the stream stands; save it together with the buffer's state."""
        content: State = {
            **self._settings(),
            "num_replicas": self.num_replicas,
            "known_ids": self._base.known_ids(),
            "epoch": self.epoch,
            "position": self._position,
            "offset": self._offset,
            "delivered": self._delivered,
            "replayed": self._counts["replayed"],
            "fillers": self._counts["fillers"],
        }
        return sealed_state("BufferedMixSampler", 2, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that had been delivered; the next iteration continues there.

        Under another number of ranks, what is left of an epoch over a dataset is shared out among
        those that there are now. A sampler of the user's shards for itself and cannot.

        Raises:
            StateMismatchError: If batch size, replay, mode, seed or lag differ, or the number of
                ranks inside an epoch of a sampler that shards for itself.
        """
        settings = self._settings()
        cursors = (
            *("num_replicas", "known_ids", "epoch", "position", "offset"),
            *("delivered", "replayed", "fillers"),
        )
        keys = (*settings, *cursors)
        content = open_state(state, kind="BufferedMixSampler", version=2, keys=keys)
        check_settings("BufferedMixSampler", content, settings)
        epoch, position, offset = content["epoch"], content["position"], content["offset"]
        if (position or offset) and content["known_ids"] != self._base.known_ids():
            raise StateMismatchError(
                "BufferedMixSampler.load_state_dict got a state from inside an epoch of "
                f"{content['known_ids']} samples, and its base has {self._base.known_ids()}, so what is "
                "left of the epoch is not known. Pass the same dataset, or save between two epochs."
            )
        before = content["num_replicas"]
        if before != self.num_replicas and position:
            offset = self._base.rows_before(position, offset, before)
            position = 0
            if offset < 0:
                raise StateMismatchError(
                    f"BufferedMixSampler.load_state_dict got a state of {before} ranks from inside "
                    f"an epoch, and there are {self.num_replicas} now, for which its base does the "
                    f"sharding itself. Resume with {before} ranks, save at the end of the epoch, or "
                    "call set_epoch after loading to begin an epoch anew."
                )
            if offset >= (self._base.known_ids() or 0):
                epoch, offset = epoch + 1, 0
        self.epoch, self._position, self._offset = epoch, position, offset
        self._delivered = content["delivered"]
        # What was on its way when the state was saved is no part of it and is drawn again.
        self._counts.update(replayed=content["replayed"], fillers=content["fillers"])
        self._counts.update(issued=self._delivered, rolled_back=0)
        self._in_flight.clear()
        self._drawn.clear()
        self._iteration += 1  # an iteration under way ends here
        self._resumed = True
        self._chosen = False

    def _settings(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "replay": self.replay,
            "mode": self.mode,
            "order": self._base.order,
            "seed": self.seed,
            "lag": self.lag,
        }
