"""Draws ahead against a model that keeps a whole buffer for every step and draws from the old one."""

import copy
import threading
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from feedback import Flags, Rows, through_a_file
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from raremix import (
    FIFO,
    BufferEntries,
    ClusterBalanced,
    LeastRedundant,
    Policy,
    RareMemoryBuffer,
    RarestK,
    Reservoir,
    TwoTier,
)
from raremix.errors import LagError, RaremixWarning

DIM = 4
POLICIES: list[Policy] = [
    *(FIFO(), Reservoir(), RarestK(), LeastRedundant()),
    *(ClusterBalanced(clusters=2), TwoTier(recent=0.4)),
]


@dataclass(frozen=True)
class Drawn:
    """A draw, and what was asked for."""

    count: int
    taken: frozenset[int]
    below: int | None
    keys: list[int]
    entries: list[int]
    probabilities: list[float]
    ages: list[int]


def rare(count: int) -> Flags:
    return Flags(torch.ones(count), torch.ones(count, dtype=torch.bool))


def fresh(step: int, keys: list[int]) -> Rows:
    return Rows(
        step,
        torch.tensor(keys, dtype=torch.int64),
        torch.zeros(len(keys), dtype=torch.bool),
        torch.full((len(keys),), -1),
    )


samples = st.lists(
    st.tuples(
        st.integers(0, 14),  # id
        st.sampled_from([0.5, 1.0, 2.0, 3.0, float("nan")]),  # score
        st.booleans(),  # is_rare
    ),
    max_size=5,
    unique_by=lambda row: row[0],
)


class DrawsAgainstModel(RuleBasedStateMachine):
    """``buffer`` draws ahead. ``plain`` gets the same feedback, is copied after every step, and the
    copy of the step that a draw looks back to says what the draw has to give.
    """

    @initialize(capacity=st.integers(1, 6), lag=st.integers(1, 6), policy=st.sampled_from(POLICIES))
    def build(self, capacity: int, lag: int, policy: Policy) -> None:
        self.capacity, self.lag, self.policy = capacity, lag, policy
        self.buffer, self.plain = self.new(), self.new()
        self.buffer.attach(lag)
        self.step = self.heard = -1
        self.after = {-1: copy.deepcopy(self.plain)}  # a copy of ``plain`` after each step
        self.born: dict[int, int] = {}  # step of each entry
        self.changed = -1  # the last step in which anything that draws see has changed
        self.next_draw = 0
        self.viewed = -2
        self.issued: dict[int, Drawn] = {}
        self.features = 0

    def new(self) -> RareMemoryBuffer:
        return RareMemoryBuffer(self.capacity, policy=self.policy, seed=3)

    def some_features(self, count: int) -> Tensor:
        self.features += 1
        rng = np.random.default_rng(self.features)
        return torch.from_numpy(rng.normal(size=(count, DIM)).astype(np.float32))

    def looks(self) -> Any:
        rows = self.plain.state_dict()["rows"]
        seen = ("entry", *self.policy.drawn_by)
        return [rows[name].tolist() for name in seen], self.plain.metrics()["admissions"]

    def note(self, step: int, before: Any) -> None:
        """What happened belongs to ``step``, or to a later one in which something had changed, or
        to the first that a draw may still ask for.
        """
        step = max(step, self.changed, self.step + 1 - self.lag)
        if self.looks() != before:
            self.changed = step
        entries = self.plain.entries.entry
        assert entries is not None
        for entry in entries.tolist():
            self.born.setdefault(entry, step)
        for number in [
            n for n in self.issued if n >= self.next_draw and max(n - self.lag, -1) >= step
        ]:
            del self.issued[number]  # rolled back, and not relied on by anything
        for later in range(step, self.step + 1):
            self.after[later] = copy.deepcopy(self.plain)

    @rule(rows=samples, with_feedback=st.booleans(), feedback_on_replays=st.booleans())
    def deliver(
        self, rows: list[tuple[int, float, bool]], with_feedback: bool, feedback_on_replays: bool
    ) -> None:
        self.step += 1
        self.next_draw = max(self.next_draw, self.step + 1)
        batch = self.issued.get(self.step)
        self.buffer.advance(self.step)
        self.after[self.step] = copy.deepcopy(self.plain)
        if with_feedback:
            self.feed(self.step, rows, batch if feedback_on_replays else None)
        else:
            self.plain.advance(self.step)

    @precondition(lambda self: self.step > max(self.heard, self.viewed))
    @rule(rows=samples, back=st.integers(0, 5))
    def feedback_that_comes_late_but_in_time(
        self, rows: list[tuple[int, float, bool]], back: int
    ) -> None:
        step = max(self.step - back, self.heard + 1, self.viewed + 1)
        self.feed(step, rows, self.issued.get(step))

    def feed(self, step: int, rows: list[tuple[int, float, bool]], replays: Drawn | None) -> None:
        keys = [row[0] for row in rows]
        replayed, entries = (replays.keys, replays.entries) if replays else ([], [])
        batch = Rows(
            step,
            torch.tensor([*replayed, *keys], dtype=torch.int64),
            torch.arange(len(replayed) + len(keys)) < len(replayed),
            torch.tensor([*entries, *[-1] * len(keys)], dtype=torch.int64),
        )
        flags = Flags(
            torch.tensor([*[1.5] * len(replayed), *(row[1] for row in rows)]),
            torch.tensor([*[True] * len(replayed), *(row[2] for row in rows)], dtype=torch.bool),
        )
        features = self.some_features(len(batch.ids))
        before = self.looks()
        admitted = self.plain.add(batch, flags, features=features)
        assert self.buffer.add(batch, flags, features=features) == admitted
        self.heard = step
        self.note(step, before)

    @precondition(lambda self: self.step > 0)
    @rule(rows=samples, back=st.integers(0, 3))
    def feedback_that_comes_too_late_changes_nothing(
        self, rows: list[tuple[int, float, bool]], back: int
    ) -> None:
        step = min(max(self.heard, self.viewed), self.step) - back
        if step >= 0:
            late = self.buffer.metrics()["late"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RaremixWarning)
                keys = [row[0] for row in rows]
                features = self.some_features(len(keys))
                assert self.buffer.add(fresh(step, keys), rare(len(keys)), features=features) == 0
            assert self.buffer.metrics()["late"] == late + 1

    @rule(keys=st.lists(st.integers(0, 14), max_size=3, unique=True))
    def admit(self, keys: list[int]) -> None:
        before = self.looks()
        entries = BufferEntries(
            torch.tensor(keys, dtype=torch.int64),
            torch.full((len(keys),), 2.5),
            features=self.some_features(len(keys)),
        )
        admitted = self.plain.admit(entries)
        assert self.buffer.admit(entries) == admitted
        # It counts from the first step that no draw has relied on.
        self.note(max(self.step, self.viewed + 1), before)

    @precondition(lambda self: self.next_draw - self.lag <= self.step)
    @rule(
        count=st.integers(0, 4),
        taken=st.frozensets(st.integers(0, 14), max_size=4),
        below=st.sampled_from([None, 9, 15]),
    )
    def draw_the_next_batch(self, count: int, taken: frozenset[int], below: int | None) -> None:
        number = self.next_draw
        if number in self.issued:  # drawn before, and rolled back: it is asked for likewise
            asked = self.issued[number]
            count, taken, below = asked.count, asked.taken, asked.below
        step = max(number - self.lag, -1)
        drawn = self.buffer.draw_ahead(number, count, taken=taken, below=below, seed=number + 17)
        answer = Drawn(count, taken, below, *drawn)
        old = copy.deepcopy(self.after[step])
        old.attach(1)  # to a loader of its own, that has yet to begin
        want = old.draw_ahead(0, count, taken=taken, below=below, seed=number + 17)
        assert answer.keys == want.keys
        assert answer.entries == want.entries
        assert answer.probabilities == want.probabilities
        assert answer.ages == [step - self.born[entry] for entry in answer.entries]
        assert self.issued.setdefault(number, answer) == answer
        self.next_draw += 1
        self.viewed = max(self.viewed, step)

    @precondition(lambda self: self.next_draw - self.lag > self.step)
    @rule()
    def draw_further_than_the_lag(self) -> None:
        with pytest.raises(LagError, match="further ahead than a lag of"):
            self.buffer.draw_ahead(self.next_draw, 1, taken=(), below=None, seed=0)

    @rule()
    def begin_anew(self) -> None:
        self.buffer.rewind(self.step + 1)
        self.next_draw = self.step + 1

    @rule(attached=st.booleans())
    def save_and_load(self, attached: bool) -> None:
        state = through_a_file(self.buffer.state_dict())
        self.buffer = self.new()
        if attached:
            self.buffer.attach(self.lag)
        self.buffer.load_state_dict(state)
        self.buffer.attach(self.lag)
        self.next_draw = self.step + 1
        # What was drawn ahead will be drawn again.
        self.viewed = min(self.viewed, state["viewed"])

    @invariant()
    def holds_what_the_plain_one_holds(self) -> None:
        ours, plain = self.buffer.entries, self.plain.entries
        assert ours.keys.equal(plain.keys)
        assert ours.scores.equal(plain.scores)


# Datasets shrink here until none of the ids is left, which is warned of.
TestDrawsAgainstModel = pytest.mark.filterwarnings("ignore:RareMemoryBuffer holds")(
    DrawsAgainstModel.TestCase
)
TestDrawsAgainstModel.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)


# ---------------------------------------------------------------------- generations


def test_a_replay_of_an_entry_that_left_and_came_again_is_stale() -> None:
    buffer = RareMemoryBuffer(2)
    buffer.attach(3)
    buffer.add(fresh(0, [7]), rare(1))
    drawn = buffer.draw_ahead(3, 1, taken=(), below=None, seed=0)
    assert (drawn.keys, drawn.entries) == ([7], [0])
    buffer.add(fresh(1, [8, 9]), rare(2))  # 7 leaves
    buffer.add(fresh(2, [7]), rare(1))  # and comes again
    replay = replace(
        fresh(3, drawn.keys), is_replay=torch.tensor([True]), entry=torch.tensor(drawn.entries)
    )
    buffer.add(replay, Flags(torch.tensor([5.0]), torch.tensor([True])))
    entries = buffer.entries
    assert entries.entry is not None
    assert entries.uses is not None
    assert entries.keys.tolist() == [9, 7]
    assert entries.scores.tolist() == [1.0, 1.0]
    assert entries.entry.tolist() == [2, 3]
    assert entries.uses.tolist() == [0, 0]
    assert buffer.metrics()["stale"] == 1
    replay = replace(replay, step=4, entry=torch.tensor([3]))
    buffer.add(replay, Flags(torch.tensor([5.0]), torch.tensor([True])))
    assert buffer.entries.scores.tolist() == [1.0, 5.0]


# ---------------------------------------------------------------------- self-feeding


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("chance", [0.3, 0.01])
def test_a_buffer_that_sees_its_replays_flagged_holds_distinct_samples(
    policy: Policy, chance: float
) -> None:
    capacity, lag = 32, 6
    buffer = RareMemoryBuffer(capacity, policy=policy)
    buffer.attach(lag)
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(5000, DIM)).astype(np.float32))
    seen: set[int] = set()
    issued = {}
    for step in range(300):
        number = step + lag - 1  # as far ahead as may be
        for due in range(lag) if step == 0 else [number]:
            issued[due] = buffer.draw_ahead(due, 8, taken=(), below=None, seed=due)
        drawn = issued.pop(step)
        base = [16 * step + row for row in range(8)]
        flagged = rng.random(8) < chance
        buffer.advance(step)
        ids = torch.tensor([*drawn.keys, *base])
        is_replay = torch.arange(len(ids)) < len(drawn.keys)
        entry = torch.tensor([*drawn.entries, *[-1] * 8])
        # Replays are rare themselves, and are always flagged.
        flags = Flags(
            torch.ones(len(ids)),
            is_replay | torch.tensor([False] * len(drawn.keys) + flagged.tolist()),
        )
        buffer.add(Rows(step, ids, is_replay, entry), flags, features=features[ids])
        seen |= {key for key, is_rare in zip(base, flagged, strict=True) if is_rare}
        keys = buffer.keys.tolist()
        assert len(set(keys)) == len(keys) == min(capacity, len(seen))
        assert set(keys) <= seen
    assert len(seen) > 10


# ---------------------------------------------------------------------- threads


def test_feedback_from_another_thread_changes_no_draw() -> None:
    def run(in_a_thread: bool) -> list[list[int]]:
        buffer = RareMemoryBuffer(16, policy=Reservoir(), max_uses=4)
        buffer.attach(5)
        drawn, problems = [], []
        delivered = threading.Semaphore(0)

        def feed() -> None:
            for step in range(400):
                delivered.acquire()
                try:
                    buffer.add(fresh(step, [3 * step, 3 * step + 1]), rare(2))
                    buffer.metrics()
                    buffer.state_dict()
                except Exception as problem:
                    problems.append(problem)

        thread = threading.Thread(target=feed)
        if in_a_thread:
            thread.start()
        waiting: list[list[int]] = []
        for step in range(400):
            while len(waiting) < 3:
                number = step + len(waiting)
                got = buffer.draw_ahead(number, 4, taken=(), below=None, seed=number)
                waiting.append(got.keys)
            drawn.append(waiting.pop(0))
            buffer.advance(step)
            delivered.release()
            if not in_a_thread:
                buffer.add(fresh(step, [3 * step, 3 * step + 1]), rare(2))
            # The feedback may come while the next batches are drawn, but not later than a step.
            while in_a_thread and buffer.state_dict()["heard"] < step - 1:
                assert not problems
        if in_a_thread:
            thread.join()
        assert not problems
        drawn.append(buffer.keys.tolist())
        return drawn

    assert run(True) == run(False)


def test_several_threads_may_add_and_draw_at_once() -> None:
    buffer = RareMemoryBuffer(32, policy=LeastRedundant(), cooldown_steps=1)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(3000, DIM)))
    pixels = torch.arange(3000).remainder(256).to(torch.uint8).view(-1, 1, 1, 1)
    problems: list[Exception] = []

    def add(first: int) -> None:
        try:
            for key in range(first, 3000, 3):
                buffer.admit(
                    BufferEntries(
                        torch.tensor([key]),
                        torch.ones(1),
                        pixels[key : key + 1],
                        features[key : key + 1],
                    )
                )
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=add, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        drawn = buffer.draw(8)
        assert len(set(drawn.keys.tolist())) == len(drawn)
        if drawn.crops is not None:
            assert (drawn.crops.flatten() == drawn.keys % 256).all()
    assert not problems
    assert len(buffer) == 32
    assert buffer.metrics()["admissions"] == 3000


# ---------------------------------------------------------------------- another dataset


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_ids_outside_a_dataset_that_shrank_are_never_drawn_and_are_counted(policy: Policy) -> None:
    buffer = RareMemoryBuffer(8, policy=policy)
    buffer.attach(1)
    keys = [-4, 0, 3, 50, 51, 99]
    buffer.add(fresh(0, keys), rare(6), features=torch.eye(6))
    assert sorted(buffer.draw_ahead(1, 6, taken=(), below=100, seed=0).keys) == keys[1:]
    assert buffer.metrics()["outside"] == 1
    assert sorted(buffer.draw_ahead(1, 6, taken={0}, below=50, seed=0).keys) == [3]
    assert buffer.metrics()["outside"] == 5
    with pytest.warns(RaremixWarning, match=r"holds 6 samples, such as -4, and all lie outside"):
        assert buffer.draw_ahead(1, 6, taken=(), below=0, seed=0).keys == []
    assert buffer.draw_ahead(1, 6, taken=(), below=0, seed=0).keys == []  # said once
    assert sorted(buffer.draw_ahead(1, 6, taken=(), below=None, seed=0).keys) == keys
    assert len(buffer) == 6


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_no_id_comes_twice_and_fewer_come_if_there_are_fewer(policy: Policy) -> None:
    buffer = RareMemoryBuffer(64, policy=policy)
    buffer.attach(1)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(64, DIM)))
    buffer.add(fresh(0, list(range(64))), rare(64), features=features)
    for seed in range(60):
        count, taken = seed % 67, set(range(0, 64, 1 + seed % 5))
        keys = buffer.draw_ahead(1, count, taken=taken, below=None, seed=seed).keys
        assert len(set(keys)) == len(keys) == min(count, 64 - len(taken))
        assert not set(keys) & taken
