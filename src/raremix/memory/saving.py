"""A buffer as plain tensors and numbers, and back.

Nothing of a state is taken over before all of it was found to fit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.errors import StateMismatchError
from raremix.memory.columns import Array
from raremix.memory.held import Held
from raremix.memory.pixels import PixelSlots
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["load_content", "saved_content"]

_VERSION = 2
_CURSORS = ("timeline", "ledger", "viewed", "step", "heard", "counts")


def saved_content(
    settings: Mapping[str, Any], held: Held, pixels: PixelSlots, cursors: Mapping[str, Any]
) -> State:
    """Everything a buffer is, as copies."""
    rows = held.rows.taken()
    slots = rows.pop("slot")
    with_pixels = np.flatnonzero(slots >= 0)
    crops = pixels.take(slots[with_pixels]) if len(with_pixels) else None
    features = held.features
    return sealed_state(
        "RareMemoryBuffer",
        _VERSION,
        {
            **settings,
            "rows": _tensors(rows),
            "with_crops": torch.from_numpy(with_pixels),
            "crops": crops,
            "features": None if features is None else torch.from_numpy(features.copy()),
            "shared": _tensors({name: array.copy() for name, array in held.shared.items()}),
            "offers": held.offers,
            **{name: _as_tensors(value) for name, value in cursors.items()},
        },
    )


def load_content(
    state: Mapping[str, Any], settings: Mapping[str, Any], held: Held, pixels: PixelSlots
) -> dict[str, Any]:
    """Fill ``held`` and ``pixels`` from a state, and return its cursors.

    Raises:
        StateMismatchError: Naming what differs.
    """
    columns = ("rows", "with_crops", "crops", "features", "shared", "offers")
    keys = (*settings, *columns, *_CURSORS)
    content = open_state(state, kind="RareMemoryBuffer", version=_VERSION, keys=keys)
    check_settings("RareMemoryBuffer", content, settings)
    rows = {name: value.numpy() for name, value in content["rows"].items()}
    wanted = set(held.rows.names()) - {"slot"}
    lengths = {len(array) for array in rows.values()}
    if set(rows) != wanted or len(lengths) > 1 or max(lengths, default=0) > held.capacity:
        raise StateMismatchError(
            f"RareMemoryBuffer.load_state_dict got damaged rows: {sorted(rows)} of lengths "
            f"{sorted(lengths)}, expected {sorted(wanted)} of one length."
        )
    slots = np.full(max(lengths, default=0), -1)
    crops: Tensor | None = content["crops"]
    if crops is not None:
        shape, at = tuple(crops.shape[1:]), content["with_crops"].numpy()
        slots[at] = [pixels.claim(shape) for _ in range(len(crops))]
        pixels.write({int(slot): row for row, slot in enumerate(slots[at])}, crops)
    held.rows.fill(
        {**rows, "slot": slots}, content["counts"]["admissions"], content["counts"]["replays"]
    )
    features = content["features"]
    held.fill_features(None if features is None else features.cpu().numpy())
    held.shared = {name: value.cpu().numpy().copy() for name, value in content["shared"].items()}
    held.offers = content["offers"]
    return {name: _as_arrays(content[name]) for name in _CURSORS}


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: _as_tensors(part) for name, part in value.items()}
    return value


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {name: _as_arrays(part) for name, part in value.items()}
    return value
