"""Buffers of two processes: replicas are equal, shards are disjoint, local ones know of nobody."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from feedback import same
from launching import run_ranks

from raremix import RareMemoryBuffer
from raremix.errors import StateMismatchError
from raremix.memory.offers import owner

SCRIPT = Path(__file__).with_name("one_of_two_buffers.py")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


def script() -> ModuleType:
    """The script as a module, for the buffers it builds."""
    spec = importlib.util.spec_from_file_location("one_of_two_buffers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RANK = script()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("layouts")
    torch.save({layout: state_of_one(layout) for layout in LAYOUTS}, folder / "states.pt")
    return run_ranks(SCRIPT, str(folder), folder=folder)


LAYOUTS = ["replicated", "sharded", "local"]
REPLICATED = [name for name in RANK.BUFFERS if name.startswith("replicated")]
SHARDED = [name for name in RANK.BUFFERS if name.startswith("sharded")]


def state_of_one(layout: str) -> dict[str, Any]:
    buffer = RareMemoryBuffer(8, layout=layout)  # type: ignore[arg-type]  # one of them
    buffer.add([4, 5, 6], RANK.Flags(torch.ones(3), torch.ones(3, dtype=torch.bool)))
    return buffer.state_dict()


def fed_by(
    ranks: list[dict[str, Any]], name: str, *, whole: bool = True
) -> tuple[RareMemoryBuffer, list[list[Any]], list[int]]:
    """A buffer of one process that gets the batches of these ranks as one, and what it held."""
    buffer: RareMemoryBuffer = RANK.BUFFERS[name]()
    if whole:
        buffer = type(buffer)(
            buffer.capacity,
            max_bytes=buffer.max_bytes,
            policy=buffer.policy,
            max_uses=buffer.limits.max_uses,
            max_age_steps=buffer.limits.max_age_steps,
            min_distance=buffer.min_distance,
        )
    buffer.attach(RANK.LAG)
    held, admitted = [], []
    entry_of: dict[tuple[int, int], int] = {}
    for step, parts in enumerate(zip(*(rank[name]["batches"] for rank in ranks), strict=True)):
        ids, is_replay, entry, scores, is_rare = (
            torch.cat([part[column] for part in parts]) for column in range(5)
        )
        if name in SHARDED:  # each shard numbers its entries for itself
            numbers = torch.repeat_interleave(
                torch.arange(2), torch.tensor([len(p[0]) for p in parts])
            )
            pairs = zip(numbers.tolist(), entry.tolist(), strict=True)
            entry = torch.tensor([entry_of.get(pair, -1) for pair in pairs], dtype=torch.int64)
        admitted.append(
            buffer.add(
                RANK.Rows(step, ids, is_replay, entry),
                RANK.Flags(scores, is_rare),
                crops=RANK.crops_of(ids),
                features=RANK.features_of(ids),
            )
        )
        held.append(RANK.contents(buffer))
        own = dict(zip(held[-1][0].tolist(), held[-1][2].tolist(), strict=True))
        for number, rank in enumerate(ranks):
            keys, _, entries, *_ = rank[name]["held"][step]
            for key, shards_entry in zip(keys.tolist(), entries.tolist(), strict=True):
                entry_of[number, shards_entry] = own.get(key, -1)
    return buffer, held, admitted


@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_are_what_one_buffer_would_be_that_saw_all_rows(
    seen: list[dict[str, Any]], name: str
) -> None:
    one, two = seen[0][name], seen[1][name]
    _, held, admitted = fed_by(seen, name)
    assert len(held) == len(one["held"]) == RANK.STEPS
    for ours, other, alone in zip(one["held"], two["held"], held, strict=True):
        assert same(ours, other)
        assert same(ours, alone)
    assert [batch[5] for batch in one["batches"]] == admitted
    assert [batch[5] for batch in two["batches"]] == admitted
    assert same(one["last"], two["last"])
    assert {100, 101} & set(one["last"][0].tolist())
    assert one["metrics"]["evictions"] > 3
    assert one["metrics"]["replays"] > 20  # of both
    drawn = [[batch[0][batch[1]].tolist() for batch in rank[name]["batches"]] for rank in seen]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", REPLICATED)
def test_the_state_of_any_replica_serves_another_number_of_ranks(
    seen: list[dict[str, Any]], name: str
) -> None:
    for rank in seen:
        buffer = RANK.BUFFERS[name]()
        buffer.attach(RANK.LAG)
        buffer.load_state_dict(rank[name]["state"])
        assert same(RANK.contents(buffer), rank[name]["last"])
        buffer.draw_ahead(RANK.STEPS, 4, taken=(), below=None, seed=0)
        buffer.advance(RANK.STEPS)


def shards(seen: list[dict[str, Any]], name: str, step: int) -> list[dict[int, list[Any]]]:
    """For each rank: score, crop and feature by key."""
    found = []
    for rank in seen:
        keys, scores, _, _, crops, features = rank[name]["held"][step]
        found.append(
            {
                key: [scores[row].item(), crops[row].tolist(), features[row].tolist()]
                for row, key in enumerate(keys.tolist())
            }
        )
    return found


@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_disjoint_and_hold_together_what_one_buffer_would(
    seen: list[dict[str, Any]], name: str
) -> None:
    _, held, admitted = fed_by(seen, name)
    for step in range(RANK.STEPS):
        one, two = shards(seen, name, step)
        assert all(owner(key, 2) == 0 for key in one)
        assert all(owner(key, 2) == 1 for key in two)
        assert set(one) | set(two) == set(held[step][0].tolist())
        assert sum(rank[name]["batches"][step][5] for rank in seen) == admitted[step]
    assert len(one) > 5
    assert len(two) > 5


@pytest.mark.parametrize("name", SHARDED)
def test_a_shard_learns_of_its_samples_whichever_rank_sees_them(
    seen: list[dict[str, Any]], name: str
) -> None:
    _, held, _ = fed_by(seen, name)
    for step in range(RANK.STEPS):
        one, two = shards(seen, name, step)
        keys, scores, _, _, crops, features = held[step]
        every = {**one, **two}
        for row, key in enumerate(keys.tolist()):
            assert every[key] == [scores[row].item(), crops[row].tolist(), features[row].tolist()]


@pytest.mark.parametrize("name", SHARDED)
def test_a_rank_replays_its_own_shard(seen: list[dict[str, Any]], name: str) -> None:
    for number, rank in enumerate(seen):
        drawn = {key for batch in rank[name]["batches"] for key in batch[0][batch[1]].tolist()}
        assert len(drawn) > 5
        assert {owner(key, 2) for key in drawn} == {number}


def test_a_local_buffer_knows_its_own_rows(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        _, held, admitted = fed_by([rank], "local", whole=False)
        assert same(rank["local"]["held"], held)
        assert [batch[5] for batch in rank["local"]["batches"]] == admitted
    assert not same(seen[0]["local"]["held"], seen[1]["local"]["held"])


def test_a_local_buffer_sends_nothing(seen: list[dict[str, Any]]) -> None:
    assert [rank["alone"] for rank in seen] == [[1, 2, 3], []]


def test_ranks_that_give_different_things_are_told_so_and_go_on(
    seen: list[dict[str, Any]],
) -> None:
    said, held = seen[0]["disagreeing"]
    assert same(seen[0]["disagreeing"], seen[1]["disagreeing"])
    assert [text.split(": ")[1].split(";")[0] for text in said] == [
        "none and rows of shape (3, 2, 2)",
        "rows of shape (3, 1, 2) and rows of shape (3, 2, 2)",
        "none and rows of shape (6,)",
        "rows of shape (2,) and rows of shape (3,)",
    ]
    assert "pass crops of one shape on every rank or on none" in said[0]
    assert "got features that differ between the ranks" in said[2]
    assert held[0].tolist() == [11, 21]
    assert held[4].equal(RANK.crops_of(held[0]))
    assert len(held[5]) == 2


def test_a_state_of_one_process_serves_two_unless_it_is_sharded(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["loaded"]["replicated"] == [4, 5, 6]
        assert rank["loaded"]["local"] == [4, 5, 6]
        assert "ranks was 1, is 2" in rank["loaded"]["sharded"]


def test_a_shard_is_refused_by_another_number_of_ranks(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        with pytest.raises(StateMismatchError, match="ranks was 2, is 1"):
            RANK.BUFFERS["sharded"]().load_state_dict(rank["sharded"]["state"])


def test_keys_are_shared_out_evenly() -> None:
    for world in (2, 3, 8):
        counts = torch.bincount(torch.tensor([owner(key, world) for key in range(4000)]))
        assert len(counts) == world
        assert (counts - 4000 / world).abs().max() < 5 * (4000 / world) ** 0.5
