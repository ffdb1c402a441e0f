"""A threshold at a quantile of one calibration, which later scores do not move."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raremix.detection.thresholds.calibration import calibration_scores
from raremix.detection.thresholds.ranks import exceeded_by, no_scores
from raremix.inputs import ArrayLike
from raremix.options import check_count, check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["QuantileThreshold"]


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
        self._seen = no_scores()
        self._value = math.inf

    def __repr__(self) -> str:
        return f"QuantileThreshold({self.quantile})"

    @property
    def value(self) -> float:
        """Scores above it are rare; infinity until it is calibrated."""
        return self._value

    def fit(self, scores: ArrayLike | Sequence[float]) -> None:
        """Calibrate on (n,) scores; those that are NaN or infinite are left out with a warning.

        Raises:
            EmbeddingShapeError: If they are not real numbers of shape (n,).
            NotEnoughCalibrationError: If none is finite.
        """
        known = calibration_scores(scores, caller="QuantileThreshold.fit")
        self._seen = no_scores()
        self._value = exceeded_by(known, 1.0 - self.quantile)

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
