"""Measures what a small bank of regions costs: its scores beside those of an unlimited one, and time.

    python tests/benchmarks/bench_regions.py --data FOLDER --cache regions.npz --out regions-table.md

FOLDER holds ``camvid/`` (frames) and ``mobilenet_v2_imagenet.pt`` (the encoder). Embedding the windows of
the frames takes some ten minutes on two cores, once: the cache keeps them, as that of
``bench_driving.py`` does.

All frames are fitted together; near-duplicates, two seconds of a sequence, are no neighbours. Beside
the bank stand as many regions of each scale drawn at random, and as many chosen by greedy k-centre, the
coreset of PatchCore. These two get the usual distances of the unlimited bank; ours estimates them.
"""

import argparse
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_driving import APART, embedded
from torch import Tensor

from raremix.data.camvid import read_camvid
from raremix.regions import RegionBank, RegionDetector, Regions

TOP = 3  # regions in a frame's object score, as RegionDetector has it
PROJECTED = 256  # dimensions that the coreset is chosen in, about as many as PatchCore's own
SEEDS = 3


@dataclass(frozen=True)
class Scored:
    """What a bank says of all regions and frames."""

    regions: Any
    frames: Any


def of_scale(regions: Regions, scale: int) -> Tensor:
    return regions.embeddings[regions.scale == scale]


def ranks(values: Any) -> Any:
    found = np.empty(len(values))
    found[np.argsort(values, kind="stable")] = np.arange(len(values))
    return found


def shared_top(one: Any, other: Any, share: float) -> float:
    """How many of the highest of one are among as many of the other."""
    count = max(round(share * len(one)), 1)
    tops = [set(np.argsort(-values, kind="stable")[:count]) for values in (one, other)]
    return len(tops[0] & tops[1]) / count


def beside(found: Scored, whole: Scored) -> list[float]:
    """Pearson and Spearman of frames, shared top 10 % of frames, Spearman and top 1 % of regions."""
    return [
        float(np.corrcoef(found.frames, whole.frames)[0, 1]),
        float(np.corrcoef(ranks(found.frames), ranks(whole.frames))[0, 1]),
        shared_top(found.frames, whole.frames, 0.10),
        float(np.corrcoef(ranks(found.regions), ranks(whole.regions))[0, 1]),
        shared_top(found.regions, whole.regions, 0.01),
    ]


def by_detector(regions: Regions, moments: Tensor, window: int, capacity: int) -> Scored:
    found = RegionDetector(id_window=window, capacity=capacity).fit(regions, moments)
    return Scored(found.region_scores.numpy(), found.object_scores.numpy())


def at_random(rows: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(rows), generator=generator)[:count]


def k_centre(rows: Tensor, count: int, seed: int) -> Tensor:
    """The farthest from those chosen, again and again, in a random projection."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    small = (rows - rows.mean(dim=0)) @ matrix
    squares = small.square().sum(dim=1)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = torch.full((len(rows),), torch.inf)
    while len(chosen) < min(count, len(rows)):
        last = small[chosen[-1]]
        nearest = torch.minimum(nearest, squares - 2 * (small @ last) + last.square().sum())
        nearest[chosen[-1]] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def by_subset(
    regions: Regions,
    moments: Tensor,
    window: int,
    usual: dict[int, Tensor],
    chosen: dict[int, Tensor],
) -> Scored:
    """As the detector scores, but with the chosen regions of each scale in place of its bank."""
    scores = torch.empty(len(regions))
    of = moments[regions.frame]
    for scale, distances in usual.items():
        rows = (regions.scale == scale).nonzero().flatten()
        own = regions.embeddings[rows]
        kept = chosen[scale]
        bank = RegionBank.holding(own[kept], of[rows][kept], id_window=window)
        found = bank.distances(own, of[rows]).double().log()
        quarter, middle, three = torch.quantile(
            distances.log(), torch.tensor([0.25, 0.5, 0.75]).double()
        ).tolist()
        scores[rows] = ((found - middle) / (three - quarter)).float()
    high = [scores[regions.frame == frame].topk(TOP).values.mean() for frame in range(len(moments))]
    return Scored(scores.numpy(), torch.stack(high).numpy())


def usual_distances(regions: Regions, moments: Tensor, window: int) -> dict[int, Tensor]:
    """Distances of all regions, of each scale, to the nearest of any other moment."""
    found, of = {}, moments[regions.frame]
    for scale in torch.unique(regions.scale).tolist():
        rows = regions.scale == scale
        bank = RegionBank.holding(regions.embeddings[rows], of[rows], id_window=window)
        found[scale] = bank.distances(bank.rows, of[rows]).double()
    return found


def fidelity(
    regions: Regions, moments: Tensor, window: int, capacities: list[int]
) -> Iterator[str]:
    whole = by_detector(regions, moments, window, len(regions) + 1)
    usual = usual_distances(regions, moments, window)
    # The first of a greedy choice are the greedy choice of fewer.
    greedy = functools.cache(lambda scale: k_centre(of_scale(regions, scale), max(capacities), 0))
    yield (
        "| rows a scale | bank | object score: Pearson | Spearman | top 10 % of frames | "
        "region score: Spearman | top 1 % of regions |"
    )
    yield "|---|---|---|---|---|---|---|"
    for capacity in capacities:
        spread = {scale: greedy(scale)[:capacity] for scale in usual}
        drawn = [
            {scale: at_random(of_scale(regions, scale), capacity, seed) for scale in usual}
            for seed in range(SEEDS)
        ]
        found = {
            "**RegionBank**": [by_detector(regions, moments, window, capacity)],
            "greedy k-centre (PatchCore's coreset)": [
                by_subset(regions, moments, window, usual, spread)
            ],
            f"at random, mean of {SEEDS}": [
                by_subset(regions, moments, window, usual, kept) for kept in drawn
            ],
        }
        for name, measures in found.items():
            means = np.mean([beside(one, whole) for one in measures], axis=0)
            shown = " | ".join(f"{value:.3f}" for value in means)
            yield f"| {capacity} | {name} | {shown} |"
    yield ""


def times(regions: Regions, moments: Tensor, window: int, capacities: list[int]) -> Iterator[str]:
    """Fitting all frames but 40, and observing these one by one; processor time."""
    frames = len(moments)
    known, later = torch.arange(frames - 40), torch.arange(frames - 40, frames)
    yield f"| rows a scale | fitting {len(known)} frames, s | observing a frame, ms, median |"
    yield "|---|---|---|"
    fitted = regions.of_frames(known)
    for capacity in capacities:
        detector = RegionDetector(id_window=window, capacity=capacity)
        start = time.process_time()
        detector.fit(fitted, moments[known])
        fitting = time.process_time() - start
        observing = []
        for frame in later:
            one = regions.of_frames(frame[None])
            start = time.process_time()
            detector.observe(one, moments[frame[None]])
            observing.append(time.process_time() - start)
        yield f"| {capacity} | {fitting:.0f} | {1000 * np.median(observing):.0f} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="where embedded windows are kept (.npz)")
    parser.add_argument("--capacities", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    frames = read_camvid(arguments.data / "camvid")
    regions = embedded(arguments.data, frames, arguments.cache)
    numbers, window = frames.moments(APART)
    moments = torch.from_numpy(numbers)
    lines = [
        *fidelity(regions, moments, window, arguments.capacities),
        *times(regions, moments, window, arguments.capacities),
    ]
    text = "\n".join(lines)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
