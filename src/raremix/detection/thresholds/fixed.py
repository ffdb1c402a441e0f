"""A threshold that never moves."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raremix.options import check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["FixedThreshold"]


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
