"""Mixes stored crops into batches that have been collated already, as fresh views.

For samples that cannot be read again by an id: streams, and regions cut out of frames. All of it
happens in the training process, between the loader and the step, so nothing lags.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Tensor

from raremix import distributed
from raremix.errors import LoaderError, OptionError
from raremix.inputs import as_ids
from raremix.memory.entries import BufferEntries
from raremix.mixing.batch import Batch
from raremix.mixing.fresh import described, joined, rows_that_give_way
from raremix.mixing.layouts import Leaf, Order, fresh_rows, rebuilt, tensors
from raremix.mixing.modes import Mode, Plan
from raremix.options import check_choice, check_number
from raremix.protocols import State
from raremix.seeds import derive_seed, seeded_generator
from raremix.state import check_settings, open_state, sealed_state

if TYPE_CHECKING:
    from raremix.mixing.carried import CarriedRows
    from raremix.mixing.crop_loader import CropLoader

__all__ = ["CropMixer", "CropSource"]

_BatchT = TypeVar("_BatchT")
_KIND = "CropMixer"


@runtime_checkable
class CropSource(Protocol):
    """A buffer that holds pixels and can be drawn from at once."""

    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        taken: Collection[int] = frozenset(),
    ) -> BufferEntries:
        """Draw at most ``count`` entries, none twice, with uint8 (n, channels, height, width) crops.

        None of the ids ``taken`` may be drawn.
        """

    def advance(self, step: int) -> None:
        """Note that batch number ``step`` has been delivered and its feedback may come."""


class CropMixer:
    """Puts fresh views of a buffer's crops into batches, whole rows at a time.

    A row is replaced in all views, targets and masks of a batch, or in none. The tensors of the batch
    are written to in place: width, dtype, device and pinned memory stay, and a batch whose tensors
    belong to something else, such as a dataset that yields slices of its own memory, has to be
    copied first. Mix before tensors are sent anywhere asynchronously.

    The views of a row are a function of ``seed``, the rank, the number of the batch and the place
    in its draw. So a sample looks different each time it is replayed, and every run is the same.

    They are made in this process: a step takes longer by one ``transform`` for each replayed row.

    Args:
        buffer: A buffer that was given crops, such as ``RareMemoryBuffer``.
        transform: Called as ``transform(pixels, generator=generator)`` with uint8 (channels, height,
            width) of one entry; returns its views. Such as a ``MultiCropTransform``.
        sample: Called as ``sample(views, pixels, id)``; returns what a replayed row holds, built as
            your dataset yields one sample, with ``...`` for parts of the batch that shall stay as they
            are. Not needed if a batch consists of views alone.
        replay: K / B, in [0, 1), where K rows from the buffer come to a batch of B; K is rounded to a
            whole number, at least 1. 0 turns mixing off.
        mode: "replace": K rows of the batch give way, at most all but one; fewer, while the buffer
            holds too little. "extend": K rows are added behind those of the batch, in new tensors;
            while the buffer holds too little, some of them are new views of rows of the batch itself,
            of which ``entry`` is -2, so ``pixels`` is needed.
        ids: Called with a batch; returns its (batch,) ids. If not given, rows get running numbers,
            each once over all epochs and ranks.
        pixels: Called with a batch; returns the uint8 (batch, channels, height, width) its views
            were made of.
        rows: Called with a batch; returns how many rows it has. If not given, as many as ``ids`` or
            ``pixels`` return, or else as its first tensor has.
        order: How a tensor that holds several views of each row in its first dimension is laid out:
            view v of row i at i + v * rows ("view-major", as from dinov2) or at i * views + v
            ("row-major").
        seed: Of the draws and of the views.

    Raises:
        OptionError: If an option is out of its range, or "extend" lacks ``pixels``.

    Example:
        >>> from raremix import BufferEntries, MultiCropTransform, RareMemoryBuffer
        >>> buffer = RareMemoryBuffer(capacity=4)
        >>> crops = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
        >>> buffer.admit(BufferEntries(torch.tensor([7]), torch.ones(1), crops))
        1
        >>> mixer = CropMixer(buffer, MultiCropTransform(), replay=0.25)
        >>> views = [torch.ones(4, 3, size, size) for size in [224] * 2 + [96] * 6]
        >>> views, rows = mixer(views)
        >>> rows.ids[rows.is_replay], int((views[0] == 1).all(dim=(1, 2, 3)).sum())
        (tensor([7]), 3)
    """

    def __init__(
        self,
        buffer: CropSource,
        transform: Callable[..., Any],
        *,
        sample: Callable[[Any, Tensor, int], Any] | None = None,
        replay: float = 0.125,
        mode: Literal["replace", "extend"] = "replace",
        ids: Callable[[Any], Tensor] | None = None,
        pixels: Callable[[Any], Tensor] | None = None,
        rows: Callable[[Any], int] | None = None,
        order: Order = "view-major",
        seed: int = 0,
    ) -> None:
        if not isinstance(buffer, CropSource):
            raise OptionError(
                f"CropMixer expects a buffer such as RareMemoryBuffer(1024), got {buffer!r}."
            )
        calls = {"sample": sample, "ids": ids, "pixels": pixels, "rows": rows}
        for name, call in {"transform": transform, **calls}.items():
            if not callable(call) and (call is not None or name == "transform"):
                raise OptionError(f"CropMixer expects {name} as a function, got {call!r}.")
        self.replay = check_number(_KIND, "replay", replay, least=0.0, below=1.0)
        check_choice(_KIND, "mode", mode, ("replace", "extend"))
        check_choice(_KIND, "order", order, get_args(Order))
        if mode == "extend" and pixels is None:
            raise OptionError(
                'CropMixer with mode="extend" expects pixels=, a function that finds the uint8 pixels '
                "of a batch: rows are made of them while the buffer holds too little."
            )
        self.buffer = buffer
        self.mode = mode
        self._plan = Plan(mode, None, replay)  # batches come as they are
        self.order: Order = order
        self.seed = seed
        self._transform, self._sample = transform, sample
        self._ids, self._pixels, self._rows = ids, pixels, rows
        self._step = 0  # batches mixed over all epochs
        self._numbered = 0  # running numbers given on this rank

    @classmethod
    def wrap(
        cls,
        loader: Iterable[_BatchT],
        buffer: CropSource,
        transform: Callable[..., Any],
        *,
        sample: Callable[[Any, Tensor, int], Any] | None = None,
        replay: float = 0.125,
        mode: Mode = "replace",
        ids: Callable[[Any], Tensor] | None = None,
        pixels: Callable[[Any], Tensor] | None = None,
        rows: Callable[[Any], int] | None = None,
        order: Order = "view-major",
        seed: int = 0,
        prefetched: bool = False,
    ) -> "CropLoader[_BatchT]":
        """Make a loader of mixed batches around any loader, also around one of a stream.

        After each batch it gives, ``loader.batch`` says which rows it holds.

        Args:
            loader: A DataLoader, or anything that yields batches, but not a mixed loader.
            buffer: As of the class, and so all the others.
            transform: As of the class.
            sample: As of the class.
            replay: As of the class.
            mode: As of the class, or "stretch": as "replace", but rows that give way are kept, and
                come in a batch of their own once there are enough for one, so that no row of a
                stream is lost. The number of batches then depends on the buffer, and there is no
                length. Fewer than a batch and its replays are kept; what is left at the end comes in
                the next epoch.
            ids: As of the class.
            pixels: As of the class.
            rows: As of the class.
            order: As of the class.
            seed: As of the class.
            prefetched: Whether something around the new loader takes each batch one step before
                it gives it on, as timm's PrefetchLoader does, and Lightning with loaders that have no
                length. ``loader.batch`` then names the rows of the batch given on.

        Raises:
            LoaderError: If ``loader`` is mixed already, or yields no batches.
            OptionError: As of the class, or for batches of one row, unless ``mode`` is "extend".
        """
        from raremix.mixing.crop_loader import CropLoader

        check_choice("CropMixer.wrap", "mode", mode, get_args(Mode))
        mixer = cls(
            buffer,
            transform,
            sample=sample,
            replay=replay,
            mode="extend" if mode == "extend" else "replace",
            ids=ids,
            pixels=pixels,
            rows=rows,
            order=order,
            seed=seed,
        )
        return CropLoader(loader, mixer, stretch=mode == "stretch", prefetched=prefetched)

    def __call__(self, batch: _BatchT) -> tuple[_BatchT, Batch]:
        """Mix into the next batch; call it once for each, in order.

        Args:
            batch: Tensors, and lists with one object a row, nested in lists, tuples and mappings.
                Its tensors and lists are changed in place, unless ``mode`` is "extend".

        Returns:
            The batch, in new containers if it has tuples of objects or ``mode`` is "extend"; and
            what its rows are.

        Raises:
            LoaderError: Naming the part of the batch that a fresh row does not fit; the batch is
                then as it was.
            OptionError: If the buffer holds no pixels.
        """
        return self.mix(batch, self.base_ids(batch))

    def base_ids(self, batch: object) -> Tensor:
        """(batch,) int64, the ids of a batch before it is mixed; new numbers, if it has none."""
        ids = None if self._ids is None else as_ids(self._ids(batch), caller="CropMixer with ids=")
        width = self._width(batch, ids)
        if ids is not None:
            if len(ids) != width:
                raise LoaderError(
                    f"CropMixer got {len(ids)} ids for {width} rows; let ids= return one a row."
                )
            return ids
        numbers = torch.arange(self._numbered, self._numbered + width, device="cpu")
        self._numbered += width
        return numbers * distributed.world_size() + distributed.rank()

    def mix(
        self, batch: _BatchT, ids: Tensor, *, carried: "CarriedRows | None" = None
    ) -> tuple[_BatchT, Batch]:
        """``__call__`` for a batch whose ids are known; ``carried`` takes the rows that give way."""
        step, width = self._step, len(ids)
        seed = derive_seed(self.seed, distributed.rank(), step)
        count = self._plan.replays(width) if width else 0
        drawn = self._drawn(count, ids, seed)
        shuffled = torch.randperm(width, generator=seeded_generator(seed, 1), device="cpu")
        if self.mode == "replace":
            written = rows_that_give_way(ids, drawn.keys, shuffled)
            rows = self._fresh(batch, drawn, width, seed)
            if rows and carried is not None:
                carried.take(batch, [leaf for leaf, _ in rows], written, ids)
        else:
            own = self._own(batch, ids, shuffled, count - len(drawn))
            ids = torch.cat([ids, drawn.keys, own.keys])
            written = torch.arange(width, len(ids), device="cpu")
            rows = self._fresh(batch, joined(drawn, own), width, seed)
            rows = [(leaf.extended(len(ids)), values) for leaf, values in rows]
        for leaf, values in rows:
            leaf.write(written, values)
        new = [leaf for leaf, _ in rows if leaf.is_tuple or self.mode == "extend"]
        if new:
            batch = rebuilt(batch, {leaf.path: leaf.part for leaf in new})
        self.buffer.advance(step)
        self._step += 1
        return batch, described(step, ids, drawn, written)

    def _width(self, batch: object, ids: Tensor | None) -> int:
        if self._rows is not None:
            return self._rows(batch)
        if ids is not None:
            return len(ids)
        if self._pixels is not None:
            return len(self._pixels(batch))
        for tensor in tensors(batch):
            if tensor.ndim:
                return len(tensor)
        raise LoaderError(
            f"CropMixer found no tensor with rows in a batch of type {type(batch).__name__}; pass "
            "batches of tensors in lists, tuples or mappings."
        )

    def _drawn(self, count: int, ids: Tensor, seed: int) -> BufferEntries:
        # In "replace", an entry whose own row is in the batch takes its place.
        taken = frozenset(ids.tolist() if self.mode == "extend" else ())
        drawn = self.buffer.draw(count, generator=seeded_generator(seed, 0), taken=taken)
        if len(drawn) and drawn.crops is None:
            raise OptionError(
                "CropMixer drew entries without pixels; give every entry some, with "
                "buffer.add(..., crops=...) or BufferEntries(keys, scores, crops), or mix by ids "
                "with BufferedMixSampler."
            )
        return drawn

    def _own(self, batch: object, ids: Tensor, shuffled: Tensor, count: int) -> BufferEntries:
        """Rows of the batch itself, to be viewed anew where the buffer holds too little."""
        if not count:
            return BufferEntries(ids[:0], torch.zeros(0))
        assert self._pixels is not None
        rows = shuffled.repeat(-(-count // len(ids)))[:count]
        found = self._pixels(batch)
        if not isinstance(found, Tensor) or found.dtype != torch.uint8 or len(found) != len(ids):
            what = f"{found.dtype} of shape {tuple(found.shape)}" if hasattr(found, "dtype") else ""
            raise LoaderError(
                f"CropMixer expects pixels= to return uint8 of shape ({len(ids)}, channels, height, "
                f"width), got {what or type(found).__name__}; let the dataset yield them beside "
                "its views."
            )
        return BufferEntries(ids[rows], torch.zeros(count), found[rows.to(found.device)].cpu())

    def _fresh(
        self, batch: object, entries: BufferEntries, width: int, seed: int
    ) -> list[tuple[Leaf, list[Any]]]:
        if not len(entries):
            return []
        assert entries.crops is not None
        samples = []
        keys = entries.keys.tolist()
        for place, (key, pixels) in enumerate(zip(keys, entries.crops, strict=True)):
            views = self._transform(pixels, generator=seeded_generator(seed, 2, place))
            samples.append(views if self._sample is None else self._sample(views, pixels, key))
        return fresh_rows(batch, samples, width=width, order=self.order, caller="CropMixer")

    def state_dict(self) -> State:
        """How many batches came and which numbers were given; save the buffer's state with it.

        Of a loader from ``wrap``, save the loader's.
        """
        content: State = {**self._settings(), "step": self._step, "numbered": self._numbered}
        return sealed_state(_KIND, 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that had been mixed.

        Raises:
            StateMismatchError: If replay, mode, seed or the number of ranks differ.
        """
        settings = self._settings()
        content = open_state(state, kind=_KIND, version=1, keys=(*settings, "step", "numbered"))
        check_settings(_KIND, content, settings)
        self._step, self._numbered = content["step"], content["numbered"]

    def _settings(self) -> dict[str, Any]:
        return {
            "replay": self.replay,
            "mode": self.mode,
            "seed": self.seed,
            "num_replicas": distributed.world_size(),
        }
