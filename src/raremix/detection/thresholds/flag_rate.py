"""A threshold that holds a budget of flags while the scores drift, jump or change their shape."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raremix.detection.thresholds.calibration import calibration_scores
from raremix.detection.thresholds.ranks import (
    exceeded_by,
    no_scores,
    rank_agreement,
    two_sample_distance,
)
from raremix.errors import OptionError
from raremix.inputs import ArrayLike
from raremix.options import check_count, check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["FlagRate"]

_log = logging.getLogger(__name__)

_NEWEST = 256
"""Scores that count as new, and those kept when the others no longer tell anything."""

_REGIME_DISTANCE = 0.2
"""Between 256 new scores and 1,024 older ones of the same kind, chance reaches it once in 6e6."""

_REVISITS = 512
"""Revisits whose ranks are compared; chance alone reaches a correlation of 0.17 in one of 1e4."""

_COMMON = 4.0
"""A score that more than this many times the budget exceed is not rare, whatever is owed."""


class FlagRate:
    """Calls a share of the stream rare and holds that share while the scores drift or jump.

    The threshold is a quantile of the last ``window`` scores. Three things keep its rate at the
    budget when the scores to come are not like those that came:

    - An account. Every score adds ``rate`` to the flags that are owed, every flag takes one off,
      and the level of the quantile, at most half above or below the budget, is set so that the
      account comes back to zero.
    - A limit to the account, which ``value_for`` keeps by looking at the batch in hand. Over any
      run of whole batches, the flags differ from ``rate`` times the scores by at most ``slack``.
    - A reset. When the newest 256 scores are no longer distributed like the older ones
      (Kolmogorov-Smirnov distance above 0.2), the older ones are forgotten, ``resets`` counts one
      more, and a line is logged.

    At the default budget of 5 %, 4.1 to 5.9 % of any 4,096 consecutive scores were flagged in
    batches of 1 to 512, and 3.7 to 5.9 % in batches of 1,024. Measured after the warm-up over
    streams of 61,440 scores that hold still, drift threefold up or down, over the whole stream or
    within 12,000, narrow, widen, have heavy tails or ten values only, and that jump by half up or
    down, alone or while they drift.

    Rare samples may come in clusters: a batch may flag up to half of ``slack`` more than its share.
    A run that begins or ends within a large batch may cut a cluster, or the batch in which the
    scores jumped: with clusters of 20 inside batches of 512, 3.6 to 6.4 % were flagged. Equal
    scores are never told apart, and what cannot be flagged is not made up for: a stream of equal
    scores is not flagged at all, and one of very few different scores perhaps too little.

    Args:
        rate: The budget, in (0, 1): the share of images to call rare.
        window: How many of the last scores to remember, at least 2 / rate. A window below 1,280
            turns over so quickly that it is never reset.
        warmup_scores: How many scores must come before anything is called rare; 1,024 or the
            window, whichever is less, if not given. Not needed after ``fit``, which calibrates on
            a whole set.
        slack: By how many flags, at least 2, a run of batches may miss the budget. 32 are 0.8
            points of 4,096 scores; the rest of a point is for runs that cut a batch.
        min_stability: If given, in [-1, 1), nothing is rare either from the 512th revisit on until
            the last 512 revisited samples rank nearly as before: Spearman's correlation of their
            scores with the means of their earlier scores lies above it. Once it was, it is not
            asked again. 0.6 is much for random crops, whose scores vary: in the digits demo it is
            0.2 at the 512th revisit and 0.4 at the 1,000th. It needs ids and the detector's ``smoothing``;
            without them, and before 512 revisits, ``warmup_scores`` alone decides.

    Source:
        The account is the sum of errors that Gibbs and Candès steer by, Adaptive Conformal
        Inference Under Distribution Shift, NeurIPS 2021, https://arxiv.org/abs/2106.00170. Bounded
        as here, it is a token bucket, known from the control of network traffic.

    Example:
        >>> rule = FlagRate(0.25)
        >>> rule.fit(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> rule.value
        3.0
    """

    def __init__(
        self,
        rate: float = 0.05,
        *,
        window: int = 4096,
        warmup_scores: int | None = None,
        slack: int = 32,
        min_stability: float | None = None,
    ) -> None:
        # Plain numbers, since a saved state may hold no numpy scalars.
        self.rate = check_number("FlagRate", "rate", rate, above=0.0, below=1.0)
        self.window = check_count("FlagRate", "window", window, least=1)
        if window < 2 / rate:
            raise OptionError(
                f"FlagRate expects a window of at least 2 / rate = {math.ceil(2 / rate)} scores, "
                f"got {window}; a shorter one cannot hold the quantile."
            )
        warmup_scores = min(1024, window) if warmup_scores is None else warmup_scores
        self.warmup_scores = check_count("FlagRate", "warmup_scores", warmup_scores, least=1)
        if warmup_scores > window:
            raise OptionError(
                f"FlagRate expects warmup_scores from 1 to window={window}, got {warmup_scores}."
            )
        self.slack = check_count("FlagRate", "slack", slack, least=2)
        if min_stability is not None:
            min_stability = check_number(
                "FlagRate", "min_stability", min_stability, least=-1.0, below=1.0
            )
        self.min_stability = min_stability
        self._forget()

    def _forget(self) -> None:
        self._recent = no_scores()  # the oldest first
        self._earlier, self._later = no_scores(), no_scores()  # of the last revisits
        self._is_stable = self.min_stability is None
        self._is_warm = False
        self._owed = 0.0
        self._cut = math.inf
        self._resets = 0

    def __repr__(self) -> str:
        return f"FlagRate({self.rate}, window={self.window})"

    @property
    def value(self) -> float:
        """Scores above it are rare, as far as is known without a batch; infinity in warm-up."""
        is_open = self._is_stable or len(self._later) < _REVISITS
        return self._cut if is_open else math.inf

    @property
    def resets(self) -> int:
        """How often older scores were forgotten because the newer ones were unlike them."""
        return self._resets

    @torch.inference_mode(False)
    def value_for(self, scores: Tensor) -> float:
        """The threshold for the (batch,) finite scores in hand; changes nothing.

        It is ``value``, unless that would flag so many or so few of them that the account of flags
        left its limits. Then it is the nearest one that keeps them. It is never lowered to where a
        score counts as rare that is common among the newest: alone in its batch, any score would.
        """
        value = self.value
        if len(scores) == 0 or math.isinf(value):
            return value
        scores = scores.detach().cpu().float()
        due = self._owed + self.rate * len(scores)
        most = math.floor(due + self.slack / 2)
        least = min(math.ceil(due - self.slack / 2), len(scores))
        flagged = int((scores > value).sum())
        if flagged > most:
            return float(scores.topk(most + 1).values[-1])
        if flagged < least:
            newest = torch.cat([self._recent, scores])[-_NEWEST:]
            common = exceeded_by(newest, self._below_one(_COMMON * self.rate))
            return min(max(_flagging(scores, least, most), common), value)
        return value

    @torch.inference_mode(False)
    def fit(self, scores: ArrayLike | Sequence[float]) -> None:
        """Calibrate on (n,) scores, so that exactly a share of ``rate`` lies above.

        Those that are NaN or infinite are left out with a warning.

        Raises:
            EmbeddingShapeError: If they are not real numbers of shape (n,).
            NotEnoughCalibrationError: If none is finite.
        """
        scores = calibration_scores(scores, caller="FlagRate.fit")
        self._forget()
        self._is_stable = self._is_warm = True
        self._recent = scores.clone()
        if len(scores) > self.window:
            # Evenly spaced ranks keep every quantile.
            spaced = torch.linspace(
                0, len(scores) - 1, self.window, dtype=torch.float64, device="cpu"
            )
            self._recent = scores.sort().values[spaced.round().long()]
        # The oldest are forgotten first: sorted, the small scores would be. And what counts as
        # newest should be like the rest.
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(self._recent), generator=generator, device="cpu")
        self._recent = self._recent[shuffled]
        self._cut = exceeded_by(scores, self.rate)

    @torch.inference_mode(False)
    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """Remember (batch,) finite scores, and enter into the account how they were judged."""
        if len(scores) == 0:
            return
        if self.value < math.inf:
            owed = self._owed + self.rate * len(scores) - int(is_rare.sum())
            # What cannot be flagged, such as equal scores, is not owed for ever.
            self._owed = min(max(owed, -self.slack / 2), self.slack / 2)
        self._recent = torch.cat([self._recent, scores.detach().cpu().float()])[-self.window :]
        self._reset_if_new_regime()
        self._is_warm = self._is_warm or len(self._recent) >= self.warmup_scores
        if self._is_warm:
            # So slowly that chance does not stir the threshold, and not in less than one batch.
            horizon = max(self.slack / self.rate, len(scores))
            level = self._below_one(self.rate + self._owed / horizon)
            self._cut = exceeded_by(self._recent, level)

    def update_revisits(self, earlier: Tensor, scores: Tensor) -> None:
        """See (n,) finite scores of samples seen before, and the means of their earlier scores."""
        if self._is_stable:
            return
        self._earlier = torch.cat([self._earlier, earlier.detach().cpu().float()])[-_REVISITS:]
        self._later = torch.cat([self._later, scores.detach().cpu().float()])[-_REVISITS:]
        if len(self._later) == _REVISITS and self.min_stability is not None:
            agreement = rank_agreement(self._earlier, self._later)
            if agreement > self.min_stability:
                self._is_stable = True
                self._earlier, self._later = no_scores(), no_scores()
                _log.info("FlagRate: ranks of revisited samples agree to %.2f", agreement)

    def _reset_if_new_regime(self) -> None:
        older, newest = self._recent[:-_NEWEST], self._recent[-_NEWEST:]
        if len(older) < 4 * _NEWEST:
            return
        distance = two_sample_distance(older, newest)
        if distance > _REGIME_DISTANCE:
            self._recent = newest
            self._resets += 1
            _log.info(
                "FlagRate forgets %d scores: the newest %d lie at a distance of %.2f from them",
                len(older),
                len(newest),
                distance,
            )

    def _below_one(self, level: float) -> float:
        return min(level, 0.5 + self.rate / 2)

    def state_dict(self) -> State:
        """The settings, the remembered scores, the account and the threshold in force."""
        content: State = {
            **self._settings(),
            "recent": self._recent.clone(),
            "earlier": self._earlier.clone(),
            "later": self._later.clone(),
            "stable": self._is_stable,
            "warm": self._is_warm,
            "owed": self._owed,
            "cut": self._cut,
            "resets": self._resets,
        }
        return sealed_state("FlagRate", 1, content)

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved scores; the settings must be those they were saved with."""
        own = self._settings()
        learned = ("recent", "earlier", "later", "stable", "warm", "owed", "cut", "resets")
        content = open_state(state, kind="FlagRate", version=1, keys=(*own, *learned))
        check_settings("FlagRate", content, own)
        self._recent, self._earlier, self._later = (
            content[name].cpu().clone() for name in ("recent", "earlier", "later")
        )
        self._is_stable, self._is_warm = content["stable"], content["warm"]
        self._owed, self._cut, self._resets = content["owed"], content["cut"], content["resets"]

    def _settings(self) -> State:
        return {
            "rate": self.rate,
            "window": self.window,
            "warmup_scores": self.warmup_scores,
            "slack": self.slack,
            "min_stability": self.min_stability,
        }


def _flagging(scores: Tensor, least: int, most: int) -> float:
    """The score that at least ``least`` of the scores exceed; fewer if ties would make it > most."""
    last = scores.topk(least).values[-1]
    below = scores[scores < last]
    if len(scores) - len(below) > most:
        return float(last)
    return float(below.max()) if len(below) else -math.inf
