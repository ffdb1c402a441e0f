"""Runs an encoder over a loader and keeps one embedding per image, in the dataset's order.

It knows neither files of images nor scores; the encoder is any module that gives rows.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from raremix.data.arrays import Array
from raremix.data.kinds import PathLike
from raremix.data.writing import NpyWriter, target_path
from raremix.errors import EmbeddingShapeError, LoaderError, OptionError, RaremixWarning
from raremix.progress import Progress

__all__ = ["device_of", "evaluating", "extract_embeddings", "rows_of"]

_DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


def extract_embeddings(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    out: PathLike | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    amp: bool = False,
) -> Tensor | Array:
    """Embed every image of a loader; row i belongs to the i-th image of the dataset.

    The model runs in evaluation mode and without gradients; afterwards each of its modules is in
    the mode it was in, and on its device.

    Args:
        model: The encoder. Its output may be a tensor of shape (batch, dim) or (batch, dim, 1, 1);
            a tuple or list that begins with one; or a dict with ``x_norm_clstoken``,
            ``image_embeds``, ``last_hidden_state`` (its first token) or ``pooler_output``.
        loader: Gives batches in the dataset's order: float tensors of shape (batch, 3, H, W),
            tuples or lists that begin with one, or dicts with ``image`` or ``pixel_values``.
        device: Where to run; by default where the model is.
        out: Write a .npy file instead of filling memory. Rows are streamed, and nothing half
            done ever has that name.
        dtype: Of the result: float16, float32 or float64.
        progress: Report rate and time left on standard error.
        amp: Run under torch.autocast of the device.

    Returns:
        Tensor of shape (n, dim) on the CPU; with ``out``, a read-only memory map of the file.

    Raises:
        LoaderError: If the loader shuffles, leaves images out, gives something else than image
            batches, or gives none.
        EmbeddingShapeError: If the model does not give one row per image.
        OptionError: If ``device`` or ``dtype`` is unusable, or ``out`` cannot be written.

    Warns:
        RaremixWarning: If rows hold NaN or infinity; they are kept in place.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> images = DataLoader(TensorDataset(torch.ones(5, 3, 2, 2)), batch_size=2)
        >>> extract_embeddings(nn.Flatten(), images, progress=False).shape
        torch.Size([5, 12])
    """
    _refuse_disorder(loader)
    if dtype not in _DTYPES:
        raise OptionError(
            f"extract_embeddings expects dtype float16, float32 or float64, got {dtype}."
        )
    target = None if out is None else target_path(out, caller="extract_embeddings")
    home = device_of(model)
    where = home if device is None else _usable_device(device)
    cast = torch.autocast(where.type) if amp else nullcontext()
    bad: list[int] = []
    rows: _Rows | None = None
    done = 0

    def embedded(batch: Any) -> Tensor:
        images = _images_of(batch)
        with cast:
            output = model(images.to(where, non_blocking=True))
        return rows_of(output, len(images), caller="extract_embeddings").to("cpu", dtype)

    total = _length_of(loader)
    with (
        evaluating(model, where),
        torch.inference_mode(),
        Progress(total, label="embedding", unit="images", enabled=progress) as bar,
    ):
        batches = iter(loader)
        first = next(batches, None)
        if first is None:
            raise LoaderError(
                "extract_embeddings got no batch from the loader: its dataset is empty, or it is "
                "an iterator that is used up; pass the DataLoader itself."
            )
        start = embedded(first)
        dim = start.shape[1]
        if target is None:
            rows = _InMemory(total or len(start), dim, dtype)
        else:
            rows = _InFile(target, dim, _DTYPES[dtype])
        with rows.opened():
            current: Tensor | None = start
            while current is not None:
                if current.shape[1] != dim:
                    raise EmbeddingShapeError(
                        f"extract_embeddings got rows {current.shape[1]} wide after rows {dim} "
                        "wide; the model must give one width for every batch."
                    )
                wrong = (~torch.isfinite(current).all(dim=1)).nonzero().flatten()
                bad.extend((wrong + done).tolist())
                rows.add(current)
                done += len(current)
                bar.advance(len(current))
                following = next(batches, None)
                current = None if following is None else embedded(following)
            if total is not None and done != total and _is_map_style(loader):
                raise LoaderError(
                    f"extract_embeddings got {done} images from a dataset of {total}, so row i "
                    "would not be image i; a collate_fn or batch_sampler leaves some out or "
                    "repeats some. Drop unreadable images from the dataset instead."
                )
    if bad:
        warnings.warn(
            f"extract_embeddings: {len(bad)} of {done} embeddings hold NaN or infinity (rows "
            f"{', '.join(map(str, bad[:10]))}{' ...' if len(bad) > 10 else ''}). Look at these "
            "images, or run without amp and with dtype=torch.float32.",
            RaremixWarning,
            stacklevel=2,
        )
    return rows.result()


class _Rows(Protocol):
    def opened(self) -> AbstractContextManager[Any]: ...
    def add(self, rows: Tensor) -> None: ...
    def result(self) -> Tensor | Array: ...


class _InMemory:
    """Rows in one tensor made in advance, so that no second copy is ever needed."""

    def __init__(self, capacity: int, dim: int, dtype: torch.dtype) -> None:
        # A tensor made in inference mode could never be used with autograd afterwards.
        with torch.inference_mode(False):
            self._all = torch.empty(capacity, dim, dtype=dtype)
        self._count = 0

    def opened(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def add(self, rows: Tensor) -> None:
        end = self._count + len(rows)
        if end > len(self._all):  # Only where the length was not known.
            with torch.inference_mode(False):
                larger = self._all.new_empty(2 * end, self._all.shape[1])
                larger[: self._count] = self._all[: self._count]
            self._all = larger
        self._all[self._count : end] = rows
        self._count = end

    def result(self) -> Tensor:
        full = self._count == len(self._all)
        return self._all if full else self._all[: self._count].clone()


class _InFile:
    def __init__(self, path: PathLike, dim: int, dtype: Any) -> None:
        self._path = path
        self._writer = NpyWriter(path, dim=dim, dtype=dtype)

    def opened(self) -> AbstractContextManager[Any]:
        return self._writer

    def add(self, rows: Tensor) -> None:
        self._writer.write(rows.numpy())

    def result(self) -> Array:
        mapped: Array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return mapped


@contextmanager
def evaluating(model: nn.Module, where: torch.device | None = None) -> Iterator[torch.device]:
    """Run a model in evaluation mode; after that each of its modules is as it was, and where it was.

    Args:
        model: The encoder.
        where: The device to run on; where the model is if None.

    Yields:
        The device.
    """
    home = device_of(model)
    where = home if where is None else where
    # Each module's own flag: a caller may have frozen the batch norms of a model in training.
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        if where != home:
            model.to(where)
        yield where
    finally:
        for module, mode in modes:
            module.training = mode
        if where != home:
            model.to(home)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU if it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        # An empty tensor finds out what the name alone does not: whether the device is there.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"extract_embeddings cannot use device {str(device)!r} here "
            f"({str(error).splitlines()[0]}); leave device out to run where the model is."
        ) from error


def _refuse_disorder(loader: Iterable[Any]) -> None:
    if not isinstance(loader, DataLoader):
        return
    batches = loader.batch_sampler
    sampler: Any = batches.sampler if isinstance(batches, BatchSampler) else loader.sampler
    random = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    if isinstance(sampler, random):
        raise LoaderError(
            f"extract_embeddings needs the dataset's order, and the loader draws with a "
            f"{type(sampler).__name__}, so row i would not be image i; make a loader with "
            "shuffle=False."
        )
    if isinstance(sampler, DistributedSampler):
        raise LoaderError(
            "extract_embeddings needs every image, and a DistributedSampler gives each process a "
            "part; embed in one process, or give each its own torch.utils.data.Subset."
        )
    length = _length_of(loader)
    if (
        isinstance(batches, BatchSampler)
        and batches.drop_last
        # Of an iterable dataset each worker may drop some, so counting does not help there.
        and (length is None or not _is_map_style(loader) or length % batches.batch_size)
    ):
        raise LoaderError(
            "extract_embeddings needs every image, and the loader's drop_last=True would leave out "
            "the last ones; make it with drop_last=False."
        )


def _is_map_style(loader: Iterable[Any]) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def _length_of(loader: Iterable[Any]) -> int | None:
    """How many images will come, for the time left; None if nobody says."""
    if not isinstance(loader, DataLoader):
        return None
    sized: Any
    for sized in (loader.sampler, loader.dataset):
        try:
            return len(sized)
        except (TypeError, NotImplementedError):
            continue
    return None


def _images_of(batch: Any) -> Tensor:
    images = batch
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in ("image", "pixel_values") if key in batch), None)
        if images is None:
            raise LoaderError(
                "extract_embeddings expects a dict batch to hold 'image' or 'pixel_values', got "
                f"{', '.join(map(str, batch)) or 'nothing'}."
            )
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if not isinstance(images, Tensor):
        hint = " of views; embed one view per image" if isinstance(images, (list, tuple)) else ""
        raise LoaderError(
            "extract_embeddings expects batches that are, or begin with, a tensor of images, got a "
            f"{type(images).__name__}{hint}. Give the dataset transform=eval_transform()."
        )
    if not images.is_floating_point():
        raise LoaderError(
            f"extract_embeddings expects float images, got {images.dtype} of shape "
            f"{tuple(images.shape)}; give the dataset transform=eval_transform()."
        )
    return images


def rows_of(output: Any, count: int, *, caller: str) -> Tensor:
    """Find the (count, dim) embeddings in whatever the model returned.

    Raises:
        EmbeddingShapeError: If there are none.
    """
    found = output
    if isinstance(output, Mapping):
        found = None
        hidden = output.get("last_hidden_state")
        if output.get("x_norm_clstoken") is not None:
            found = output["x_norm_clstoken"]
        elif output.get("image_embeds") is not None:
            found = output["image_embeds"]
        elif isinstance(hidden, Tensor) and hidden.ndim == 3:
            # Before pooler_output, which is an untrained layer in several public ViTs.
            found = hidden[:, 0]
        elif output.get("pooler_output") is not None:
            found = output["pooler_output"]
        if found is None:
            raise EmbeddingShapeError(
                f"{caller} finds no embedding in the model's output, a dict of "
                f"{', '.join(map(str, output)) or 'nothing'}; wrap the model so that it returns a "
                "tensor of shape (batch, dim)."
            )
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if isinstance(found, Tensor):
        if found.ndim == 4 and found.shape[2:] == (1, 1):
            found = found.flatten(1)
        if found.ndim == 2 and len(found) == count and found.shape[1] > 0:
            return found
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise EmbeddingShapeError(
        f"{caller} expects the model to give embeddings of shape ({count}, dim) for "
        f"{count} images, got {got}; pool feature maps, or take the class token, in a wrapper."
    )
