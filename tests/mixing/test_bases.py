"""What can be mixed into: datasets, samplers and batch samplers of every kind."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from raremix import Batch, BufferedMixSampler, BufferEntries, MixedLoader, RareMemoryBuffer
from raremix.errors import LoaderError, OptionError

NUMBERS = TensorDataset(torch.arange(24))


def cold() -> RareMemoryBuffer:
    return RareMemoryBuffer(4)


def base_ids(loader: MixedLoader[Any]) -> list[list[int]]:
    """An epoch, with the data checked against the ids."""
    batches = []
    for (data,) in loader:
        assert data.tolist() == loader.batch.ids.tolist()
        batches.append(data.tolist())
    return batches


class Backwards(Sampler[int]):
    """A sampler without a length, whose ids are of a chosen kind."""

    def __init__(self, kind: Callable[[int], Any] = int) -> None:
        self.kind = kind

    def __iter__(self) -> Iterator[Any]:
        return (self.kind(key) for key in range(23, -1, -1))


class Pairs(Sampler[list[int]]):
    """A batch sampler that has none of BatchSampler's attributes."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[key, 23 - key] for key in range(12)])

    def __len__(self) -> int:
        return 12


class PlainPairs:
    """A batch sampler that inherits from nothing."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[key, 23 - key] for key in range(12)])

    def __len__(self) -> int:
        return 12


class OddFirst(RandomSampler):
    """Inherits from RandomSampler and has an order of its own."""

    def __iter__(self) -> Iterator[int]:
        return iter([*range(1, 24, 2), *range(0, 24, 2)])


@pytest.mark.parametrize(
    "kind", [int, np.int64, torch.tensor], ids=["int", "numpy integer", "tensor"]
)
def test_a_sampler_without_length_runs_and_has_no_length(kind: Callable[[int], Any]) -> None:
    loader = BufferedMixSampler.wrap(
        DataLoader(NUMBERS, batch_size=5, sampler=Backwards(kind)), cold()
    )
    backwards = list(range(23, -1, -1))
    for _ in range(2):
        ids = base_ids(loader)
        assert [len(batch) for batch in ids] == [5, 5, 5, 5, 4]
        assert [key for batch in ids for key in batch] == backwards
    with pytest.raises(TypeError, match="its base Backwards has none"):
        len(loader.mixer)
    with pytest.raises(TypeError):
        len(loader)


@pytest.mark.parametrize("sampler", [[5, 3, 7, 1], range(3, 9), (4, 2)], ids=repr)
def test_a_list_given_as_sampler_is_an_order_and_no_dataset(sampler: Any) -> None:
    loader = BufferedMixSampler.wrap(DataLoader(NUMBERS, batch_size=2, sampler=sampler), cold())
    assert [key for batch in base_ids(loader) for key in batch] == list(sampler)
    assert len(loader) == len(sampler) // 2


def test_a_subclass_of_a_known_sampler_keeps_its_own_order() -> None:
    base = DataLoader(NUMBERS, batch_size=24, sampler=OddFirst(NUMBERS))
    ids = base_ids(BufferedMixSampler.wrap(base, cold()))
    assert ids == [[*range(1, 24, 2), *range(0, 24, 2)]]


@pytest.mark.parametrize(
    "sampler",
    [
        RandomSampler(NUMBERS, replacement=True, num_samples=30),
        WeightedRandomSampler([1.0] * 12 + [5.0] * 12, 30, generator=torch.Generator()),
        SubsetRandomSampler(range(8)),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_that_choose_are_kept(sampler: Sampler[int]) -> None:
    buffer = cold()
    buffer.admit(BufferEntries(torch.arange(4), torch.ones(4), None))
    loader = BufferedMixSampler.wrap(
        DataLoader(NUMBERS, batch_size=4, sampler=sampler), buffer, replay=0.5, lag=1
    )
    total = len(sampler)  # type: ignore[arg-type]  # all three have one
    assert len(loader) == -(-total // 4)
    for _ in range(2):
        for (data,) in loader:
            batch = loader.batch
            assert data.tolist() == batch.ids.tolist()
            replayed = batch.ids[batch.is_replay].tolist()
            # A base with replacement may repeat an id, a replay never does.
            assert len(set(replayed)) == len(replayed)
            assert not set(replayed) & set(batch.ids[~batch.is_replay].tolist())


def test_a_shuffled_loader_is_ordered_by_the_seed_alone() -> None:
    def order(seed: int, generator: torch.Generator | None) -> list[list[int]]:
        base = DataLoader(NUMBERS, batch_size=6, shuffle=True, generator=generator)
        return base_ids(BufferedMixSampler.wrap(base, cold(), seed=seed))

    assert order(1, None) == order(1, torch.Generator().manual_seed(9))
    assert order(1, None) != order(2, None)
    assert sorted(key for batch in order(1, None) for key in batch) == list(range(24))


@pytest.mark.parametrize(
    "batches", [Pairs(), PlainPairs(), list(Pairs())], ids=lambda b: type(b).__name__
)
def test_a_batch_sampler_of_any_make_keeps_its_batches(batches: Any) -> None:
    buffer = cold()
    loader = BufferedMixSampler.wrap(
        DataLoader(NUMBERS, batch_sampler=batches), buffer, replay=0.5, lag=2
    )
    assert len(loader) == 12
    assert base_ids(loader) == list(Pairs())
    buffer.admit(BufferEntries(torch.arange(4), torch.ones(4), None))
    shares = []
    for _ in range(2):
        for (data,) in loader:
            assert data.tolist() == loader.batch.ids.tolist()
            shares.append(int(loader.batch.is_replay.sum()))
    assert shares[4:] == [1] * 20


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_sampler_that_the_user_built_is_mixed_like_the_loaders_own(drop_last: bool) -> None:
    def order(base: DataLoader[Any]) -> list[list[int]]:
        loader = BufferedMixSampler.wrap(base, cold())
        assert len(loader) == len(base)
        return base_ids(loader)

    own = DataLoader(NUMBERS, batch_size=7, shuffle=True, drop_last=drop_last)
    built = DataLoader(
        NUMBERS, batch_sampler=BatchSampler(RandomSampler(NUMBERS), 7, drop_last=drop_last)
    )
    assert order(own) == order(built)
    direct = BufferedMixSampler(built.batch_sampler, cold())
    assert [batch.ids.tolist() for batch in direct.batches()] == order(own)


def test_a_base_that_yields_single_ids_without_batch_size_is_refused() -> None:
    bases: list[object] = [NUMBERS, SequentialSampler(NUMBERS), DistributedSampler(NUMBERS, 2, 0)]
    for base in bases:
        with pytest.raises(OptionError, match="pass the batch_size of the DataLoader"):
            BufferedMixSampler(base, cold())
    mix = BufferedMixSampler(Backwards(), cold())
    with pytest.raises(LoaderError, match="batches of ids from Backwards, got 23; pass the batch_"):
        next(mix.batches())


def test_a_sampler_of_something_else_than_ids_is_refused() -> None:
    mix = BufferedMixSampler(Backwards(lambda key: (key, "large")), cold(), batch_size=4)
    with pytest.raises(LoaderError, match=r"ids from Backwards, got \(23, 'large'\)"):
        next(mix.batches())
    with pytest.raises(LoaderError, match=r"whole numbers as ids .* got 23.0"):
        next(BufferedMixSampler(Backwards(float), cold(), batch_size=4).batches())


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


class NoLength(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Stream(), "cannot mix into Stream, an IterableDataset"),
        (NoLength(), "NoLength has no __len__; add one"),
        (TensorDataset(torch.empty(0)), "got an empty dataset"),
        (7, "expects a dataset, a sampler or a batch sampler, got int"),
    ],
)
def test_a_base_that_cannot_be_mixed_is_refused(base: object, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        BufferedMixSampler(base, cold(), batch_size=4)


def test_a_dataset_smaller_than_a_batch_is_one_short_batch() -> None:
    buffer = cold()
    buffer.admit(BufferEntries(torch.arange(3), torch.ones(3), None))
    mix = BufferedMixSampler(range(3), buffer, batch_size=8, replay=0.9, lag=1)
    for _ in range(3):
        batches = []
        for _ in mix.batches():
            batches.append(mix.deliver())
        assert [sorted(batch.ids.tolist()) for batch in batches] == [[0, 1, 2]]
    assert len(mix) == 3
    dropped = DataLoader(TensorDataset(torch.arange(3)), batch_size=8, drop_last=True)
    assert base_ids(BufferedMixSampler.wrap(dropped, cold())) == []


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("total", [24, 25, 7, 1])
def test_two_ranks_get_disjoint_and_equally_many_ids(total: int, wrapped: bool) -> None:
    dataset = TensorDataset(torch.arange(total))
    buffers = [cold(), cold()]

    def batches(rank: int) -> list[Batch]:
        if wrapped:
            loader = BufferedMixSampler.wrap(
                DataLoader(dataset, batch_size=4, shuffle=True),
                buffers[rank],
                num_replicas=2,
                rank=rank,
            )
            return [loader.batch for _ in loader]
        mix = BufferedMixSampler(dataset, cold(), batch_size=4, num_replicas=2, rank=rank)
        return [mix.deliver() for _ in mix.batches()]

    ranks = [batches(0), batches(1)]
    widths = [[len(batch) for batch in each] for each in ranks]
    assert widths[0] == widths[1]
    counts = Counter(int(key) for each in ranks for batch in each for key in batch.ids)
    assert set(counts) == set(range(total))
    # An odd number is filled up by giving one id out again, as DistributedSampler does.
    assert sum(counts.values()) == total + total % 2


def test_a_distributed_sampler_shards_for_itself_and_hears_of_epochs() -> None:
    def epochs(rank: int) -> list[list[int]]:
        sampler: DistributedSampler[Any] = DistributedSampler(NUMBERS, 2, rank, seed=4)
        loader = BufferedMixSampler.wrap(DataLoader(NUMBERS, batch_size=5, sampler=sampler), cold())
        return [[key for batch in base_ids(loader) for key in batch] for _ in range(2)]

    one, two = epochs(0), epochs(1)
    assert one[0] != one[1]
    for epoch in range(2):
        expected: DistributedSampler[Any] = DistributedSampler(NUMBERS, 2, 0, seed=4)
        expected.set_epoch(epoch)
        assert one[epoch] == list(expected)
        assert sorted(one[epoch] + two[epoch]) == list(range(24))


class Grouped(BatchSampler):
    """A batch sampler of its own kind over a sampler that has epochs."""

    def __iter__(self) -> Iterator[list[int]]:
        keys = iter(self.sampler)
        while batch := sorted(islice(keys, self.batch_size)):
            yield batch


def test_the_epoch_reaches_the_sampler_inside_a_batch_sampler() -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(NUMBERS, 1, 0)
    loader = BufferedMixSampler.wrap(
        DataLoader(NUMBERS, batch_sampler=Grouped(sampler, 6, drop_last=False)), cold()
    )
    first, second = base_ids(loader), base_ids(loader)
    assert first != second
    loader.set_epoch(0)
    assert base_ids(loader) == first
    assert len(loader.mixer) == 24
