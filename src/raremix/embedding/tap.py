"""Listens to a module of a training step and hands over the embeddings that it gave.

It knows neither the step nor the batch: whoever takes says how many rows the batch had.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from typing_extensions import Self

from raremix.errors import EmbeddingShapeError, OptionError, TapError
from raremix.options import check_count

__all__ = ["EmbeddingTap"]

# Far more than the views of any step; only a tap that nobody takes from gets there.
_MOST_CALLS = 256


class _Call(NamedTuple):
    """What one call of the module gave: its number of rows, and the rows if they may be wanted."""

    size: int
    resolution: tuple[int, ...] | None
    rows: Tensor | None


class EmbeddingTap:
    """Gives the embeddings that a module computes inside a training step; the step stays as it is.

    A forward hook copies what the module returns, and ``take`` hands it over, one row for each
    image of the batch. Both ways of showing several views are understood: all of them in one call,
    view by view (``2 * batch`` rows, as in DINO), and one call for each (as in lightly); a call for
    each resolution, of several views each, is a mixture of both.

    Hooks run only where the module itself is called, ``backbone(images)``. Where a step calls
    ``backbone.forward_features(images)`` instead, tap a part that is called, such as
    ``backbone.norm``. Calls made in the backward pass are not heard: they repeat earlier ones, for
    activation checkpointing. Tap what ``torch.compile`` returns, or tap before it.

    Args:
        module: The module whose output is wanted, such as ``teacher.backbone``. Under
            ``nn.DataParallel`` the wrapper, which gathers the rows of all devices.
        view: Which view of each image, counted in the order of the rows and calls from 0, or
            ``"mean"``: the mean over all views whose input had the resolution of the first.
        views: How many views a step shows to the module; the first ``take`` finds out if None. A
            step with more or fewer is refused after that.
        select: Finds the embeddings in what the module returns, as floats of shape (rows, dim),
            (rows, dim, H, W), which is averaged over H and W, or (rows, dim, 1, 1). By default
            the module must return such a tensor itself.

    Raises:
        OptionError: If ``module`` is no module, or ``view`` or ``views`` lies outside its range.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 7))
        >>> with EmbeddingTap(teacher[0]) as tap:
        ...     logits = teacher(torch.ones(10, 4))  # two views of five images
        ...     tap.take(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        view: int | Literal["mean"] = 0,
        views: int | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise OptionError(
                "EmbeddingTap expects a module such as teacher.backbone, got "
                f"{type(module).__name__}."
            )
        if view != "mean":
            view = check_count("EmbeddingTap", "view", view, least=0)
        if views is not None:
            views = check_count("EmbeddingTap", "views", views, least=1)
            if view != "mean" and view >= views:
                raise OptionError(f"EmbeddingTap counts views from 0, got view={view} of {views}.")
        self._name = type(module).__name__
        self._view = view
        self._views = views
        self._select = select
        self._calls: list[_Call] = []
        self._pauses = 0
        self._replicas = False
        self._lock = threading.Lock()
        handle = module.register_forward_hook(_Ear(self, module), with_kwargs=True)
        # A tap that was let go of, as where a cell of a notebook runs twice, must not go on copying.
        self._unhook = weakref.finalize(self, handle.remove)

    def __repr__(self) -> str:
        state = f"view={self._view!r}" if self._unhook.alive else "removed"
        return f"EmbeddingTap({self._name}, {state})"

    def __reduce__(self) -> Any:
        raise TapError(
            "EmbeddingTap cannot be copied or pickled, since its hook sits on one module; make "
            "another with EmbeddingTap(module), and keep it outside the model."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def take(self, rows: int) -> Tensor:
        """Hand over the embeddings of the step that was made, and forget all that was heard.

        Call it once for every batch, after its step, or after each part if the step passes a batch
        through the module in parts.

        Args:
            rows: How many images the batch had: ``len(loader.batch)``.

        Returns:
            Float32 of shape (rows, dim), contiguous, on the device of the module's output, without
            gradient and in memory of its own.

        Raises:
            TapError: If nothing was heard, or not the number of views of the steps before.
            EmbeddingShapeError: If a call had a number of rows that is no multiple of ``rows``.
        """
        rows = check_count("EmbeddingTap.take", "rows", rows, least=1)
        with (
            self._lock
        ):  # Forgotten even if refused: the next step must not be mixed with this one.
            calls, self._calls = self._calls, []
            replicas, self._replicas = self._replicas, False
        if replicas:
            raise TapError(
                f"EmbeddingTap.take heard replicas of {self._name}, each with a part of the rows "
                "and in any order; tap the nn.DataParallel around it instead."
            )
        if not calls:
            raise TapError(
                f"EmbeddingTap.take heard no call of {self._name}{self._why_silent()}; take once "
                "after every step, and tap a module that the step calls itself, not by its "
                "forward or forward_features."
            )
        for call in calls:
            if call.size % rows:
                raise EmbeddingShapeError(
                    f"EmbeddingTap.take({rows}) heard a call of {self._name} with {call.size} "
                    f"rows, which is no multiple of {rows}; pass the number of images that the "
                    "step was given, and take after every part if it splits its batch."
                )
        views = sum(call.size for call in calls) // rows
        known = self._views
        if len(calls) >= _MOST_CALLS or (known is not None and views != known):
            counted = f"at least {views}" if len(calls) >= _MOST_CALLS else f"{views}"
            raise TapError(
                f"EmbeddingTap.take({rows}) heard {counted} views of each row from {self._name}"
                f"{'' if known is None else f', where a step has {known}'}; take after every step, "
                "run validation inside tap.paused(), and call tap.clear() after a step that failed."
            )
        if self._view != "mean" and self._view >= views:
            raise TapError(
                f"EmbeddingTap.take({rows}) was to hand over view {self._view} and heard {views} "
                f"from {self._name}; views are counted from 0."
            )
        self._views = views
        # Without inference mode, whose tensors autograd would refuse later on.
        with torch.inference_mode(False), torch.no_grad():
            return self._mean(calls, rows) if self._view == "mean" else self._one(calls, rows)

    def clear(self) -> None:
        """Forget what was heard, as after a step that failed half-way and is not repeated."""
        with self._lock:
            self._calls = []
            self._replicas = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hear nothing inside the ``with`` block, as for validation between two steps."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def remove(self) -> None:
        """Take the hook off the module, and forget what was heard; further calls do nothing."""
        self._unhook()
        self.clear()

    def _why_silent(self) -> str:
        if not self._unhook.alive:
            return ", from which it was removed"
        return ", since it is paused" if self._pauses else ""

    def _one(self, calls: list[_Call], rows: int) -> Tensor:
        assert self._view != "mean"
        begin = self._view * rows
        for call in calls:
            if begin < call.size:
                assert call.rows is not None  # Of the first view + 1 calls all are kept.
                kept = call.rows[begin : begin + rows]
                return kept if call.size == rows else kept.clone()
            begin -= call.size
        raise AssertionError

    def _mean(self, calls: list[_Call], rows: int) -> Tensor:
        kept = [call.rows for call in calls if call.rows is not None]
        shown = kept[0] if len(kept) == 1 else torch.cat(kept)
        return shown.view(-1, rows, shown.shape[1]).mean(dim=0)

    def _hear(self, inputs: tuple[Any, ...], output: Any) -> None:
        """Copy what may be asked for; the step may change its output in place afterwards."""
        if self._pauses or torch._C._current_graph_task_id() != -1:
            return
        found = self._found(output)
        resolution = next((tuple(i.shape[1:]) for i in inputs if isinstance(i, Tensor)), None)
        with self._lock:
            place = len(self._calls)
            if place >= _MOST_CALLS:
                return
            if self._view == "mean":
                # A call of its own resolution is counted, and no more.
                wanted = not place or resolution == self._calls[0].resolution
            else:
                wanted = place <= self._view
            rows = _copied(found) if wanted else None
            self._calls.append(_Call(len(found), resolution, rows))

    def _found(self, output: Any) -> Tensor:
        found = output if self._select is None else self._select(output)
        if (
            isinstance(found, Tensor)
            and found.ndim in (2, 4)
            and found.is_floating_point()
            and found.numel()
        ):
            return found
        raise EmbeddingShapeError(
            "EmbeddingTap expects floats of shape (rows, dim) or (rows, dim, H, W) from "
            f"{self._name if self._select is None else 'select'}, got {_described(found)}; pass "
            "select= to say where in the module's output the embeddings are, such as "
            f"{_suggested(output)}."
        )


class _Ear:
    """The hook. It holds the tap weakly, and in a copy of the module it is deaf.

    Teachers are made as deep copies of students, and whole modules are saved: neither may take the
    tap along, with its lock and its memory.
    """

    def __init__(self, tap: EmbeddingTap, module: nn.Module) -> None:
        self._tap = weakref.ref(tap)
        self._module = weakref.ref(module)

    def __call__(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        # Compiled code steps out to listen. torch.compiler.disable around the hook would do that too,
        # and load the whole compiler, seconds of it, for those who never compile.
        if torch.compiler.is_compiling():
            _listen_uncompiled(self, module, (*inputs, *named.values()), output)
        else:
            self.listen(module, (*inputs, *named.values()), output)

    def listen(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Pass what the module gave on to the tap, if there is one still."""
        tap = self._tap()
        if tap is None:
            return
        if module is self._module():
            tap._hear(inputs, output)
        elif not tap._pauses:  # nn.DataParallel copies modules with their hooks.
            tap._replicas = True

    def __reduce__(self) -> tuple[Callable[[], "_Deaf"], tuple[()]]:
        return _Deaf, ()


@_disable_dynamo
def _listen_uncompiled(ear: _Ear, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    ear.listen(module, inputs, output)


class _Deaf:
    def __call__(self, *heard: Any) -> None:
        pass


def _copied(found: Tensor) -> Tensor:
    """(rows, dim) float32 in memory of its own, in which neither a graph nor tokens stay alive."""
    with torch.inference_mode(False), torch.no_grad():
        if found.ndim == 4 and found.shape[2:] != (1, 1):
            return found.mean(dim=(2, 3), dtype=torch.float32)
        rows = found.flatten(1)
        return rows.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} of shape {tuple(found.shape)}"
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} of {', '.join(map(repr, found)) or 'nothing'}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"


def _suggested(output: Any) -> str:
    if isinstance(output, Mapping):
        known = ("x_norm_clstoken", "image_embeds", "last_hidden_state")
        key = next((name for name in (*known, *output) if name in output), known[0])
        # Before pooler_output, which is an untrained layer in several public ViTs.
        token = "[:, 0], the class token" if key == "last_hidden_state" else ""
        return f"select=lambda output: output[{key!r}]{token}"
    if isinstance(output, Tensor) and output.ndim == 3:
        return "select=lambda tokens: tokens[:, 0], the class token"
    return "select=lambda output: output[0]"
