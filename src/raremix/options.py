"""Checks of options: numbers of the right kind, inside their range.

It knows the names of calls and options only to put them into the message.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

from raremix.errors import OptionError

__all__ = [
    "check_choice",
    "check_count",
    "check_number",
    "check_numbers",
    "check_range",
    "is_number",
]


def check_choice(caller: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``OptionError`` if ``value`` is none of the words."""
    if value not in choices:
        *others, last = (repr(choice) for choice in choices)
        words = f"{', '.join(others)} or {last}"
        raise OptionError(f"{caller} expects {name} {words}, got {value!r}.")


def check_count(caller: str, name: str, value: int, *, least: int) -> int:
    """Return ``value`` as an int, or raise ``OptionError`` if it is no whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise OptionError(
            f"{caller} expects {name} as a whole number of at least {least}, got {value!r}."
        )
    return int(value)


def check_numbers(caller: str, name: str, value: Sequence[float], *, length: int) -> list[float]:
    """Return ``length`` finite numbers as floats, or raise ``OptionError``."""
    numbers = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else []
    if len(numbers) != length or not all(is_number(number) for number in numbers):
        raise OptionError(f"{caller} expects {name} as {length} finite numbers, got {value!r}.")
    return [float(number) for number in numbers]


def check_range(
    caller: str, name: str, value: Sequence[float], *, above: float, most: float
) -> tuple[float, float]:
    """Return ``(low, high)`` with above < low <= high <= most, or raise ``OptionError``."""
    low, high = check_numbers(caller, name, value, length=2)
    if not above < low <= high <= most:
        end = f" and {name}[1] <= {most:g}" if most < math.inf else ""
        raise OptionError(
            f"{caller} expects {name} as (least, greatest) with {name}[0] > {above:g}{end}, "
            f"got {value!r}."
        )
    return low, high


def check_number(
    caller: str,
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` as a float inside the bounds given, or raise ``OptionError``."""
    if is_number(value) and least <= value <= most and above < value < below:
        return float(value)
    low = f"({above:g}" if above > least else f"[{least:g}" if least > -math.inf else "(-inf"
    high = f"{below:g})" if below < most else f"{most:g}]" if most < math.inf else "inf)"
    raise OptionError(f"{caller} expects {name} as a number in {low}, {high}, got {value!r}.")


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
