"""A threshold with a proof: how often it calls a common sample rare is known beforehand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raremix.detection.thresholds.calibration import calibration_scores
from raremix.detection.thresholds.ranks import no_scores
from raremix.errors import NotEnoughCalibrationError, OptionError
from raremix.inputs import ArrayLike, as_scores
from raremix.options import check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["ConformalThreshold", "benjamini_hochberg"]


class ConformalThreshold:
    """Calls a sample rare if its p-value is at most ``level``, so that false alarms are as rare.

    The p-value of a score is the share of calibration scores that are at least as large, the score
    itself counted among them: (1 + number of those) / (n + 1). A new sample of the same kind as
    the calibration samples gets a p-value of at most ``level`` with a probability of at most
    ``level``, whatever the distribution of the scores. Ties only make it less likely.

    ``fit`` calibrates, and later scores move nothing; before it, nothing is rare. The proof needs
    calibration and new scores that come from the same encoder and reference, in any order:

    - On a hold-out it holds exactly: ``detector.fit(rows)`` and then
      ``detector.threshold.fit(detector.score(held_out))``.
    - ``OODDetector.fit`` calibrates on leave-one-out scores, and the level holds nearly: of 2,000 new
      rows, 5.3 % (``KNNDistance``) and 6.3 % (``FusedDistance``, whose fitted rows have also smoothed
      one another) were called rare at a level of 5 %, each +- 0.3 (Gaussian rows in 16 dimensions,
      1,000 of them fitted, 12 sets). Where the level is a promise, calibrate on a hold-out.

    It is a promise about many calibration sets. With one of n scores, the rate of false alarms
    differs from ``level`` by about sqrt(level / n): 0.7 points at 5 % and n = 1,000.

    Args:
        level: In (0, 1): how often a common sample may be called rare. It takes at least
            1 / level - 1 calibration scores.

    Source:
        Bates et al., Testing for Outliers with Conformal p-values, Annals of Statistics 2023,
        https://arxiv.org/abs/2104.08279.

    Example:
        >>> rule = ConformalThreshold(0.2)
        >>> rule.fit(torch.arange(9.0))
        >>> rule.value
        7.0
        >>> scores = torch.tensor([3.0, 7.5, 20.0])
        >>> rule.p_values(scores)
        tensor([0.7000, 0.2000, 0.1000], dtype=torch.float64)
        >>> benjamini_hochberg(rule.p_values(scores), 0.4)
        tensor([False,  True,  True])
    """

    def __init__(self, level: float = 0.05) -> None:
        self.level = check_number("ConformalThreshold", "level", level, above=0.0, below=1.0)
        self._calibration = no_scores()  # ascending

    def __repr__(self) -> str:
        return f"ConformalThreshold({self.level})"

    @property
    def value(self) -> float:
        """Scores above it have a p-value of at most ``level``; infinity before ``fit``."""
        n = len(self._calibration)
        if n == 0:
            return math.inf
        # The most scores, itself among them, that may be as large. By the same division as the
        # p-values, so that no rounding comes between the two.
        allowed = round(self.level * (n + 1))
        allowed -= allowed / (n + 1) > self.level
        return float(self._calibration[n - allowed])

    @torch.inference_mode(False)
    def fit(self, scores: ArrayLike | Sequence[float]) -> None:
        """Calibrate on (n,) scores; those that are NaN or infinite are left out with a warning.

        Raises:
            EmbeddingShapeError: If they are not real numbers of shape (n,).
            NotEnoughCalibrationError: If fewer than 1 / level - 1 are finite; then no p-value could
                be as small as ``level``.
        """
        least = round(1 / self.level) - 1
        least += 1 / (least + 1) > self.level
        known = calibration_scores(
            scores,
            caller="ConformalThreshold.fit",
            least=least,
            remedy=f"pass more, or build it with a larger level than {self.level:g}",
        )
        self._calibration = known.sort().values

    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """Leave the threshold as it is."""

    def p_values(self, scores: ArrayLike | Sequence[float]) -> Tensor:
        """How likely a common sample scores as high.

        Args:
            scores: Real numbers of shape (batch,), as ``OODDetector.score`` returns them.

        Returns:
            Float64 of shape (batch,) in [1 / (n + 1), 1], on the device of ``scores``; NaN for NaN.

        Raises:
            EmbeddingShapeError: If ``scores`` is not (batch,).
            NotEnoughCalibrationError: Before ``fit``.
        """
        given = as_scores(scores, caller="ConformalThreshold.p_values")
        n = len(self._calibration)
        if n == 0:
            raise NotEnoughCalibrationError(
                "ConformalThreshold.p_values needs calibration scores and has none; call fit, or "
                "OODDetector.fit, first."
            )
        known = given.cpu().float()
        as_large = n - torch.searchsorted(self._calibration, known)
        p_values = (1 + as_large).double() / (n + 1)
        return torch.where(known.isnan(), math.nan, p_values).to(given.device)

    def state_dict(self) -> State:
        """The level and the calibration scores."""
        content: State = {"level": self.level, "calibration": self._calibration.clone()}
        return sealed_state("ConformalThreshold", 1, content)

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved calibration scores; the level must be the one they were saved with."""
        keys = ("level", "calibration")
        content = open_state(state, kind="ConformalThreshold", version=1, keys=keys)
        check_settings("ConformalThreshold", content, {"level": self.level})
        self._calibration = content["calibration"].cpu().clone()


def benjamini_hochberg(p_values: ArrayLike | Sequence[float], rate: float) -> Tensor:
    """Choose the rare ones of a batch so that at most a share of ``rate`` of them is not.

    A level holds for each sample alone: of 10,000 common samples, 5 % are 500 false alarms. This
    holds the expected share of false alarms among all that are chosen instead. It takes the
    largest k such that k p-values are at most k / n * ``rate``, and chooses those. So a
    single alarm among n samples needs a p-value of ``rate`` / n, and n / ``rate`` calibration
    scores to reach it.

    Args:
        p_values: Floats of shape (n,) in [0, 1]; NaN is never chosen nor counted.
        rate: In (0, 1), the false discovery rate.

    Returns:
        Bool of shape (n,), on the device of ``p_values``.

    Raises:
        EmbeddingShapeError: If ``p_values`` is not (n,).
        OptionError: If ``rate`` or a p-value lies outside its range.

    Source:
        Benjamini and Hochberg, Controlling the False Discovery Rate, JRSS B 1995. Bates et al.
        show that it holds for conformal p-values that share one calibration set.

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.9, 0.03, 0.02]), 0.05)
        tensor([ True, False,  True,  True])
    """
    rate = check_number("benjamini_hochberg", "rate", rate, above=0.0, below=1.0)
    given = as_scores(p_values, caller="benjamini_hochberg", what="p_values")
    known = given.cpu()
    if bool(((known < 0) | (known > 1)).any()):
        raise OptionError(
            "benjamini_hochberg expects p_values in [0, 1], got some outside; pass what "
            "ConformalThreshold.p_values returned, not scores."
        )
    ascending = known[~known.isnan()].sort().values
    n = len(ascending)
    limits = torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / max(n, 1) * rate
    # In the dtype of the p-values, so that 0.05 in float32 is not larger than a rate of 0.05.
    passed = ascending[ascending <= limits.to(known.dtype)]
    largest = float(passed[-1]) if len(passed) else -math.inf
    return (known <= largest).to(given.device)
