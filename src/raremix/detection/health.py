"""How well a reference serves: how many directions it spans, how old it is, how often it repeats.

Functions of a bank. What follows from their numbers is said in ``watch``.
"""

import math

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank

__all__ = ["bank_health", "effective_rank", "evenly", "newest", "relative_spread"]

# Rows looked at: enough for a rank of some tens, at 20 ms in 384 dimensions.
_SAMPLE = 512
# A direction in which rows differ less than this beside their length is rounding.
_LEAST_SPREAD = 1e-10


def evenly(rows: Tensor, most: int) -> Tensor:
    """Up to ``most`` rows, evenly spaced, so that no draw is needed."""
    if len(rows) <= most:
        return rows
    places = torch.linspace(0, len(rows) - 1, most, dtype=torch.float64, device="cpu")
    return rows[places.round().long().to(rows.device)]


def newest(bank: ReferenceBank) -> Tensor:
    """Up to 512 of the rows refreshed last: what the encoder says now, not what it once said."""
    ages = bank.ages
    if len(ages) <= _SAMPLE:
        return bank.rows
    # Rows of one call are equally old, and may be sorted by class.
    young = (ages <= ages.kthvalue(_SAMPLE).values).nonzero().squeeze(1)
    return bank.rows[evenly(young, _SAMPLE).to(bank.rows.device)]


def relative_spread(rows: Tensor) -> float:
    """The mean squared distance of (n, dim) rows to their mean, beside their mean squared length.

    In [0, 1]; 0 where all rows are alike.
    """
    rows = evenly(rows, _SAMPLE).to(torch.float64).cpu()
    length = float(rows.square().sum(dim=1).mean())
    gaps = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())
    return gaps / length if length > 0 else 0.0


def effective_rank(rows: Tensor) -> float:
    """How many directions (n, dim) rows really span about their mean; 0 where all are alike.

    The exponential of the entropy of the covariance's eigenvalues: between 1 and dim, and k where
    the rows spread equally in k directions. Taken of up to 512 rows scaled to equal length.

    Source:
        Roy and Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO 2007.
    """
    if relative_spread(rows) < _LEAST_SPREAD:
        return 0.0
    rows = evenly(rows, _SAMPLE).to(torch.float64).cpu()
    length = rows.norm(dim=1, keepdim=True)
    rows = rows / torch.where(length > 0, length, 1.0)
    gaps = rows - rows.mean(dim=0)
    gram = gaps @ gaps.T if len(gaps) < gaps.shape[1] else gaps.T @ gaps
    shares = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    if float(shares.sum()) <= 0.0:  # one direction, in different lengths
        return 1.0
    shares = shares / shares.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def bank_health(bank: ReferenceBank) -> dict[str, float]:
    """Numbers to log of a bank; ages count the rows added since a row was refreshed.

    The rank is that of the newest rows.
    """
    health = {"bank_rows": float(len(bank)), "bank_capacity": float(bank.capacity)}
    if len(bank) == 0:
        return health
    ages = bank.ages.to(torch.float64).sort().values
    health["age_p50"] = float(ages[(len(ages) - 1) // 2])
    health["age_p95"] = float(ages[math.ceil(0.95 * len(ages)) - 1])
    health["effective_rank"] = effective_rank(newest(bank))
    health["duplicate_share"] = _duplicate_share(bank.rows)
    return health


def _duplicate_share(rows: Tensor) -> float:
    """The share of rows that repeat another exactly, told by their dot product with one vector."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(rows.shape[1], generator=generator, device="cpu").to(rows.device)
    # Summed row by row, equal rows give equal sums wherever they stand.
    sums = [(part * vector).sum(dim=1) for part in torch.tensor_split(rows, -(-len(rows) // 8192))]
    return 1.0 - len(torch.unique(torch.cat(sums))) / len(rows)
