"""What every stream of mixed batches keeps to, whatever the buffer holds."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from feedback import Flags
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from raremix import Batch, BufferedMixSampler, BufferEntries, MixedLoader, RareMemoryBuffer
from raremix.errors import LagError, OptionError


def judge(ids: Tensor) -> Flags:
    return Flags(ids.float(), ids % 5 == 0)


def full_buffer(keys: int, capacity: int = 64) -> RareMemoryBuffer:
    buffer = RareMemoryBuffer(capacity)
    buffer.admit(BufferEntries(torch.arange(keys), torch.ones(keys), None))
    return buffer


def numbers(count: int) -> "TensorDataset":
    return TensorDataset(torch.arange(count))


def rounds(mix: BufferedMixSampler, buffer: RareMemoryBuffer, epochs: int = 1) -> list[Batch]:
    """Draw and deliver one batch after the other, with feedback for each."""
    batches = []
    for _ in range(epochs):
        for _ in mix.batches():
            batches.append(mix.deliver())
            buffer.add(batches[-1], judge(batches[-1].ids))
    return batches


def delivered(loader: MixedLoader[tuple[Tensor, ...]], buffer: RareMemoryBuffer) -> Iterator[Batch]:
    for (data,) in loader:
        assert data.tolist() == loader.batch.ids.tolist()
        buffer.add(loader.batch, judge(loader.batch.ids))
        yield loader.batch


@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 60),
    width=st.integers(2, 9),
    replay=st.floats(0.0, 0.99),
    held=st.integers(0, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    lag=st.integers(1, 4),
)
def test_width_and_number_of_batches_do_not_depend_on_the_buffer(
    total: int, width: int, replay: float, held: int, shuffle: bool, drop_last: bool, lag: int
) -> None:
    base = DataLoader(numbers(total), batch_size=width, shuffle=shuffle, drop_last=drop_last)
    buffer = full_buffer(held, capacity=100)
    loader = BufferedMixSampler.wrap(base, buffer, replay=replay, lag=lag)
    widths = [min(width, total - start) for start in range(0, total, width)]
    if drop_last:
        widths = [each for each in widths if each == width]
    assert len(loader) == len(base) == len(widths)
    for _ in range(2):
        batches = list(delivered(loader, buffer))
        assert [len(batch) for batch in batches] == widths
        for batch in batches:
            assert len(set(batch.ids.tolist())) == len(batch)
            assert 0 <= int(batch.ids.min()) <= int(batch.ids.max()) < total
            assert int(batch.is_replay.sum()) < max(len(batch), 1)


@settings(deadline=None, max_examples=40)
@given(shuffle=st.booleans(), replay=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_rows_that_were_not_replaced_keep_their_place_in_the_base_order(
    shuffle: bool, replay: float, seed: int
) -> None:
    def batches(share: float) -> list[Batch]:
        buffer = full_buffer(20)
        mix = BufferedMixSampler(
            range(50), buffer, batch_size=8, replay=share, shuffle=shuffle, seed=seed, lag=1
        )
        return rounds(mix, buffer, epochs=3)

    plain, mixed = batches(0.0), batches(replay)
    assert len(plain) == len(mixed)
    assert any(bool(batch.is_replay.any()) for batch in mixed)
    for base, batch in zip(plain, mixed, strict=True):
        assert not base.is_replay.any()
        assert torch.equal(base.ids[~batch.is_replay], batch.ids[~batch.is_replay])


def test_the_replay_share_is_exact_once_the_buffer_is_full() -> None:
    buffer = full_buffer(64)
    mix = BufferedMixSampler(range(1000), buffer, batch_size=32, replay=0.25, lag=3)
    shares = [int(batch.is_replay.sum()) for batch in rounds(mix, buffer)]
    # 1000 rows are 31 batches of 32 and one of 8; lag 3 hears of the buffer from batch 3 on.
    assert shares == [8] * 31 + [2]  # also the first: it was filled before


@pytest.mark.parametrize(
    ("width", "replay", "rows"),
    [(8, 0.001, 1), (8, 0.99, 7), (2, 0.9, 1), (8, 0.125, 1), (8, 0, 0)],
)
def test_the_share_is_at_least_one_row_and_at_most_all_but_one(
    width: int, replay: float, rows: int
) -> None:
    buffer = full_buffer(64)
    mix = BufferedMixSampler(range(200), buffer, batch_size=width, replay=replay, lag=1)
    batches = [batch for batch in rounds(mix, buffer)[1:] if len(batch) == width]
    assert {int(batch.is_replay.sum()) for batch in batches} == {rows}


def test_replay_zero_is_the_base_loader_in_the_order_of_its_seed() -> None:
    buffer = full_buffer(10)
    loader = BufferedMixSampler.wrap(DataLoader(numbers(20), batch_size=6), buffer, replay=0.0)
    ids = [batch.ids.tolist() for batch in delivered(loader, buffer)]
    assert ids == [list(range(0, 6)), list(range(6, 12)), list(range(12, 18)), [18, 19]]


def test_every_base_id_comes_once_an_epoch_while_the_buffer_is_cold() -> None:
    mix = BufferedMixSampler(range(37), RareMemoryBuffer(4), batch_size=5)
    assert sorted(mix) == list(range(37))


def test_epochs_are_shuffled_anew_and_alike_for_a_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        buffer = RareMemoryBuffer(4)
        mix = BufferedMixSampler(range(40), buffer, batch_size=40, seed=seed, replay=0.1)
        return [batch.ids.tolist() for batch in rounds(mix, buffer, epochs=2)]

    first, second = order(3)
    assert first != second
    assert order(3) == [first, second]
    assert order(4) != [first, second]


def test_iter_does_nothing_before_the_first_batch_is_asked_for() -> None:
    def run(idle: bool) -> list[list[int]]:
        buffer = full_buffer(30)
        loader = BufferedMixSampler.wrap(
            DataLoader(numbers(40), batch_size=8, shuffle=True), buffer, lag=1
        )
        ids = []
        for _ in range(3):
            if idle:
                iter(loader), iter(loader.mixer), loader.mixer.batches()
            ids += [batch.ids.tolist() for batch in delivered(loader, buffer)]
        return ids

    assert run(idle=True) == run(idle=False)


def test_no_global_generator_is_touched() -> None:
    buffer = full_buffer(30)
    mix = BufferedMixSampler(range(100), buffer, batch_size=8, lag=1)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    rounds(mix, buffer, epochs=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert repr(before[1]) == repr(np.random.get_state())
    assert before[2] == random.getstate()


def test_the_global_generators_do_not_reach_the_stream() -> None:
    def run(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        buffer = full_buffer(30)
        base = DataLoader(numbers(60), batch_size=8, shuffle=True)
        loader = BufferedMixSampler.wrap(base, buffer, lag=1)
        return [batch.ids.tolist() for _ in range(2) for batch in delivered(loader, buffer)]

    assert run(0) == run(1)


@pytest.mark.parametrize("told", [False, True])
def test_leaving_after_three_batches_begins_the_next_epoch(told: bool) -> None:
    buffer = RareMemoryBuffer(4)
    loader = BufferedMixSampler.wrap(
        DataLoader(numbers(80), batch_size=8, shuffle=True), buffer, replay=0.0
    )
    orders, steps = [], []
    for epoch in range(5):
        if told:
            loader.set_epoch(epoch)
        seen: list[int] = []
        for batch in delivered(loader, buffer):
            seen += batch.ids.tolist()
            steps.append(batch.step)
            if len(seen) == 24:
                break
        orders.append(seen)
    assert steps == list(range(15))
    reference = BufferedMixSampler(range(80), RareMemoryBuffer(4), batch_size=8, replay=0.0)
    assert orders == [
        [
            key
            for batch, _ in zip(reference._base.batches(epoch, 0), range(3), strict=False)
            for key in batch
        ]
        for epoch in range(5)
    ]


@pytest.mark.parametrize("leave_early", [False, True])
def test_setting_the_same_epoch_again_gives_the_same_base_order(leave_early: bool) -> None:
    buffer = RareMemoryBuffer(4)
    loader = BufferedMixSampler.wrap(
        DataLoader(numbers(40), batch_size=8, shuffle=True), buffer, replay=0.0
    )
    firsts: list[list[int]] = []
    for _ in range(3):
        loader.set_epoch(2)
        for batch in delivered(loader, buffer):
            if batch.step == len(firsts) * (1 if leave_early else 5):
                firsts.append(batch.ids.tolist())
            if leave_early:
                break
    assert len(firsts) == 3
    assert firsts[0] == firsts[1] == firsts[2]


def test_keys_outside_the_dataset_are_never_drawn() -> None:
    buffer = RareMemoryBuffer(64)
    keys = torch.tensor([-3, 3, 50, 1000])
    buffer.admit(BufferEntries(keys, torch.ones(4), None))
    mix = BufferedMixSampler(range(50), buffer, batch_size=5, replay=0.5, lag=1)
    batches = rounds(mix, RareMemoryBuffer(1), epochs=4)
    assert {int(key) for batch in batches for key in batch.ids[batch.is_replay]} == {3}


def test_turning_the_sampler_into_a_list_raises_once_feedback_is_missing() -> None:
    mix = BufferedMixSampler(range(100), RareMemoryBuffer(4), batch_size=5, lag=8)
    with pytest.raises(LagError, match=r"asked for batch 8 when 0 batches had been delivered"):
        list(mix)


def test_delivering_a_batch_that_was_not_drawn_raises() -> None:
    mix = BufferedMixSampler(range(20), RareMemoryBuffer(4), batch_size=5)
    with pytest.raises(LagError, match="no batch on its way"):
        mix.deliver()
    next(mix.batches())
    mix.deliver()
    with pytest.raises(LagError, match="no batch on its way"):
        mix.deliver()


def test_missing_feedback_counts_as_nothing_found() -> None:
    def run(silent: bool) -> list[list[int]]:
        buffer = RareMemoryBuffer(8)
        mix = BufferedMixSampler(range(200), buffer, batch_size=10, lag=2)
        ids = []
        for _ in mix.batches():
            batch = mix.deliver()
            ids.append(batch.ids.tolist())
            if batch.step % 3:
                buffer.add(batch, judge(batch.ids))
            elif not silent:
                buffer.add(batch, Flags(batch.ids.float(), torch.zeros(10, dtype=torch.bool)))
        return ids

    assert run(silent=True) == run(silent=False)


def test_feedback_by_ids_alone_belongs_to_the_batch_in_hand() -> None:
    def run(by_ids: bool) -> list[list[int]]:
        buffer = RareMemoryBuffer(1000)
        loader = BufferedMixSampler.wrap(
            DataLoader(numbers(200), batch_size=10, shuffle=True), buffer, lag=2
        )
        ids = []
        for _ in loader:
            batch = loader.batch
            ids.append(batch.ids.tolist())
            buffer.add(batch.ids if by_ids else batch, judge(batch.ids))
        assert buffer.metrics()["late"] == 0
        return ids

    assert run(by_ids=True) == run(by_ids=False)


def test_a_second_loader_may_follow_the_first_on_one_buffer() -> None:
    buffer = RareMemoryBuffer(16)
    for width in (10, 20):
        loader = BufferedMixSampler.wrap(
            DataLoader(numbers(1000), batch_size=width, shuffle=True), buffer, lag=2
        )
        shares = [int(batch.is_replay.sum()) for batch in delivered(loader, buffer)]
        assert all(shares[4:])
    assert buffer.metrics()["late"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": 1.0}, r"replay as a number in \[0, 1\), got 1.0"),
        ({"replay": float("nan")}, "got nan"),
        ({"lag": 0}, "lag as a whole number of at least 1, got 0"),
        ({"batch_size": 1}, "cannot replay in batches of one row"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"batch_size": None}, "expects a batch_size, since its base yields single ids"),
        ({"num_replicas": 2, "rank": 2}, r"rank in \[0, 2\), got 2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BufferedMixSampler(range(9), RareMemoryBuffer(4), **{"batch_size": 4, **options})  # type: ignore[arg-type]  # on purpose


def test_something_that_is_no_buffer_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expects a buffer such as RareMemoryBuffer\(1024\)"):
        BufferedMixSampler(range(9), [1, 2], batch_size=4)  # type: ignore[arg-type]  # on purpose


def test_batches_of_one_row_work_without_replay() -> None:
    buffer = full_buffer(5)
    mix = BufferedMixSampler(range(9), buffer, batch_size=1, replay=0.0)
    assert sorted(int(batch.ids) for batch in rounds(mix, buffer)) == list(range(9))
