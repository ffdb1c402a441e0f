"""The buffer against a model in plain Python: lists, and a copy of the list after every step."""

import copy
import io
import warnings

import pytest
import torch
from feedback import Flags, Rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from raremix import BufferEntries, RareMemoryBuffer
from raremix.errors import RaremixWarning

CROP_BYTES = 12  # 3 x 2 x 2 uint8
HISTORY = 4

rows = st.lists(
    st.tuples(
        st.integers(0, 12),  # id
        st.sampled_from([0.5, 1.5, float("nan"), float("inf")]),  # score
        st.booleans(),  # is_rare
        st.booleans(),  # is_replay
    ),
    max_size=6,
)


def crop_of(key: int, step: int) -> Tensor:
    return torch.full((3, 2, 2), (key * 7 + step) % 251, dtype=torch.uint8)


class BufferAgainstModel(RuleBasedStateMachine):
    @initialize(
        capacity=st.integers(1, 5), budget=st.sampled_from([None, 3 * CROP_BYTES, CROP_BYTES])
    )
    def build(self, capacity: int, budget: int | None) -> None:
        self.capacity, self.budget = capacity, budget
        self.buffer = RareMemoryBuffer(capacity, max_bytes=budget)
        self.buffer.attach(HISTORY)
        self.step = -1
        self.heard = -1
        self.held: list[int] = []  # oldest first
        self.scores: dict[int, float] = {}
        self.crops: dict[int, Tensor | None] = {}
        self.uses: dict[int, int] = {}
        self.after: dict[int, list[int]] = {-1: []}  # what was held after each step
        self.viewed = -2
        self.changed = -1  # the step that the last admission belongs to
        self.admissions = self.evictions = 0

    def model_admit(self, key: int, score: float, crop: Tensor | None) -> None:
        self.held.append(key)
        self.scores[key], self.crops[key], self.uses[key] = score, crop, 0
        self.admissions += 1
        while len(self.held) > self.capacity or self.over_budget():
            self.held.pop(0)
            self.evictions += 1

    def note(self, step: int, admissions_before: int) -> None:
        """What happened belongs to ``step``, or to a later one that something belonged to before."""
        step = max(step, self.changed)
        if self.admissions > admissions_before:
            self.changed = step
        if step <= self.step:
            self.after[self.step] = list(self.held)

    def over_budget(self) -> bool:
        return self.budget is not None and self.bytes_held() > self.budget

    def bytes_held(self) -> int:
        return sum(CROP_BYTES for key in self.held if self.crops[key] is not None)

    @rule()
    def a_batch_without_feedback(self) -> None:
        self.step += 1
        self.buffer.advance(self.step)
        self.after[self.step] = list(self.held)

    @rule(rows=rows, with_crops=st.booleans())
    def a_batch_with_feedback(
        self, rows: list[tuple[int, float, bool, bool]], with_crops: bool
    ) -> None:
        self.step += 1
        self.after[self.step] = list(self.held)
        before = self.admissions
        self.feed(rows, with_crops)
        self.note(self.step, before)

    @precondition(lambda self: self.step > max(self.heard, self.viewed))
    @rule(rows=rows)
    def feedback_for_the_last_batch(self, rows: list[tuple[int, float, bool, bool]]) -> None:
        before = self.admissions
        self.feed(rows, with_crops=False)
        self.note(self.step, before)

    def feed(self, rows: list[tuple[int, float, bool, bool]], with_crops: bool) -> None:
        ids = [row[0] for row in rows]
        crops = torch.stack([crop_of(key, self.step) for key in ids]) if ids else None
        crops = crops if with_crops else None
        batch = Rows(
            self.step,
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor([row[3] for row in rows], dtype=torch.bool),
        )
        flags = Flags(
            torch.tensor([row[1] for row in rows], dtype=torch.float32),
            torch.tensor([row[2] for row in rows], dtype=torch.bool),
        )
        before, held_before = self.admissions, set(self.held)
        admitted = self.buffer.add(batch, flags, crops=crops)
        self.heard = self.step
        for row, (key, score, is_rare, is_replay) in enumerate(rows):
            finite = abs(score) < float("inf")
            if key not in held_before and not is_rare and not is_replay:
                continue  # also where the same batch has just admitted another row of this id
            if key in self.held:
                self.uses[key] += is_replay
                self.scores[key] = score if finite else self.scores[key]
            elif is_rare and finite and not is_replay:
                self.model_admit(key, score, None if crops is None else crops[row].clone())
        assert admitted == self.admissions - before

    @precondition(lambda self: self.step >= 0)
    @rule(rows=rows)
    def feedback_that_comes_twice_changes_nothing(
        self, rows: list[tuple[int, float, bool, bool]]
    ) -> None:
        late = self.buffer.metrics()["late"]
        if self.heard == self.step:
            self.feed_ignored(self.step, rows)
            assert self.buffer.metrics()["late"] == late + 1

    @precondition(lambda self: self.heard > 0)
    @rule(rows=rows, back=st.integers(1, 3))
    def feedback_out_of_order_changes_nothing(
        self, rows: list[tuple[int, float, bool, bool]], back: int
    ) -> None:
        self.feed_ignored(max(self.heard - back, 0), rows)

    def feed_ignored(self, step: int, rows: list[tuple[int, float, bool, bool]]) -> None:
        ids = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        everything = torch.ones(len(rows), dtype=torch.bool)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RaremixWarning)  # said at the first late feedback
            late = self.buffer.add(Rows(step, ids, ~everything), Flags(ids.float(), everything))
        assert late == 0

    @rule(keys=st.lists(st.integers(0, 12), max_size=4))
    def admit(self, keys: list[int]) -> None:
        ids = torch.tensor(keys, dtype=torch.int64)
        admitted = self.buffer.admit(BufferEntries(ids, torch.ones(len(keys)), None))
        before = self.admissions
        for key in keys:
            if key in self.held:
                self.scores[key] = 1.0
            else:
                self.model_admit(key, 1.0, None)
        assert admitted == self.admissions - before
        # It counts from the first step that no view has relied on.
        self.note(max(self.step, self.viewed + 1), before)

    @rule(back=st.integers(0, HISTORY - 1), seed=st.integers(0, 3))
    def draw_from_an_earlier_step(self, back: int, seed: int) -> None:
        number = self.step - back + HISTORY
        step = max(self.step - back, -1)
        drawn = self.buffer.draw_ahead(number, 100, taken={3}, below=11, seed=seed)
        assert sorted(drawn.keys) == sorted(k for k in self.after[step] if k != 3 and k < 11)
        assert set(drawn.probabilities) <= {1.0}
        some = self.buffer.draw_ahead(number, 2, taken={3}, below=11, seed=seed)
        assert some == self.buffer.draw_ahead(number, 2, taken={3}, below=11, seed=seed)
        assert len(some.keys) == min(2, len(drawn.keys))
        self.viewed = max(self.viewed, step)

    @rule()
    def begin_the_next_iteration(self) -> None:
        self.buffer.rewind(self.step + 1)

    @rule(count=st.integers(0, 6), seed=st.integers(0, 3))
    def draw(self, count: int, seed: int) -> None:
        drawn = self.buffer.draw(count, generator=torch.Generator().manual_seed(seed))
        keys = drawn.keys.tolist()
        assert len(keys) == len(set(keys)) == min(count, len(self.held))
        assert set(keys) <= set(self.held)
        assert drawn.scores.tolist() == [self.scores[key] for key in keys]

    @rule()
    def save_and_load(self) -> None:
        file = io.BytesIO()
        torch.save(self.buffer.state_dict(), file)
        file.seek(0)
        self.buffer = RareMemoryBuffer(self.capacity, max_bytes=self.budget)
        self.buffer.load_state_dict(torch.load(file, weights_only=True))
        self.forget_draws_ahead()

    def forget_draws_ahead(self) -> None:
        # They will be drawn again, so that nothing relies any more on what they read.
        self.viewed = min(self.viewed, max(self.step - HISTORY, -2))

    @rule()
    def copy_deeply(self) -> None:
        twin = copy.deepcopy(self.buffer)
        original, self.buffer = self.buffer, twin
        self.forget_draws_ahead()
        original.admit(BufferEntries(torch.tensor([99]), torch.ones(1), None))
        assert 99 not in twin

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.buffer.keys.tolist() == self.held
        assert len(self.buffer) == len(self.held) <= self.capacity
        assert self.buffer.entries.scores.tolist() == [self.scores[key] for key in self.held]

    @invariant()
    def stays_in_its_budget(self) -> None:
        assert self.buffer.nbytes == self.bytes_held()
        assert self.budget is None or self.buffer.nbytes <= self.budget

    @invariant()
    def counts_add_up(self) -> None:
        metrics = self.buffer.metrics()
        assert metrics["admissions"] - metrics["evictions"] == len(self.held)
        assert metrics["evictions"] == self.evictions
        assert metrics["uses_max"] == max((self.uses[key] for key in self.held), default=0)

    @invariant()
    def crops_are_the_ones_that_came_in(self) -> None:
        if self.held and all(self.crops[key] is not None for key in self.held):
            crops = self.buffer.entries.crops
            assert crops is not None
            for key, crop in zip(self.held, crops, strict=True):
                assert torch.equal(crop, self.crops[key])  # type: ignore[arg-type]  # not None


# The ids of a dataset may all be gone here, which is warned of.
TestBufferAgainstModel = pytest.mark.filterwarnings("ignore:RareMemoryBuffer holds")(
    BufferAgainstModel.TestCase
)
TestBufferAgainstModel.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
