"""One of two processes that mix crops, run by test_crops_ranks.py: rank, init file, results.

A script, since a process that is started anew cannot import a test module.
"""

import torch
from feedback import Flags
from launching import as_rank

from raremix import CropMixer, MultiCropTransform, RareMemoryBuffer, View
from raremix.errors import LoaderError


def run(rank: int) -> dict[str, object]:
    """Twelve batches each; rank 0 alone finds rare rows."""
    transform = MultiCropTransform.from_views([View(6, scale=(0.3, 1.0))])
    pixels = torch.full((4, 3, 8, 8), 10 + rank, dtype=torch.uint8)
    buffer = RareMemoryBuffer(6)
    loader = CropMixer.wrap(
        [[torch.zeros(4, 3, 6, 6)] for _ in range(12)], buffer, transform, replay=0.5
    )
    fresh, replayed, held, views = [], [], [], []
    for (view,) in loader:
        batch = loader.batch
        fresh.append(batch.ids[~batch.is_replay].tolist())
        replayed.append(batch.ids[batch.is_replay].tolist())
        is_rare = torch.full((4,), rank == 0 and batch.step < 3)
        buffer.add(batch, Flags(torch.ones(4), is_rare), crops=pixels)
        held.append(buffer.keys.tolist())
        views.append(view[batch.is_replay])
    refused = ""
    try:
        next(iter(CropMixer.wrap([], buffer, transform, mode="stretch")))
    except LoaderError as error:
        refused = str(error)
    return {
        "fresh": fresh,
        "replayed": replayed,
        "held": held,
        "refused": refused,
        "views": torch.cat(views),
    }


if __name__ == "__main__":
    as_rank(run)
