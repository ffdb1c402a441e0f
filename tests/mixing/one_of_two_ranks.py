"""One of two training processes, run by test_ranks.py: rank, init file, file for the results.

A script, since a process that is started anew cannot import a test module.
"""

from typing import Any

import torch
from feedback import Flags
from launching import as_rank
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from raremix import BufferedMixSampler, BufferEntries, RareMemoryBuffer


def run(sampler_is_sharded: bool, rank: int) -> dict[str, object]:
    """Train two epochs in which rank 0 alone finds rare rows, and in the first 3 steps nobody."""
    data = TensorDataset(torch.arange(50))
    buffer = RareMemoryBuffer(6)
    base = DataLoader(
        data,
        batch_size=4,
        shuffle=None if sampler_is_sharded else True,
        sampler=DistributedSampler(data, seed=3) if sampler_is_sharded else None,
    )
    loader = BufferedMixSampler.wrap(base, buffer, replay=0.5, lag=2)
    fresh, replayed, held = [], [], []
    for _ in range(2):
        for (ids,) in loader:
            batch = loader.batch
            assert ids.tolist() == batch.ids.tolist()
            fresh.append(ids[~batch.is_replay].tolist())
            replayed.append(ids[batch.is_replay].tolist())
            is_rare = torch.full((len(ids),), rank == 0 and batch.step >= 3)
            pixels = ids.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
            buffer.add(batch, Flags(ids.float(), is_rare), crops=pixels)
            crops = buffer.entries.crops
            if crops is not None:
                assert crops[:, 0, 0, 0].tolist() == buffer.keys.tolist()
            held.append(buffer.keys.tolist())
    admitted = buffer.admit(BufferEntries(torch.tensor([100 + rank]), torch.ones(1), None))
    return {
        "fresh": fresh,
        "replayed": replayed,
        "held": held,
        "admitted": admitted,
        "last": buffer.keys.tolist(),
        "state": repr(buffer.state_dict()),
    }


def seen_by(rank: int) -> dict[str, Any]:
    """Run both kinds of base."""
    seen = {name: run(name == "sharded", rank) for name in ("shuffled", "sharded")}
    seen["early"] = {"ids": [int(key) for key in sorted(EARLY)]}
    return seen


if __name__ == "__main__":
    EARLY = BufferedMixSampler(range(10), RareMemoryBuffer(2), batch_size=5)  # before the group
    as_rank(seen_by)
