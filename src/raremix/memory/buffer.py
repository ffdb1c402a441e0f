"""The memory of rare samples: who is admitted, who is refreshed, who leaves.

What a policy decides is in ``policies``; how a draw looks back is in ``replays``. The buffer does
not know why a sample is rare, and it reads no images.
"""

import copy
import math
import os
import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
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
from raremix.memory.columns import Array
from raremix.memory.entries import BufferEntries, Drawn
from raremix.memory.held import Held
from raremix.memory.limits import SamplesPerInsert, UseLimits
from raremix.memory.metrics import described
from raremix.memory.offers import Layout, Offers, checked_crops, unit_features
from raremix.memory.policies import FIFO, Policy
from raremix.memory.replays import Replays
from raremix.memory.saving import load_content, saved_content
from raremix.memory.store import Store
from raremix.options import check_choice, check_count, check_number
from raremix.protocols import BatchRows, Flags, State

__all__ = ["RareMemoryBuffer"]


class RareMemoryBuffer:
    """A memory of rare samples, each held once; first in, first out unless told otherwise.

    It owns what it holds: crops are copied on the way in. A sample that is found rare again keeps
    its place and gets the new score and feature, and a replayed sample is never admitted anew, so a
    buffer does not feed on itself. Replays are matched by the number of the entry they were drawn
    from: what comes back for an entry that has left meanwhile changes nothing.

    Under torch.distributed, ``add`` and ``admit`` are collective calls unless ``layout`` is "local".

    Args:
        capacity: The most samples held, at least 1. An entry without crop takes a few hundred
            bytes, so a buffer of ids may be large.
        max_bytes: The most bytes of crops held; None for no limit besides ``capacity``.
        policy: Who is admitted, who leaves and who is drawn: ``FIFO()``, ``Reservoir()``, ``RarestK()``,
            ``LeastRedundant()``, ``ClusterBalanced()``, ``TwoTier()``, or a ``Policy`` of your own.
        max_uses: An entry is drawn at most so often, and leaves when the last replay has come
            back. Each rank counts its own draws. None for no limit.
        cooldown_steps: For so many batches after one that an entry was drawn for, it is not drawn.
        max_age_steps: An entry leaves when it has been held for more steps. None for no limit.
        samples_per_insert: Holds replays per admission near a ratio; see ``SamplesPerInsert``.
        min_distance: A sample is refused if the feature of an entry is nearer than that, in
            cosine distance (1 - cosine, in [0, 2]); needs features. 0 admits everything.
        layout: Under torch.distributed, "replicated": every rank holds all entries, and any rank's
            state serves all, but for the limits above, which count each rank's own draws.
            "sharded": each key is held by one rank, so memory adds up; states must be saved on
            every rank. "local": every rank knows its own samples only, nothing is sent.
        seed: Of what a policy draws for itself, such as a reservoir's coin.

    Source:
        First in, first out is the rule this project began from, with 32 entries.

    Example:
        >>> buffer = RareMemoryBuffer(capacity=2)
        >>> buffer.admit(BufferEntries(torch.tensor([7, 8, 9]), torch.tensor([3.0, 2.0, 4.0])))
        3
        >>> buffer.keys
        tensor([8, 9])
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_bytes: int | None = None,
        policy: Policy | None = None,
        max_uses: int | None = None,
        cooldown_steps: int = 0,
        max_age_steps: int | None = None,
        samples_per_insert: SamplesPerInsert | None = None,
        min_distance: float = 0.0,
        layout: Layout = "replicated",
        seed: int = 0,
    ) -> None:
        caller = "RareMemoryBuffer"
        self.capacity = check_count(caller, "capacity", capacity, least=1)
        self.max_bytes = (
            None if max_bytes is None else check_count(caller, "max_bytes", max_bytes, least=1)
        )
        self.policy = FIFO() if policy is None else policy
        if not isinstance(self.policy, Policy):
            raise OptionError(
                f"{caller} expects policy as an object such as FIFO() or RarestK(), got {policy!r}."
            )
        if samples_per_insert is not None and not isinstance(samples_per_insert, SamplesPerInsert):
            raise OptionError(
                f"{caller} expects samples_per_insert as SamplesPerInsert(ratio, error), got "
                f"{samples_per_insert!r}."
            )
        self.limits = UseLimits(max_uses, cooldown_steps, max_age_steps)
        if samples_per_insert is not None and (max_uses or math.inf) < samples_per_insert.ratio:
            raise OptionError(
                f"{caller} got max_uses={max_uses}, which can never bring "
                f"{samples_per_insert.ratio:g} replays an admission; raise max_uses or lower the ratio."
            )
        self.samples_per_insert = samples_per_insert
        self.min_distance = check_number(caller, "min_distance", min_distance, least=0.0, most=2.0)
        check_choice(caller, "layout", layout, get_args(Layout))
        self.layout: Layout = layout
        self.seed = seed
        self._step = -1  # the last step that may still get feedback
        self._heard = -1  # the last step that did
        self._replays = Replays(
            self.policy, self.limits, samples_per_insert, self._share_of_admissions
        )
        self._store = self._empty_store()
        self._pid = os.getpid()
        # Feedback may come from the thread of a callback while the loader draws.
        self._lock = threading.RLock()

    def _empty_store(self) -> Store:
        return Store(
            Held(self.capacity, self.policy.columns, self._replays.columns),
            self.policy,
            self.limits,
            self.samples_per_insert,
            max_bytes=self.max_bytes,
            min_distance=self.min_distance,
            seed=self.seed,
        )

    @property
    def _held(self) -> Held:
        return self._store.held

    def __repr__(self) -> str:
        return (
            f"RareMemoryBuffer(capacity={self.capacity}, policy={self.policy!r}, held={len(self)})"
        )

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held.rows.place

    @property
    def keys(self) -> Tensor:
        """(n,) int64, the ids held, those first that were admitted first."""
        return self.entries.keys

    @property
    def entries(self) -> BufferEntries:
        """Copies of what is held, those first that were admitted first."""
        with self._lock:
            order = self._held.rows["entry"].argsort()
            return self._store.entries(order.tolist(), self._step)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return self._store.pixels.nbytes

    @property
    def needs_features(self) -> bool:
        """Whether ``add`` must be given features, for the policy or for ``min_distance``."""
        return self.policy.needs_features or self.min_distance > 0

    # ------------------------------------------------------------------ feeding

    def add(
        self,
        batch: BatchRows | ArrayLike | Sequence[int],
        detection: Flags,
        *,
        crops: Tensor | None = None,
        features: ArrayLike | None = None,
    ) -> int:
        """Admit the rare rows of a batch, and refresh what is known of those already held.

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
            features: (batch, dim) floats that tell how alike two samples are, such as the
                embeddings; kept as float32 unit rows. Needed by some policies.

        Returns:
            How many samples were admitted.

        Raises:
            EmbeddingShapeError: If ids, scores, flags and features are not of batch rows each.
            OptionError: If crops are not uint8, differ in shape, or one alone exceeds ``max_bytes``;
                or if features are needed and not given.
            BufferProcessError: If called in another process than the one that made the buffer.
        """
        self._guard("add")
        caller = "RareMemoryBuffer.add"
        # Asked in this way because isinstance of a protocol takes as long as all the rest.
        rows = cast("BatchRows", batch) if hasattr(batch, "is_replay") else None
        ids = as_ids(cast("ArrayLike", batch) if rows is None else rows.ids, caller=caller)
        if not (hasattr(detection, "scores") and hasattr(detection, "is_rare")):
            raise OptionError(
                "RareMemoryBuffer.add expects what OODDetector.observe returned, with scores and "
                f"is_rare, got {type(detection).__name__}."
            )
        scores, is_rare = detection.scores.detach().cpu(), detection.is_rare.cpu()
        replayed = torch.zeros_like(ids, dtype=torch.bool) if rows is None else rows.is_replay.cpu()
        if not ids.shape == scores.shape == is_rare.shape == replayed.shape:
            raise EmbeddingShapeError(
                f"{caller} expects one score and one flag for each of {len(ids)} ids, got scores "
                f"of shape {tuple(scores.shape)} and flags of shape {tuple(is_rare.shape)}; pass "
                "the detection of exactly this batch."
            )
        entry = getattr(rows, "entry", None)
        if entry is not None and entry.shape != ids.shape:
            raise EmbeddingShapeError(
                f"{caller} got entries of shape {tuple(entry.shape)} for {len(ids)} ids; pass the "
                "batch as the loader gave it."
            )
        with self._lock:
            crops, units = self._checked(crops, features, len(ids), caller=caller)
            step = self._open_step(rows)
            place = self._held.rows.place
            is_replay, values = replayed.numpy(), scores.double().numpy()
            is_wanted = is_rare.numpy().astype(bool) & ~is_replay & np.isfinite(values)
            offers = Offers(
                ids.numpy(),
                values,
                np.full(len(ids), -1) if entry is None else entry.cpu().numpy(),
                is_wanted,
                is_replay,
                _rows_of(crops, is_wanted),
                units,
            )
            told = is_wanted | is_replay
            if self.layout == "sharded":
                told[:] = True  # another rank may hold any of them
            else:
                told[[row for row, key in enumerate(ids.tolist()) if key in place]] = True
            offers = offers.of(np.flatnonzero(told)).shared(self.layout)
            if step is None:
                self._store.counts["late"] += 1
                if self._store.counts["late"] == 1:
                    _warn_of_late_feedback()
                return 0
            return self._take_in(step, offers)

    def admit(self, entries: BufferEntries) -> int:
        """Admit samples that are known to be rare, at any time, besides the feedback of batches.

        Under torch.distributed a collective call, like ``add``.

        Args:
            entries: Their ids, scores and, if the buffer shall hold them, crops and features.

        Returns:
            How many were admitted; the others were held already, refused, or had no finite score.

        Raises:
            EmbeddingShapeError: If ids, scores and features have different lengths.
            OptionError: As for ``add``.
            BufferProcessError: As for ``add``.
        """
        caller = "RareMemoryBuffer.admit"
        self._guard("admit")
        if not isinstance(entries, BufferEntries):
            raise OptionError(
                f"{caller} expects BufferEntries(keys, scores), got {type(entries).__name__}."
            )
        ids = as_ids(entries.keys, caller=caller)
        scores = torch.as_tensor(entries.scores).detach().cpu()
        if ids.shape != scores.shape:
            raise EmbeddingShapeError(
                f"{caller} got {len(ids)} ids for scores of shape {tuple(scores.shape)}; pass one "
                "score per id."
            )
        with self._lock:
            crops, units = self._checked(entries.crops, entries.features, len(ids), caller=caller)
            values = scores.double().numpy()
            finite = np.isfinite(values)
            offers = Offers(
                ids.numpy(),
                values,
                np.full(len(ids), -1),
                finite,
                ~finite & False,
                _rows_of(crops, finite),
                units,
            )
            offers = offers.of(np.arange(len(ids))).shared(self.layout)
            return self._take_in(max(self._step, self._replays.viewed + 1), offers)

    def _checked(
        self, crops: Tensor | None, features: ArrayLike | None, length: int, *, caller: str
    ) -> tuple[Tensor | None, Tensor | None]:
        """Crops and features that fit what is held, the latter as unit rows."""
        checked_crops(crops, length, caller=caller)
        held = self._store.pixels.shape
        if crops is not None and held is not None and held != crops.shape[1:]:
            raise OptionError(
                f"{caller} got crops of shape {tuple(crops.shape[1:])}, but holds crops of shape "
                f"{held}; resize them to one shape."
            )
        size = crops[0].nbytes if crops is not None and len(crops) else 0
        if self.max_bytes is not None and size > self.max_bytes:
            raise OptionError(
                f"{caller} got crops of {size} bytes each, more than max_bytes={self.max_bytes}; "
                "raise max_bytes or pass smaller crops."
            )
        known = self._held.features
        dim = None if known is None else known.shape[1]
        units = unit_features(features, length, dim, caller=caller)
        if units is None and length and (self.needs_features or known is not None):
            why = f"for {self.policy!r} with min_distance={self.min_distance:g}"
            if not self.needs_features:
                why = "with every sample, since those it holds came with them"
            raise OptionError(
                f"{caller} needs features {why}; pass the embeddings of the rows as features=."
            )
        if units is not None and known is None and len(self):
            raise OptionError(
                f"{caller} got features, but holds {len(self)} entries without; pass features from "
                "the first call on."
            )
        return None if crops is None else crops.detach(), units

    def _open_step(self, batch: BatchRows | None) -> int | None:
        """The step this feedback belongs to, or None if it comes twice or too late."""
        attached = self._replays.timeline.lag > 0
        if batch is not None and batch.step > self._step:
            self.advance(batch.step)
        if batch is None and self._step < 0 and attached:
            return self._step  # filled before the first batch, which gets its own feedback
        if batch is None and self._heard == self._step and not attached:
            self.advance(self._step + 1)  # nobody counts the batches, so each call is one
        step = self._step if batch is None else batch.step
        if step <= self._heard or step <= self._replays.viewed:
            return None
        self._heard = step
        return step

    def _take_in(self, step: int, offers: Offers) -> int:
        timeline = self._replays.timeline
        # Entries come and leave in order of steps, as draws that look back rely on.
        step = max(step, timeline.last_change)
        self._held.record = (lambda change: timeline.record(step, change)) if timeline.lag else None
        return self._store.take_in(offers, step)

    # ------------------------------------------------------------------ drawing

    def attach(self, lag: int) -> None:
        """Learn that a sampler begins, whose draw number j reads what was held after step j - lag."""
        with self._lock:
            if self._replays.timeline.lag != lag:
                self._begin(lag)

    def _begin(self, lag: int) -> None:
        """Count from 0: what is held was there before the first step."""
        self._held.rows["born"][:] = -1
        self._replays.begin(self._held.rows, lag)
        self._step = self._heard = -1

    def advance(self, step: int) -> None:
        """Say that batch number ``step`` has been delivered and its feedback may come.

        Number 0 means that a new loader begins, to which everything held is old.

        Raises:
            LagError: If a sampler draws from this buffer and ``step`` does not follow the last.
        """
        self._guard("advance")
        with self._lock:
            lag = self._replays.timeline.lag
            if step == 0 <= self._step:
                self._begin(lag)
            if lag and step not in (self._step, self._step + 1):
                raise _apart(f"told of batch {step}", self._step)
            self._step = max(self._step, step)
            self._replays.advance(self._step, self._held.rows)

    def rewind(self, number: int) -> None:
        """Forget the draws that were not delivered; batch ``number`` is the next to be drawn.

        Raises:
            LagError: If that does not follow the last batch delivered, and is not 0, with which a
                new loader begins.
        """
        with self._lock:
            if number == 0 <= self._step:
                self._begin(self._replays.timeline.lag)
            if number != self._step + 1:
                raise _apart(f"asked to draw from batch {number} on", self._step)
            self._replays.rewind()

    def draw_ahead(
        self, number: int, count: int, *, taken: Collection[int], below: int | None, seed: int
    ) -> Drawn:
        """Draw for batch ``number`` from what was held ``lag`` steps before; see ``ReplaySource``.

        Raises:
            LagError: If that step has not had its feedback yet.
        """
        with self._lock:
            return self._replays.ahead(
                number, count, now=self._step, taken=taken, below=below, seed=seed
            )

    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        taken: Collection[int] = frozenset(),
    ) -> BufferEntries:
        """Draw from what is held now, each entry at most once, within the limits of the buffer.

        Args:
            count: How many; fewer come if fewer may be drawn.
            taken: Ids that are not drawn, such as those in the batch already.
            generator: A CPU generator; torch's default one if not given.

        Returns:
            Copies of the entries drawn; none of them if the buffer is empty.
        """
        count = check_count("RareMemoryBuffer.draw", "count", count, least=0)
        number = torch.randint(2**62, (1,), generator=generator, device="cpu")
        with self._lock:
            held = self._held.rows
            drawn = self._replays.at_once(
                held, count, step=self._step, taken=taken, seed=int(number)
            )
            places = [held.place[key] for key in drawn.keys]
            return self._store.entries(places, self._step, drawn.probabilities)

    def _share_of_admissions(self) -> float:
        """Of a replicated buffer every rank replays its part; of the others, all that it holds."""
        return 1.0 / distributed.world_size() if self.layout == "replicated" else 1.0

    # ------------------------------------------------------------------ looking, saving

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger.

        ``size`` and ``bytes`` held; ``admissions`` and ``evictions`` so far, of the latter
        ``expired`` by age and ``used_up``; ``refused_policy``, ``refused_duplicate`` and
        ``refused_rate``; ``replays`` seen, ``stale`` ones of entries that had left, ``late``
        feedback ignored; ``uses_mean``, ``uses_max``, ``age_p50`` and ``age_p95`` (steps) and
        ``score_mean`` of the entries held; ``unique_key_ratio``, distinct ids among the last 1,024
        replays; ``neighbour_similarity``, the mean cosine of an entry's
        feature to the nearest other (of at most 512 entries; NaN without features); ``lag`` in
        force, ``draw_ahead_max`` batches seen, ``outside``: times an id held lay outside the dataset.
        """
        with self._lock:
            return described(self._store, self._replays, self._step)

    def state_dict(self) -> State:
        """A deep copy of everything, in tensors and numbers; loads with ``weights_only=True``."""
        with self._lock:
            return saved_content(
                self._settings(),
                self._held,
                self._store.pixels,
                {**self._replays.state(self._step), **self._cursors()},
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the settings must be those it was saved with.

        Raises:
            StateMismatchError: Naming what differs.
        """
        self._guard("load_state_dict")
        with self._lock:
            store = self._empty_store()
            content = load_content(state, self._settings(), store.held, store.pixels)
            store.counts = dict(content["counts"])
            lag = self._replays.timeline.lag
            self._store = store
            self._step, self._heard = content["step"], content["heard"]
            self._replays.load(content)
            if lag and lag != self._replays.timeline.lag:
                self._begin(lag)  # it was filled without this loader, which counts from 0

    def _settings(self) -> dict[str, Any]:
        rate = self.samples_per_insert
        return {
            "capacity": self.capacity,
            "max_bytes": self.max_bytes,
            "policy": repr(self.policy),
            "max_uses": self.limits.max_uses,
            "cooldown_steps": self.limits.cooldown_steps,
            "max_age_steps": self.limits.max_age_steps,
            "samples_per_insert": None if rate is None else [rate.ratio, rate.error],
            "min_distance": self.min_distance,
            "layout": self.layout,
            # A shard is of use only where keys are shared out in the same way.
            "ranks": distributed.world_size() if self.layout == "sharded" else None,
            "seed": self.seed,
        }

    def _cursors(self) -> dict[str, Any]:
        return {"step": self._step, "heard": self._heard, "counts": dict(self._store.counts)}

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
        twin = RareMemoryBuffer(
            self.capacity,
            max_bytes=self.max_bytes,
            policy=self.policy,
            max_uses=self.limits.max_uses,
            cooldown_steps=self.limits.cooldown_steps,
            max_age_steps=self.limits.max_age_steps,
            samples_per_insert=self.samples_per_insert,
            min_distance=self.min_distance,
            layout=self.layout,
            seed=self.seed,
        )
        memo[id(self)] = twin
        twin.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        return twin


def _rows_of(crops: Tensor | None, chosen: Array) -> Tensor | None:
    if crops is None or chosen.all():
        return crops
    return crops[torch.from_numpy(np.flatnonzero(chosen)).to(crops.device)]


def _apart(what: str, step: int) -> LagError:
    return LagError(
        f"RareMemoryBuffer was {what} when it was at batch {step}: loader and buffer do not belong "
        "together. Load the states of both, saved at the same time, and give two loaders that run "
        "at once a buffer each."
    )


def _warn_of_late_feedback() -> None:
    warnings.warn(
        "RareMemoryBuffer.add got feedback for a batch that had its feedback already, or so late "
        "that later batches were drawn without it, and ignored it. Call add once for each batch, "
        "before the next is asked for, and give every loader a buffer of its own; "
        'metrics()["late"] counts further ones.',
        RaremixWarning,
        stacklevel=3,
    )
