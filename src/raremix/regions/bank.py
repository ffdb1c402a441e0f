"""What regions have looked like so far: few rows, each with the number of frames it stands for.

It measures how far a region lies from those of other frames. Which distance is rare is not its
business, nor at which scale the regions were cut.
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from raremix.errors import EmbeddingShapeError, NotEnoughReferenceError
from raremix.inputs import ArrayLike, as_embeddings, as_ids
from raremix.neighbors import EngineName, NeighborIndex
from raremix.neighbors.index import check_id_window
from raremix.options import check_choice, check_count
from raremix.protocols import State
from raremix.regions.ledger import NEAREST, Floats, Integers, Ledger
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["RegionBank"]

_MOST_AT_ONCE = 1024
"""Regions that are added at once, and compared with one another."""

_FEW = 256
"""Up to so many of them are multiplied as they are."""

_LONELY = 1 / 128
"""The share of rows that may know of no near row for a while."""

_LOOKED_AT = 16
"""Nearest rows of a region at first. Most have one of another moment among them."""

_WIDER = 8
"""How many times as many are looked at for those that have not."""

_ENTRIES = 2**21
"""Of a list of near rows that is gone through at once."""


class RegionBank:
    """A small reference of regions that forgets repetition and not rarity.

    Every region becomes a row. When there are more than ``capacity``, the two nearest rows become
    one, again and again: rows are given up where regions are alike, and a region like no other stays
    what it is. What stays of the two is the row that stands for more regions. Rows that both stand
    for several count as up to sqrt(2) times as far apart, since more would be measured from
    elsewhere; so a region stays as long as two rows lie nearer than its distance over sqrt(2).

    A row is kept with its moment. For regions of the same moment, or of one nearby, it is no
    neighbour; but what it has taken in from other moments still is, at no more than the distance to
    the row plus the distance from the row to that, which is what is taken for it. So as long as
    nothing was merged, distances are exact; then they are never too small, and too large by no more
    than twice the ``reach`` of a row.

    Args:
        capacity: The most rows, at least 16.
        id_window: Moments that differ by at most so much are near-duplicates of one another, such as
            frames within a second of one video.
        engine: Who searches, as for ``NeighborIndex``.
        max_memory: Bytes of working memory a search aims for.

    Raises:
        OptionError: If an option is out of its range.

    Source:
        Merging the nearest is agglomerative clustering with a bound, as in the minimum-redundancy
        memory of Purushwalkam et al., ECCV 2022, https://arxiv.org/abs/2203.12710. The coreset of
        PatchCore (Roth et al., CVPR 2022, https://arxiv.org/abs/2106.08265) keeps the same kind of
        rows, and forgets how many regions each stands for.

    Example:
        >>> bank = RegionBank(16)
        >>> bank.add(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
        >>> bank.distances(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([5.])
    """

    def __init__(
        self,
        capacity: int,
        *,
        id_window: int = 0,
        engine: EngineName = "auto",
        max_memory: int = 2**29,
    ) -> None:
        self.capacity = check_count("RegionBank", "capacity", capacity, least=16)
        self.id_window = check_id_window("RegionBank", id_window)
        check_choice("RegionBank", "engine", engine, get_args(EngineName))
        self.engine: EngineName = engine
        self.max_memory = check_count("RegionBank", "max_memory", max_memory, least=2**20)
        self._ledger = Ledger(self.id_window)
        self._held = torch.empty(0, 0, device="cpu")  # allocated rows; the first are in use
        self._index: NeighborIndex | None = None
        # The last question, and what was found: frames are judged and then learned.
        self._asked: tuple[Tensor, Floats, Integers] | None = None

    @classmethod
    def holding(
        cls,
        embeddings: Tensor,
        moments: ArrayLike,
        *,
        id_window: int = 0,
        engine: EngineName = "auto",
        max_memory: int = 2**29,
    ) -> "RegionBank":
        """A bank of exactly these regions, however many, whose distances are exact.

        The embeddings are not copied if they are float32, and must not change.
        """
        bank = cls(
            max(len(embeddings), 16), id_window=id_window, engine=engine, max_memory=max_memory
        )
        bank._held, own = bank._checked(embeddings, moments, "RegionBank.holding")
        bank._ledger.append(own)
        return bank

    def __repr__(self) -> str:
        return f"RegionBank({self.capacity}, held={len(self)})"

    def __len__(self) -> int:
        return self._ledger.count

    @property
    def rows(self) -> Tensor:
        """(m, dim) float32. Do not change them."""
        return self._held[: len(self)]

    @property
    def counts(self) -> Tensor:
        """(m,) int64 on the CPU: how many frames each row stands for; near-duplicates count once.

        It is exact where frames come in order of their moments and no two rows that stand for several
        merge; then it is no less than the larger of the two counts.
        """
        return torch.from_numpy(self._ledger.frames[: len(self)].copy())

    @property
    def regions(self) -> Tensor:
        """(m,) int64 on the CPU: how many regions each row stands for; in all, those added."""
        return torch.from_numpy(self._ledger.regions[: len(self)].copy())

    @property
    def reach(self) -> Tensor:
        """(m,) float64 on the CPU: no region that a row stands for lies farther from it."""
        return torch.from_numpy(self._ledger.reach[: len(self)].copy())

    @property
    def radius(self) -> float:
        """The largest distance of two rows that became one; 0 while the bank is not full."""
        return self._ledger.radius

    @torch.inference_mode(False)
    def add(self, embeddings: ArrayLike, moments: ArrayLike) -> None:
        """Take in regions, those of one frame together.

        Args:
            embeddings: Finite floats of shape (n, dim).
            moments: (n,) integers, equal for the regions of one frame.

        Raises:
            EmbeddingShapeError: If shapes do not fit, the width is not that of the rows, or a row
                holds NaN or infinity.
        """
        rows, own = self._checked(embeddings, moments, "RegionBank.add")
        # A few at once, so that what is added does not push out what there is in one go.
        step = min(_MOST_AT_ONCE, self.capacity // 4)
        for start in range(0, len(rows), step):
            self._add(rows[start : start + step], own[start : start + step])

    def _checked(
        self, embeddings: ArrayLike, moments: ArrayLike, caller: str
    ) -> tuple[Tensor, Integers]:
        """Finite float32 rows and their moments; the bank is on the device of the rows from then on."""
        dim = self._held.shape[1] if len(self) else None
        rows = as_embeddings(embeddings, caller=caller, dim=dim)
        own: Integers = as_ids(moments, caller=caller, length=len(rows)).cpu().numpy()
        if not bool(torch.isfinite(torch.stack(rows.aminmax())).all()):
            raise EmbeddingShapeError(
                f"{caller} got embeddings with NaN or infinity; leave those rows out, and check the "
                "encoder that made them."
            )
        if self._held.device != rows.device:
            # A bank loaded on the CPU moves to the accelerator once, not at every call.
            self._move(rows.device)
        return rows, own

    # Moved in inference mode, the rows could not be replaced outside it.
    @torch.inference_mode(False)
    def _move(self, device: torch.device) -> None:
        self._held = self._held.to(device)
        self._index, self._asked = None, None

    def _add(self, fresh: Tensor, moments: Integers) -> None:
        ledger, before, after = self._ledger, len(self), len(self) + len(fresh)
        is_too_many = after > self.capacity
        if is_too_many:
            self._tell_lonely()
            near = self._among(fresh, before), self._look(fresh, _LOOKED_AT)
            distances, places = (np.concatenate(part, axis=1) for part in zip(*near, strict=True))
        ledger.append(moments)
        self._make_room(after, fresh)
        self._held[before:after] = fresh
        changed = np.arange(before, after)
        if is_too_many:
            ledger.tell_near(changed, distances, places)
            while not ledger.merge(self.capacity):
                self._tell_anew()
            holes, movers = ledger.close_gaps()
            self._held[self._rows_at(holes)] = self._held[self._rows_at(movers)]
            changed = np.concatenate([holes, np.arange(before, len(self))])
        self._asked = None
        if self._index is not None:
            self._index.replace(self.rows, torch.from_numpy(changed))

    def _tell_lonely(self) -> None:
        """Search for near rows where none is known any more, or yet.

        It waits until it is worth a search; meanwhile those rows merge if others name them.
        """
        lonely = self._ledger.lonely()
        if 2 * len(lonely) > len(self):
            self._tell_anew()
        elif len(lonely) > _LONELY * len(self):
            distances, places = self._search(self._held[self._rows_at(lonely)], NEAREST + 1)
            # Each is its own nearest row, or one of several at the same place.
            distances[places == lonely[:, None]] = np.inf
            self._ledger.tell_near(lonely, distances, places)

    def _tell_anew(self) -> None:
        """Search for near rows of all rows there are, also of those that are just being added."""
        places = self._ledger.there()
        index = self._index_of(self._held[self._rows_at(places)])
        found = index.leave_one_out(min(NEAREST, len(places) - 1))
        self._ledger.tell_near(
            places, found.distances.cpu().double().numpy(), places[found.indices.cpu().numpy()]
        )

    def _among(self, fresh: Tensor, first: int) -> tuple[Floats, Integers]:
        """Distances and places of near rows among those to be added, which go behind ``first``."""
        if len(fresh) == 1:
            return np.empty((1, 0)), np.empty((1, 0), np.int64)
        # To prepare the few of one frame for another engine would take longer than the product.
        engine: EngineName = "torch" if len(fresh) <= _FEW else self.engine
        index = NeighborIndex(fresh, engine=engine, max_memory=self.max_memory)
        found = index.leave_one_out(min(NEAREST, len(fresh) - 1))
        return found.distances.cpu().double().numpy(), found.indices.cpu().numpy() + first

    def _rows_at(self, places: Integers) -> Tensor:
        return torch.from_numpy(places).to(self._held.device)

    def _make_room(self, wanted: int, like: Tensor) -> None:
        """Allocate in doublings, so that filling a bank costs linear time."""
        if wanted <= len(self._held):
            return
        most = self.capacity + min(_MOST_AT_ONCE, self.capacity // 4)
        room = max(min(2 * len(self._held), most), wanted)
        longer = torch.empty(room, like.shape[1], dtype=torch.float32, device=like.device)
        if len(self._held):
            longer[: len(self._held)] = self._held
        self._held = longer

    def distances(self, embeddings: ArrayLike, moments: ArrayLike, *, frames: int = 1) -> Tensor:
        """How far each region lies from those of other frames.

        Args:
            embeddings: Finite floats of shape (n, dim).
            moments: (n,) integers; rows within ``id_window`` of it are no neighbours.
            frames: At this distance lie regions of so many other frames, at least 1. Each counts
                once, by its nearest region, and near-duplicates of one that is counted do not.

        Returns:
            Float32 of shape (n,), on the device of ``embeddings``: the distance of the farthest frame
            where fewer are known. Of a merged row, the frames are taken to lie where the row does;
            two are known by name, and the others of several rows are taken for the same.

        Raises:
            EmbeddingShapeError: If shapes do not fit, or a row holds NaN or infinity.
            NotEnoughReferenceError: If no region of another moment has been seen.
        """
        caller = "RegionBank.distances"
        frames = check_count(caller, "frames", frames, least=1)
        if not len(self):
            raise NotEnoughReferenceError(f"{caller} has seen no region yet; call add first.")
        rows, own = self._checked(embeddings, moments, caller)
        alone = self._ledger.alone(own)
        if alone.any():
            raise NotEnoughReferenceError(
                f"{caller} needs regions of other moments than {own[alone.argmax()]}, which differ "
                f"from it by more than id_window={self.id_window}, and has seen none; add regions of "
                "more frames."
            )
        asked = min(max(_LOOKED_AT, frames + _LOOKED_AT // 2), len(self))
        step = _ENTRIES // _LOOKED_AT
        values = [
            self._reached(rows[start : start + step], own[start : start + step], frames, asked)
            for start in range(0, len(rows), step)
        ]
        return torch.from_numpy(np.concatenate(values)).float().to(rows.device)

    def _reached(self, rows: Tensor, own: Integers, frames: int, asked: int) -> Floats:
        values, is_sure = self._ledger.reached(*self._look(rows, asked), own, frames)
        left = np.flatnonzero(~is_sure)
        while len(left):
            # The rows nearest to them are all of their own moments, or of few others.
            asked = min(_WIDER * asked, len(self))
            step = max(_ENTRIES // asked, 1)
            for start in range(0, len(left), step):
                part = left[start : start + step]
                found = self._search(rows[self._rows_at(part)], asked)
                values[part], is_sure[part] = self._ledger.reached(*found, own[part], frames)
            left = left[~is_sure[left]]
        return values

    def _look(self, rows: Tensor, count: int) -> tuple[Floats, Integers]:
        """``_search`` for up to ``count`` rows, and only once for what is judged and then learned."""
        count = min(count, len(self))
        if self._asked is not None:
            asked, distances, places = self._asked
            if distances.shape[1] >= count and torch.equal(asked, rows):
                return distances[:, :count], places[:, :count]
        distances, places = self._search(rows, count)
        if len(rows) <= _MOST_AT_ONCE:
            self._asked = rows.clone(), distances, places
        return distances, places

    def _search(self, rows: Tensor, count: int) -> tuple[Floats, Integers]:
        """Distances to the nearest rows, nearest first, and their places; both (n, count)."""
        if self._index is None:
            self._index = self._index_of(self.rows)
        found = self._index.search(rows, count)
        return found.distances.cpu().double().numpy(), found.indices.cpu().numpy()

    def _index_of(self, rows: Tensor) -> NeighborIndex:
        return NeighborIndex(rows, engine=self.engine, max_memory=self.max_memory)

    def state_dict(self) -> State:
        """The rows and what is known of them."""
        content: State = {
            "capacity": self.capacity,
            "id_window": self.id_window,
            "rows": self.rows.cpu().clone(),
            "ledger": self._ledger.state_dict(),
        }
        return sealed_state("RegionBank", 1, content)

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over saved rows; capacity and window must be those they were saved with.

        Raises:
            StateMismatchError: If they differ, or the state is of something else.
        """
        settings = {"capacity": self.capacity, "id_window": self.id_window}
        keys = (*settings, "rows", "ledger")
        content = open_state(state, kind="RegionBank", version=1, keys=keys)
        check_settings("RegionBank", content, settings)
        self._ledger.load_state_dict(content["ledger"])
        self._held = content["rows"].clone()
        self._index, self._asked = None, None
