"""What the buffer promises, one behaviour at a time."""

import copy
import gc
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from feedback import Flags, Rows
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raremix import BufferEntries, RareMemoryBuffer
from raremix.errors import (
    BufferProcessError,
    EmbeddingShapeError,
    LagError,
    OptionError,
    RaremixWarning,
    StateMismatchError,
)

# From Python 3.12 on, forking a process that has threads warns, and torch has threads.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def rows(step: int, ids: list[int], replayed: Sequence[int] = ()) -> Rows:
    return Rows(step, torch.tensor(ids), torch.tensor([key in replayed for key in ids]))


def flags(count: int, *, rare: bool = True, score: float = 1.0) -> Flags:
    return Flags(torch.full((count,), score), torch.full((count,), rare))


def crops(count: int, size: int = 2) -> Tensor:
    return torch.arange(count * 3 * size * size, dtype=torch.uint8).reshape(count, 3, size, size)


def seen(buffer: RareMemoryBuffer, step: int) -> list[int]:
    """All that a draw that looks back to this step may draw."""
    number = step + int(buffer.metrics()["lag"])
    drawn = buffer.draw_ahead(number, 1000, taken=set(), below=None, seed=0)
    return sorted(drawn.keys)


def snapshot(buffer: RareMemoryBuffer) -> str:
    return repr(buffer.state_dict())


def test_all_flagged_keeps_the_last_of_the_batch() -> None:
    buffer = RareMemoryBuffer(3)
    assert buffer.add([1, 2, 3, 4, 5], flags(5)) == 5
    assert buffer.keys.tolist() == [3, 4, 5]
    assert buffer.metrics()["evictions"] == 2


def test_none_flagged_admits_nothing() -> None:
    buffer = RareMemoryBuffer(3)
    assert buffer.add([1, 2], flags(2, rare=False)) == 0
    assert len(buffer) == 0
    assert buffer.draw(5).keys.tolist() == []


def test_an_empty_batch_is_a_batch() -> None:
    assert RareMemoryBuffer(3).add([], Flags(torch.empty(0), torch.empty(0, dtype=torch.bool))) == 0


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_neither_admits_nor_refreshes(score: float) -> None:
    buffer = RareMemoryBuffer(3)
    buffer.add([1], flags(1, score=2.0))
    assert buffer.add([1, 2], flags(2, score=score)) == 0
    assert buffer.entries.scores.tolist() == [2.0]


def test_a_replay_is_never_admitted_but_refreshes_its_score() -> None:
    buffer = RareMemoryBuffer(3)
    buffer.add(rows(0, [1]), flags(1, score=2.0))
    assert buffer.add(rows(1, [1, 9], replayed=[1, 9]), flags(2, score=5.0)) == 0
    assert buffer.entries.keys.tolist() == [1]
    assert buffer.entries.scores.tolist() == [5.0]
    metrics = buffer.metrics()
    assert (metrics["replays"], metrics["stale"], metrics["uses_max"]) == (2, 1, 1)


def test_how_many_of_the_replays_were_different_samples() -> None:
    buffer = RareMemoryBuffer(3)
    assert buffer.metrics()["unique_key_ratio"] != buffer.metrics()["unique_key_ratio"]  # NaN
    buffer.add(rows(0, [1, 2]), flags(2))
    for step, key in enumerate([1, 2, 1, 1], start=1):
        buffer.add(rows(step, [key], replayed=[key]), flags(1))
    assert buffer.metrics()["unique_key_ratio"] == 0.5


def test_found_again_keeps_its_place_in_the_queue() -> None:
    buffer = RareMemoryBuffer(2)
    for key in (1, 2, 1, 3):
        buffer.add([key], flags(1))
    assert buffer.keys.tolist() == [2, 3]


def test_one_id_twice_in_a_batch_is_held_once() -> None:
    buffer = RareMemoryBuffer(4)
    assert buffer.add([5, 5, 6], flags(3)) == 2
    assert buffer.keys.tolist() == [5, 6]


def test_feedback_that_comes_twice_is_counted_and_changes_nothing_else() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add(rows(0, [1]), flags(1))
    with pytest.warns(RaremixWarning, match="had its feedback already, or so late"):
        assert buffer.add(rows(0, [2]), flags(1)) == 0
    assert buffer.add(rows(0, [2]), flags(1)) == 0  # said once
    assert buffer.keys.tolist() == [1]
    assert buffer.metrics()["late"] == 2


def test_something_else_than_a_detection_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"what OODDetector\.observe returned.*got Tensor"):
        RareMemoryBuffer(4).add(rows(0, [1]), torch.ones(1))  # type: ignore[arg-type]


def test_batches_that_do_not_follow_each_other_are_refused() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.attach(2)
    with pytest.raises(LagError, match="batch 40 when it was at batch -1"):
        buffer.advance(40)


def test_feedback_is_late_once_a_draw_relied_on_its_step() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.attach(2)
    for step in range(3):
        buffer.advance(step)
    assert seen(buffer, 1) == []
    with pytest.warns(RaremixWarning, match="ignored it"):
        assert buffer.add(rows(1, [5]), flags(1)) == 0
    assert seen(buffer, 1) == []
    assert buffer.add(rows(2, [6]), flags(1)) == 1


def test_late_feedback_is_taken_while_no_draw_relied_on_it() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.attach(5)
    for step in range(4):
        buffer.advance(step)
    assert buffer.add(rows(2, [5]), flags(1)) == 1
    assert seen(buffer, 1) == []
    assert seen(buffer, 2) == [5]


def test_view_beyond_the_history_is_refused() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.attach(2)
    for step in range(6):
        buffer.advance(step)
    assert seen(buffer, 4) == []
    with pytest.raises(LagError, match=r"held after batch 3, but it is at batch 5 and remembers 2"):
        seen(buffer, 3)


def test_admit_works_at_any_time_and_takes_no_feedback_away() -> None:
    buffer = RareMemoryBuffer(8)
    buffer.attach(3)
    known = BufferEntries(torch.tensor([100]), torch.ones(1), None)
    assert buffer.admit(known) == 1
    assert buffer.admit(known) == 0
    buffer.advance(0)
    assert buffer.add(rows(0, [1]), flags(1)) == 1
    assert buffer.admit(BufferEntries(torch.tensor([101]), torch.ones(1), None)) == 1
    assert seen(buffer, 0) == [1, 100, 101]
    assert buffer.metrics()["late"] == 0


def test_admit_does_not_change_what_a_draw_has_relied_on() -> None:
    buffer = RareMemoryBuffer(2)
    buffer.attach(3)
    buffer.add(rows(0, [1, 2]), flags(2))
    assert seen(buffer, 0) == [1, 2]
    buffer.admit(BufferEntries(torch.tensor([3]), torch.ones(1), None))
    assert buffer.keys.tolist() == [2, 3]
    assert seen(buffer, 0) == [1, 2]


def test_older_feedback_after_admit_never_shows_more_than_the_capacity() -> None:
    buffer = RareMemoryBuffer(1)
    buffer.attach(5)
    buffer.add(rows(0, [1]), flags(1))
    for step in range(1, 4):
        buffer.advance(step)
    buffer.admit(BufferEntries(torch.tensor([2]), torch.ones(1), None))
    buffer.add(rows(2, [3]), flags(1))
    assert [seen(buffer, step) for step in range(4)] == [[1], [1], [1], [3]]


def test_ids_alone_may_fill_the_buffer_before_and_after_a_sampler_is_attached() -> None:
    buffer = RareMemoryBuffer(8)
    for key in range(3):
        assert buffer.add([key], flags(1)) == 1
    buffer.attach(4)
    for key in range(3, 6):
        assert buffer.add([key], flags(1)) == 1
    buffer.advance(0)
    assert buffer.add(rows(0, [6]), flags(1)) == 1
    assert seen(buffer, 0) == [0, 1, 2, 3, 4, 5, 6]
    assert buffer.metrics()["late"] == 0


def test_the_state_of_a_buffer_filled_without_a_loader_serves_a_loader() -> None:
    filled = RareMemoryBuffer(8)
    for key in range(5):
        filled.add([key], flags(1))
    buffer = RareMemoryBuffer(8)
    buffer.attach(4)
    buffer.load_state_dict(filled.state_dict())
    buffer.advance(0)
    assert buffer.add(rows(0, [9]), flags(1)) == 1
    assert seen(buffer, 0) == [0, 1, 2, 3, 4, 9]


def test_a_new_loader_may_begin_counting_on_a_used_buffer() -> None:
    buffer = RareMemoryBuffer(8)
    buffer.attach(2)
    for step in range(10):
        buffer.add(rows(step, [step]), flags(1))
    buffer.attach(2)
    buffer.advance(0)
    assert buffer.add(rows(0, [50]), flags(1)) == 1
    assert seen(buffer, 0) == [3, 4, 5, 6, 7, 8, 9, 50]


def test_crops_are_copied_on_the_way_in_and_out() -> None:
    buffer = RareMemoryBuffer(4)
    batch = crops(2)
    buffer.add([0, 1], flags(2), crops=batch)
    expected = batch.clone()
    batch.zero_()
    for held in (buffer.entries.crops, buffer.draw(2).crops, buffer.state_dict()["crops"][0]):
        assert held is not None
        held.add_(1)
    assert buffer.entries.crops is not None
    assert torch.equal(buffer.entries.crops, expected)


def test_a_stored_crop_keeps_only_its_own_bytes_alive() -> None:
    buffer = RareMemoryBuffer(4)
    batch = crops(64, size=8)
    buffer.add(list(range(64)), flags(64), crops=batch.expand(64, -1, -1, -1))
    for held in (buffer.state_dict()["crops"], buffer.entries.crops):
        assert held is not None
        assert held.untyped_storage().nbytes() == 4 * batch[0].nbytes
        assert held.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr()


@forks
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_crops_from_worker_batches_hold_no_descriptor() -> None:
    loader = DataLoader(Pixels(), batch_size=8, num_workers=1, multiprocessing_context="fork")
    buffer = RareMemoryBuffer(400)
    before = len(os.listdir("/proc/self/fd"))
    for pixels, ids in loader:
        buffer.add(ids, flags(len(ids)), crops=pixels)
        assert not buffer.state_dict()["crops"].is_shared()
    del loader, pixels, ids
    gc.collect()
    assert len(buffer) == 64
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_the_byte_budget_evicts_the_oldest() -> None:
    buffer = RareMemoryBuffer(10, max_bytes=30)
    buffer.add([0, 1, 2], flags(3), crops=crops(3))
    assert buffer.keys.tolist() == [1, 2]
    assert buffer.nbytes == 24


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (crops(2).float(), OptionError, r"uint8 of shape \(2, .* got torch.float32"),
        (crops(3), OptionError, r"uint8 of shape \(2, .* got torch.uint8 of shape \(3, 3, 2, 2\)"),
        (crops(2)[:, 0], OptionError, r"of shape \(2, 2, 2\)"),
        (
            crops(2, size=3)[:, :1],
            OptionError,
            r"shape \(1, 3, 3\), but holds crops of shape \(3, 2",
        ),
    ],
)
def test_crops_that_do_not_fit_change_nothing(
    bad: Tensor, error: type[Exception], message: str
) -> None:
    buffer = RareMemoryBuffer(4, max_bytes=30)
    buffer.attach(3)
    buffer.add(rows(0, [7]), flags(1), crops=crops(1))
    before = snapshot(buffer)
    with pytest.raises(error, match=message):
        buffer.add(rows(1, [8, 9]), flags(2), crops=bad)
    with pytest.raises(error, match=message):
        buffer.admit(BufferEntries(torch.tensor([8, 9]), torch.ones(2), bad))
    assert snapshot(buffer) == before


def test_a_crop_over_the_budget_is_refused_and_changes_nothing() -> None:
    buffer = RareMemoryBuffer(4, max_bytes=30)
    before = snapshot(buffer)
    with pytest.raises(OptionError, match="48 bytes each, more than max_bytes=30"):
        buffer.add([8, 9], flags(2), crops=crops(2, size=4))
    assert snapshot(buffer) == before


@pytest.mark.parametrize(
    "detection",
    [
        flags(3),
        Flags(torch.ones(2, 1), torch.ones(2, dtype=torch.bool)),
        Flags(torch.ones(2), torch.ones(1, dtype=torch.bool)),
        Flags(torch.tensor(1.0), torch.tensor(True)),
    ],
)
def test_a_detection_of_another_shape_is_refused_and_changes_nothing(detection: Flags) -> None:
    buffer = RareMemoryBuffer(4)
    buffer.attach(3)
    before = snapshot(buffer)
    with pytest.raises(EmbeddingShapeError, match="pass the detection of exactly this batch"):
        buffer.add(rows(0, [8, 9]), detection)
    assert snapshot(buffer) == before


def test_entries_of_another_number_than_the_ids_are_refused() -> None:
    batch = Rows(0, torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool), torch.zeros(3))
    with pytest.raises(EmbeddingShapeError, match=r"entries of shape \(3,\) for 2 ids"):
        RareMemoryBuffer(4).add(batch, flags(2))


def test_a_draw_leaves_out_what_is_taken() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add([1, 2, 3], flags(3))
    drawn = buffer.draw(3, taken={2})
    assert sorted(drawn.keys.tolist()) == [1, 3]
    assert drawn.probability is not None
    assert drawn.probability.tolist() == [1.0, 1.0]


def test_admit_wants_one_score_per_id() -> None:
    with pytest.raises(EmbeddingShapeError, match=r"got 2 ids for scores of shape \(3,\)"):
        RareMemoryBuffer(2).admit(BufferEntries(torch.tensor([1, 2]), torch.ones(3), None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity as a whole number of at least 1, got 0"),
        ({"capacity": 4, "max_bytes": 0}, "max_bytes as a whole number of at least 1, got 0"),
    ],
)
def test_a_size_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RareMemoryBuffer(**settings)


def test_draw_refuses_a_negative_count() -> None:
    with pytest.raises(OptionError, match="count as a whole number of at least 0, got -1"):
        RareMemoryBuffer(2).draw(-1)


def test_draw_with_a_generator_repeats_and_leaves_the_global_one_alone() -> None:
    buffer = RareMemoryBuffer(20)
    buffer.add(list(range(20)), flags(20))
    before = torch.get_rng_state()
    one, two = (
        buffer.draw(5, generator=torch.Generator().manual_seed(1)).keys.tolist() for _ in range(2)
    )
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 9}, "capacity was 9, is 4"),
        ({"max_bytes": 5}, "max_bytes was 5, is None"),
        ({"version": 1}, "reads version 2 of its state, got version 1"),
        ({"kind": "OODDetector"}, "got the state of a OODDetector"),
        ({"extra": 1}, r"unknown \['extra'\]"),
    ],
)
def test_a_state_of_another_make_is_refused_with_the_reason(
    change: dict[str, Any], message: str
) -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add([1], flags(1))
    before = snapshot(buffer)
    with pytest.raises(StateMismatchError, match=message):
        buffer.load_state_dict({**RareMemoryBuffer(4).state_dict(), **change})
    assert snapshot(buffer) == before


def test_a_loaded_state_is_a_copy() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add([1], flags(1), crops=crops(1))
    state = buffer.state_dict()
    buffer.add([2], flags(1), crops=crops(1))
    twin = RareMemoryBuffer(4)
    twin.load_state_dict(state)
    twin.add([3], flags(1), crops=crops(1))
    assert state["rows"]["key"].tolist() == [1]
    assert state["counts"]["admissions"] == 1
    assert buffer.keys.tolist() == [1, 2]


def test_deepcopy_gives_a_buffer_of_its_own() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add([1], flags(1))
    twin = copy.deepcopy(buffer)
    twin.add([2], flags(1))
    assert buffer.keys.tolist() == [1]
    assert twin.keys.tolist() == [1, 2]


def test_pickling_is_refused() -> None:
    with pytest.raises(BufferProcessError, match=r"cannot be pickled.*save state_dict\(\) instead"):
        pickle.dumps(RareMemoryBuffer(4))


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_may_not_change_the_buffer() -> None:
    buffer = RareMemoryBuffer(4)
    changes: list[Callable[[], object]] = [
        lambda: buffer.add([1], flags(1)),
        lambda: buffer.admit(BufferEntries(torch.tensor([1]), torch.ones(1), None)),
        lambda: buffer.advance(0),
        lambda: buffer.load_state_dict(buffer.state_dict()),
    ]
    child = os.fork()
    if child == 0:
        refused = 0
        for change in changes:
            try:
                change()
            except BufferProcessError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(changes)


class Pixels(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index


class AddsInTheWorker(Dataset[int]):
    def __init__(self, buffer: RareMemoryBuffer) -> None:
        self.buffer = buffer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        self.buffer.add([index], flags(1))
        return index


@forks
def test_a_loader_worker_may_not_change_the_buffer() -> None:
    buffer = RareMemoryBuffer(4)
    loader = DataLoader(AddsInTheWorker(buffer), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(BufferProcessError, match=r"add was called in another process"):
        list(loader)
    assert len(buffer) == 0


def test_a_worker_that_is_sent_the_buffer_says_so() -> None:
    buffer = RareMemoryBuffer(4)
    loader = DataLoader(AddsInTheWorker(buffer), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(BufferProcessError, match="keep the buffer out of datasets"):
        list(loader)


def test_admit_takes_lists_and_refuses_what_is_no_entry() -> None:
    buffer = RareMemoryBuffer(4)
    assert buffer.admit(BufferEntries([1, 2], [1.0, 2.0])) == 2  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"expects BufferEntries\(keys, scores\), got Tensor"):
        buffer.admit(torch.arange(3))  # type: ignore[arg-type]


def test_features_come_with_every_sample_or_with_none() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.add([1], flags(1), features=torch.ones(1, 3))
    with pytest.raises(OptionError, match="needs features with every sample, since those it holds"):
        buffer.add([2], flags(1))
