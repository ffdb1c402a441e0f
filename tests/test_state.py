"""Tests of the envelope around every saved state."""

import pytest
import torch

from raremix.errors import StateMismatchError
from raremix.state import check_settings, open_state, sealed_state


def test_what_was_sealed_opens_again() -> None:
    content = {"rows": torch.zeros(2), "count": 3}
    sealed = sealed_state("Bank", 2, content)
    assert open_state(sealed, kind="Bank", version=2, keys=("rows", "count")) == content


@pytest.mark.parametrize("value", [None, 3, [1], torch.zeros(2), {}, {"kind": "Bank"}])
def test_what_is_no_state_is_refused(value: object) -> None:
    message = r"Bank\.load_state_dict expects what Bank\.state_dict returned, got \w+ without"
    with pytest.raises(StateMismatchError, match=message):
        open_state(value, kind="Bank", version=1, keys=())  # type: ignore[arg-type]  # on purpose


def test_another_kind_is_named() -> None:
    with pytest.raises(StateMismatchError, match="got the state of a Queue; build a Queue"):
        open_state(sealed_state("Queue", 1, {}), kind="Bank", version=1, keys=())


def test_another_version_is_named() -> None:
    with pytest.raises(StateMismatchError, match="reads version 1 of its state, got version 2"):
        open_state(sealed_state("Bank", 2, {}), kind="Bank", version=1, keys=())


def test_missing_and_unknown_keys_are_named() -> None:
    state = sealed_state("Bank", 1, {"a": 1, "z": 2})
    message = r"damaged state: missing \['b'\], unknown \['z'\]"
    with pytest.raises(StateMismatchError, match=message):
        open_state(state, kind="Bank", version=1, keys=("a", "b"))


def test_opening_does_not_change_the_state() -> None:
    state = sealed_state("Bank", 1, {"a": 1})
    open_state(state, kind="Bank", version=1, keys=("a",))["a"] = 2
    assert state == {"kind": "Bank", "version": 1, "a": 1}


def test_only_the_settings_that_differ_are_named() -> None:
    saved = {"k": 5, "metric": "cosine", "rows": None}
    check_settings("Bank", saved, {"k": 5, "metric": "cosine"})
    with pytest.raises(StateMismatchError) as caught:
        check_settings("Bank", saved, {"k": 6, "metric": "cosine"})
    assert str(caught.value) == (
        "Bank.load_state_dict got a state saved under other settings: k was 5, is 6. "
        "Build the Bank with the saved settings to load it."
    )
