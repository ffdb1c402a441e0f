"""The loader that a user gets back from ``CropMixer.wrap``.

It hands batches of any other loader through a mixer; what a mixed batch holds is the mixer's to say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, TypeVar

from raremix import distributed
from raremix.errors import LoaderError, OptionError, StateMismatchError
from raremix.mixing.batch import Batch
from raremix.mixing.carried import CarriedRows
from raremix.mixing.crops import CropMixer
from raremix.mixing.loader import MixedLoader
from raremix.protocols import State
from raremix.state import open_state, sealed_state

__all__ = ["CropLoader"]

_BatchT = TypeVar("_BatchT")
_KIND = "CropLoader"
_WHAT = {
    "carried": "rows that gave way",
    "buffer": "the buffer",
    "base": "the loader inside",
}


class CropLoader(Generic[_BatchT]):
    """Batches of another loader, with crops from a buffer mixed in; made by ``CropMixer.wrap``.

    Attributes:
        base: The other loader.
        mixer: What mixes.
        prefetched: Whether a prefetcher around it holds one batch back.
        batch: The rows of the batch delivered last. Reading it before the first batch raises
            ``LoaderError``.
        carried: How many rows that gave way are waiting to come in a batch of their own.
    """

    def __init__(
        self,
        base: Iterable[_BatchT],
        mixer: CropMixer,
        *,
        stretch: bool = False,
        prefetched: bool = False,
    ) -> None:
        if isinstance(base, (MixedLoader, CropLoader)):
            raise LoaderError(
                f"CropMixer.wrap got a {type(base).__name__}, which is mixed already; wrap the plain "
                "loader."
            )
        if not isinstance(base, Iterable):
            raise LoaderError(
                f"CropMixer.wrap expects a loader that yields batches, got {type(base).__name__}."
            )
        self.base = base
        self.mixer = mixer
        self.prefetched = prefetched
        self._carried = CarriedRows() if stretch else None
        self._batch: Batch | None = None
        self._iteration = 0
        if mixer.replay > 0 and mixer.mode == "replace" and getattr(base, "batch_size", 0) == 1:
            raise OptionError(
                "CropMixer.wrap cannot replace rows in batches of one row; raise batch_size, or "
                'use mode="extend".'
            )

    @property
    def batch(self) -> Batch:
        """The rows of the batch delivered last."""
        if self._batch is None:
            raise LoaderError("CropLoader.batch is known once the first batch has been delivered.")
        return self._batch

    @property
    def carried(self) -> int:
        """How many rows that gave way are waiting to come in a batch of their own."""
        return 0 if self._carried is None else len(self._carried)

    def __len__(self) -> int:
        """Batches of an epoch, as many as the other loader has."""
        if self._carried is not None:
            raise TypeError(
                'CropLoader has no length with mode="stretch", because the number of batches depends on '
                "what the buffer will hold; it runs all the same."
            )
        if not isinstance(self.base, Sized):
            raise TypeError(
                f"CropLoader has no length, because {type(self.base).__name__} has none; it runs all "
                "the same."
            )
        return len(self.base)

    def __iter__(self) -> Iterator[_BatchT]:
        if self._carried is not None and distributed.world_size() > 1:
            raise LoaderError(
                "CropMixer.wrap cannot stretch a stream under torch.distributed, because every rank "
                'would have another number of batches; use mode="extend" to lose no row.'
            )
        self._iteration += 1
        iteration = self._iteration
        held_back: Batch | None = None
        for mixed, rows in self._mixed(iteration):
            # A prefetcher takes the next batch, then gives the one before on.
            self._batch, held_back = (held_back, rows) if self.prefetched else (rows, None)
            yield mixed
        if held_back is not None:
            self._batch = held_back

    def _mixed(self, iteration: int) -> Iterator[tuple[_BatchT, Batch]]:
        yield from self._made_of_carried()  # due when the state was saved
        for batch in self.base:
            if iteration != self._iteration:
                raise LoaderError(
                    "CropLoader was iterated anew while an earlier iteration still went on, so "
                    "loader.batch would name the rows of either; finish one loop before the next, "
                    "or wrap a second loader with a buffer of its own."
                )
            ids = self.mixer.base_ids(batch)
            self._check_width(len(ids))
            if self._carried is not None and not self._carried.width:
                self._carried.width = len(ids)
            yield self.mixer.mix(batch, ids, carried=self._carried)
            yield from self._made_of_carried()

    def _made_of_carried(self) -> Iterator[tuple[Any, Batch]]:
        while self._carried is not None and self._carried.is_due:
            yield self.mixer.mix(*self._carried.pop(), carried=self._carried)

    def _check_width(self, width: int) -> None:
        most = getattr(self.base, "batch_size", None)
        if isinstance(most, int) and width > most:
            raise LoaderError(
                f"CropMixer counted {width} rows in a batch of a loader with batch_size={most}; pass "
                "rows=, a function that returns how many rows a batch has, such as lambda batch: "
                "len(batch) // views."
            )

    def state_dict(self) -> State:
        """All there is to save: where mixing stands, the buffer, and rows that wait to come.

        Also the state of the other loader, if that has one; otherwise going on in the middle of a
        stream is up to you. A batch that a prefetcher holds back is not in it.
        """
        content: State = {
            "mixer": self.mixer.state_dict(),
            "carried": None if self._carried is None else self._carried.state_dict(),
        }
        for name, part in self._others():
            content[name] = part.state_dict() if _is_stateful(part) else None
        return sealed_state(_KIND, 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that had been delivered.

        Raises:
            StateMismatchError: If replay, mode, seed, the number of ranks or the buffer's settings
                differ, or only one of the two loaders around which this was made has a state.
        """
        keys = ("mixer", "carried", "buffer", "base")
        content = open_state(state, kind=_KIND, version=1, keys=keys)
        parts = [("carried", self._carried), *self._others()]
        for name, part in parts:
            if (content[name] is None) == _is_stateful(part):
                raise StateMismatchError(
                    f"CropLoader.load_state_dict got a state that has "
                    f"{'nothing' if content[name] is None else 'something'} for {_WHAT[name]}, unlike "
                    "this loader; wrap as you did when it was saved."
                )
        before = self.mixer.state_dict()
        self.mixer.load_state_dict(content["mixer"])
        try:
            # The buffer first: it refuses what does not fit before it changes anything.
            for name, part in sorted(parts, key=lambda each: each[0] != "buffer"):
                if _is_stateful(part):
                    part.load_state_dict(content[name])
        except StateMismatchError:
            self.mixer.load_state_dict(before)
            raise

    def _others(self) -> list[tuple[str, Any]]:
        return [("buffer", self.mixer.buffer), ("base", self.base)]


def _is_stateful(part: object) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
