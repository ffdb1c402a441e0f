"""Two processes that mix crops: equal steps, ids of their own, one buffer, draws that differ."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import run_ranks

SCRIPT = Path(__file__).with_name("one_of_two_crops.py")


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_ranks_share_a_buffer_and_give_no_id_twice(tmp_path: Path) -> None:
    one, two = run_ranks(SCRIPT, folder=tmp_path)
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
