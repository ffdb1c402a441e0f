"""What every threshold rule must do. A new rule is one more line in the list."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raremix.detection import (
    ConformalThreshold,
    FixedThreshold,
    FlagRate,
    QuantileThreshold,
)
from raremix.errors import (
    EmbeddingShapeError,
    NotEnoughCalibrationError,
    RaremixWarning,
    StateMismatchError,
)
from raremix.protocols import Threshold

Maker = Callable[[], Threshold]

THRESHOLDS: dict[str, Maker] = {
    "fixed": lambda: FixedThreshold(1.5),
    "quantile": lambda: QuantileThreshold(0.8, calibration_scores=60),
    "flag rate": lambda: FlagRate(0.2, window=50, warmup_scores=30),
    "flag rate, one at once": lambda: FlagRate(0.1, window=80, warmup_scores=1, slack=4),
    "flag rate, long": lambda: FlagRate(0.1, warmup_scores=9, min_stability=0.6),
    "conformal": lambda: ConformalThreshold(0.1),
}
OTHERS: dict[str, tuple[Maker, str]] = {
    "fixed": (lambda: FixedThreshold(2.0), "value was 2.0, is 1.5"),
    "quantile": (
        lambda: QuantileThreshold(0.7, calibration_scores=9),
        "quantile was 0.7, is 0.8; calibration_scores was 9, is 60",
    ),
    "flag rate": (
        lambda: FlagRate(0.2, window=51, warmup_scores=31),
        "window was 51, is 50; warmup_scores was 31, is 30",
    ),
    "flag rate, one at once": (
        lambda: FlagRate(0.1, window=80, warmup_scores=1, slack=5, min_stability=0.6),
        "slack was 5, is 4; min_stability was 0.6, is None",
    ),
    "flag rate, long": (lambda: FlagRate(0.1, warmup_scores=9), "min_stability was None, is 0.6"),
    "conformal": (lambda: ConformalThreshold(0.2), "level was 0.2, is 0.1"),
}


def gamma(n: int, seed: int = 0) -> Tensor:
    return -torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)).log().sum(dim=1)


def step(rule: Threshold, scores: Tensor) -> Tensor:
    is_rare = scores > rule.value
    rule.update(scores, is_rare)
    return is_rare


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key])
        if isinstance(first[key], Tensor)
        else first[key] == second[key]
        for key in first
    )


@pytest.fixture(params=THRESHOLDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rule(name: str) -> Threshold:
    return THRESHOLDS[name]()


def test_it_has_the_seam_of_a_threshold(rule: Threshold) -> None:
    assert isinstance(rule, Threshold)


def test_its_value_is_a_plain_number_before_and_after(rule: Threshold) -> None:
    assert type(rule.value) is float
    rule.fit(gamma(90))
    assert type(rule.value) is float
    assert math.isfinite(rule.value)


def test_it_owns_what_it_remembers(rule: Threshold) -> None:
    scores = gamma(40)
    copy = scores.clone()
    rule.fit(scores)
    step(rule, scores)
    assert torch.equal(scores, copy)
    before = through_a_file(rule.state_dict())
    scores.zero_()
    assert equal(rule.state_dict(), before)


def test_fit_forgets_what_came_before(name: str) -> None:
    fresh, used = THRESHOLDS[name](), THRESHOLDS[name]()
    for seed in range(20):
        step(used, 5 * gamma(13, seed))
    for fitted in (fresh, used):
        fitted.fit(gamma(45))
    assert equal(used.state_dict(), fresh.state_dict())


def test_saved_and_resumed_equals_never_stopped(name: str) -> None:
    straight, stopped = THRESHOLDS[name](), THRESHOLDS[name]()
    for number in range(25):
        scores = gamma(7, number) * (1 + number / 10)
        assert torch.equal(step(straight, scores), step(stopped, scores))
        if number % 4 == 1:
            state = through_a_file(stopped.state_dict())
            stopped = THRESHOLDS[name]()
            stopped.load_state_dict(state)
            assert equal(stopped.state_dict(), state)
        assert stopped.value == straight.value
    assert equal(stopped.state_dict(), straight.state_dict())


def test_a_saved_state_does_not_change_afterwards(rule: Threshold) -> None:
    rule.fit(gamma(45))
    state = rule.state_dict()
    copy = through_a_file(state)
    for seed in range(9):
        step(rule, gamma(40, seed))
    assert equal(state, copy)


def test_the_state_of_other_settings_is_refused_by_name(name: str, rule: Threshold) -> None:
    other, message = OTHERS[name]
    rule.fit(gamma(45))
    before = rule.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        rule.load_state_dict(other().state_dict())
    assert equal(rule.state_dict(), before)


def test_the_state_of_another_class_or_version_is_refused(rule: Threshold) -> None:
    kind = type(rule).__name__
    for change, message in (
        ({"kind": "Pinball"}, f"{kind}.load_state_dict got the state of a Pinball"),
        ({"version": 99}, "version 1 of its state, got version 99"),
        ({"extra": 1}, r"missing \[\], unknown \['extra'\]"),
    ):
        with pytest.raises(StateMismatchError, match=message):
            rule.load_state_dict({**rule.state_dict(), **change})


def test_what_was_learned_in_inference_mode_goes_on_outside_it(name: str) -> None:
    inside, plain = THRESHOLDS[name](), THRESHOLDS[name]()
    for rule in (inside, plain):
        with torch.inference_mode(rule is inside):
            rule.fit(gamma(60))
            step(rule, gamma(20, 1))
        step(rule, gamma(20, 2))
    assert equal(inside.state_dict(), plain.state_dict())


def calibrates(rule: Threshold) -> bool:
    return not isinstance(rule, FixedThreshold)


def test_scores_without_a_value_are_left_out_of_a_calibration_and_reported(name: str) -> None:
    rule, plain = THRESHOLDS[name](), THRESHOLDS[name]()
    scores = gamma(60)
    plain.fit(scores)
    if not calibrates(rule):
        return
    with pytest.warns(RaremixWarning, match=r"\.fit left out 3 of 63 scores that are NaN"):
        rule.fit(torch.cat([torch.tensor([math.nan, math.inf, math.nan]), scores]))
    assert math.isfinite(rule.value)
    assert equal(rule.state_dict(), plain.state_dict())


def test_a_calibration_may_be_an_array_or_a_list(name: str) -> None:
    plain = THRESHOLDS[name]()
    plain.fit(gamma(60))
    for given in (gamma(60).numpy(), gamma(60).double().numpy(), gamma(60).tolist()):
        rule = THRESHOLDS[name]()
        rule.fit(given)  # type: ignore[arg-type]  # the protocol asks for tensors only
        assert equal(rule.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (
            torch.empty(0),
            NotEnoughCalibrationError,
            r"needs at least \d+ calibration score.*, got 0; pass",
        ),
        ([math.nan] * 5, NotEnoughCalibrationError, "got 0 and 5 that are NaN or infinite"),
        (torch.ones(3, 40), EmbeddingShapeError, r"scores .* shape \(n,\), .* shape \(3, 40\)"),
        (["a"], EmbeddingShapeError, "scores as real numbers .* got dtype <U1"),
        (torch.ones(3).to_sparse(), EmbeddingShapeError, "scores as a dense tensor"),
    ],
)
def test_what_cannot_calibrate_is_refused_and_changes_nothing(
    name: str, scores: Any, error: type[Exception], message: str
) -> None:
    rule = THRESHOLDS[name]()
    if not calibrates(rule):
        return
    rule.fit(gamma(60))
    before = rule.state_dict()
    with pytest.raises(error, match=rf"{type(rule).__name__}\.fit .*{message}"):
        rule.fit(scores)
    assert equal(rule.state_dict(), before)


def test_the_default_device_is_not_used(name: str) -> None:
    rule, plain = THRESHOLDS[name](), THRESHOLDS[name]()
    batches = [gamma(100), gamma(30, 1), gamma(90, 2)]
    plain.fit(batches[0])
    for scores in batches:
        step(plain, scores)
    with torch.device("meta"):
        rule = THRESHOLDS[name]()
        rule.fit(batches[0])
        for scores in batches:
            step(rule, scores)
    assert equal(rule.state_dict(), plain.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_may_come_from_a_gpu(name: str) -> None:
    on_gpu, on_cpu = THRESHOLDS[name](), THRESHOLDS[name]()
    for seed in range(9):
        step(on_gpu, gamma(20, seed).cuda())
        step(on_cpu, gamma(20, seed))
    assert on_gpu.value == on_cpu.value
