"""Two processes without a trainer: every index that each was fed, in each mode."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch.distributed as dist
from counting import TOTAL, WIDTH
from launching import run_ranks

from raremix.mixing.modes import Mode

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)

MODES = pytest.mark.parametrize("mode", get_args(Mode))
BASES = pytest.mark.parametrize("base", ["dataset", "sampler"])
HELD = pytest.mark.parametrize("held", ["learnt", "one cold"])
FILLER = -2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(
        Path(__file__).with_name("one_of_two_plain.py"), folder=tmp_path_factory.mktemp("plain")
    )


def epochs(ranks: list[dict[str, Any]], *case: str) -> list[list[list[Any]]]:
    """For each epoch and rank, the batches as (ids, is_replay, entry)."""
    seen = [rank[" ".join(case)]["seen"] for rank in ranks]
    return [list(epoch) for epoch in zip(*seen, strict=True)]


@MODES
@BASES
@HELD
def test_no_row_is_lost_and_none_comes_twice_but_as_a_replay(
    ranks: list[dict[str, Any]], mode: str, base: str, held: str
) -> None:
    for epoch in epochs(ranks, mode, base, held):
        rows = [row for rank in epoch for batch in rank for row in zip(*batch, strict=True)]
        own = [key for key, is_replay, entry in rows if not is_replay and entry != FILLER]
        assert len(own) == len(set(own))
        if mode == "replace":
            # A replay takes the place of a row, and nothing else is missing.
            assert len(own) + sum(is_replay for _, is_replay, _ in rows) == TOTAL
            assert all(entry != FILLER for _, _, entry in rows)
        else:
            assert sorted(own) == list(range(TOTAL))


@MODES
@BASES
@HELD
def test_both_ranks_have_equally_many_batches_of_equal_width(
    ranks: list[dict[str, Any]], mode: str, base: str, held: str
) -> None:
    widths = {"replace": WIDTH, "stretch": WIDTH, "extend": WIDTH + WIDTH // 2}[mode]
    for one, two in epochs(ranks, mode, base, held):
        assert [len(ids) for ids, _, _ in one] == [len(ids) for ids, _, _ in two]
        assert all(len(ids) == widths for ids, _, _ in one[:-1])
        assert all(len(set(ids)) == len(ids) for ids, _, _ in [*one, *two])


@MODES
@BASES
def test_a_full_rank_replays_from_the_start_and_a_cold_one_never(
    ranks: list[dict[str, Any]], mode: str, base: str
) -> None:
    for full, cold in epochs(ranks, mode, base, "one cold"):
        assert all(any(replays) for _, replays, _ in full[:-1])
        assert not any(any(replays) for _, replays, _ in cold)
    assert ranks[0][f"{mode} {base} one cold"]["keys"]
    assert not ranks[1][f"{mode} {base} one cold"]["keys"]


@MODES
@BASES
def test_what_one_rank_finds_both_replay(ranks: list[dict[str, Any]], mode: str, base: str) -> None:
    one, two = (rank[f"{mode} {base} learnt"] for rank in ranks)
    assert one["keys"] == two["keys"]
    last = epochs(ranks, mode, base, "learnt")[-1]
    assert all(sum(map(sum, (replays for _, replays, _ in rank))) > 5 for rank in last)
