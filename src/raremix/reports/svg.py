"""Draws the parts of charts as SVG text: scales, ticks, axes and words.

It knows no data. Colours are classes that the page defines.
"""

import math
from collections.abc import Sequence
from html import escape

__all__ = [
    "BOTTOM",
    "LEFT",
    "RIGHT",
    "TOP",
    "Scale",
    "draw_grid",
    "draw_horizontal",
    "draw_text",
    "draw_vertical",
    "draw_x_axis",
    "nice_ticks",
    "svg_of",
    "tick_text",
]

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40
"""Pixels around what is drawn, for the words."""


class Scale:
    """Carries numbers to pixels, linearly."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high = float(low), float(high)
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        """The place of a number in pixels."""
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._stop - self._start)


def nice_ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between low and high."""
    if not high > low:
        return [low]
    rough = max((high - low) / about, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1.0, 2.0, 5.0, 10.0) if whole else (1.0, 2.0, 2.5, 5.0, 10.0)
    step = next(f * power for f in factors if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, ticks: Sequence[float], percent: bool) -> str:
    """A tick in as many digits as all of them need to differ."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value)
    scale = 100 if percent else 1
    digits = max(0, -math.floor(math.log10(step * scale) + 1e-9)) if step > 0 else 0
    if digits and abs(step * scale * 10**digits - round(step * scale * 10**digits)) > 1e-6:
        digits += 1  # a step of 0.25 needs two places
    elif not digits and abs(step * scale - round(step * scale)) > 1e-6:
        digits = 1
    # Adding zero turns minus zero into zero.
    text = f"{round(value * scale, digits) + 0.0:,.{digits}f}"
    return f"{text} %" if percent else text


def draw_grid(tick_at: Sequence[tuple[float, str]], width: int) -> str:
    """Horizontal lines at these heights, each with its word on the left."""
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        + draw_text(LEFT - 6, at + 4, text, "end", "quiet")
        for at, text in tick_at
    ]
    return "".join(lines)


def draw_x_axis(x: Scale, ticks: Sequence[float], base: float, width: int) -> str:
    """The axis below the drawing, with its ticks."""
    parts = [draw_horizontal(base, width)]
    for tick in ticks:
        # The first and last would stick out to the sides.
        anchor = "end" if x(tick) > width - 24 else "middle"
        parts.append(draw_text(x(tick), base + 16, tick_text(tick, ticks, False), anchor, "quiet"))
    return "".join(parts)


def draw_horizontal(at: float, width: int) -> str:
    """An axis from side to side."""
    return f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'


def draw_vertical(at: float, top: float, foot: float, style: str) -> str:
    """A line from top to foot, of a class of the page."""
    return f'<line class="{style}" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{foot:.1f}"/>'


def draw_text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    """A word whose start, middle or end is at x."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg_of(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """The whole drawing; the title is what a screen reader says of it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
