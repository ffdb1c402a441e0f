"""Starts processes that train together, as a launcher starts them."""

import faulthandler
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import raremix

__all__ = ["as_rank", "run_ranks"]


def run_ranks(
    script: Path, *arguments: str, folder: Path, world: int = 2, seconds: float = 120
) -> list[Any]:
    """Run a script in so many processes; what each left as its results."""
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            map(str, (Path(raremix.__file__).parents[1], Path(__file__).parent))
        ),
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
                    [sys.executable, str(script), *arguments],
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


def as_rank(work: Callable[[int], Any]) -> None:
    """Join the group that ``run_ranks`` started, and leave what ``work`` makes of the rank."""
    faulthandler.dump_traceback_later(75, exit=True)  # a hang shall say where it is
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.save(work(dist.get_rank()), os.environ["RESULTS"])
    dist.barrier()  # who leaves early can take the other down
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
