"""Two processes that train together: equal steps, disjoint shards, one and the same buffer."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from launching import run_ranks

SCRIPT = Path(__file__).with_name("one_of_two_ranks.py")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(SCRIPT, folder=folder)


KINDS = pytest.mark.parametrize("kind", ["shuffled", "sharded"])


@KINDS
def test_both_ranks_make_equally_many_batches(seen: list[dict[str, Any]], kind: str) -> None:
    # 50 rows are 25 a rank: seven batches of 4 an epoch, the last one of a single row.
    for one, two in zip(seen[0][kind]["fresh"], seen[1][kind]["fresh"], strict=True):
        assert len(one) == len(two)
    assert len(seen[0][kind]["fresh"]) == 14


@KINDS
def test_fresh_rows_are_disjoint(seen: list[dict[str, Any]], kind: str) -> None:
    for epoch in (slice(0, 7), slice(7, 14)):
        ids = [key for rank in seen for batch in rank[kind]["fresh"][epoch] for key in batch]
        assert len(ids) == len(set(ids))


@KINDS
def test_both_ranks_hold_the_same_although_one_alone_finds_rare_rows(
    seen: list[dict[str, Any]], kind: str
) -> None:
    one, two = (rank[kind] for rank in seen)
    assert one["held"] == two["held"]
    assert one["state"] == two["state"]
    assert one["held"][2] == []
    assert len(one["held"][-1]) == 6


@KINDS
def test_the_rank_that_finds_nothing_replays_what_the_other_found(
    seen: list[dict[str, Any]], kind: str
) -> None:
    found_by_one = {key for batch in seen[0][kind]["fresh"] for key in batch}
    for rank in seen:
        replayed = {key for batch in rank[kind]["replayed"] for key in batch}
        assert replayed
        assert replayed <= found_by_one
    assert seen[0][kind]["replayed"] != seen[1][kind]["replayed"]


@KINDS
def test_samples_admitted_on_one_rank_reach_the_other(
    seen: list[dict[str, Any]], kind: str
) -> None:
    for rank in seen:
        assert rank[kind]["admitted"] == 2
        assert rank[kind]["last"][-2:] == [100, 101]


def test_a_sampler_built_before_the_process_group_is_sharded(seen: list[dict[str, Any]]) -> None:
    one, two = (rank["early"]["ids"] for rank in seen)
    assert len(one) == len(two) == 5
    assert sorted(one + two) == list(range(10))
