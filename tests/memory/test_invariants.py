"""What holds of every buffer after every call, whatever its policy and limits are (I8 to I15, I17)."""

import copy
import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from feedback import Flags, Rows, same
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
    SamplesPerInsert,
    TwoTier,
)
from raremix.errors import OptionError, RaremixError, RaremixWarning, StateMismatchError

LAG, CROP_BYTES = 3, 4
POLICIES: list[Policy] = [
    *(FIFO(), Reservoir(), RarestK(), LeastRedundant()),
    *(ClusterBalanced(clusters=2), TwoTier(recent=0.4)),
]


def features_of(keys: list[int]) -> Tensor:
    angles = torch.tensor(keys, dtype=torch.float32)[:, None]
    return torch.cat([angles.cos(), angles.sin(), (3 * angles).cos()], dim=1).reshape(-1, 3)


def crops_of(keys: list[int]) -> Tensor:
    return torch.tensor(keys, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)


def plain(value: Any) -> bool:
    """Made of what ``weights_only=True`` loads without being told of a class."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return type(value) in (int, float, str, bool, Tensor, type(None))


class Invariants(RuleBasedStateMachine):
    @initialize(
        capacity=st.integers(1, 6),
        policy=st.sampled_from(POLICIES),
        budget=st.sampled_from([None, CROP_BYTES, 3 * CROP_BYTES]),
        limits=st.fixed_dictionaries(
            {
                "max_uses": st.sampled_from([None, 1, 3]),
                "cooldown_steps": st.sampled_from([0, 2]),
                "max_age_steps": st.sampled_from([None, 5]),
                "samples_per_insert": st.sampled_from([None, SamplesPerInsert(1.0, error=4.0)]),
                "min_distance": st.sampled_from([0.0, 0.05]),
            }
        ),
    )
    def build(
        self, capacity: int, policy: Policy, budget: int | None, limits: dict[str, Any]
    ) -> None:
        self.settings = {"policy": policy, "max_bytes": budget, **limits}
        self.capacity, self.budget = capacity, budget
        self.buffer = self.new()
        self.buffer.attach(LAG)
        self.step = -1
        self.next_draw = 0
        self.issued: dict[int, Any] = {}
        self.replayed = self.late = 0
        self.offered: set[int] = set()
        self.uses: Counter[int] = Counter()  # by entry, of what came back in time

    def new(self) -> RareMemoryBuffer:
        return RareMemoryBuffer(self.capacity, **self.settings)

    @rule(
        fresh=st.lists(st.tuples(st.integers(0, 25), st.booleans()), max_size=5),
        score=st.sampled_from([0.5, 1.0, 2.0, float("nan"), float("inf")]),
    )
    def deliver(self, fresh: list[tuple[int, bool]], score: float) -> None:
        self.step += 1
        self.next_draw = max(self.next_draw, self.step + 1)
        self.buffer.advance(self.step)
        drawn = self.issued.pop(self.step, None)
        replays, entries = (drawn.keys, drawn.entries) if drawn else ([], [])
        self.batch = (replays, entries, fresh, score)
        held_before = set(self.buffer.keys.tolist())
        self.feed(self.step)
        self.replayed += len(replays)
        self.uses.update(entries)
        rare = {key for key, is_rare in fresh if is_rare and np.isfinite(score)}
        self.offered |= rare
        # A replay is never admitted, though it is flagged like any other row (I9).
        assert set(self.buffer.keys.tolist()) - held_before <= rare

    def feed(self, step: int) -> int:
        replays, entries, fresh, score = self.batch
        keys = [*replays, *(key for key, _ in fresh)]
        return self.buffer.add(
            Rows(
                step,
                torch.tensor(keys, dtype=torch.int64),
                torch.arange(len(keys)) < len(replays),
                torch.tensor([*entries, *[-1] * len(fresh)], dtype=torch.int64),
            ),
            Flags(
                torch.full((len(keys),), score),
                torch.tensor([*[True] * len(replays), *(r for _, r in fresh)], dtype=torch.bool),
            ),
            crops=crops_of(keys),
            features=features_of(keys),
        )

    @precondition(lambda self: self.step >= 0)
    @rule(back=st.integers(0, 2))
    def feedback_that_comes_twice_is_counted_and_never_applied(self, back: int) -> None:
        before = self.buffer.state_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RaremixWarning)
            assert self.feed(max(self.step - back, 0)) == 0
        self.late += 1
        after = self.buffer.state_dict()
        assert after["counts"].pop("late") == before["counts"].pop("late") + 1 == self.late
        assert same(before, after)

    @rule(
        change=st.sampled_from(
            [
                {"crops": torch.zeros(2, 1, 2, 2)},  # no uint8
                {"crops": torch.zeros(3, 1, 2, 2, dtype=torch.uint8)},
                {"features": torch.ones(3, 3)},
                {"features": torch.ones(2, 3).bool()},
                {"ids": [0.5, 1.5]},
                {"scores": torch.ones(3)},
            ]
        )
    )
    def a_call_that_fails_changes_nothing(self, change: dict[str, Any]) -> None:
        before = self.buffer.state_dict()
        keys = [1, 2]
        ids = torch.tensor(change.get("ids", keys))
        flags = Flags(change.get("scores", torch.ones(2)), torch.ones(2, dtype=torch.bool))
        more = {
            "crops": change.get("crops", crops_of(keys)),
            "features": change.get("features", features_of(keys)),
        }
        no = torch.zeros(2, dtype=torch.bool)
        with pytest.raises((RaremixError, ValueError)):
            self.buffer.add(Rows(self.step + 1, ids, no, no.long() - 1), flags, **more)
        with pytest.raises((RaremixError, ValueError)):
            self.buffer.admit(BufferEntries(ids, flags.scores, **more))
        assert same(before, self.buffer.state_dict())

    @rule(keys=st.lists(st.integers(0, 25), max_size=3))
    def admit(self, keys: list[int]) -> None:
        self.offered |= set(keys)
        self.buffer.admit(
            BufferEntries(
                torch.tensor(keys, dtype=torch.int64),
                torch.ones(len(keys)),
                crops_of(keys),
                features_of(keys),
            )
        )

    @precondition(lambda self: self.next_draw - LAG <= self.step)
    @rule(count=st.integers(0, 4), taken=st.frozensets(st.integers(0, 25), max_size=5))
    def draw_ahead(self, count: int, taken: frozenset[int]) -> None:
        number = self.next_draw
        drawn = self.buffer.draw_ahead(number, count, taken=taken, below=20, seed=number)
        assert len(drawn.keys) == len(set(drawn.keys)) <= count
        assert not set(drawn.keys) & taken
        assert set(drawn.keys) <= self.offered & set(range(20))
        assert all(0 < chance <= 1 for chance in drawn.probabilities)
        assert min(drawn.ages, default=0) >= 0
        self.issued[number] = drawn
        self.next_draw += 1

    @rule()
    def begin_anew(self) -> None:
        self.buffer.rewind(self.step + 1)
        self.issued.clear()
        self.next_draw = self.step + 1

    @rule()
    def save_and_load(self) -> None:
        state = self.buffer.state_dict()
        assert plain(state)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        other = RareMemoryBuffer(self.capacity + 1, **self.settings)
        loaded = torch.load(file, weights_only=True)
        with pytest.raises(StateMismatchError, match=f"capacity was {self.capacity}, is"):
            other.load_state_dict(loaded)
        assert len(other) == 0
        self.buffer = self.new()
        self.buffer.load_state_dict(loaded)
        assert same(self.buffer.state_dict(), {**state, "viewed": min(state["viewed"], self.step)})
        self.issued.clear()
        self.next_draw = self.step + 1

    @rule()
    def what_is_handed_out_shares_nothing(self) -> None:
        before = self.buffer.state_dict()
        for tensor in tensors([vars(self.buffer.entries), self.buffer.state_dict()]):
            tensor.zero_()
        twin = copy.deepcopy(self.buffer)
        twin.admit(
            BufferEntries(
                torch.tensor([99]), torch.full((1,), 9.0), crops_of([99]), features_of([99])
            )
        )
        assert same(before, self.buffer.state_dict())

    @invariant()
    def stays_within_its_bounds(self) -> None:
        keys = self.buffer.keys.tolist()
        assert len(set(keys)) == len(keys) == len(self.buffer) <= self.capacity
        assert set(keys) <= self.offered
        assert self.buffer.nbytes == CROP_BYTES * len(keys)
        assert self.budget is None or self.buffer.nbytes <= self.budget
        entries = self.buffer.entries
        if keys:
            assert entries.crops is not None
            assert entries.features is not None
            assert entries.crops.equal(crops_of(keys))
            want = torch.nn.functional.normalize(features_of(keys), dim=1)
            assert torch.allclose(entries.features, want, atol=1e-6)

    @invariant()
    def counts_add_up(self) -> None:
        metrics, entries = self.buffer.metrics(), self.buffer.entries
        assert entries.entry is not None
        assert entries.uses is not None
        assert metrics["admissions"] - metrics["evictions"] == metrics["size"] == len(self.buffer)
        assert metrics["replays"] == self.replayed == sum(self.uses.values())
        assert entries.uses.tolist() == [self.uses[entry] for entry in entries.entry.tolist()]
        assert metrics["late"] == self.late
        assert all(type(value) is float for value in metrics.values())


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return []
    return [tensor for part in parts for tensor in tensors(part)]


# The ids of a dataset may all be gone here, which is warned of.
TestInvariants = pytest.mark.filterwarnings("ignore:RareMemoryBuffer holds")(Invariants.TestCase)
TestInvariants.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        ({"policy": RarestK()}, {"policy": Reservoir()}, r"policy was 'RarestK\(\)', is 'Reserv"),
        ({"policy": TwoTier(recent=0.5)}, {"policy": TwoTier()}, "policy was .*recent=0.5"),
        ({"max_uses": 3}, {}, "max_uses was 3, is None"),
        ({}, {"cooldown_steps": 3}, "cooldown_steps was 0, is 3"),
        ({"max_age_steps": 3}, {}, "max_age_steps was 3, is None"),
        ({"min_distance": 0.5}, {}, r"min_distance was 0\.5, is 0"),
        ({"layout": "local"}, {}, "layout was 'local', is 'replicated'"),
        ({"seed": 1}, {}, "seed was 1, is 0"),
        (
            {"samples_per_insert": SamplesPerInsert(2, error=8)},
            {"samples_per_insert": SamplesPerInsert(2, error=9)},
            r"samples_per_insert was \[2, 8\], is \[2, 9\]",
        ),
    ],
)
def test_a_state_of_other_settings_is_refused_with_the_setting(
    saved: dict[str, Any], own: dict[str, Any], message: str
) -> None:
    buffer = RareMemoryBuffer(4, **own)
    before = buffer.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        buffer.load_state_dict(RareMemoryBuffer(4, **saved).state_dict())
    assert same(before, buffer.state_dict())


def test_features_that_begin_late_are_refused() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.admit(BufferEntries(torch.tensor([1]), torch.ones(1)))
    with pytest.raises(OptionError, match="holds 1 entries without; pass features from the first"):
        buffer.admit(BufferEntries(torch.tensor([2]), torch.ones(1), features=torch.ones(1, 3)))
    assert buffer.keys.tolist() == [1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 0.0])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_feature_that_is_no_direction_harms_nobody(policy: Policy, bad: float) -> None:
    buffer = RareMemoryBuffer(3, policy=policy)
    for key in range(6):
        features = features_of([key])
        if key % 2:
            features[:] = bad
        buffer.admit(BufferEntries(torch.tensor([key]), torch.ones(1) + key, features=features))
    held = buffer.entries.features
    assert held is not None
    assert held.isfinite().all()
    assert len(buffer) == 3
    assert len(buffer.draw(3)) == 3
