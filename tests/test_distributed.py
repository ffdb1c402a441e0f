"""Tests with two gloo processes on the CPU, which stand for two ranks."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from raremix import distributed
from raremix.detection import FlagRate, KNNDistance, MeanDistance, OODDetector

STEPS = 9
SETTINGS = ("knn with ids", "knn without ids", "mean without ids", "restarted with ids")


def detector_of(setting: str) -> OODDetector:
    capacity = 200 if setting.startswith("restarted") else 60
    scorer = MeanDistance() if setting.startswith("mean") else KNNDistance(k=2, capacity=capacity)
    return OODDetector(scorer, FlagRate(0.2, window=40, warmup_scores=15, slack=4))


def batch_of(step: int, rank: int, setting: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows, ids and replay flags; ranks differ in size, and now and then a row is spoilt."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    if setting.startswith("restarted"):  # the encoder is another one from the sixth step on
        encoder = torch.randn(16, 16, generator=torch.Generator().manual_seed(step // 5))
        images = torch.randn(150, 16, generator=torch.Generator().manual_seed(9))
        ids = torch.randint(0, 150, (60 + rank,), generator=generator)
        return images[ids] @ encoder, ids, torch.zeros(60 + rank, dtype=torch.bool)
    size = 3 + 4 * rank + step % 3
    rows = torch.randn(size, 3, generator=generator) * (1 + step / 4)
    if step % 4 == 2:
        rows[0, 1] = torch.nan
    ids = torch.randint(0, 40, (size,), generator=generator)
    is_replay = torch.rand(size, generator=generator) < 0.2
    return rows, None if setting.endswith("without ids") else ids, is_replay


def observe_all(rank: int, setting: str) -> dict[str, Any]:
    detector, found = detector_of(setting), []
    for step in range(STEPS):
        rows, ids, is_replay = batch_of(step, rank, setting)
        found.append(detector.observe(rows, ids, is_replay=is_replay))
    return {
        "state": detector.state_dict(),
        "scores": [detection.scores for detection in found],
        "is_rare": [detection.is_rare for detection in found],
        "threshold": [detection.threshold for detection in found],
    }


def gather_all(rank: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)
    sources = {
        "float32": torch.randn(2 + rank, 3, generator=generator),
        "int64": torch.randint(-(2**62), 2**62, (5 - rank,), generator=generator),
        "not contiguous": torch.randn(4, 2 + rank, generator=generator).T,
        "bool": torch.rand(1 + 3 * rank, 2, generator=generator) < 0.5,
        "nothing on one rank": torch.ones(4 * rank, 2),
        "nothing on any rank": torch.ones(0, 2),
    }
    return {
        "places": (distributed.rank(), distributed.world_size()),
        "sources": sources,
        "gathered": {name: distributed.gather_rows(rows) for name, rows in sources.items()},
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the spoilt rows
    dist.init_process_group("gloo", init_method=f"file://{folder}/door", rank=rank, world_size=2)
    results: dict[str, Any] = {setting: observe_all(rank, setting) for setting in SETTINGS}
    results["gather"] = gather_all(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # who leaves early can take the other down
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]  # torch's own
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


@pytest.mark.parametrize("setting", SETTINGS)
def test_both_ranks_hold_the_same_reference_and_threshold(
    ranks: list[dict[str, Any]], setting: str
) -> None:
    first, second = (results[setting] for results in ranks)
    assert equal(first["state"], second["state"])
    assert first["threshold"] == second["threshold"]
    assert first["threshold"][-1] < float("inf")  # the warm-up ended


def test_both_ranks_notice_a_restarted_encoder(ranks: list[dict[str, Any]]) -> None:
    assert [results["restarted with ids"]["state"]["watch"]["restarts"] for results in ranks] == [
        1,
        1,
    ]


@pytest.mark.filterwarnings("ignore:OODDetector.observe left out")
@pytest.mark.filterwarnings("ignore:the last 128 samples seen again")
@pytest.mark.parametrize("setting", SETTINGS)
def test_two_ranks_equal_one_process_that_sees_both_batches(
    ranks: list[dict[str, Any]], setting: str
) -> None:
    detector = detector_of(setting)
    for step in range(STEPS):
        (rows0, ids0, replay0), (rows1, ids1, replay1) = (
            batch_of(step, rank, setting) for rank in range(2)
        )
        ids = None if ids0 is None or ids1 is None else torch.cat([ids0, ids1])
        is_replay = torch.cat([replay0, replay1])
        found = detector.observe(torch.cat([rows0, rows1]), ids, is_replay=is_replay)
        for name, whole in (("scores", found.scores), ("is_rare", found.is_rare)):
            parts = torch.cat([results[setting][name][step] for results in ranks])
            torch.testing.assert_close(parts, whole, equal_nan=True)
    assert equal(detector.state_dict(), ranks[0][setting]["state"])


def test_every_rank_knows_its_place(ranks: list[dict[str, Any]]) -> None:
    assert [results["gather"]["places"] for results in ranks] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    "name",
    ["float32", "int64", "bool", "not contiguous", "nothing on one rank", "nothing on any rank"],
)
def test_gathered_rows_stand_in_the_order_of_the_ranks(
    ranks: list[dict[str, Any]], name: str
) -> None:
    expected = torch.cat([results["gather"]["sources"][name] for results in ranks])
    for results in ranks:
        gathered = results["gather"]["gathered"][name]
        assert gathered.dtype == expected.dtype
        assert torch.equal(gathered, expected)


def test_alone_everything_is_a_no_op() -> None:
    rows = torch.ones(3, 2)
    assert distributed.gather_rows(rows) is rows
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_a_group_of_one_is_alone_too(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/door", rank=0, world_size=1)
    try:
        rows = torch.ones(3, 2)
        assert distributed.gather_rows(rows) is rows
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
    finally:
        dist.destroy_process_group()
