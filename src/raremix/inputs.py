"""Checks a user's arrays once, where they enter, and hands on plain tensors.

It knows shapes and dtypes, not what the rows mean.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from raremix.errors import EmbeddingShapeError

__all__ = [
    "ArrayLike",
    "as_embeddings",
    "as_ids",
    "as_scores",
    "as_whole_numbers",
    "check_embeddings",
    "finite_rows",
    "loses_digits",
    "needs_argument",
    "takes_argument",
    "tensor_of",
    "what_is_not_finite",
]

ArrayLike: TypeAlias = Tensor | np.ndarray[Any, np.dtype[Any]]


def as_embeddings(value: ArrayLike, *, caller: str, dim: int | None = None) -> Tensor:
    """Turn a user's embeddings into a detached float32 tensor on their own device.

    Args:
        value: Tensor or numpy array of shape (batch, dim), any float or integer dtype.
        caller: The call to name in an error, such as ``"OODDetector.score"``.
        dim: The width expected, if it is known already.

    Returns:
        Float32 of shape (batch, dim); shares memory with ``value`` where it can.

    Raises:
        EmbeddingShapeError: If ``value`` is not two-dimensional and non-empty, is complex, sparse
            or of objects, or has another width than ``dim``.
    """
    check_embeddings(value, caller=caller, dim=dim)
    if isinstance(value, Tensor):
        return value.detach().to(torch.float32)
    # float16 stays as it is until torch widens it; a read-only array is copied, since torch
    # tensors know no such thing.
    array = value if value.flags.writeable else value.copy()
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        array = array.astype(np.float32)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch knows no backward strides, nor those of a field inside records.
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    return torch.from_numpy(array).to(torch.float32)


def check_embeddings(value: ArrayLike, *, caller: str, dim: int | None = None) -> None:
    """Raise what ``as_embeddings`` would, without reading or converting a row."""
    expected = f"(batch, {dim})" if dim is not None else "(batch, dim)"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise EmbeddingShapeError(
                f"{caller} expects embeddings of real numbers, got a numpy array of dtype "
                f"{value.dtype}; convert it with .astype('float32')."
            )
    elif isinstance(value, Tensor):
        _check_plain(value, caller, "embeddings")
        if value.is_complex() or value.dtype == torch.bool:
            raise EmbeddingShapeError(
                f"{caller} expects embeddings of real numbers, got a tensor of {value.dtype}."
            )
    else:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings as a torch tensor or a numpy array of shape {expected}, "
            f"got {type(value).__name__}; wrap it in torch.as_tensor(...)."
        )
    shape = tuple(value.shape)
    if len(shape) != 2:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings of shape {expected}, got {shape}; "
            "flatten feature maps and stack single embeddings to one row per image."
        )
    if dim is not None and shape[1] != dim:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings of shape {expected}, got {shape}. What was "
            f"seen before is {dim} wide; pass embeddings from the same layer, or build a new one."
        )
    if 0 in shape:
        raise EmbeddingShapeError(
            f"{caller} got embeddings of shape {shape}, which holds no numbers; "
            "pass at least one row."
        )


def _check_plain(tensor: Tensor, caller: str, what: str) -> None:
    """Refuse tensors whose numbers cannot be read row by row."""
    if tensor.is_meta:
        raise EmbeddingShapeError(
            f"{caller} got {what} on the meta device, which holds no numbers; move the encoder to "
            "a real device first."
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        way = "dequantize" if tensor.is_quantized else "to_dense"
        raise EmbeddingShapeError(
            f"{caller} expects {what} as a dense tensor, got a {kind} one; call .{way}() first."
        )


def as_scores(value: ArrayLike | Sequence[float], *, caller: str, what: str = "scores") -> Tensor:
    """Turn a user's scores or p-values into a detached tensor on their own device.

    Args:
        value: Real numbers of shape (n,), as a tensor, a numpy array or a sequence.
        caller: The call to name in an error.
        what: What to call them there.

    Returns:
        Floats of shape (n,): of the dtype given, float64 where that is no float dtype.

    Raises:
        EmbeddingShapeError: If they are not real numbers in one dimension.
    """
    if isinstance(value, Tensor):
        _check_plain(value, caller, what)
        tensor = value.detach()
        is_real = not (tensor.is_complex() or tensor.dtype == torch.bool)
        shape, got = tuple(tensor.shape), str(tensor.dtype)
    else:
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            array = np.asarray(value, dtype=object)
        is_real = array.dtype.kind in "fiu"
        shape, got = array.shape, f"dtype {array.dtype}"
        # A copy, since torch takes neither read-only arrays nor foreign byte orders.
        is_small = array.dtype.kind == "f" and array.dtype.itemsize in (2, 4)
        kept = array.dtype.newbyteorder("=") if is_small else np.float64
        tensor = torch.from_numpy(array.astype(kept)) if is_real else torch.empty(0)
    if len(shape) != 1 or not is_real:
        raise EmbeddingShapeError(
            f"{caller} expects {what} as real numbers of shape (n,), got {got} of shape {shape}."
        )
    return tensor if tensor.is_floating_point() else tensor.double()


def as_ids(value: ArrayLike | Sequence[int], *, caller: str, length: int | None = None) -> Tensor:
    """Turn a user's ids into int64 of shape (batch,) on the CPU.

    Args:
        value: Integers, one per row.
        caller: The call to name in an error.
        length: How many ids are expected, if that is known.

    Raises:
        EmbeddingShapeError: If they are not whole numbers in one dimension, or not ``length`` many.
    """
    ids = as_whole_numbers(
        value, caller=caller, what="ids", hint="an id is a sample's place in the dataset"
    )
    if length is not None and ids.shape[0] != length:
        raise EmbeddingShapeError(
            f"{caller} got {ids.shape[0]} ids for {length} rows; pass one id per row, and of "
            "several views of an image the embeddings of one."
        )
    return ids


def as_whole_numbers(
    value: ArrayLike | Sequence[int], *, caller: str, what: str, hint: str
) -> Tensor:
    """Turn a user's integers into int64 of shape (n,) on the CPU; shares memory where it can.

    Raises:
        EmbeddingShapeError: If they are not whole numbers in one dimension.
    """
    if isinstance(value, Tensor):
        _check_plain(value, caller, what)
        tensor = value.detach().cpu()
        whole = not (
            tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        )
        got = str(tensor.dtype)
    else:
        array = np.asarray(value)
        whole, got = array.dtype.kind in "iu", f"dtype {array.dtype}"
        # A copy, since torch takes neither read-only arrays nor foreign byte orders.
        tensor = torch.from_numpy(array.astype(np.int64)) if whole else torch.empty(array.shape)
    if tensor.ndim != 1 or not (whole or tensor.numel() == 0):
        raise EmbeddingShapeError(
            f"{caller} expects {what} as whole numbers of shape (batch,), got {got} of shape "
            f"{tuple(tensor.shape)}; {hint}."
        )
    return tensor.to(torch.int64)


def not_finite(caller: str) -> EmbeddingShapeError:
    """The error of a call that takes finite rows only."""
    return EmbeddingShapeError(
        f"{caller} expects finite rows, got NaN or infinity (in float32, which ends at 3.4e38); "
        "drop those rows first (raremix.inputs.finite_rows finds the others)."
    )


def finite_rows(embeddings: Tensor) -> Tensor:
    """Bool of shape (batch,): whether a row holds neither NaN nor infinity."""
    return torch.isfinite(embeddings).all(dim=1)


def what_is_not_finite(value: ArrayLike, rows: Tensor) -> str:
    """What the rows that ``finite_rows`` leaves out hold, in words; ``rows`` are those of ``value``."""
    if value.dtype not in (torch.float64, np.float64):
        return "NaN or infinity"
    # Only a float64 number can have become infinite on its way.
    exact = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    too_large = "numbers too large for float32 (divide all rows by one number)"
    if bool(torch.isfinite(exact).all()):
        return too_large
    has_grown = bool(torch.isinf(rows).sum() > torch.isinf(exact).sum())
    return f"NaN, infinity or {too_large}" if has_grown else "NaN or infinity"


def loses_digits(value: ArrayLike, rows: Tensor) -> bool:
    """Whether float32 ``rows`` have lost a hundredth of how the float64 rows of ``value`` differ."""
    if value.dtype not in (torch.float64, np.float64):
        return False
    step = max(1, len(rows) // 1024)  # a thousand rows tell, and the others may lie on disk
    part = value[::step]
    exact = part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    lost = (exact - rows[::step].to(torch.float64)).abs().amax(dim=0)
    spread = (exact - exact.mean(dim=0)).abs().mean(dim=0)
    return bool(
        (lost.max() > 0.01 * spread.mean()) & torch.isfinite(lost.max()) & (spread.max() > 0)
    )


def takes_argument(function: Callable[..., Any], name: str) -> bool:
    """Whether a function, or a module, names this argument; false where it does not tell."""
    return name in _arguments(function)


def needs_argument(function: Callable[..., Any] | None, name: str) -> bool:
    """Whether a function, or a module, cannot be called without this argument."""
    argument = {} if function is None else _arguments(function)
    return name in argument and argument[name].default is inspect.Parameter.empty


def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # The __call__ of a module takes anything; what it means is told by forward.
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(called).parameters
    except (TypeError, ValueError):
        return {}  # Some built-ins have no signature.


def tensor_of(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """A tensor that shares the memory of an array, also of one that is marked as read-only.

    torch warns of those. Whoever asks makes sure that nobody writes, or that nobody else looks.
    """
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Alias(array)))


class _Alias:
    """The same memory as a read-only array, without the mark that it is."""

    def __init__(self, array: np.ndarray[Any, np.dtype[Any]]) -> None:
        self._array = array  # Keeps the memory alive.
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.__array_interface__["data"][0], False),
        }
