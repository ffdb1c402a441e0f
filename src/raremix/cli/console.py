"""What a command says and where: results on standard output, everything else on standard error."""

import json as jsonlib
import math
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["Console", "counted", "number", "percent"]


class Console:
    """Prints for a person, or one JSON object for a program.

    Args:
        json: Print nothing on standard output but the object given to ``result``.
        quiet: Print neither notes nor text, only errors and the JSON object.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    @property
    def progress(self) -> bool:
        """Whether long loops should report themselves."""
        return not self.quiet

    def say(self, text: str = "") -> None:
        """Print a line of the result for a person."""
        if not self.json and not self.quiet:
            print(text)

    def note(self, text: str) -> None:
        """Print a remark that is no part of the result."""
        if not self.quiet:
            print(f"raremix: {text}", file=sys.stderr)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> None:
        """Print rows in columns; the first ``left`` columns start left, the others end right."""
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        for row in (headers, *rows):
            cells = [
                cell.ljust(width) if place < left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.say(("  " + "  ".join(cells)).rstrip())

    def result(self, value: dict[str, Any]) -> None:
        """Print the JSON object, if that is what was asked for. NaN and infinity become null."""
        if self.json:
            print(jsonlib.dumps(_plain(value), allow_nan=False, ensure_ascii=False))

    def flush(self) -> None:
        """Write out what is buffered, so that a closed pipe is noticed here and not at exit."""
        sys.stdout.flush()


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table, a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def counted(count: int, noun: str) -> str:
    """A number of things, such as ``1 image`` or ``2,000 images``."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"


def percent(share: float) -> str:
    """A share as a percentage for a table."""
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
