"""The scores each sample has had, averaged over its visits.

One crop of an image is a noisy witness; ten of them are not. It knows ids and scores, no embeddings.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raremix.options import check_number
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["ScoreHistory"]


class ScoreHistory:
    """A running mean of each id's scores, which forgets slowly.

    It is the plain mean of the first visits, and from visit 1 / (1 - smoothing) on an exponential
    mean with that weight for the past, so that a young history is not ruled by its first score.

    Args:
        smoothing: Weight of the past in [0, 1); 0 remembers nothing.
    """

    def __init__(self, smoothing: float) -> None:
        # A plain number, since a saved state may hold no numpy scalars.
        self.smoothing = check_number("OODDetector", "smoothing", smoothing, least=0.0, below=1.0)
        self._means: dict[int, tuple[float, int]] = {}  # id to mean and visits

    def __len__(self) -> int:
        return len(self._means)

    def blend(self, scores: Tensor, ids: Tensor) -> Tensor:
        """The means as they will be with these (batch,) scores added; changes nothing.

        NaN stays NaN.
        """
        if not self.smoothing:
            return scores
        pairs = zip(ids.tolist(), scores.tolist(), strict=True)
        means = [self._with(key, score)[0] for key, score in pairs]
        return torch.tensor(means, dtype=torch.float32, device=scores.device)

    def means(self, ids: Tensor) -> Tensor:
        """The (batch,) means of the scores that the ids have had; NaN for none."""
        means = [self._means.get(key, (math.nan, 0))[0] for key in ids.tolist()]
        return torch.tensor(means, dtype=torch.float32, device=ids.device)

    def update(self, scores: Tensor, ids: Tensor) -> None:
        """Add (batch,) scores to the histories of their ids; NaN and infinity are passed over."""
        if not self.smoothing:
            return
        for key, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if math.isfinite(score):
                self._means[key] = self._with(key, score)

    def clear(self) -> None:
        """Forget every score."""
        self._means.clear()

    def _with(self, key: int, score: float) -> tuple[float, int]:
        mean, visits = self._means.get(key, (0.0, 0))
        past = min(self.smoothing, visits / (visits + 1))
        return past * mean + (1 - past) * score, visits + 1

    def state_dict(self) -> State:
        """The means and the number of visits of every id."""
        means, visits = zip(*self._means.values(), strict=True) if self._means else ((), ())
        content: State = {
            "smoothing": self.smoothing,
            "ids": torch.tensor(list(self._means), dtype=torch.int64, device="cpu"),
            "means": torch.tensor(means, dtype=torch.float64, device="cpu"),
            "visits": torch.tensor(visits, dtype=torch.int64, device="cpu"),
        }
        return sealed_state("ScoreHistory", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved means; smoothing must be what it was saved with."""
        keys = ("smoothing", "ids", "means", "visits")
        content = open_state(state, kind="ScoreHistory", version=1, keys=keys)
        # Whoever loads it has built a detector, and set its smoothing there.
        check_settings("OODDetector", content, {"smoothing": self.smoothing})
        columns = (content[name].tolist() for name in ("ids", "means", "visits"))
        self._means = {key: (mean, visits) for key, mean, visits in zip(*columns, strict=True)}
