"""The loader that a user gets back from ``BufferedMixSampler.wrap``.

A real DataLoader, which pairs every batch that comes out with the ids that went in. It draws
nothing itself.
"""

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler

from raremix.errors import LagError, LoaderError, OptionError, StateMismatchError
from raremix.mixing.base import GivenSampler
from raremix.mixing.batch import Batch
from raremix.mixing.layouts import tensors
from raremix.mixing.sampler import BufferedMixSampler
from raremix.options import check_count
from raremix.protocols import ReplaySource, RestorableSource, State
from raremix.state import open_state, sealed_state

__all__ = ["MixedLoader", "mixed_loader"]

_BatchT = TypeVar("_BatchT")


class _LoaderSampler(BufferedMixSampler):
    """The sampler of a ``MixedLoader``, which nothing else may iterate.

    Frameworks build loaders of their own around a sampler that they find in one. There, nobody
    would deliver the batches, and some of them would be given to no process at all.
    """

    asked = False  # by its loader, for the iteration that begins next

    def lists(self) -> Iterator[list[int]]:
        """See ``BufferedMixSampler``."""
        if not self.asked:
            raise LoaderError(
                "BufferedMixSampler was iterated by something else than the loader that wrap() made "
                "around it, such as list() or a loader that accelerate built in prepare(). It "
                "shards for itself: do not prepare that loader, iterate it as it is, and move its "
                "tensors to the device yourself."
            )
        self.asked = False
        yield from super().lists()


class MixedLoader(DataLoader[_BatchT], Generic[_BatchT]):
    """A DataLoader whose batches hold rare samples from a buffer; made by ``wrap``.

    Attributes:
        mixer: The sampler that draws the batches.
        batch: The rows of the batch delivered last: step, ids and is_replay. Reading it before
            the first batch raises ``LoaderError``.
        prefetched: Whether a prefetcher around it holds one batch back.
    """

    def __init__(
        self, mixer: BufferedMixSampler, *, prefetched: bool = False, **settings: Any
    ) -> None:
        given = settings.get("sampler"), getattr(settings.get("batch_sampler"), "mixer", None)
        if not any(sampler is mixer for sampler in given):
            raise LoaderError(
                "MixedLoader was built anew around another sampler, so nothing would be mixed in; "
                "Lightning does that for overfit_batches and predict. Use limit_train_batches "
                "there, and a loader that is not mixed for prediction."
            )
        self.mixer = mixer
        self.prefetched = prefetched
        self._batch: Batch | None = None
        super().__init__(**settings)

    @property
    def batch(self) -> Batch:
        """The rows of the batch delivered last."""
        if self._batch is None:
            raise LoaderError("MixedLoader.batch is known once the first batch has been delivered.")
        return self._batch

    def __iter__(self) -> Iterator[_BatchT]:  # type: ignore[override]
        # DataLoader promises its own iterator class here; nothing but its protocol is relied on.
        if isinstance(self.mixer, _LoaderSampler):
            self.mixer.asked = True
        iteration = None
        held_back = False
        for data in super().__iter__():
            if iteration is None:
                iteration = self.mixer.iteration
            self.mixer.check_current(iteration)
            if held_back:  # until now: a prefetcher takes the next batch, then gives this one on
                self._batch = self.mixer.hand_over()
            _check_rows(data, len(self.mixer.due()))
            if self.prefetched:
                held_back = True
            else:
                self._batch = self.mixer.hand_over()
            yield data
        if held_back:
            self._batch = self.mixer.hand_over()
            return
        # Not before: a state saved while the last batch is in hand belongs to the epoch that ends.
        self.mixer.close_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to draw next. Never needed: epochs count up by themselves."""
        self.mixer.set_epoch(epoch)

    @property
    def _is_accelerate_prepared(self) -> bool:
        # accelerate asks for this first in prepare(), before it shards the batches once more.
        raise LoaderError(
            "MixedLoader shards for itself, so accelerate's prepare() must not shard it again. "
            "Prepare the model and the optimizer alone, iterate the loader as it is, and move its "
            "tensors with .to(accelerator.device)."
        )

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger; see ``BufferedMixSampler.metrics``."""
        return self.mixer.metrics()

    def state_dict(self) -> State:
        """All there is to save: where the stream stands, and the buffer, if that can be saved.

        Trainers that save a loader's state, as Lightning does, save both together.
        """
        buffer = self.mixer.buffer
        saved = buffer.state_dict() if isinstance(buffer, RestorableSource) else None
        content = {"mixer": self.mixer.state_dict(), "buffer": saved}
        return sealed_state("MixedLoader", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that had been delivered.

        Raises:
            StateMismatchError: If the state is one of another kind, version or setting; then
                nothing has changed.
        """
        content = open_state(state, kind="MixedLoader", version=1, keys=("mixer", "buffer"))
        buffer = self.mixer.buffer
        before = self.mixer.state_dict()
        self.mixer.load_state_dict(content["mixer"])
        try:
            if content["buffer"] is not None and isinstance(buffer, RestorableSource):
                buffer.load_state_dict(content["buffer"])
        except StateMismatchError:
            self.mixer.load_state_dict(before)
            raise


class _MixedBatchSampler(Sampler[list[int]]):
    """The mixed batches as lists, for a loader that came with a batch sampler of its own."""

    def __init__(self, mixer: BufferedMixSampler, base: Iterable[list[int]]) -> None:
        self.mixer = mixer
        self._base = base

    def __iter__(self) -> Iterator[list[int]]:
        return self.mixer.lists()

    def __len__(self) -> int:
        return len(self._base)  # type: ignore[arg-type]  # a base without length raises TypeError

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch, replays included, if the base says how many it has."""
        return self.mixer.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.mixer.set_epoch(epoch)


def mixed_loader(
    loader: DataLoader[_BatchT],
    buffer: ReplaySource,
    *,
    lag: int | Literal["auto"],
    prefetched: bool = False,
    **options: Any,
) -> MixedLoader[_BatchT]:
    """Build the loader for ``BufferedMixSampler.wrap``, whose page says what it does."""
    _refuse_what_cannot_be_mixed(loader)
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    if lag == "auto":
        lag = ahead + prefetched + 1
    if isinstance(lag, str):
        raise OptionError(
            f'BufferedMixSampler.wrap expects lag as a whole number or "auto", got {lag!r}.'
        )
    lag = check_count("BufferedMixSampler.wrap", "lag", lag, least=1)
    if lag <= ahead + prefetched:
        whose = f"whose {loader.num_workers} workers draw {ahead} batches ahead"
        if prefetched:
            whose += ", and one more for the prefetcher"
        raise LagError(
            f"BufferedMixSampler.wrap got lag={lag} for a loader {whose}; pass "
            f"lag={ahead + prefetched + 1} or more, or use fewer workers."
        )
    batches = loader.batch_sampler
    assert batches is not None
    if _is_stateful(loader):
        batches = _without_state(batches)
    # A BatchSampler only cuts what its sampler yields, also one that the user built.
    plain = batches if type(batches) is BatchSampler else None
    base: Iterable[Any] = batches if plain is None else plain.sampler
    mixer = _LoaderSampler(
        base if isinstance(base, Sampler) else GivenSampler(base),
        buffer,
        batch_size=None if plain is None else plain.batch_size,
        drop_last=False if plain is None else plain.drop_last,
        lag=lag,
        **options,
    )
    settings: dict[str, Any] = {
        "dataset": loader.dataset,
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
    }
    if getattr(loader, "pin_memory_device", ""):  # newer releases of torch deprecate it
        settings["pin_memory_device"] = loader.pin_memory_device
    if plain is None:
        settings["batch_sampler"] = _MixedBatchSampler(mixer, base)
    else:
        settings["sampler"] = mixer
        settings["batch_size"] = mixer.batch_size
        settings["drop_last"] = plain.drop_last
    kind = stateful_loader() if _is_stateful(loader) else MixedLoader
    mixed: MixedLoader[_BatchT] = kind(mixer, prefetched=prefetched, **settings)
    return mixed


def _is_stateful(loader: DataLoader[Any]) -> bool:
    """Whether it is exactly torchdata's StatefulDataLoader, which is then imported already."""
    module = sys.modules.get("torchdata.stateful_dataloader")
    return module is not None and type(loader) is module.StatefulDataLoader


def _without_state(batches: Any) -> Any:
    """Torch's own samplers instead of torchdata's, which are the same and save themselves too."""
    from torchdata.stateful_dataloader import sampler as stateful

    if type(batches) is not stateful.BatchSampler:
        return batches
    sampler = batches.sampler
    if type(sampler) is stateful.RandomSampler:
        sampler = RandomSampler(
            sampler.data_source,
            replacement=sampler.replacement,
            num_samples=sampler.num_samples,
            generator=sampler.generator,
        )
    return BatchSampler(sampler, batches.batch_size, batches.drop_last)


@functools.cache
def stateful_loader() -> type[MixedLoader[Any]]:
    """The class of a wrapped StatefulDataLoader: one that saves the mixed stream instead."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    class MixedStatefulLoader(MixedLoader[Any], StatefulDataLoader[Any]):  # type: ignore[misc]
        """A ``MixedLoader`` that is a StatefulDataLoader.

        Its state is that of the stream and the buffer. That of samplers and workers, from which
        torchdata resumes, cannot hold feedback, and the draws depend on that.
        """

    return MixedStatefulLoader


def _refuse_what_cannot_be_mixed(loader: DataLoader[Any]) -> None:
    call = "BufferedMixSampler.wrap"
    if not isinstance(loader, DataLoader):
        raise LoaderError(f"{call} expects a torch DataLoader, got {type(loader).__name__}.")
    if isinstance(loader, MixedLoader):
        raise LoaderError(f"{call} got a loader that is mixed already; wrap the plain one.")
    if type(loader) is not DataLoader and not _is_stateful(loader):
        raise LoaderError(
            f"{call} would lose what {type(loader).__name__} adds to DataLoader. Build your loader "
            "with sampler=BufferedMixSampler(dataset, buffer, batch_size=...) and call its "
            "deliver() once for each batch."
        )
    if _is_stateful(loader) and hasattr(loader.dataset, "state_dict"):
        raise LoaderError(
            f"{call} cannot keep the state that {type(loader.dataset).__name__} saves in the "
            "workers of a StatefulDataLoader; wrap a plain DataLoader over it, or a dataset without "
            "state_dict."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise LoaderError(
            f"{call} cannot mix into {type(loader.dataset).__name__}, an IterableDataset: its "
            "samples have no ids to draw again. Use a map-style dataset."
        )
    if loader.batch_sampler is None:
        raise LoaderError(
            f"{call} expects a loader that batches, got batch_size=None; give it a batch_size."
        )
    if not getattr(loader, "in_order", True):
        raise LoaderError(
            f"{call} cannot tell which rows a batch holds when batches come out of order; build "
            "the loader with in_order=True."
        )


def _check_rows(data: object, expected: int) -> None:
    """Refuse a batch whose rows were dropped or multiplied on the way."""
    shapes = []
    for leaf in tensors(data):
        # View-major layouts put all views into one tensor: a whole multiple of the rows. Beside
        # it a batch may hold tensors that have no rows, such as a temperature.
        if leaf.ndim and len(leaf) and len(leaf) % expected == 0:
            return
        shapes.append(tuple(leaf.shape))
    if shapes:
        raise LoaderError(
            f"MixedLoader drew {expected} rows and the collate function returned tensors of shape "
            f"{shapes}, so loader.batch would name the wrong rows; let the collate function keep "
            "every row, in order."
        )
