"""Tests of every way in which FAISS fails to come."""

import builtins
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from raremix.errors import EngineUnavailableError
from raremix.neighbors import EngineName, FaissEngine, nearest
from raremix.neighbors.faiss_door import load_faiss

ROWS = torch.arange(24.0).reshape(12, 2)


def _fail_to_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    original = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "faiss":
            raise error
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


FAILURES = [
    ModuleNotFoundError("No module named 'faiss'"),
    ImportError("libfaiss.so: undefined symbol"),
    RuntimeError("libcudart.so.12 not found"),
    OSError("libomp.so: cannot open shared object file"),
]


def test_the_door_opens() -> None:
    assert hasattr(load_faiss("a test"), "IndexFlatL2")


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failed_import_names_call_cause_cure_and_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _fail_to_import(monkeypatch, error)
    with pytest.raises(EngineUnavailableError) as caught:
        nearest(ROWS, ROWS, 1, engine="faiss")
    message = str(caught.value)
    assert "FaissEngine.candidates cannot use FAISS" in message
    assert f"{type(error).__name__}: {error}" in message
    assert "pip uninstall -y faiss-gpu faiss-cpu" in message
    assert 'engine="torch"' in message
    assert caught.value.__cause__ is error


def test_an_error_of_another_kind_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_to_import(monkeypatch, KeyError("unrelated"))
    with pytest.raises(KeyError, match="unrelated"):
        load_faiss("a test")


def test_an_empty_leftover_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with pytest.raises(EngineUnavailableError, match="leftover of an uninstalled second FAISS"):
        load_faiss("a test")


def test_auto_falls_back_to_torch_and_logs_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    expected = nearest(rows, rows, 2, engine="faiss").distances
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with caplog.at_level(logging.INFO, logger="raremix"):
        found = nearest(rows, rows, 2).distances
    assert torch.equal(found, expected)
    assert "searching with torch instead of FAISS" in caplog.text


def test_auto_takes_faiss_for_many_queries_and_torch_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    candidates = FaissEngine.candidates

    def counting(self: FaissEngine, queries: Any, bank: Any, count: int) -> Any:
        seen.append(len(queries))
        return candidates(self, queries, bank, count)

    monkeypatch.setattr(FaissEngine, "candidates", counting)
    rows = torch.randn(700, 4, generator=torch.Generator().manual_seed(0))
    nearest(rows[:64], rows, 2)
    assert seen == []
    nearest(rows, rows, 2)
    assert seen == [700]


class Searching(Dataset[float]):
    def __init__(self, engine: EngineName) -> None:
        self.engine: EngineName = engine

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        many = ROWS.repeat(60, 1)
        return float(nearest(many, ROWS, 2, engine=self.engine).distances[0, 1])


def test_faiss_is_refused_inside_a_loader_worker() -> None:
    with pytest.raises(EngineUnavailableError, match="inside a DataLoader worker"):
        list(DataLoader(Searching("faiss"), num_workers=1))


def test_auto_searches_with_torch_inside_a_loader_worker() -> None:
    [found] = list(DataLoader(Searching("auto"), num_workers=1))
    assert float(found) == pytest.approx(8**0.5)
