"""What the rules ask of a row of scores: which score a share of them exceeds, how alike two are.

Only the order of scores counts here, so their scale and their tails do not.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["exceeded_by", "no_scores", "rank_agreement", "two_sample_distance"]


def no_scores() -> Tensor:
    """An empty row of scores, on the CPU."""
    return torch.empty(0, dtype=torch.float32, device="cpu")


def exceeded_by(scores: Tensor, share: float) -> float:
    """The score that at most a share of the (n,) scores exceeds, and no smaller one is."""
    above = math.floor(share * len(scores) + 1e-9)
    rank = min(max(len(scores) - above, 1), len(scores))
    return float(torch.kthvalue(scores.detach().cpu().float(), rank).values)


def two_sample_distance(many: Tensor, few: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of two rows of scores on the CPU: 0 alike, 1 apart."""
    # Numpy sorts thousands several times faster than torch.
    many, few = (torch.from_numpy(np.sort(scores.numpy())) for scores in (many, few))
    gaps = [
        torch.searchsorted(many, few, right=right).double() / len(many)
        - torch.searchsorted(few, few, right=right).double() / len(few)
        # Between two of the few, one share stands still and the other rises: ends are enough.
        for right in (False, True)
    ]
    return float(torch.stack(gaps).abs().max())


def rank_agreement(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of two rows of scores of the same samples; 0 if one is constant."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    ranks = ranks - ranks.mean(dim=1, keepdim=True)
    lengths = ranks.norm(dim=1)
    return float((ranks[0] @ ranks[1]) / (lengths[0] * lengths[1]).clamp_min(1e-12))


def _ranks(scores: Tensor) -> Tensor:
    """Ranks in float64 from 0, the mean rank for ties."""
    ordered = scores.sort().values
    first = torch.searchsorted(ordered, scores)
    last = torch.searchsorted(ordered, scores, right=True) - 1
    return (first + last).double() / 2
