"""Charts as SVG: what is drawn is what was given."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.errors import OptionError
from raremix.reports.charts import BarChart, LineChart, draw_bars, draw_histogram, draw_lines


def _boxes(svg: str, kind: str) -> list[dict[str, float]]:
    root = ET.fromstring(svg)
    return [
        {key: float(value) for key, value in box.attrib.items() if key != "class"}
        for box in root.iter("{http://www.w3.org/2000/svg}rect")
        if box.attrib["class"] == kind
    ]


def _words(svg: str) -> list[str]:
    return [t.text or "" for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([350, 900]),
)
def test_a_histogram_is_well_formed_and_shades_right_of_the_threshold_only(
    values: list[float], threshold: float, width: int
) -> None:
    scores = np.array(values)
    svg = draw_histogram(scores, threshold, width=width)
    rare, common = _boxes(svg, "rare"), _boxes(svg, "common")
    assert bool(rare) == bool((scores > threshold).any())
    assert bool(common) == bool((scores <= threshold).any())
    if rare and common:
        assert min(b["x"] for b in rare) >= max(b["x"] for b in common) + 0.5
    for box in rare + common:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 0


def test_bar_heights_follow_the_counts() -> None:
    scores = np.repeat([0.0, 1.0, 2.0], [10, 20, 40])
    boxes = _boxes(draw_histogram(scores, np.inf, width=900), "common")
    heights = [box["height"] for box in sorted(boxes, key=lambda box: box["x"])]
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.01)
    assert heights[2] / heights[0] == pytest.approx(4, rel=0.01)


def test_counts_that_differ_much_are_drawn_on_a_logarithmic_scale_that_says_so() -> None:
    few = draw_histogram(np.repeat([0.0, 1.0], [10, 20]), 5.0, width=900)
    many = draw_histogram(np.repeat([0.0, 1.0], [10, 9000]), 5.0, width=900)
    assert "samples" in _words(few)
    assert "samples, log scale" in _words(many)
    assert {"1", "10", "100", "1,000"} <= set(_words(many))


def test_scores_far_out_share_the_last_bar_and_are_counted() -> None:
    scores = np.r_[np.linspace(0, 1, 20_000), 1e5, np.inf]
    words = _words(draw_histogram(scores, 0.95, width=900))
    assert "last bar: 2 beyond, up to inf" in words


def test_the_threshold_is_written_with_the_share_above_it() -> None:
    words = _words(draw_histogram(np.arange(200.0), 189.0, width=900))
    assert "threshold 189, 5 % above" in words


def test_an_infinite_threshold_draws_no_line() -> None:
    assert 'class="cut"' not in draw_histogram(np.arange(9.0), np.inf, width=900)


def test_equal_scores_can_be_drawn() -> None:
    assert len(_boxes(draw_histogram(np.ones(5), 0.0, width=350), "rare")) == 1


def test_bars_are_as_high_as_their_values_and_missing_ones_are_left_out() -> None:
    chart = BarChart("t", ["a", "b"], {"one": [0.2, 0.4], "two": [float("nan"), 0.1]}, percent=True)
    svg = draw_bars(chart, width=900)
    one, two = _boxes(svg, "s0"), _boxes(svg, "s1")
    assert one[1]["height"] / one[0]["height"] == pytest.approx(2, rel=0.01)
    assert len(two) == 1
    assert {"20 %", "40 %", "10 %"} <= set(_words(svg))


def test_a_negative_bar_hangs_below_the_zero_line() -> None:
    up, down = _boxes(draw_bars(BarChart("t", ["a", "b"], {"d": [1.0, -1.0]}), width=900), "s0")
    assert up["y"] + up["height"] == pytest.approx(down["y"], abs=0.2)


def test_intervals_are_drawn_as_whiskers() -> None:
    chart = BarChart("t", ["a"], {"one": [0.5]}, intervals={"one": [(0.4, 0.6)]})
    assert draw_bars(chart, width=350).count('class="whisker"') == 1


@pytest.mark.parametrize("width", [350, 900])
def test_names_of_groups_never_run_into_each_other(width: int) -> None:
    names = ["pole", "sign_symbol", "fence", "pedestrian", "bicyclist", "any rare"]
    svg = draw_bars(BarChart("t", names, {"one": [0.1] * 6}), width=width)
    placed = [
        (float(text.attrib["x"]), float(text.attrib["y"]), 6.6 * len(text.text or ""))
        for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        if text.text in names
    ]
    assert len(placed) == 6
    for line in {y for _, y, _ in placed}:
        same = [(x, wide) for x, y, wide in placed if y == line]
        for (x, wide), (other, beside) in pairwise(same):
            assert other - x >= (wide + beside) / 2
    assert len({y for _, y, _ in placed}) == (2 if width == 350 else 1)


def test_a_gap_breaks_a_line_and_a_single_point_is_a_dot() -> None:
    chart = LineChart("t", [0, 1, 2, 3, 4], {"one": [1, 2, float("nan"), 2, float("nan")]})
    svg = draw_lines(chart, width=900)
    assert svg.count("<polyline") == 1
    assert svg.count("<circle") == 1


def test_whole_x_values_get_whole_ticks() -> None:
    words = _words(draw_lines(LineChart("t", [0, 1, 2], {"one": [1, 2, 3]}), width=900))
    assert {"0", "1", "2"} <= set(words)
    assert "0.5" not in words


def test_names_cannot_leave_their_text() -> None:
    evil = "<script>alert(1)</script>"
    chart = BarChart(evil, [evil], {evil: [1.0]}, y_label=evil)
    assert "<script>" not in draw_bars(chart, width=900)
    assert evil in _words(draw_bars(chart, width=900))


def test_a_tick_never_reads_minus_zero() -> None:
    words = _words(draw_bars(BarChart("t", ["a"], {"d": [-0.3]}), width=900))
    assert not [word for word in words if re.fullmatch(r"-0(\.0+)?", word)]


def test_series_that_do_not_fit_are_named() -> None:
    with pytest.raises(OptionError, match="BarChart 't' expects 2 values in each series"):
        BarChart("t", ["a", "b"], {"one": [1.0]})
    with pytest.raises(OptionError, match="got 3 in 'one'"):
        LineChart("t", [0, 1], {"one": [1, 2, 3]})
    with pytest.raises(OptionError, match="intervals for its series"):
        BarChart("t", ["a"], {"one": [1.0]}, intervals={"two": [(0.0, 1.0)]})
    with pytest.raises(OptionError, match="needs a series"):
        LineChart("t", [], {})
