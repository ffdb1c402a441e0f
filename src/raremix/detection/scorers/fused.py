"""The default score: distances at many scales in three fused geometries, smoothed over neighbours.

It keeps rows, ids and their own scores. Where rarity begins is the threshold's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from raremix.detection.bank import ReferenceBank
from raremix.detection.scorers.geometry import FusedGeometry
from raremix.detection.scorers.reference import saved_window, shown_window, with_window
from raremix.detection.scorers.scales import Scales, thinned
from raremix.errors import NotEnoughReferenceError
from raremix.inputs import ArrayLike, as_embeddings
from raremix.neighbors import EngineName, NeighborIndex
from raremix.neighbors.index import check_id_window, check_window_has_ids, most_siblings
from raremix.options import check_choice, check_count
from raremix.protocols import State
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["FusedDistance"]

_STEPS = 4
"""How often a score takes in those of its neighbours."""

_FIRST_ROWS = 16
"""Rows of a stream before anything is scored."""

_REMEMBERED = 8192
"""Rows of a batch that is remembered until it is added, or another one scored."""

_GROWTH, _TURNOVER = 0.5, 1.0
"""Share of new rows after which all is learnt anew: of a growing bank, and of a full one."""


@dataclass(frozen=True)
class _Scored:
    """What was found of a batch; ``observe`` scores the very rows that it then adds."""

    rows: Tensor
    ids: Tensor | None
    version: int
    shown: Tensor
    steps: Tensor

    def is_of(self, rows: Tensor, ids: Tensor | None, version: int) -> bool:
        """Whether it holds for these rows and ids against that version of the reference."""
        if self.version != version or (ids is None) != (self.ids is None):
            return False
        if rows.shape != self.rows.shape or rows.device != self.rows.device:
            return False
        same_ids = ids is None or self.ids is None or torch.equal(ids.cpu(), self.ids)
        return same_ids and torch.equal(rows, self.rows)


class FusedDistance:
    """How empty a row's surroundings are, at many scales, in three geometries at once.

    The default score. With r_k the distance to the k-th nearest row in a space that puts three
    views of the embeddings side by side (``FusedGeometry``), and N rows in the reference:

    1. s = the mean of log r_k over eight k from 0.1 sqrt(N) to 4 sqrt(N), less a quarter of log r_k at
       k = 10 sqrt(N). Groups of very different sizes are seen, and what is far from everything at
       the largest scale too counts a little less. No r_k counts as less than three quarters of the
       median nearest distance: how tight a group is says nothing of its size.
    2. Four times, s becomes the mean of itself and the s of the 10 nearest rows, weighted by their
       distance to the power -4, since the members of a group are rare together and an odd one among
       the common is not. A row more than 1.5 times the median nearest distance from all others is
       asked less of them, by the fourth power of that excess.
    3. The score is exp(s).

    Nothing of it needs tuning: sizes follow the reference, the three geometries stand in for a
    choice of metric. Neighbours nearer than a twentieth of the usual nearest distance are copies of
    the same picture and are passed over, up to 32 of them.

    In a stream each row is scored once, when it is added, and all rows anew whenever the reference
    has grown by half or has been replaced. Distances beyond k = 0.85 sqrt(N) are measured in a thinned
    set of rows.

    Args:
        capacity: The most embeddings kept by ``update``; ``fit`` keeps all it is given. They are
            kept twice, as they came and in the fused space, which is at most 132 columns wider.
        engine: Who searches, as for ``NeighborIndex``; all give the same scores.
        max_memory: Bytes of working memory a search aims for.
        id_window: Rows whose ids differ by at most so much are siblings and are not compared, such
            as frames of a video some seconds apart, whose ids count milliseconds. It needs ids.

    Source:
        This project, after its fused score of two scales; chosen by cross-validation over families
        of embeddings of different geometry. What it was measured to find is under "Rare is not
        the same as far" in the documentation.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> rows = torch.randn(500, 8, generator=generator)
        >>> rows[:5] = 4.0 + 0.1 * torch.randn(5, 8, generator=generator)
        >>> FusedDistance().fit(rows).topk(5).indices.sort().values
        tensor([0, 1, 2, 3, 4])
    """

    least_rows = 4
    """What ``fit`` asks for at least."""

    def __init__(
        self,
        *,
        capacity: int = 65_536,
        engine: EngineName = "auto",
        max_memory: int = 2**29,
        id_window: int = 0,
    ) -> None:
        check_choice("FusedDistance", "engine", engine, get_args(EngineName))
        self.bank = ReferenceBank(check_count("FusedDistance", "capacity", capacity, least=16))
        self.engine: EngineName = engine
        self.max_memory = check_count("FusedDistance", "max_memory", max_memory, least=2**20)
        self.id_window = check_id_window("FusedDistance", id_window)
        self._forget()

    def _forget(self) -> None:
        self._geometry = FusedGeometry()
        # Beside each row of the bank, in the same places: the row in the fused space, and its
        # score after 0 to 3 steps.
        self._beside = ReferenceBank(self.bank.capacity)
        self._scales: Scales | None = None
        self._version = -1
        self._fitted_rows, self._added_rows = 0, 0
        self._scored: _Scored | None = None

    def __repr__(self) -> str:
        window = shown_window(self.id_window)
        return f"FusedDistance(capacity={self.bank.capacity}, engine={self.engine!r}{window})"

    @property
    def ready(self) -> bool:
        """Whether the reference holds enough to score: 16 embeddings, or what ``fit`` was given."""
        return self._geometry.is_fitted and len(self.bank) > 0

    def fit(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Forget everything, take these embeddings as the reference, and score them leave-one-out.

        Args:
            embeddings: Finite floats of shape (n, dim), n at least 4.
            ids: (n,) integers; rows that share an id are siblings and are not compared.

        Returns:
            Float32 of shape (n,).

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (n, dim).
            NotEnoughReferenceError: If n is less than 4, or a row has only siblings.
            OptionError: If there is an id_window and no ids are given.
        """
        rows = as_embeddings(embeddings, caller="FusedDistance.fit")
        if len(rows) < self.least_rows:
            raise NotEnoughReferenceError(
                f"FusedDistance.fit expects at least {self.least_rows} embeddings, got {len(rows)}; "
                "pass more."
            )
        check_window_has_ids("FusedDistance.fit", self.id_window, ids)
        fresh = self._empty()
        fresh.bank.fill(rows, ids)
        scores = fresh._learn()
        # All or nothing; and the bank stays the object that others may hold.
        self.bank.fill(rows, ids)
        self._geometry, self._beside, self._scales = fresh._geometry, fresh._beside, fresh._scales
        self._version, self._scored = fresh._version, None
        self._fitted_rows, self._added_rows = fresh._fitted_rows, 0
        return scores.exp().float()

    def score(self, embeddings: ArrayLike, ids: Tensor | None = None) -> Tensor:
        """Measure how rare each image is; larger is rarer.

        Args:
            embeddings: Finite floats of shape (batch, dim), one row per image.
            ids: (batch,) integers; reference rows that are siblings by their ids are left out.

        Returns:
            Float32 of shape (batch,), positive, on the device of ``embeddings``, without gradient.

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (batch, dim) of the reference's width.
            NotEnoughReferenceError: If fewer than 16 embeddings have been seen, or so few that are
                no siblings of a row.
            OptionError: If ids are given and the reference has none.
        """
        rows = as_embeddings(embeddings, caller="FusedDistance.score", dim=self.bank.dim)
        if not self.ready:
            others, way = "", "call fit or update with more"
            if self.id_window:
                others = f" beside the most that one id_window={self.id_window} holds,"
                way += ", raise capacity or lower id_window"
            raise NotEnoughReferenceError(
                f"FusedDistance.score needs {_FIRST_ROWS} reference embeddings{others} and has seen "
                f"{len(self.bank)}; {way}."
            )
        self.bank.check_ids(ids, caller="FusedDistance.score")
        found = self._score(rows, ids)
        if len(rows) <= _REMEMBERED:
            own = None if ids is None else ids.cpu().clone()
            self._scored = replace(found, rows=rows.clone(), ids=own)
        return found.steps[:, -1].exp().float()

    def _score(self, rows: Tensor, ids: Tensor | None) -> "_Scored":
        shown = self._geometry.transform(rows)
        return _Scored(rows, ids, self._beside.version, shown, self._steps(shown, ids))

    def update(self, embeddings: ArrayLike, ids: Tensor | None = None) -> None:
        """Add (batch, dim) embeddings to the reference; a known id replaces its rows."""
        rows = as_embeddings(embeddings, caller="FusedDistance.update", dim=self.bank.dim)
        check_window_has_ids("FusedDistance.update", self.id_window, ids)
        if len(self._beside) and len(self.bank) == 0:  # cleared from outside
            self._forget()
        found = self._found(rows, ids)
        if found is None:
            self.bank.add(rows, ids)
            if self._can_learn():
                self._learn()
            return
        self.bank.add(rows, ids)
        beside = torch.cat([found.shown, found.steps[:, :-1].float()], dim=1)
        self._beside.add(beside, ids)
        self._added_rows += len(rows)
        grown = len(self.bank) > self._fitted_rows
        is_due = self._added_rows >= (_GROWTH if grown else _TURNOVER) * self._fitted_rows
        if is_due and self._can_learn():
            self._learn()

    def _found(self, rows: Tensor, ids: Tensor | None) -> "_Scored | None":
        """What rows that are to be added score; None while there is nothing to score them by."""
        found, self._scored = self._scored, None
        if not self._geometry.is_fitted:
            return None
        if found is not None and found.is_of(rows, ids, self._beside.version):
            return found
        try:
            return self._score(rows, ids)
        except NotEnoughReferenceError:  # siblings of one another have pushed out all others
            self._forget()
            return None

    def _can_learn(self) -> bool:
        """Whether the bank holds the first rows, and every one others to be compared with."""
        rows, ids = len(self.bank), self.bank.ids
        if rows < _FIRST_ROWS or ids is None:
            return rows >= _FIRST_ROWS
        # A stream of frames begins with many rows that are all siblings of one another.
        least = _FIRST_ROWS if self.id_window else 1
        return rows - most_siblings(ids, self.id_window) >= least

    def _empty(self) -> "FusedDistance":
        """One of the same settings that has seen nothing."""
        return FusedDistance(
            capacity=self.bank.capacity,
            engine=self.engine,
            max_memory=self.max_memory,
            id_window=self.id_window,
        )

    @torch.inference_mode(False)
    def _learn(self) -> Tensor:
        """Learn geometry and scales of the bank anew, and return the log scores of its rows."""
        # In an order that saving keeps, since sums depend on it in their last digits.
        order = self.bank.places_by_age()
        here = order.to(self.bank.rows.device)
        rows, ids = self.bank.rows[here], self.bank.ids
        self._geometry.fit(rows, max_memory=self.max_memory)
        shown = self._geometry.transform(rows)
        known = None if ids is None else ids[order]
        chosen = thinned(shown)
        far = None
        if len(chosen) < len(shown):
            # Without ids a row's place serves, to tell it from itself.
            own = torch.arange(len(shown), device="cpu") if known is None else known
            far = self._index_of(shown[chosen], own[chosen.cpu()])
            if far.siblings == len(far):  # though the bank holds others
                far = None
        scales = Scales(self._index_of(shown, known), far)
        raw, near = scales.measure_itself()
        steps = [raw]
        for _ in range(_STEPS):
            steps.append(near.smoothed(steps[-1], steps[-1]))
        beside = torch.cat([shown, torch.stack(steps[:-1], dim=1).float()], dim=1)
        scores = torch.empty_like(raw)
        scores[here] = steps[-1]
        placed = torch.empty_like(beside)
        placed[here] = beside
        self._beside.mirror(self.bank, placed)
        # In a reference that was filled at once, the rows lie as they were prepared.
        moved = None if bool((order.diff() < 0).any()) else torch.empty(0, dtype=torch.int64)
        scales.index.replace(self._shown, moved, ids)
        self._scales, self._version = scales, self._beside.version
        self._fitted_rows, self._added_rows = len(rows), 0
        return scores

    def _index_of(self, rows: Tensor, ids: Tensor | None) -> NeighborIndex:
        return NeighborIndex(
            rows,
            ids,
            id_window=self.id_window,
            engine=self.engine,
            max_memory=self.max_memory,
        )

    @property
    def _shown(self) -> Tensor:
        return self._beside.rows[:, :-_STEPS]

    def _steps(self, shown: Tensor, ids: Tensor | None) -> Tensor:
        """(n, 5) float64: log scores of rows in the fused space after 0 to 4 steps."""
        assert self._scales is not None
        if self._scales.index.device != shown.device:
            # A reference loaded on the CPU is searched where the embeddings are.
            far = self._scales.far
            self._scales = Scales(
                self._index_of(self._shown.to(shown.device), self._beside.ids),
                None if far is None else self._index_of(far.rows.to(shown.device), far.ids),
                self._scales.typical,
            )
        elif self._version != self._beside.version:
            changed = self._beside.changes_since(self._version)
            rows = self._shown.to(shown.device)
            self._scales.index.replace(rows, changed, self._beside.ids)
        self._version = self._beside.version
        raw, near = self._scales.measure(shown, ids)
        known = self._beside.rows[:, -_STEPS:].to(shown.device).double()
        steps = [raw]
        for step in range(_STEPS):
            steps.append(near.smoothed(steps[-1], known[:, step]))
        return torch.stack(steps, dim=1)

    def state_dict(self) -> State:
        """The reference, and all that was learnt from it."""
        scales = self._scales
        far = None if scales is None else scales.far
        content: State = {
            **saved_window(self.id_window),
            "bank": self.bank.state_dict(),
            "beside": self._beside.state_dict(),
            "geometry": self._geometry.state_dict(),
            "typical": None if scales is None else scales.typical,
            "far_rows": None if far is None else far.rows.detach().cpu().clone(),
            "far_ids": None if far is None or far.ids is None else far.ids.cpu().clone(),
            "fitted_rows": self._fitted_rows,
            "added_rows": self._added_rows,
        }
        return sealed_state("FusedDistance", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved reference; capacity and id_window must be those it was saved with."""
        keys = (
            *("id_window", "bank", "beside", "geometry", "typical"),
            *("far_rows", "far_ids", "fitted_rows", "added_rows"),
        )
        content = open_state(with_window(state), kind="FusedDistance", version=1, keys=keys)
        check_settings("FusedDistance", content, {"id_window": self.id_window})
        fresh = self._empty()
        fresh._beside.load_state_dict(content["beside"])
        fresh._geometry.load_state_dict(content["geometry"])
        self.bank.load_state_dict(content["bank"])  # last, since it may refuse
        self._geometry, self._beside, self._scored = fresh._geometry, fresh._beside, None
        self._fitted_rows, self._added_rows = content["fitted_rows"], content["added_rows"]
        self._scales, self._version = None, -1
        if content["typical"] is not None:
            far_rows, far_ids = content["far_rows"], content["far_ids"]
            self._scales = Scales(
                self._index_of(self._shown, self.bank.ids),
                None if far_rows is None else self._index_of(far_rows, far_ids),
                content["typical"],
            )
            self._version = self._beside.version
