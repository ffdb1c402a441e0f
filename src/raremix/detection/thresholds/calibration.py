"""Takes in the scores that a rule is calibrated on."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from raremix.errors import NotEnoughCalibrationError, RaremixWarning
from raremix.inputs import ArrayLike, as_scores

__all__ = ["calibration_scores"]


def calibration_scores(
    scores: ArrayLike | Sequence[float], *, caller: str, least: int = 1, remedy: str = "pass more"
) -> Tensor:
    """The finite ones of a user's scores, float32 of shape (n,) on the CPU.

    Rows with NaN have no score, so a hold-out may bring some. They say nothing of where rarity
    begins, and are left out with a ``RaremixWarning``, as ``OODDetector`` leaves out the rows.

    Args:
        scores: Real numbers of shape (n,).
        caller: The call to name in an error.
        least: How many must be finite.
        remedy: What to do if they are fewer.

    Raises:
        EmbeddingShapeError: If they are not real numbers of shape (n,).
        NotEnoughCalibrationError: If fewer than ``least`` are finite.
    """
    given = as_scores(scores, caller=caller).cpu().float()
    known = given[torch.isfinite(given)]
    missing = len(given) - len(known)
    if len(known) < least:
        beside = f" and {missing} that are NaN or infinite" if missing else ""
        raise NotEnoughCalibrationError(
            f"{caller} needs at least {least} calibration {'scores' if least > 1 else 'score'}, "
            f"got {len(known)}{beside}; {remedy}."
        )
    if missing:
        warnings.warn(
            f"{caller} left out {missing} of {len(given)} scores that are NaN or infinite.",
            RaremixWarning,
            stacklevel=3,
        )
    return known
