"""One of two training processes, run by test_layouts.py: rank, folder for what is exchanged.

A script, since a process that is started anew cannot import a test module.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from feedback import Flags, Rows
from launching import as_rank
from torch import Tensor

from raremix import (
    BufferEntries,
    ClusterBalanced,
    LeastRedundant,
    RareMemoryBuffer,
    RarestK,
    Reservoir,
    TwoTier,
)
from raremix.errors import OptionError, StateMismatchError

STEPS, LAG = 24, 4

Layout = Literal["replicated", "sharded", "local"]


def features_of(ids: Tensor) -> Tensor:
    angles = ids.float()[:, None] * torch.tensor([0.7, 1.3, 2.9])
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def crops_of(ids: Tensor) -> Tensor:
    return (ids % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def fresh_rows(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Ids of this rank's share and whether they are rare; now and then none, or none rare."""
    generator = torch.Generator().manual_seed(2 * step + rank)
    count = 0 if (step + 3 * rank) % 7 == 3 else int(torch.randint(1, 7, (1,), generator=generator))
    # From few ids, so that they come again, also on the other rank.
    ids = torch.randperm(60, generator=generator)[:count]
    is_rare = torch.rand(count, generator=generator) < 0.5
    return ids, is_rare & (rank == 0 or step % 3 > 0)


def run(buffer: RareMemoryBuffer, rank: int) -> dict[str, Any]:
    """Feed a buffer what this rank finds, and what it draws; the batches and what was held."""
    buffer.attach(LAG)
    batches, held = [], []
    for step in range(STEPS):
        drawn = buffer.draw_ahead(step, 2, taken=(), below=None, seed=2 * step + rank)
        ids, is_rare = fresh_rows(step, rank)
        every = torch.tensor([*drawn.keys, *ids.tolist()], dtype=torch.int64)
        is_replay = torch.arange(len(every)) < len(drawn.keys)
        entry = torch.tensor([*drawn.entries, *[-1] * len(ids)], dtype=torch.int64)
        batch = Rows(step, every, is_replay, entry)
        scores = every.float() / 7 + step
        flags = Flags(scores, is_replay | torch.cat([is_replay[is_replay], is_rare]))
        admitted = buffer.add(batch, flags, crops=crops_of(every), features=features_of(every))
        batches.append([every, is_replay, entry, flags.scores, flags.is_rare, admitted])
        held.append(contents(buffer))
    buffer.admit(
        BufferEntries(
            torch.tensor([100 + rank]),
            torch.full((1,), 99.0),
            crops_of(torch.tensor([100 + rank])),
            features_of(torch.tensor([100 + rank])),
        )
    )
    return {
        "batches": batches,
        "held": held,
        "last": contents(buffer),
        "state": buffer.state_dict(),
        "metrics": buffer.metrics(),
    }


def contents(buffer: RareMemoryBuffer) -> list[Any]:
    entries = buffer.entries
    held = [entries.keys, entries.scores, entries.entry, entries.uses]
    return [*held, entries.crops, entries.features]


def alone(rank: int) -> list[int]:
    """Only one of the ranks feeds a local buffer: if anything were sent, it would wait for ever."""
    buffer = RareMemoryBuffer(4, layout="local")
    if rank == 0:
        buffer.add([1, 2], Flags(torch.ones(2), torch.ones(2, dtype=torch.bool)))
        buffer.admit(BufferEntries(torch.tensor([3]), torch.ones(1)))
    return buffer.keys.tolist()


def disagreeing(rank: int) -> list[Any]:
    """What is said where only one rank gives crops or features, and what was held after all."""
    buffer = RareMemoryBuffer(8)
    ids, said = torch.tensor([10 + rank, 20 + rank]), []
    rare = Flags(torch.ones(2), torch.ones(2, dtype=torch.bool))
    for more in (
        {"crops": crops_of(ids) if rank else None},
        {"crops": crops_of(ids)[:, :, : 1 + rank]},
        {"features": None if rank else features_of(ids)},
        {"features": features_of(ids)[:, : 2 + rank]},
    ):
        try:
            buffer.add(ids, rare, **more)
        except OptionError as error:
            said.append(str(error))
    # A rank that has no rows need not know what the others give.
    if rank:
        buffer.add(ids, rare, crops=crops_of(ids), features=features_of(ids))
    else:
        buffer.add([], Flags(torch.ones(0), torch.ones(0, dtype=torch.bool)))
    return [said, contents(buffer)]


def loaded(layout: Layout, state: dict[str, Any]) -> str | list[int]:
    """What a buffer of two ranks holds after loading a state of one, or why it does not."""
    buffer = RareMemoryBuffer(8, layout=layout)
    try:
        buffer.load_state_dict(state)
    except StateMismatchError as error:
        return str(error)
    return buffer.keys.tolist()


BUFFERS: dict[str, Callable[[], RareMemoryBuffer]] = {
    "replicated_fifo": lambda: RareMemoryBuffer(10),
    "replicated_bytes": lambda: RareMemoryBuffer(10, max_bytes=6 * 12, policy=TwoTier()),
    "replicated_reservoir": lambda: RareMemoryBuffer(10, policy=Reservoir(), max_uses=3),
    "replicated_rarest": lambda: RareMemoryBuffer(10, policy=RarestK(), max_age_steps=9),
    "replicated_redundant": lambda: RareMemoryBuffer(10, policy=LeastRedundant()),
    "replicated_clusters": lambda: RareMemoryBuffer(12, policy=ClusterBalanced(clusters=3)),
    "replicated_apart": lambda: RareMemoryBuffer(10, min_distance=0.2),
    "sharded": lambda: RareMemoryBuffer(100, layout="sharded"),
    "sharded_used": lambda: RareMemoryBuffer(100, layout="sharded", max_uses=3),
    "local": lambda: RareMemoryBuffer(10, layout="local"),
}


def seen_by(rank: int, folder: Path) -> dict[str, Any]:
    """Run every kind of buffer."""
    seen: dict[str, Any] = {name: run(build(), rank) for name, build in BUFFERS.items()}
    seen["alone"] = alone(rank)
    seen["disagreeing"] = disagreeing(rank)
    states = torch.load(folder / "states.pt", weights_only=True)
    seen["loaded"] = {name: loaded(name, state) for name, state in states.items()}
    return seen


if __name__ == "__main__":
    as_rank(lambda rank: seen_by(rank, Path(sys.argv[1])))
