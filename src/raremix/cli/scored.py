"""What came of scoring, and what a reader should know before trusting it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raremix.cli.console import counted
from raremix.data.arrays import Array

__all__ = ["Scored", "shared_rows"]

_FEW = 50
"""Of fewer rows, neither a group nor its surroundings can be told from chance."""


@dataclass(frozen=True)
class Scored:
    """The scores of all rows, and what made them; ``notes`` are what a reader should see first.

    Attributes:
        scores: (n,) float32, NaN where there is none.
        is_rare: (n,) bool.
        threshold: Scores above it are rare.
        scorer: What measured them, in words.
        reference: What they were measured against, in words.
        rate: The share asked for, of the rows or of the reference.
        referenced: How many rows a reference has, None without one.
        shared: How many of the rows are rows of the reference, too.
    """

    scores: Array
    is_rare: Array
    threshold: float
    scorer: str
    reference: str
    rate: float
    referenced: int | None = None
    shared: int = 0

    @property
    def notes(self) -> list[str]:
        """What is odd about the scores as a whole."""
        known = self.scores[~np.isnan(self.scores)]
        others = len(known) if self.referenced is None else self.referenced
        notes = []
        if self.shared:
            notes.append(
                f"{self.shared:,} of {counted(len(self.scores), 'row')} lie in the reference, too, "
                "where each is its own nearest neighbour; leave them out of it, or score without "
                "--reference"
            )
        # Two rows are each other's only neighbour and always score the same.
        elif len(known) > 2 and known.max() == known.min():
            notes.append(
                "all scores are equal: the embeddings have collapsed, or rows are duplicates"
            )
        if self.referenced is None and math.floor(self.rate * len(known) + 1e-9) == 0:
            notes.append(
                f"a rate of {self.rate:g} of {counted(len(known), 'row')} is less than one row, so "
                "none is called rare; raise --rate"
            )
        if others < _FEW:
            notes.append(
                f"compared with {counted(others, 'row')} only: from fewer than {_FEW}, a score says "
                "little"
            )
        return notes


def shared_rows(rows: Tensor, reference: Tensor) -> int:
    """How many of the rows are rows of the reference, told by their product with one vector."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    # Summed row by row, equal rows give equal sums wherever they stand.
    ours, theirs = (
        torch.cat([(part.double() * vector).sum(dim=1) for part in torch.split(some, 8192)])
        for some in (rows, reference)
    )
    return int(torch.isin(ours, theirs).sum())
