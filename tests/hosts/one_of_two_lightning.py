"""One of two processes that Lightning trains, run by test_lightning.py: folder, what to do."""

import faulthandler
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from counting import LAG, WIDTH, Numbers, argument, leave_results
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_counted import Counted, fitted, trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from raremix import BufferedMixSampler, MixedLoader, RareMemoryBuffer

RESUMED_AT = (2, 5, 6, 9)  # in mid-epoch, before the last batch, after it, in the second epoch
DDP: dict[str, Any] = {"devices": 2, "strategy": "ddp"}


class OwnBatches:
    """A batch sampler of the user's, which shards for itself and which nothing can look into."""

    def __init__(self) -> None:
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order: DistributedSampler[Any] = DistributedSampler(Numbers(), seed=5)
        order.set_epoch(self._epoch)
        ids = list(order)
        for first in range(0, len(ids), WIDTH):
            yield ids[first : first + WIDTH]

    def __len__(self) -> int:
        return 6


def over_own_batches(buffer: RareMemoryBuffer) -> MixedLoader[Tensor]:
    base = DataLoader(Numbers(), batch_sampler=OwnBatches())
    return BufferedMixSampler.wrap(base, buffer, replay=0.5, lag=LAG)


def what_it_says(folder: str, **options: Any) -> str:
    try:
        fitted(folder, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def whole(folder: str) -> dict[str, Any]:
    """Two epochs, a checkpoint after every batch, and what can go wrong beside."""
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    module = fitted(folder, callbacks=[keep], enable_checkpointing=True, **DDP)
    own = fitted(folder, over_own_batches, use_distributed_sampler=False, **DDP)
    return {
        "fed": asdict(module.fed),
        "held": module.buffer.keys.tolist(),
        "own": asdict(own.fed),
        "own refused": what_it_says(folder, make_loader=over_own_batches, **DDP),
        "overfit": what_it_says(folder, overfit_batches=2, **DDP),
    }


def resumed(folder: str) -> dict[int, Any]:
    """The rest of the two epochs, from some of the checkpoints on."""
    rest = {}
    for step in RESUMED_AT:
        module = Counted()
        trainer(folder, **DDP).fit(module, ckpt_path=f"{folder}/step={step}.ckpt")
        rest[step] = {"fed": asdict(module.fed), "held": module.buffer.keys.tolist()}
    return rest


if __name__ == "__main__":
    faulthandler.dump_traceback_later(110, exit=True)  # a hang shall say where it is
    task, folder = argument(1), argument(2)
    leave_results(whole(folder) if task == "whole" else resumed(folder))
    dist.barrier()  # who leaves early can take the other down
    dist.destroy_process_group()
