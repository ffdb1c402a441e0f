"""Boxes in a frame: windows spread over it, squares around objects, and which boxes say the same.

Boxes are left, top, right and bottom edge in pixels, right and bottom exclusive. It sees no pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raremix.errors import OptionError
from raremix.inputs import ArrayLike
from raremix.options import check_count, check_number

__all__ = ["as_boxes", "overlaps", "square_boxes", "strongest_boxes", "window_grid"]


def as_boxes(
    boxes: ArrayLike | Sequence[Sequence[float]], size: tuple[int, int], *, caller: str
) -> Tensor:
    """Turn a user's boxes into int64 of shape (n, 4) on the CPU: the whole pixels they touch.

    Args:
        boxes: Real numbers of shape (n, 4); n may be 0.
        size: Height and width of the frame in pixels.
        caller: The call to name in an error.

    Raises:
        OptionError: If they have another shape, are not finite, or a box is empty or reaches outside
            the frame.
    """
    if isinstance(boxes, Tensor):
        given = boxes.detach().cpu()
    else:
        try:
            given = torch.from_numpy(np.array(boxes))
        except (TypeError, ValueError) as cause:  # words, or rows of different lengths
            raise OptionError(
                f"{caller} expects boxes as numbers of shape (n, 4), got {boxes!r:.80}."
            ) from cause
    if given.numel() == 0:
        return torch.zeros(0, 4, dtype=torch.int64, device="cpu")
    if given.ndim != 2 or given.shape[1] != 4 or given.is_complex() or given.dtype == torch.bool:
        raise OptionError(
            f"{caller} expects boxes of shape (n, 4), left, top, right and bottom edge in pixels, got "
            f"{given.dtype} of shape {tuple(given.shape)}."
        )
    # Edges beyond 2**53 would be rounded, far beyond any frame.
    edges = given.double()
    is_finite = torch.isfinite(edges).all(dim=1)
    if not bool(is_finite.all()):
        row = int((~is_finite).nonzero()[0])
        raise OptionError(f"{caller} got box {row} with NaN or infinity; leave it out.")
    height, width = size
    is_empty = (edges[:, 2:] <= edges[:, :2]).any(dim=1)
    limits = edges.new_tensor([width, height])
    is_outside = ((edges[:, :2] < 0) | (edges[:, 2:] > limits)).any(dim=1)
    wrong = is_empty | is_outside
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        kind = "is empty" if bool(is_empty[row]) else "reaches outside"
        raise OptionError(
            f"{caller} got box {row}, {tuple(given[row].tolist())}, which {kind} in a frame of "
            f"{width} x {height} pixels ({int(wrong.sum())} of {len(given)} boxes are like that); pass "
            "left, top, right and bottom edge, clipped to the frame."
        )
    return torch.cat([edges[:, :2].floor(), edges[:, 2:].ceil()], dim=1).long()


def window_grid(
    height: int,
    width: int,
    *,
    shares: Sequence[float] = (0.18, 0.27, 0.45),
    overlap: float = 0.5,
    least_side: int = 16,
) -> tuple[Tensor, Tensor]:
    """Square windows of several sizes, spread evenly over a frame from edge to edge.

    Args:
        height: Of the frame in pixels.
        width: Of the frame in pixels.
        shares: Side of the windows of each scale, as a share of the shorter side of the frame.
        overlap: Share of a window's side that the next one covers too, in [0, 1); never less.
        least_side: A window has at least so many pixels a side, if the frame has.

    Returns:
        Boxes (n, 4) int64, and the scale of each, (n,) int64, which counts ``shares``. How many there
        are depends on the shape of the frame: 237 for 4:3 and 328 for 16:9. In frames of few hundred
        pixels a side, sides that are rounded to whole pixels may make it some more or fewer.

    Raises:
        OptionError: If a number is out of its range.

    Example:
        >>> boxes, scale = window_grid(90, 120, shares=[0.5, 1.0])
        >>> len(boxes), boxes[-2:].tolist()
        (17, [[0, 0, 90, 90], [30, 0, 120, 90]])
    """
    caller = "window_grid"
    check_count(caller, "height", height, least=1)
    check_count(caller, "width", width, least=1)
    check_number(caller, "overlap", overlap, least=0.0, below=1.0)
    check_count(caller, "least_side", least_side, least=1)
    if isinstance(shares, str) or not hasattr(shares, "__len__") or not len(shares):
        raise OptionError(f"{caller} expects shares of at least one scale, got {shares!r}.")
    parts, scales = [], []
    for scale, share in enumerate(shares):
        check_number(caller, "shares", share, above=0.0, most=1.0)
        side = min(max(round(share * min(height, width)), least_side), height, width)
        tops, lefts = (_starts(whole, side, overlap) for whole in (height, width))
        corner = torch.cartesian_prod(tops, lefts).flip(1)
        parts.append(torch.cat([corner, corner + side], dim=1))
        scales.append(torch.full((len(corner),), scale, dtype=torch.int64, device="cpu"))
    return torch.cat(parts), torch.cat(scales)


def _starts(whole: int, side: int, overlap: float) -> Tensor:
    """Where windows begin along one side of the frame; the first at 0, the last at the end."""
    step = max(side * (1 - overlap), 1.0)
    # A grid of 90 pixels in steps of 22.5 has one window more if rounding says 3.0000001 steps.
    count = math.ceil((whole - side) / step - 1e-9) + 1
    places = torch.linspace(0, whole - side, count, dtype=torch.float64, device="cpu")
    return places.round().long()


def square_boxes(
    boxes: Tensor, size: tuple[int, int], *, context: float = 1.25, least_side: int = 32
) -> Tensor:
    """Squares around boxes, with some of what is beside them, moved inside the frame.

    Args:
        boxes: (n, 4) int64 on the CPU, inside the frame.
        size: Height and width of the frame in pixels; no square is larger than its shorter side.
        context: Side of the square in units of the longer side of the box, at least 1.
        least_side: In pixels.

    Returns:
        (n, 4) int64 on the CPU. A box that is longer than the frame is high, or wide, reaches beyond
        its square, whose middle is then as near to that of the box as the frame allows.

    Raises:
        OptionError: If an option is out of its range.

    Example:
        >>> square_boxes(torch.tensor([[0, 10, 8, 50]]), (100, 100), context=1.5)
        tensor([[ 0,  0, 60, 60]])
    """
    check_number("square_boxes", "context", context, least=1.0)
    check_count("square_boxes", "least_side", least_side, least=1)
    height, width = size
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    side = (longest.double() * context).round().long().clamp(min=least_side).clamp(max=min(size))
    twice_centre = boxes[:, :2] + boxes[:, 2:]
    corner = (twice_centre - side[:, None]).div(2, rounding_mode="floor").clamp(min=0)
    most = torch.tensor([width, height], device="cpu") - side[:, None]
    corner = torch.minimum(corner, most)
    return torch.cat([corner, corner + side[:, None]], dim=1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """(n, m) float64: the common area of each pair of boxes as a share of the smaller one.

    Unlike intersection over union it is 1 where one box lies within the other, as windows of
    different scale around one object do.

    Args:
        first: (n, 4) int64, none empty.
        second: (m, 4) int64, none empty.
    """
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clamp(min=0).double().prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).double().prod(dim=1) for boxes in (first, second)]
    return common / torch.minimum(areas[0][:, None], areas[1][None, :])


def strongest_boxes(boxes: Tensor, scores: Tensor, *, most: int, overlap: float = 0.3) -> Tensor:
    """Which boxes to show: the highest scores first, none that overlaps one shown already.

    Args:
        boxes: (n, 4) int64.
        scores: (n,) floats.
        most: How many at most.
        overlap: Of the smaller box, in [0, 1].

    Returns:
        (m,) int64 rows.
    """
    order = scores.argsort(descending=True, stable=True)
    covered = overlaps(boxes, boxes) > overlap
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) == most:
            break
        if not bool(covered[row, kept].any()):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64, device="cpu")
