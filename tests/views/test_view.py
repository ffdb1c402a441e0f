"""Tests of the description of a view."""

import math
from dataclasses import replace
from typing import Any

import pytest

from raremix.errors import OptionError
from raremix.views import View

PLAIN = View(size=8, scale=(0.5, 1.0))


def test_lists_become_tuples_so_that_a_view_stays_hashable() -> None:
    view = View(size=8, scale=[0.5, 1.0])  # type: ignore[arg-type]  # What a config file holds.
    assert view.scale == (0.5, 1.0)
    assert hash(view) == hash(PLAIN)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 0),
        ("size", 8.0),
        ("size", True),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.1)),
        ("scale", (0.6, 0.5)),
        ("scale", 0.5),
        ("ratio", (0.0, 1.0)),
        ("ratio", (1.0, math.inf)),
        ("ratio", "ab"),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (1.0, 2.0, 3.0)),
        ("flip_p", 1.5),
        ("flip_p", math.nan),
        ("jitter_p", -0.1),
        ("grayscale_p", "0.2"),
        ("blur_p", 2),
        ("solarize_p", True),
        ("brightness", -1.0),
        ("contrast", math.inf),
        ("saturation", None),
        ("hue", 0.6),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(option: str, value: Any) -> None:
    changes: dict[str, Any] = {option: value}
    with pytest.raises(OptionError) as caught:
        replace(PLAIN, **changes)
    assert f"View expects {option}" in str(caught.value)
    assert f"got {value!r}." in str(caught.value)


def test_the_ends_of_every_range_are_allowed() -> None:
    View(
        size=1,
        scale=(1.0, 1.0),
        ratio=(2.0, 2.0),
        flip_p=0,
        jitter_p=1,
        hue=0.5,
        brightness=3,
        blur_sigma=(0.1, 0.1),
    )
