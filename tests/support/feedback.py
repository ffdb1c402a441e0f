"""What a loader and a detector would say of a batch, and states compared and saved."""

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Flags", "Rows", "same", "through_a_file"]


@dataclass(frozen=True)
class Rows:
    """A batch that knows its rows; perhaps also the entries they were drawn from."""

    step: int
    ids: Tensor
    is_replay: Tensor
    entry: Tensor | None = None


@dataclass(frozen=True)
class Flags:
    """A detection."""

    scores: Tensor
    is_rare: Tensor


def same(one: object, two: object) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.equal(two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What a saved state is when it is loaded again."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded
