"""Tests of the mean over a sample's visits."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raremix.detection.history import ScoreHistory
from raremix.errors import OptionError, StateMismatchError

SCORES = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40)


def visit(history: ScoreHistory, score: float, key: int = 7) -> float:
    scores, ids = torch.tensor([score]), torch.tensor([key])
    mean = float(history.blend(scores, ids)[0])
    history.update(scores, ids)
    return mean


def resumed(history: ScoreHistory) -> ScoreHistory:
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    file.seek(0)
    fresh = ScoreHistory(history.smoothing)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@given(scores=SCORES)
@settings(deadline=None, max_examples=30)
def test_the_first_visits_are_averaged_plainly(scores: list[float]) -> None:
    history = ScoreHistory(0.975)  # until visit 40
    means = [visit(history, score) for score in scores]
    assert means == pytest.approx([np.mean(scores[: n + 1]) for n in range(len(scores))], abs=1e-5)


@given(scores=SCORES, cut=st.integers(0, 39))
@settings(deadline=None, max_examples=30)
def test_later_visits_weigh_the_past_by_smoothing_also_after_a_resume(
    scores: list[float], cut: int
) -> None:
    history, mean = ScoreHistory(0.8), 0.0
    for number, score in enumerate(scores):
        if number == cut:
            history = resumed(history)
        past = min(0.8, number / (number + 1))
        mean = past * mean + (1 - past) * score
        assert visit(history, score) == pytest.approx(mean, abs=1e-5)


def test_ids_do_not_mix() -> None:
    history = ScoreHistory(0.9)
    visit(history, 10.0, key=1)
    assert visit(history, 2.0, key=2) == 2.0
    assert visit(history, 20.0, key=1) == 15.0
    assert len(history) == 2


def test_blending_changes_nothing() -> None:
    history = ScoreHistory(0.9)
    visit(history, 10.0)
    for _ in range(2):
        assert history.blend(torch.tensor([20.0]), torch.tensor([7])).tolist() == [15.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_stays_so_and_is_not_remembered(bad: float) -> None:
    history = ScoreHistory(0.9)
    visit(history, 10.0)
    assert visit(history, bad) == pytest.approx(bad, nan_ok=True)
    assert visit(history, 20.0) == 15.0


def test_without_smoothing_nothing_is_remembered() -> None:
    history = ScoreHistory(0.0)
    assert [visit(history, score) for score in (10.0, 20.0)] == [10.0, 20.0]
    assert len(history) == 0


def test_cleared_it_starts_anew() -> None:
    history = ScoreHistory(0.9)
    visit(history, 10.0)
    history.clear()
    assert visit(history, 20.0) == 20.0


def test_an_empty_history_survives_a_file() -> None:
    assert len(resumed(ScoreHistory(np.float64(0.5)))) == 0


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_a_smoothing_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(OptionError, match=r"smoothing as a number in \[0, 1\), got"):
        ScoreHistory(bad)


def test_another_smoothing_is_refused_by_name() -> None:
    with pytest.raises(StateMismatchError, match=r"smoothing was 0\.5, is 0\.9"):
        ScoreHistory(0.9).load_state_dict(ScoreHistory(0.5).state_dict())


def test_the_default_device_is_not_used() -> None:
    history = ScoreHistory(0.9)
    scores: Tensor = torch.tensor([4.0])
    ids = torch.tensor([1])
    with torch.device("meta"):
        history.update(scores, ids)
        assert history.blend(scores, ids).tolist() == [4.0]
        assert history.state_dict()["means"].tolist() == [4.0]
