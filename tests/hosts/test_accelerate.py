"""accelerate, in one process and in two: what it would shard again it is not given, or refused."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from counting import Fed, assert_none_lost_none_doubled
from launching import run_ranks

pytestmark = [
    # Not imported here: its first Accelerator would decide for the whole test process.
    pytest.mark.skipif(find_spec("accelerate") is None, reason="needs the extra frameworks"),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]

EPOCHS = 2
STOP = 8  # as in the script


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each process was fed, and what it was told."""
    folder: Path = tmp_path_factory.mktemp("accelerate")
    states = str(folder / "states")
    return run_ranks(
        Path(__file__).with_name("one_of_two_accelerate.py"),
        states,
        folder=folder,
        world=request.param,
    )


def test_a_loader_left_as_it_is_gives_every_row_once(ranks: list[dict[str, Any]]) -> None:
    fed = [Fed(**rank["fed"]) for rank in ranks]
    assert_none_lost_none_doubled(fed, EPOCHS)
    assert all(rank.replays() > 10 for rank in fed)
    assert len({str(rank["held"]) for rank in ranks}) == 1


def test_a_state_saved_by_accelerate_goes_on_as_if_never_stopped(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        for name, rows in rank["resumed"].items():
            assert rows == rank["fed"][name][STOP:]
        assert rank["held after resuming"] == rank["held"]


@pytest.mark.parametrize("way", ["prepare", "prepare_data_loader"])
def test_preparing_the_loader_is_refused_before_the_first_batch(
    ranks: list[dict[str, Any]], way: str
) -> None:
    for rank in ranks:
        message = rank["refused"][way]
        assert message.startswith("LoaderError: MixedLoader shards for itself")
        assert "Prepare the model and the optimizer alone" in message
        assert ".to(accelerator.device)" in message


@pytest.mark.parametrize("way", ["built beside", "skip_first_batches"])
def test_a_loader_that_accelerate_builds_beside_it_is_refused_at_its_first_batch(
    ranks: list[dict[str, Any]], way: str
) -> None:
    for rank in ranks:
        message = rank["refused"][way]
        assert message.startswith("LoaderError: BufferedMixSampler was iterated by something else")
        assert "do not prepare that loader" in message
