"""Tests of every way in which FAISS fails to come."""

import builtins
import logging
import os
import subprocess
import sys
import textwrap
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from raremix.errors import EngineUnavailableError
from raremix.neighbors import EngineName, FaissEngine, choice, faiss_door, nearest
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


def test_two_installed_builds_are_named_when_the_import_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builds = ["faiss-cpu 1.9.0", "faiss-gpu 1.15.1"]
    monkeypatch.setattr(faiss_door, "installed_builds", lambda: builds)
    _fail_to_import(monkeypatch, FAILURES[1])
    with pytest.raises(EngineUnavailableError, match="2 packages provide it") as caught:
        load_faiss("a test")
    assert "(faiss-cpu 1.9.0, faiss-gpu 1.15.1)" in str(caught.value)


def test_auto_falls_back_to_torch_and_logs_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "_best_product", lambda: "torch")
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
    monkeypatch.setattr(choice, "_best_product", lambda: "torch")
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


def run(program: str) -> str:
    """What a program prints in a process of its own, which is ended if it hangs."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


FORKING = """
    import os, sys, torch
    from raremix.errors import EngineUnavailableError
    from raremix.neighbors import nearest

    torch.set_num_threads(2)
    rows = torch.randn(1500, 16)
    nearest(rows, rows, 2, engine="faiss")
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(60)  # a search that hangs ends the child
        try:
            nearest(rows, rows, 2, engine="faiss")
        except EngineUnavailableError as error:
            print(error, flush=True)
        torch.set_num_threads(1)
        print(nearest(rows, rows, 2).distances.shape, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    nearest(rows, rows, 2, engine="faiss")
    print("the parent goes on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_after_a_search_is_refused_where_it_would_hang() -> None:
    message, searched, parent = run(FORKING).splitlines()
    assert message.startswith("FaissEngine.candidates would run FAISS in process ")
    assert "forked from process" in message
    assert "torch.set_num_threads(1)" in message
    assert searched == "torch.Size([1500, 2])"
    assert parent == "the parent goes on"


THREADS = """
    import torch
    torch.set_num_threads({threads})
    import faiss
    from raremix.neighbors import ApproximateIndex, nearest

    def threads():
        return torch.get_num_threads(), faiss.omp_get_max_threads()

    before = threads()
    rows = torch.randn(1500, 16)
    nearest(rows, rows, 3, engine="faiss")  # the blocked product
    nearest(rows[:5], rows, 3, engine="faiss")  # the loop over pairs
    for kind in ("ivf", "ivfpq"):
        ApproximateIndex(rows, kind=kind).score(rows, 3)
    assert threads() == before == ({threads}, {threads}), (before, threads())
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_search_leaves_the_threads_of_torch_and_faiss_as_they_were(threads: int) -> None:
    run(THREADS.format(threads=threads))
