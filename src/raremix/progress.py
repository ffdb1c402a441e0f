"""Says how far a long loop has come, how fast it runs and how long it still takes.

It counts and writes lines; it knows neither what is counted nor how to stop it.
"""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from typing_extensions import Self

from raremix.errors import OptionError

__all__ = ["Progress"]

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0


class Progress:
    """A context manager that reports a loop's rate and time left.

    On a terminal one line is redrawn in place. Elsewhere (a log file, a pipe) a whole line is
    written about every ten seconds, so that short work leaves the log empty. However the block
    ends, the last line is complete.

    Args:
        total: How many units there are, or None where nobody knows.
        label: What is being done, such as ``"embedding"``.
        unit: What is counted, in the plural, such as ``"images"``.
        stream: Where to write; standard error by default.
        enabled: False writes nothing at all.
        clock: Seconds from any origin; for tests.

    Raises:
        OptionError: If ``total`` is negative.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> with Progress(3, label="embedding", unit="images", stream=log) as progress:
        ...     for _ in range(3):
        ...         progress.advance()
        >>> log.getvalue()  # over in less than ten seconds, and not a terminal
        ''
    """

    def __init__(
        self,
        total: int | None,
        *,
        label: str,
        unit: str,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is not None and total < 0:
            raise OptionError(f"Progress expects a total of 0 or more, or None, got {total}.")
        self.done = 0
        self._total, self._label, self._unit, self._clock = total, label, unit, clock
        chosen = sys.stderr if stream is None else stream
        # Without a console (pythonw, some services) standard error is None.
        self._stream: TextIO | None = chosen if enabled else None
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._pause = _REDRAW_SECONDS if self._is_terminal else _LINE_SECONDS
        self._started = self._written = clock()
        self._width = 0
        self._lines = 0

    def __enter__(self) -> Self:
        """Start the clock."""
        self._started = self._written = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the last line, also after an error or Ctrl-C."""
        if self._lines:
            self._write(self._clock(), last=True)

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        self.done += n
        now = self._clock()
        if now - self._written >= self._pause:
            self._write(now, last=False)

    def _write(self, now: float, *, last: bool) -> None:
        if self._stream is None:
            return
        text = self._text(now - self._started, last=last)
        if self._is_terminal:
            # A line that wraps could not be drawn over, and a shorter one must cover a longer.
            text = text[: max(shutil.get_terminal_size().columns - 1, 10)]
            padded = text.ljust(self._width)
            self._width = len(text)
            text = "\r" + padded + ("\n" if last else "")
        else:
            text += "\n"
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The reader went away or the stream was closed: the work matters more than the line.
            self._stream = None
        self._written = now
        self._lines += 1

    def _text(self, seconds: float, *, last: bool) -> str:
        parts = []
        rate = self.done / seconds if seconds > 0 else 0.0
        if self._total is None:
            parts.append(f"{self._label}: {self.done:,} {self._unit}")
        else:
            share = self.done / self._total if self._total else 1.0
            parts.append(f"{self._label}: {self.done:,} of {self._total:,} {self._unit}")
            parts[0] += f" ({share:.0%})"
        if rate > 0:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if last:
            parts.append(f"took {_duration(seconds)}")
        elif rate > 0 and self._total is not None:
            parts.append(f"{_duration(max(self._total - self.done, 0) / rate)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
