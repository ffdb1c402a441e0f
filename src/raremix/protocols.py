"""The seams where a caller may bring a part of their own.

Structural types only: nothing here holds state, and nothing imports another room.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "BatchRows",
    "DrawnRows",
    "Flags",
    "ReplaySource",
    "RestorableSource",
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


class DrawnRows(Protocol):
    """What a draw from a buffer gave, entry by entry."""

    @property
    def keys(self) -> Sequence[int]:
        """The ids drawn, none twice."""

    @property
    def entries(self) -> Sequence[int]:
        """Which admission each stems from; an id that left and came again has another number."""

    @property
    def probabilities(self) -> Sequence[float]:
        """The chance each had of being in this draw, in (0, 1]."""

    @property
    def ages(self) -> Sequence[int]:
        """Steps each had been held."""


@runtime_checkable
class ReplaySource(Protocol):
    """A buffer that batches can be drawn from, as it was some steps ago."""

    def attach(self, lag: int) -> None:
        """Learn that a sampler begins, whose draw number j reads what was held after step j - lag."""

    def draw_ahead(
        self, number: int, count: int, *, taken: Collection[int], below: int | None, seed: int
    ) -> DrawnRows:
        """Draw at most ``count`` ids for batch ``number``, as a function of what was held then.

        Draws come in order of their numbers; those that were not delivered come again after
        ``rewind``. None of the ids ``taken`` may be drawn, nor any outside [0, ``below``).
        """

    def advance(self, step: int) -> None:
        """Note that batch number ``step`` has been delivered and its feedback may come."""

    def rewind(self, number: int) -> None:
        """Forget draws that were not delivered: batch ``number`` is the next to be drawn."""


@runtime_checkable
class RestorableSource(ReplaySource, Stateful, Protocol):
    """A buffer that can be saved together with the loader that draws from it."""
