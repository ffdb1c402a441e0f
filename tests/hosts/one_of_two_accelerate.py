"""One process, alone or of two, that trains with accelerate, run by test_accelerate.py: folder."""

import faulthandler
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from counting import Fed, Flags, argument, leave_results, mixed

from raremix import RareMemoryBuffer

EPOCHS = 2
STOP = 8  # batches delivered when the states are saved, in mid-epoch


class Run:
    """A loop that prepares the model and the optimizer, and leaves the loader as it is."""

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        self.buffer = RareMemoryBuffer(6)
        self.loader = mixed(self.buffer)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # save_state then saves it, with its buffer, on the first rank; load_state loads it on all.
        self.accelerator.register_for_checkpointing(self.loader)
        self.fed = Fed()
        self.start = 0

    def train(self, folder: Path | None = None) -> "Run":
        while len(self.fed.ids) + self.start < self.whole:
            for data in self.loader:
                with self.accelerator.accumulate(self.model):
                    batch = self.loader.batch
                    self.fed.note(self.loader.mixer.epoch, data, batch)
                    loss = self.model(data.float().unsqueeze(1)).mean()
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                self.buffer.add(batch, Flags.of(data))
                if batch.step + 1 == STOP and folder is not None:
                    self.accelerator.save_state(str(folder))
                    self.accelerator.wait_for_everyone()
        return self

    @property
    def whole(self) -> int:
        return EPOCHS * len(self.loader)

    def resume(self, folder: Path) -> "Run":
        self.accelerator.load_state(str(folder))
        self.start = STOP
        return self


def said(attempt: Callable[[Any], object]) -> str:
    """What is said to somebody who hands accelerate the loader after all."""
    loader = mixed(RareMemoryBuffer(6))
    try:
        attempt(loader)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    whole = Run().train(folder)
    resumed = Run().resume(folder).train()
    world = whole.accelerator.num_processes
    device = whole.accelerator.device
    leave_results(
        {
            "fed": asdict(whole.fed),
            "resumed": asdict(resumed.fed),
            "held": whole.buffer.keys.tolist(),
            "held after resuming": resumed.buffer.keys.tolist(),
            "refused": {
                "prepare": said(lambda loader: whole.accelerator.prepare(loader)),
                "prepare_data_loader": said(
                    lambda loader: next(iter(whole.accelerator.prepare_data_loader(loader)))
                ),
                "built beside": said(
                    lambda loader: next(iter(prepare_data_loader(loader, device, world)))
                ),
                "skip_first_batches": said(
                    lambda loader: next(iter(skip_first_batches(loader, 2)))
                ),
            },
        }
    )


if __name__ == "__main__":
    faulthandler.dump_traceback_later(110, exit=True)  # a hang shall say where it is
    main(Path(argument(1)))
    if dist.is_initialized():
        dist.barrier()  # who leaves early can take the other down
        dist.destroy_process_group()
