"""Times the buffer and the sampler against the libraries that one would use instead; a script, not a test.

    python tests/benchmarks/bench_memory.py --job crops draws --out memory-table.md
    python tests/benchmarks/bench_memory.py --quick

``pip install raremix[bench]`` brings the peers. Every contender runs once in each round, so that a
slow moment of the machine falls on all of them, and a ratio is the median of the ratios of the
rounds. Times are processor time, which other processes disturb less than the clock on the wall.

Two peers cannot be installed and are given as reference models: mammoth, which is no package, and
the memory of MinRed. Nothing in them is slower than what they stand for.
"""

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import logging
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import peer
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, TensorDataset

from raremix import (
    BufferedMixSampler,
    BufferEntries,
    LeastRedundant,
    MultiCropTransform,
    RareMemoryBuffer,
)

OURS = "raremix"
ADDED, DRAWN, HELD = 16, 32, 1024
BATCH, REPLAYS, RARE = 256, 32, 13
DIM = 128
TOTAL = 500_000
# Taken in turn, as each batch of a loader lies elsewhere: one alone would stay in the cache.
SOURCES = 8


@dataclass(frozen=True)
class Flags:
    """What a detector says of a batch."""

    scores: Tensor
    is_rare: Tensor


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: What the table calls it.
        run: One call of it.
        calls: How many calls a round has.
        nbytes: Bytes of pixels that a call moves.
    """

    name: str
    run: Callable[[], object]
    calls: int = 100
    nbytes: int = 0


@dataclass(frozen=True)
class Options:
    quick: bool
    repeats: int

    def size(self, number: int) -> int:
        """As many as asked for, or few."""
        return max(number // 16, 8) if self.quick else number


def seconds(contender: Contender) -> float:
    """Processor time of a call."""
    start = time.process_time()
    for _ in range(contender.calls):
        contender.run()
    return (time.process_time() - start) / contender.calls


def timed(contenders: list[Contender], repeats: int) -> dict[str, list[float]]:
    """Seconds of a call of each, round by round."""
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats + 1):
        for contender in contenders:
            took = seconds(contender)
            if turn:  # the first warms up
                taken[contender.name].append(took)
    return taken


def over(taken: dict[str, list[float]], name: str, base: str) -> float:
    """How many times as long one took as another, in the median round."""
    return statistics.median(a / b for a, b in zip(taken[name], taken[base], strict=True))


def table(
    title: str, contenders: list[Contender], options: Options, *, base: str = OURS
) -> list[str]:
    """Time the contenders and write down each beside ``base``."""
    taken = timed(contenders, options.repeats)
    with_bytes = any(contender.nbytes for contender in contenders)
    lines = [f"### {title}", ""]
    lines += [
        f"| | median |{' rate |' if with_bytes else ''} times {base} |",
        f"|---|---|{'---|' if with_bytes else ''}---|",
    ]
    for contender in contenders:
        median = statistics.median(taken[contender.name])
        rate = f" {contender.nbytes / median / 1e9:.2f} GB/s |" if with_bytes else ""
        ratio = over(taken, contender.name, base)
        lines.append(f"| {contender.name} | {micro(median)} |{rate} {ratio:,.2f} |")
    return [*lines, ""]


def micro(took: float) -> str:
    return f"{took * 1e6:,.0f} us" if took < 0.1 else f"{took * 1e3:,.0f} ms"


# ------------------------------------------------------------------ crops


class MammothBuffer:
    """A reference model of the buffer of mammoth, ``Buffer`` in its utils/buffer.py.

    Source:
        Boschini et al., Class-Incremental Continual Learning into the eXtended DER-verse, TPAMI
        2022, https://github.com/aimagelab/mammoth/blob/master/utils/buffer.py. There, images are
        kept as float32; here as uint8, which is less to move.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.seen = capacity, 0
        self.examples = self.labels = torch.empty(0)

    def add_data(self, examples: Tensor, labels: Tensor) -> None:
        """Each row by algorithm R: it overwrites a row at random, or is left out."""
        if not self.seen:
            self.examples = torch.zeros((self.capacity, *examples.shape[1:]), dtype=torch.uint8)
            self.labels = torch.zeros(self.capacity, dtype=torch.int64)
        for row in range(len(examples)):
            place = self.seen
            if self.seen >= self.capacity:
                # Theirs draws below the number seen, so that ever fewer rows come in.
                place = int(np.random.randint(0, self.capacity))
            self.seen += 1
            self.examples[place] = examples[row]
            self.labels[place] = labels[row]

    def get_data(self, size: int) -> tuple[Tensor, Tensor]:
        """Rows at random, none twice, each given to a transform, which does nothing here."""
        chosen = np.random.choice(min(self.seen, self.capacity), size=size, replace=False)
        return torch.stack(list(self.examples[chosen])), self.labels[chosen]


@dataclass(frozen=True)
class CropBuffer:
    """A buffer of crops.

    Attributes:
        name: What the table calls it.
        add: Takes (n, 3, side, side) uint8 crops and their (n,) ids.
        draw: Gives that many crops and their ids.
        is_slow: Whether it is given few calls.
    """

    name: str
    add: Callable[[Tensor, Tensor], object]
    draw: Callable[[], object]
    is_slow: bool = False


def our_crops() -> CropBuffer:
    buffer, generator = RareMemoryBuffer(HELD), torch.Generator()
    flags = Flags(torch.rand(ADDED), torch.ones(ADDED, dtype=torch.bool))
    return CropBuffer(
        OURS,
        lambda crops, ids: buffer.add(ids, flags, crops=crops),
        lambda: buffer.draw(DRAWN, generator=generator),
    )


def crop_peers() -> Iterator[CropBuffer]:
    """Everyone else. Crops are copied on the way in: kept as views, they would keep their batch."""
    torchrl = peer("torchrl.data")
    if torchrl is not None:
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        tensordict = peer("tensordict")

        block = torchrl.ReplayBuffer(storage=torchrl.LazyTensorStorage(HELD), batch_size=DRAWN)
        yield CropBuffer(
            "torchrl ReplayBuffer, LazyTensorStorage",
            lambda crops, ids: block.extend(
                tensordict.TensorDict({"crop": crops, "id": ids}, [len(ids)])
            ),
            block.sample,
        )
        rows = torchrl.ReplayBuffer(storage=torchrl.ListStorage(HELD), batch_size=DRAWN)
        yield CropBuffer(
            "torchrl ReplayBuffer, ListStorage, without ids",
            lambda crops, ids: rows.extend(list(crops.clone())),
            rows.sample,
        )
    policies = peer("avalanche.training.storage_policy")
    if policies is not None:
        utils = peer("avalanche.benchmarks.utils")

        reservoir = policies.ReservoirSamplingBuffer(HELD)

        def drawn() -> object:
            # It leaves drawing to a loader over its dataset; this is the part that all must do.
            rows = [reservoir.buffer[row] for row in np.random.choice(HELD, DRAWN, False).tolist()]
            return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

        yield CropBuffer(
            "Avalanche ReservoirSamplingBuffer",
            lambda crops, ids: reservoir.update_from_dataset(
                utils.AvalancheDataset([TensorDataset(crops.clone(), ids)])
            ),
            drawn,
            is_slow=True,
        )
    mammoth = MammothBuffer(HELD)
    yield CropBuffer(
        "mammoth, a reference model", mammoth.add_data, functools.partial(mammoth.get_data, DRAWN)
    )


def job_crops(options: Options) -> Iterator[str]:
    """Adding 16 crops to a full buffer of 1,024, and drawing 32 from it."""
    for side in (96, 224):
        shape = (3, side, side)
        copied = torch.zeros(HELD, *shape, dtype=torch.uint8)
        places = itertools.cycle(range(0, HELD, ADDED))
        rows = itertools.cycle(torch.randint(HELD, (64, DRAWN)))

        def copy(
            crops: Tensor, ids: Tensor, into: Tensor = copied, at: Iterator[int] = places
        ) -> None:
            first = next(at)
            into[first : first + len(crops)].copy_(crops)

        limit = CropBuffer(
            "this machine: copy_ and index_select",
            copy,
            lambda of=copied, at=rows: of.index_select(0, next(at)),  # type: ignore[misc]  # mypy types no lambda defaults
        )
        buffers = [our_crops(), *crop_peers(), limit]
        sources = itertools.cycle(
            [torch.randint(256, (ADDED, *shape), dtype=torch.uint8) for _ in range(SOURCES)]
        )
        numbers = itertools.count()

        def add(
            buffer: CropBuffer,
            given: Iterator[Tensor] = sources,
            numbered: Iterator[int] = numbers,
        ) -> None:
            first = next(numbered) * ADDED
            buffer.add(next(given), torch.arange(first, first + ADDED))

        for buffer in buffers:
            for _ in range(HELD // ADDED):
                add(buffer)
        pixels = int(np.prod(shape))
        yield from table(
            f"add {ADDED} crops of {side} x {side} to a full buffer of {HELD:,}",
            [
                Contender(
                    one.name,
                    functools.partial(add, one),
                    options.size(16 if one.is_slow else 160),
                    ADDED * pixels,
                )
                for one in buffers
            ],
            options,
        )
        yield from table(
            f"draw {DRAWN} crops of {side} x {side} from a buffer of {HELD:,}",
            [
                Contender(
                    one.name,
                    one.draw,
                    options.size(160),
                    DRAWN * pixels,
                )
                for one in buffers
            ],
            options,
        )


# ------------------------------------------------------------------ draws


def filled(keys: int) -> RareMemoryBuffer:
    buffer = RareMemoryBuffer(keys)
    buffer.admit(BufferEntries(torch.arange(keys), torch.rand(keys)))
    return buffer


class Mixed:
    """A sampler under way, whose loader draws some batches ahead."""

    def __init__(self, keys: int, *, lag: int, ahead: int, with_feedback: bool) -> None:
        self.buffer = filled(keys)
        self.mix = BufferedMixSampler(range(TOTAL), self.buffer, batch_size=BATCH, lag=lag)
        self._with_feedback = with_feedback
        self._flags = Flags(torch.rand(BATCH), torch.arange(BATCH) < RARE)
        self._batches = self._all()
        for _ in range(ahead):
            next(self._batches)
        for _ in range(2 * lag + 64):
            self.step()

    def _all(self) -> Iterator[object]:
        while True:
            yield from self.mix.batches()

    def draw(self) -> None:
        """One batch drawn, and one handed over."""
        next(self._batches)
        self.mix.deliver()

    def step(self) -> None:
        """The same, and the feedback of the batch: new scores of its replays, and 13 rare rows."""
        next(self._batches)
        batch = self.mix.deliver()
        if self._with_feedback:
            self.buffer.add(batch, self._flags)


def draw_alone(keys: int) -> Callable[[], object]:
    """What the buffer does for a batch; the ids of 16 batches in turn are taken already."""
    buffer = filled(keys)
    buffer.attach(1)
    buffer.advance(0)
    taken = itertools.cycle([set(torch.randint(TOTAL, (BATCH,)).tolist()) for _ in range(16)])
    seeds = itertools.count()
    return lambda: buffer.draw_ahead(
        1, REPLAYS, taken=next(taken), below=TOTAL, seed=next(seeds) * 7919
    )


def job_draws(options: Options) -> Iterator[str]:
    """A batch of 256 with 32 replays: drawing and delivering it, and its feedback."""
    sizes = [options.size(keys) for keys in (1024, 4096, 20_000, 65_536)]
    rows: dict[str, Callable[[int], Callable[[], object]]] = {
        "the whole: base order, draw, deliver": lambda keys: (
            Mixed(keys, lag=1, ahead=0, with_feedback=False).draw
        ),
        "of it, draw_ahead of the buffer": draw_alone,
        "draw, deliver, add; 0 workers, lag 1": lambda keys: (
            Mixed(keys, lag=1, ahead=0, with_feedback=True).step
        ),
        "draw, deliver, add; 4 batches ahead, lag 32": lambda keys: (
            Mixed(keys, lag=32, ahead=4, with_feedback=True).step
        ),
        f"add alone: {BATCH} ids, {RARE} rare, no replays": _adding,
    }
    torchrl = peer("torchrl.data")
    if torchrl is not None:
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        for prioritized in (False, True):
            name = "PrioritizedSampler" if prioritized else "RandomSampler"
            rows[f"torchrl {name}, {REPLAYS} ids and no batch"] = functools.partial(
                torchrl_draw, torchrl, prioritized
            )
    yield f"### A batch of {BATCH} with {REPLAYS} replays, by entries held"
    yield ""
    yield "| | " + " | ".join(f"{keys:,}" for keys in sizes) + " |"
    yield "|---|" + "---|" * len(sizes)
    contenders = [
        Contender(f"{row} {keys}", make(keys), options.size(160))
        for row, make in rows.items()
        for keys in sizes
    ]
    taken = timed(contenders, options.repeats)
    for row in rows:
        cells = [micro(statistics.median(taken[f"{row} {keys}"])) for keys in sizes]
        yield f"| {row} | " + " | ".join(cells) + " |"
    yield ""


def _adding(keys: int) -> Callable[[], object]:
    """Calls of add for a batch without replays, of which 13 rows are rare and new."""
    buffer, flags = filled(keys), Flags(torch.rand(BATCH), torch.arange(BATCH) < RARE)
    numbers = itertools.count(keys, BATCH)

    def add() -> None:
        first = next(numbers)
        buffer.add(torch.arange(first, first + BATCH), flags)

    return add


def torchrl_draw(torchrl: Any, prioritized: bool, keys: int) -> Callable[[], object]:
    sampler: Any = torchrl.replay_buffers.samplers.RandomSampler()
    if prioritized:
        sampler = torchrl.replay_buffers.samplers.PrioritizedSampler(keys, alpha=0.7, beta=0.0)
    buffer = torchrl.ReplayBuffer(
        storage=torchrl.LazyTensorStorage(keys), sampler=sampler, batch_size=REPLAYS
    )
    buffer.extend(torch.arange(keys))
    draw: Callable[[], object] = buffer.sample
    return draw


# ------------------------------------------------------------------ eviction


def scenes(n: int) -> Tensor:
    """Features of a stream whose scenes last for about 20 rows, as of a video."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n // 20 + 1, DIM, generator=generator)
    rows = centres.repeat_interleave(20, dim=0)[:n]
    return normalize(rows + 0.5 * torch.randn(n, DIM, generator=generator))


class AllPairs:
    """A reference model of the memory of MinRed: all cosines anew whenever someone has to leave.

    Source:
        Purushwalkam et al., The Challenges of Continuous Self-Supervised Learning, ECCV 2022,
        https://arxiv.org/abs/2203.12710. Its code computes them once for each batch that comes, and
        blots out one row after the other; with batches of one row, that is this.
    """

    def __init__(self, keys: Tensor, features: Tensor) -> None:
        self.keys, self.features = keys, features

    def add(self, keys: Tensor, features: Tensor) -> list[int]:
        """Take these in and let as many go; returns who went."""
        self.keys = torch.cat([self.keys, keys])
        self.features = torch.cat([self.features, features])
        cosines = self.features @ self.features.T
        cosines.fill_diagonal_(-10.0)
        gone = []
        for _ in range(len(keys)):
            place = int(cosines.amax(dim=1).argmax())
            gone.append(place)
            cosines[place] = cosines[:, place] = -10.0
        stays = torch.ones(len(self.keys), dtype=torch.bool)
        stays[gone] = False
        left = self.keys[gone].tolist()
        self.keys, self.features = self.keys[stays], self.features[stays]
        return left


class Least:
    """Our buffer, and who left it."""

    def __init__(self, keys: Tensor, features: Tensor) -> None:
        self.buffer = RareMemoryBuffer(len(keys), policy=LeastRedundant())
        self.buffer.admit(BufferEntries(keys, torch.ones(len(keys)), features=features))

    def add(self, keys: Tensor, features: Tensor) -> list[int]:
        before = set(self.buffer.keys.tolist()) | set(keys.tolist())
        self.admit(keys, features)
        return list(before - set(self.buffer.keys.tolist()))

    def admit(self, keys: Tensor, features: Tensor) -> None:
        self.buffer.admit(BufferEntries(keys, torch.ones(len(keys)), features=features))


def same_evictions(n: int, features: Tensor, turns: int) -> str:
    """Whether both let the same go, one row at a time; of two alike to rounding either may."""
    ours = Least(torch.arange(n), features[:n])
    theirs = AllPairs(torch.arange(n), features[:n])
    same = 0
    for key in range(n, n + turns):
        row = torch.tensor([key]), features[key : key + 1]
        [gone], [gone_there] = ours.add(*row), theirs.add(*row)
        same += gone == gone_there
        if gone != gone_there:
            everybody = torch.cat([theirs.keys, torch.tensor([gone_there])])
            rows = features[everybody]
            alike = {}
            for who in (gone, gone_there):
                cosines = rows @ features[who]
                cosines[everybody == who] = -1
                alike[who] = float(cosines.max())
            if abs(alike[gone] - alike[gone_there]) > 1e-5:
                raise SystemExit(f"ours let {gone} go and theirs {gone_there}: {alike}")
            # So that both go on with the same rows.
            theirs.keys[theirs.keys == gone] = gone_there
            theirs.features = features[theirs.keys]
    return f"{same} of {turns} the same, the others alike to 1e-5"


def job_eviction(options: Options) -> Iterator[str]:
    """Who is least redundant stays: one row comes and one leaves, in a full buffer."""
    for n in [options.size(n) for n in (256, 1024, 4096)]:
        features = scenes(3 * n + 4096)
        checked = same_evictions(n, features, 64)
        numbers = itertools.cycle(range(n, 3 * n + 4096 - RARE))
        ours = Least(torch.arange(n), features[:n])
        theirs = AllPairs(torch.arange(n), features[:n])
        bulk = AllPairs(torch.arange(n), features[:n])

        def call(
            add: Callable[[Tensor, Tensor], object],
            count: int,
            rows: Tensor = features,
            at: Iterator[int] = numbers,
            fresh: Iterator[int] = itertools.count(10**6, RARE),  # noqa: B008  # shared on purpose
        ) -> None:
            first, key = next(at), next(fresh)
            add(torch.arange(key, key + count), rows[first : first + count])

        slow = max(2**14 // n // 4, 2)
        contenders = [
            Contender(OURS, functools.partial(call, ours.admit, 1), 100),
            Contender("n x n at each eviction", functools.partial(call, theirs.add, 1), slow),
            Contender(f"{OURS}, a batch of {RARE}", functools.partial(call, ours.admit, RARE), 10),
            Contender(
                f"n x n once for a batch of {RARE}, as MinRed's code does",
                functools.partial(call, bulk.add, RARE),
                slow,
            ),
        ]
        yield from table(
            f"admit one and evict one, {n:,} entries of {DIM} floats; {checked}",
            contenders,
            options,
        )


# ------------------------------------------------------------------ state


def job_state(options: Options) -> Iterator[str]:
    """Saving a buffer of 4,096 ids."""
    keys = options.size(4096)
    contenders = [
        Contender(OURS, filled(keys).state_dict, 100),
        Contender(
            f"{OURS}, in training with lag 32, {RARE} admitted a batch",
            Mixed(keys, lag=32, ahead=4, with_feedback=True).buffer.state_dict,
            100,
        ),
    ]
    torchrl = peer("torchrl.data")
    if torchrl is not None:
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        for prioritized in (False, True):
            name = "PrioritizedSampler" if prioritized else "RandomSampler"
            draw: Any = torchrl_draw(torchrl, prioritized, keys)
            contenders.append(
                Contender(f"torchrl {name}, copies nothing", draw.__self__.state_dict, 100)
            )
    yield from table(f"state_dict of {keys:,} ids", contenders, options)


# ------------------------------------------------------------------ loader


class Views(Dataset[tuple[list[Tensor], int]]):
    """The views of DINO, of images of 256 x 256 that are decoded already."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.transform = MultiCropTransform()
        self.image = torch.randint(256, (3, 256, 256), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(self.image), int(index)


class Small(Dataset[tuple[Tensor, int]]):
    """Images of 32 x 32, mirrored: hardly any work, so that what mixing costs shows most."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[int(index) % 64].flip(-1).float() / 255, int(index)


def epoch(loader: "DataLoader[Any]", buffer: RareMemoryBuffer | None) -> tuple[float, float]:
    """Processor time and time on the wall of an epoch, workers included; feedback where mixed."""
    wall, cpu = time.perf_counter(), _processor()
    for _ in loader:
        if buffer is not None:
            batch = loader.batch  # type: ignore[attr-defined]  # of a mixed loader
            width = len(batch.ids)
            buffer.add(batch, Flags(torch.rand(width), torch.arange(width) < RARE))
    return _processor() - cpu, time.perf_counter() - wall


def _processor() -> float:
    """Of this process and of the workers that have ended."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def job_loader(options: Options) -> Iterator[str]:
    """Rows a second of a loader, mixed with feedback and not mixed."""
    yield "### Rows a second, plain and mixed (12.5 % replays, feedback of every batch)"
    yield ""
    yield "Processor time is that of the loader and its workers."
    yield ""
    yield (
        "| dataset | workers | plain, processor | mixed, processor | mixed / plain | "
        "plain, wall | mixed, wall | mixed / plain |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    cases: list[tuple[str, Views | Small, int]] = [
        ("views of 256 x 256, batches of 64", Views(options.size(512)), 64),
        ("32 x 32, mirrored, batches of 256", Small(options.size(16_384)), BATCH),
    ]
    for name, dataset, width in cases:
        rows = len(dataset)
        for workers in (0, 2):
            plain: DataLoader[Any] = DataLoader(
                dataset, batch_size=min(width, rows // 2), shuffle=True, num_workers=workers
            )
            buffer = filled(rows // 16)
            mixed = BufferedMixSampler.wrap(plain, buffer)
            times: dict[str, list[tuple[float, float]]] = {"plain": [], "mixed": []}
            for turn in range(options.repeats + 1):
                # Who is first in a round alternates.
                for way in sorted(times, reverse=turn % 2 == 0):
                    took = epoch(plain, None) if way == "plain" else epoch(mixed, buffer)
                    if turn:  # the first warms up
                        times[way].append(took)
            cells = []
            for clock in (0, 1):
                for found in times.values():
                    rate = rows / statistics.median(one[clock] for one in found)
                    cells.append(f"{rate:,.0f}")
                pairs = zip(times["plain"], times["mixed"], strict=True)
                cells.append(f"{statistics.median(p[clock] / m[clock] for p, m in pairs):.3f}")
            yield f"| {name} | {workers} | " + " | ".join(cells) + " |"
    yield ""


JOBS: dict[str, Callable[[Options], Iterator[str]]] = {
    "crops": job_crops,
    "draws": job_draws,
    "eviction": job_eviction,
    "state": job_state,
    "loader": job_loader,
}


def facts(options: Options) -> Iterator[str]:
    """What was measured on what."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"numpy {np.__version__}"]
    for name in ("torchrl", "tensordict", "avalanche-lib"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    yield f"- {os.cpu_count()} CPUs, one thread for everyone, load {load} at the start"
    yield f"- {', '.join(versions)}"
    quick = "; --quick, small sizes: a check of the script, no measurement"
    yield f"- {options.repeats} rounds{quick if options.quick else ''}"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=9, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = Options(given.quick, 2 if given.quick else given.repeats)
    written = []
    # Also for numpy's products: beside other work two threads wait for each other, and take longer
    # than one alone.
    with threadpool_limits(1):
        for line in (*facts(options), *(line for job in given.job for line in JOBS[job](options))):
            written.append(line)
    print("\n".join(written))
    if given.out is not None:
        given.out.write_text("\n".join(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
