"""Rules that turn the scores seen so far into the score above which an image is rare.

A rule is shown every batch of scores once, in order. It knows no embeddings and no images.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.options import check_count, check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["FixedThreshold", "FlagRate", "QuantileThreshold"]


class FixedThreshold:
    """The same score for ever.

    Scores of another encoder, layer or epoch live on another scale, so a fixed threshold is right
    for one frozen encoder only. ``FlagRate`` follows the scale.

    Args:
        value: Scores above it are rare; any finite number.

    Example:
        >>> FixedThreshold(0.8).value
        0.8
    """

    def __init__(self, value: float) -> None:
        self._value = check_number("FixedThreshold", "value", value)

    def __repr__(self) -> str:
        return f"FixedThreshold({self._value})"

    @property
    def value(self) -> float:
        """Scores above it are rare."""
        return self._value

    def fit(self, scores: Tensor) -> None:
        """Leave the threshold as it is."""

    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """Leave the threshold as it is."""

    def state_dict(self) -> State:
        """The value."""
        return sealed_state("FixedThreshold", 1, {"value": self._value})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the saved value is this one."""
        content = open_state(state, kind="FixedThreshold", version=1, keys=("value",))
        check_settings("FixedThreshold", content, {"value": self._value})


class QuantileThreshold:
    """A quantile of the scores it was calibrated on, which later scores do not move.

    ``fit`` calibrates on a whole set. Without ``fit``, the first ``calibration_scores`` scores it
    is shown do, and nothing is rare until they have come.

    Args:
        quantile: In (0, 1); 0.95 calls one in twenty rare.
        calibration_scores: How many scores to calibrate on when there was no ``fit``.

    Example:
        >>> rule = QuantileThreshold(0.75)
        >>> rule.fit(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> rule.value
        3.0
    """

    def __init__(self, quantile: float = 0.95, *, calibration_scores: int = 1024) -> None:
        # Plain numbers, since a saved state may hold no numpy scalars.
        self.quantile = check_number(
            "QuantileThreshold", "quantile", quantile, above=0.0, below=1.0
        )
        self.calibration_scores = check_count(
            "QuantileThreshold", "calibration_scores", calibration_scores, least=1
        )
        self._seen = _no_scores()
        self._value = math.inf

    def __repr__(self) -> str:
        return f"QuantileThreshold({self.quantile})"

    @property
    def value(self) -> float:
        """Scores above it are rare; infinity until it is calibrated."""
        return self._value

    def fit(self, scores: Tensor) -> None:
        """Calibrate on (n,) finite scores, n at least 1."""
        self._seen = _no_scores()
        self._value = _exceeded_by(scores, 1.0 - self.quantile)

    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """Collect scores until there are enough to calibrate on; then do nothing."""
        if self._value < math.inf:
            return
        self._seen = torch.cat([self._seen, scores.detach().cpu().float()])
        if len(self._seen) >= self.calibration_scores:
            # Not one more, or the calibration would depend on the size of the batches.
            self.fit(self._seen[: self.calibration_scores])

    def state_dict(self) -> State:
        """The value, and the scores collected so far."""
        content: State = {
            "quantile": self.quantile,
            "calibration_scores": self.calibration_scores,
            "seen": self._seen.clone(),
            "value": self._value,
        }
        return sealed_state("QuantileThreshold", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved calibration."""
        keys = ("quantile", "calibration_scores", "seen", "value")
        content = open_state(state, kind="QuantileThreshold", version=1, keys=keys)
        own = {"quantile": self.quantile, "calibration_scores": self.calibration_scores}
        check_settings("QuantileThreshold", content, own)
        self._seen = content["seen"].cpu().clone()
        self._value = content["value"]


class FlagRate:
    """Calls a share of the stream rare and holds that share while the scores drift.

    The threshold is a quantile of the last ``window`` scores. Under drift a quantile of the past
    flags too few or too many, so the level of the quantile is steered by what was really flagged:
    a rate below the budget raises it, a rate above lowers it.

    Args:
        rate: The budget, in (0, 1): the share of images to call rare.
        window: How many of the last scores to remember, at least 2 / rate.
        warmup_scores: How many scores must come before anything is called rare; 1,024 or the
            window, whichever is less, if not given. Not needed after ``fit``, which calibrates on
            a whole set.
        gain: How strongly the level is corrected for each batch's rate; 0 for a plain quantile.

    Source:
        The correction is the update of Gibbs and Candès, Adaptive Conformal Inference Under
        Distribution Shift, NeurIPS 2021, https://arxiv.org/abs/2106.00170, whose long-run rate
        holds for any sequence; here the level stays within a factor of four of the budget.

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
        gain: float = 0.02,
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
        self.gain = check_number("FlagRate", "gain", gain, least=0.0)
        self._recent = _no_scores()  # a ring once it holds `window` scores
        self._next = 0
        self._level = self.rate
        self._warm = False
        self._value = math.inf

    def __repr__(self) -> str:
        return f"FlagRate({self.rate}, window={self.window})"

    @property
    def value(self) -> float:
        """Scores above it are rare; infinity before the warm-up ends."""
        return self._value

    @torch.inference_mode(False)
    def fit(self, scores: Tensor) -> None:
        """Calibrate on (n,) finite scores, so that exactly a share of ``rate`` lies above."""
        scores = scores.detach().cpu().float()
        self._level, self._next, self._warm = self.rate, 0, True
        if len(scores) > self.window:
            # Evenly spaced ranks keep every quantile.
            spaced = torch.linspace(
                0, len(scores) - 1, self.window, dtype=torch.float64, device="cpu"
            )
            self._recent = scores.sort().values[spaced.round().long()]
            # The ring forgets from its start: sorted, it would forget the small scores first.
            generator = torch.Generator().manual_seed(0)
            shuffled = torch.randperm(self.window, generator=generator, device="cpu")
            self._recent = self._recent[shuffled]
        else:
            self._recent = scores.clone()
        self._value = _exceeded_by(scores, self.rate)

    @torch.inference_mode(False)
    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """Remember (batch,) finite scores and correct the level by the share that was flagged."""
        if len(scores) == 0:
            return
        scores = scores.detach().cpu().float()
        if self._warm:
            flagged = float(is_rare.float().mean())
            level = self._level + self.gain * (self.rate - flagged)
            self._level = min(max(level, self.rate / 4), 4 * self.rate, 0.5 + self.rate / 2)
        self._remember(scores)
        self._warm = self._warm or len(self._recent) >= self.warmup_scores
        if self._warm:
            self._value = _exceeded_by(self._recent, self._level)

    def _remember(self, scores: Tensor) -> None:
        scores = scores[-self.window :]
        room = self.window - len(self._recent)
        if room > 0:
            self._recent = torch.cat([self._recent, scores[:room]])
            scores = scores[room:]
        places = (self._next + torch.arange(len(scores), device="cpu")) % self.window
        self._recent[places] = scores
        self._next = (self._next + len(scores)) % self.window

    def state_dict(self) -> State:
        """The settings, the remembered scores and the level in force."""
        content: State = {
            "rate": self.rate,
            "window": self.window,
            "warmup_scores": self.warmup_scores,
            "gain": self.gain,
            "recent": self._recent.clone(),
            "next": self._next,
            "level": self._level,
            "warm": self._warm,
            "value": self._value,
        }
        return sealed_state("FlagRate", 1, content)

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved scores; the settings must be those they were saved with."""
        own = {
            "rate": self.rate,
            "window": self.window,
            "warmup_scores": self.warmup_scores,
            "gain": self.gain,
        }
        keys = (*own, "recent", "next", "level", "warm", "value")
        content = open_state(state, kind="FlagRate", version=1, keys=keys)
        check_settings("FlagRate", content, own)
        self._recent = content["recent"].cpu().clone()
        self._next = content["next"]
        self._level = content["level"]
        self._warm = content["warm"]
        self._value = content["value"]


def _no_scores() -> Tensor:
    return torch.empty(0, dtype=torch.float32, device="cpu")


def _exceeded_by(scores: Tensor, share: float) -> float:
    """The score that at most a share of the (n,) scores exceeds, and no smaller one is."""
    above = math.floor(share * len(scores) + 1e-9)
    rank = min(max(len(scores) - above, 1), len(scores))
    return float(torch.kthvalue(scores.detach().cpu().float(), rank).values)
