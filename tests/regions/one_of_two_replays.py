"""One of two training processes, run by test_replay.py: rank, init file, file for the results.

A script, since a process that is started anew cannot import a test module.
"""

from typing import Any

import torch
from launching import as_rank

from raremix.memory import RareMemoryBuffer
from raremix.memory.offers import Layout
from raremix.regions.detector import FrameDetection
from raremix.regions.regions import Regions
from raremix.regions.replay import RegionReplay

LAYOUTS: tuple[Layout, ...] = ("replicated", "sharded", "local")


def judged(step: int) -> FrameDetection:
    """Frame number ``step``, in which an object is seen that moves, for ten frames of a clip."""
    clip, place = divmod(step, 10)
    left = 10 + 4 * place
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
    embeddings[0] = torch.randn(16, generator=torch.Generator().manual_seed(1000 + clip))
    scores = torch.tensor([2.0 + place, 0.0, 0.0, 0.0])
    usual = [[0, 50, 9, 59], [20, 50, 29, 59], [40, 50, 49, 59]]
    return FrameDetection(
        Regions(
            embeddings,
            torch.tensor([[left, 10, left + 20, 30], *usual]),
            torch.zeros(4, dtype=torch.int64),
            torch.zeros(4, dtype=torch.int64),
            torch.zeros(1, 2),
            torch.tensor([step]),
            torch.tensor([[60, 80]]),
        ),
        *(scores, scores[:1], torch.zeros(1)),
        *(torch.tensor([True]), torch.tensor([False])),
        *(1.0, 1.0),
    )


def run(layout: Layout, rank: int) -> dict[str, Any]:
    """Take turns over the frames; in the last three is nothing rare, of which rank 1 has two."""
    buffer = RareMemoryBuffer(8, layout=layout)
    moments = [1_000_000 * (step // 10) + 100 * (step % 10) for step in range(30)]
    replay = RegionReplay(buffer, moments=moments, id_window=5000, crop_size=8)
    added = []
    for turn in range(13):
        step = 2 * turn + rank
        detection = judged(step)
        if step >= 23:
            detection.is_object_rare[:] = False
        added.append(replay.add(detection, torch.full((1, 3, 60, 80), step, dtype=torch.uint8)))
    entries = buffer.entries
    return {
        "added": added,
        "keys": entries.keys.tolist(),
        "crops": entries.crops,
        "metrics": replay.metrics(),
        "replay": replay.state_dict(),
    }


def seen_by(rank: int) -> dict[str, Any]:
    """Run all layouts."""
    return {layout: run(layout, rank) for layout in LAYOUTS}


if __name__ == "__main__":
    as_rank(seen_by)
