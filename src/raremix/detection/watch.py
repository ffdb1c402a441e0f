"""Watches a reference for what makes its scores worthless: collapse, and a restarted encoder.

It returns what there is to say, and leaves it to the detector to say and to act.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank
from raremix.detection.health import effective_rank, evenly, newest, relative_spread
from raremix.protocols import State
from raremix.state import open_state, sealed_state

__all__ = ["ReferenceWatch"]

_LOOK_EVERY = 64  # batches; a look takes some 20 ms
_ENOUGH_ROWS = 256  # fewer say little of a rank
_LOW_RANK = 10.0  # where an encoder of 80 dimensions or more is worth a warning
_COLLAPSED_RANK = 3.0  # where nothing is called rare any more; random and early encoders lie above
_RANK_DROP, _SPREAD_DROP = 0.25, 1e-3  # beside the best seen
_FADE = 0.98  # a look, of the best seen: a lower rank that lasts is the new normal
_REVISITS = 128  # compared before a restart is believed
_OTHERS = 64  # rows that a revisit is compared with
# At chance it is 0.5, and the mean of 128 lies above 0.6 once in 20,000; a sound encoder's is
# above 0.9.
_AGREEMENT = 0.6


class ReferenceWatch:
    """Tells from the rows of a bank whether distances to them mean anything.

    - Collapse: its newest rows span hardly any directions, or far fewer than others before.
    - Restart: samples seen again are no nearer to their own earlier embedding than to others. What
      was kept then belongs to another encoder. It needs ids.
    """

    def __init__(self) -> None:
        self.clear()
        self.restarts = 0

    def clear(self) -> None:
        """Forget what was seen of a reference."""
        self.is_collapsed = False
        self._best_rank, self._best_spread = 0.0, 0.0
        self._wait = 0
        self._told: list[str] = []
        self._agreements: deque[float] = deque(maxlen=_REVISITS)

    @property
    def agreement(self) -> float:
        """Share of others that lie farther from a revisit than its own earlier row; NaN if none."""
        known = self._agreements
        return sum(known) / len(known) if known else float("nan")

    def look(self, bank: ReferenceBank, *, now: bool = False) -> str | None:
        """Look at the bank, now or when it is time; return a warning that was not given before."""
        self._wait -= 1
        if len(bank) < _ENOUGH_ROWS or not (now or self._wait < 0):
            return None
        self._wait = _LOOK_EVERY
        rows = newest(bank)
        rank, spread = effective_rank(rows), relative_spread(rows)
        self._best_rank = max(rank, _FADE * self._best_rank)
        self._best_spread = max(spread, _FADE * self._best_spread)
        dim = rows.shape[1]
        self.is_collapsed = (
            rank < _least_rank(rows)
            or rank < _RANK_DROP * self._best_rank
            or spread < _SPREAD_DROP * self._best_spread
        )
        if self.is_collapsed:
            return self._tell(
                "collapse",
                f"the embeddings have collapsed: the last {len(rows)} span {rank:.1f} of {dim} "
                f"directions (at best {self._best_rank:.1f}). Nothing is called rare until they "
                "spread again; check the learning rate, the loss and the layer.",
            )
        if "collapse" in self._told:
            self._told.remove("collapse")
        if rank < min(_LOW_RANK, dim / 8):
            return self._tell(
                "low rank",
                f"the embeddings span only {rank:.1f} of {dim} directions, so that few kinds of "
                "images can be told apart; check the layer, and how long the encoder was trained.",
            )
        return None

    def fits(self, neighbors: int, rate: float, rows: int) -> str | None:
        """Return a warning, once, if a scorer asks for more neighbours than are to be rare."""
        # Up to 10 neighbours are few in any reference worth having; fewer see single outliers.
        if neighbors <= max(10.0, rate * rows):
            return None
        return self._tell(
            "k",
            f"k means {neighbors} neighbours of {rows} rows, more than the {rate:.3g} of them that "
            f"may be called rare. Classes of up to {neighbors} then count as rare and compete for "
            f"the flags; a k of at most {max(10, int(rate * rows))} looks at smaller ones.",
        )

    def _tell(self, about: str, message: str) -> str | None:
        if about in self._told:
            return None
        self._told.append(about)
        return message

    def compare(self, rows: Tensor, ids: Tensor, bank: ReferenceBank) -> Tensor:
        """How each of the (batch,) rows agrees with its own earlier row; NaN for new samples.

        The share of other rows of the bank that lie farther from it; 1 where it is recognised,
        0.5 by chance. Changes nothing.
        """
        agreement = torch.full((len(rows),), torch.nan, dtype=torch.float32, device=rows.device)
        if len(bank) < _OTHERS or bank.ids is None or bank.dim != rows.shape[1]:
            return agreement
        places = bank.find(ids)
        again = (places >= 0).nonzero().squeeze(1)[-_REVISITS:]
        if len(again) == 0:
            return agreement
        reference = bank.rows.to(rows.device)
        here = again.to(rows.device)
        own = reference[places[again].to(rows.device)]
        others = evenly(reference, _OTHERS)
        other_ids = evenly(bank.ids, _OTHERS).to(rows.device)
        is_other = other_ids[None] != ids[again].to(rows.device)[:, None]
        middle = others.mean(dim=0)
        gaps = torch.cdist(rows[here] - middle, others - middle)
        to_own = (rows[here] - own).norm(dim=1, keepdim=True)
        farther = (gaps > to_own).float() + 0.5 * (gaps == to_own).float()
        counted = is_other.sum(dim=1).clamp(min=1)
        agreement[here] = (farther * is_other).sum(dim=1) / counted
        return agreement

    def seems_restarted(self, agreement: Tensor) -> bool:
        """Take in what ``compare`` said of all ranks; say whether the encoder may be another."""
        # The GPU waits here, once a step.
        self._agreements.extend(value for value in agreement.tolist() if value == value)
        # Where all rows are alike none is recognised, and forgetting them would not help.
        return (
            len(self._agreements) == _REVISITS
            and not self.is_collapsed
            and self.agreement < _AGREEMENT
        )

    def restarted(self, rows: Tensor) -> str | None:
        """Return a warning if what seems restarted is, by the (n, dim) finite rows of this step.

        The bank's rows must then be forgotten. Rows that span next to nothing are no new encoder's:
        they are a collapse that the bank does not show yet, and it is looked at until it does.
        """
        if effective_rank(rows) < min(_least_rank(rows), len(rows) / 2):
            self._wait = 0
            return None
        found, restarts = self.agreement, self.restarts + 1
        self.clear()
        self.restarts = restarts
        return (
            f"the last {_REVISITS} samples seen again were no nearer to their own earlier embedding "
            f"than to others ({found:.2f}; 0.5 is chance): the encoder was restarted or has changed "
            "altogether. The reference, the threshold and the score histories begin anew."
        )

    def health(self) -> dict[str, float]:
        """What the alarms stand at, to log."""
        return {
            "is_collapsed": float(self.is_collapsed),
            "restarts": float(self.restarts),
            "revisit_agreement": self.agreement,
        }

    def state_dict(self) -> State:
        """Everything needed to go on as if never stopped."""
        content = {name: getattr(self, name) for name in _STATE}
        content["_told"], content["_agreements"] = list(self._told), list(self._agreements)
        return sealed_state(
            "ReferenceWatch", 1, {name.lstrip("_"): content[name] for name in _STATE}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        keys = [name.lstrip("_") for name in _STATE]
        content = open_state(state, kind="ReferenceWatch", version=1, keys=keys)
        for name in _STATE:
            setattr(self, name, content[name.lstrip("_")])
        self._told = list(self._told)
        self._agreements = deque(self._agreements, maxlen=_REVISITS)


_STATE = (
    "is_collapsed",
    "restarts",
    "_best_rank",
    "_best_spread",
    "_wait",
    "_told",
    "_agreements",
)


def _least_rank(rows: Tensor) -> float:
    """The rank below which (n, dim) rows count as collapsed, whatever came before."""
    return min(_COLLAPSED_RANK, rows.shape[1] / 8)
