"""What was drawn for views, as rows of numbers: they travel in tensors, to workers and to kernels.

It draws nothing and knows no pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raremix.errors import OptionError

__all__ = ["COLUMNS", "KINDS", "Box", "ViewParameters", "from_rows", "to_rows"]

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in source pixels, right and bottom exclusive."""

KINDS = ("brightness", "contrast", "saturation", "hue")
"""The changes of colour by number; -1 stands for none."""

COLUMNS = (
    *("left", "top", "right", "bottom", "size", "flipped", "bilinear"),
    *("grayscale", "blur_sigma", "blur_radius", "solarized"),
    *(f"{what}_{step}" for step in range(4) for what in ("kind", "factor")),
)
"""What the numbers of a row are, in the order of ``ViewParameters``; yes is 1 and no is 0."""


@dataclass(frozen=True)
class ViewParameters:
    """All that was drawn for one view: with the image, it determines every pixel.

    Attributes:
        box: Left, top, right and bottom edge of the crop in source pixels, whole numbers, right
            and bottom exclusive.
        size: Side of the view in pixels.
        flipped: Whether the view is mirrored left to right, after the crop.
        bilinear: Whether the crop is resized bilinearly, not bicubically.
        jitter: The colour changes in the order they are made, each with its factor (brightness,
            contrast, saturation: 1 changes nothing) or its turn (hue, in turns, 0 changes
            nothing); empty where none are made, at most four.
        grayscale: Whether the colours are taken away.
        blur_sigma: Standard deviation of the blur in pixels of the view; 0 for none.
        blur_radius: Reach of the blur in pixels; 0 for three standard deviations.
        solarized: Whether values of 128 and more, of 255, are inverted.
    """

    box: Box
    size: int
    flipped: bool = False
    bilinear: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float = 0.0
    blur_radius: int = 0
    solarized: bool = False


def to_rows(parameters: Iterable[ViewParameters]) -> Tensor:
    """Turn parameters into numbers.

    Returns:
        Float32 of shape (views, 19), columns as ``COLUMNS`` says.

    Raises:
        OptionError: If something else is among them, or a jitter unknown.

    Example:
        >>> rows = to_rows([ViewParameters((0, 0, 20, 10), 32, flipped=True)])
        >>> rows[0, :6].tolist(), from_rows(rows)[0].flipped
        ([0.0, 0.0, 20.0, 10.0, 32.0, 1.0], True)
    """
    rows = []
    for given in parameters:
        if not isinstance(given, ViewParameters):
            raise OptionError(
                f"to_rows expects ViewParameters as draw returns them, got {type(given).__name__}."
            )
        jitter = given.jitter
        if len(jitter) > len(KINDS) or not all(
            isinstance(change, tuple) and len(change) == 2 and change[0] in KINDS
            for change in jitter
        ):
            raise OptionError(
                f"to_rows expects jitter as up to {len(KINDS)} pairs of a name ({', '.join(KINDS)}) and a "
                f"factor, got {jitter!r}."
            )
        row = [
            *map(float, given.box),
            float(given.size),
            float(given.flipped),
            float(given.bilinear),
            float(given.grayscale),
            given.blur_sigma,
            float(given.blur_radius),
            float(given.solarized),
        ]
        for name, factor in given.jitter:
            row += [float(KINDS.index(name)), factor]
        row += [-1.0, 0.0] * (4 - len(given.jitter))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32, device="cpu").reshape(-1, len(COLUMNS))


def from_rows(rows: Tensor) -> list[ViewParameters]:
    """The parameters that ``to_rows`` was given: a list of one for each of the (views, 19) rows.

    Raises:
        OptionError: If the rows have another shape.
    """
    if getattr(rows, "ndim", None) != 2 or rows.shape[1] != len(COLUMNS):
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise OptionError(
            f"from_rows expects rows of shape (views, {len(COLUMNS)}), got {shape}; of a batch, pass "
            'those of one image, such as batch["rows"][0].'
        )
    found = []
    for row in rows.tolist():
        left, top, right, bottom, size, flipped, bilinear, gray, sigma, radius, solar, *jitter = row
        found.append(
            ViewParameters(
                box=(int(left), int(top), int(right), int(bottom)),
                size=int(size),
                flipped=bool(flipped),
                bilinear=bool(bilinear),
                jitter=tuple(
                    (KINDS[int(kind)], factor)
                    for kind, factor in zip(jitter[::2], jitter[1::2], strict=True)
                    if kind >= 0
                ),
                grayscale=bool(gray),
                blur_sigma=sigma,
                blur_radius=int(radius),
                solarized=bool(solar),
            )
        )
    return found
