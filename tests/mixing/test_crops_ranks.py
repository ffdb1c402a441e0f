"""Two processes that mix crops: equal steps, ids of their own, one buffer, draws that differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import raremix

SCRIPT = Path(__file__).with_name("one_of_two_crops.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_ranks_share_a_buffer_and_give_no_id_twice(tmp_path: Path) -> None:
    source = str(Path(raremix.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    results = [tmp_path / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "init"), str(results[rank])],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    one, two = (torch.load(result, weights_only=True) for result in results)
    fresh = [id for each in (one, two) for row in each["fresh"] for id in row]
    assert len(fresh) == len(set(fresh)) == 2 * (4 + 11 * 2)
    assert one["held"] == two["held"]
    assert len(one["held"][-1]) == 6
    # Rank 0 found all of them; rank 1 replays them too, drawn for itself.
    assert [len(row) for row in two["replayed"]] == [0] + [2] * 11
    assert {id for row in two["replayed"] for id in row} <= {
        id for row in one["fresh"] for id in row
    }
    assert one["replayed"] != two["replayed"]
    assert not torch.equal(one["views"], two["views"])
    for each in (one, two):
        assert "cannot stretch a stream under torch.distributed" in each["refused"]
