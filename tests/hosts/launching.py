"""Starts processes that train together, as a launcher starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import raremix

__all__ = ["run_ranks"]


def run_ranks(
    script: str, *arguments: str, folder: Path, world: int = 2, seconds: float = 120
) -> list[Any]:
    """Run a script of this folder in so many processes; what each left as its results."""
    shared = {
        **os.environ,
        "PYTHONPATH": str(Path(raremix.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    outcomes = [folder / f"{rank}.pt" for rank in range(world)]
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    for rank in range(world):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "RESULTS": str(outcomes[rank])}
        # To a file: a process that fills a pipe nobody reads would stop the other one, too.
        with logs[rank].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name(script)), *arguments],
                    env={**shared, **mine},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for process, log_file in zip(processes, logs, strict=True):
            code = process.wait(timeout=seconds)
            assert code == 0, log_file.read_text()[-5000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(outcome, weights_only=True) for outcome in outcomes]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
