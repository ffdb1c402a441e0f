"""How often, how soon, how long and how near: what the buffer's limits promise, draw by draw.

A loop that draws some batches ahead, and sometimes begins anew, stands for a loader.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from feedback import Flags, Rows
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix import (
    FIFO,
    BufferEntries,
    ClusterBalanced,
    Policy,
    RareMemoryBuffer,
    RarestK,
    Reservoir,
    SamplesPerInsert,
    TwoTier,
)
from raremix.errors import OptionError


def rare(count: int) -> Flags:
    return Flags(torch.ones(count), torch.ones(count, dtype=torch.bool))


def offer(buffer: RareMemoryBuffer, keys: list[int], features: Any = None) -> int:
    return buffer.add(keys, rare(len(keys)), features=features)


@dataclass(frozen=True)
class Delivered:
    number: int
    keys: list[int]
    entries: list[int]
    ages: list[int]


@dataclass
class Loop:
    """Trains on batches that a loader drew ``ahead``; each brings fresh rare samples."""

    buffer: RareMemoryBuffer
    lag: int
    ahead: int
    replays: int
    seed: int = 0
    delivered: list[Delivered] = field(default_factory=list)
    issued: deque[Delivered] = field(default_factory=deque)
    next_key: int = 0

    def __post_init__(self) -> None:
        self.buffer.attach(self.lag)

    def step(self, fresh: int) -> None:
        """Deliver a batch and give its feedback: its replays, and ``fresh`` rare samples."""
        number = len(self.delivered)
        while len(self.issued) <= self.ahead:
            self._draw(number + len(self.issued))
        batch = self.issued.popleft()
        self.delivered.append(batch)
        self.buffer.advance(number)
        keys = list(range(self.next_key, self.next_key + fresh))
        self.next_key += fresh
        self.buffer.add(
            Rows(
                number,
                torch.tensor([*batch.keys, *keys], dtype=torch.int64),
                torch.arange(len(batch.keys) + fresh) < len(batch.keys),
                torch.tensor([*batch.entries, *[-1] * fresh], dtype=torch.int64),
            ),
            rare(len(batch.keys) + fresh),
        )

    def _draw(self, number: int) -> None:
        drawn = self.buffer.draw_ahead(
            number, self.replays, taken=(), below=None, seed=1000 * self.seed + number
        )
        assert len(set(drawn.entries)) == len(drawn.entries)
        self.issued.append(Delivered(number, drawn.keys, drawn.entries, drawn.ages))

    def begin_anew(self) -> None:
        """Leave the loop early: what is on its way is never delivered."""
        self.issued.clear()
        self.buffer.rewind(len(self.delivered))

    def batches_by_entry(self) -> dict[int, list[int]]:
        """For which batches each entry was drawn, of those that were or will be delivered."""
        found: dict[int, list[int]] = {}
        for batch in [*self.delivered, *self.issued]:
            for entry in batch.entries:
                found.setdefault(entry, []).append(batch.number)
        return found


plans = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5).map(lambda n: n == 0)), min_size=5, max_size=30
)


# ---------------------------------------------------------------------- single entries


@settings(max_examples=50, deadline=None)
@given(
    plan=plans,
    ahead=st.integers(0, 4),
    slack=st.integers(1, 3),
    most=st.integers(1, 3),
    cooldown=st.integers(0, 4),
    oldest=st.sampled_from([None, 2, 6]),
    capacity=st.integers(1, 8),
    policy=st.sampled_from([FIFO(), Reservoir(), RarestK(), TwoTier()]),
)
def test_limits_hold_for_draws_ahead_and_after_beginning_anew(
    plan: list[tuple[int, bool]],
    ahead: int,
    slack: int,
    most: int,
    cooldown: int,
    oldest: int | None,
    capacity: int,
    policy: Policy,
) -> None:
    buffer = RareMemoryBuffer(
        capacity, policy=policy, max_uses=most, cooldown_steps=cooldown, max_age_steps=oldest
    )
    loop = Loop(buffer, ahead + slack, ahead, replays=3)
    for fresh, begins_anew in plan:
        if begins_anew:
            loop.begin_anew()
        loop.step(fresh)
        drawn = loop.batches_by_entry()
        assert max(map(len, drawn.values()), default=0) <= most
        gaps = [b - a for batches in drawn.values() for a, b in pairwise(batches)]
        assert min(gaps, default=cooldown + 1) > cooldown
        returned = Counter(entry for batch in loop.delivered for entry in batch.entries)
        entries = buffer.entries
        assert entries.entry is not None
        assert entries.uses is not None
        assert entries.age is not None
        held = entries.entry.tolist()
        assert [returned[entry] for entry in held] == entries.uses.tolist()
        assert max(entries.uses.tolist(), default=0) < most  # who is used up has left
        if oldest is not None:
            assert max(entries.age.tolist(), default=0) <= oldest
            ages = [age for batch in loop.delivered for age in batch.ages]
            assert max(ages, default=0) <= oldest
    metrics = buffer.metrics()
    assert metrics["used_up"] + metrics["expired"] <= metrics["evictions"]


def test_an_entry_is_drawn_as_often_as_it_may_be_and_then_leaves() -> None:
    buffer = RareMemoryBuffer(4, max_uses=3)
    loop = Loop(buffer, lag=4, ahead=3, replays=2)
    loop.step(2)
    for _ in range(20):
        loop.step(0)
    assert {entry: len(batches) for entry, batches in loop.batches_by_entry().items()} == {
        0: 3,
        1: 3,
    }
    assert len(buffer) == 0
    assert buffer.metrics()["used_up"] == 2


def test_draws_that_were_never_delivered_are_no_uses() -> None:
    buffer = RareMemoryBuffer(4, max_uses=1)
    loop = Loop(buffer, lag=3, ahead=2, replays=1)
    loop.step(1)
    loop.step(0)
    for _ in range(3):
        loop.begin_anew()
        assert buffer.draw_ahead(2, 1, taken=(), below=None, seed=0).entries == []
        assert buffer.draw_ahead(3, 1, taken=(), below=None, seed=0).entries == [0]
        assert buffer.draw_ahead(4, 1, taken=(), below=None, seed=0).entries == []
    loop.begin_anew()
    for _ in range(6):
        loop.step(0)
    assert loop.batches_by_entry() == {0: [3]}


def test_limits_hold_where_thousands_of_entries_come_and_go_within_the_lag() -> None:
    # More draws than the count keeps of entries that are gone: it has to forget the right ones.
    buffer = RareMemoryBuffer(8, max_uses=1)
    loop = Loop(buffer, lag=8, ahead=3, replays=3)
    for _ in range(800):
        loop.step(3)
    drawn = loop.batches_by_entry()
    assert len(drawn) > 2000
    assert max(map(len, drawn.values())) == 1


def test_what_was_counted_of_entries_long_gone_is_forgotten() -> None:
    buffer = RareMemoryBuffer(8, max_uses=2, cooldown_steps=3)
    loop = Loop(buffer, lag=4, ahead=2, replays=4)
    for _ in range(1500):
        loop.step(4)
    assert len(buffer.state_dict()["ledger"]["rows"]) < 1100


@pytest.mark.parametrize("cooldown", [1, 3])
def test_cooldown_and_uses_hold_for_draws_at_once(cooldown: int) -> None:
    buffer = RareMemoryBuffer(6, max_uses=2, cooldown_steps=cooldown)
    offer(buffer, list(range(6)))
    generator = torch.Generator().manual_seed(0)
    seen: dict[int, list[int]] = {}
    for step in range(12):
        for _ in range(2):
            for key in buffer.draw(2, generator=generator).keys.tolist():
                seen.setdefault(key, []).append(step)
        offer(buffer, [])
    assert {len(steps) for steps in seen.values()} == {2}
    assert all(two - one > cooldown for one, two in seen.values())


def test_draws_at_once_count_beside_draws_ahead_also_after_beginning_anew() -> None:
    buffer = RareMemoryBuffer(6, max_uses=1)
    offer(buffer, list(range(6)))
    buffer.attach(4)
    ahead = [buffer.draw_ahead(n, 1, taken=(), below=None, seed=n).keys[0] for n in range(3)]
    at_once = buffer.draw(2).keys.tolist()
    assert len({*ahead, *at_once}) == 5
    buffer.rewind(0)
    again = buffer.draw_ahead(0, 6, taken=(), below=None, seed=0).keys
    assert sorted(again + at_once) == list(range(6))


def test_uses_and_cooldown_survive_saving() -> None:
    def build() -> RareMemoryBuffer:
        return RareMemoryBuffer(4, max_uses=2, cooldown_steps=2)

    straight = Loop(build(), lag=3, ahead=2, replays=1)
    resumed = Loop(build(), lag=3, ahead=2, replays=1)
    for number in range(30):
        straight.step(number % 2)
        resumed.step(number % 2)
        if number % 3 == 1:
            twin = build()
            twin.attach(3)
            twin.load_state_dict(resumed.buffer.state_dict())
            resumed.buffer = twin
            resumed.issued.clear()  # they are drawn again
    assert straight.delivered == resumed.delivered
    assert sum(len(batch.keys) for batch in straight.delivered) > 10


def test_entries_leave_when_they_are_too_old() -> None:
    buffer = RareMemoryBuffer(100, max_age_steps=3)
    for step in range(10):
        offer(buffer, [step])
    assert buffer.keys.tolist() == [6, 7, 8, 9]
    assert buffer.metrics()["expired"] == 6
    assert buffer.metrics()["age_p95"] <= 3


def test_nobody_too_old_is_drawn_while_no_feedback_comes() -> None:
    buffer = RareMemoryBuffer(8, max_age_steps=2)
    buffer.attach(1)
    buffer.advance(0)
    buffer.add(Rows(0, torch.tensor([5]), torch.tensor([False]), torch.tensor([-1])), rare(1))
    ages = []
    for number in range(1, 6):
        ages.append(buffer.draw_ahead(number, 1, taken=(), below=None, seed=0).ages)
        buffer.advance(number)
    assert ages == [[0], [1], [2], [], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_uses": 0}, "max_uses as a whole number of at least 1, got 0"),
        ({"cooldown_steps": -1}, "cooldown_steps as a whole number of at least 0, got -1"),
        ({"max_age_steps": 0}, "max_age_steps as a whole number of at least 1, got 0"),
        ({"min_distance": 2.5}, r"min_distance.*got 2\.5"),
        ({"samples_per_insert": 8}, r"SamplesPerInsert\(ratio, error\), got 8"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RareMemoryBuffer(4, **options)


# ---------------------------------------------------------------------- samples per insert


@pytest.mark.parametrize("flags_per_step", [0.02, 0.1, 0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize(("ahead", "lag"), [(0, 1), (4, 5), (4, 16)])
@pytest.mark.parametrize(("ratio", "error"), [(4.0, 4.0), (8.0, 256.0), (0.5, 3.0)])
def test_replays_per_admission_stay_in_the_band(
    flags_per_step: float, ahead: int, lag: int, ratio: float, error: float
) -> None:
    buffer = RareMemoryBuffer(32, samples_per_insert=SamplesPerInsert(ratio, error))
    loop = Loop(buffer, lag, ahead, replays=4)
    rng = np.random.default_rng(0)
    issued = paused = 0
    for number in range(400):
        if number % 97 == 96:
            loop.begin_anew()
        loop.step(int(rng.poisson(flags_per_step)))
        metrics = buffer.metrics()
        returned = sum(len(batch.keys) for batch in loop.delivered)
        before, issued = issued, returned + sum(len(batch.keys) for batch in loop.issued)
        assert metrics["replays"] == returned
        for replays in (returned, issued):
            assert abs(ratio * metrics["admissions"] - replays) <= error
        paused = paused + 1 if issued == before else 0
    metrics = buffer.metrics()
    assert metrics["admissions"] + metrics["refused_rate"] == loop.next_key
    if flags_per_step >= 0.5:
        assert paused <= lag + 10 / flags_per_step  # the band is no standstill


def test_a_band_that_one_admission_would_leave_is_refused() -> None:
    with pytest.raises(OptionError, match=r"error of at least 8.*got 4"):
        SamplesPerInsert(8, error=4)
    with pytest.raises(OptionError, match="ratio"):
        SamplesPerInsert(0, error=4)


# ---------------------------------------------------------------------- near-duplicates


@settings(max_examples=50, deadline=None)
@given(
    angles=st.lists(st.integers(0, 359), min_size=1, max_size=30),
    distance=st.sampled_from([0.0, 0.01, 0.1, 0.6, 1.5]),
    width=st.integers(1, 4),
)
def test_a_sample_nearer_than_the_least_distance_is_refused_and_counted(
    angles: list[int], distance: float, width: int
) -> None:
    buffer = RareMemoryBuffer(12, min_distance=distance)
    turned = np.radians(np.array(angles) + 0.37 * np.arange(len(angles)))
    table = np.stack([np.cos(turned), np.sin(turned)], axis=1) * 3.0
    held: list[int] = []
    refused = 0
    for first in range(0, len(angles), width):
        keys = list(range(first, min(first + width, len(angles))))
        offer(buffer, keys, torch.from_numpy(table[keys]))
        for key in keys:
            near = [1 - np.cos(turned[key] - turned[other]) for other in held]
            # Ties to rounding are left to the buffer.
            if any(abs(d - distance) < 1e-6 for d in near) and distance:
                near = [0.0 if key not in buffer else 2.0]
            if min(near, default=2.0) < distance:
                refused += 1
            else:
                held = [*held, key][-12:]
    assert buffer.keys.tolist() == held
    assert buffer.metrics()["refused_duplicate"] == refused


def test_a_duplicate_is_no_offer_and_a_known_sample_is_no_duplicate_of_itself() -> None:
    buffer = RareMemoryBuffer(4, min_distance=0.1, policy=Reservoir())
    one = torch.tensor([[1.0, 0.0]])
    assert offer(buffer, [1], one) == 1
    assert offer(buffer, [2], one * 7) == 0
    assert offer(buffer, [1], torch.tensor([[0.0, 1.0]])) == 0  # moved meanwhile
    assert offer(buffer, [2], one * 7) == 1
    assert buffer.metrics()["refused_duplicate"] == 1
    assert buffer.state_dict()["offers"] == 2


# ---------------------------------------------------------------------- chances


def probabilities(
    draw: Callable[[int], tuple[list[int], list[float]]], runs: int
) -> tuple[dict[int, float], dict[int, float]]:
    """How often each key came, and the chance that was told of it."""
    came: Counter[int] = Counter()
    told: dict[int, float] = {}
    for seed in range(runs):
        keys, chances = draw(seed)
        assert len(set(keys)) == len(keys)
        came.update(keys)
        for key, chance in zip(keys, chances, strict=True):
            assert told.setdefault(key, chance) == pytest.approx(chance)
    return {key: number / runs for key, number in came.items()}, told


def clustered(policy: Policy, capacity: int = 40) -> RareMemoryBuffer:
    rng = np.random.default_rng(1)
    kinds = np.repeat(np.arange(3), [24, 11, 5])
    features = np.eye(3)[kinds] + 0.1 * rng.normal(size=(40, 3))
    buffer = RareMemoryBuffer(capacity, policy=policy)
    buffer.attach(1)
    offer(buffer, list(range(40)), torch.from_numpy(features))
    return buffer


@pytest.mark.parametrize("count", [1, 3, 12, 30, 60])
@pytest.mark.parametrize("taken", [set(), {0, 1, 2, 24, 25, 36, 39}])
@pytest.mark.parametrize(
    "policy", [FIFO(), ClusterBalanced(clusters=3), TwoTier(recent=0.2, recent_draws=0.6)], ids=repr
)
def test_the_probability_told_is_how_often_an_entry_is_drawn(
    policy: Policy, count: int, taken: set[int]
) -> None:
    buffer = clustered(policy)

    def draw(seed: int) -> tuple[list[int], list[float]]:
        drawn = buffer.draw_ahead(0, count, taken=taken, below=38, seed=seed)
        return drawn.keys, drawn.probabilities

    runs = 1500
    came, told = probabilities(draw, runs)
    free = set(range(38)) - taken
    assert set(came) <= free
    assert sum(came.values()) == pytest.approx(min(count, len(free)))
    assert set(came) == free
    for key, chance in told.items():
        assert 0 < chance <= 1
        assert abs(came[key] - chance) <= 4.5 * (chance * (1 - chance) / runs) ** 0.5 + 1e-9
    assert sum(told.values()) == pytest.approx(min(count, len(free)))


def test_the_probability_takes_limits_into_account() -> None:
    def draw(seed: int) -> tuple[list[int], list[float]]:
        buffer = RareMemoryBuffer(10, max_uses=1, seed=seed)
        offer(buffer, list(range(10)))
        first = buffer.draw(4, generator=torch.Generator().manual_seed(0))
        drawn = buffer.draw(3, generator=torch.Generator().manual_seed(seed + 1))
        assert drawn.probability is not None
        assert not set(first.keys.tolist()) & set(drawn.keys.tolist())
        return drawn.keys.tolist(), drawn.probability.tolist()

    came, told = probabilities(draw, 1000)
    assert len(came) == 6
    assert set(np.round(list(told.values()), 6)) == {0.5}
    assert all(abs(often - 0.5) < 0.07 for often in came.values())


@pytest.mark.parametrize(("held", "count"), [(30, 1), (30, 8), (30, 20), (200, 16)])
@pytest.mark.parametrize("at_once", [True, False])
def test_everybody_is_drawn_alike(held: int, count: int, at_once: bool) -> None:
    buffer = RareMemoryBuffer(held)
    buffer.attach(1)
    offer(buffer, list(range(held)))
    counts = np.zeros(held)
    runs = 40 * held
    generator = torch.Generator().manual_seed(0)
    for seed in range(runs):
        if at_once:
            keys = buffer.draw(count, generator=generator).keys.tolist()
        else:
            keys = buffer.draw_ahead(0, count, taken=(), below=None, seed=seed).keys
        counts[keys] += 1
    expected, share = counts.mean(), count / held
    chi = ((counts - expected) ** 2).sum() / expected / (1 - share) * (held - 1) / held
    freedom = held - 1
    assert chi < freedom + 4.5 * (2 * freedom) ** 0.5
    assert chi > freedom - 4.5 * (2 * freedom) ** 0.5


def test_admitted_by_hand_is_within_the_limits_too() -> None:
    buffer = RareMemoryBuffer(
        8, min_distance=0.5, samples_per_insert=SamplesPerInsert(2.0, error=4.0)
    )
    known = BufferEntries(
        torch.arange(4), torch.ones(4), features=torch.eye(4)[torch.tensor([0, 0, 1, 2])]
    )
    assert buffer.admit(known) == 2
    metrics = buffer.metrics()
    assert (metrics["refused_duplicate"], metrics["refused_rate"]) == (1, 1)


# ---------------------------------------------------------------------- never stuck


class Deaf(Loop):
    """Every fourth batch gets no feedback."""

    def step(self, fresh: int) -> None:
        if len(self.delivered) % 4 != 3:
            super().step(fresh)
            return
        number = len(self.delivered)
        while len(self.issued) <= self.ahead:
            self._draw(number + len(self.issued))
        self.delivered.append(self.issued.popleft())
        self.buffer.advance(number)


def test_missing_feedback_does_not_stop_replays_for_ever() -> None:
    rate = SamplesPerInsert(4.0, error=32)
    loop = Deaf(RareMemoryBuffer(32, samples_per_insert=rate), lag=3, ahead=2, replays=4)
    for _ in range(600):
        loop.step(1)
    assert all(len(batch.keys) == 4 for batch in loop.delivered[-50:])
    metrics = loop.buffer.metrics()
    off = rate.ratio * metrics["admissions"] - metrics["replays"]
    assert abs(off) <= rate.error


def test_a_buffer_emptied_by_age_admits_again_whatever_was_replayed() -> None:
    buffer = RareMemoryBuffer(
        32, samples_per_insert=SamplesPerInsert(8.0, error=32), max_age_steps=5
    )
    loop = Loop(buffer, lag=3, ahead=2, replays=1)
    for _ in range(300):
        loop.step(1)
    assert any(batch.keys for batch in loop.delivered[-20:])


def test_fewer_uses_than_the_ratio_asks_for_are_refused() -> None:
    with pytest.raises(OptionError, match="max_uses=1, which can never bring 8 replays"):
        RareMemoryBuffer(4, max_uses=1, samples_per_insert=SamplesPerInsert(8.0, error=32))
