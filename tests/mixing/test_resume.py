"""A run that was saved anywhere and resumed equals the run that was never stopped."""

import io
from typing import Any

import pytest
import torch
from feedback import Flags
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from raremix import BufferedMixSampler, MixedLoader, RareMemoryBuffer
from raremix.errors import LagError, RaremixWarning, StateMismatchError

# From Python 3.12 on, forking a process that has threads warns, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

BATCHES = 6  # an epoch: 22 rows in batches of 4, the last one short
LAG = 5


Row = tuple[int, int, list[int], list[bool]]


class Run:
    """A training loop of which only the data is left."""

    def __init__(self, workers: int = 0, *, sharded: bool = False, tell: bool = False) -> None:
        dataset = TensorDataset(torch.arange(22))
        sampler: DistributedSampler[Any] | None = None
        if sharded:
            sampler = DistributedSampler(dataset, num_replicas=1, rank=0, seed=1)
        base = DataLoader(
            dataset,
            batch_size=4,
            shuffle=None if sharded else True,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        self.buffer = RareMemoryBuffer(5)
        self.loader: MixedLoader[tuple[Tensor, ...]] = BufferedMixSampler.wrap(
            base, self.buffer, replay=0.5, lag=LAG
        )
        self.tell = tell
        self.epoch = 0

    def train(self, batches: int, *, save_early: bool = False) -> tuple[list[Row], bytes]:
        """Deliver so many batches and save; ``save_early`` saves before the last feedback."""
        rows: list[Row] = []
        saved = b""
        while len(rows) < batches:
            if self.tell:
                self.loader.set_epoch(self.epoch)
            for (data,) in self.loader:
                batch = self.loader.batch
                assert data.tolist() == batch.ids.tolist()
                rows.append((self.epoch, batch.step, batch.ids.tolist(), batch.is_replay.tolist()))
                last = len(rows) == batches
                if last and save_early:
                    return rows, self.save()
                self.buffer.add(batch, Flags(batch.ids.float(), batch.ids % 3 == 0))
                if last:
                    return rows, self.save()
            self.epoch += 1
        return rows, saved

    def save(self) -> bytes:
        file = io.BytesIO()
        state = {
            "loader": self.loader.state_dict(),
            "buffer": self.buffer.state_dict(),
            "epoch": self.epoch,
        }
        torch.save(state, file)
        return file.getvalue()

    def load(self, saved: bytes) -> "Run":
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.buffer.load_state_dict(state["buffer"])
        self.loader.load_state_dict(state["loader"])
        self.epoch = state["epoch"]
        return self


def mixer_state(saved: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(saved), weights_only=True)["loader"]["mixer"]
    return state


def plain(**options: Any) -> list[Row]:
    return Run(**options).train(3 * BATCHES)[0]


@pytest.mark.parametrize("tell", [False, True], ids=["counting", "set_epoch"])
@pytest.mark.parametrize("sharded", [False, True], ids=["shuffled", "DistributedSampler"])
def test_resuming_after_any_batch_gives_the_same_rest(sharded: bool, tell: bool) -> None:
    whole = plain(sharded=sharded, tell=tell)
    assert sum(sum(row[3]) for row in whole) > 15
    for stop in range(1, 2 * BATCHES + 1):
        rows, saved = Run(sharded=sharded, tell=tell).train(stop)
        assert rows == whole[:stop]
        rest, _ = Run(sharded=sharded, tell=tell).load(saved).train(3 * BATCHES - stop)
        assert rest == whole[stop:]


@pytest.mark.parametrize("tell", [False, True], ids=["counting", "set_epoch"])
@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 1)])
def test_resuming_with_another_number_of_workers_gives_the_same_rest(
    before: int, after: int, tell: bool
) -> None:
    whole = plain(tell=tell)
    for stop in (2, BATCHES - 1, BATCHES, BATCHES + 3):
        rows, saved = Run(before, tell=tell).train(stop)
        assert rows == whole[:stop]
        assert Run(after, tell=tell).load(saved).train(3 * BATCHES - stop)[0] == whole[stop:]


def test_resuming_twice_in_one_epoch_gives_the_same_rest() -> None:
    whole = plain()
    rows, saved = Run().train(2)
    more, saved = Run().load(saved).train(2)
    rest, _ = Run().load(saved).train(3 * BATCHES - 4)
    assert rows + more + rest == whole


def test_a_state_saved_between_epochs_begins_the_next_one() -> None:
    whole = plain()
    for workers in (0, 2):
        run = Run(workers)
        rows = []
        for _ in run.loader:
            batch = run.loader.batch
            run.buffer.add(batch, Flags(batch.ids.float(), batch.ids % 3 == 0))
            rows.append(batch.ids.tolist())
        run.epoch = 1
        assert rows == [row[2] for row in whole[:BATCHES]]
        rest, _ = Run().load(run.save()).train(2 * BATCHES)
        assert rest == whole[BATCHES:]


def test_what_was_saved_before_the_first_batch_is_the_whole_run() -> None:
    assert Run().load(Run().save()).train(3 * BATCHES)[0] == plain()


def test_the_states_of_runs_with_and_without_workers_are_equal() -> None:
    for stop in (1, BATCHES - 1, BATCHES, BATCHES + 2):
        alone, with_workers = Run(), Run(2)
        alone.train(stop)
        with_workers.train(stop)
        assert repr(alone.loader.state_dict()) == repr(with_workers.loader.state_dict())


def test_a_run_stopped_between_batch_and_feedback_goes_on_without_that_feedback() -> None:
    rows, saved = Run().train(4, save_early=True)
    resumed = Run().load(saved)
    rest, _ = resumed.train(8)
    assert [row[1] for row in rows + rest] == list(range(12))
    assert resumed.buffer.metrics()["late"] == 0


def test_going_back_without_the_buffer_is_noticed() -> None:
    run = Run()
    _, saved = run.train(2)
    run.train(20)
    run.loader.mixer.load_state_dict(mixer_state(saved))
    with pytest.raises(LagError, match="loader and buffer do not belong together"):
        run.train(10)


def test_a_loader_loaded_without_its_buffer_is_noticed() -> None:
    _, saved = Run().train(20)
    run = Run()
    run.loader.mixer.load_state_dict(mixer_state(saved))
    with pytest.raises(LagError, match="Load the states of both"):
        run.train(1)


def test_a_loader_that_starts_anew_may_use_a_saved_buffer() -> None:
    _, saved = Run().train(3 * BATCHES)
    run = Run()
    run.buffer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True)["buffer"])
    rows, _ = run.train(2 * BATCHES)
    assert all(sum(row[3]) > 0 for row in rows[LAG:])
    assert run.buffer.metrics()["late"] == 0


def test_loading_in_the_middle_of_a_loop_ends_that_loop() -> None:
    run = Run()
    _, saved = run.train(3)
    under_way = iter(run.loader)
    next(under_way)
    run.load(saved)
    with pytest.raises(TypeError, match="iterated anew"):
        next(under_way)
    assert run.train(3)[0][0][1] == 3


def test_a_loop_left_before_its_first_batch_does_not_lose_the_place() -> None:
    _, saved = Run().train(2)
    mix = Run().load(saved).loader.mixer
    next(mix.batches())  # drawn, never delivered
    next(mix.batches())
    assert next(mix.batches()).step == 2
    assert (mix.epoch, mix.deliver().step) == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": 0.25}, "replay was 0.5, is 0.25"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"lag": 9}, "lag was 7, is 9"),
        ({"batch_size": 5}, "batch_size was 4, is 5"),
        ({"mode": "extend"}, "mode was 'replace', is 'extend'"),
    ],
)
def test_a_state_of_other_settings_is_refused(options: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "replay": 0.5, "lag": 7}
    saved = BufferedMixSampler(range(9), RareMemoryBuffer(4), **settings).state_dict()
    other = BufferedMixSampler(range(9), RareMemoryBuffer(4), **{**settings, **options})
    with pytest.raises(StateMismatchError, match=message):
        other.load_state_dict(saved)


@pytest.mark.parametrize(
    ("total", "options", "message"),
    [
        (9, {"shuffle": False}, "order was 'shuffled', is 'in order'"),
        (
            9,
            {"drop_last": True},
            "order was 'shuffled', is 'shuffled, without an incomplete batch'",
        ),
        (8, {}, "from inside an epoch of 9 samples, and its base has 8"),
    ],
)
def test_a_state_of_another_order_or_dataset_is_refused(
    total: int, options: dict[str, Any], message: str
) -> None:
    first = BufferedMixSampler(range(9), RareMemoryBuffer(4), batch_size=4, lag=7)
    next(first.batches())
    first.deliver()
    other = BufferedMixSampler(range(total), RareMemoryBuffer(4), batch_size=4, lag=7, **options)
    with pytest.raises(StateMismatchError, match=message):
        other.load_state_dict(first.state_dict())


def test_between_two_epochs_the_dataset_may_have_grown() -> None:
    first = BufferedMixSampler(range(9), RareMemoryBuffer(4), batch_size=4, lag=7)
    for _ in first.batches():
        first.deliver()
    first.close_epoch()
    grown = BufferedMixSampler(range(12), RareMemoryBuffer(4), batch_size=4, lag=7)
    grown.buffer.load_state_dict(first.buffer.state_dict())  # type: ignore[attr-defined]
    grown.load_state_dict(first.state_dict())
    assert sorted(key for batch in grown.batches() for key in batch.ids.tolist()) == list(range(12))


def test_a_sampler_that_is_never_told_of_a_delivery_says_so() -> None:
    mix = BufferedMixSampler(range(9), RareMemoryBuffer(4), batch_size=4, lag=7)
    list(mix)
    with pytest.warns(RaremixWarning, match=r"told of no batch that arrived.*call deliver\(\)"):
        list(mix)
