"""Tests of the GPU engine: its gates and what it asks of FAISS on any machine, its search on a GPU."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from raremix.errors import EmbeddingShapeError, EngineUnavailableError, OptionError
from raremix.neighbors import FaissGpuEngine, faiss_door, nearest
from raremix.neighbors.faiss_door import installed_builds, load_faiss_gpu

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def normal(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def _only_build(monkeypatch: pytest.MonkeyPatch, *builds: str) -> None:
    monkeypatch.setattr(faiss_door, "installed_builds", lambda: list(builds))


def test_a_build_without_gpu_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _only_build(monkeypatch, "faiss-cpu 1.9.0")
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(EngineUnavailableError) as caught:
        nearest(normal(5, 3), normal(9, 3), 2, engine=FaissGpuEngine())
    message = str(caught.value)
    assert message.startswith("FaissGpuEngine.candidates needs a FAISS with code for GPUs")
    assert "faiss-cpu 1.9.0 has none" in message
    assert "pip install faiss-gpu" in message
    assert 'engine="torch"' in message


def test_a_gpu_build_that_sees_no_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # FAISS itself would end the process here.
    _only_build(monkeypatch, "faiss-gpu 1.15.1")
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(EngineUnavailableError, match="needs a CUDA device, and FAISS sees none"):
        nearest(normal(5, 3), normal(9, 3), 2, engine=FaissGpuEngine())


def test_two_builds_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _only_build(monkeypatch, "faiss-cpu 1.9.0", "faiss-gpu 1.15.1")
    with pytest.raises(EngineUnavailableError) as caught:
        load_faiss_gpu("a test")
    message = str(caught.value)
    assert "2 packages provide it (faiss-cpu 1.9.0, faiss-gpu 1.15.1)" in message
    assert "pip uninstall -y faiss-gpu faiss-cpu" in message


def test_the_gpu_door_has_the_errors_of_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with pytest.raises(EngineUnavailableError, match="found an empty `faiss` module"):
        load_faiss_gpu("a test")


def test_the_installed_build_is_found() -> None:
    assert len(installed_builds()) == 1
    assert installed_builds()[0].startswith("faiss")


@pytest.mark.parametrize("max_memory", [0, -1, 2.5])
def test_max_memory_below_a_mebibyte_is_refused(max_memory: Any) -> None:
    with pytest.raises(OptionError, match="FaissGpuEngine expects max_memory"):
        FaissGpuEngine(max_memory=max_memory)


def floats(address: Any, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    pointer = ctypes.cast(int(address), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, shape)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A FAISS that believes in a GPU, and searches on the CPU at the addresses it is given."""
    seen: list[Any] = []

    def search(resources: Any, request: Any) -> None:
        seen.append((resources, request))
        queries = floats(request.queries, request.numQueries, request.dims)
        bank = floats(request.vectors, request.numVectors, request.dims)
        squared, rows = faiss.knn(queries, bank, request.k)
        floats(request.outDistances, *squared.shape)[:] = squared
        pointer = ctypes.cast(int(request.outIndices), ctypes.POINTER(ctypes.c_int64))
        np.ctypeslib.as_array(pointer, rows.shape)[:] = rows

    _only_build(monkeypatch, "faiss-gpu 1.15.1")
    if not hasattr(faiss, "GpuDistanceParams"):  # a build for the CPU
        params = {"METRIC_L2": 1, "DistanceDataType_F32": 1, "IndicesDataType_I64": 1}
        monkeypatch.setattr(faiss, "GpuDistanceParams", SimpleNamespace, raising=False)
        for name, value in params.items():
            monkeypatch.setattr(faiss, name, getattr(faiss, name, value), raising=False)
        for kind in ("void", "float"):
            monkeypatch.setattr(faiss, f"cast_integer_to_{kind}_ptr", int, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(
        faiss,
        "StandardGpuResources",
        lambda: SimpleNamespace(setTempMemory=lambda size: None),
        raising=False,
    )
    monkeypatch.setattr(faiss, "bfKnn", search, raising=False)
    return seen


def test_faiss_is_given_the_tensors_themselves(requests: list[Any]) -> None:
    queries, bank = normal(7, 5, 1), normal(40, 5)
    squared, rows = FaissGpuEngine().candidates(queries, bank, 6)
    [(_, request)] = requests
    assert int(request.queries) == queries.data_ptr()
    assert int(request.vectors) == bank.data_ptr()
    assert (request.numQueries, request.numVectors, request.dims, request.k) == (7, 40, 5, 6)
    assert request.metric == faiss.METRIC_L2
    assert (squared.dtype, rows.dtype) == (torch.float32, torch.int64)
    expected = (queries[:, None] - bank).square().sum(dim=2).sort(dim=1)
    torch.testing.assert_close(squared, expected.values[:, :6])
    assert torch.equal(rows, expected.indices[:, :6])


def test_slices_and_transposed_rows_are_laid_out_first(requests: list[Any]) -> None:
    rows = normal(6, 40).T[3:, ::2]
    found = nearest(rows[:9], rows, 3, engine=FaissGpuEngine())
    assert torch.equal(found.distances, nearest(rows[:9], rows, 3, engine="torch").distances)


def test_the_gate_is_passed_once_and_the_resources_are_kept(requests: list[Any]) -> None:
    engine, bank = FaissGpuEngine(), normal(40, 5)
    nearest(bank[:4], bank, 2, engine=engine)
    nearest(bank[:4], bank, 2, engine=engine)
    assert requests[0][0] is requests[1][0]


def test_more_candidates_than_the_gpu_selects_are_refused(requests: list[Any]) -> None:
    bank = normal(3000, 2)
    FaissGpuEngine().candidates(bank[:2], bank, 2048)
    with pytest.raises(EngineUnavailableError, match="asked for 2049 candidates, and FAISS finds"):
        FaissGpuEngine().candidates(bank[:2], bank, 2049)


def test_rows_of_another_width_never_reach_faiss(requests: list[Any]) -> None:
    with pytest.raises(EmbeddingShapeError, match=r"one width on one device, got \(4, 3\)"):
        FaissGpuEngine().candidates(normal(4, 3), normal(4, 2), 1)
    assert requests == []


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("k", [1, 10, 500])
def test_distances_on_the_gpu_equal_those_of_torch_to_the_bit(k: int) -> None:
    rows = normal(3000, 33).cuda()
    found = nearest(rows[:300], rows, k, engine=FaissGpuEngine())
    assert found.distances.is_cuda
    assert torch.equal(found.distances, nearest(rows[:300], rows, k, engine="torch").distances)


@pytest.mark.gpu
@needs_gpu
def test_the_search_waits_for_what_torch_writes_on_another_stream() -> None:
    rows = normal(20_000, 64).cuda()
    engine = FaissGpuEngine()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        moved = rows * 2
        found = nearest(moved[:64], moved, 5, engine=engine)
    torch.cuda.synchronize()
    assert torch.equal(found.distances, nearest(moved[:64], moved, 5, engine="torch").distances)


@pytest.mark.gpu
@needs_gpu
def test_no_class_of_faiss_is_patched() -> None:
    before = faiss.IndexFlatL2.search
    rows = normal(100, 8).cuda()
    nearest(rows, rows, 2, engine=FaissGpuEngine())
    assert faiss.IndexFlatL2.search is before
