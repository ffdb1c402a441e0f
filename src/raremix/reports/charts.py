"""Draws histograms, bars and lines as SVG text, to stand inside a page that brings the colours.

It draws the numbers it is given. Every chart can be drawn at any width, since text in an SVG that
is merely scaled down cannot be read on a phone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raremix.errors import OptionError
from raremix.reports.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    draw_grid,
    draw_horizontal,
    draw_text,
    draw_vertical,
    draw_x_axis,
    nice_ticks,
    svg_of,
    tick_text,
)

__all__ = ["BarChart", "LineChart", "draw_bars", "draw_histogram", "draw_lines"]

_BINS = 56
_SERIES = 5  # colours the page defines
_LETTER = 6.6  # pixels, of a usual font at 12 pixels


@dataclass(frozen=True)
class BarChart:
    """Bars in groups, one bar of each group for each series.

    Attributes:
        title: Above the chart.
        groups: Name of each group, from left to right.
        series: A value for each group; NaN leaves the bar out.
        y_label: What the values are.
        percent: Values are shares, to be written as percentages.
        intervals: (low, high) for each group of a series, drawn as whiskers.
        note: A sentence below the chart.
    """

    title: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]
    y_label: str = ""
    percent: bool = False
    intervals: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        _check(self, len(self.groups), "groups")
        for name, pairs in self.intervals.items():
            if name not in self.series or len(pairs) != len(self.groups):
                raise OptionError(
                    f"BarChart {self.title!r} expects intervals for its series, one pair for each "
                    f"of {len(self.groups)} groups, got {len(pairs)} for {name!r}."
                )


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x axis.

    Attributes:
        title: Above the chart.
        x: Where the values stand, rising.
        series: A value for each x; NaN leaves a gap.
        x_label: What x is.
        y_label: What the values are.
        percent: Values are shares, to be written as percentages.
        note: A sentence below the chart.
    """

    title: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float]]
    x_label: str = ""
    y_label: str = ""
    percent: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        _check(self, len(self.x), "x")


def draw_histogram(
    scores: npt.NDArray[np.float64],
    threshold: float,
    *,
    width: int,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Draw how many samples have which score, with those above the threshold shaded.

    The threshold is an edge between two bars, so no bar is part common, part rare. Counts are on a
    logarithmic scale where the highest bar would hide the lowest. A few scores far out share the
    last bar, and a line says so.

    Args:
        scores: (n,) finite or infinite floats, at least one finite.
        threshold: Scores above it are shaded; infinity shades none.
        width: Of the drawing, in pixels.
        marks: Further scores to point out, by name.

    Returns:
        An ``<svg>`` element.
    """
    finite = scores[np.isfinite(scores)]
    low, high = float(finite.min()), float(finite.max())
    middle, end = np.quantile(finite, [0.5, 0.999])
    # Beyond three times the bulk's own width, single scores would squeeze the rest together.
    high = min(high, float(middle + 3 * (end - middle)) if end > middle else high)
    if math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        half = max(abs(low), 1.0) / 100
        low, high = low - half, high + half
    step = (high - low) / _BINS
    origin = threshold if math.isfinite(threshold) else low
    first = math.floor((low - origin) / step + 1e-9)
    last = math.ceil((high - origin) / step - 1e-9)
    is_rare = scores > threshold
    places = np.floor((np.clip(scores, low, high) - origin) / step)
    if math.isfinite(threshold):
        # Neither rounding nor a score equal to the threshold may cross it.
        places = np.where(is_rare, np.maximum(places, 0), np.minimum(places, -1))
        first = min(first, 0 if is_rare.all() else -1)
        last = max(last, 1 if is_rare.any() else 0)
    counts = np.zeros((2, last - first), dtype=np.int64)
    places = np.clip(places - first, 0, last - first - 1).astype(np.int64)
    np.add.at(counts, (is_rare.astype(np.int64), places), 1)

    height = 280 if width > 500 else 230
    total = counts.sum(axis=0)
    filled = total[total > 0]
    logarithmic = bool(filled.max() > 60 * filled.min())
    x = Scale(origin + first * step, origin + last * step, LEFT, width - RIGHT)
    top_of_bars = TOP + 18  # The names of the marks stand above the bars.
    ticks: list[float]
    if logarithmic:
        decades = math.floor(math.log10(filled.max())) + 1
        y = Scale(math.log10(0.7), math.log10(filled.max()), height - BOTTOM, top_of_bars)
        ticks = [10.0**d for d in range(decades)]
    else:
        y = Scale(0.0, filled.max(), height - BOTTOM, top_of_bars)
        ticks = nice_ticks(0.0, float(filled.max()), 4)

    def level(count: float) -> float:
        return y(math.log10(count)) if logarithmic else y(count)

    base = height - BOTTOM
    parts = [draw_grid(tick_at=[(level(t), f"{t:,.0f}") for t in ticks], width=width)]
    for kind, row in zip(("common", "rare"), counts, strict=True):
        for place, count in enumerate(row.tolist()):
            if count:
                left = x(origin + (first + place) * step)
                right = x(origin + (first + place + 1) * step)
                top = level(count)
                parts.append(
                    f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" '
                    f'width="{max(right - left - 0.8, 0.6):.1f}" height="{base - top:.1f}"/>'
                )
    parts.append(draw_x_axis(x, nice_ticks(x.low, x.high, 8 if width > 500 else 4), base, width))
    if width > 500:
        x_label, y_label = (
            "score, larger is rarer",
            "samples, log scale" if logarithmic else "samples",
        )
        parts.append(draw_text(0, 12, y_label, "start", "quiet"))
    else:  # The name of the threshold needs the room.
        x_label = "score (counts: log scale)" if logarithmic else "score"
    parts.append(draw_text(width - RIGHT, height - 6, x_label, "end", "quiet"))
    beyond = int((scores > high).sum())
    if beyond:
        label = f"last bar: {beyond:,} beyond, up to {scores.max():.4g}"
        parts.append(draw_text(0, height - 6, label, "start", "quiet"))
    edge = x(threshold) if math.isfinite(threshold) else None
    taken = [] if edge is None else [edge]
    for name, score in (marks or {}).items():
        place_x = x(score) if x.low <= score <= x.high else None
        if place_x is not None and all(abs(place_x - other) > 44 for other in taken):
            taken.append(place_x)
            parts.append(draw_vertical(place_x, TOP + 2, base, "mark"))
            parts.append(draw_text(place_x + 4, TOP + 11, name, "start", "quiet"))
    if edge is not None:
        parts.append(draw_vertical(edge, TOP - 8, base, "cut"))
        share = is_rare.mean()
        label = f"threshold {threshold:.4g}" + (f", {_percent(share)} above" if width > 500 else "")
        fits_right = edge < width * 0.55
        parts.append(
            draw_text(edge + (5 if fits_right else -5), 12, label, "start" if fits_right else "end")
        )
    return svg_of(width, height, "Histogram of the scores", parts)


def draw_bars(chart: BarChart, *, width: int) -> str:
    """Draw a bar chart as an ``<svg>`` element of this width in pixels."""
    height = 280 if width > 500 else 220
    values = [v for row in chart.series.values() for v in row if math.isfinite(v)]
    values += [v for pairs in chart.intervals.values() for pair in pairs for v in pair]
    low, high = min([0.0, *values]), max([0.0, *values])
    y = Scale(low, high * 1.1 if high > 0 else 1.0, height - BOTTOM, TOP)
    ticks = nice_ticks(y.low, y.high, 5)
    parts = [draw_grid([(y(t), tick_text(t, ticks, chart.percent)) for t in ticks], width)]
    slot = (width - LEFT - RIGHT) / max(len(chart.groups), 1)
    bar = min(slot * 0.76 / max(len(chart.series), 1), 64)
    # Names that would run into each other stand on two lines in turn.
    is_staggered = max((len(group) for group in chart.groups), default=0) * _LETTER > slot
    labelled = bar >= (30 if chart.percent else 34)
    for index, group in enumerate(chart.groups):
        middle = LEFT + slot * (index + 0.5)
        for number, (name, row) in enumerate(chart.series.items()):
            value = row[index]
            if not math.isfinite(value):
                continue
            left = middle + bar * (number - len(chart.series) / 2)
            top, foot = sorted((y(value), y(0)))
            parts.append(
                f'<rect class="s{number % _SERIES}" x="{left + 1:.1f}" y="{top:.1f}" '
                f'width="{bar - 2:.1f}" height="{foot - top:.1f}" rx="2"/>'
            )
            if name in chart.intervals:
                ends = chart.intervals[name][index]
                parts.append(draw_vertical(left + bar / 2, y(ends[1]), y(ends[0]), "whisker"))
                top = min(top, y(ends[1]))
            if labelled:
                text = _percent(value) if chart.percent else f"{value:.3g}"
                if chart.percent and bar < 48:  # the axis says that these are percentages
                    text = f"{100 * value:.0f}"
                parts.append(draw_text(left + bar / 2, top - 5, text, "middle"))
        low = 14 if is_staggered and index % 2 else 0
        parts.append(draw_text(middle, height - BOTTOM + 17 + low, group, "middle"))
    parts.append(draw_horizontal(y(0), width))
    parts.append(draw_text(0, 12, chart.y_label, "start", "quiet"))
    return svg_of(width, height, chart.title, parts)


def draw_lines(chart: LineChart, *, width: int) -> str:
    """Draw a line chart as an ``<svg>`` element of this width in pixels."""
    height = 280 if width > 500 else 220
    values = [v for row in chart.series.values() for v in row if math.isfinite(v)]
    high = max([0.0, *values])
    y = Scale(min([0.0, *values]), high * 1.1 if high > 0 else 1.0, height - BOTTOM, TOP)
    ticks = nice_ticks(y.low, y.high, 5)
    parts = [draw_grid([(y(t), tick_text(t, ticks, chart.percent)) for t in ticks], width)]
    start, end = (min(chart.x), max(chart.x)) if len(chart.x) else (0.0, 1.0)
    x = Scale(start, end if end > start else start + 1, LEFT, width - RIGHT - 4)
    base = height - BOTTOM
    whole = all(float(at).is_integer() for at in chart.x)
    about = 8 if width > 500 else 4
    parts.append(draw_x_axis(x, nice_ticks(x.low, x.high, about, whole=whole), base, width))
    for number, row in enumerate(chart.series.values()):
        piece: list[str] = []
        for at, value in [*zip(chart.x, row, strict=True), (0.0, math.nan)]:
            if math.isfinite(value):
                piece.append(f"{x(at):.1f},{y(value):.1f}")
                continue
            style = f"s{number % _SERIES}"
            if len(piece) == 1:
                cx, cy = piece[0].split(",")
                parts.append(f'<circle class="{style}" cx="{cx}" cy="{cy}" r="3"/>')
            elif piece:
                parts.append(f'<polyline class="line {style}" points="{" ".join(piece)}"/>')
            piece = []
    parts.append(draw_text(0, 12, chart.y_label, "start", "quiet"))
    parts.append(draw_text(width - RIGHT, height - 6, chart.x_label, "end", "quiet"))
    return svg_of(width, height, chart.title, parts)


def _check(chart: Any, length: int, over: str) -> None:
    for name, row in chart.series.items():
        if len(row) != length:
            raise OptionError(
                f"{type(chart).__name__} {chart.title!r} expects {length} values in each series, "
                f"one for each of its {over}, got {len(row)} in {name!r}."
            )
    if not chart.series or not length:
        raise OptionError(
            f"{type(chart).__name__} {chart.title!r} needs a series and {over} to draw, got none."
        )


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.3g} %" if abs(percent) < 99.95 else f"{percent:.0f} %"
