"""Tests of the compiled kernel: its keys are lower bounds, and its lists hold the least of them."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import EngineUnavailableError
from raremix.neighbors import kernel, nearest
from raremix.neighbors.kernel import NARROW, WIDE, Panels, join_self, load_kernel, measure, search


def _built() -> bool:
    try:
        load_kernel("a test")
    except EngineUnavailableError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _built(), reason="the kernel is not built here")


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def packed(rows: Tensor, centre: Tensor, width: int) -> Panels:
    panels = Panels(centre, len(rows), width)
    panels.append(rows)
    return panels


def true_keys(queries: Tensor, bank: Tensor, centre: Tensor) -> Tensor:
    """|q - b|^2 - |q|^2 of centred rows, in float64, without taking |q|^2 from a sum that holds it."""
    shown, rows = queries.double() - centre.double(), bank.double() - centre.double()
    return rows.square().sum(dim=1) - 2 * shown @ rows.T


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 300), st.integers(1, 40))


@given(shape=SHAPES, seed=st.integers(0, 99), spread=st.sampled_from([0.0, 1.0, 6.0]))
@settings(deadline=None, max_examples=80)
def test_keys_are_bounds_and_close_ones(
    shape: tuple[int, int, int], seed: int, spread: float
) -> None:
    count, bank_rows, dim = shape
    # Lengths that differ by orders of magnitude, since every row has a scale of its own.
    queries = normal(count, dim, seed) * torch.exp(spread * normal(count, 1, seed + 1))
    bank = normal(bank_rows, dim, seed + 2) * torch.exp(spread * normal(bank_rows, 1, seed + 3))
    centre = normal(1, dim, seed + 4)[0]
    keys, rows = search(packed(queries, centre, NARROW), packed(bank, centre, WIDE), bank_rows)
    assert torch.equal(rows.sort(dim=1).values.long(), torch.arange(bank_rows).expand(count, -1))
    true = true_keys(queries, bank, centre).gather(1, rows.long())
    assert (keys.double() <= true).all()
    lengths = (queries - centre).norm(dim=1, keepdim=True)
    others = (bank - centre).norm(dim=1)[rows.long()]
    assert ((true - keys) <= 4e-3 * (lengths + others).square() + 1e-30).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 5, 6, 7, 300])
def test_the_least_keys_are_kept_for_any_number_of_threads(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    queries, bank, centre = normal(count, 24, 1), normal(2001, 24), torch.zeros(24)
    shown, held = packed(queries, centre, NARROW), packed(bank, centre, WIDE)
    every = search(shown, held, len(bank))[0]
    keys, rows = search(shown, held, 30)
    assert torch.equal(keys, every[:, :30])
    true = true_keys(queries, bank, centre).gather(1, rows.long())
    torch.testing.assert_close(keys.double(), true, rtol=0, atol=1e-1)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "dim"), [(50, 5), (97, 8), (1500, 33), (700, 2100)])
def test_joining_rows_with_themselves_equals_searching_them(
    rows: int, dim: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    bank = normal(rows, dim)
    narrow, wide = (packed(bank, bank.mean(0), width) for width in (NARROW, WIDE))
    keys, found = join_self(narrow, wide, 20)
    assert (found != torch.arange(rows)[:, None]).all()
    wider, with_self = search(narrow, wide, 21)
    own = with_self == torch.arange(rows)[:, None]
    assert own.sum() == rows
    expected = wider[~own].view(rows, 20)
    # The two sides of a pair sum their bounds in another order.
    torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-3)


def test_fewer_rows_than_asked_for_are_filled_up_with_none() -> None:
    bank = normal(4, 3)
    keys, rows = join_self(packed(bank, bank[0], NARROW), packed(bank, bank[0], WIDE), 5)
    assert (rows[:, 3:] == -1).all()
    assert torch.isinf(keys[:, 3:]).all()
    assert (rows[:, :3] >= 0).all()


def test_a_product_of_the_longest_rows_does_not_overflow() -> None:
    # All of a row's length in one pair of dimensions, and spread over many.
    bank = torch.zeros(32, 4096)
    bank[:16, 0] = 1.0
    bank[16:] = 1.0
    keys, rows = search(
        packed(bank, torch.zeros(4096), NARROW), packed(bank, torch.zeros(4096), WIDE), 16
    )
    true = true_keys(bank, bank, torch.zeros(4096)).gather(1, rows.long())
    torch.testing.assert_close(keys.double(), true, rtol=1e-2, atol=1e-2)


def test_replaced_rows_are_found_and_dropped_ones_are_not() -> None:
    bank, centre = normal(100, 12), torch.zeros(12)
    panels = packed(bank, centre, WIDE)
    changed = torch.tensor([3, 97])
    bank[changed] = normal(2, 12, 9)
    panels.replace(bank[changed], changed)
    expected = search(packed(bank, centre, NARROW), packed(bank, centre, WIDE), 90)
    for ours, theirs in zip(
        search(packed(bank, centre, NARROW), panels, 90), expected, strict=True
    ):
        assert torch.equal(ours, theirs)
    panels.resize(60)
    _, rows = search(packed(bank, centre, NARROW), panels, 60)
    assert torch.equal(rows.sort(dim=1).values.long(), torch.arange(60).expand(100, -1))


def test_measured_distances_equal_float64_ones() -> None:
    queries, bank = normal(37, 77, 1) + 5, normal(500, 77) + 5
    rows = torch.randint(0, 500, (37, 9), generator=torch.Generator().manual_seed(2))
    expected = (bank.double()[rows] - queries.double()[:, None]).square().sum(dim=2)
    torch.testing.assert_close(measure(queries, bank, rows).double(), expected, rtol=1e-6, atol=0)


def test_without_the_kernel_its_engine_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "_loaded", lambda: "this processor has no AVX2")
    bank = normal(60, 5)
    with pytest.raises(EngineUnavailableError, match=r'"int16": this processor .* engine="torch"'):
        nearest(bank, bank, 3, engine="int16")
    expected = (bank[:, None] - bank).norm(dim=2).sort(dim=1).values[:, :3]
    torch.testing.assert_close(nearest(bank, bank, 3, engine="torch").distances, expected)


FORKING = """
    import os, torch
    from raremix.neighbors import NeighborIndex
    torch.set_num_threads(4)
    index = NeighborIndex(torch.randn(3000, 32, generator=torch.Generator().manual_seed(0)), engine="int16")
    before = index.leave_one_out(5).distances
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a loader's worker does; torch's own threads are gone
        os._exit(0 if torch.equal(index.leave_one_out(5).distances, before) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_the_kernel_searches_on_in_a_forked_process() -> None:
    # FAISS hangs there, with one thread too.
    command = [sys.executable, "-c", textwrap.dedent(FORKING)]
    subprocess.run(command, check=True, timeout=120)
