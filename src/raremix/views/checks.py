"""Checks seeds, strengths, rows and batches that a user hands over, before a kernel trusts them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError, ImageInputError, OptionError
from raremix.inputs import ArrayLike, as_whole_numbers
from raremix.options import check_count
from raremix.views.images import MOST_PIXELS
from raremix.views.rows import COLUMNS, KINDS, ViewParameters, to_rows

__all__ = [
    "as_parameters",
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
_MOST_STRENGTH = 1000
"""Many times what makes every factor and chance as large as it can be of use."""
_Row = np.ndarray[Any, np.dtype[np.float32]]
_FROM, _TO, _BLUR_RADIUS = (
    COLUMNS.index("size"),
    COLUMNS.index("kind_0"),
    COLUMNS.index("blur_radius"),
)


def as_rows(rows: ArrayLike, *, caller: str) -> Tensor:
    """Take float rows of shape (..., 19) that any kernel can follow.

    Raises:
        OptionError: Naming the first column that no view can have.
    """
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows.copy())
    if not isinstance(rows, Tensor) or rows.ndim < 1 or rows.shape[-1] != len(COLUMNS):
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise OptionError(
            f"{caller} expects rows of shape (views, {len(COLUMNS)}) as with_rows returns them, got "
            f"{shape}."
        )
    if rows.dtype not in (torch.float32, torch.float64):
        raise OptionError(
            f"{caller} expects rows as float32, got {rows.dtype}, in which other views are meant; keep "
            '"rows" out of a cast of the batch, as by precision="bf16-true" of Lightning.'
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
    most[:_FROM] = MOST_PIXELS
    least[_FROM], most[_FROM] = 1, _MOST_SIZE
    most[COLUMNS.index("blur_sigma")] = most[_BLUR_RADIUS] = _MOST_SIZE
    least[_TO::2], most[_TO::2] = -1, len(KINDS) - 1
    least[_TO + 1 :: 2], most[_TO + 1 :: 2] = -0.5, np.finfo(np.float32).max
    return least, most


def checked_generator(generator: torch.Generator | None, *, caller: str) -> torch.Generator | None:
    """Refuse what is no generator, or none of the CPU."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        raise OptionError(
            f"{caller} expects a torch.Generator, got {type(generator).__name__}; a number goes to seed=."
        )
    if generator.device.type != "cpu":
        raise OptionError(
            f"{caller} expects a torch.Generator on the CPU, got one on {generator.device}; make it with "
            "torch.Generator()."
        )
    return generator


def as_seed(seed: int | None, generator: torch.Generator | None, *, caller: str) -> Tensor:
    """The seed given, or else one number of the generator, or of torch's default one; int64 (1,)."""
    if seed is None:
        generator = checked_generator(generator, caller=caller)
        return torch.randint(2**63 - 1, (1,), generator=generator, device="cpu")
    if generator is not None:
        raise OptionError(f"{caller} expects a seed or a generator, got both; leave one out.")
    if isinstance(seed, Tensor) and seed.ndim == 0 and not seed.is_floating_point():
        seed = int(seed)  # one of those that `sample_seeds` makes
    if check_count(caller, "seed", seed, least=0) >= 2**63:
        raise OptionError(f"{caller} expects a seed below 2**63, got {seed}.")
    return torch.tensor([int(seed)], dtype=torch.int64, device="cpu")


def as_strength(
    strength: ArrayLike | Sequence[float] | float, n: int, *, caller: str
) -> Tensor | None:
    """Float64 of shape (n,) without gaps, from 0; None where all are 1."""
    if isinstance(strength, (int, float)) and strength == 1:
        return None
    try:
        values = torch.as_tensor(strength, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = torch.full((n,), torch.nan, dtype=torch.float64, device="cpu")
    shape = tuple(values.shape)
    if shape not in ((), (n,)) or not bool(((values >= 0) & (values <= _MOST_STRENGTH)).all()):
        what = f"shape {shape}" if shape not in ((), (n,)) else repr(strength)
        several = f", or {n} of them" if n > 1 else ""
        raise OptionError(
            f"{caller} expects strength as a number in [0, {_MOST_STRENGTH}]{several}, got {what}."
        )
    return values.expand(n).contiguous()


def as_seeds(seeds: ArrayLike | Sequence[int], n: int, *, caller: str) -> Tensor:
    """Take n whole numbers from 0, as int64 on the CPU without gaps."""
    hint = "make them with raremix.views.sample_seeds(seed, draw, ids)"
    try:
        numbers = as_whole_numbers(seeds, caller=caller, what="seeds", hint=hint)
    except EmbeddingShapeError as error:
        raise OptionError(str(error)) from error
    if len(numbers) != n:
        raise OptionError(
            f"{caller} expects a seed for each of {n} images, got {len(numbers)}; {hint}."
        )
    if bool((numbers < 0).any()):
        raise OptionError(
            f"{caller} expects seeds from 0 and below 2**63, got another one; {hint}."
        )
    return numbers.contiguous()


def as_parameters(parameters: object, *, caller: str) -> Tensor:
    """Take ``ViewParameters``, or rows of shape (views, 19), as rows that any kernel can follow.

    Raises:
        OptionError: If they are neither.
    """
    if isinstance(parameters, (Tensor, np.ndarray)):
        rows = parameters
    else:
        given = [parameters] if isinstance(parameters, ViewParameters) else parameters
        if not isinstance(given, Iterable) or isinstance(given, str):
            raise OptionError(
                f"{caller} expects ViewParameters as draw returns them, or rows as with_rows does, got "
                f"{type(parameters).__name__}."
            )
        rows = to_rows(given)
    if rows.ndim != 2:
        raise OptionError(
            f"{caller} expects rows of shape (views, {len(COLUMNS)}), got {tuple(rows.shape)}; pass those "
            "of one image, such as rows[:1] for one view of it."
        )
    return as_rows(rows, caller=caller)


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
        if not isinstance(part, Tensor) or part.dtype != torch.uint8 or tuple(part.shape) != shape:
            what = f"{getattr(part, 'dtype', type(part).__name__)}"
            raise ImageInputError(
                f'{caller} expects "{size}" as uint8 of shape {shape}, got {what} of shape '
                f"{tuple(getattr(part, 'shape', ()))}; finish with the transform that cut."
            )
        parts[size] = part
    if bool((rows[..., _FROM] != torch.tensor(sizes, device="cpu")).any()):
        raise ImageInputError(f"{caller} got rows of views of other sizes than {list(sizes)}.")
    return parts, rows
