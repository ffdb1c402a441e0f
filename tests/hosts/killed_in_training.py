"""Trains while its training process is killed again and again, run by test_killed.py: folder.

The process that trains is forked from one in which all that is imported late has been imported.
"""

import faulthandler
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch
from counting import argument, leave_results
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raremix import (
    BufferedMixSampler,
    FlagRate,
    KNNDistance,
    MixedLoader,
    OODDetector,
    RareMemoryBuffer,
)

STEPS = 420
KILLS = 50
SAVED_EVERY = 3
Row = list[Any]  # step, ids, is_replay, and the loss, which depends on all that was learnt


class Clusters(Dataset[tuple[Tensor, int]]):
    """Four common clusters and, every tenth row, one that is rare."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(int(index))
        center = 4 if index % 10 == 0 else index % 4
        noise = torch.randn(8, generator=generator)
        return 4 * torch.nn.functional.one_hot(torch.tensor(center), 8) + noise, int(index)

    def __len__(self) -> int:
        return 330


class Training:
    """Model, optimizer, detector, and a loader that saves its buffer with itself."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.detector = OODDetector(
            KNNDistance(k=5, capacity=200), FlagRate(0.1, warmup_scores=100)
        )
        self.buffer = RareMemoryBuffer(20)
        self.loader: MixedLoader[Any] = BufferedMixSampler.wrap(
            DataLoader(Clusters(), batch_size=16, shuffle=True), self.buffer, replay=0.25, lag=4
        )

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "detector": self.detector,
            "loader": self.loader,
        }

    def save(self, file: Path) -> None:
        whole = {name: part.state_dict() for name, part in self.parts().items()}
        beside = file.with_suffix(".new")
        torch.save(whole, beside)
        os.replace(beside, file)  # at no moment is there half a file under this name

    def load(self, file: Path) -> None:
        whole = torch.load(file, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(whole[name])

    def train(self, tell: int, file: Path | None, steps: int = STEPS) -> None:
        """Train to the end; each row is told before anything may be saved after it."""
        while True:
            for features, ids in self.loader:
                batch = self.loader.batch
                assert ids.tolist() == batch.ids.tolist()
                embeddings = self.model(features)
                loss = embeddings.square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                found = self.detector.observe(
                    embeddings.detach(), ids=batch.ids, is_replay=batch.is_replay
                )
                self.buffer.add(batch, found)
                row = [batch.step, ids.tolist(), batch.is_replay.tolist(), loss.item().hex()]
                os.write(tell, (json.dumps(row) + "\n").encode())
                if batch.step + 1 == steps:
                    return
                if file is not None and batch.step % SAVED_EVERY == 0:
                    self.save(file)


def forked(tell: int, file: Path | None) -> int:
    """Train in a child, from what was saved last."""
    child = os.fork()
    if child:
        return child
    try:
        training = Training()
        if file is not None and file.exists():
            training.load(file)
        training.train(tell, file)
    except BaseException:
        faulthandler.dump_traceback()
        os._exit(1)
    os._exit(0)


def rows_of(file: Path | None, kill_after: int | None, pause: float) -> tuple[list[Row], bool]:
    """The rows that a child told, and whether it was killed before its end."""
    reads, tells = os.pipe()
    child = forked(tells, file)
    os.close(tells)
    told = []
    with os.fdopen(reads, "rb") as pipe:
        for line in pipe:
            told.append(json.loads(line))
            if len(told) == kill_after:
                time.sleep(pause)
                os.kill(child, signal.SIGKILL)
                kill_after = None  # what it told meanwhile is still in the pipe
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return told, os.WIFSIGNALED(status)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "wb") as nobody:
        Training().train(nobody.fileno(), folder / "warm.pt", steps=12)
    whole, _ = rows_of(None, None, 0.0)
    moments = random.Random(4)
    file = folder / "state.pt"
    lives, killed = [], 0
    while killed < KILLS:
        # After so many rows, and then anywhere in the step, or while it saves.
        told, was_killed = rows_of(file, moments.randint(1, 11), moments.uniform(0.0, 0.03))
        killed += was_killed
        lives.append(told)
        assert was_killed, "the run ended before it was killed often enough"
    told, _ = rows_of(file, None, 0.0)
    leave_results({"whole": whole, "lives": [*lives, told]})


if __name__ == "__main__":
    faulthandler.dump_traceback_later(170, exit=True)
    main(Path(argument(1)))
