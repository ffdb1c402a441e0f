"""A million rows in and out of a buffer: memory stays flat, and no descriptor stays open.

A row added or drawn counts as an operation, as do a batch delivered and a state saved.
"""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from feedback import Flags, Rows

from raremix import FIFO, ClusterBalanced, LeastRedundant, Policy, RareMemoryBuffer, TwoTier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
]

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
MIB = 2**20


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "policy", [FIFO(), TwoTier(), LeastRedundant(), ClusterBalanced(clusters=8)], ids=repr
)
def test_memory_is_flat_over_a_quarter_of_a_million_operations(policy: Policy) -> None:
    width, replays, lag, ahead = 40, 16, 6, 4
    buffer = RareMemoryBuffer(
        96, max_bytes=80 * 48, policy=policy, max_uses=8, cooldown_steps=1, max_age_steps=200
    )
    buffer.attach(lag)
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(4096, 8)).astype(np.float32))
    pixels = torch.from_numpy(rng.integers(0, 256, size=(4096, 3, 4, 4), dtype=np.uint8))
    flagged = torch.from_numpy(rng.random(4096) < 0.1)
    operations = step = 0
    issued = {}
    warm = files = 0
    while operations < 250_000:
        for number in range(step, step + ahead + 1):
            if number not in issued:
                issued[number] = buffer.draw_ahead(
                    number, replays, taken=(), below=None, seed=number
                )
                operations += len(issued[number].keys)
        drawn = issued.pop(step)
        base = [step * width + row for row in range(width - len(drawn.keys))]  # never seen before
        ids = torch.tensor([*drawn.keys, *base])
        at = ids % 4096
        is_replay = torch.arange(width) < len(drawn.keys)
        buffer.advance(step)
        buffer.add(
            Rows(step, ids, is_replay, torch.tensor([*drawn.entries, *[-1] * len(base)])),
            Flags(torch.ones(width), flagged[at]),
            crops=pixels[at],
            features=features[at],
        )
        operations += width + 1
        if step % 10 == 0:
            some = buffer.draw(8)
            assert some.crops is None or torch.equal(some.crops, pixels[some.keys % 4096])
            operations += len(some)
        if step % 200 == 199:
            buffer.load_state_dict(buffer.state_dict())
            operations += 2 * len(buffer)
            issued.clear()  # they are drawn again
        if step % 333 == 0:
            buffer.rewind(step + 1)
            issued.clear()
        if operations > 60_000 and not warm:
            warm, files = resident(), descriptors()
        step += 1
        assert buffer.nbytes <= 80 * 48
    metrics = buffer.metrics()
    assert metrics["replays"] > 20_000
    assert metrics["evictions"] > 5_000
    assert resident() - warm < 4 * MIB
    assert descriptors() <= files
