"""Timelines as SVG: every flag is seen, and no clip is too long to draw."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.errors import OptionError
from raremix.reports.timeline import Panel, Timeline, draw_timeline

SVG = "{http://www.w3.org/2000/svg}"
SCORE = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan")), st.just(float("inf")))


def timeline(scores: list[float], threshold: float, *, is_clip: bool = True) -> Timeline:
    values = np.array(scores)
    return Timeline(
        title="clip a",
        x=np.arange(len(values), dtype=np.float64),
        x_label="seconds",
        names=[f"frame {n}" for n in range(len(values))],
        panels=[Panel("object score", values, threshold), Panel("scene score", -values, np.inf)],
        is_clip=is_clip,
    )


def marks(svg: str) -> list[str]:
    return [title.text or "" for title in ET.fromstring(svg).iter(f"{SVG}title")]


def points(svg: str, panel: int = 0) -> list[tuple[str, float, float]]:
    path = list(ET.fromstring(svg).iter(f"{SVG}path"))[panel]
    found = re.findall(r"([ML])(-?[\d.]+) (-?[\d.]+)(?:h0)?", path.attrib["d"])
    return [(kind, float(x), float(y)) for kind, x, y in found]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(SCORE, min_size=1, max_size=60),
    st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("inf"))),
    st.sampled_from([350, 900]),
    st.booleans(),
)
def test_a_timeline_is_well_formed_and_stays_inside(
    scores: list[float], threshold: float, width: int, is_clip: bool
) -> None:
    svg = draw_timeline(timeline(scores, threshold, is_clip=is_clip), width=width)
    root = ET.fromstring(svg)
    height = float(root.attrib["viewBox"].split()[3])
    for panel in range(len(list(root.iter(f"{SVG}path")))):
        for _, x, y in points(svg, panel):
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert len(marks(svg)) == sum(score > threshold for score in scores)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', svg)


def test_a_higher_score_stands_higher_and_a_later_frame_further_right() -> None:
    found = points(draw_timeline(timeline([1.0, 3.0, 2.0], 9.0), width=900))
    assert [kind for kind, _, _ in found] == ["M", "L", "L"]
    assert found[0][1] < found[1][1] < found[2][1]
    assert found[1][2] < found[2][2] < found[0][2]


def test_flagged_frames_are_named_with_their_score() -> None:
    svg = draw_timeline(timeline([1.0, 5.25, 2.0, 7.0], 4.0), width=900)
    assert marks(svg) == ["frame 1: 5.25", "frame 3: 7"]
    assert "object score, threshold 4" in svg
    assert svg.count('class="cut"') == 1  # the other panel has none


def test_a_missing_score_and_missing_frames_break_the_line() -> None:
    kinds = [
        kind for kind, _, _ in points(draw_timeline(timeline([1, 2, np.nan, 2], 9), width=900))
    ]
    assert kinds == ["M", "L", "M"]
    values = np.ones(8)
    late = Timeline(
        "c", np.array([0.0, 1, 2, 3, 4, 60, 61, 62]), "s", ["f"] * 8, [Panel("p", values, 9)]
    )
    kinds = [kind for kind, _, _ in points(draw_timeline(late, width=900))]
    assert kinds == ["M", "L", "L", "L", "L", "M", "L", "L"]


def test_frames_that_do_not_follow_each_other_are_not_joined() -> None:
    found = points(draw_timeline(timeline([1, 2, 3], 9, is_clip=False), width=900))
    assert [kind for kind, _, _ in found] == ["M", "M", "M"]


def test_a_long_clip_keeps_its_highest_frames_and_says_so() -> None:
    scores = np.random.default_rng(0).normal(size=20_000)
    scores[[777, 15_000]] = 50.0, 60.0
    svg = draw_timeline(timeline(scores.tolist(), 40.0), width=900)
    assert marks(svg) == ["frame 777: 50", "frame 15000: 60"]
    assert len(svg) < 30_000
    assert "each point: the highest of 48" in svg


def test_names_cannot_leave_their_text() -> None:
    evil = "<script>alert(1)</script>\"'"
    one = Timeline(evil, np.zeros(1), evil, [evil], [Panel(evil, np.ones(1), 0.5)])
    svg = draw_timeline(one, width=350)
    assert "<script>" not in svg
    assert marks(svg) == [f"{evil}: 1"]


def test_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        OptionError, match="each of its 2 frames, at least one, got 1 scores for 'p'"
    ):
        Timeline("c", np.zeros(2), "s", ["a", "b"], [Panel("p", np.zeros(1), 0.0)])
