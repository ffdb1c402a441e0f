"""The memory of rare samples: which there are now, and which there were some steps ago.

Loader workers draw batches ahead of training. So that what they draw does not depend on how far
ahead they are, the buffer can answer for an earlier step: an entry that has left stays known until
no draw can ask for its time any more. The buffer does not know why a sample is rare, and it reads
no images.
"""

import copy
import math
import os
import warnings
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

import torch
import torch.utils.data
from torch import Tensor

from raremix import distributed
from raremix.errors import (
    BufferProcessError,
    EmbeddingShapeError,
    LagError,
    OptionError,
    RaremixWarning,
)
from raremix.inputs import ArrayLike, as_ids
from raremix.memory.entries import NEVER, BufferEntries, Drawn, Entry, as_entries
from raremix.options import check_count
from raremix.protocols import BatchRows, Flags, State
from raremix.seeds import seeded_generator
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["RareMemoryBuffer"]


class RareMemoryBuffer:
    """The last ``capacity`` rare samples: first in, first out, each held once.

    It owns what it holds: crops are copied on the way in. A sample that is found rare again keeps
    its place and gets the new score, and a replayed sample is never admitted anew, so a buffer
    does not feed on itself.

    Under torch.distributed, ``add`` is a collective call: the samples found rare on all ranks are
    gathered, and every rank holds the same entries.

    Args:
        capacity: The most samples held, at least 1. An entry without crop takes a few hundred
            bytes, so a buffer of ids may be large.
        max_bytes: The most bytes of crops held; None for no limit besides ``capacity``.

    Source:
        First in, first out is the rule this project began from, with 32 entries.

    Example:
        >>> buffer = RareMemoryBuffer(capacity=2)
        >>> found = BufferEntries(torch.tensor([7, 8, 9]), torch.tensor([3.0, 2.0, 4.0]), None)
        >>> buffer.admit(found)
        3
        >>> buffer.keys
        tensor([8, 9])
    """

    def __init__(self, capacity: int, *, max_bytes: int | None = None) -> None:
        caller = "RareMemoryBuffer"
        self.capacity = check_count(caller, "capacity", capacity, least=1)
        self.max_bytes = (
            None if max_bytes is None else check_count(caller, "max_bytes", max_bytes, least=1)
        )
        self._living: dict[int, Entry] = {}  # in order of admission
        self._left: deque[Entry] = deque()  # in order of leaving, while a draw may ask for them
        self._history_steps = 0  # 0 until a sampler draws from this buffer
        self._bytes = 0
        self._step = -1  # the last step that may still get feedback
        self._heard = -1  # the last step that did
        self._viewed = -1  # the last step that a draw has relied on
        self._counts = dict.fromkeys(("admissions", "evictions", "late", "stale", "replays"), 0)
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RareMemoryBuffer(capacity={self.capacity}, held={len(self)})"

    def __len__(self) -> int:
        return len(self._living)

    def __contains__(self, key: object) -> bool:
        return key in self._living

    @property
    def keys(self) -> Tensor:
        """(n,) int64, the ids held, oldest first."""
        return torch.tensor(list(self._living), dtype=torch.int64)

    @property
    def entries(self) -> BufferEntries:
        """Copies of what is held, oldest first."""
        return as_entries(self._living.values())

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self._bytes

    # ------------------------------------------------------------------ feeding

    def add(
        self,
        batch: BatchRows | ArrayLike | Sequence[int],
        detection: Flags,
        *,
        crops: Tensor | None = None,
    ) -> int:
        """Admit the rare rows of a batch, and refresh the scores of those already held.

        Call it once for each batch of training. Feedback for a batch that comes twice, or so late
        that later draws have been made without it, is counted in ``metrics`` and changes nothing.
        Ids alone belong to the batch delivered last; before the first batch, any number of calls
        may fill the buffer.

        Args:
            batch: ``loader.batch`` of a mixed loader, which knows what was replayed; or the
                (batch,) ids alone.
            detection: What ``OODDetector.observe`` said of the rows.
            crops: (batch, channels, height, width) uint8 pixels to keep for the admitted rows; they
                are copied. All crops of a buffer have one shape.

        Returns:
            How many samples were admitted.

        Raises:
            EmbeddingShapeError: If ids, scores and flags are not all of shape (batch,).
            OptionError: If crops are not uint8, differ in shape, or one alone exceeds ``max_bytes``.
            BufferProcessError: If called in another process than the one that made the buffer.
        """
        self._guard("add")
        if isinstance(batch, BatchRows):
            rows: BatchRows | None = batch
            ids, replayed = batch.ids, batch.is_replay.cpu()
        else:
            rows = None
            ids = as_ids(cast("ArrayLike", batch), caller="RareMemoryBuffer.add")
            replayed = torch.zeros(len(ids), dtype=torch.bool)
        if not (hasattr(detection, "scores") and hasattr(detection, "is_rare")):
            raise OptionError(
                "RareMemoryBuffer.add expects what OODDetector.observe returned, with scores and "
                f"is_rare, got {type(detection).__name__}."
            )
        scores, is_rare = detection.scores.detach().cpu(), detection.is_rare.cpu()
        if not ids.shape == scores.shape == is_rare.shape == replayed.shape:
            raise EmbeddingShapeError(
                f"RareMemoryBuffer.add expects one score and one flag for each of {len(ids)} ids, "
                f"got scores of shape {tuple(scores.shape)} and flags of shape "
                f"{tuple(is_rare.shape)}; pass the detection of exactly this batch."
            )
        self._check_crops(crops, len(ids))
        return self._gather_and_take_in(
            self._open_step(rows), ids, scores, is_rare.to(torch.bool), replayed, crops
        )

    def _gather_and_take_in(
        self,
        step: int | None,
        ids: Tensor,
        scores: Tensor,
        is_rare: Tensor,
        replayed: Tensor,
        crops: Tensor | None,
    ) -> int:
        known = torch.tensor([int(key) in self._living for key in ids.tolist()], dtype=torch.bool)
        wanted = is_rare & ~replayed & torch.isfinite(scores)
        told = replayed | wanted | known
        ids, scores, wanted, replayed = (
            distributed.gather_rows(part[told]) for part in (ids, scores, wanted, replayed)
        )
        if crops is not None:
            crops = distributed.gather_rows(crops.detach().cpu()[told])
        if step is None:
            self._counts["late"] += 1
            if self._counts["late"] == 1:
                warnings.warn(
                    "RareMemoryBuffer.add got feedback for a batch that had its feedback already, "
                    "or so late that later batches were drawn without it, and ignored it. Call add "
                    "once for each batch, before the next is asked for, and give every loader a "
                    'buffer of its own; metrics()["late"] counts further ones.',
                    RaremixWarning,
                    stacklevel=4,
                )
            return 0
        return self._take_in(
            step, ids.tolist(), scores.tolist(), wanted.tolist(), replayed.tolist(), crops
        )

    def admit(self, entries: BufferEntries) -> int:
        """Admit samples that are known to be rare, at any time, besides the feedback of batches.

        Under torch.distributed a collective call, like ``add``.

        Args:
            entries: Their ids, scores and, if the buffer shall hold them, crops.

        Returns:
            How many were admitted; the others were held already, or had no finite score.

        Raises:
            EmbeddingShapeError: If ids and scores have different lengths.
            OptionError: As for ``add``.
            BufferProcessError: As for ``add``.
        """
        self._guard("admit")
        ids = as_ids(entries.keys, caller="RareMemoryBuffer.admit")
        scores = entries.scores.detach().cpu()
        if ids.shape != scores.shape:
            raise EmbeddingShapeError(
                f"RareMemoryBuffer.admit got {len(ids)} ids for scores of shape "
                f"{tuple(scores.shape)}; pass one score per id."
            )
        self._check_crops(entries.crops, len(ids))
        every = torch.ones(len(ids), dtype=torch.bool)
        return self._gather_and_take_in(self._now(), ids, scores, every, ~every, entries.crops)

    def _now(self) -> int:
        """The first step that no draw has relied on yet."""
        return max(self._step, self._viewed + 1)

    def _open_step(self, batch: BatchRows | None) -> int | None:
        """The step this feedback belongs to, or None if it comes twice or too late."""
        if batch is not None and batch.step > self._step:
            self.advance(batch.step)
        if batch is None and self._step < 0 and self._history_steps:
            return self._now()  # filled before the first batch, which gets its own feedback
        if batch is None and self._heard == self._step and not self._history_steps:
            self.advance(self._step + 1)  # nobody counts the batches, so each call is one
        step = self._step if batch is None else batch.step
        if step <= self._heard or step <= self._viewed:
            return None
        self._heard = step
        return step

    def _take_in(
        self,
        step: int,
        keys: list[int],
        scores: list[float],
        wanted: list[bool],
        replayed: list[bool],
        crops: Tensor | None,
    ) -> int:
        admitted = 0
        step = max(step, self._latest())  # entries are born and leave in order, as view relies on
        for row, (key, score) in enumerate(zip(keys, scores, strict=True)):
            held = self._living.get(key)
            if replayed[row]:
                self._counts["replays"] += 1
            if held is not None:
                held.uses += int(replayed[row])
                if math.isfinite(score):
                    held.score = score
            elif replayed[row]:
                self._counts["stale"] += 1  # it left between being drawn and being seen
            elif wanted[row]:
                crop = None if crops is None else crops[row].clone()
                self._living[key] = Entry(key, score, born=step, crop=crop)
                self._bytes += 0 if crop is None else crop.nbytes
                admitted += 1
                self._counts["admissions"] += 1
                self._make_room(step)
        self._forget()
        return admitted

    def _latest(self) -> int:
        """The last step in which an entry came or left, as far as that is remembered."""
        born = next(reversed(self._living.values())).born if self._living else -1
        return max(born, self._left[-1].died) if self._left else born

    def _make_room(self, step: int) -> None:
        while len(self._living) > self.capacity or (
            self.max_bytes is not None and self._bytes > self.max_bytes
        ):
            oldest = self._living.pop(next(iter(self._living)))
            self._bytes -= 0 if oldest.crop is None else oldest.crop.nbytes
            oldest.died, oldest.crop = step, None
            self._left.append(oldest)
            self._counts["evictions"] += 1

    def _forget(self) -> None:
        """Drop entries that left before any step a draw may still ask for."""
        oldest_view = self._step - self._history_steps
        while self._left and (self._left[0].died <= oldest_view or not self._history_steps):
            self._left.popleft()

    def _check_crops(self, crops: Tensor | None, length: int) -> None:
        if crops is None:
            return
        if crops.dtype != torch.uint8 or crops.ndim != 4 or len(crops) != length:
            raise OptionError(
                f"RareMemoryBuffer.add expects crops as uint8 of shape ({length}, channels, height, "
                f"width), got {crops.dtype} of shape {tuple(crops.shape)}; keep the pixels from "
                "before normalisation."
            )
        held = next((e.crop for e in self._living.values() if e.crop is not None), None)
        if held is not None and held.shape != crops.shape[1:]:
            raise OptionError(
                f"RareMemoryBuffer.add got crops of shape {tuple(crops.shape[1:])}, but holds crops "
                f"of shape {tuple(held.shape)}; resize them to one shape."
            )
        if self.max_bytes is not None and length and crops[0].nbytes > self.max_bytes:
            raise OptionError(
                f"RareMemoryBuffer.add got crops of {crops[0].nbytes} bytes each, more than "
                f"max_bytes={self.max_bytes}; raise max_bytes or pass smaller crops."
            )

    # ------------------------------------------------------------------ drawing

    def attach(self, lag: int) -> None:
        """Stay able to answer ``draw_ahead`` for this many steps back."""
        self.keep_history(lag)

    def rewind(self) -> None:
        """Forget the draws of batches that were not delivered; they will be drawn again."""

    def draw_ahead(
        self, number: int, count: int, *, taken: Collection[int], below: int | None, seed: int
    ) -> Drawn:
        """Draw from what was held ``lag`` steps before batch ``number``."""
        step = number - self._history_steps
        held = self.view(step) if count else []
        chosen: list[int] = []
        order = torch.randperm(len(held), generator=seeded_generator(seed))
        for index in order.tolist():
            key = held[index]
            if key not in taken and (below is None or 0 <= key < below):
                chosen.append(key)
                if len(chosen) == count:
                    break
        none = [0] * len(chosen)
        chance = len(chosen) / max(len(held), 1)
        return Drawn(chosen, none, [chance] * len(chosen), none)

    def keep_history(self, steps: int) -> None:
        """Stay able to answer ``view`` for this many steps back."""
        if not self._history_steps:
            self._count_anew()
        self._history_steps = max(self._history_steps, steps)

    def _count_anew(self) -> None:
        """Keep what is held, as if it had been there before the first step."""
        for entry in self._living.values():
            entry.born = -1
        self._left.clear()
        self._step = self._heard = self._viewed = -1

    def advance(self, step: int) -> None:
        """Say that batch number ``step`` has been delivered and its feedback may come.

        Number 0 means that a new loader begins, to which everything held is old.

        Raises:
            LagError: If a sampler draws from this buffer and ``step`` does not follow the last.
        """
        self._guard("advance")
        if step == 0 <= self._step:
            self._count_anew()
        if self._history_steps and step not in (self._step, self._step + 1):
            raise LagError(
                f"RareMemoryBuffer was told of batch {step} when it was at batch {self._step}: "
                "loader and buffer do not belong together. Load the states of both, saved at the "
                "same time, and give two loaders that run at once a buffer each."
            )
        self._step = max(self._step, step)

    def view(self, step: int) -> list[int]:
        """The keys held after the feedback of ``step``, oldest first; none for a negative step.

        Raises:
            LagError: If ``step`` lies further back than ``keep_history`` asked for.
        """
        if step < 0:
            return []
        if step < self._step - self._history_steps:
            raise LagError(
                f"RareMemoryBuffer.view was asked for what it held after batch {step}, but it is at "
                f"batch {self._step} and remembers {self._history_steps} batches. Load the states of "
                "buffer and loader together, and give two loaders that run at once a buffer each."
            )
        self._viewed = max(self._viewed, step)
        gone = [e.key for e in self._left if e.born <= step < e.died]
        newest_first = reversed(self._living.values())
        newer = sum(1 for _ in takewhile(lambda entry: entry.born > step, newest_first))
        return gone + list(self._living)[: len(self._living) - newer]

    def draw(self, count: int, *, generator: torch.Generator | None = None) -> BufferEntries:
        """Draw entries at random, each at most once.

        Args:
            count: How many; fewer come if fewer are held.
            generator: A CPU generator; torch's default one if not given.

        Returns:
            Copies of the entries drawn; none of them if the buffer is empty.
        """
        count = check_count("RareMemoryBuffer.draw", "count", count, least=0)
        held = list(self._living.values())
        order = torch.randperm(len(held), generator=generator)[:count].tolist()
        return as_entries(held[index] for index in order)

    # ------------------------------------------------------------------ looking

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger.

        ``size`` and ``bytes`` held; ``admissions`` and ``evictions`` so far; ``replays`` seen;
        ``uses_mean`` and ``uses_max`` of the entries held; ``age_mean`` in steps; ``score_mean``;
        ``late`` feedback ignored; ``stale`` replays of entries that had left.
        """
        held = list(self._living.values())
        uses = [entry.uses for entry in held]
        count = max(len(held), 1)
        return {
            "size": float(len(held)),
            "bytes": float(self._bytes),
            **{name: float(value) for name, value in self._counts.items()},
            "uses_mean": sum(uses) / count,
            "uses_max": float(max(uses, default=0)),
            "age_mean": sum(max(self._step - entry.born, 0) for entry in held) / count,
            "score_mean": sum(entry.score for entry in held) / count,
        }

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> State:
        """A deep copy of everything, in tensors and numbers; loads with ``weights_only=True``."""
        entries = [*self._left, *self._living.values()]
        content: State = {
            "capacity": self.capacity,
            "max_bytes": self.max_bytes,
            "keys": torch.tensor([e.key for e in entries], dtype=torch.int64),
            "scores": torch.tensor([e.score for e in entries], dtype=torch.float64),
            "born": torch.tensor([e.born for e in entries], dtype=torch.int64),
            "died": torch.tensor([e.died for e in entries], dtype=torch.int64),
            "uses": torch.tensor([e.uses for e in entries], dtype=torch.int64),
            "crops": [None if e.crop is None else e.crop.clone() for e in entries],
            "step": self._step,
            "heard": self._heard,
            "viewed": self._viewed,
            "history_steps": self._history_steps,
            "counts": dict(self._counts),
        }
        return sealed_state("RareMemoryBuffer", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; capacity and max_bytes must be those it was saved with.

        Raises:
            StateMismatchError: Naming what differs.
        """
        self._guard("load_state_dict")
        columns = ("keys", "scores", "born", "died", "uses", "crops")
        cursors = ("step", "heard", "viewed", "history_steps", "counts")
        keys = ("capacity", "max_bytes", *columns, *cursors)
        content = open_state(state, kind="RareMemoryBuffer", version=1, keys=keys)
        own = {"capacity": self.capacity, "max_bytes": self.max_bytes}
        check_settings("RareMemoryBuffer", content, own)
        entries = [
            Entry(key, score, born, died, uses, None if crop is None else crop.cpu().clone())
            for key, score, born, died, uses, crop in zip(
                *(content[name].tolist() for name in columns[:-1]), content["crops"], strict=True
            )
        ]
        self._left = deque(entry for entry in entries if entry.died != NEVER)
        self._living = {entry.key: entry for entry in entries if entry.died == NEVER}
        self._bytes = sum(0 if e.crop is None else e.crop.nbytes for e in entries)
        self._step, self._heard = content["step"], content["heard"]
        # Draws that were made ahead and never delivered will be made again.
        self._viewed = min(content["viewed"], self._step)
        self._counts = dict(content["counts"])
        if self._history_steps and not content["history_steps"]:
            self._count_anew()  # it was filled without a loader, which counts from 0
        self._history_steps = max(self._history_steps, content["history_steps"])

    def _guard(self, call: str) -> None:
        if torch.utils.data.get_worker_info() is not None or os.getpid() != self._pid:
            raise BufferProcessError(
                f"RareMemoryBuffer.{call} was called in another process than the one that made the "
                "buffer, where the change would be lost; call it in the training process, not in a "
                "loader's worker or after a fork."
            )

    def __getstate__(self) -> State:
        raise BufferProcessError(
            "RareMemoryBuffer cannot be pickled, since two processes would then hold different "
            "buffers; save state_dict() instead, and keep the buffer out of datasets and collate "
            "functions, which are sent to loader workers."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "RareMemoryBuffer":
        twin = RareMemoryBuffer(self.capacity, max_bytes=self.max_bytes)
        memo[id(self)] = twin
        twin.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        return twin
