"""The loader that wrap gives back: the same settings, refusals, and rows that match the data."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from raremix import BufferedMixSampler, MixedLoader, RareMemoryBuffer
from raremix.errors import LoaderError

NUMBERS = TensorDataset(torch.arange(20), torch.arange(20) * 10)


def mixed(**settings: Any) -> MixedLoader[Any]:
    return BufferedMixSampler.wrap(
        DataLoader(NUMBERS, **{"batch_size": 4, **settings}), RareMemoryBuffer(4)
    )


def as_dict(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    images = torch.stack([row[0] for row in rows])
    return {"name": "batch", "views": [images, images + 1], "label": images * 10}


def view_major(rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """All first views, then all second views."""
    images = torch.stack([row[0] for row in rows])
    return torch.cat([images, images + 100])


def with_temperature(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        "temperature": torch.tensor(0.1),
        "class_weights": torch.ones(7),
        "images": torch.stack([row[0] for row in rows]),
    }


def no_tensor(rows: list[tuple[Tensor, Tensor]]) -> list[str]:
    return [str(int(row[0])) for row in rows]


def without_first(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"images": torch.stack([row[0] for row in rows[1:]])}


def without_any(rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([row[0] for row in rows])[:0]


def summed(rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([row[0] for row in rows]).sum()


@pytest.mark.parametrize("collate", [as_dict, view_major, with_temperature, no_tensor, None])
def test_batches_of_any_layout_are_taken(collate: Any) -> None:
    loader = mixed(collate_fn=collate)
    for data in loader:
        ids = loader.batch.ids
        if isinstance(data, Mapping) and "label" in data:
            assert torch.equal(data["label"], ids * 10)
        elif isinstance(data, Mapping):
            assert torch.equal(data["images"], ids)
        elif isinstance(data, Tensor):
            assert torch.equal(data[:4], ids)
            assert torch.equal(data[4:], ids + 100)
        elif collate is no_tensor:
            assert [int(name) for name in data] == ids.tolist()
        else:
            assert torch.equal(data[0], ids)
    assert loader.batch.step == 4


@pytest.mark.parametrize(
    ("collate", "shape"), [(without_first, r"\(3,\)"), (without_any, r"\(0,\)"), (summed, r"\(\)")]
)
def test_a_collate_function_that_loses_rows_is_refused(collate: Any, shape: str) -> None:
    with pytest.raises(LoaderError, match=rf"drew 4 rows .* tensors of shape \[{shape}\]"):
        next(iter(mixed(collate_fn=collate)))


def test_the_batch_is_unknown_before_the_first() -> None:
    loader = mixed()
    with pytest.raises(LoaderError, match="known once the first batch has been delivered"):
        loader.batch  # noqa: B018
    iter(loader)
    with pytest.raises(LoaderError, match="known once the first batch has been delivered"):
        loader.batch  # noqa: B018


def test_the_new_loader_has_the_settings_of_the_old() -> None:
    def start(worker: int) -> None:
        pass

    base = DataLoader(
        NUMBERS,
        batch_size=6,
        drop_last=True,
        num_workers=2,
        prefetch_factor=3,
        persistent_workers=True,
        timeout=7,
        worker_init_fn=start,
        collate_fn=as_dict,
        generator=torch.Generator(),
        multiprocessing_context="spawn",
    )
    loader = BufferedMixSampler.wrap(base, RareMemoryBuffer(4))
    for name in (
        "dataset",
        "batch_size",
        "drop_last",
        "num_workers",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory",
        "timeout",
        "worker_init_fn",
        "collate_fn",
        "generator",
        "multiprocessing_context",
    ):
        assert getattr(loader, name) == getattr(base, name), name
    assert len(loader) == len(base) == 3


def test_trainers_see_a_loader_whose_sampler_shards_for_itself() -> None:
    loader = mixed()
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.sampler, DistributedSampler)
    assert loader.sampler is loader.mixer


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


class StatefulLoader(DataLoader[Any]):
    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Stream(), batch_size=4), "Stream, an IterableDataset"),
        (StatefulLoader(NUMBERS, batch_size=4), "would lose what StatefulLoader adds"),
        (DataLoader(NUMBERS, batch_size=None), "got batch_size=None; give it a batch_size"),
        (NUMBERS, "expects a torch DataLoader, got TensorDataset"),
        (mixed(), "mixed already; wrap the plain one"),
    ],
)
def test_a_loader_that_cannot_be_mixed_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        BufferedMixSampler.wrap(loader, RareMemoryBuffer(4))


def test_batches_out_of_order_are_refused() -> None:
    try:
        loader = DataLoader(NUMBERS, batch_size=4, num_workers=1, in_order=False)
    except TypeError:
        pytest.skip("this torch has no in_order")
    with pytest.raises(LoaderError, match="build the loader with in_order=True"):
        BufferedMixSampler.wrap(loader, RareMemoryBuffer(4))


def test_a_mixed_loader_of_a_users_own_delivers_by_hand() -> None:
    mix = BufferedMixSampler(NUMBERS, RareMemoryBuffer(4), batch_size=4, seed=2)
    loader = StatefulLoader(NUMBERS, batch_size=4, sampler=mix)
    assert len(loader) == 5
    for _ in range(2):
        steps = []
        for data, _ in loader:
            batch = mix.deliver()
            assert data.tolist() == batch.ids.tolist()
            steps.append(batch.step)
        assert len(steps) == 5
    assert mix.epoch == 2


@pytest.mark.parametrize("own_batches", [False, True])
def test_the_sampler_of_a_loader_serves_that_loader_alone(own_batches: bool) -> None:
    settings: dict[str, Any] = {"shuffle": True}
    if own_batches:
        settings = {"batch_size": 1, "batch_sampler": [[0, 1], [2, 3]]}
    loader = mixed(**settings)
    rebuilt = DataLoader(NUMBERS, batch_sampler=loader.batch_sampler)
    with pytest.raises(LoaderError, match=r"something else than the loader .* do not prepare"):
        next(iter(rebuilt))
    with pytest.raises(LoaderError, match="something else than the loader"):
        list(loader.mixer)
    assert sum(len(ids) for ids, _ in loader) == (4 if own_batches else 20)


def test_a_loader_rebuilt_around_another_sampler_is_refused() -> None:
    with pytest.raises(LoaderError, match="built anew around another sampler"):
        MixedLoader(mixed().mixer, dataset=NUMBERS, sampler=SequentialSampler(NUMBERS))
