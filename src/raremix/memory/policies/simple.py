"""The policies that look at no features: first in first out, a reservoir, the rarest, two tiers."""

from collections.abc import Callable

import numpy as np

from raremix.memory.columns import Columns
from raremix.memory.held import Held
from raremix.memory.policies.base import Chosen, Policy, draw_weighted
from raremix.options import check_number
from raremix.seeds import uniforms

__all__ = ["FIFO", "RarestK", "Reservoir", "TwoTier"]


class FIFO(Policy):
    """First in, first out: who was admitted longest ago leaves.

    The default, and fair where the data is shuffled. How long an entry stays is set by how
    many are admitted, and each is drawn about replays / admissions times, whatever the capacity:
    see ``SamplesPerInsert``.

    Source:
        The rule this project began from. On shuffled data it is as good as cleverer ones; on
        correlated streams it is not: Purushwalkam et al., The Challenges of Continuous
        Self-Supervised Learning, ECCV 2022, https://arxiv.org/abs/2203.12710.
    """

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        return _oldest(held) if len(held) > held.limit else None


class Reservoir(Policy):
    """An even sample of all that was ever offered.

    The n-th sample offered is admitted with probability capacity / n, and one at random leaves.

    Source:
        Vitter, Random Sampling with a Reservoir, ACM TOMS 11, 1985 (algorithm R),
        https://doi.org/10.1145/3147.3165.
    """

    def admit(self, held: Held, score: float, seed: int) -> bool:
        """See ``Policy``."""
        return len(held) < held.limit or uniforms(seed, 1)[0] * held.offers < held.limit

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        if len(held) <= held.limit:
            return None
        newest = int(held.rows["entry"].argmax())
        # Of the others: the one that came was admitted for sure.
        other = int(uniforms(seed, 1, start=1)[0] * (len(held) - 1))
        return other + (other >= newest)


class RarestK(Policy):
    """Those of the highest scores; who has the lowest leaves, the older one of two alike.

    A score belongs to the time it was given in. It is given anew whenever the sample is seen or
    replayed, but who is never drawn keeps an old one: combine with ``max_age_steps``.
    """

    def admit(self, held: Held, score: float, seed: int) -> bool:
        """See ``Policy``."""
        return len(held) < held.limit or score > held.rows["score"].min()

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        if len(held) <= held.limit:
            return None
        scores = held.rows["score"]
        lowest = np.flatnonzero(scores == scores.min())
        return int(lowest[held.rows["entry"][lowest].argmin()])


class TwoTier(Policy):
    """What came last, and an even sample of what came before.

    The newest entries form a queue. Who drops out of it moves into the second tier, where it is
    kept as in ``Reservoir``. Both tiers are drawn from in fixed shares.

    Args:
        recent: Share of the capacity that the queue may hold, in (0, 1).
        recent_draws: Share of the draws that the queue gets, in [0, 1].

    Source:
        Yang and Ren, Memory Storyboard, 2025, keep a queue of 5,000 and a reservoir of 45,000.
    """

    columns = {"tier": "int64"}  # noqa: RUF012  # read only
    drawn_by = ("tier",)

    def __init__(self, *, recent: float = 0.25, recent_draws: float = 0.5) -> None:
        self.recent = check_number("TwoTier", "recent", recent, above=0.0, below=1.0)
        self.recent_draws = check_number(
            "TwoTier", "recent_draws", recent_draws, least=0.0, most=1.0
        )

    def enter(self, held: Held, place: int) -> None:
        """See ``Policy``."""
        held.rows["tier"][place] = 0
        if "left_queue" not in held.shared:
            held.shared["left_queue"] = np.zeros(1, np.int64)

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        tier = held.rows["tier"]
        queue = max(1, round(self.recent * held.limit))
        second = held.limit - queue
        waiting = np.flatnonzero(tier == 0)
        if len(waiting) <= queue:
            return _oldest(held) if len(held) > held.limit else None
        oldest = int(waiting[held.rows["entry"][waiting].argmin()])
        seen = held.shared["left_queue"]
        seen += 1
        kept = np.flatnonzero(tier == 1)
        if len(kept) < second:
            held.set("tier", [oldest], [1])
            return self.evict(held, seed)
        chance, which = uniforms(seed, 2, start=2 * int(seen[0]))
        if second == 0 or chance * seen[0] >= second:
            return oldest
        held.set("tier", [oldest], [1])
        return int(kept[int(which * len(kept))])

    def draw(
        self, rows: Columns, count: int, allowed: Callable[[int], bool] | None, seed: int
    ) -> Chosen:
        """See ``Policy``."""
        recent = rows["tier"] == 0
        share = np.where(recent, self.recent_draws, 1.0 - self.recent_draws)
        number = np.where(recent, recent.sum(), (~recent).sum())
        if recent.all() or not recent.any():
            share = np.ones(len(rows))  # there is but one tier to draw from
        return draw_weighted(share / np.maximum(number, 1), count, allowed, seed)


def _oldest(held: Held) -> int:
    return int(held.rows["entry"].argmin())
