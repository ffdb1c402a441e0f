"""Drawing from a buffer, as it was some steps ago or as it is.

Which entries may be drawn is settled here; which of them are is the policy's. It admits nobody.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from raremix.errors import LagError, RaremixWarning
from raremix.memory.columns import Columns
from raremix.memory.entries import Drawn
from raremix.memory.held import BASE_COLUMNS
from raremix.memory.ledger import Ledger
from raremix.memory.limits import SamplesPerInsert, UseLimits
from raremix.memory.policies.base import Policy
from raremix.memory.timeline import BEFORE, Timeline

__all__ = ["Replays"]

_NOTHING = BEFORE - 1


class Replays:
    """The draws of a buffer.

    Args:
        policy: Draws from those that may be drawn.
        limits: Of single entries.
        rate: Of all together; None for no limit.
        share: Which share of the admissions this process is to replay.
    """

    def __init__(
        self,
        policy: Policy,
        limits: UseLimits,
        rate: SamplesPerInsert | None,
        share: Callable[[], float],
    ) -> None:
        own = {**BASE_COLUMNS, **policy.columns}
        names = dict.fromkeys(("key", "entry", "born", *policy.drawn_by))
        self.timeline = Timeline({name: own[name] for name in names})
        self.ledger = Ledger()
        self.ahead_most = 0
        self.outside = 0
        self._said_outside = False
        self.viewed = _NOTHING  # the last step that a draw has relied on
        self._policy, self._limits, self._rate, self._share = policy, limits, rate, share
        self._counts = limits.count_draws or rate is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Which columns a draw reads."""
        return tuple(self.timeline.dtypes)

    def ahead(
        self,
        number: int,
        count: int,
        *,
        now: int,
        taken: Collection[int],
        below: int | None,
        seed: int,
    ) -> Drawn:
        """Draw for batch ``number`` what was held ``lag`` steps before, when step ``now`` is open."""
        lag = self.timeline.lag
        step = number - lag
        if not lag or step > now:
            raise LagError(
                f"RareMemoryBuffer was asked to draw for batch {number} when it was at batch {now}, "
                f"further ahead than a lag of {lag}; let one BufferedMixSampler draw from it, and "
                "pass that a lag of at least num_workers * prefetch_factor + 1."
            )
        if max(step, BEFORE) < self.timeline.first:
            raise LagError(
                f"RareMemoryBuffer was asked to draw for batch {number}, from what it held after batch "
                f"{step}, but it is at batch {now} and remembers {lag} batches. Load the states of "
                "buffer and loader together, and give two loaders that run at once a buffer each."
            )
        self.ahead_most = max(self.ahead_most, number - now)
        step = max(step, BEFORE)
        self.viewed = max(self.viewed, step)
        drawn = self._draw(self.timeline.at(step), number, count, step, taken, below, seed)
        if self._counts:
            self.ledger.note(number, drawn.entries)
        return drawn

    def at_once(
        self, rows: Columns, count: int, *, step: int, taken: Collection[int], seed: int
    ) -> Drawn:
        """Draw from what is held in ``step``, for use in this very step."""
        drawn = self._draw(rows, step + 1, count, step, taken, None, seed)
        if self._counts:
            self.ledger.note_delivered(step + 1, drawn.entries)
        return drawn

    def _draw(
        self,
        rows: Columns,
        number: int,
        count: int,
        step: int,
        taken: Collection[int],
        below: int | None,
        seed: int,
    ) -> Drawn:
        if self._rate is not None:
            # Counted as feedback counts them, and those whose feedback could not be there yet: a
            # batch that never gets feedback is missing in what may be admitted and drawn alike.
            share = self._share()
            left = self._rate.draws_left(
                admissions=rows.came * share,
                replays=rows.replayed * share + self.ledger.since(step),
            )
            count = min(count, left)
        if not count or not len(rows):
            return Drawn([], [], [], [])
        keys, entries, born = rows["key"], rows["entry"], rows["born"]
        barred = self._barred(rows, number, step, below)
        blocked = int(np.count_nonzero(barred)) if barred is not None else 0
        for key in rows.place.keys() & taken if taken else ():
            blocked += barred is None or not bool(barred[rows.place[key]])

        def allowed(place: int) -> bool:
            return keys[place] not in taken and (barred is None or not barred[place])

        free = None if not blocked else allowed
        places, chances = self._policy.draw(rows, count, free, seed)
        if chances is None:
            chances = [len(places) / max(len(rows) - blocked, 1)] * len(places)
        at = np.array(places, dtype=np.int64)
        chosen = entries[at].tolist()
        return Drawn(keys[at].tolist(), chosen, chances, (step - born[at]).tolist())

    def _barred(self, rows: Columns, number: int, step: int, below: int | None) -> Any:
        """(n,) bool of the entries that nobody may draw now; None if there are none for sure."""
        barred = None
        limits = self._limits
        if below is not None:
            least, greatest = rows.key_range
            if least < 0 or greatest >= below:
                keys = rows["key"]
                barred = (keys < 0) | (keys >= below)
                self.outside += int(barred.sum())
                if barred.all() and not self._said_outside:
                    self._said_outside = True
                    warnings.warn(
                        f"RareMemoryBuffer holds {len(keys)} samples, such as {int(keys[0])}, and all lie "
                        f"outside of the dataset, whose ids end below {below}: none can be replayed. "
                        "Admit ids of the dataset that is wrapped; regions of frames need a FrameViews, "
                        "not a part of one.",
                        RaremixWarning,
                        stacklevel=2,
                    )
        if limits.max_age_steps is not None:
            old = step - rows["born"] > limits.max_age_steps
            barred = old if barred is None else barred | old
        if limits.count_draws and len(self.ledger):
            ledger, most = self.ledger, limits.max_uses
            worn = np.zeros(len(rows), bool)
            for place, entry in enumerate(rows["entry"].tolist()):
                last = ledger.last(entry)
                if last is not None:
                    worn[place] = (most is not None and ledger.uses(entry) >= most) or (
                        limits.cooldown_steps > 0
                        and last >= 0
                        and number - last <= limits.cooldown_steps
                    )
            barred = worn if barred is None else barred | worn
        return barred

    def begin(self, held: Columns, lag: int) -> None:
        """A loader begins to count its batches; what is held now was there before."""
        self.timeline.begin(held, lag)
        self.ledger.restart()
        self.viewed = _NOTHING

    def advance(self, step: int, held: Columns) -> None:
        """Batch number ``step`` was delivered."""
        timeline = self.timeline
        if timeline.lag:
            timeline.forget(step + 1 - timeline.lag)
        if self._counts:
            self.ledger.deliver(step)
            self.ledger.forget(timeline.first if timeline.lag else step)
            if len(self.ledger) > 2 * len(held) + 1024:
                base = timeline.at(step + 1 - timeline.lag) if timeline.lag else held
                known = {*held["entry"].tolist(), *base["entry"].tolist()}
                # Who came after the base is still to be drawn, even if gone by now.
                came = base.came
                self.ledger.keep(lambda entry: entry in known or entry >= came)

    def rewind(self) -> None:
        """The batches on their way will be drawn again."""
        self.timeline.rewind()
        self.ledger.rewind()

    def state(self, step: int) -> dict[str, Any]:
        """Plain numbers and arrays, as if nothing had been drawn ahead of batch ``step``."""
        viewed = min(self.viewed, max(step - self.timeline.lag, _NOTHING))
        return {
            "timeline": self.timeline.state(),
            "ledger": self.ledger.state(),
            "viewed": viewed,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.timeline.load(state["timeline"])
        self.ledger.load(state["ledger"])
        self.viewed = state["viewed"]
