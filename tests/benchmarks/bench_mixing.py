"""How long drawing, saving and loading take with mixing; prints medians of interleaved repeats.

A script, which pytest does not collect: ``python tests/benchmarks/bench_mixing.py``.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from raremix import BufferedMixSampler, BufferEntries, RareMemoryBuffer

BATCH = 256
TOTAL = 50_000
REPEATS = 9


@dataclass(frozen=True)
class Flags:
    scores: Tensor
    is_rare: Tensor


class Images(Dataset[tuple[Tensor, int]]):
    """Images that are cropped and shrunk, which costs far less than decoding a file."""

    def __len__(self) -> int:
        return 4 * BATCH

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((1, 3, 224, 224), index % 255, dtype=torch.uint8)
        small = interpolate(image.float(), size=(64, 64), mode="bilinear", antialias=True)
        return small[0], int(index)


def filled(keys: int, capacity: int | None = None) -> RareMemoryBuffer:
    buffer = RareMemoryBuffer(capacity or keys)
    buffer.admit(BufferEntries(torch.arange(keys), torch.rand(keys), None))
    return buffer


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, which other processes disturb less than the clock on the wall."""
    start = time.process_time()
    work()
    return time.process_time() - start


def draws(mix: BufferedMixSampler) -> Iterator[None]:
    """One draw and its delivery at a time, over as many epochs as asked for."""
    while True:
        for _ in mix.batches():
            mix.deliver()
            yield


def feedback(buffer: RareMemoryBuffer) -> Callable[[], object]:
    """Calls of add with a batch of 256, of which 13 are rare and new."""
    step = 0

    def add() -> None:
        nonlocal step
        ids = torch.arange(step * BATCH, (step + 1) * BATCH) + 10 * TOTAL
        is_rare = torch.arange(BATCH) < 13
        buffer.add(ids, Flags(torch.rand(BATCH), is_rare))
        step += 1

    return add


def loader_epoch(loader: DataLoader[tuple[Tensor, int]]) -> Callable[[], object]:
    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def medians(cases: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Seconds a call; each case is timed in turn, so that a busy machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(REPEATS + 1):
        for name, (work, calls) in cases.items():
            taken[name].append(seconds(lambda w=work, c=calls: [w() for _ in range(c)]) / calls)  # type: ignore[misc]  # mypy types no lambda defaults
    return {name: median(times[1:]) for name, times in taken.items()}  # the first warms up


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    cases: dict[str, tuple[Callable[[], object], int]] = {}
    cold = BufferedMixSampler(range(TOTAL), RareMemoryBuffer(8), batch_size=BATCH, lag=1)
    drawn = draws(cold)
    cases["draw a batch, buffer empty"] = (lambda d=drawn: next(d), 100)  # type: ignore[misc]  # as above
    for keys in (1_000, 20_000):
        mix = BufferedMixSampler(range(TOTAL), filled(keys), batch_size=BATCH, lag=1)
        drawn = draws(mix)
        cases[f"draw a batch, {keys} entries"] = (lambda d=drawn: next(d), 100)  # type: ignore[misc]  # as above
        cases[f"add a batch, {keys} entries"] = (feedback(filled(keys)), 100)
    buffer = filled(4096)
    cases["state_dict, 4096 entries"] = (buffer.state_dict, 10)
    for name, took in medians(cases).items():
        print(f"{name:32s} {took * 1e6:9.0f} us")

    base = DataLoader(Images(), batch_size=BATCH, shuffle=True)
    mixed = BufferedMixSampler.wrap(base, filled(2000), replay=0.125, lag=1)
    took_by = medians({"unmixed": (loader_epoch(base), 1), "mixed": (loader_epoch(mixed), 1)})
    for name, took in took_by.items():
        print(f"loader, {name:24s} {len(Images()) / took:9.0f} rows/s")
    print(f"mixed / unmixed {took_by['unmixed'] / took_by['mixed']:.3f}")


if __name__ == "__main__":
    main()
