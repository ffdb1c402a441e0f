"""From rare regions to entries of a buffer, each object once.

It decides which regions of a judged frame are worth an entry, and which entry stands already for
the object they show. It knows neither loaders nor training; ``FrameViews`` is the way back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raremix import distributed
from raremix.errors import EmbeddingShapeError, ImageInputError, OptionError
from raremix.inputs import ArrayLike, as_ids, finite_rows
from raremix.memory import BufferEntries, RareMemoryBuffer
from raremix.options import check_count, check_number
from raremix.protocols import State
from raremix.regions.boxes import square_boxes
from raremix.regions.detector import FrameDetection
from raremix.regions.frame_views import FrameSource
from raremix.regions.keys import region_keys
from raremix.state import check_settings, open_state, sealed_state
from raremix.views.images import as_image
from raremix.views.making import cut_views
from raremix.views.rows import ViewParameters, to_rows

__all__ = ["RegionReplay"]

_KIND = "RegionReplay"

_REACH = 1.5
"""How far an object moves between two sightings, in lengths of the longer side of its larger box.

Of 83 objects of CamVid followed by eye from one second to the next, 5 moved farther.
"""


class RegionReplay:
    """Puts the rare regions of frames into a buffer, and counts an object once.

    An entry's key says of which frame a region is and where it lies (``region_keys``).
    ``FrameViews`` gives views of it by that key, so that ``BufferedMixSampler`` mixes it into
    batches; with ``crop_size``, the buffer keeps its pixels too, for ``CropMixer``.

    Two regions show the same object if the moments of their frames differ by at most ``id_window``,
    their centres are no farther apart than 1.5 times the longer side of the larger box, and

        likeness = intersection over union of the boxes + cosine of the embeddings

    is at least ``alike``. Embeddings are taken from the mean of all regions seen so far, and a
    negative cosine counts as 0. Within one frame, where several objects of a kind look alike, the
    boxes alone count.

    A region of an object that has an entry is not admitted: the entry gets its score, if that is
    higher, and is compared from then on as it was seen last. The moment is that of the entry's own
    frame, so an object in view for longer than the window comes in anew, as it looks by then. One
    whose entry has left the buffer may come in again, too. No more is kept than one row of numbers
    for each entry held.

    Under torch.distributed, ``add`` is a collective call like ``RareMemoryBuffer.admit``: all ranks
    take the same decisions over the regions of all of them, so that an object seen by two comes in
    once, and any rank's state serves all. With ``layout="local"`` of the buffer, every rank knows
    its own regions only.

    Args:
        buffer: Where they go. It gets the embeddings as features if it needs some. An entry's score
            is that of its region: do not let feedback of another detector overwrite it.
        frames: Where pixels are read from if ``crop_size`` is set and ``add`` gets none.
        moments: (number of frames,) integers, of each id, as ``Frames.moments`` makes them; if not
            given, an id is its own moment.
        id_window: Moments that differ by at most so much may show the same objects.
        per_frame: Regions of a frame that are admitted at most.
        crop_size: Side in pixels of the crops that the buffer keeps; none if not given.
        context: Side of the square that becomes a crop, in units of the longer side of the box.
        least_side: Of that square, in pixels.
        alike: The least likeness of two sightings of an object, above 0 and at most 2.

    Attributes:
        buffer: As given.

    Raises:
        OptionError: If an option is out of its range.

    Source:
        Ours. In CamVid, we told by eye for 120 objects whether what is most alike of the same class
        one second later is the same. The defaults say so in 89 % of the 83 cases where it is, and
        in 1 of 28 where it is not; in 89 % and 2 with the windows of ``CropEncoder`` that fit the
        objects best. Nobody could tell of the other nine. The defaults were chosen on these pairs.

    Example:
        >>> buffer = RareMemoryBuffer(capacity=256)
        >>> replay = RegionReplay(buffer, moments=[0, 1000, 2000], id_window=1500)
        >>> replay.metrics()
        {'admitted': 0.0, 'merged': 0.0, 'refused': 0.0, 'remembered': 0.0}
    """

    def __init__(
        self,
        buffer: RareMemoryBuffer,
        *,
        frames: FrameSource | None = None,
        moments: ArrayLike | Sequence[int] | None = None,
        id_window: int = 0,
        per_frame: int = 2,
        crop_size: int | None = None,
        context: float = 1.5,
        least_side: int = 64,
        alike: float = 0.45,
    ) -> None:
        if not isinstance(buffer, RareMemoryBuffer):
            raise OptionError(f"{_KIND} expects a RareMemoryBuffer, got {buffer!r}.")
        self.buffer = buffer
        self.id_window = check_count(_KIND, "id_window", id_window, least=0)
        self.per_frame = check_count(_KIND, "per_frame", per_frame, least=1)
        self.crop_size = (
            None if crop_size is None else check_count(_KIND, "crop_size", crop_size, least=1)
        )
        self.context = check_number(_KIND, "context", context, least=1.0)
        self.least_side = check_count(_KIND, "least_side", least_side, least=1)
        self.alike = check_number(_KIND, "alike", alike, above=0.0, most=2.0)
        self._frames = frames
        self._moments = None if moments is None else as_ids(moments, caller=_KIND)
        self._counts = dict.fromkeys(("admitted", "merged", "refused"), 0)
        self._sum = np.zeros(0)  # of all embeddings seen
        self._rows = 0  # how many these were
        self._entries = _Sightings.none(0)

    def __repr__(self) -> str:
        return f"{_KIND}({self.buffer!r}, id_window={self.id_window}, per_frame={self.per_frame})"

    def add(
        self, detection: FrameDetection, pixels: Tensor | Sequence[Tensor] | None = None
    ) -> int:
        """Admit the regions that made frames object-rare, but for those of objects held already.

        Call it at any time, for frames in any order; those of a video are best given in theirs.

        Args:
            detection: What ``RegionDetector`` said of some frames.
            pixels: The frames it judged, in their order, each uint8 of shape (3, height, width);
                only looked at if ``crop_size`` is set.

        Returns:
            How many were admitted, by all ranks together unless the layout is "local".

        Raises:
            OptionError: If this is no detection, pixels are needed and not to be had, or an id of a
                frame is 2**30 or more, or has no moment.
            ImageInputError: If pixels are not those of the frames that were judged.
            EmbeddingShapeError: If embeddings are of another width than those before.
        """
        caller = f"{_KIND}.add"
        if not isinstance(detection, FrameDetection):
            raise OptionError(
                f"{caller} expects what RegionDetector.fit, detect or observe returned, got "
                f"{type(detection).__name__}."
            )
        regions = detection.regions
        if pixels is not None and len(pixels) != len(regions.ids):
            raise ImageInputError(
                f"{caller} got pixels of {len(pixels)} frames for a detection of "
                f"{len(regions.ids)}; pass the frames that were judged, in their order."
            )
        if pixels is None and self.crop_size is not None and self._frames is None:
            raise OptionError(
                f"{caller} needs the pixels of the frames for crop_size={self.crop_size}; pass "
                f"pixels=, or {_KIND}(frames=...), of which it reads the rare ones."
            )
        rows = self._rare_rows(detection)
        own = self._sightings(detection, rows, caller)
        self._learn(regions.embeddings, caller)
        every, rank, at = self._of_all_ranks(own)
        self._entries = self._entries.of(self._held(self._entries.key))
        before = len(self._entries)
        offered = self._joined(every)
        mine = [(place, row) for place, row in offered.items() if rank[row] == distributed.rank()]
        admitted = self._admit(detection, rows[at[[row for _, row in mine]]], mine, pixels)
        new = len(self._entries) - before
        self._counts["admitted"] += admitted
        # An entry too old to stay leaves as its object is seen, and comes in as if it were new.
        self._counts["refused"] += max(new - admitted, 0)
        self._counts["merged"] += len(every) - new
        self._entries = self._entries.of(self._held(self._entries.key))
        return admitted

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a logger.

        Regions ``admitted``, ``merged`` with an entry of the same object, and ``refused`` by the
        buffer, so far; and how many entries are ``remembered`` to compare with.
        """
        counts = {name: float(count) for name, count in self._counts.items()}
        return {**counts, "remembered": float(len(self._entries))}

    def state_dict(self) -> State:
        """What the entries look like; save the state of the buffer with it."""
        content: State = {
            **self._settings(),
            "sum": torch.from_numpy(self._sum.copy()),
            "rows": self._rows,
            "counts": dict(self._counts),
            "entries": {
                name: torch.from_numpy(column.copy())
                for name, column in self._entries.columns().items()
            },
        }
        return sealed_state(_KIND, 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as if never stopped, with the buffer as it was then.

        Raises:
            StateMismatchError: If settings differ, or the state is of something else.
        """
        settings = self._settings()
        keys = (*settings, "sum", "rows", "counts", "entries")
        content = open_state(state, kind=_KIND, version=1, keys=keys)
        check_settings(_KIND, content, settings)
        self._sum, self._rows = content["sum"].cpu().numpy().copy(), content["rows"]
        self._counts = dict(content["counts"])
        entries = content["entries"].items()
        self._entries = _Sightings(**{name: part.cpu().numpy().copy() for name, part in entries})

    def _settings(self) -> State:
        return {
            "id_window": self.id_window,
            "per_frame": self.per_frame,
            "crop_size": self.crop_size,
            "context": self.context,
            "least_side": self.least_side,
            "alike": self.alike,
        }

    # ------------------------------------------------------------------ what was found

    def _rare_rows(self, detection: FrameDetection) -> Tensor:
        frames = detection.is_object_rare.nonzero().flatten().tolist()
        found = [detection.rare_rows(frame, most=self.per_frame) for frame in frames]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device="cpu")

    def _sightings(self, detection: FrameDetection, rows: Tensor, caller: str) -> "_Sightings":
        regions = detection.regions
        of = regions.frame[rows]
        frames, boxes, sizes = regions.ids[of], regions.boxes[rows], regions.sizes[of]
        keys = region_keys(frames, boxes, sizes)
        moments = frames
        if self._moments is not None:
            if len(frames) and int(frames.max()) >= len(self._moments):
                raise OptionError(
                    f"{caller} got a frame of id {int(frames.max())} and knows the moments of "
                    f"{len(self._moments)} frames; pass moments of the whole dataset."
                )
            moments = self._moments[frames]
        features = regions.embeddings[rows.to(regions.embeddings.device)]
        return _Sightings(
            keys.numpy(),
            moments.numpy(),
            frames.numpy(),
            detection.region_scores[rows].double().numpy(),
            # In heights of the frame, so that frames of several sizes can be compared.
            (boxes / sizes[:, :1].double()).numpy(),
            features.detach().float().cpu().numpy(),
        )

    def _learn(self, embeddings: Tensor, caller: str) -> None:
        """Take regions, rare or not, into the mean of all that were seen."""
        width = embeddings.shape[1]
        if len(self._sum) not in (0, width):
            raise EmbeddingShapeError(
                f"{caller} got embeddings of width {width}, and those before were {len(self._sum)} "
                "wide; embed all frames with one encoder."
            )
        rows = embeddings.detach()
        total = rows.sum(dim=0, dtype=torch.float32)
        if not bool(torch.isfinite(total).all()):
            rows = rows[finite_rows(rows)]
            total = rows.sum(dim=0, dtype=torch.float32)
        count = torch.tensor([len(rows)], dtype=torch.float64, device="cpu")
        told = torch.cat([total.cpu().double(), count])
        told = self._gathered(told[None]).sum(dim=0)
        self._sum = told[:-1].numpy() + (self._sum if len(self._sum) else 0.0)
        self._rows += int(told[-1])

    def _of_all_ranks(self, own: "_Sightings") -> tuple["_Sightings", "_Ints", "_Ints"]:
        """The sightings of all ranks that act together, the rank of each, and its row there."""
        n = len(own)
        origin = np.stack([np.full(n, distributed.rank()), np.arange(n)], axis=1)
        parts = [*own.columns().values(), origin]
        gathered = [self._gathered(torch.from_numpy(part)).numpy() for part in parts]
        return _Sightings(*gathered[:-1]), gathered[-1][:, 0], gathered[-1][:, 1]

    def _gathered(self, rows: Tensor) -> Tensor:
        return rows if self.buffer.layout == "local" else distributed.gather_rows(rows)

    def _held(self, keys: "_Ints") -> npt.NDArray[np.bool_]:
        held = torch.tensor(
            [key in self.buffer for key in keys.tolist()], dtype=torch.bool, device="cpu"
        )
        if self.buffer.layout == "sharded":  # each key is held by one of the ranks
            held = distributed.gather_rows(held[None]).any(dim=0)
        return held.numpy()

    # ------------------------------------------------------------------ what it is

    def _joined(self, found: "_Sightings") -> dict[int, int]:
        """Match sightings with entries, and make entries of the others.

        Returns:
            By place of each entry that is new or was raised: the sighting to tell the buffer of.
        """
        before = count = len(self._entries)
        # As many rows more as there can be new entries; what they hold at first does not matter.
        entries = _Sightings.joined(self._entries, found)
        offered: dict[int, int] = {}
        for row in range(len(found)):
            place = self._place_of(entries.of(slice(count)), found, row)
            if place < 0:
                place, count = count, count + 1
                entries.key[place], entries.moment[place] = found.key[row], found.moment[row]
                entries.score[place] = found.score[row]
                offered[place] = row
            elif found.score[row] > entries.score[place]:
                entries.score[place] = found.score[row]
                if place < before:
                    offered[place] = row
            entries.frame[place], entries.box[place] = found.frame[row], found.box[row]
            entries.feature[place] = found.feature[row]
        self._entries = entries.of(slice(count))
        return offered

    def _place_of(self, entries: "_Sightings", found: "_Sightings", row: int) -> int:
        """Which entry stands for the object of a sighting; -1 if none does."""
        equal = np.flatnonzero(entries.key == found.key[row])
        if len(equal):
            return int(equal[0])
        near = np.flatnonzero(np.abs(entries.moment - found.moment[row]) <= self.id_window)
        if not len(near):
            return -1
        likeness, is_near = _overlap(entries.box[near], found.box[row])
        mean = self._sum / max(self._rows, 1)
        known, own = entries.feature[near] - mean, found.feature[row] - mean
        lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(own)
        cosines = known @ own / np.maximum(lengths, 1e-30)
        is_other = entries.frame[near] != found.frame[row]
        likeness[is_other] += np.maximum(cosines[is_other], 0.0)
        likeness[~is_near] = 0.0
        best = int(likeness.argmax())
        return int(near[best]) if likeness[best] >= self.alike else -1

    # ------------------------------------------------------------------ into the buffer

    def _admit(
        self,
        detection: FrameDetection,
        rows: Tensor,
        offered: list[tuple[int, int]],
        pixels: Tensor | Sequence[Tensor] | None,
    ) -> int:
        """Tell the buffer of entries, by place, and of the rows of the detection that show them."""
        places = [place for place, _ in offered]
        regions = detection.regions
        features = None
        if self.buffer.needs_features:
            features = regions.embeddings[rows.to(regions.embeddings.device)]
        keys = torch.from_numpy(self._entries.key[places])
        scores = torch.from_numpy(self._entries.score[places].astype(np.float32))
        crops = self._crops(detection, rows, pixels)
        admitted = self.buffer.admit(BufferEntries(keys, scores, crops, features))
        if self.buffer.layout == "sharded":
            admitted = int(distributed.gather_rows(torch.tensor([admitted], device="cpu")).sum())
        return admitted

    def _crops(
        self, detection: FrameDetection, rows: Tensor, pixels: Tensor | Sequence[Tensor] | None
    ) -> Tensor | None:
        if self.crop_size is None or not len(rows):
            return None
        regions, size = detection.regions, self.crop_size
        crops = torch.empty(len(rows), 3, size, size, dtype=torch.uint8, device="cpu")
        for frame in torch.unique(regions.frame[rows]).tolist():
            id = int(regions.ids[frame])
            if pixels is None:
                assert self._frames is not None  # as add has checked
                image = as_image(self._frames[id][0], caller=_KIND)
            else:
                image = as_image(pixels[frame].cpu(), caller=_KIND)
            height, width = regions.sizes[frame].tolist()
            if image.shape[1:] != (height, width):
                raise ImageInputError(
                    f"{_KIND}.add got frame {id} as {image.shape[2]} x {image.shape[1]} pixels, "
                    f"and regions of it in {width} x {height}; pass the frames that were judged."
                )
            own = (regions.frame[rows] == frame).nonzero().flatten()
            squares = square_boxes(
                regions.boxes[rows[own]],
                (height, width),
                context=self.context,
                least_side=self.least_side,
            )
            cut = to_rows(ViewParameters(tuple(box), size) for box in squares.tolist())
            made = [torch.empty(1, 3, size, size, dtype=torch.uint8, device="cpu") for _ in own]
            cut_views(image[None], cut[None], made)
            crops[own] = torch.cat(made)
        return crops


_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Sightings:
    """Regions as they were seen, or entries as they were seen last, row by row.

    Attributes:
        key: (n,) int64.
        moment: (n,) int64, of a sighting's frame; of an entry, of the frame that its key names.
        frame: (n,) int64, the id of the frame it was seen in.
        score: (n,) float64; of an entry, the highest.
        box: (n, 4) float64, in heights of the frame.
        feature: (n, dim) float32.
    """

    key: _Ints
    moment: _Ints
    frame: _Ints
    score: npt.NDArray[np.float64]
    box: npt.NDArray[np.float64]
    feature: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.key)

    @classmethod
    def none(cls, dim: int) -> "_Sightings":
        """No row."""
        numbers, box = np.zeros(0, np.int64), np.zeros((0, 4))
        feature = np.zeros((0, dim), np.float32)
        return cls(numbers, numbers, numbers, np.zeros(0), box, feature)

    @classmethod
    def joined(cls, one: "_Sightings", two: "_Sightings") -> "_Sightings":
        """Copies of the rows of both."""
        if not len(one):
            one = cls.none(two.feature.shape[1])
        pairs = zip(one.columns().values(), two.columns().values(), strict=True)
        return cls(*(np.concatenate(pair) for pair in pairs))

    def columns(self) -> dict[str, Any]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of(self, rows: Any) -> "_Sightings":
        """Some rows; views of them for a slice, which may be written to."""
        return _Sightings(**{name: column[rows] for name, column in self.columns().items()})


def _overlap(
    boxes: npt.NDArray[np.float64], box: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Intersection over union of boxes with one, and whether they are near enough to be it."""
    sides, own = boxes[:, 2:] - boxes[:, :2], box[2:] - box[:2]
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = np.maximum(high - low, 0.0).prod(axis=1)
    apart = (boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:]) / 2
    longest = np.maximum(sides.max(axis=1), own.max())
    is_near = np.hypot(apart[:, 0], apart[:, 1]) <= _REACH * longest
    return common / (sides.prod(axis=1) + own.prod() - common), is_near
