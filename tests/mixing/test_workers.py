"""The stream is the same for any number of workers, and what a batch holds is always known."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from feedback import Flags
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from raremix import Batch, BufferedMixSampler, BufferEntries, MixedLoader, RareMemoryBuffer
from raremix.errors import LagError, LoaderError
from raremix.mixing import DrawnId
from raremix.mixing.base import GivenSampler

# From Python 3.12 on, forking a process that has threads warns, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def judge(ids: Tensor) -> Flags:
    return Flags(ids.float(), ids % 7 == 0)


def wrapped(
    buffer: RareMemoryBuffer, total: int = 52, *, lag: int = 5, **settings: Any
) -> MixedLoader[tuple[Tensor, ...]]:
    settings = {"batch_size": 4, "shuffle": True, **settings}
    if settings.get("num_workers"):
        settings.setdefault("multiprocessing_context", "fork")
    loader = DataLoader(TensorDataset(torch.arange(total)), **settings)
    return BufferedMixSampler.wrap(loader, buffer, replay=0.5, lag=lag)


def epoch(
    loader: MixedLoader[tuple[Tensor, ...]], buffer: RareMemoryBuffer
) -> Iterator[tuple[list[int], list[bool]]]:
    for (data,) in loader:
        batch: Batch = loader.batch
        assert data.tolist() == batch.ids.tolist()
        buffer.add(batch, judge(batch.ids))
        yield batch.ids.tolist(), batch.is_replay.tolist()


def two_epochs(**settings: Any) -> list[tuple[list[int], list[bool]]]:
    buffer = RareMemoryBuffer(4)
    loader = wrapped(buffer, **settings)
    rows = [row for _ in range(2) for row in epoch(loader, buffer)]
    assert buffer.metrics()["late"] == 0
    assert buffer.metrics()["evictions"] > 0
    return rows


WORKERS = [
    {"num_workers": workers, "prefetch_factor": prefetch, "persistent_workers": persistent}
    for workers in (1, 2)
    for prefetch in (1, 2)
    for persistent in (False, True)
]


@pytest.mark.parametrize("settings", WORKERS, ids=lambda each: "-".join(map(str, each.values())))
def test_the_stream_does_not_depend_on_the_workers(settings: dict[str, Any]) -> None:
    alone = two_epochs()
    assert sum(sum(replayed) for _, replayed in alone) > 20
    assert two_epochs(**settings) == alone


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_may_be_started_in_other_ways(start: str) -> None:
    rows = two_epochs(
        total=36, num_workers=1, multiprocessing_context=start, persistent_workers=True
    )
    assert rows == two_epochs(total=36)


@pytest.mark.parametrize("persistent", [False, True])
def test_leaving_early_with_workers_draws_the_same_batches_as_without(persistent: bool) -> None:
    def run(**settings: Any) -> list[tuple[list[int], list[bool]]]:
        buffer = RareMemoryBuffer(4)
        loader = wrapped(buffer, **settings)
        rows = []
        for _ in range(5):
            for count, row in enumerate(epoch(loader, buffer)):
                rows.append(row)
                if count == 2:
                    break
        return rows

    assert run(num_workers=2, persistent_workers=persistent) == run()


def test_workers_that_draw_further_ahead_than_the_lag_are_refused() -> None:
    with pytest.raises(LagError, match=r"lag=4 for a loader whose 2 workers draw 4 .* pass lag=5"):
        wrapped(RareMemoryBuffer(4), num_workers=2, lag=4)


class BreaksAt(Dataset[int]):
    def __init__(self, broken: int) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        if index == self.broken:
            raise ValueError("this file is broken")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_after_an_error_in_the_dataset_the_next_loop_knows_its_rows(workers: int) -> None:
    dataset = BreaksAt(9)
    context = "fork" if workers else None
    base: DataLoader[Any] = DataLoader(
        dataset, batch_size=4, num_workers=workers, multiprocessing_context=context
    )
    loader = BufferedMixSampler.wrap(base, RareMemoryBuffer(4))
    under_way = iter(loader)
    for _ in range(2):
        assert next(under_way).tolist() == loader.batch.ids.tolist()
    with pytest.raises(ValueError, match="this file is broken"):
        next(under_way)
    assert loader.batch.step == 1
    dataset.broken = -1
    seen = []
    for data in loader:
        assert data.tolist() == loader.batch.ids.tolist()
        seen.append(loader.batch.step)
    assert seen == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_goes_on_beside_a_newer_one_is_stopped(workers: int) -> None:
    loader = wrapped(RareMemoryBuffer(4), num_workers=workers)
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(LoaderError, match="iterated anew while an earlier iteration still went on"):
        next(first)
    for (data,) in second:
        assert data.tolist() == loader.batch.ids.tolist()


def test_a_finished_draw_does_not_hide_that_a_newer_loop_began() -> None:
    # With both batches prefetched, the older loop never asks the sampler again.
    loader = wrapped(RareMemoryBuffer(4), total=8, num_workers=2)
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(LoaderError, match="iterated anew"):
        next(first)


class Draws(Dataset[tuple[int, int]]):
    """Says what kind of id it was asked for."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(index), getattr(index, "draw", -1)


@pytest.mark.parametrize("workers", [0, 1])
def test_ids_carry_their_draw_to_the_dataset(workers: int) -> None:
    buffer = RareMemoryBuffer(2)
    buffer.admit(BufferEntries(torch.tensor([5]), torch.ones(1), None))
    context = "fork" if workers else None
    base: DataLoader[Any] = DataLoader(
        Draws(), batch_size=4, num_workers=workers, multiprocessing_context=context
    )
    loader = BufferedMixSampler.wrap(base, buffer, replay=0.25, lag=4)
    replays = []
    for epoch in range(3):
        for ids, draws in loader:
            is_replay = loader.batch.is_replay
            assert ids.tolist() == loader.batch.ids.tolist()
            assert draws[~is_replay].tolist() == [epoch] * int((~is_replay).sum())
            replays += draws[is_replay].tolist()
    assert len(replays) == len(set(replays)) > 3
    assert min(replays) > 2


def test_a_subset_loses_the_draw_and_nothing_else() -> None:
    base: DataLoader[Any] = DataLoader(Subset(Draws(), [7, 8, 9, 10]), batch_size=2)
    loader = BufferedMixSampler.wrap(base, RareMemoryBuffer(2))
    assert [ids.tolist() for ids, _ in loader] == [[7, 8], [9, 10]]
    assert loader.batch.ids.tolist() == [2, 3]


def test_a_drawn_id_is_an_int_that_survives_pickling() -> None:
    drawn = pickle.loads(pickle.dumps(DrawnId(5, 17)))
    assert isinstance(drawn, DrawnId)
    assert (drawn, drawn.draw, hash(drawn)) == (5, 17, hash(5))
    assert [10, 11, 12][DrawnId(1, 3)] == 11


def _draws(base: Any, rank: int, **options: Any) -> dict[int, list[int]]:
    """By id, the draws that one rank of two has for it in each of two epochs."""
    buffer = RareMemoryBuffer(2)
    buffer.admit(BufferEntries(torch.tensor([3, 5]), torch.ones(2)))
    mix = BufferedMixSampler(base, buffer, num_replicas=2, rank=rank, lag=1, **options)
    found: dict[int, list[int]] = {}
    for _ in range(2):
        for batch in mix.lists():
            mix.deliver()
            for key in batch:
                assert isinstance(key, DrawnId)
                found.setdefault(int(key), []).append(key.draw)
    return found


def test_a_fresh_row_of_a_dataset_is_drawn_by_its_epoch_on_every_rank() -> None:
    for width in (2, 3):
        ranks = [_draws(range(12), rank, batch_size=width, replay=0.0) for rank in range(2)]
        for epoch in range(2):
            fresh = [key for found in ranks for key, draws in found.items() if epoch in draws]
            assert sorted(fresh) == list(range(12))


def test_no_two_replays_are_drawn_alike_on_any_rank_nor_rows_of_a_foreign_sampler() -> None:
    replays = [
        draw
        for rank in range(2)
        for draws in _draws(range(12), rank, batch_size=2, replay=0.5, shuffle=False).values()
        for draw in draws
        if draw >= 2
    ]
    assert len(replays) == len(set(replays)) > 8
    foreign = [
        _draws(GivenSampler([7, 7, 8, 7]), rank, batch_size=2, replay=0.0) for rank in range(2)
    ]
    for found in foreign:
        assert len(set(found[7])) == 4  # two batches of two epochs
    assert not set(foreign[0][7]) & set(foreign[1][7])
