"""Checks a user's arrays once, where they enter, and hands on plain tensors.

It knows shapes and dtypes, not what the rows mean.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError

__all__ = ["ArrayLike", "as_embeddings", "as_ids", "finite_rows", "loses_digits"]

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
        EmbeddingShapeError: If ``value`` is not two-dimensional and non-empty, is complex or of
            objects, or has another width than ``dim``.
    """
    expected = f"(batch, {dim})" if dim is not None else "(batch, dim)"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise EmbeddingShapeError(
                f"{caller} expects embeddings of real numbers, got a numpy array of dtype "
                f"{value.dtype}; convert it with .astype('float32')."
            )
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
        tensor = torch.from_numpy(array)
    elif isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise EmbeddingShapeError(
                f"{caller} expects embeddings of real numbers, got a tensor of {tensor.dtype}."
            )
    else:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings as a torch tensor or a numpy array of shape {expected}, "
            f"got {type(value).__name__}; wrap it in torch.as_tensor(...)."
        )
    if tensor.ndim != 2:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings of shape {expected}, got {tuple(tensor.shape)}; "
            "flatten feature maps and stack single embeddings to one row per image."
        )
    if dim is not None and tensor.shape[1] != dim:
        raise EmbeddingShapeError(
            f"{caller} expects embeddings of shape {expected}, got {tuple(tensor.shape)}. What was "
            f"seen before is {dim} wide; pass embeddings from the same layer, or build a new one."
        )
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise EmbeddingShapeError(
            f"{caller} got embeddings of shape {tuple(tensor.shape)}, which holds no numbers; "
            "pass at least one row."
        )
    return tensor.to(torch.float32)


def as_ids(value: ArrayLike | Sequence[int], *, caller: str, length: int | None = None) -> Tensor:
    """Turn a user's ids into int64 of shape (batch,) on the CPU.

    Args:
        value: Integers, one per row.
        caller: The call to name in an error.
        length: How many ids are expected, if that is known.

    Raises:
        EmbeddingShapeError: If they are not whole numbers in one dimension, or not ``length`` many.
    """
    if isinstance(value, Tensor):
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
            f"{caller} expects ids as whole numbers of shape (batch,), got {got} of shape "
            f"{tuple(tensor.shape)}; an id is a sample's place in the dataset."
        )
    if length is not None and tensor.shape[0] != length:
        raise EmbeddingShapeError(
            f"{caller} got {tensor.shape[0]} ids for {length} rows; pass one id per row."
        )
    return tensor.to(torch.int64)


def not_finite(caller: str) -> EmbeddingShapeError:
    """The error of a call that takes finite rows only."""
    return EmbeddingShapeError(
        f"{caller} expects finite rows, got NaN or infinity; drop those rows first "
        "(raremix.inputs.finite_rows finds the others)."
    )


def finite_rows(embeddings: Tensor) -> Tensor:
    """Bool of shape (batch,): whether a row holds neither NaN nor infinity."""
    return torch.isfinite(embeddings).all(dim=1)


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
