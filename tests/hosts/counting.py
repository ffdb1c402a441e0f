"""What every host is given here: samples that are their own id, and a way to count what came of them.

Beside the tests, since processes that are started anew import it as well.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raremix import Batch, BufferedMixSampler, MixedLoader, RareMemoryBuffer

TOTAL = 42
WIDTH = 4
LAG = 3


class Numbers(Dataset[Tensor]):
    """Sample number i is i: what a model was fed is what was loaded, whatever a loader says."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(int(index))

    def __len__(self) -> int:
        return TOTAL


@dataclass(frozen=True)
class Flags:
    """What a detector would say if every fifth sample was rare."""

    scores: Tensor
    is_rare: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> "Flags":
        return cls(ids.float(), ids % 5 == 0)


@dataclass
class Fed:
    """Every batch that a model was fed: (epoch, step), ids, and which of them were replays."""

    epochs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    is_replay: list[list[bool]] = field(default_factory=list)

    def note(self, epoch: int, data: Tensor, batch: Batch) -> None:
        assert data.tolist() == batch.ids.tolist(), "the loader names other rows than were fed"
        self.epochs.append(epoch)
        self.steps.append(batch.step)
        self.ids.append(data.tolist())
        self.is_replay.append(batch.is_replay.tolist())

    def replays(self) -> int:
        return sum(map(sum, self.is_replay))


def mixed(buffer: RareMemoryBuffer, *, workers: int = 0) -> MixedLoader[Tensor]:
    base = DataLoader(
        Numbers(),
        batch_size=WIDTH,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    return BufferedMixSampler.wrap(base, buffer, replay=0.5, lag=LAG)


def base_order(epochs: int, rank: int, world: int) -> list[list[int]]:
    """The batches of a rank if nothing is ever mixed in."""
    plain = BufferedMixSampler(
        Numbers(),
        RareMemoryBuffer(1),
        batch_size=WIDTH,
        num_replicas=world,
        rank=rank,
    )
    order = []
    for _ in range(epochs):
        for batch in plain.batches():
            plain.deliver()
            order.append(batch.ids.tolist())
    return order


def assert_none_lost_none_doubled(ranks: Sequence[Fed], epochs: int) -> None:
    """Each rank was fed its share of every epoch, with replays where the sampler says, in order.

    The shares of an epoch are disjoint and together all the data, so a row is missing only where a
    replay took its place, and comes twice only as a replay.
    """
    fresh: list[list[int]] = [[] for _ in range(epochs)]
    shares: list[list[int]] = [[] for _ in range(epochs)]
    for rank, fed in enumerate(ranks):
        expected = base_order(epochs, rank, len(ranks))
        assert len(fed.ids) == len(expected)
        per_epoch = len(expected) // epochs
        for number, (ids, replays, base) in enumerate(
            zip(fed.ids, fed.is_replay, expected, strict=True)
        ):
            assert fed.steps[number] == number
            assert fed.epochs[number] == number // per_epoch
            assert len(ids) == len(set(ids)) == len(base)
            for key, is_replay, own in zip(ids, replays, base, strict=True):
                shares[number // per_epoch].append(own)
                if not is_replay:
                    assert key == own
                    fresh[number // per_epoch].append(key)
    for share, seen in zip(shares, fresh, strict=True):
        assert sorted(share) == list(range(TOTAL))
        assert len(seen) == len(set(seen))


def leave_results(results: object) -> None:
    """Save what a process of ``run_ranks`` saw, where its parent looks for it."""
    torch.save(results, os.environ["RESULTS"])


def argument(number: int) -> str:
    return sys.argv[number]
