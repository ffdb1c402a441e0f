"""Mixing crops behind a loader: streams, rows that are carried over, resuming, memory."""

import copy
import gc
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from feedback import Flags
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from raremix import (
    BufferedMixSampler,
    BufferEntries,
    CropLoader,
    CropMixer,
    MultiCropTransform,
    RareMemoryBuffer,
    View,
)
from raremix.errors import LoaderError, OptionError, StateMismatchError
from raremix.seeds import seeded_generator

# From Python 3.12 on, forking a process that has threads warns, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

TRANSFORM = MultiCropTransform.from_views([View(6, scale=(0.3, 1.0)), View(4, scale=(0.1, 0.4))])


def image(number: int) -> Tensor:
    """Pixels that carry their number in the first two, and noise in the others."""
    pixels = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=seeded_generator(7, number))
    pixels[0, 0, :2] = torch.tensor([number // 256, number % 256], dtype=torch.uint8)
    return pixels


def numbers(pixels: Tensor) -> Tensor:
    return pixels[:, 0, 0, 0].long() * 256 + pixels[:, 0, 0, 1].long()


class Stream(IterableDataset[Any]):
    """Views, pixels and a name, each once, shared out to the workers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, self.length, step):
            pixels = image(number)
            yield TRANSFORM(pixels, generator=seeded_generator(number)), pixels, f"name {number}"


class Pixels(Stream):
    """The same without views."""

    def __iter__(self) -> Iterator[Any]:
        return map(image, range(self.length))


def sample(views: list[Tensor], pixels: Tensor, id: int) -> Any:
    return views, pixels, f"name {int(numbers(pixels[None]))}"


def wrapped(length: int, buffer: RareMemoryBuffer, **options: Any) -> CropLoader[Any]:
    loader = DataLoader(Stream(length), batch_size=6)
    return CropMixer.wrap(loader, buffer, TRANSFORM, sample=sample, **options)


def judge(shown: Tensor) -> Flags:
    return Flags(shown.float(), shown % 5 == 0)


def shown_by(data: Any) -> Tensor:
    """Which images the rows show; every part must say the same."""
    shown = numbers(data[1])
    assert [int(name.split()[1]) for name in data[2]] == shown.tolist()
    return shown


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_mixed_and_counted(workers: int) -> None:
    class Counting(DataLoader[Any]):
        """Counts the rows it hands out and refuses to hand out others than it has read."""

        rows = 0

        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # as in raremix
            for data in super().__iter__():
                self.rows += len(data[1])
                assert len(data[0][0]) == len(data[0][1]) == len(data[1]) == len(data[2])
                yield data

    base = Counting(Stream(120), batch_size=6, num_workers=workers)
    buffer = RareMemoryBuffer(8)
    loader = CropMixer.wrap(base, buffer, TRANSFORM, sample=sample, replay=1 / 3)
    fresh, replayed, rows = [], [], 0
    for data in loader:
        shown, batch = shown_by(data), loader.batch
        rows += len(shown)
        fresh += shown[~batch.is_replay].tolist()
        replayed += shown[batch.is_replay].tolist()
        before = set(buffer.keys.tolist())
        assert set(batch.ids[batch.is_replay].tolist()) <= before
        buffer.add(batch, judge(shown), crops=data[1])
    assert rows == base.rows == 120
    assert len(fresh) == len(set(fresh)) == 120 - len(replayed)
    assert 30 <= len(replayed) <= 38  # two of six, but for the first batch
    assert all(number % 5 == 0 for number in replayed)
    assert set(numbers(buffer.entries.crops).tolist()) <= set(fresh)  # type: ignore[arg-type]
    assert buffer.metrics()["replays"] == len(replayed)
    assert buffer.metrics()["late"] == 0


def test_the_length_is_that_of_the_other_loader() -> None:
    buffer = RareMemoryBuffer(4)
    batches = [[torch.zeros(4, 3, 6, 6), torch.zeros(4, 3, 4, 4)] for _ in range(3)]
    loader = CropMixer.wrap(batches, buffer, TRANSFORM)
    assert len(loader) == 3
    assert [loader.batch.step for _ in range(2) for _ in loader] == list(range(6))
    with pytest.raises(TypeError, match="because generator has none"):
        len(CropMixer.wrap((batch for batch in batches), buffer, TRANSFORM))
    with pytest.raises(TypeError, match='no length with mode="stretch"'):
        len(CropMixer.wrap(batches, buffer, TRANSFORM, mode="stretch"))


def test_a_buffer_filled_before_is_replayed_from_the_first_batch_on() -> None:
    buffer = RareMemoryBuffer(4)
    for _ in range(3):  # no loader counts these calls
        buffer.add(torch.arange(2), Flags(torch.ones(2), torch.tensor([True, True])), crops=ones())
    loader = wrapped(24, buffer, replay=0.2)
    for data in loader:
        assert int(loader.batch.is_replay.sum()) == 1
        buffer.add(loader.batch, judge(shown_by(data)), crops=data[1])
    assert buffer.metrics()["late"] == 0
    assert buffer.metrics()["replays"] == 4


def ones() -> Tensor:
    return torch.stack([image(500), image(501)])


def test_a_buffer_does_not_feed_on_itself() -> None:
    # Everything that comes back is called rare again; only fresh rows may be admitted.
    buffer, capacity = RareMemoryBuffer(12), 12
    loader = wrapped(900, buffer, replay=1 / 3)
    seen: set[int] = set()
    for data in loader:
        shown, batch = shown_by(data), loader.batch
        rare = shown % 10 == 0
        seen |= set(shown[rare].tolist())
        buffer.add(batch, Flags(torch.ones(6), rare | batch.is_replay), crops=data[1])
        held = buffer.entries.crops
        if held is not None:
            assert len(set(numbers(held).tolist())) == len(buffer) == min(capacity, len(seen))
    assert len(seen) > 2 * capacity


@pytest.mark.parametrize("length", [126, 128])
def test_carried_rows_come_in_batches_of_their_own_and_none_is_lost(length: int) -> None:
    buffer = RareMemoryBuffer(10)
    loader = wrapped(length, buffer, replay=0.5, mode="stretch")
    fresh, widths, ids = [], [], []
    for data in loader:
        shown, batch = shown_by(data), loader.batch
        fresh += shown[~batch.is_replay].tolist()
        ids += batch.ids[~batch.is_replay].tolist()
        widths.append(len(shown))
        assert len(set(batch.ids.tolist())) == len(batch)
        assert loader.carried < 6 + 3 + 1
        buffer.add(batch, judge(shown), crops=data[1])
    assert len(widths) > length / 6 * 1.5
    assert set(widths) == {6} | ({2} if length % 6 else set())
    assert len(set(fresh)) == len(fresh) == length - loader.carried
    assert loader.carried < 6
    assert fresh == ids  # a row keeps its number; here that is the number of its image

    again = [shown for data in loader for shown in (shown_by(data),)]
    assert set(range(length)) - set(fresh) <= set(torch.cat(again).tolist())


def test_batches_of_carried_rows_are_nested_like_the_others() -> None:
    def batches() -> Iterator[Any]:
        for number in range(12):
            yield {
                "views": torch.full((4 * 2, 3, 6, 6), float(number)),  # view-major
                "box": (torch.arange(4) + 4 * number, [f"{4 * number + row}" for row in range(4)]),
                "temperature": torch.tensor(0.5),
            }

    buffer = RareMemoryBuffer(4)
    buffer.admit(BufferEntries(torch.tensor([900]), torch.ones(1), image(900)[None]))
    loader = CropMixer.wrap(
        batches(),
        buffer,
        MultiCropTransform.from_views([View(6, scale=(0.3, 1.0))] * 2),
        sample=lambda views, pixels, id: {
            "views": views,
            "box": (id, str(id)),
            "temperature": ...,
        },
        ids=lambda batch: batch["box"][0],
        rows=lambda batch: len(batch["box"][0]),
        mode="stretch",
    )
    fresh, count = [], 0
    for batch in loader:
        rows = loader.batch
        assert torch.equal(batch["box"][0], rows.ids)
        assert isinstance(batch["box"], tuple)
        assert batch["box"][1] == [str(id) for id in rows.ids.tolist()]
        assert batch["temperature"] == 0.5
        assert batch["views"].shape == (8, 3, 6, 6)
        for view in batch["views"].chunk(2):
            own = view.mean((1, 2, 3))[~rows.is_replay]
            assert torch.equal(own.long(), rows.ids[~rows.is_replay] // 4)
        fresh += rows.ids[~rows.is_replay].tolist()
        count += 1
    assert count == 15  # one row in four gives way, also in the batches made of those
    assert sorted(fresh) == sorted(set(range(48)) & set(fresh))
    assert len(fresh) == 48 - loader.carried


class Counted:
    """A stream of batches that can go on where it stood."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        while self.given < self.total:
            first = 6 * self.given
            self.given += 1
            rows = [image(number) for number in range(first, first + 6)]
            views = [TRANSFORM(row, generator=seeded_generator(3)) for row in rows]
            yield [
                [torch.stack(view) for view in zip(*views, strict=True)],
                torch.stack(rows),
                tuple(f"name {number}" for number in range(first, first + 6)),
            ]
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.given = state["given"]


class Run:
    def __init__(self, **options: Any) -> None:
        self.buffer = RareMemoryBuffer(5)
        self.loader: CropLoader[Any] = CropMixer.wrap(
            Counted(8), self.buffer, TRANSFORM, sample=sample, replay=0.4, seed=2, **options
        )

    def steps(self, count: int) -> list[Any]:
        seen: list[Any] = []
        while True:
            for data in self.loader:
                batch = self.loader.batch
                self.buffer.add(batch, judge(shown_by(data)), crops=data[1])
                seen.append([*data[0], data[1], batch.ids, batch.entry, batch.age, *data[2]])
                if len(seen) == count:
                    return copy.deepcopy(seen)

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(self.loader.state_dict(), file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        self.loader.load_state_dict(torch.load(file, weights_only=True))


def same(one: list[Any], two: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for rows, others in zip(one, two, strict=True)
        for a, b in zip(rows, others, strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"mode": "stretch"}, {"mode": "extend"}], ids=str)
def test_a_resumed_run_is_the_run_that_never_stopped(options: dict[str, Any]) -> None:
    if options.get("mode") == "extend":
        options = {**options, "pixels": lambda batch: batch[1]}
    total = 30  # epochs of 8 batches, and up to 5 more of carried rows
    expected = Run(**options).steps(total)
    replays, current = 0, Run(**options)
    for at in range(total):
        (row,) = current.steps(1)
        assert same([row], [expected[at]])
        replays += int((row[4] >= 0).sum())
        file, current = current.save(), Run(**options)
        current.load(file)
    assert replays > 30


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
def test_a_stateful_loader_goes_on_in_the_middle_of_a_stream() -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    class Resumable(Stream):
        at = 0

        def __iter__(self) -> Iterator[Any]:
            while self.at < self.length:
                self.at += 1
                yield TRANSFORM(image(self.at)), image(self.at), f"name {self.at}"

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = state["at"]

    def run() -> tuple[RareMemoryBuffer, CropLoader[Any]]:
        buffer = RareMemoryBuffer(6)
        base = torchdata.StatefulDataLoader(Resumable(60), batch_size=6)
        return buffer, CropMixer.wrap(base, buffer, TRANSFORM, sample=sample, replay=0.3)

    def rest(buffer: RareMemoryBuffer, loader: CropLoader[Any]) -> Iterator[list[int]]:
        for data in loader:
            shown = shown_by(data)
            buffer.add(loader.batch, judge(shown), crops=data[1])
            yield shown.tolist()

    expected = list(rest(*run()))
    stopped, resumed = run(), run()
    parts = rest(*stopped)
    seen = [next(parts) for _ in range(4)]
    resumed[1].load_state_dict(stopped[1].state_dict())
    assert [*seen, *rest(*resumed)] == expected


def test_a_state_that_does_not_fit_is_refused() -> None:
    run = Run(mode="stretch")
    run.steps(3)
    state = run.loader.state_dict()
    with pytest.raises(StateMismatchError, match="has something for rows that gave way"):
        Run().loader.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="has nothing for rows that gave way"):
        run.loader.load_state_dict(Run().loader.state_dict())
    with pytest.raises(StateMismatchError, match="has something for the loader inside"):
        wrapped(6, run.buffer, mode="stretch").load_state_dict(state)
    other = CropMixer.wrap(Counted(8), run.buffer, TRANSFORM, replay=0.3, mode="stretch")
    with pytest.raises(StateMismatchError, match=r"replay was 0.4, is 0.3; seed was 2, is 0"):
        other.load_state_dict(state)
    small = CropMixer.wrap(
        Counted(8), RareMemoryBuffer(4), TRANSFORM, replay=0.4, seed=2, mode="stretch"
    )
    with pytest.raises(StateMismatchError, match="capacity was 5, is 4"):
        small.load_state_dict(state)
    assert small.state_dict()["mixer"]["step"] == small.carried == 0


def test_behind_a_prefetcher_the_rows_are_those_of_the_batch_in_hand() -> None:
    def prefetching(loader: CropLoader[Any]) -> Iterator[Any]:
        before = None
        for data in loader:
            if before is not None:
                yield before
            before = data
        yield before

    buffer = RareMemoryBuffer(6)
    loader = wrapped(60, buffer, replay=0.4, mode="stretch", prefetched=True)
    for _ in range(2):
        steps, replays = [], 0
        for data in prefetching(loader):
            shown, batch = shown_by(data), loader.batch
            own = ~batch.is_replay
            assert torch.equal(shown[own], batch.ids[own] % 60)
            assert bool((shown[batch.is_replay] % 5 == 0).all())
            steps.append(batch.step)
            replays += int(batch.is_replay.sum())
            buffer.add(batch, judge(shown), crops=data[1])
        assert steps == list(range(steps[0], steps[0] + len(steps)))
        assert replays > 12
    assert buffer.metrics()["late"] == 0


@pytest.mark.filterwarnings("ignore")  # what Lightning says of logging, workers and pytree
def test_lightning_trains_on_a_mixed_stream() -> None:
    lightning = pytest.importorskip("lightning")
    buffer = RareMemoryBuffer(6)

    class Unsized(Stream):
        pass

    loader = CropMixer.wrap(
        DataLoader(Unsized(48), batch_size=6),
        buffer,
        TRANSFORM,
        sample=sample,
        replay=0.3,
        mode="stretch",
        prefetched=True,
    )
    seen: list[tuple[list[int], list[int], list[bool]]] = []

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, data: Any, number: int) -> Tensor:
            shown, batch = shown_by(data), loader.batch
            seen.append((shown.tolist(), batch.ids.tolist(), batch.is_replay.tolist()))
            buffer.add(batch, judge(shown), crops=data[1])
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), loader)
    assert len(seen) > 8
    for shown, ids, is_replay in seen:
        for image, id, replayed in zip(shown, ids, is_replay, strict=True):
            assert image % 5 == 0 if replayed else image == id
    assert sum(sum(is_replay) for _, _, is_replay in seen) > 8


def test_a_loader_that_cannot_be_mixed_is_refused() -> None:
    buffer = RareMemoryBuffer(4)
    loader = wrapped(12, buffer)
    rows = TensorDataset(torch.arange(9))
    by_ids = BufferedMixSampler.wrap(DataLoader(rows, batch_size=3), buffer)
    for mixed in (loader, by_ids):
        with pytest.raises(LoaderError, match="Loader, which is mixed already; wrap the plain"):
            CropMixer.wrap(mixed, buffer, TRANSFORM)
    with pytest.raises(LoaderError, match="expects a loader that yields batches, got int"):
        CropMixer.wrap(7, buffer, TRANSFORM)  # type: ignore[arg-type]  # the test
    with pytest.raises(
        OptionError, match="expects mode 'replace', 'stretch' or 'extend', got 'cut'"
    ):
        wrapped(12, buffer, mode="cut")
    with pytest.raises(OptionError, match="in batches of one row; raise batch_size"):
        CropMixer.wrap(DataLoader(Stream(4)), buffer, TRANSFORM)
    with pytest.raises(LoaderError, match="known once the first batch has been delivered"):
        loader.batch  # noqa: B018
    flat = DataLoader(Stream(12), batch_size=6, collate_fn=flattened)
    with pytest.raises(
        LoaderError, match="counted 12 rows in a batch of a loader with batch_size=6"
    ):
        next(iter(CropMixer.wrap(flat, buffer, TRANSFORM)))


def flattened(rows: list[Any]) -> Tensor:
    return torch.stack([row[0][place] for place in (0, 0) for row in rows])


def test_carried_rows_of_odd_batches_are_refused() -> None:
    class Odd(dict[str, Any]):
        pass

    def loader(*batches: Any) -> CropLoader[Any]:
        buffer = RareMemoryBuffer(4)
        buffer.admit(BufferEntries(torch.tensor([900]), torch.ones(1), image(900)[None]))
        return CropMixer.wrap(
            batches,
            buffer,
            TRANSFORM,
            sample=lambda views, pixels, id: {"a": id, "b": ...} if id else id,
            mode="stretch",
        )

    plain = {"a": torch.arange(4), "b": torch.arange(4)}
    with pytest.raises(
        LoaderError, match="expects batches of plain lists, tuples and dicts, got Odd"
    ):
        next(iter(loader(Odd(plain))))
    assert len(list(loader(plain, plain))) == 2


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_a_thousand_batches_from_workers_leave_nothing_behind() -> None:
    buffer = RareMemoryBuffer(32)
    loader = CropMixer.wrap(
        DataLoader(Pixels(1_000 * 4), batch_size=4, num_workers=1),
        buffer,
        lambda pixels, generator: pixels,
        replay=0.2,
    )
    marks = []
    for data in loader:
        buffer.add(loader.batch, Flags(torch.ones(4), torch.ones(4).bool()), crops=data)
        if loader.batch.step % 200 == 199:
            del data
            gc.collect()
            saved = sum(
                value.untyped_storage().nbytes()
                for value in buffer.state_dict().values()
                if isinstance(value, Tensor)
            )
            marks.append((resident(), descriptors(), buffer.nbytes, saved))
    memory, open_files, held, saved_bytes = zip(*marks, strict=True)
    assert len(marks) == 5
    assert set(held) == {32 * 3 * 8 * 8}
    assert len(set(saved_bytes[1:])) == 1
    assert max(open_files) - min(open_files) <= 2  # a batch may be on its way
    assert memory[-1] - memory[0] < 4 << 20
    assert int(buffer.metrics()["admissions"]) > 2_900


def test_two_loops_at_once_are_stopped() -> None:
    loader = wrapped(48, RareMemoryBuffer(8))
    first = iter(loader)
    next(first)
    assert len(list(loader)) > 1
    with pytest.raises(LoaderError, match="iterated anew while an earlier iteration still went on"):
        next(first)
