"""Tests that a wrong proposal is found out, whatever engine makes it."""

import pytest
import torch
from torch import Tensor

from raremix.neighbors import TorchEngine, nearest, prepared
from raremix.neighbors.prepared import ReducedBank
from raremix.neighbors.proof import Search


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def oracle(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    differences = queries.double()[:, None] - bank.double()
    ascending: Tensor = torch.linalg.vector_norm(differences, dim=2).sort(dim=1).values
    return ascending[:, :k]


class Counted:
    """How often a query was compared with the whole bank."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        whole = Search._compare_all

        def counting(search: Search, row: int) -> tuple[Tensor, Tensor]:
            self.rows.append(row)
            return whole(search, row)

        monkeypatch.setattr(Search, "_compare_all", counting)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


class HalfEngine:
    """A custom engine that multiplies in bfloat16."""

    def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        product = (queries.bfloat16() @ bank.bfloat16().T).float()
        squared = queries.square().sum(1, keepdim=True) - 2 * product + bank.square().sum(1)
        return squared.sort(dim=1)[0][:, :count], squared.sort(dim=1)[1][:, :count]


def test_ordinary_rows_are_proven_at_once(compared: Counted) -> None:
    nearest(normal(200, 64, 1), normal(3000, 64), 10)
    assert compared.rows == []


def test_one_outlier_in_the_bank_costs_no_comparison_with_the_whole(compared: Counted) -> None:
    bank = normal(3000, 64)
    bank[5] *= 1e4
    nearest(bank[:200], bank, 10)
    assert compared.rows == []


def test_ties_cost_no_comparison_with_the_whole(compared: Counted) -> None:
    bank = normal(3000, 8).round()
    found = nearest(bank[:200], bank, 40)
    assert compared.rows == []
    torch.testing.assert_close(found.distances.double(), oracle(bank[:200], bank, 40))


def crowded() -> Tensor:
    """2,000 rows a few roundings apart and far from the others, which no product can tell apart."""
    steps = torch.randint(0, 4, (2000, 4), generator=torch.Generator().manual_seed(0))
    return torch.cat([1000.0 + steps * 2.0**-14, torch.zeros(4000, 4)])


def test_twins_closer_than_any_product_can_tell_are_compared_with_the_whole_bank(
    compared: Counted,
) -> None:
    bank = crowded()
    queries = torch.full((2, 4), 1000.0) - 2.0**-14
    found = nearest(queries, bank, 30)
    assert compared.rows == [0, 1]
    expected = oracle(queries, bank, 30)
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-5, atol=0)


def test_the_comparison_with_the_whole_bank_leaves_out_siblings(compared: Counted) -> None:
    bank, ids = crowded(), torch.arange(6000) // 2
    found = nearest(bank[:4], bank, 30, query_ids=ids[:4], bank_ids=ids)
    assert compared.rows
    for row in range(4):
        expected = oracle(bank[row : row + 1], bank[ids != ids[row]], 30)[0]
        torch.testing.assert_close(found.distances[row].double(), expected, rtol=1e-5, atol=0)
    assert (ids[found.indices] != ids[:4, None]).all()


def test_an_engine_of_low_precision_is_corrected() -> None:
    bank = normal(4000, 16) * 0.01
    bank[:50] += 10.0  # so that the centre is not where the queries are
    queries = bank[:50] + 1e-3
    engine = HalfEngine()
    proposed = engine.candidates(queries - bank.mean(0), bank - bank.mean(0), 12)[1]
    # The engine alone would miss neighbours.
    assert not torch.equal(
        proposed.sort().values[:, :1], nearest(queries, bank, 12).indices.sort().values[:, :1]
    )
    found = nearest(queries, bank, 3, engine=engine)
    torch.testing.assert_close(
        found.distances.double(), oracle(queries, bank, 3), rtol=1e-5, atol=0
    )


def test_an_engine_that_proposes_the_farthest_rows_is_corrected() -> None:
    class Backwards:
        def candidates(self, queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
            squared = (queries[:, None] - bank).square().sum(dim=2)
            values, rows = squared.topk(count, largest=True)
            return values.flip(1)[:, :1].expand(-1, count) * 0, rows.flip(1)

    queries, bank = normal(6, 5, 1), normal(90, 5)
    found = nearest(queries, bank, 3, engine=Backwards())
    torch.testing.assert_close(found.distances.double(), oracle(queries, bank, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_reduced_bank_proposes_with_a_floor_that_holds(
    dtype: torch.dtype, is_wide: bool, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_wide:  # what CUDA offers, acted out
        product = torch.mm

        def widening(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
            return product(left.to(out_dtype), right.to(out_dtype))

        monkeypatch.setattr(prepared, "_multiplies_to_float32", lambda *_: True)
        monkeypatch.setattr(torch, "mm", widening)
    bank = normal(3000, 48) * torch.exp(spread * normal(3000, 1, 1)) + 5.0
    queries = bank[:70] + 0.1 * normal(70, 48, 2)
    count = 40
    proposal = ReducedBank(bank, dtype, 2**20).propose(queries, count)
    squared = torch.cdist(queries.double(), bank.double()).square()
    measured = squared.gather(1, proposal.rows)
    worst = measured.sort(dim=1).values[:, 9]
    floor = proposal.floor(measured, worst)
    left_out = squared.scatter(1, proposal.rows, torch.inf).amin(dim=1)
    assert (torch.minimum(left_out, worst) >= torch.minimum(floor, worst) * (1 - 1e-9)).all()
    assert (floor >= worst).float().mean() > 0.5  # and it is of use


def test_the_torch_engine_answers_in_ascending_order() -> None:
    queries, bank = normal(600, 5, 1), normal(3000, 5)
    squared, rows = TorchEngine(2**16).candidates(queries, bank, 20)
    assert (squared.diff(dim=1) >= 0).all()
    assert squared.shape == rows.shape == (600, 20)
    expected = (queries[:, None] - bank[rows[:, :3]].reshape(600, 3, 5)).square().sum(dim=2)
    torch.testing.assert_close(squared[:, :3], expected, rtol=1e-3, atol=1e-4)


def test_the_torch_engine_multiplies_in_float64_when_told() -> None:
    queries, bank = normal(5, 7, 1) + 1e4, normal(40, 7) + 1e4
    squared, _ = TorchEngine(2**20, dtype=torch.float64).candidates(queries, bank, 40)
    expected = (queries.double()[:, None] - bank.double()).square().sum(dim=2).sort(dim=1).values
    assert squared.dtype == torch.float64
    torch.testing.assert_close(squared, expected, rtol=0, atol=1e-5)
