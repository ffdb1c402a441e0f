"""A training process that is killed at fifty random moments, and each time goes on."""

import os
from pathlib import Path

import pytest
from launching import run_ranks

STEPS, KILLS, SAVED_EVERY = 420, 50, 3  # as in the script


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for each kill")
def test_a_run_killed_fifty_times_sees_the_stream_of_the_run_that_was_not(tmp_path: Path) -> None:
    (seen,) = run_ranks(
        Path(__file__).with_name("killed_in_training.py"), str(tmp_path), folder=tmp_path, world=1
    )
    whole, lives = seen["whole"], seen["lives"]
    assert [row[0] for row in whole] == list(range(STEPS))
    assert sum(sum(row[2]) for row in whole) > STEPS
    assert len(lives) == KILLS + 1
    reached = 0
    for told in lives:
        first = told[0][0]
        # It goes on where it was saved last, so no step is passed over, and few are made again.
        assert reached - SAVED_EVERY - 1 <= first <= reached
        assert told == whole[first : first + len(told)]
        reached = first + len(told)
    assert reached == STEPS
    starts = {told[0][0] for told in lives}
    assert len(starts) > KILLS // 2
