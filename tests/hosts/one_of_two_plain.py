"""One of two plain processes, run by test_plain.py: what it was fed, for each mode and base."""

import faulthandler
import itertools
from datetime import timedelta
from typing import Any, get_args

import torch
import torch.distributed as dist
from counting import LAG, TOTAL, WIDTH, Flags, Numbers, leave_results
from torch.utils.data import DataLoader, DistributedSampler

from raremix import BufferedMixSampler, BufferEntries, RareMemoryBuffer
from raremix.mixing.modes import Mode

EPOCHS = 2


def run(mode: Mode, base: str, held: str) -> dict[str, Any]:
    """Two epochs. The buffer is filled in training, or is full on rank 0 and stays empty on 1."""
    alike = held == "learnt"
    buffer = RareMemoryBuffer(6, layout="replicated" if alike else "local")
    if not alike and dist.get_rank() == 0:
        buffer.admit(BufferEntries(torch.arange(0, 30, 5), torch.ones(6)))
    data = Numbers()
    sampler: DistributedSampler[Any] | None = None
    if base == "sampler":
        sampler = DistributedSampler(data, seed=2)
    plain = DataLoader(data, batch_size=WIDTH, shuffle=None if sampler else True, sampler=sampler)
    loader = BufferedMixSampler.wrap(plain, buffer, replay=0.5, mode=mode, lag=LAG)
    seen = []
    for _ in range(EPOCHS):
        of_epoch = []
        for ids in loader:
            batch = loader.batch
            assert ids.tolist() == batch.ids.tolist()
            assert all(0 <= key < TOTAL for key in ids.tolist())
            of_epoch.append((ids.tolist(), batch.is_replay.tolist(), batch.entry.tolist()))
            if alike:
                buffer.add(batch, Flags.of(ids))
            # A rank with fewer batches than the other would leave it waiting here.
            total = torch.tensor(len(ids))
            dist.all_reduce(total)
            assert int(total) == 2 * len(ids)
        assert len(of_epoch) == len(loader)
        seen.append(of_epoch)
    return {"seen": seen, "keys": buffer.keys.tolist()}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(110, exit=True)  # a hang shall say where it is
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cases = itertools.product(get_args(Mode), ("dataset", "sampler"), ("learnt", "one cold"))
    leave_results({" ".join(case): run(*case) for case in cases})
    dist.barrier()  # who leaves early can take the other down
    dist.destroy_process_group()
