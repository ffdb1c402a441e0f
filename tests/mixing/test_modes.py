"""Replace, stretch and extend: what each promises, cold or full, for any workers and resume."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from feedback import Flags
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Sampler, SubsetRandomSampler, TensorDataset

from raremix import Batch, BufferedMixSampler, BufferEntries, MixedLoader, RareMemoryBuffer
from raremix.errors import OptionError, StateMismatchError
from raremix.mixing.modes import Mode

MODES: list[Mode] = ["replace", "stretch", "extend"]
FILLER = -2


class Endless(Sampler[int]):
    """No length; its order is its own."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield 100 + (step * 7) % 40
            step += 1


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def filled(keys: int, capacity: int = 200) -> RareMemoryBuffer:
    buffer = RareMemoryBuffer(capacity)
    buffer.admit(BufferEntries(torch.arange(keys), torch.ones(keys)))
    return buffer


def base_rows(batch: Batch) -> list[int]:
    return batch.ids[~batch.is_replay & (batch.entry != FILLER)].tolist()


def replays_of(mode: Mode, share: float, width: int) -> int:
    """K of a full batch, as the docstring says."""
    if share == 0:
        return 0
    rounded = max(round(share * width), 1)
    return rounded if mode == "extend" else min(rounded, width - 1)


def widths_of(mode: Mode, share: float, width: int, total: int, drop_last: bool) -> list[int]:
    """The widths of an epoch's batches, counted by hand."""
    count = replays_of(mode, share, width)
    fresh = width - count if mode == "stretch" else width
    widths = []
    for start in range(0, total, fresh):
        own = min(fresh, total - start)
        if own < fresh and drop_last:
            break
        widths.append(own if mode == "replace" else own + round(count * own / fresh))
    return widths


@settings(deadline=None, max_examples=150)
@given(
    mode=st.sampled_from(MODES),
    total=st.integers(1, 50),
    width=st.integers(2, 9),
    share=st.one_of(st.just(0.0), st.floats(0.01, 0.99)),
    held=st.integers(0, 60),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
)
def test_width_length_and_base_rows_are_those_of_base_and_options_alone(
    mode: Mode,
    total: int,
    width: int,
    share: float,
    held: int,
    drop_last: bool,
    shuffle: bool,
    seed: int,
) -> None:
    plain = DataLoader(numbers(total), batch_size=width, shuffle=shuffle, drop_last=drop_last)
    loader = BufferedMixSampler.wrap(plain, filled(held), mode=mode, replay=share, lag=2, seed=seed)
    expected = widths_of(mode, share, width, total, drop_last)
    count = replays_of(mode, share, width)
    assert len(loader) == len(expected)
    assert len(loader.mixer) == sum(widths_of(mode, share, width, total, drop_last=False))
    for _ in range(2):
        batches = []
        for (data,) in loader:
            assert data.tolist() == loader.batch.ids.tolist()
            batches.append(loader.batch)
        assert [len(batch) for batch in batches] == expected
        for batch in batches:
            ids = batch.ids.tolist()
            assert all(0 <= key < total for key in ids)
            assert len(set(ids)) == min(len(ids), total)
            assert int(batch.is_replay.sum()) <= min(count, held)
            assert int(batch.is_replay.sum()) < max(len(ids), 2)
            assert set(batch.entry[batch.is_replay].tolist()) <= set(range(held))
            assert (batch.entry[~batch.is_replay] < 0).all()
        rows = [key for batch in batches for key in base_rows(batch)]
        if mode == "replace":
            assert FILLER not in torch.cat([b.entry for b in batches]) if batches else True
        else:
            assert len(rows) == len(set(rows))
            fresh = width - count if mode == "stretch" else width
            assert len(rows) == (total // fresh * fresh if drop_last else total)
            if not shuffle:
                assert rows == sorted(rows)
    metrics = loader.metrics()
    assert metrics["issued"] == metrics["delivered"] == 2 * len(expected)
    assert metrics["in_flight"] == metrics["rolled_back"] == 0


@pytest.mark.parametrize("mode", ["stretch", "extend"])
def test_a_full_buffer_needs_no_filler_and_a_cold_one_only_fillers(mode: Mode) -> None:
    for held, fillers in ((50, 0), (0, None)):
        mix = BufferedMixSampler(
            range(1000, 1200), filled(held), batch_size=8, replay=0.25, mode=mode, lag=1
        )
        source: Any = mix._base  # the ids of a range are its places: 0 to 199
        assert source.known_ids() == 200
        for _ in mix.batches():
            batch = mix.deliver()
            if len(batch) == mix.batch_size:
                assert int((batch.entry == FILLER).sum()) == (2 if fillers is None else fillers)
                assert int(batch.is_replay.sum()) == (0 if fillers is None else 2)


@pytest.mark.parametrize("mode", ["stretch", "extend"])
def test_fillers_of_a_sampler_are_ids_that_it_gives_itself(mode: Mode) -> None:
    part = SubsetRandomSampler(range(30, 60), generator=torch.Generator().manual_seed(0))
    plain = DataLoader(numbers(100), batch_size=8, sampler=part)
    loader = BufferedMixSampler.wrap(plain, RareMemoryBuffer(8), mode=mode, replay=0.25, lag=1)
    seen, fillers = [], []
    for _ in loader:
        batch = loader.batch
        assert len(set(batch.ids.tolist())) == len(batch)
        seen += base_rows(batch)
        fillers += batch.ids[batch.entry == FILLER].tolist()
    assert sorted(seen) == list(range(30, 60))
    assert fillers
    assert set(fillers) <= set(range(30, 60))
    assert len(set(fillers)) > 4


@pytest.mark.parametrize("mode", MODES)
def test_an_endless_sampler_runs_on_and_has_no_length(mode: Mode) -> None:
    plain = DataLoader(numbers(200), batch_size=8, sampler=Endless())
    loader = BufferedMixSampler.wrap(plain, filled(20), mode=mode, replay=0.25, lag=1)
    with pytest.raises(TypeError):
        len(loader)
    rows = []
    for (data,) in loader:
        assert data.tolist() == loader.batch.ids.tolist()
        assert len(data) == loader.batch_size == (10 if mode == "extend" else 8)
        rows += base_rows(loader.batch)
        if loader.batch.step == 30:
            break
    if mode != "replace":
        assert rows == [100 + (step * 7) % 40 for step in range(len(rows))]


def test_a_batch_sampler_is_extended_and_not_stretched() -> None:
    def plain() -> DataLoader[Any]:
        return DataLoader(numbers(40), batch_sampler=Cut(range(40), 8, False))

    loader = BufferedMixSampler.wrap(plain(), filled(20), mode="extend", replay=0.25, lag=1)
    rows = []
    for _ in loader:
        assert len(loader.batch) == 10
        rows += base_rows(loader.batch)
    assert rows == list(range(40))
    with pytest.raises(OptionError, match='pass mode="extend", or a sampler of single ids'):
        BufferedMixSampler.wrap(plain(), filled(20), mode="stretch")


class Cut(BatchSampler):
    """A batch sampler of the user's own."""


def test_one_row_and_one_replay() -> None:
    plain = DataLoader(numbers(6), batch_size=1)
    loader = BufferedMixSampler.wrap(plain, filled(3), mode="extend", replay=0.5, lag=1)
    assert [len(data) for (data,) in loader] == [2] * 6
    with pytest.raises(OptionError, match='pass mode="extend"'):
        BufferedMixSampler.wrap(plain, filled(3), mode="stretch")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(OptionError, match="expects mode 'replace', 'stretch' or 'extend'"):
        BufferedMixSampler(range(9), filled(3), batch_size=3, mode="append")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the same stream


class Run:
    """A loader with feedback that depends on what it gives."""

    def __init__(self, mode: Mode, workers: int = 0, sampler: bool = False, **options: Any) -> None:
        self.buffer = RareMemoryBuffer(12)
        part = Resumable() if sampler else None
        plain = DataLoader(
            numbers(60),
            batch_size=6,
            shuffle=None if sampler else True,
            sampler=part,
            num_workers=workers,
            **options,
        )
        self.loader: MixedLoader[Any] = BufferedMixSampler.wrap(
            plain, self.buffer, mode=mode, replay=0.34, lag=10
        )

    def train(self, batches: int) -> list[tuple[list[int], list[int]]]:
        rows: list[tuple[list[int], list[int]]] = []
        while True:
            for (data,) in self.loader:
                batch = self.loader.batch
                assert data.tolist() == batch.ids.tolist()
                rows.append((batch.ids.tolist(), batch.entry.tolist()))
                self.buffer.add(batch, Flags(batch.ids.float(), batch.ids % 4 == 0))
                if len(rows) == batches:
                    return rows

    def saved(self) -> Any:
        file = io.BytesIO()
        torch.save(self.loader.state_dict(), file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


class Resumable(Sampler[int]):
    """A user's sampler whose order depends on the epoch alone; a part of the dataset."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[int]:
        return iter([(step * 11 + self.epoch) % 40 for step in range(40)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampler", [False, True])
def test_any_number_of_workers_gives_the_same_stream(mode: Mode, sampler: bool) -> None:
    alone = Run(mode, sampler=sampler).train(35)
    assert sum(entry >= 0 for _, entries in alone for entry in entries) > 20
    for workers, options in (
        (1, {"prefetch_factor": 4}),
        (2, {"prefetch_factor": 1}),
        (2, {"prefetch_factor": 4, "persistent_workers": True}),
        (4, {"prefetch_factor": 2}),
    ):
        assert Run(mode, workers, sampler, **options).train(35) == alone


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampler", [False, True])
def test_resuming_after_every_batch_of_two_epochs_gives_the_same_rest(
    mode: Mode, sampler: bool
) -> None:
    run = Run(mode, sampler=sampler)
    steps = 2 * len(run.loader)
    whole = Run(mode, sampler=sampler).train(steps + 12)
    for stop in range(1, steps + 1):
        first = Run(mode, sampler=sampler)
        assert first.train(stop) == whole[:stop]
        resumed = Run(mode, sampler=sampler)
        resumed.loader.load_state_dict(first.saved())
        assert resumed.train(steps + 12 - stop) == whole[stop:]


def test_leaving_a_loop_early_is_counted_and_changes_no_draw() -> None:
    plain, left = Run("stretch", 2), Run("stretch", 2)
    whole = plain.train(3)
    assert left.train(3) == whole
    left.train(3)  # a new loop: what had been drawn ahead is given up
    metrics = left.loader.metrics()
    assert metrics["rolled_back"] > 0
    assert metrics["issued"] == (
        metrics["delivered"] + metrics["in_flight"] + metrics["rolled_back"]
    )


def test_a_state_holds_the_buffer_and_a_wrong_one_changes_nothing() -> None:
    run = Run("replace")
    run.train(12)
    state = run.saved()
    other = Run("replace")
    other.loader.load_state_dict(state)
    assert other.buffer.keys.tolist() == run.buffer.keys.tolist()
    before = repr(other.loader.state_dict())
    for part, change in (("mixer", {"seed": 9}), ("buffer", {"capacity": 9})):
        wrong = {**state, part: {**state[part], **change}}
        with pytest.raises(StateMismatchError):
            other.loader.load_state_dict(wrong)
        assert repr(other.loader.state_dict()) == before


def test_auto_takes_the_least_lag_that_the_workers_allow() -> None:
    plain = DataLoader(numbers(40), batch_size=4, num_workers=2, prefetch_factor=3)
    loader = BufferedMixSampler.wrap(plain, RareMemoryBuffer(4), lag="auto")
    assert loader.mixer.lag == 7
    with pytest.raises(OptionError, match="whole number or \"auto\", got 'aut'"):
        BufferedMixSampler.wrap(plain, RareMemoryBuffer(4), lag="aut")  # type: ignore[arg-type]
    assert sum(len(data) for (data,) in loader) == 40


@pytest.mark.parametrize("mode", MODES)
def test_a_changed_default_device_changes_nothing(mode: Mode) -> None:
    expected = Run(mode).train(12)
    try:
        torch.set_default_device("meta")
        run = Run(mode)
        mix = run.loader.mixer
        drawn: list[tuple[list[int], list[int]]] = []
        while len(drawn) < 12:
            for _ in mix.batches():
                batch = mix.deliver()
                assert batch.ids.device.type == "cpu"
                drawn.append((batch.ids.tolist(), batch.entry.tolist()))
                scores = batch.ids.float()
                run.buffer.add(batch, Flags(scores, batch.ids % 4 == 0))
                if len(drawn) == 12:
                    break
    finally:
        torch.set_default_device(None)
    assert drawn == expected


# ---------------------------------------------------------------------- another world


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 4)])
@pytest.mark.parametrize("stop", [0, 3, 5])
def test_the_rest_of_an_epoch_is_shared_out_among_other_ranks(
    mode: Mode, before: int, after: int, stop: int
) -> None:
    total = 120

    def ranks(count: int) -> list[BufferedMixSampler]:
        return [
            BufferedMixSampler(
                range(total),
                RareMemoryBuffer(4),
                batch_size=6,
                replay=0.34,
                mode=mode,
                lag=1,
                num_replicas=count,
                rank=rank,
            )
            for rank in range(count)
        ]

    def rows(mix: BufferedMixSampler, batches: int | None) -> list[int]:
        found: list[int] = []
        for _ in mix.batches():
            if batches is not None and batches == 0:
                break
            found += base_rows(mix.deliver())
            if batches is not None:
                batches -= 1
                if batches == 0:
                    break
        return found

    old = ranks(before)
    seen = [key for mix in old for key in (rows(mix, stop) if stop else [])]
    new = ranks(after)
    for mix in new:
        mix.buffer.load_state_dict(old[0].buffer.state_dict())  # type: ignore[attr-defined]
        mix.load_state_dict(old[0].state_dict())
    rest = [key for mix in new for key in rows(mix, None)]
    # Ranks get equally many rows, so the first ones of the order fill up at the end.
    assert set(seen) | set(rest) == set(range(total))
    assert len(seen) + len(rest) < total + after
    assert len(set(seen) & set(rest)) <= after


def test_a_sampler_that_shards_for_itself_is_refused_inside_an_epoch_only() -> None:
    def build(count: int) -> BufferedMixSampler:
        return BufferedMixSampler(
            Resumable(), RareMemoryBuffer(4), batch_size=4, lag=1, num_replicas=count, rank=0
        )

    first = build(1)
    state = first.state_dict()
    build(2).load_state_dict(state)
    next(first.batches())
    first.deliver()
    with pytest.raises(
        StateMismatchError, match="of 1 ranks from inside an epoch, and there are 2"
    ):
        build(2).load_state_dict(first.state_dict())


# ---------------------------------------------------------------------- torchdata

quiet = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata, on new torch


@quiet
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_stays_one_and_resumes_the_mixed_stream(mode: Mode, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def build() -> Run:
        run = Run(mode)
        plain = stateful(numbers(60), batch_size=6, shuffle=True, num_workers=workers)
        run.loader = BufferedMixSampler.wrap(plain, run.buffer, mode=mode, replay=0.34, lag=10)
        assert isinstance(run.loader, stateful)
        return run

    whole = Run(mode).train(40)
    assert build().train(40) == whole
    for stop in (1, 7, len(build().loader), 17):
        first = build()
        assert first.train(stop) == whole[:stop]
        resumed = build()
        resumed.loader.load_state_dict(first.saved())
        assert resumed.train(40 - stop) == whole[stop:]


@quiet
def test_a_dataset_with_a_state_in_a_stateful_loader_is_refused() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    class WithState(TensorDataset):
        def state_dict(self) -> dict[str, int]:
            return {}

    plain = stateful(WithState(torch.arange(8)), batch_size=4)
    with pytest.raises(TypeError, match="cannot keep the state that WithState saves"):
        BufferedMixSampler.wrap(plain, RareMemoryBuffer(4))
