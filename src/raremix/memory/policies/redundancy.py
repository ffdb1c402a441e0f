"""Who has a near neighbour in the buffer is redundant: each entry's nearest, kept up to date.

An entry that comes is compared with all once; one that leaves makes only those search anew whose
nearest it was. So an eviction costs a product of one row with all, not of all with all.
"""

import numpy as np

from raremix.memory.held import Held
from raremix.memory.policies.base import Policy, features_of

__all__ = ["LeastRedundant"]

_NOBODY = -2.0
"""Less than any cosine: the similarity of an entry that is alone."""


class LeastRedundant(Policy):
    """Keeps what differs: of the two entries most alike, the older leaves.

    Alike means the cosine of their features, which ``add`` must be given. Good where batches are
    correlated, as in video, since a queue then fills with one scene.

    Source:
        The minimum-redundancy memory of Purushwalkam et al., ECCV 2022,
        https://arxiv.org/abs/2203.12710, with nearest neighbours that are updated instead of
        computed for all pairs at each eviction.
    """

    columns = {"alike": "float32", "neighbour": "int64"}  # noqa: RUF012  # read only
    needs_features = True

    def enter(self, held: Held, place: int) -> None:
        """See ``Policy``."""
        self._place(held, place)

    def refresh(self, held: Held, place: int) -> None:
        """See ``Policy``."""
        entry = int(held.rows["entry"][place])
        self._place(held, place)
        held.rows["neighbour"][place], own = -1, held.rows["neighbour"][place].item()
        self.leave(held, entry)
        held.rows["neighbour"][place] = own

    def _place(self, held: Held, place: int) -> None:
        """Find the nearest of an entry, and tell it to those it is nearest to."""
        features = features_of(held)
        cosines = features @ features[place]
        cosines[place] = _NOBODY
        rows = held.rows
        nearest = int(cosines.argmax())
        alone = len(rows) == 1
        rows["alike"][place] = cosines[nearest]
        rows["neighbour"][place] = -1 if alone else rows["entry"][nearest]
        nearer = np.flatnonzero(cosines > rows["alike"])
        nearer = nearer[nearer != place]
        rows["alike"][nearer] = cosines[nearer]
        rows["neighbour"][nearer] = rows["entry"][place]

    def leave(self, held: Held, entry: int) -> None:
        """See ``Policy``."""
        rows, features = held.rows, features_of(held)
        left = np.flatnonzero(rows["neighbour"] == entry)
        if not len(left):
            return
        cosines = features[left] @ features.T
        cosines[np.arange(len(left)), left] = _NOBODY
        nearest = cosines.argmax(axis=1)
        rows["alike"][left] = cosines[np.arange(len(left)), nearest]
        rows["neighbour"][left] = rows["entry"][nearest] if len(rows) > 1 else -1

    def evict(self, held: Held, seed: int) -> int | None:
        """See ``Policy``."""
        if len(held) <= held.limit:
            return None
        alike, entries = held.rows["alike"], held.rows["entry"]
        # Both of a pair are equally alike, but for the rounding of two products.
        most = np.flatnonzero(alike >= alike.max() - 1e-5)
        return int(most[entries[most].argmin()])
