"""Several samples that come at once: the same as one after the other, and safe among threads."""

import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raremix import FIFO, BufferEntries, LeastRedundant, RareMemoryBuffer


class Plain(FIFO):
    """First in, first out, of which the buffer does not know that it may take all in at once."""

    def __repr__(self) -> str:
        return "FIFO()"


def some(keys: list[int], *, with_crops: bool, with_features: bool) -> BufferEntries:
    ids = torch.tensor(keys, dtype=torch.int64)
    crops = (
        (ids % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 4) if with_crops else None
    )
    features = torch.stack([ids.cos(), ids.sin()], dim=1) if with_features else None
    return BufferEntries(ids, ids / 7, crops, features)


def assert_same(one: object, other: object) -> None:
    if isinstance(one, Tensor):
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name])
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple))
        assert len(one) == len(other)
        for value, there in zip(one, other, strict=True):
            assert_same(value, there)
    else:
        assert one == other


@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=14), max_size=8),
    with_crops=st.booleans(),
    with_features=st.booleans(),
    lag=st.integers(0, 2),
)
def test_a_batch_taken_in_at_once_leaves_what_row_after_row_would(
    capacity: int, batches: list[list[int]], with_crops: bool, with_features: bool, lag: int
) -> None:
    at_once = RareMemoryBuffer(capacity)
    row_by_row = RareMemoryBuffer(capacity, policy=Plain())
    for step, keys in enumerate(batches):
        for buffer in (at_once, row_by_row):
            if lag:
                buffer.attach(lag)
                buffer.advance(step)
            buffer.admit(some(keys, with_crops=with_crops, with_features=with_features))
        assert_same(at_once.state_dict(), row_by_row.state_dict())
        assert_same(vars(at_once.entries), vars(row_by_row.entries))
        assert at_once.nbytes == row_by_row.nbytes == 24 * len(at_once) * with_crops
        if lag:
            asked = {"taken": (), "below": None, "seed": step}
            drawn = [b.draw_ahead(step + 1, 3, **asked) for b in (at_once, row_by_row)]  # type: ignore[arg-type]  # mypy mixes the values' types
            assert drawn[0] == drawn[1]


def test_threads_that_bring_the_first_samples_at_once_are_all_heard() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    problems: list[Exception] = []

    def bring(buffer: RareMemoryBuffer, first: int) -> None:
        try:
            for key in range(first, 12, 3):
                buffer.admit(some([key], with_crops=True, with_features=True))
        except Exception as problem:
            problems.append(problem)

    try:
        for _ in range(100):
            buffer = RareMemoryBuffer(16, policy=LeastRedundant())
            threads = [threading.Thread(target=bring, args=(buffer, n)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not problems
            assert sorted(buffer.keys.tolist()) == list(range(12))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_crops_of_any_strides_come_out_as_they_went_in(layout: str) -> None:
    crops = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    given_ = crops if layout == "contiguous" else crops.to(memory_format=torch.channels_last)
    buffer = RareMemoryBuffer(3)
    buffer.admit(BufferEntries(torch.arange(5), torch.ones(5), given_))
    held = buffer.entries.crops
    assert held is not None
    assert torch.equal(held, crops[2:])
