"""Each policy against what it says of itself: a list in plain Python, or the share it promises."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from feedback import Flags, Rows, same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix import (
    FIFO,
    ClusterBalanced,
    LeastRedundant,
    Policy,
    RareMemoryBuffer,
    RarestK,
    Reservoir,
    TwoTier,
)
from raremix.errors import OptionError
from raremix.memory.held import Held

DIM = 5

POLICIES: dict[str, Callable[[], Policy]] = {
    "fifo": FIFO,
    "reservoir": Reservoir,
    "rarest": RarestK,
    "least_redundant": LeastRedundant,
    "clusters": lambda: ClusterBalanced(clusters=3),
    "two_tier": lambda: TwoTier(recent=0.4),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@dataclass(frozen=True)
class Row:
    """One row of a batch; what a test does not say is drawn from the seed."""

    key: int
    score: float
    is_rare: bool
    is_replay: bool
    seed: int

    @property
    def feature(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.random.default_rng(self.seed).normal(size=DIM).astype(np.float32)


def some_rows(keys: int = 12) -> st.SearchStrategy[Row]:
    return st.builds(
        Row,
        key=st.integers(0, keys),
        score=st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, float("nan")]),
        is_rare=st.booleans(),
        is_replay=st.integers(0, 3).map(lambda number: number == 0),
        seed=st.integers(0, 2**20),
    )


def some_batches(keys: int = 12) -> st.SearchStrategy[list[list[Row]]]:
    return st.lists(st.lists(some_rows(keys), max_size=6), min_size=3, max_size=14)


def feed(buffer: RareMemoryBuffer, step: int, rows: list[Row], *, crops: bool = False) -> None:
    buffer.add(
        Rows(
            step,
            torch.tensor([row.key for row in rows], dtype=torch.int64),
            torch.tensor([row.is_replay for row in rows], dtype=torch.bool),
        ),
        Flags(
            torch.tensor([row.score for row in rows], dtype=torch.float32),
            torch.tensor([row.is_rare for row in rows], dtype=torch.bool),
        ),
        crops=torch.full((len(rows), 1, 2, 2), step % 256, dtype=torch.uint8) if crops else None,
        features=features_of(rows),
    )


def features_of(rows: list[Row]) -> Tensor:
    return torch.from_numpy(
        np.stack([row.feature for row in rows]) if rows else np.zeros((0, DIM), np.float32)
    )


def offer(buffer: RareMemoryBuffer, keys: list[int], scores: list[float] | None = None) -> None:
    """One batch of rare rows."""
    given = torch.ones(len(keys)) if scores is None else torch.tensor(scores)
    buffer.add(keys, Flags(given, torch.ones(len(keys), dtype=torch.bool)))


def evenness(counts: Any, *, drawn: int) -> float:
    """Chi-square of inclusion counts, ``drawn`` of len(counts) a time; as many as that, about."""
    counts = np.asarray(counts, float)
    expected, share = counts.mean(), drawn / len(counts)
    spread = expected * (1 - share) * len(counts) / (len(counts) - 1)
    return float(((counts - expected) ** 2).sum() / spread)


def far_beyond(freedom: int) -> float:
    """What chance alone exceeds once in some ten thousand times (Wilson and Hilferty)."""
    return float(freedom * (1 - 2 / (9 * freedom) + 3.7 * (2 / (9 * freedom)) ** 0.5) ** 3)


# ---------------------------------------------------------------------- every policy


@every_policy
@settings(max_examples=25, deadline=None)
@given(
    batches=some_batches(),
    capacity=st.integers(1, 7),
    budget=st.sampled_from([None, 4, 12]),
    cut=st.integers(0, 14),
)
def test_saved_and_loaded_in_mid_stream_it_goes_on_as_if_never_stopped(
    policy: Callable[[], Policy],
    batches: list[list[Row]],
    capacity: int,
    budget: int | None,
    cut: int,
) -> None:
    def build() -> RareMemoryBuffer:
        return RareMemoryBuffer(capacity, max_bytes=budget, policy=policy(), max_uses=3, seed=5)

    straight, again, resumed = build(), build(), build()
    for step, rows in enumerate(batches):
        if step == cut:
            twin = build()
            twin.load_state_dict(through_a_file(resumed.state_dict()))
            resumed = twin
        for buffer in (straight, again, resumed):
            feed(buffer, step, rows, crops=budget is not None)
            assert len(buffer) <= capacity
            assert budget is None or buffer.nbytes <= budget
        one, two, three = (
            buffer.draw(3, generator=torch.Generator().manual_seed(step))
            for buffer in (straight, again, resumed)
        )
        assert one.keys.tolist() == two.keys.tolist() == three.keys.tolist()
    state = straight.state_dict()
    assert same(state, again.state_dict())
    assert same(state, resumed.state_dict())


@every_policy
@settings(max_examples=25, deadline=None)
@given(batches=some_batches(), capacity=st.integers(1, 7))
def test_whoever_leaves_makes_room_for_one_that_came(
    policy: Callable[[], Policy], batches: list[list[Row]], capacity: int
) -> None:
    buffer = RareMemoryBuffer(capacity, policy=policy())
    admitted: set[int] = set()
    for step, rows in enumerate(batches):
        before = set(buffer.keys.tolist())
        feed(buffer, step, rows)
        held = set(buffer.keys.tolist())
        wanted = {row.key for row in rows if row.is_rare and not row.is_replay}
        assert held - before <= wanted
        admitted |= held
        assert before <= held or len(held) == capacity  # nobody leaves without need
    metrics = buffer.metrics()
    assert metrics["admissions"] - metrics["evictions"] == len(buffer)
    assert metrics["admissions"] >= len(admitted)


@every_policy
def test_another_seed_changes_only_what_is_left_to_chance(policy: Callable[[], Policy]) -> None:
    held = []
    for seed in range(6):
        buffer = RareMemoryBuffer(8, policy=policy(), seed=seed)
        for step in range(10):
            rows = [Row(10 * step + i, float(i), True, False, 10 * step + i) for i in range(10)]
            feed(buffer, step, rows)
        held.append(tuple(buffer.keys.tolist()))
    by_chance = type(policy()) in (Reservoir, ClusterBalanced, TwoTier)
    assert (len(set(held)) > 1) is by_chance


# ---------------------------------------------------------------------- first in, first out


@settings(max_examples=40, deadline=None)
@given(batches=some_batches(), capacity=st.integers(1, 6))
def test_fifo_is_a_queue(batches: list[list[Row]], capacity: int) -> None:
    buffer = RareMemoryBuffer(capacity)
    queue: list[int] = []
    for step, rows in enumerate(batches):
        feed(buffer, step, rows)
        for row in rows:
            finite = row.score == row.score
            if row.is_rare and not row.is_replay and finite and row.key not in queue:
                queue = [*queue, row.key][-capacity:]
        assert buffer.keys.tolist() == queue


# ---------------------------------------------------------------------- the rarest k


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0, 8.0]), max_size=40),
    capacity=st.integers(1, 8),
    width=st.integers(1, 5),
)
def test_rarest_k_holds_the_k_highest_scores_seen(
    scores: list[float], capacity: int, width: int
) -> None:
    buffer = RareMemoryBuffer(capacity, policy=RarestK())
    for first in range(0, len(scores), width):
        some = scores[first : first + width]
        offer(buffer, list(range(first, first + len(some))), some)
        seen = scores[: first + width]
        assert sorted(buffer.entries.scores.tolist()) == sorted(seen)[-capacity:]


@settings(max_examples=60, deadline=None)
@given(batches=some_batches(), capacity=st.integers(1, 6))
def test_rarest_k_follows_the_scores_that_samples_get_later(
    batches: list[list[Row]], capacity: int
) -> None:
    buffer = RareMemoryBuffer(capacity, policy=RarestK())
    held: dict[int, float] = {}  # in order of admission
    for step, rows in enumerate(batches):
        feed(buffer, step, rows)
        told = set(held) | {row.key for row in rows if row.is_rare or row.is_replay}
        known = set(held)
        for row in rows:
            finite = row.score == row.score
            if row.key not in told or not (row.key in known or row.is_rare or row.is_replay):
                continue
            if row.key in held:
                held[row.key] = row.score if finite else held[row.key]
            elif row.is_rare and not row.is_replay and finite:
                if len(held) < capacity or row.score > min(held.values()):
                    held[row.key] = row.score
                if len(held) > capacity:
                    del held[min(held, key=lambda key: held[key])]  # the first of the lowest
        assert buffer.keys.tolist() == list(held)
        assert buffer.entries.scores.tolist() == list(held.values())


# ---------------------------------------------------------------------- reservoirs


@pytest.mark.parametrize("budget", [None, 4 * 6])
@pytest.mark.parametrize("width", [1, 7, 28])
def test_a_reservoir_is_an_even_sample_of_what_was_offered(budget: int | None, width: int) -> None:
    offered, capacity, runs = 28, 6 if budget is None else 20, 400
    counts = np.zeros(offered)
    pixels = torch.zeros(width, 1, 2, 2, dtype=torch.uint8)
    rare = Flags(torch.ones(width), torch.ones(width, dtype=torch.bool))
    for seed in range(runs):
        buffer = RareMemoryBuffer(capacity, max_bytes=budget, policy=Reservoir(), seed=seed)
        for first in range(0, offered, width):
            buffer.add(list(range(first, first + width)), rare, crops=pixels if budget else None)
        counts[buffer.keys.numpy()] += 1
    assert counts.sum() == 6 * runs
    assert evenness(counts, drawn=6) < far_beyond(offered - 1)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=12), capacity=st.integers(2, 10))
def test_two_tiers_hold_the_newest_and_some_of_those_before(
    sizes: list[int], capacity: int
) -> None:
    policy = TwoTier(recent=0.3)
    buffer = RareMemoryBuffer(capacity, policy=policy)
    queue = max(1, round(0.3 * capacity))
    offered = 0
    for size in sizes:
        offer(buffer, list(range(offered, offered + size)))
        offered += size
        held, tier = (buffer.state_dict()["rows"][name].tolist() for name in ("key", "tier"))
        recent = {key for key, number in zip(held, tier, strict=True) if number == 0}
        assert recent == set(range(max(offered - queue, 0), offered))
        assert len(buffer) == min(offered, capacity)


def test_the_second_tier_is_an_even_sample_of_who_left_the_queue() -> None:
    offered, capacity, runs = 40, 8, 800
    counts = np.zeros(offered)
    for seed in range(runs):
        buffer = RareMemoryBuffer(capacity, policy=TwoTier(recent=0.25), seed=seed)
        offer(buffer, list(range(offered)))
        counts[buffer.keys.numpy()] += 1
    assert counts[38:].tolist() == [runs, runs]
    assert counts[:38].sum() == 6 * runs
    assert evenness(counts[:38], drawn=6) < far_beyond(37)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_each_tier_gets_its_share_of_the_draws(share: float) -> None:
    buffer = RareMemoryBuffer(40, policy=TwoTier(recent=0.25, recent_draws=share))
    offer(buffer, list(range(100)))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([buffer.draw(4, generator=generator).keys for _ in range(600)])
    recent = float((drawn >= 90).float().mean())
    assert abs(recent - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5


# ---------------------------------------------------------------------- the least redundant


def unit(row: Row) -> Any:
    feature = row.feature.astype(np.float64)
    return feature / np.linalg.norm(feature)


def nearest(features: dict[int, Any]) -> dict[int, float]:
    """The cosine to the nearest other, of each."""
    keys = list(features)
    table = np.stack([features[key] for key in keys])
    cosines = table @ table.T
    np.fill_diagonal(cosines, -2.0)
    return dict(zip(keys, cosines.max(axis=1).tolist(), strict=True))


TOLERANCE = 3e-5  # the policy takes cosines this near for equal; also rounding of float32


@pytest.mark.parametrize("budget", [None, 16])
@settings(max_examples=50, deadline=None)
@given(batches=some_batches(keys=20), capacity=st.integers(1, 8))
def test_least_redundant_evicts_like_a_table_of_all_pairs(
    budget: int | None, batches: list[list[Row]], capacity: int
) -> None:
    buffer = RareMemoryBuffer(capacity, max_bytes=budget, policy=LeastRedundant(), max_uses=2)
    room = capacity if budget is None else min(capacity, budget // 4)
    held: dict[int, Any] = {}  # features by key, in order of admission
    uses: dict[int, int] = {}
    for step, row in enumerate(row for rows in batches for row in rows):  # one row a batch
        feed(buffer, step, [row], crops=budget is not None)
        if row.key in held:
            held[row.key] = unit(row)
            uses[row.key] += row.is_replay
            if uses[row.key] == 2:
                del held[row.key], uses[row.key]
        elif row.is_rare and not row.is_replay and row.score == row.score:
            held[row.key], uses[row.key] = unit(row), 0
            if len(held) > room:
                alike = nearest(held)
                most = [key for key in held if alike[key] >= max(alike.values()) - TOLERANCE]
                (left,) = set(held) - set(buffer.keys.tolist())
                assert left in most
                assert len(most) > 2 or left == most[0]  # the older of the two
                del held[left], uses[left]
        assert buffer.keys.tolist() == list(held)
        state = buffer.state_dict()["rows"]
        key_of = dict(zip(state["entry"].tolist(), state["key"].tolist(), strict=True))
        truth = nearest(held) if held else {}
        for key, alike_told, entry in zip(
            state["key"].tolist(), state["alike"].tolist(), state["neighbour"].tolist(), strict=True
        ):
            assert abs(alike_told - truth[key]) < 1e-5
            if len(held) > 1:
                assert abs(held[key_of[entry]] @ held[key] - truth[key]) < 1e-5
            else:
                assert entry == -1


def test_least_redundant_keeps_scenes_apart_where_a_queue_fills_with_the_last() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(8, 16))
    kept = {}
    for name, policy in {"queue": FIFO(), "apart": LeastRedundant()}.items():
        buffer = RareMemoryBuffer(16, policy=policy)
        for step in range(80):  # ten batches of each scene, one scene after the other
            near = scenes[step // 10] + 0.1 * rng.normal(size=(4, 16))
            keys = list(range(4 * step, 4 * step + 4))
            rare = Flags(torch.ones(4), torch.ones(4, dtype=torch.bool))
            buffer.add(keys, rare, features=torch.from_numpy(near))
        kept[name] = {key // 40 for key in buffer.keys.tolist()}
    assert kept["queue"] == {7}
    assert kept["apart"] == set(range(8))


# ---------------------------------------------------------------------- clusters


@settings(max_examples=40, deadline=None)
@given(batches=some_batches(keys=30), capacity=st.integers(2, 20))
def test_every_entry_belongs_to_the_cluster_of_the_nearest_centre(
    batches: list[list[Row]], capacity: int
) -> None:
    buffer = RareMemoryBuffer(capacity, policy=ClusterBalanced(clusters=4), max_uses=3)
    for step, rows in enumerate(batches):
        feed(buffer, step, rows)
        state = buffer.state_dict()
        if len(buffer) and len(state["shared"]["centroids"]):
            cosines = state["features"].double() @ state["shared"]["centroids"].double().T
            own = cosines.gather(1, state["rows"]["cluster"][:, None])[:, 0]
            assert (cosines.max(dim=1).values - own).max() < 1e-5
        elif len(buffer):
            assert state["rows"]["cluster"].tolist() == [0] * len(buffer)


def test_the_oldest_of_the_largest_cluster_leaves() -> None:
    features, _ = imbalanced(0)
    buffer = RareMemoryBuffer(24, policy=ClusterBalanced(clusters=5))
    rare = Flags(torch.ones(1), torch.ones(1, dtype=torch.bool))
    clustered = 0
    for key in range(300):
        before = buffer.state_dict()
        buffer.add([key], rare, features=features[key : key + 1])
        after = buffer.state_dict()
        if key < 24:
            continue
        clustered += not same(before["shared"]["centroids"], after["shared"]["centroids"])
        # The newcomer is told its cluster, and all are if clusters were found anew, before one goes.
        units = torch.nn.functional.normalize(features[key : key + 1], dim=1).float()
        every = torch.cat([before["features"], units]) @ after["shared"]["centroids"].T
        cluster = every.argmax(dim=1)
        keys = [*before["rows"]["key"].tolist(), key]  # keys are in order of age
        own = cluster == torch.bincount(cluster).argmax()
        left = set(keys) - set(after["rows"]["key"].tolist())
        assert left == {min(k for k, is_own in zip(keys, own.tolist(), strict=True) if is_own)}
    assert clustered > 5


def imbalanced(seed: int) -> tuple[Tensor, list[int]]:
    """2,000 features of kinds that are 85, 10, 3 and 2 % of them."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(4, size=2000, p=[0.85, 0.1, 0.03, 0.02])
    centres = np.eye(4, 12)
    return torch.from_numpy(centres[kinds] + 0.15 * rng.normal(size=(2000, 12))), kinds.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_clusters_keep_the_kinds_balanced(seed: int) -> None:
    features, kinds = imbalanced(seed)
    held = {}
    for name, policy in {"queue": FIFO(), "even": ClusterBalanced(clusters=8)}.items():
        buffer = RareMemoryBuffer(64, policy=policy, seed=seed)
        for first in range(0, 2000, 20):
            keys = list(range(first, first + 20))
            rare = Flags(torch.ones(20), torch.ones(20, dtype=torch.bool))
            buffer.add(keys, rare, features=features[first : first + 20])
        held[name] = np.bincount([kinds[key] for key in buffer.keys.tolist()], minlength=4)
    assert held["queue"].max() > 0.7 * 64
    assert held["even"].min() >= 6
    assert held["even"].max() < 0.6 * 64


def test_every_cluster_is_drawn_alike() -> None:
    features, _ = imbalanced(0)
    buffer = RareMemoryBuffer(2000, policy=ClusterBalanced(clusters=6))
    rare = Flags(torch.ones(2000), torch.ones(2000, dtype=torch.bool))
    buffer.add(list(range(2000)), rare, features=features)
    rows = buffer.state_dict()["rows"]
    cluster = dict(zip(rows["key"].tolist(), rows["cluster"].tolist(), strict=True))
    assert np.bincount(list(cluster.values())).max() > 5 * np.bincount(list(cluster.values())).min()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([buffer.draw(3, generator=generator).keys for _ in range(800)])
    counts = np.bincount([cluster[key] for key in drawn.tolist()], minlength=6)
    assert evenness(counts, drawn=0) < far_beyond(5)


# ---------------------------------------------------------------------- a policy of one's own


class HighestLeaves(Policy):
    """Of the highest scores, the newest leaves; and only even keys are ever drawn."""

    columns = {"even": "int64", "refreshed": "int64"}  # noqa: RUF012  # read only
    drawn_by = ("even",)

    def __init__(self, *, least: float) -> None:
        self.least = least

    def admit(self, held: Held, score: float, seed: int) -> bool:
        return score >= self.least

    def enter(self, held: Held, place: int) -> None:
        held.rows["even"][place] = held.rows["key"][place] % 2 == 0

    def refresh(self, held: Held, place: int) -> None:
        held.rows["refreshed"][place] += 1

    def evict(self, held: Held, seed: int) -> int | None:
        if len(held) <= held.limit:
            return None
        return max(range(len(held)), key=lambda i: (held.rows["score"][i], held.rows["entry"][i]))

    def draw(self, rows: Any, count: int, allowed: Any, seed: int) -> Any:
        even = rows["even"] == 1
        free = [i for i in range(len(rows)) if even[i] and (allowed is None or allowed(i))]
        from raremix.memory.policies.base import Chosen

        return Chosen(free[:count], [1.0] * len(free[:count]))


def test_a_policy_of_ones_own_admits_evicts_draws_and_is_saved() -> None:
    def build() -> RareMemoryBuffer:
        return RareMemoryBuffer(3, policy=HighestLeaves(least=1.0))

    buffer = build()
    buffer.attach(2)
    scores = [0.5, 3.0, 2.0, 5.0, 1.0, 4.0]
    offer(buffer, list(range(6)), scores)
    assert buffer.keys.tolist() == [1, 2, 4]
    assert buffer.metrics()["refused_policy"] == 1
    offer(buffer, [2], [2.5])
    twin = build()
    twin.attach(2)
    twin.load_state_dict(through_a_file(buffer.state_dict()))
    for each in (buffer, twin):
        assert each.draw_ahead(0, 3, taken=(), below=None, seed=0).keys == [2, 4]
        assert each.draw_ahead(0, 3, taken={4}, below=None, seed=0).keys == [2]
        rows = each.state_dict()["rows"]
        assert dict(zip(rows["key"].tolist(), rows["refreshed"].tolist(), strict=True))[2] == 1
    assert "HighestLeaves(least=1.0)" in repr(buffer)


class NobodyLeaves(Policy):
    def evict(self, held: Held, seed: int) -> int | None:
        return None


def test_a_policy_that_lets_nobody_go_is_refused_by_name() -> None:
    buffer = RareMemoryBuffer(2, policy=NobodyLeaves())
    offer(buffer, [1, 2])
    with pytest.raises(OptionError, match=r"NobodyLeaves\(\) named None to leave of 3 entries"):
        offer(buffer, [3])


class NamesTheLast(Policy):
    def evict(self, held: Held, seed: int) -> int | None:
        return -1 if len(held) > held.limit else None


def test_a_policy_that_names_no_place_is_refused() -> None:
    buffer = RareMemoryBuffer(1, policy=NamesTheLast())
    offer(buffer, [1])
    with pytest.raises(OptionError, match=r"named -1 to leave of 2 entries.*the place of one"):
        offer(buffer, [2])


def test_a_name_instead_of_a_policy_is_refused() -> None:
    with pytest.raises(OptionError, match=r"policy as an object such as FIFO\(\).*got 'fifo'"):
        RareMemoryBuffer(2, policy="fifo")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [LeastRedundant(), ClusterBalanced()])
def test_a_policy_that_needs_features_says_so(policy: Policy) -> None:
    buffer = RareMemoryBuffer(2, policy=policy)
    assert buffer.needs_features
    with pytest.raises(OptionError, match=r"needs features for .*\(.*pass the embeddings"):
        offer(buffer, [1])
