"""Tests of the reference bank against plain Python containers."""

from collections import OrderedDict, deque

import pytest
import torch
from feedback import through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection import ReferenceBank
from raremix.errors import OptionError, StateMismatchError

# A row says which it is: the number of the row in the whole stream.
Keyed = list[tuple[int, list[int]]]


def rows_of(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 2)


def resumed(bank: ReferenceBank) -> ReferenceBank:
    fresh = ReferenceBank(bank.capacity)
    fresh.load_state_dict(through_a_file(bank.state_dict()))
    return fresh


class KeyedModel:
    """What the bank should hold: rows by id, the sample not seen for longest first."""

    def __init__(self, capacity: int) -> None:
        self.limit = capacity
        self.held: OrderedDict[int, list[int]] = OrderedDict()

    def fill(self, numbers: list[int], ids: list[int], capacity: int) -> None:
        self.held.clear()
        self.limit = max(capacity, len(ids))
        for number, own in zip(numbers, ids, strict=True):
            self.held.setdefault(own, []).append(number)

    def add(self, numbers: list[int], ids: list[int]) -> None:
        numbers, ids = numbers[-self.limit :], ids[-self.limit :]
        for own in set(ids):
            self.held.pop(own, None)
        while sum(map(len, self.held.values())) + len(ids) > self.limit:
            self.held.popitem(last=False)
        for number, own in zip(numbers, ids, strict=True):
            self.held.setdefault(own, []).append(number)

    def pairs(self) -> list[tuple[int, int]]:
        return sorted((own, number) for own, held in self.held.items() for number in held)


def pairs_of(bank: ReferenceBank) -> list[tuple[int, int]]:
    if len(bank) == 0:
        return []
    assert bank.ids is not None
    assert torch.equal(bank.rows[:, 0], bank.rows[:, 1])
    numbers = [int(number) for number in bank.rows[:, 0].tolist()]
    return sorted(zip(bank.ids.tolist(), numbers, strict=True))


@given(
    capacity=st.integers(1, 12),
    filled=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=16),
    batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=15), max_size=12),
    resume_at=st.integers(0, 12),
)
@settings(deadline=None, max_examples=150)
def test_a_bank_with_ids_holds_what_an_ordered_dict_would(
    capacity: int, filled: list[int] | None, batches: list[list[int]], resume_at: int
) -> None:
    bank, model, number = ReferenceBank(capacity), KeyedModel(capacity), 0
    if filled is not None:
        bank.fill(rows_of(list(range(len(filled)))), torch.tensor(filled))
        model.fill(list(range(len(filled))), filled, capacity)
        number = len(filled)
    for step, ids in enumerate(batches):
        if step == resume_at:
            bank = resumed(bank)
        numbers = list(range(number, number + len(ids)))
        number += len(ids)
        bank.add(rows_of(numbers), torch.tensor(ids))
        model.add(numbers, ids)
        assert pairs_of(bank) == model.pairs()
        saved = resumed(bank).ids
        assert saved is not None
        assert list(dict.fromkeys(saved.tolist())) == list(model.held)  # oldest first


@given(
    capacity=st.integers(1, 12),
    filled=st.none() | st.integers(1, 16),
    sizes=st.lists(st.integers(1, 15), max_size=12),
    resume_at=st.integers(0, 12),
)
@settings(deadline=None, max_examples=100)
def test_a_bank_without_ids_is_a_queue(
    capacity: int, filled: int | None, sizes: list[int], resume_at: int
) -> None:
    bank, number = ReferenceBank(capacity), 0
    model: deque[int] = deque(maxlen=capacity)
    if filled is not None:
        bank.fill(rows_of(list(range(filled))), None)
        model = deque(range(filled), maxlen=max(capacity, filled))
        number = filled
    for step, size in enumerate(sizes):
        if step == resume_at:
            bank = resumed(bank)
        numbers = list(range(number, number + size))
        number += size
        bank.add(rows_of(numbers), None)
        model.extend(numbers)
        assert sorted(bank.rows[:, 0].tolist()) == sorted(model)
        assert bank.state_dict()["rows"][:, 0].tolist() == list(model)
        assert bank.ids is None


def test_many_rows_are_kept_while_the_bank_grows() -> None:
    bank = ReferenceBank(5000)
    for start in range(0, 5000, 100):
        numbers = list(range(start, start + 100))
        bank.add(rows_of(numbers), torch.tensor(numbers))
    assert pairs_of(bank) == [(number, number) for number in range(5000)]


def test_a_fill_above_capacity_is_kept_whole_and_stays_the_limit() -> None:
    bank = ReferenceBank(3)
    bank.fill(rows_of(list(range(10))), None)
    bank.add(rows_of([10, 11]), None)
    assert sorted(bank.rows[:, 0].tolist()) == list(range(2, 12))


def test_what_was_given_may_change_without_changing_the_bank() -> None:
    rows, ids = rows_of([0, 1, 2]), torch.arange(3)
    filled, added = ReferenceBank(9), ReferenceBank(9)
    filled.fill(rows, ids)
    added.add(rows, ids)
    rows.zero_()
    ids.zero_()
    assert pairs_of(filled) == pairs_of(added) == [(0, 0), (1, 1), (2, 2)]


def test_a_saved_state_is_a_copy() -> None:
    bank = ReferenceBank(9)
    bank.add(rows_of([0, 1, 2]), torch.arange(3))
    state = bank.state_dict()
    bank.add(rows_of([7]), torch.tensor([1]))
    assert state["rows"][:, 0].tolist() == [0.0, 1.0, 2.0]
    other = ReferenceBank(9)
    other.load_state_dict(state)
    state["rows"].zero_()
    assert pairs_of(other) == [(0, 0), (1, 1), (2, 2)]


def test_an_empty_bank_survives_a_file() -> None:
    bank = resumed(ReferenceBank(4))
    assert (len(bank), bank.dim, bank.ids) == (0, None, None)
    bank.add(rows_of([5]), None)
    assert bank.rows[:, 0].tolist() == [5.0]


@given(
    with_ids=st.booleans(),
    batches=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=15), max_size=30),
    look_every=st.integers(1, 6),
)
@settings(deadline=None, max_examples=40)
def test_a_copy_kept_by_the_changes_equals_the_bank(
    with_ids: bool, batches: list[list[int]], look_every: int
) -> None:
    bank, number = ReferenceBank(20), 0
    bank.fill(rows_of([0]), torch.tensor([0]) if with_ids else None)
    copy, version = bank.rows.clone(), bank.version
    for step, ids in enumerate(batches):
        bank.add(
            rows_of(list(range(number, number + len(ids)))),
            torch.tensor(ids) if with_ids else None,
        )
        number += len(ids)
        if step % look_every:
            continue
        changed = bank.changes_since(version)
        assert changed is not None
        assert changed.tolist() == sorted(set(changed.tolist()))
        fresh = torch.full((len(bank), 2), -1.0)
        fresh[: len(copy)] = copy[: len(bank)]
        fresh[changed] = bank.rows[changed]
        copy, version = fresh, bank.version
        assert torch.equal(copy, bank.rows)


def test_only_the_rows_touched_have_changed() -> None:
    bank = ReferenceBank(50)
    bank.fill(rows_of(list(range(50))), torch.arange(50))
    before = bank.version
    bank.add(rows_of([7, 3]), torch.tensor([7, 3]))
    changed = bank.changes_since(before)
    assert changed is not None
    assert changed.tolist() == [3, 7]
    after = bank.changes_since(bank.version)
    assert after is not None
    assert after.tolist() == []


@pytest.mark.parametrize("how", ["fill", "clear", "load", "too much"])
def test_all_rows_must_be_read_anew_after(how: str) -> None:
    bank = ReferenceBank(5000)
    bank.fill(rows_of(list(range(9))), torch.arange(9))
    before = bank.version
    if how == "fill":
        bank.fill(rows_of([1, 2]), torch.arange(2))
    elif how == "clear":
        bank.clear()
    elif how == "load":
        bank.load_state_dict(bank.state_dict())
    else:
        bank.add(rows_of(list(range(2000))), torch.arange(2000))
    assert bank.version > before
    assert bank.changes_since(before) is None
    assert bank.changes_since(bank.version + 1) is None


@pytest.mark.parametrize("ids", [None, torch.arange(6)])
def test_ages_count_the_rows_added_since(ids: Tensor | None) -> None:
    bank = ReferenceBank(10)
    bank.fill(rows_of(list(range(6))), ids)
    assert bank.ages.tolist() == [0] * 6
    bank.add(rows_of([6, 7]), None if ids is None else torch.tensor([0, 9]))
    bank.add(rows_of([8]), None if ids is None else torch.tensor([10]))
    assert sorted(resumed(bank).ages.tolist()) == sorted(bank.ages.tolist())
    if ids is None:
        assert bank.ages.tolist() == [3] * 6 + [1, 1, 0]
    else:
        assert bank.ids is not None
        ages = dict(zip(bank.ids.tolist(), bank.ages.tolist(), strict=True))
        assert ages == {0: 1, 9: 1, 10: 0, **dict.fromkeys(range(1, 6), 3)}


def test_an_age_moves_with_its_row() -> None:
    bank = ReferenceBank(10)
    bank.fill(rows_of([0, 1, 2, 3]), torch.tensor([0, 0, 1, 2]))
    bank.add(rows_of([4]), torch.tensor([0]))  # one row takes the place of two
    assert bank.ids is not None
    ages = dict(zip(bank.ids.tolist(), bank.ages.tolist(), strict=True))
    assert ages == {0: 0, 1: 1, 2: 1}


def test_a_row_is_found_by_its_id_and_another_is_not() -> None:
    bank = ReferenceBank(3)
    assert bank.find(torch.tensor([1])).tolist() == [-1]
    bank.add(rows_of([0, 1, 2, 3]), torch.tensor([7, 8, 9, 10]))  # 7 has left again
    places = bank.find(torch.tensor([10, 7, 8]))
    assert places[1] == -1
    assert bank.rows[places[[0, 2]], 0].tolist() == [3.0, 1.0]


def test_a_cleared_bank_begins_anew_under_the_same_limit() -> None:
    bank = ReferenceBank(3)
    bank.fill(rows_of(list(range(5))), None)
    bank.clear()
    assert (len(bank), bank.dim) == (0, None)
    bank.add(rows_of(list(range(9))), torch.arange(9))
    assert pairs_of(bank) == [(number, number) for number in range(4, 9)]


def test_rows_of_another_width_are_refused_by_name() -> None:
    bank, other = ReferenceBank(4), ReferenceBank(4)
    bank.add(torch.zeros(1, 3), None)
    other.add(torch.zeros(1, 5), None)
    with pytest.raises(StateMismatchError, match="rows 5 wide, and holds rows 3 wide"):
        bank.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("first", "second"), [("with", "without"), ("without", "with")])
def test_rows_with_and_without_ids_do_not_mix(first: str, second: str) -> None:
    bank = ReferenceBank(4)
    bank.add(rows_of([0, 1]), torch.arange(2) if first == "with" else None)
    with pytest.raises(
        OptionError, match=f"{second} ids, but the 2 rows .* were added {first} ids"
    ):
        bank.add(rows_of([2]), torch.arange(1) if second == "with" else None)


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="capacity as a whole number of at least 1, got 0"):
        ReferenceBank(0)


def test_another_capacity_is_refused_by_name() -> None:
    with pytest.raises(StateMismatchError, match="capacity was 4, is 5"):
        ReferenceBank(5).load_state_dict(ReferenceBank(4).state_dict())


@pytest.mark.parametrize("ids", [None, torch.arange(4)])
def test_a_bank_made_in_inference_mode_learns_outside_it(ids: Tensor | None) -> None:
    with torch.inference_mode():
        filled, loaded = ReferenceBank(4), ReferenceBank(4)
        filled.fill(rows_of([0, 1, 2, 3]), ids)
        loaded.load_state_dict(filled.state_dict())
    for bank in (filled, loaded):
        bank.add(rows_of([9]), None if ids is None else torch.tensor([9]))
        assert sorted(bank.rows[:, 0].tolist()) == [1.0, 2.0, 3.0, 9.0]


def test_the_default_device_is_not_used() -> None:
    keyed, queue = ReferenceBank(4), ReferenceBank(4)
    with torch.device("meta"):
        for start in range(0, 12, 3):
            rows = torch.full((3, 2), float(start), device="cpu")
            ids = torch.arange(start, start + 3, device="cpu")
            keyed.add(rows, ids)
            queue.add(rows, None)
        states = [bank.state_dict()["rows"] for bank in (keyed, queue)]
    assert [rows[:, 0].tolist() for rows in states] == [[6.0, 9.0, 9.0, 9.0]] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ids", [None, torch.arange(4)])
def test_a_bank_loaded_on_the_cpu_follows_its_rows_to_the_gpu(ids: Tensor | None) -> None:
    bank = ReferenceBank(4)
    bank.fill(rows_of([0, 1, 2, 3]), ids)
    bank.add(rows_of([9]).cuda(), None if ids is None else torch.tensor([9]))
    assert bank.rows.is_cuda
    assert sorted(bank.rows[:, 0].tolist()) == [1.0, 2.0, 3.0, 9.0]
