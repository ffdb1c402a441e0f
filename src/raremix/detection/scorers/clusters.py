"""k-means that gives the same clusters on every machine and for every order of the rows.

It returns centres. How many rows each has, and what that means, is the caller's to say.
"""

import torch
from torch import Tensor

__all__ = ["assign", "find_centres"]

_STEPS = 20
# Rows that the centres are found on; all rows are assigned to them afterwards.
_SAMPLE = 8192
_AT_ONCE = 2**24  # distances held at once


def find_centres(rows: Tensor, clusters: int, *, seed: int) -> Tensor:
    """Find up to ``clusters`` centres of (n, dim) rows by Lloyd's steps from a k-means++ start.

    Returns:
        (m, dim) float64 centres of clusters, m at most ``clusters`` and at most the number of distinct rows.

    Source:
        Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    # Sorted along a fixed direction, the draws below do not depend on the order of the rows.
    along = (rows.to(torch.float64) * direction.to(rows.device)).sum(dim=1)
    rows = rows[along.argsort(stable=True)]
    if len(rows) > _SAMPLE:
        picked = torch.linspace(0, len(rows) - 1, _SAMPLE, dtype=torch.float64).round().long()
        rows = rows[picked.to(rows.device)]
    # About their mean, float32 is exact enough and twice as fast.
    middle = rows.to(torch.float64).mean(dim=0)
    rows = (rows.to(torch.float64) - middle).to(torch.float32)
    centres = _spread_out(rows, clusters, generator)
    for _ in range(_STEPS):
        labels = _nearest(rows, centres)
        counts = torch.bincount(labels, minlength=len(centres)).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, labels, rows)
        # A centre that lost its rows stays where it is.
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1.0)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.to(torch.float64) + middle


def _spread_out(rows: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw rows, each with a chance that grows with its squared distance to those drawn before."""
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64, device="cpu").tolist()
    chosen = [int(draws[0] * len(rows))]
    gaps = (rows - rows[chosen[0]]).square().sum(dim=1)
    for draw in draws[1:]:
        total = gaps.to(torch.float64).cumsum(dim=0)
        if float(total[-1]) <= 0.0:  # every distinct row is a centre already
            break
        place = int(torch.searchsorted(total, draw * total[-1], right=True))
        chosen.append(min(place, len(rows) - 1))
        gaps = torch.minimum(gaps, (rows - rows[chosen[-1]]).square().sum(dim=1))
    return rows[chosen].clone()


def assign(rows: Tensor, centres: Tensor) -> Tensor:
    """(n,) int64: the nearest of (m, dim) float64 centres for each of (n, dim) rows."""
    middle = centres.mean(dim=0)
    near = (centres - middle).to(torch.float32)
    step = max(1, _AT_ONCE // max(centres.shape))
    labels = [
        _nearest((rows[start : start + step].to(torch.float64) - middle).to(torch.float32), near)
        for start in range(0, len(rows), step)
    ]
    return torch.cat(labels)


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    # Under autocast the product would come in half precision.
    with torch.autocast(rows.device.type, enabled=False):
        return (rows @ centres.T - 0.5 * centres.square().sum(dim=1)).argmax(dim=1)
