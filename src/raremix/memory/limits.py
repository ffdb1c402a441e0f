"""How often, how soon and how long an entry may be drawn.

Limits are settings. What they limit is counted by the buffer.
"""

import math
from dataclasses import dataclass

from raremix.errors import OptionError
from raremix.options import check_count, check_number

__all__ = ["SamplesPerInsert", "UseLimits"]


@dataclass(frozen=True)
class UseLimits:
    """What ``RareMemoryBuffer`` was told of single entries."""

    max_uses: int | None = None
    cooldown_steps: int = 0
    max_age_steps: int | None = None

    def __post_init__(self) -> None:
        caller = "RareMemoryBuffer"
        check_count(caller, "cooldown_steps", self.cooldown_steps, least=0)
        for name in ("max_uses", "max_age_steps"):
            value = getattr(self, name)
            if value is not None:
                check_count(caller, name, value, least=1)

    @property
    def count_draws(self) -> bool:
        """Whether draws have to be counted entry by entry."""
        return self.max_uses is not None or self.cooldown_steps > 0


@dataclass(frozen=True)
class SamplesPerInsert:
    """Holds the number of replays per admitted sample near a ratio.

    How often a sample is replayed before it leaves a full queue is replays / admissions, whatever
    the capacity: with 8 replays and 8 admissions a batch each sample is seen once more, with one
    admission in a hundred batches 800 times. With D = ratio * admissions - replays, a sample is
    admitted only while D would stay at most ``error``, and replays are drawn only while D stays at
    least -``error``. So too many flags are thinned out, and too few are not worn out. An empty buffer
    admits a sample whatever D is: what left unused will not be replayed any more.

    Args:
        ratio: Replays per admission, above 0. Published memories use 1 to 13.
        error: How far D may stray, at least ``ratio`` and 1. Before anything was replayed, the
            buffer can take in error / ratio samples, so ``ratio * capacity`` lets it fill first.

    Source:
        The rate limiter of Reverb (Cassirer et al., 2021, https://arxiv.org/abs/2102.04736).

    Example:
        >>> limit = SamplesPerInsert(8, error=256)
        >>> limit.may_admit(admissions=31, replays=0), limit.may_admit(admissions=32, replays=0)
        (True, False)
        >>> limit.draws_left(admissions=1, replays=260)
        4
    """

    ratio: float
    error: float

    def __post_init__(self) -> None:
        check_number("SamplesPerInsert", "ratio", self.ratio, above=0.0)
        check_number("SamplesPerInsert", "error", self.error, least=0.0)
        if self.error < max(self.ratio, 1.0):
            raise OptionError(
                f"SamplesPerInsert expects an error of at least {max(self.ratio, 1.0):g}, the effect "
                f"of one admission or one replay, got {self.error:g}; a narrower band stops both."
            )

    def may_admit(self, *, admissions: int, replays: int) -> bool:
        """Whether one more sample may come in."""
        return self.ratio * (admissions + 1) - replays <= self.error

    def draws_left(self, *, admissions: float, replays: float) -> int:
        """How many replays may be drawn."""
        return max(math.floor(self.ratio * admissions - replays + self.error), 0)
