"""A LightningModule that counts what it is fed, for the processes of test_lightning.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counting import Fed, Flags, mixed
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from raremix import MixedLoader, RareMemoryBuffer

MakeLoader = Callable[[RareMemoryBuffer], MixedLoader[Tensor]]


class Counted(LightningModule):
    """One weight, trained on numbers. Of loader and buffer it saves nothing: Lightning does."""

    def __init__(self, make_loader: MakeLoader = mixed) -> None:
        super().__init__()
        self.make_loader = make_loader
        self.buffer = RareMemoryBuffer(6)
        self.fed = Fed()
        self.optimizer_steps = 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self) -> MixedLoader[Tensor]:
        self.loader = self.make_loader(self.buffer)
        return self.loader

    def forward(self, data: Tensor) -> Tensor:
        return self.weight * data.float()

    def training_step(self, data: Tensor, number: int) -> Tensor:
        batch = self.loader.batch
        self.fed.note(self.current_epoch, data, batch)
        self.buffer.add(batch, Flags.of(data))
        return self(data).mean()  # type: ignore[no-any-return]  # so types nn.Module its call

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer_steps += 1
        super().optimizer_step(*args, **kwargs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(folder: Path | str, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    return Trainer(**{**defaults, **options})


def fitted(folder: Path | str, make_loader: MakeLoader = mixed, **options: Any) -> Counted:
    module = Counted(make_loader)
    trainer(folder, **options).fit(module)
    return module
