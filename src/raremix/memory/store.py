"""Who comes into a buffer, is refreshed, and leaves.

Steps and ranks are settled before; draws are elsewhere.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raremix.errors import OptionError
from raremix.memory.entries import BufferEntries
from raremix.memory.held import Held
from raremix.memory.limits import SamplesPerInsert, UseLimits
from raremix.memory.offers import Offers
from raremix.memory.pixels import PixelSlots
from raremix.memory.policies import FIFO, Policy
from raremix.seeds import derive_seed

__all__ = ["Store"]

_COUNTS = (
    *("admissions", "evictions", "expired", "used_up", "replays", "late", "stale"),
    *("refused_policy", "refused_duplicate", "refused_rate"),
)


class Store:
    """What a buffer holds.

    Args:
        held: The entries; empty.
        policy: Says who may come in and who has to leave.
        limits: Of single entries.
        rate: Of all together; None for no limit.
        max_bytes: Of pixels; None for no limit.
        min_distance: To the features held, below which a sample is a duplicate.
        seed: Of what the policy draws.

    Attributes:
        held: The entries.
        pixels: Their pixels.
        counts: What happened so far.
        replayed_last: Keys of the replays that came back last, since the start of this process.
    """

    def __init__(
        self,
        held: Held,
        policy: Policy,
        limits: UseLimits,
        rate: SamplesPerInsert | None,
        *,
        max_bytes: int | None,
        min_distance: float,
        seed: int,
    ) -> None:
        self.held, self.pixels = held, PixelSlots(held.capacity + 1)
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.replayed_last: deque[int] = deque(maxlen=1024)
        self._policy, self._limits, self._rate = policy, limits, rate
        self._max_bytes, self._min_distance = max_bytes, min_distance
        self._seed = derive_seed(seed)

    def take_in(self, offers: Offers, step: int) -> int:
        """Let in, refresh and let go what these offers ask for in ``step``; how many came in."""
        held, counts = self.held, self.counts
        before = counts["admissions"]
        self._expire(step)
        features = None if offers.features is None else offers.features.numpy()
        if self._come_together(offers):
            self._enter_together(offers, step, features)
            return counts["admissions"] - before
        crops = offers.crops
        shape = None if crops is None else tuple(crops.shape[1:])
        to_write: dict[int, int] = {}  # by slot, the row of crops that belongs there
        crop = -1  # only rows that are wanted have one
        try:
            for row, (key, score, entry, wanted, replayed) in enumerate(
                zip(
                    offers.keys.tolist(),
                    offers.scores.tolist(),
                    offers.entry.tolist(),
                    offers.is_wanted.tolist(),
                    offers.is_replay.tolist(),
                    strict=True,
                )
            ):
                crop += wanted
                feature = None if features is None else features[row]
                place = held.rows.place.get(key)
                if replayed:
                    counts["replays"] += 1
                    self.replayed_last.append(key)
                if replayed and place is not None and entry not in (-1, held.rows["entry"][place]):
                    place = None  # it left and came again: what was drawn is the one before
                if place is not None:
                    self._refresh(place, score, feature, replayed)
                elif replayed:
                    counts["stale"] += 1  # it left between being drawn and being seen
                elif wanted and self._may_enter(score, feature):
                    slot = -1 if shape is None else self.pixels.claim(shape)
                    to_write[slot] = crop
                    self._enter(key, score, step, slot, feature)
        finally:
            if crops is not None:
                self.pixels.write(to_write, crops)
        self._count_replays(counts["replays"] - held.rows.replayed)
        return counts["admissions"] - before

    def _count_replays(self, count: int) -> None:
        """Let draws know how many have come back."""
        if count:
            self.held.rows.replayed += count
            if self.held.record is not None:
                self.held.record(("replayed", count, None, None))

    def _come_together(self, offers: Offers) -> bool:
        """Whether all of them come in and the oldest leave, whatever happens in between."""
        if (
            type(self._policy) is not FIFO
            or self._rate is not None
            or self._max_bytes is not None
            or self._min_distance > 0
            or not 1 < len(offers.keys) <= self.held.capacity
            or not offers.is_wanted.all()
            or offers.is_replay.any()
        ):
            return False
        keys = set(offers.keys.tolist())
        return len(keys) == len(offers.keys) and self.held.rows.place.keys().isdisjoint(keys)

    def _enter_together(self, offers: Offers, step: int, features: Any) -> None:
        """What ``_enter`` does for one after the other, several times as fast."""
        held, counts, count = self.held, self.counts, len(offers.keys)
        entry = held.rows["entry"]
        over = max(len(held) + count - held.capacity, 0)
        # Of a queue from which nobody else left, these are the oldest.
        oldest = np.flatnonzero(entry < counts["admissions"] - len(held) + over)
        if len(oldest) != over:
            oldest = np.argsort(entry)[:over]
        oldest = oldest[np.argsort(entry[oldest])]
        for slot in held.rows["slot"][oldest].tolist():
            if slot >= 0:
                self.pixels.free(slot)
        crops, slots = offers.crops, [-1] * count
        if crops is not None:
            shape = tuple(crops.shape[1:])
            slots = [self.pixels.claim(shape) for _ in range(count)]
            self.pixels.write({slot: row for row, slot in enumerate(slots)}, crops)
        values = {
            "key": offers.keys,
            "entry": np.arange(counts["admissions"], counts["admissions"] + count),
            "score": offers.scores,
            "born": np.full(count, step),
            "slot": np.array(slots),
        }
        held.exchange(oldest, values, features)
        held.limit = held.capacity
        held.offers += count
        counts["admissions"] += count
        counts["evictions"] += over

    def _refresh(self, place: int, score: float, feature: Any, replayed: bool) -> None:
        held = self.held
        if math.isfinite(score):
            held.set_one("score", place, score)
        if feature is not None and feature.any():
            held.set_feature(place, feature)
        self._policy.refresh(held, place)
        if replayed:
            held.rows["uses"][place] += 1
            most = self._limits.max_uses
            if most is not None and held.rows["uses"][place] >= most:
                self.counts["used_up"] += 1
                self._leave(place)

    def _may_enter(self, score: float, feature: Any) -> bool:
        held, counts, rate = self.held, self.counts, self._rate
        if feature is not None and self._min_distance > 0 and len(held):
            assert held.features is not None
            if 1.0 - (held.features @ feature).max() < self._min_distance:
                counts["refused_duplicate"] += 1
                return False
        if (
            rate is not None
            and len(held)
            and not rate.may_admit(admissions=counts["admissions"], replays=counts["replays"])
        ):
            counts["refused_rate"] += 1
            return False
        held.offers += 1
        held.limit = self._room()
        if not self._policy.admit(held, score, self._offer_seed()):
            counts["refused_policy"] += 1
            return False
        return True

    def _enter(self, key: int, score: float, step: int, slot: int, feature: Any) -> None:
        held = self.held
        entry = self.counts["admissions"]
        values = {"key": key, "entry": entry, "born": step, "slot": slot, "score": score}
        place = held.append(values, feature)
        self.counts["admissions"] += 1
        self._policy.enter(held, place)
        held.announce(place)
        self._make_room()

    def _make_room(self) -> None:
        held, seed = self.held, self._offer_seed()
        while True:
            held.limit = self._room()
            if self._max_bytes is not None and self.pixels.nbytes > self._max_bytes:
                held.limit = min(held.limit, len(held) - 1)
            place = self._policy.evict(held, seed)
            if place is None and len(held) <= held.limit:
                return
            if place is None or not 0 <= place < len(held):
                raise OptionError(
                    f"{self._policy!r} named {place} to leave of {len(held)} entries, where "
                    f"{held.limit} may be held; its evict must give the place of one of them."
                )
            self._leave(place)
            seed += 1

    def _offer_seed(self) -> int:
        """Another one for each offer; what is drawn from it is mixed well."""
        return (self._seed + self.held.offers * 0xD1342543DE82EF95) % 2**64

    def _room(self) -> int:
        """How many entries there may be: the bytes too allow no more, if all have crops."""
        capacity = self.held.capacity
        if self._max_bytes is None:
            return capacity
        shape = self.pixels.shape
        if shape is None or len(self.pixels) < len(self.held):
            return capacity
        return min(capacity, self._max_bytes // math.prod(shape))

    def _expire(self, step: int) -> None:
        if self._limits.max_age_steps is None:
            return
        while len(self.held):
            born = self.held.rows["born"]
            oldest = int(born.argmin())
            if step - born[oldest] <= self._limits.max_age_steps:
                return
            self.counts["expired"] += 1
            self._leave(oldest)

    def _leave(self, place: int) -> None:
        rows = self.held.rows
        entry, slot = rows["entry"][place].item(), rows["slot"][place].item()
        if slot >= 0:
            self.pixels.free(slot)
        self.held.remove(place)
        self._policy.leave(self.held, entry)
        self.counts["evictions"] += 1

    def entries(
        self, places: Sequence[int], step: int, chances: Sequence[float] | None = None
    ) -> BufferEntries:
        """Copies of the entries in these places."""
        rows, features = self.held.rows, self.held.features
        at = np.asarray(places, dtype=np.int64)
        slots = rows["slot"][at]
        has_pixels = len(slots) > 0 and bool(slots.min() >= 0)
        chance = np.ones(len(at)) if chances is None else np.asarray(chances)
        return BufferEntries(
            keys=torch.from_numpy(rows["key"][at]),
            scores=torch.from_numpy(rows["score"][at].astype(np.float32)),
            crops=self.pixels.take(slots) if has_pixels else None,
            features=None if features is None else torch.from_numpy(features[at]),
            entry=torch.from_numpy(rows["entry"][at]),
            probability=torch.from_numpy(chance.astype(np.float32)),
            age=torch.from_numpy(np.maximum(step - rows["born"][at], 0)),
            uses=torch.from_numpy(rows["uses"][at]),
        )
