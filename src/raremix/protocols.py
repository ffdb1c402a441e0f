"""The seams where a caller may bring a part of their own.

Structural types only: nothing here holds state, and nothing imports another room.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "BatchRows",
    "Flags",
    "ReplaySource",
    "Scorer",
    "State",
    "Stateful",
    "StreamThreshold",
    "Threshold",
]

State = dict[str, Any]
"""A saved state of plain types and tensors, loadable with ``weights_only=True``."""


class Stateful(Protocol):
    """Saves itself to plain types and comes back equal."""

    def state_dict(self) -> State:
        """Return a deep copy of the state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; raises ``StateMismatchError`` if it is not one of ours."""


@runtime_checkable
class Scorer(Stateful, Protocol):
    """Says how far embeddings lie from what has been seen; larger is rarer.

    Embeddings arrive checked: finite float32 of shape (batch, dim), without gradient.
    """

    @property
    def ready(self) -> bool:
        """Whether enough has been seen for ``score`` to answer."""

    def fit(self, embeddings: Tensor, ids: Tensor | None = None) -> Tensor:
        """Forget everything, learn (n, dim) embeddings, return their (n,) leave-one-out scores."""

    def score(self, embeddings: Tensor, ids: Tensor | None = None) -> Tensor:
        """(batch, dim) to (batch,) float32, never against a row of the same id. Reads only."""

    def update(self, embeddings: Tensor, ids: Tensor | None = None) -> None:
        """Add (batch, dim) embeddings to what has been seen."""


@runtime_checkable
class Threshold(Stateful, Protocol):
    """Says above which score an image is rare. Knows no embeddings and no images."""

    @property
    def value(self) -> float:
        """Scores above it are rare; infinity while nothing may be called rare yet."""

    def fit(self, scores: Tensor) -> None:
        """Forget everything and calibrate on (n,) finite scores."""

    def update(self, scores: Tensor, is_rare: Tensor) -> None:
        """See the (batch,) finite scores that were just judged, and how they were judged."""


@runtime_checkable
class StreamThreshold(Threshold, Protocol):
    """A threshold that acts in a stream on more than what came before.

    ``OODDetector.observe`` calls what is said here, if a threshold has it. A budget can hold through
    a jump of the scores only if it is spent with the batch in hand; a warm-up can tell that scores
    have become reliable only from samples that come again.
    """

    def value_for(self, scores: Tensor) -> float:
        """The threshold for the (batch,) finite scores in hand; changes nothing."""

    def update_revisits(self, earlier: Tensor, scores: Tensor) -> None:
        """See (n,) finite scores of samples seen before, and the means of their earlier scores."""


@runtime_checkable
class BatchRows(Protocol):
    """A delivered batch that knows its rows."""

    @property
    def step(self) -> int:
        """How many batches were delivered before this one."""

    @property
    def ids(self) -> Tensor:
        """(batch,) int64, each row's place in the dataset."""

    @property
    def is_replay(self) -> Tensor:
        """(batch,) bool, true where the row came from the buffer."""


class Flags(Protocol):
    """What a detector says of a batch."""

    @property
    def scores(self) -> Tensor:
        """(batch,) float32, larger is rarer."""

    @property
    def is_rare(self) -> Tensor:
        """(batch,) bool."""


@runtime_checkable
class ReplaySource(Protocol):
    """A buffer that batches can be drawn from, also as it was some steps ago."""

    def keep_history(self, steps: int) -> None:
        """Stay able to answer ``view`` for this many steps back."""

    def advance(self, step: int) -> None:
        """Note that batch number ``step`` has been delivered and its feedback may come."""

    def view(self, step: int) -> list[int]:
        """The ids held after the feedback of ``step``; none for a negative step."""
