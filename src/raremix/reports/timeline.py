"""Draws scores over a clip, one panel for each kind of score, as SVG text.

It draws the numbers it is given, with their thresholds. A clip of any length becomes a drawing of
bounded size: where frames are closer than pixels, the highest of them stands for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from raremix.errors import OptionError
from raremix.reports.svg import (
    LEFT,
    RIGHT,
    Scale,
    draw_grid,
    draw_text,
    draw_x_axis,
    nice_ticks,
    svg_of,
    tick_text,
)

__all__ = ["Panel", "Timeline", "draw_timeline"]

Floats = npt.NDArray[np.float64]

_PIXELS = 2  # from one point to the next; closer ones could not be told apart
_GAP = 5  # times the usual step: frames are missing, so no line is drawn


@dataclass(frozen=True)
class Panel:
    """One kind of score, frame by frame.

    Attributes:
        name: Of the score.
        scores: (n,) floats; NaN where a frame has none.
        threshold: Scores above it are marked; infinity marks none.
    """

    name: str
    scores: Floats
    threshold: float


@dataclass(frozen=True)
class Timeline:
    """Scores of the frames of a clip, in panels that share their time.

    Attributes:
        title: Above the drawing.
        x: (n,) rising: when each frame was taken, or its place.
        x_label: What x is.
        names: Of the n frames.
        panels: One for each kind of score.
        is_clip: Neighbouring frames follow each other, so that a line may join them.
    """

    title: str
    x: Floats
    x_label: str
    names: Sequence[str]
    panels: Sequence[Panel]
    is_clip: bool = True

    def __post_init__(self) -> None:
        for panel in self.panels:
            if not len(panel.scores) == len(self.x) == len(self.names) > 0:
                raise OptionError(
                    f"Timeline {self.title!r} expects a score and a name for each of its "
                    f"{len(self.x)} frames, at least one, got {len(panel.scores)} scores for "
                    f"{panel.name!r} and {len(self.names)} names."
                )


def draw_timeline(timeline: Timeline, *, width: int) -> str:
    """Draw a timeline as an ``<svg>`` element of this width in pixels.

    Frames above the threshold are dots of their own, and say their name when pointed at.
    """
    panel_height, gap, foot = (96, 30, 40) if width > 500 else (76, 30, 40)
    height = len(timeline.panels) * (panel_height + gap) + foot
    start, end = float(timeline.x[0]), float(timeline.x[-1])
    half = 0.0 if end > start else 1.0
    x = Scale(start - half, end + half, LEFT + 4, width - RIGHT - 4)
    parts: list[str] = []
    base = 0.0
    for number, panel in enumerate(timeline.panels):
        top = number * (panel_height + gap) + gap - 6
        base = top + panel_height
        parts.append(_panel(timeline, panel, x, top, base, width))
    whole = not timeline.is_clip or all(float(at).is_integer() for at in timeline.x)
    ticks = nice_ticks(x.low, x.high, 8 if width > 500 else 4, whole=whole)
    parts.append(draw_x_axis(x, ticks if half == 0 else [start], base, width))
    parts.append(draw_text(width - RIGHT, height - 6, timeline.x_label, "end", "quiet"))
    kinds = " and ".join(panel.name for panel in timeline.panels)
    return svg_of(width, height, f"{kinds} of {timeline.title}, over {timeline.x_label}", parts)


def _panel(timeline: Timeline, panel: Panel, x: Scale, top: float, base: float, width: int) -> str:
    known = panel.scores[np.isfinite(panel.scores)]
    limits = [*known, *([panel.threshold] if np.isfinite(panel.threshold) else [])]
    low, high = (float(min(limits)), float(max(limits))) if limits else (0.0, 1.0)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) / 2
    y = Scale(low - margin, high + margin, base, top)
    ticks = nice_ticks(y.low, y.high, 3)
    parts = [draw_grid([(y(tick), tick_text(tick, ticks, False)) for tick in ticks], width)]
    name = panel.name
    if np.isfinite(panel.threshold):
        at = y(panel.threshold)
        line = f'x1="{LEFT}" x2="{width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"'
        parts.append(f'<line class="cut" {line}/>')
        name += f", threshold {panel.threshold:.4g}"
    parts.append(draw_text(0, top - 8, name, "start"))
    chosen, most = _thinned(panel.scores, int((width - LEFT - RIGHT) / _PIXELS))
    if most > 1:
        note = f"each point: the highest of {most}" if width > 500 else f"highest of {most}"
        parts.append(draw_text(width - RIGHT, top - 8, note, "end", "quiet"))
    # One path for all: it is shorter than an element for each point.
    steps, usual = np.diff(timeline.x[chosen]), np.inf
    if timeline.is_clip and len(steps):
        usual = float(np.median(steps))
    path, marks = [], []
    before: float | None = None
    for row in chosen.tolist():
        score, at = float(panel.scores[row]), float(timeline.x[row])
        if np.isnan(score):
            before = None
            continue
        level = y(min(max(score, y.low), y.high))  # Infinite scores stand at the edge.
        place = f"{x(at):.1f} {level:.1f}"
        joined = timeline.is_clip and before is not None and at - before <= _GAP * usual
        # A line of no length with a round end is a dot.
        path.append(f"L{place}" if joined else f"M{place}h0")
        before = at
        if score > panel.threshold:
            title = escape(f"{timeline.names[row]}: {score:.4g}")
            marks.append(
                f'<circle class="rare" cx="{x(at):.1f}" cy="{level:.1f}" r="3.5">'
                f"<title>{title}</title></circle>"
            )
    style = "line s0" if timeline.is_clip else "line dots s0"
    parts.append(f'<path class="{style}" d="{"".join(path)}"/>' if path else "")
    return "".join([*parts, *marks])


def _thinned(scores: Floats, most: int) -> tuple[npt.NDArray[Any], int]:
    """Rows to draw, at most so many, and of how many frames each is the highest."""
    n = len(scores)
    each = -(-n // most)
    if each == 1:
        return np.arange(n), 1
    starts = np.arange(0, n, each)
    filled = np.full(len(starts) * each, -np.inf)
    filled[:n] = np.nan_to_num(scores, nan=-np.inf)
    return starts + filled.reshape(-1, each).argmax(axis=1), each
