"""Checks seeds, strengths, rows and batches that a user hands over, before a kernel trusts them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.errors import ImageInputError, OptionError
from raremix.inputs import ArrayLike, as_whole_numbers
from raremix.options import check_count, check_number
from raremix.views.rows import COLUMNS, KINDS

__all__ = [
    "as_rows",
    "as_seed",
    "as_seeds",
    "as_strength",
    "check_boxes",
    "checked_cut",
    "checked_generator",
]

_MOST_SIZE = 1 << 15
"""A view of more pixels a side is taken for a mistake: it would have 3 GB as bytes."""
_Row = np.ndarray[Any, np.dtype[np.float32]]
_FROM, _TO, _BLUR_RADIUS = (
    COLUMNS.index("size"),
    COLUMNS.index("kind_0"),
    COLUMNS.index("blur_radius"),
)


def as_rows(rows: Tensor, *, caller: str) -> Tensor:
    """Take float rows of shape (..., 19) that any kernel can follow.

    Raises:
        OptionError: Naming the first column that no view can have.
    """
    if not isinstance(rows, Tensor) or rows.ndim < 1 or rows.shape[-1] != len(COLUMNS):
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise OptionError(
            f"{caller} expects rows of shape (views, {len(COLUMNS)}) as with_rows returns them, got "
            f"{shape}."
        )
    taken = rows.detach().to("cpu", torch.float32).contiguous()
    checked = taken.numpy()
    least, most = _bounds()
    good = (checked >= least) & (checked <= most)  # NaN is not
    if not good.all():
        at = int(np.flatnonzero(~good.reshape(-1, len(COLUMNS)).all(axis=0))[0])
        values = checked.reshape(-1, len(COLUMNS))[:, at]
        bad = float(values[~good.reshape(-1, len(COLUMNS))[:, at]][0])
        raise OptionError(
            f"{caller} expects {COLUMNS[at]} of a view from {least[at]:g} to {most[at]:g}, got "
            f"{bad:g}; pass rows as with_rows or cut returned them."
        )
    return taken


def _bounds() -> "tuple[_Row, _Row]":
    least, most = np.zeros(len(COLUMNS), np.float32), np.ones(len(COLUMNS), np.float32)
    most[:_FROM] = 1 << 24  # where float32 stops to hold every whole number
    least[_FROM], most[_FROM] = 1, _MOST_SIZE
    most[COLUMNS.index("blur_sigma")] = most[_BLUR_RADIUS] = _MOST_SIZE
    least[_TO::2], most[_TO::2] = -1, len(KINDS) - 1
    least[_TO + 1 :: 2], most[_TO + 1 :: 2] = -0.5, np.finfo(np.float32).max
    return least, most


def checked_generator(generator: torch.Generator | None, *, caller: str) -> torch.Generator | None:
    """Refuse a generator that is not one of the CPU."""
    if generator is not None and generator.device.type != "cpu":
        raise OptionError(
            f"{caller} expects a generator on the CPU, got one on {generator.device}; make it "
            "with torch.Generator()."
        )
    return generator


def as_seed(seed: int | None, generator: torch.Generator | None, *, caller: str) -> int:
    """The seed given, or else one number of the generator, or of torch's default one."""
    if seed is None:
        generator = checked_generator(generator, caller=caller)
        return int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    if generator is not None:
        raise OptionError(f"{caller} expects a seed or a generator, got both; leave one out.")
    if check_count(caller, "seed", seed, least=0) >= 2**63:
        raise OptionError(f"{caller} expects a seed below 2**63, got {seed}.")
    return int(seed)


def as_strength(strength: ArrayLike | float, n: int, *, caller: str) -> Tensor | None:
    """Float64 of shape (n,) without gaps, from 0; None where all are 1."""
    if isinstance(strength, (int, float)):
        check_number(caller, "strength", strength, least=0.0)
        if strength == 1:
            return None
        return torch.full((n,), strength, dtype=torch.float64, device="cpu")
    values = torch.as_tensor(strength).detach().to("cpu", torch.float64).contiguous()
    if values.shape != (n,) or not bool((values.isfinite() & (values >= 0)).all()):
        raise OptionError(
            f"{caller} expects strength as a number from 0 or {n} of them, got {strength!r}."
        )
    return values


def as_seeds(seeds: ArrayLike | Sequence[int], n: int, *, caller: str) -> Tensor:
    """Take n whole numbers from 0, as int64 on the CPU without gaps."""
    hint = "make them with raremix.views.sample_seeds(seed, draw, ids)"
    numbers = as_whole_numbers(seeds, caller=caller, what="seeds", hint=hint)
    if len(numbers) != n or bool((numbers < 0).any()):
        raise OptionError(
            f"{caller} expects a seed from 0 for each of {n} images, got "
            f"{'one below' if len(numbers) == n else len(numbers)}; {hint}."
        )
    return numbers.contiguous()


def check_boxes(rows: Tensor, height: int, width: int, *, caller: str) -> None:
    """Make sure that boxes hold a pixel and lie inside the image.

    Raises:
        ImageInputError: Naming the first that does not.
    """
    left, top, right, bottom = rows[..., :4].unbind(-1)
    good = (left < right) & (right <= width) & (top < bottom) & (bottom <= height)
    good &= (rows[..., :4] == rows[..., :4].floor()).all(dim=-1)
    if not good.all():
        box = tuple(f"{edge:g}" for edge in rows[~good][0, :4].tolist())
        raise ImageInputError(
            f"{caller} expects boxes inside the image of {width} x {height} pixels, got "
            f"({', '.join(box)}); draw the parameters for this image's size."
        )


def checked_cut(
    batch: Mapping[str, Tensor], sizes: Sequence[int], *, caller: str
) -> tuple[dict[int, Tensor], Tensor]:
    """Take what ``cut`` made apart: views by size, and rows of shape ([n,] views, 19).

    Raises:
        ImageInputError: If it holds other views than these sizes say.
    """
    kept = {size: sizes.count(size) for size in dict.fromkeys(sizes)}
    wanted = ", ".join(f'"{size}"' for size in kept)
    if not isinstance(batch, Mapping) or not {*map(str, kept), "rows"} <= set(batch):
        got = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ImageInputError(
            f'{caller} expects what cut made, a dict with {wanted} and "rows", got {got}; give the '
            "dataset transform=transform.cut, and pass the part of the batch it made."
        )
    rows = as_rows(batch["rows"], caller=caller)
    if rows.shape[-2:-1] != (len(sizes),) or rows.ndim > 3:
        raise ImageInputError(
            f"{caller} expects rows of shape (n, {len(sizes)}, {len(COLUMNS)}), got {tuple(rows.shape)}."
        )
    parts = {}
    for size, count in kept.items():
        part, shape = batch[str(size)], (*rows.shape[:-2], count, 3, size, size)
        if part.dtype != torch.uint8 or tuple(part.shape) != shape:
            raise ImageInputError(
                f'{caller} expects "{size}" as uint8 of shape {shape}, got {part.dtype} of shape '
                f"{tuple(part.shape)}; finish with the transform that cut."
            )
        parts[size] = part
    if bool((rows[..., _FROM] != torch.tensor(sizes, device="cpu")).any()):
        raise ImageInputError(f"{caller} got rows of views of other sizes than {list(sizes)}.")
    return parts, rows
