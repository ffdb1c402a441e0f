"""Checks a saved state before anything of it is taken over.

It knows the envelope every state of the package carries, not what is inside.
"""

from collections.abc import Collection, Mapping
from typing import Any

from raremix.errors import StateMismatchError
from raremix.protocols import State

__all__ = ["check_settings", "open_state", "sealed_state"]


def sealed_state(kind: str, version: int, content: State) -> State:
    """Put a state into its envelope: the class that wrote it and the version of its layout."""
    return {"kind": kind, "version": version, **content}


def open_state(
    state: Mapping[str, Any], *, kind: str, version: int, keys: Collection[str]
) -> dict[str, Any]:
    """Check the envelope and the keys of a state and return its content.

    Raises:
        StateMismatchError: If the state was written by another class or version, or lacks or
            exceeds the keys.
    """
    if not isinstance(state, Mapping) or "kind" not in state or "version" not in state:
        raise StateMismatchError(
            f"{kind}.load_state_dict expects what {kind}.state_dict returned, got "
            f"{type(state).__name__} without 'kind' and 'version'."
        )
    if state["kind"] != kind:
        raise StateMismatchError(
            f"{kind}.load_state_dict got the state of a {state['kind']}; build a {state['kind']} "
            "to load it."
        )
    if state["version"] != version:
        raise StateMismatchError(
            f"{kind}.load_state_dict reads version {version} of its state, got version "
            f"{state['version']}; load it with the release of raremix that saved it."
        )
    content = {key: value for key, value in state.items() if key not in ("kind", "version")}
    missing, unknown = set(keys) - set(content), set(content) - set(keys)
    if missing or unknown:
        raise StateMismatchError(
            f"{kind}.load_state_dict got a damaged state: missing {sorted(missing)}, "
            f"unknown {sorted(unknown)}."
        )
    return content


def check_settings(kind: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a state that was saved under other settings than ``own``.

    Raises:
        StateMismatchError: Naming the settings that differ.
    """
    differing = [
        f"{name} was {saved.get(name)!r}, is {value!r}"
        for name, value in own.items()
        if saved.get(name) != value
    ]
    if differing:
        raise StateMismatchError(
            f"{kind}.load_state_dict got a state saved under other settings: "
            f"{'; '.join(differing)}. Build the {kind} with the saved settings to load it."
        )
