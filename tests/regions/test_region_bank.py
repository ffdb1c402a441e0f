"""Tests of the bank of regions: distances against plain loops, and what merging may and may not do."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from feedback import same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.errors import (
    EmbeddingShapeError,
    NotEnoughReferenceError,
    OptionError,
    StateMismatchError,
)
from raremix.regions import RegionBank
from raremix.regions.bank import _LOOKED_AT, _MOST_AT_ONCE
from raremix.regions.ledger import NEAREST, Ledger

seeds = st.integers(0, 2**32 - 1)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def video(
    frames: int, regions: int, *, dim: int = 6, kinds: int = 5, noise: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Regions of few kinds, frame by frame, and their moments, which count frames."""
    generator = generator_of(seed)
    centres = 2 * torch.randn(kinds, dim, generator=generator)
    which = torch.randint(kinds, (frames * regions,), generator=generator)
    rows = centres[which] + noise * torch.randn(frames * regions, dim, generator=generator)
    return rows, torch.arange(frames).repeat_interleave(regions)


def by_hand(
    rows: Tensor, moments: Tensor, asked: Tensor, own: Tensor, *, frames: int = 1, window: int = 0
) -> Tensor:
    """The distance to the nearest region of the frames-th other frame, of the last where too few."""
    apart = torch.cdist(asked.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = []
    for distances, moment in zip(apart.tolist(), own.tolist(), strict=True):
        nearest: dict[int, float] = {}
        for distance, other in zip(distances, moments.tolist(), strict=True):
            if abs(other - moment) > window:
                nearest[other] = min(distance, nearest.get(other, math.inf))
        counted: list[int] = []
        at = math.inf
        for distance, other in sorted((distance, other) for other, distance in nearest.items()):
            if len(counted) < frames and all(abs(other - known) > window for known in counted):
                counted.append(other)
                at = distance
        found.append(at)
    return torch.tensor(found, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("frames", [1, 2, 5, 50])
def test_distances_are_those_of_a_plain_loop_while_nothing_is_merged(
    frames: int, window: int
) -> None:
    rows, moments = video(24, 11)
    bank = RegionBank(300, id_window=window)
    for start in range(0, len(rows), 60):
        bank.add(rows[start : start + 60], moments[start : start + 60])
    close(
        bank.distances(rows, moments, frames=frames),
        by_hand(rows, moments, rows, moments, frames=frames, window=window),
    )
    new, own = video(4, 9, seed=1)
    close(
        bank.distances(new, own + 22, frames=frames),
        by_hand(rows, moments, new, own + 22, frames=frames, window=window),
    )
    assert bank.radius == 0
    assert bank.reach.max() == 0


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=12),
    frames=st.integers(1, 6),
    window=st.sampled_from([0, 0, 1, 7]),
    engine=st.sampled_from(["auto", "torch"]),
)
def test_frames_of_any_sizes_and_moments_are_counted_as_a_plain_loop_counts_them(
    seed: int, sizes: list[int], frames: int, window: int, engine: Any
) -> None:
    generator = generator_of(seed)
    moments = torch.randint(0, 30, (len(sizes),), generator=generator)
    moments[:2] = torch.tensor([100, 200])
    sizes[:2] = [3, 3]
    own = moments.repeat_interleave(torch.tensor(sizes))
    # On a coarse grid, so that many regions are copies and lie equally far away.
    rows = torch.randint(0, 3, (len(own), 2), generator=generator).float()
    bank = RegionBank(600, id_window=window, engine=engine)
    bank.add(rows, own)
    close(
        bank.distances(rows, own, frames=frames),
        by_hand(rows, own, rows, own, frames=frames, window=window),
    )


def test_several_regions_of_one_frame_count_once() -> None:
    bank = RegionBank(16)
    rows = torch.tensor([[1.0], [2.0], [3.0], [9.0], [11.0]])
    bank.add(rows, torch.tensor([1, 1, 1, 2, 3]))
    asked, own = torch.zeros(1, 1), torch.tensor([0])
    found = [float(bank.distances(asked, own, frames=frames)) for frames in (1, 2, 3, 4)]
    assert found == [1.0, 9.0, 11.0, 11.0]


def test_near_duplicates_of_a_counted_frame_are_no_other_frame() -> None:
    bank = RegionBank(16, id_window=10)
    bank.add(torch.tensor([[1.0], [2.0], [3.0], [9.0]]), torch.tensor([100, 105, 110, 111]))
    asked, own = torch.zeros(1, 1), torch.tensor([0])
    assert float(bank.distances(asked, own, frames=2)) == 9.0


@pytest.mark.parametrize("still", [_LOOKED_AT - 1, _LOOKED_AT, 10 * _LOOKED_AT])
def test_the_one_other_moment_is_found_behind_many_near_duplicates(still: int) -> None:
    generator = generator_of(3)
    rows = torch.cat([0.01 * torch.randn(still, 4, generator=generator), torch.full((1, 4), 5.0)])
    moments = torch.cat([torch.arange(still), torch.tensor([10_000])])
    bank = RegionBank(1000, id_window=1000)
    bank.add(rows, moments)
    found = bank.distances(rows[:still], moments[:still])
    close(found, by_hand(rows, moments, rows[:still], moments[:still], window=1000))


@pytest.mark.parametrize("moments", [[-(2**63), 2**63 - 1], [2**63 - 1, 2**63 - 3]])
def test_moments_at_the_ends_of_int64_are_told_apart(moments: list[int]) -> None:
    rows, own = torch.tensor([[0.0], [4.0]]), torch.tensor(moments)
    bank = RegionBank(16, id_window=1)
    bank.add(rows, own)
    assert bank.distances(rows, own).tolist() == [4.0, 4.0]
    far = RegionBank(16, id_window=2**62)
    far.add(rows, torch.tensor([-(2**63), 2**63 - 1]))
    assert far.distances(rows, torch.tensor([-(2**63), 2**63 - 1])).tolist() == [4.0, 4.0]


def test_a_single_region_is_a_bank() -> None:
    bank = RegionBank(16)
    bank.add(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    assert float(bank.distances(torch.zeros(1, 2), torch.tensor([1]))) == pytest.approx(2**0.5)


def test_an_empty_bank_and_one_of_ones_own_moment_say_what_is_missing() -> None:
    bank = RegionBank(16, id_window=4)
    with pytest.raises(NotEnoughReferenceError, match="has seen no region yet; call add first"):
        bank.distances(torch.zeros(1, 2), torch.tensor([0]))
    bank.add(torch.zeros(3, 2), torch.tensor([7, 7, 9]))
    with pytest.raises(NotEnoughReferenceError, match=r"other moments than 5, .* id_window=4"):
        bank.distances(torch.zeros(2, 2), torch.tensor([20, 5]))


def test_options_and_inputs_out_of_range_are_named() -> None:
    with pytest.raises(OptionError, match="RegionBank expects capacity as a whole number of at"):
        RegionBank(15)
    with pytest.raises(OptionError, match="RegionBank expects id_window"):
        RegionBank(16, id_window=-1)
    with pytest.raises(OptionError, match="RegionBank expects engine"):
        RegionBank(16, engine="fast")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match="RegionBank expects max_memory"):
        RegionBank(16, max_memory=9)
    bank = RegionBank(16)
    bank.add(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(OptionError, match=r"RegionBank\.distances expects frames"):
        bank.distances(torch.zeros(1, 3), torch.tensor([2]), frames=0)
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 3\), got \(1, 4\)"):
        bank.distances(torch.zeros(1, 4), torch.tensor([2]))
    with pytest.raises(EmbeddingShapeError, match=r"RegionBank\.add got 2 ids for 1 rows"):
        bank.add(torch.zeros(1, 3), torch.tensor([2, 3]))
    for bad in (math.nan, math.inf):
        with pytest.raises(EmbeddingShapeError, match=r"RegionBank\.add got embeddings with NaN"):
            bank.add(torch.tensor([[0.0, 0.0, 0.0], [0.0, bad, 0.0]]), torch.tensor([4, 4]))
        with pytest.raises(EmbeddingShapeError, match=r"distances got embeddings with NaN"):
            bank.distances(torch.tensor([[0.0, bad, 0.0]]), torch.tensor([4]))
    assert len(bank) == 2


def test_what_is_added_is_copied_and_not_changed() -> None:
    rows, moments = video(6, 5)
    kept = rows.clone()
    bank = RegionBank(16)
    bank.add(rows, moments)
    before = bank.distances(kept, moments)
    assert torch.equal(rows, kept)
    rows.zero_()
    assert torch.equal(bank.distances(kept, moments), before)


def test_arrays_and_half_precision_say_the_same() -> None:
    rows, moments = video(6, 5)
    rows = rows.half()
    banks = RegionBank(32), RegionBank(32)
    banks[0].add(rows, moments)
    banks[1].add(rows.float().numpy(), moments.numpy())
    found = banks[1].distances(rows.numpy(), moments.numpy())
    assert torch.equal(found, banks[0].distances(rows, moments))
    assert found.dtype == torch.float32


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    capacity=st.integers(16, 60),
    frames=st.integers(2, 30),
    regions=st.integers(1, 20),
    noise=st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    window=st.sampled_from([0, 0, 2, 6]),
    shuffled=st.booleans(),
)
def test_a_merged_region_is_found_no_nearer_than_it_is_and_at_most_two_reaches_farther(
    seed: int,
    capacity: int,
    frames: int,
    regions: int,
    noise: float,
    window: int,
    shuffled: bool,
) -> None:
    rows, moments = video(frames, regions, noise=noise, seed=seed)
    order = torch.arange(len(rows))
    if shuffled:
        order = torch.randperm(len(rows), generator=generator_of(seed))
    bank = RegionBank(capacity, id_window=window)
    for part in torch.split(order, 2 * regions):
        bank.add(rows[part], moments[part])
        assert len(bank) <= capacity
    assert len(bank) == min(len(rows), capacity)
    assert int(bank.regions.sum()) == len(rows)
    assert bool((bank.counts >= 1).all())
    assert bool((bank.counts <= bank.regions).all())
    asked = torch.cat([rows, rows + 0.5])
    own = moments.repeat(2)
    is_seen = torch.tensor([bool(((moments - moment).abs() > window).any()) for moment in own])
    if not is_seen.any():
        return
    asked, own = asked[is_seen], own[is_seen]
    found = bank.distances(asked, own).double()
    exact = by_hand(rows, moments, asked, own, window=window)
    rounding = 1e-5 * (1 + exact)
    assert bool((found >= exact - rounding).all())
    assert bool((found <= exact + 2 * bank.reach.max() + rounding).all())


def test_the_pair_that_becomes_one_is_the_nearest() -> None:
    for seed in range(20):
        rows = torch.randn(17, 5, generator=generator_of(seed))
        apart = torch.cdist(rows.double(), rows.double()).fill_diagonal_(math.inf)
        pair = divmod(int(apart.argmin()), 17)
        bank = RegionBank(16)
        bank.add(rows, torch.arange(17))
        # Of equals, the elder stays.
        gone = max(pair)
        left = {tuple(row) for row in bank.rows.tolist()}
        assert left == {tuple(row) for place, row in enumerate(rows.tolist()) if place != gone}
        assert bank.radius == pytest.approx(float(apart.min()), rel=1e-5)
        kept = (bank.rows == rows[min(pair)]).all(dim=1)
        assert bank.counts[kept].tolist() == [2]
        assert bank.regions[kept].tolist() == [2]
        assert bank.reach[kept].tolist() == [bank.radius]


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    capacity=st.integers(16, 40),
    when=st.floats(0, 1),
    step=st.integers(1, 40),
    spread=st.floats(0.01, 1.0),
)
def test_a_far_lone_region_is_never_merged_away(
    seed: int, capacity: int, when: float, step: int, spread: float
) -> None:
    generator = generator_of(seed)
    rows = torch.rand(400, 3, generator=generator) * spread
    # Farther than sqrt(2) times what any two of the others are apart.
    lone = int(when * 399)
    rows[lone] = torch.tensor([0.0, 0.0, 1.0]) * spread * (1 + math.sqrt(2) * math.sqrt(3)) * 1.01
    bank = RegionBank(capacity)
    for part in torch.split(torch.arange(400), step):
        bank.add(rows[part], part)
    is_lone = (bank.rows == rows[lone]).all(dim=1)
    assert int(is_lone.sum()) == 1
    assert bank.regions[is_lone].tolist() == [1]


def test_many_copies_leave_room_for_the_rest() -> None:
    distinct = 10 * torch.eye(15)
    rows = torch.cat([torch.zeros(300, 15), distinct, torch.zeros(300, 15)])
    bank = RegionBank(16)
    bank.add(rows, torch.arange(len(rows)))
    assert bank.radius == 0
    assert all(bool((bank.rows == row).all(dim=1).any()) for row in distinct)
    assert int(bank.regions.max()) == 600


@pytest.mark.parametrize(("window", "expected"), [(0, 50), (2, 17), (9, 5), (60, 1)])
def test_a_row_counts_the_frames_it_stands_for_and_near_duplicates_once(
    window: int, expected: int
) -> None:
    generator = generator_of(0)
    objects = 100 * torch.eye(16)
    bank = RegionBank(16, id_window=window)
    for moment in range(50):
        # Each object lies in two overlapping windows.
        rows = objects.repeat(2, 1) + 0.1 * torch.randn(32, 16, generator=generator)
        bank.add(rows, torch.full((32,), moment))
    assert bank.counts.tolist() == [expected] * 16
    assert bank.regions.tolist() == [100] * 16


def test_merged_rows_name_as_many_frames_as_they_stand_for() -> None:
    generator = generator_of(0)
    objects = 100 * torch.eye(16)
    bank = RegionBank(16)
    for moment in range(50):
        bank.add(
            objects + 0.1 * torch.randn(16, 16, generator=generator), torch.full((16,), moment)
        )
    asked = objects[:1] * 1.02
    nearest = torch.cdist(asked, bank.rows).amin()
    for frames in (1, 2, 50, 51):  # The 51st is none: other rows stand for the same frames.
        found = bank.distances(asked, torch.tensor([99]), frames=frames)
        assert float(found) == pytest.approx(float(nearest), rel=1e-5)
    own = bank.distances(asked, torch.tensor([0]), frames=49)
    assert float(nearest) <= float(own) <= float(nearest + 2 * bank.reach.max())


@pytest.mark.parametrize("closest", [1, 2, 3])
def test_of_a_row_of_ones_own_moment_the_frames_it_took_in_count_once(closest: int) -> None:
    bank = RegionBank(16)
    bank.add(100 * torch.eye(16), torch.zeros(16, dtype=torch.int64))
    for moment in (1, 2, 3):
        for _ in range(2):
            region = 100 * torch.eye(16)[:1]
            region[0, 1] = 1.0 if moment == closest else 2.0
            bank.add(region, torch.tensor([moment]))
    lone = torch.full((1, 16), 50.0)
    bank.add(lone, torch.tensor([9]))
    rows = 100 * torch.eye(16)[:1]
    own = torch.tensor([0])
    at = [float(bank.distances(rows, own, frames=frames)) for frames in (1, 2, 3, 4)]
    assert at[:3] == [1.0, 1.0, 1.0]
    # The fourth frame is another row's.
    assert at[3] > 10


def test_a_row_is_no_neighbour_of_its_moment_but_what_it_took_in_is() -> None:
    rows = 100 * torch.eye(16)
    bank = RegionBank(16, id_window=5)
    bank.add(rows, torch.zeros(16, dtype=torch.int64))
    taken = rows[:1].clone()
    taken[0, 1] = 3.0
    for moment, expected in ((5, None), (6, 3.0), (20, 3.0)):
        bank.add(taken, torch.tensor([moment]))
        if expected is None:
            with pytest.raises(NotEnoughReferenceError):
                bank.distances(rows[:1], torch.tensor([0]))
            continue
        assert float(bank.distances(rows[:1], torch.tensor([0]))) == pytest.approx(expected)
    # Of what was taken in at 5, 6 and 20, only the last is another moment for one at 10.
    assert float(bank.distances(rows[:1], torch.tensor([10]))) == 0.0
    assert float(bank.distances(rows[:1], torch.tensor([2]))) == pytest.approx(3.0)


def test_the_order_of_frames_does_not_matter_while_nothing_is_merged() -> None:
    rows, moments = video(12, 8)
    one, other = RegionBank(128, id_window=1), RegionBank(128, id_window=1)
    one.add(rows, moments)
    order = torch.randperm(12, generator=generator_of(0))
    for frame in order.tolist():
        other.add(rows[moments == frame], moments[moments == frame])
    for frames in (1, 3):
        found = other.distances(rows, moments, frames=frames)
        assert torch.equal(found, one.distances(rows, moments, frames=frames))


def test_asking_changes_nothing() -> None:
    rows, moments = video(60, 9)
    silent, asked = RegionBank(48, id_window=1), RegionBank(48, id_window=1)
    for part in torch.split(torch.arange(len(rows)), 9):
        if len(asked) > 30:
            # Judged and then learned: what the first search has found is used again.
            asked.distances(rows[part], moments[part])
            asked.distances(rows[part], moments[part], frames=20)
            asked.distances(rows[part][:4] + 1, moments[part][:4])
            asked.distances(rows[part], moments[part])
        silent.add(rows[part], moments[part])
        asked.add(rows[part], moments[part])
    assert same(silent.state_dict(), asked.state_dict())


def test_what_was_asked_before_is_asked_anew_of_a_bank_that_has_changed() -> None:
    rows, moments = video(6, 5)
    bank = RegionBank(64)
    bank.add(rows, moments)
    asked, own = rows[:3] + 1.0, torch.full((3,), 9)
    assert bool((bank.distances(asked, own) > 0).all())
    bank.add(asked, own + 1)
    assert bank.distances(asked, own).tolist() == [0.0, 0.0, 0.0]
    asked += 1.0
    assert bool((bank.distances(asked, own) > 0).all())


def test_distances_do_not_depend_on_the_batch() -> None:
    rows, moments = video(60, 9)
    bank = RegionBank(48, id_window=1)
    bank.add(rows, moments)
    whole = bank.distances(rows, moments)
    parts = [bank.distances(rows[at : at + 7], moments[at : at + 7]) for at in range(0, 540, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_bank_of_many_regions_at_once_stays_within_its_capacity() -> None:
    rows, moments = video(700, 9, noise=1.0)
    bank = RegionBank(5 * _MOST_AT_ONCE)
    bank.add(rows, moments)
    assert len(bank) == 5 * _MOST_AT_ONCE
    found = bank.distances(rows[:500], moments[:500]).double()
    exact = by_hand(rows, moments, rows[:500], moments[:500])
    assert bool((found >= exact - 1e-5).all())
    # Few were merged, so most distances are what they were.
    assert float((found - exact < 1e-5).double().mean()) > 0.7


def test_saved_and_resumed_equals_never_stopped() -> None:
    rows, moments = video(80, 7)
    straight, stopped = (RegionBank(64, id_window=2) for _ in range(2))
    for step, part in enumerate(torch.split(torch.arange(len(rows)), 7)):
        straight.add(rows[part], moments[part])
        stopped.add(rows[part], moments[part])
        if step in (0, 5, 30, 60):
            state = through_a_file(stopped.state_dict())
            stopped = RegionBank(64, id_window=2)
            stopped.load_state_dict(state)
            assert same(stopped.state_dict(), state)
    assert same(straight.state_dict(), stopped.state_dict())
    for frames in (1, 4):
        found = stopped.distances(rows, moments, frames=frames)
        assert torch.equal(found, straight.distances(rows, moments, frames=frames))


def test_a_state_is_a_copy() -> None:
    rows, moments = video(20, 7)
    bank = RegionBank(64)
    bank.add(rows, moments)
    state = bank.state_dict()
    kept = through_a_file(state)
    loaded = RegionBank(64)
    loaded.load_state_dict(state)
    bank.add(rows + 1, moments + 20)
    loaded.add(rows + 2, moments + 20)
    assert same(state, kept)


def test_an_empty_bank_is_saved_and_loaded() -> None:
    bank, loaded = RegionBank(16), RegionBank(16)
    loaded.load_state_dict(through_a_file(bank.state_dict()))
    loaded.add(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert loaded.distances(torch.ones(1, 3), torch.tensor([0])).tolist() == [pytest.approx(3**0.5)]


def test_a_state_of_other_settings_is_refused_by_name() -> None:
    bank = RegionBank(32, id_window=3)
    bank.add(*video(6, 5))
    before = bank.state_dict()
    for other, message in (
        (RegionBank(16, id_window=3), "capacity was 16, is 32"),
        (RegionBank(32), "id_window was 0, is 3"),
    ):
        other.add(*video(6, 5))
        with pytest.raises(StateMismatchError, match=message):
            bank.load_state_dict(other.state_dict())
    with pytest.raises(StateMismatchError, match="expects what RegionBank"):
        bank.load_state_dict({})
    assert same(bank.state_dict(), before)


def test_a_bank_fed_in_inference_mode_learns_on_outside() -> None:
    rows, moments = video(40, 7)
    plain, mixed = RegionBank(32), RegionBank(32)
    for at in range(0, 280, 7):
        part = slice(at, at + 7)
        plain.add(rows[part], moments[part])
        with torch.inference_mode(at % 2 == 0):
            fed = rows[part].clone()
            if len(mixed):
                mixed.distances(fed, moments[part])
            mixed.add(fed, moments[part])
    assert same(plain.state_dict(), mixed.state_dict())


def test_a_bank_that_holds_a_set_copies_nothing_and_is_exact() -> None:
    rows, moments = video(40, 7)
    bank = RegionBank.holding(rows, moments, id_window=2)
    assert bank.rows.data_ptr() == rows.data_ptr()
    assert len(bank) == 280
    close(
        bank.distances(rows, moments, frames=3),
        by_hand(rows, moments, rows, moments, frames=3, window=2),
    )
    kept = rows.clone()
    bank.add(rows + 1, moments + 50)
    assert torch.equal(rows, kept)


def test_rows_are_kept_where_the_density_is_low_and_where_many_are_alike() -> None:
    # Two clouds, one of them seen a hundred times as often; a rare row costs no common one its place.
    generator = generator_of(0)
    often = torch.randn(4000, 8, generator=generator)
    rarely = 20 + torch.randn(40, 8, generator=generator)
    rows = torch.cat([often, rarely])[torch.randperm(4040, generator=generator)]
    bank = RegionBank(256)
    bank.add(rows, torch.arange(len(rows)))
    share = float((bank.rows.mean(dim=1) > 10).double().mean())
    # As many as their count says would be 1 %, and as many as of the others 50 %.
    assert 0.04 < share < 0.16


def test_repr_says_how_full_it_is() -> None:
    bank = RegionBank(16)
    bank.add(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert repr(bank) == "RegionBank(16, held=2)"


def told(moments: list[int], window: int = 0) -> Ledger:
    ledger = Ledger(window)
    ledger.append(np.array(moments))
    return ledger


def test_a_ledger_without_near_rows_says_so_and_goes_on_when_told() -> None:
    ledger = told(list(range(6)))
    assert ledger.lonely().tolist() == list(range(6))
    assert not ledger.merge(4)
    everyone = np.arange(6)
    ledger.tell_near(everyone[1:2], np.array([[1.0, np.inf]]), np.array([[2, 0]]))
    assert ledger.lonely().tolist() == [0, 2, 3, 4, 5]
    assert not ledger.merge(4)
    assert ledger.there().tolist() == [0, 1, 3, 4, 5]
    assert ledger.lonely().tolist() == [0, 1, 2, 3, 4, 5]
    ledger.tell_near(np.array([5]), np.array([[2.0, 3.0]]), np.array([[2, 0]]))
    # Row 2 is gone, so the nearest of row 5 is row 0.
    assert ledger.merge(4)
    assert ledger.there().tolist() == [0, 1, 3, 4]
    holes, movers = ledger.close_gaps()
    assert (holes.tolist(), movers.tolist()) == ([2], [4])
    assert ledger.moment[:4].tolist() == [0, 1, 4, 3]
    assert ledger.regions[:4].tolist() == [2, 2, 1, 1]
    assert ledger.radius == 3.0


def test_a_near_row_that_moves_is_followed() -> None:
    ledger = told(list(range(5)))
    ledger.tell_near(np.array([0]), np.array([[1.0]]), np.array([[1]]))
    ledger.tell_near(np.array([3]), np.array([[5.0]]), np.array([[4]]))
    assert ledger.merge(4)
    ledger.close_gaps()  # Row 4 moves to place 1, which was that of a row now gone.
    assert ledger.merge(3)
    assert ledger.there().tolist() == [0, 2, 3]
    assert ledger.moment[:4].tolist()[3] == 3
    assert ledger.regions[[0, 2, 3]].tolist() == [2, 1, 2]


def test_a_place_that_is_given_to_another_row_is_not_mistaken_for_the_first() -> None:
    ledger = told(list(range(4)))
    ledger.tell_near(np.array([0]), np.array([[1.0]]), np.array([[3]]))
    ledger.tell_near(np.array([1]), np.array([[2.0]]), np.array([[3]]))
    assert ledger.merge(3)
    ledger.close_gaps()
    ledger.append(np.array([9]))  # Where row 3 was.
    assert 1 in ledger.lonely()


def test_only_so_many_near_rows_are_kept_and_the_nearest_of_them() -> None:
    ledger = told(list(range(NEAREST + 4)))
    others = np.arange(1, NEAREST + 4)[None, ::-1]
    ledger.tell_near(np.array([0]), others.astype(np.float64), others)
    for left in range(NEAREST + 3, 3, -1):
        assert ledger.merge(left)
    assert not ledger.merge(3)
    assert ledger.there().tolist() == [0, *range(NEAREST + 1, NEAREST + 4)]


def test_rows_that_stand_for_more_count_as_farther_apart() -> None:
    ledger = told(list(range(4)))
    ledger.regions[:4] = [8, 8, 1, 8]
    ledger.tell_near(np.array([0]), np.array([[1.0]]), np.array([[1]]))
    ledger.tell_near(np.array([2]), np.array([[1.4]]), np.array([[3]]))
    assert ledger.merge(3)
    assert ledger.there().tolist() == [0, 1, 3]
    ledger = told(list(range(4)))
    ledger.regions[:4] = [8, 8, 1, 8]
    ledger.tell_near(np.array([0]), np.array([[1.0]]), np.array([[1]]))
    ledger.tell_near(np.array([2]), np.array([[1.42]]), np.array([[3]]))
    assert ledger.merge(3)
    assert ledger.there().tolist() == [0, 2, 3]


def asked(ledger: Ledger, distances: list[float], moment: int) -> tuple[float, bool]:
    """What is reached from so far away from the rows that are there, and whether it is sure."""
    places = ledger.there()[: len(distances)]
    values, is_sure = ledger.reached(
        np.array([distances]), places[None], np.array([moment]), frames=1
    )
    return float(values[0]), bool(is_sure[0])


def test_what_a_row_took_in_goes_with_it_into_another() -> None:
    ledger = told([0, 20, 0])
    ledger.regions[2] = 5
    ledger.tell_near(np.array([1]), np.array([[1.0]]), np.array([[0]]))
    ledger.tell_near(np.array([0]), np.array([[3.0]]), np.array([[2]]))
    assert ledger.merge(1)
    assert ledger.there().tolist() == [2]
    ledger.close_gaps()
    assert asked(ledger, [0.5], 0) == (0.5 + 3.0 + 1.0, True)
    assert asked(ledger, [0.5], 20) == (0.5, True)
    assert ledger.reach[0] == 4.0


def test_of_what_a_row_took_in_the_closest_of_another_moment_counts() -> None:
    # Of a window of 10, a region at 15 is another moment for one at 0, and none for one at 10.
    ledger = told([0, 15, 50, 100], window=10)
    ledger.regions[0] = 5
    for row, distance in ((1, 1.0), (2, 2.0), (3, 9.0)):
        ledger.tell_near(np.array([row]), np.array([[distance]]), np.array([[0]]))
    assert ledger.merge(1)
    ledger.close_gaps()
    assert asked(ledger, [0.0], 0) == (1.0, True)
    assert asked(ledger, [0.0], 10) == (2.0, True)
    assert asked(ledger, [0.0], -10) == (1.0, True)


def test_a_distance_by_way_of_ones_own_row_is_sure_only_if_no_row_beyond_is_nearer() -> None:
    ledger = told([0, 20, 0, 0, 20])
    ledger.tell_near(np.array([1]), np.array([[50.0]]), np.array([[0]]))
    assert ledger.merge(4)
    ledger.close_gaps()
    rows, distances = np.array([[0, 2]]), np.array([[0.0, 1.0]])
    values, is_sure = ledger.reached(distances, rows, np.array([0]), frames=1)
    assert (float(values[0]), bool(is_sure[0])) == (50.0, False)
    distances[:, 1] = 50.0
    assert bool(ledger.reached(distances, rows, np.array([0]), frames=1)[1][0])


@pytest.fixture
def on_gpu() -> Callable[[Tensor], Tensor]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return lambda tensor: tensor.cuda()


@pytest.mark.gpu
def test_a_bank_on_the_gpu_says_what_one_on_the_cpu_says(
    on_gpu: Callable[[Tensor], Tensor],
) -> None:
    rows, moments = video(80, 30, dim=32, noise=1.0)
    here, there = RegionBank(512, id_window=2), RegionBank(512, id_window=2)
    for part in torch.split(torch.arange(len(rows)), 30):
        here.add(rows[part], moments[part])
        there.add(on_gpu(rows[part]), on_gpu(moments[part]))
    assert there.rows.device.type == "cuda"
    assert torch.equal(there.rows.cpu(), here.rows)
    assert torch.equal(there.counts, here.counts)
    for frames in (1, 3):
        found = there.distances(on_gpu(rows), moments, frames=frames)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), here.distances(rows, moments, frames=frames))


@pytest.mark.gpu
def test_a_bank_loaded_on_the_cpu_moves_to_the_gpu_once(
    on_gpu: Callable[[Tensor], Tensor],
) -> None:
    rows, moments = video(40, 30, dim=32, noise=1.0)
    bank = RegionBank(512)
    bank.add(rows, moments)
    loaded = RegionBank(512)
    loaded.load_state_dict(through_a_file(bank.state_dict()))
    with torch.inference_mode():
        found = loaded.distances(on_gpu(rows), moments)
    held = loaded.rows.data_ptr()
    torch.testing.assert_close(found.cpu(), bank.distances(rows, moments))
    loaded.add(on_gpu(rows[:30]) + 1, moments[:30] + 50)
    assert loaded.rows.data_ptr() == held
