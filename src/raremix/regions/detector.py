"""Says of frames whether an object in them is rare, or the scene, or both.

It sees regions and scenes as embeddings, and knows neither images nor models.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from raremix.detection import FlagRate, FusedDistance, OODDetector
from raremix.detection.scorers.reference import check_k, count_of
from raremix.errors import (
    EmbeddingShapeError,
    NonFiniteError,
    NotEnoughReferenceError,
    OptionError,
    RaremixWarning,
)
from raremix.inputs import ArrayLike, as_ids, finite_rows
from raremix.neighbors import EngineName
from raremix.neighbors.index import check_id_window
from raremix.options import check_choice, check_count
from raremix.protocols import State, StreamThreshold, Threshold
from raremix.regions.bank import RegionBank
from raremix.regions.boxes import strongest_boxes
from raremix.regions.regions import Regions
from raremix.state import check_settings, open_state, sealed_state

__all__ = ["FrameDetection", "Kind", "RegionDetector"]

Kind = Literal["object", "scene", "both", "neither"]
"""What is rare about a frame."""

_REMEMBERED = 16_384
"""Distances of each scale that say what is usual."""

_MEASURED = 2048
"""Regions of each scale that are compared with a whole set, where a bank is too small for it."""

_LEAST_USUAL = 16
"""Distances of a scale before it is scored: fewer have no quartiles to speak of."""


@dataclass(frozen=True)
class FrameDetection:
    """What a detector says of frames and of the regions in them.

    Attributes:
        regions: The frames and regions that were judged.
        region_scores: (n,) float32 on the CPU, one per region, larger is rarer; NaN where there is none.
        object_scores: (b,) float32 on the CPU: how rare the rarest objects of each frame are.
        scene_scores: (b,) float32 on the CPU: how rare each frame is as a whole.
        is_object_rare: (b,) bool on the CPU.
        is_scene_rare: (b,) bool on the CPU.
        object_threshold: The object score above which a frame was flagged; infinity in warm-up.
        scene_threshold: The same for scenes.
    """

    regions: Regions
    region_scores: Tensor
    object_scores: Tensor
    scene_scores: Tensor
    is_object_rare: Tensor
    is_scene_rare: Tensor
    object_threshold: float
    scene_threshold: float

    @property
    def kinds(self) -> list[Kind]:
        """What is rare about each frame."""
        names: dict[tuple[bool, bool], Kind] = {
            (True, False): "object",
            (False, True): "scene",
            (True, True): "both",
            (False, False): "neither",
        }
        flags = zip(self.is_object_rare.tolist(), self.is_scene_rare.tolist(), strict=True)
        return [names[pair] for pair in flags]

    def rows_of(self, frame: int) -> Tensor:
        """The regions of a frame, as rows of ``regions``; ``frame`` counts ``regions.ids``."""
        column = self.regions.frame
        ends = torch.searchsorted(column, torch.tensor([frame, frame + 1], device="cpu"))
        return torch.arange(int(ends[0]), int(ends[1]), device="cpu")

    def rare_rows(self, frame: int, *, most: int = 3, overlap: float = 0.3) -> Tensor:
        """The regions that made a frame object-rare, the rarest first; none where it is not.

        Args:
            frame: Row of ``regions.ids``.
            most: How many at most.
            overlap: A region that has more than this share of its area, or covers more than this share
                of the area, of one that was named already is passed over.

        Returns:
            (m,) int64, rows of ``regions``: those whose own score lies above the threshold of frames,
            and at least the rarest.
        """
        rows = self.rows_of(frame)
        if not bool(self.is_object_rare[frame]) or not len(rows):
            return rows[:0]
        scores = self.region_scores[rows].nan_to_num(nan=-math.inf)
        kept = (scores > self.object_threshold) | (scores == scores.max())
        rows, scores = rows[kept], scores[kept]
        return rows[strongest_boxes(self.regions.boxes[rows], scores, most=most, overlap=overlap)]

    def heat(self, frame: int, *, cell: int = 8) -> Tensor:
        """Where in a frame the rarity is.

        Args:
            frame: Row of ``regions.ids``.
            cell: Side of a cell in pixels.

        Returns:
            Float32 of shape (height / cell, width / cell), rounded up: the mean score of the regions
            that cover a cell, every scale with the same say; NaN where none does.
        """
        cell = check_count("FrameDetection.heat", "cell", cell, least=1)
        rows = self.rows_of(frame)
        height, width = self.regions.sizes[frame].tolist()
        shape = (-(-height // cell), -(-width // cell))
        layers = []
        scores = self.region_scores[rows]
        for scale in torch.unique(self.regions.scale[rows]).tolist():
            own = rows[(self.regions.scale[rows] == scale) & torch.isfinite(scores)]
            total, count = (torch.zeros(shape, device="cpu") for _ in range(2))
            for (left, top, right, bottom), score in zip(
                self.regions.boxes[own].tolist(), self.region_scores[own].tolist(), strict=True
            ):
                part = (
                    slice(top // cell, -(-bottom // cell)),
                    slice(left // cell, -(-right // cell)),
                )
                total[part] += score
                count[part] += 1
            layers.append(total / count)  # 0 / 0 is NaN, as it should be.
        if not layers:
            return torch.full(shape, torch.nan, device="cpu")
        return torch.stack(layers).nanmean(dim=0)


class RegionDetector:
    """Finds frames with a rare object, and frames that are a rare scene, and tells one from the other.

    A frame's embedding hardly moves when a small part of its pixels changes. So regions are compared
    with regions, and scenes with scenes:

    1. The distance d of a region is that to the nearest region of another frame and of the same scale;
       with ``rare_frames`` = k to the nearest of the k-th frame. What any other frame shows too is not
       rare, however few frames show it often.
    2. Its score is (log d - median) / spread, over what regions of its scale have had; the spread is
       the interquartile range. So scales can be compared.
    3. A frame's object score is the mean of its ``top`` highest region scores.
    4. Its scene score is what ``scene`` says of the embedding of the whole frame.

    The frame is object-rare, scene-rare, both or neither, as the two scores lie above their thresholds.

    Frames of one video that are near in time show the same things. Give them ``moments``, and an
    ``id_window`` within which moments are near-duplicates, as ``Frames.moments`` makes them: they are
    then no neighbours of each other, and count once in the bank.

    Regions with NaN or infinity get the score NaN and are passed over, with a ``RaremixWarning``. A
    frame without regions has the object score NaN and is not object-rare. Nothing is gathered over
    ranks: under torch.distributed every process judges by what it has seen itself.

    Args:
        rare_frames: An object is rare if fewer other frames show something like it: a count of at least
            1, or a share in (0, 1) of the frames seen, rounded up.
        top: How many of a frame's regions make up its object score.
        threshold: From which object score on a frame is flagged; ``FlagRate(0.05)`` if not given.
        scene: Judges the frames as wholes; ``OODDetector()`` with this ``id_window`` if not given.
        id_window: Moments that differ by at most so much are near-duplicates.
        capacity: Rows of the bank of each scale; see ``RegionBank``.
        engine: Who searches, as for ``NeighborIndex``.
        max_memory: Bytes of working memory a search aims for.

    Raises:
        OptionError: If an option is out of its range.

    Source:
        The nearest neighbour among patches, averaged over the highest, is how PatchCore (Roth et al.,
        CVPR 2022, https://arxiv.org/abs/2106.08265) and AnomalyDINO (Damm et al., WACV 2025,
        https://arxiv.org/abs/2405.14529) score defects. Counting frames and not patches, leaving out
        near-duplicates, and making scales comparable are ours, and so is the scene beside it.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> frames = torch.arange(40)
        >>> rows = torch.randn(40 * 5, 8, generator=generator)
        >>> rows[7 * 5 + 2] += 20.0  # one odd region in frame 7
        >>> regions = Regions(
        ...     rows,
        ...     boxes=torch.tensor([[0, 0, 4, 4]]).expand(200, -1),
        ...     scale=torch.zeros(200, dtype=torch.int64),
        ...     frame=frames.repeat_interleave(5),
        ...     scenes=torch.randn(40, 8, generator=generator),
        ...     ids=frames,
        ...     sizes=torch.tensor([[4, 4]]).expand(40, -1),
        ... )
        >>> found = RegionDetector(top=1).fit(regions)
        >>> int(found.object_scores.argmax()), bool(found.is_object_rare[7])
        (7, True)
    """

    def __init__(
        self,
        *,
        rare_frames: int | float = 1,
        top: int = 3,
        threshold: Threshold | None = None,
        scene: OODDetector | None = None,
        id_window: int = 0,
        capacity: int = 8192,
        engine: EngineName = "auto",
        max_memory: int = 2**29,
    ) -> None:
        caller = "RegionDetector"
        self.rare_frames = check_k(caller, "rare_frames", rare_frames)
        self.top = check_count(caller, "top", top, least=1)
        self.threshold: Threshold = FlagRate() if threshold is None else threshold
        if not isinstance(self.threshold, Threshold) or isinstance(self.threshold, type):
            raise OptionError(
                f"{caller} expects threshold as an object such as FlagRate(0.05), got {threshold!r}."
            )
        self.id_window = check_id_window(caller, id_window)
        if scene is not None and not isinstance(scene, OODDetector):
            raise OptionError(f"{caller} expects scene as an OODDetector, got {scene!r}.")
        self.scene = (
            OODDetector(FusedDistance(id_window=self.id_window), smoothing=0.0)
            if scene is None
            else scene
        )
        self.capacity = check_count(caller, "capacity", capacity, least=16)
        check_choice(caller, "engine", engine, get_args(EngineName))
        self.engine: EngineName = engine
        self.max_memory = check_count(caller, "max_memory", max_memory, least=2**20)
        self._forget()

    def _forget(self) -> None:
        self.banks: dict[int, RegionBank] = {}
        self._usual: dict[int, Tensor] = {}
        self._frames = 0

    def __repr__(self) -> str:
        return (
            f"RegionDetector(rare_frames={self.rare_frames}, top={self.top}, "
            f"threshold={self.threshold!r}, scene={self.scene!r})"
        )

    def fit(
        self, regions: Regions, moments: ArrayLike | Sequence[int] | None = None
    ) -> FrameDetection:
        """Forget everything, learn a whole set, and say of each frame what is rare about it.

        No frame is compared with itself or with its near-duplicates. Thresholds are calibrated on the
        scores.

        Args:
            regions: Of all frames.
            moments: (b,) integers, one per frame; ``regions.ids`` if not given.

        Returns:
            Scores and flags of the frames and regions, in their order.

        Raises:
            EmbeddingShapeError: If moments do not fit the frames.
            NonFiniteError: If there is no region free of NaN and infinity.
            NotEnoughReferenceError: If there are too few frames of different moments.
        """
        caller = "RegionDetector.fit"
        own = self._moments(regions, moments, caller)
        good = self._good(regions, caller)
        if not bool(good.any()):
            raise NonFiniteError(
                f"{caller} got {len(regions)} regions and not one is free of NaN and infinity; pass "
                "regions, and check the encoder that made them."
            )
        before = self.banks, self._usual, self._frames
        threshold = self.threshold.state_dict()
        self._forget()
        try:
            self._learn(regions, own, good)
            distances = self._distances(regions, own, good, caller)
            self._usual = self._measured(regions, own, good, distances)
            region_scores = self._scored(regions, distances)
            object_scores = self._object_scores(regions, region_scores)
            known = object_scores[torch.isfinite(object_scores)]
            if not len(known):
                raise NotEnoughReferenceError(
                    f"{caller} needs at least {_LEAST_USUAL} regions of one scale to say which "
                    "distance is usual; pass more frames."
                )
            self.threshold.fit(known)
            scene = self.scene.fit(regions.scenes, own)
        except Exception:
            # All or nothing; the scene, last, keeps to that by itself.
            self.banks, self._usual, self._frames = before
            self.threshold.load_state_dict(threshold)
            raise
        return _judged(regions, region_scores, object_scores, self.threshold.value, scene)

    def detect(
        self, regions: Regions, moments: ArrayLike | Sequence[int] | None = None
    ) -> FrameDetection:
        """Score and judge frames by what has been seen; changes nothing. Arguments as for ``fit``.

        Raises:
            EmbeddingShapeError: If moments do not fit the frames, or widths those seen.
            NotEnoughReferenceError: If too little has been seen, or nothing at a scale.
        """
        caller = "RegionDetector.detect"
        own = self._moments(regions, moments, caller)
        good = self._good(regions, caller)
        distances = self._distances(regions, own, good, caller)
        region_scores = self._scored(regions, distances)
        object_scores = self._object_scores(regions, region_scores)
        scene = self.scene.detect(regions.scenes, own)
        return _judged(regions, region_scores, object_scores, self.threshold.value, scene)

    def observe(
        self, regions: Regions, moments: ArrayLike | Sequence[int] | None = None
    ) -> FrameDetection:
        """Score and judge frames by what came before, then learn them. Arguments as for ``fit``.

        While too little has been seen, scores are NaN and nothing is rare.

        Raises:
            EmbeddingShapeError: As for ``detect``.
        """
        caller = "RegionDetector.observe"
        own = self._moments(regions, moments, caller)
        good = self._good(regions, caller)
        distances = self._distances(regions, own, good, caller, must_know=False)
        region_scores = self._scored(regions, distances)
        object_scores = self._object_scores(regions, region_scores)
        known = object_scores[torch.isfinite(object_scores)]
        value = self.threshold.value
        if isinstance(self.threshold, StreamThreshold):
            value = self.threshold.value_for(known)
        scene = self.scene.observe(regions.scenes, own)
        # Scored before it is learned: the next frame is compared with it, it is not itself.
        self._learn(regions, own, good)
        self._remember(regions, distances)
        if len(known):
            self.threshold.update(known, known > value)
        return _judged(regions, region_scores, object_scores, value, scene)

    def health(self) -> dict[str, float]:
        """Numbers to log.

        ``frames`` seen, ``threshold``, and of each scale ``bank_rows``, ``bank_radius`` and
        ``bank_frames_per_row``, named like ``scale_0/bank_rows``.
        """
        health = {"frames": float(self._frames), "threshold": self.threshold.value}
        for scale, bank in sorted(self.banks.items()):
            health[f"scale_{scale}/bank_rows"] = float(len(bank))
            health[f"scale_{scale}/bank_radius"] = bank.radius
            health[f"scale_{scale}/bank_frames_per_row"] = float(bank.counts.double().mean())
        return health

    def _moments(
        self, regions: Regions, moments: ArrayLike | Sequence[int] | None, caller: str
    ) -> Tensor:
        if not isinstance(regions, Regions):
            raise EmbeddingShapeError(
                f"{caller} expects Regions, as CropEncoder and MapEncoder give them, got "
                f"{type(regions).__name__}."
            )
        if moments is None:
            return regions.ids
        # The moment of a single frame, picked from an array by a tensor, comes without dimension.
        given = moments if isinstance(moments, Tensor) else np.asarray(moments)
        given = given.reshape(1) if given.ndim == 0 else given
        return as_ids(given, caller=f"{caller} with moments=", length=len(regions.ids))

    def _good(self, regions: Regions, caller: str) -> Tensor:
        """(n,) bool on the CPU: which regions can be scored."""
        good = finite_rows(regions.embeddings).cpu()
        bad = int((~good).sum())
        if bad:
            warnings.warn(
                f"{caller}: {bad} of {len(regions)} regions hold NaN or infinity and are passed over; "
                "look at the encoder, or run it in float32.",
                RaremixWarning,
                stacklevel=3,
            )
        return good

    def _of_scale(self, regions: Regions, good: Tensor) -> dict[int, Tensor]:
        """The rows that can be scored, of each scale that has any."""
        return {
            scale: ((regions.scale == scale) & good).nonzero().flatten()
            for scale in torch.unique(regions.scale[good]).tolist()
        }

    def _new_bank(self) -> RegionBank:
        return RegionBank(
            self.capacity,
            id_window=self.id_window,
            engine=self.engine,
            max_memory=self.max_memory,
        )

    def _learn(self, regions: Regions, moments: Tensor, good: Tensor) -> None:
        of = moments[regions.frame]
        for scale, rows in self._of_scale(regions, good).items():
            if scale not in self.banks:
                self.banks[scale] = self._new_bank()
            learned = regions.embeddings[rows.to(regions.embeddings.device)]
            self.banks[scale].add(learned, of[rows])
        self._frames += len(moments)

    def _distances(
        self,
        regions: Regions,
        moments: Tensor,
        good: Tensor,
        caller: str,
        *,
        must_know: bool = True,
    ) -> Tensor:
        """(n,) float64 distances, NaN where there is none."""
        distances = torch.full((len(regions),), torch.nan, dtype=torch.float64, device="cpu")
        of = moments[regions.frame]
        frames = count_of(self.rare_frames, self._frames)
        for scale, rows in self._of_scale(regions, good).items():
            if scale not in self.banks and must_know:
                raise NotEnoughReferenceError(
                    f"{caller} has seen no region of scale {scale}; fit or observe such regions first, "
                    "made by the same encoder."
                )
            if scale in self.banks:
                asked = regions.embeddings[rows.to(regions.embeddings.device)]
                try:
                    found = self.banks[scale].distances(asked, of[rows], frames=frames)
                except NotEnoughReferenceError:
                    if must_know:
                        raise
                else:
                    distances[rows] = found.double().cpu()
        return distances

    def _measured(
        self, regions: Regions, moments: Tensor, good: Tensor, distances: Tensor
    ) -> dict[int, Tensor]:
        """Distances that say what is usual in a set, of each scale.

        A bank that has merged rows finds common regions farther away than they are, and more so at a
        scale with more regions, which would then seem to hold less that is rare. So that scales can
        be compared, some regions are measured against the whole set.
        """
        of, usual = moments[regions.frame], {}
        frames = count_of(self.rare_frames, self._frames)
        for scale, rows in self._of_scale(regions, good).items():
            if self.banks[scale].radius == 0:
                usual[scale] = distances[rows[_spaced(len(rows), _REMEMBERED)]]
                continue
            everything = RegionBank.holding(
                regions.embeddings[rows.to(regions.embeddings.device)],
                of[rows],
                id_window=self.id_window,
                engine=self.engine,
                max_memory=self.max_memory,
            )
            some = _spaced(len(rows), _MEASURED)
            asked = everything.rows[some.to(everything.rows.device)]
            found = everything.distances(asked, of[rows[some]], frames=frames)
            usual[scale] = found.double().cpu()
        return usual

    def _remember(self, regions: Regions, distances: Tensor) -> None:
        """Note distances of a stream, of which the newest say what is usual."""
        for scale in torch.unique(regions.scale).tolist():
            own = distances[regions.scale == scale]
            own = own[torch.isfinite(own)]
            before = self._usual.get(scale, own[:0])
            self._usual[scale] = torch.cat([before, own])[-_REMEMBERED:]

    def _scored(self, regions: Regions, distances: Tensor) -> Tensor:
        scores = torch.full((len(regions),), torch.nan, device="cpu")
        for scale in torch.unique(regions.scale).tolist():
            usual = self._usual.get(scale)
            if usual is None or len(usual) < _LEAST_USUAL:
                continue
            own = regions.scale == scale
            # Copies lie at distance 0, whose logarithm nothing could be compared with.
            least = float(usual.median()) * 1e-3 or 1e-12
            logs, known = (values.clamp(min=least).log() for values in (distances[own], usual))
            quarter, middle, three = torch.quantile(known, known.new_tensor([0.25, 0.5, 0.75]))
            scores[own] = ((logs - middle) / (three - quarter).clamp(min=1e-6)).float()
        return scores

    def _object_scores(self, regions: Regions, scores: Tensor) -> Tensor:
        """(b,) means of the highest; of all, where there are fewer than ``top``."""
        b = len(regions.ids)
        known = torch.isfinite(scores).nonzero().flatten()
        # By frame, and within it from high to low.
        order = known[scores[known].argsort(descending=True, stable=True)]
        order = order[regions.frame[order].argsort(stable=True)]
        frame = regions.frame[order]
        counts = torch.bincount(frame, minlength=b)
        place = torch.arange(len(order), device="cpu") - (counts.cumsum(0) - counts)[frame]
        is_high = place < self.top
        total = torch.zeros(b, dtype=torch.float64, device="cpu")
        total.index_add_(0, frame[is_high], scores[order[is_high]].double())
        # 0 / 0 is NaN, as it should be.
        means: Tensor = (total / counts.clamp(max=self.top)).float()
        return means

    def state_dict(self) -> State:
        """Everything needed to go on as if never stopped; loads with ``weights_only=True``."""
        content: State = {
            **self._settings(),
            "frames": self._frames,
            "banks": {scale: bank.state_dict() for scale, bank in self.banks.items()},
            "usual": {scale: usual.clone() for scale, usual in self._usual.items()},
            "threshold": self.threshold.state_dict(),
            "scene": self.scene.state_dict(),
        }
        return sealed_state("RegionDetector", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was learned; the settings must be those it was saved with.

        Raises:
            StateMismatchError: If they differ, or the state is of something else.
        """
        settings = self._settings()
        keys = (*settings, "frames", "banks", "usual", "threshold", "scene")
        content = open_state(state, kind="RegionDetector", version=1, keys=keys)
        check_settings("RegionDetector", content, settings)
        banks = {scale: self._new_bank() for scale in content["banks"]}
        for scale, saved in content["banks"].items():
            banks[scale].load_state_dict(saved)
        threshold = self.threshold.state_dict()
        try:
            self.threshold.load_state_dict(content["threshold"])
            self.scene.load_state_dict(content["scene"])
        except Exception:
            # All or nothing; the scene, last, keeps to that by itself.
            self.threshold.load_state_dict(threshold)
            raise
        self.banks = banks
        self._usual = {scale: usual.clone() for scale, usual in content["usual"].items()}
        self._frames = content["frames"]

    def _settings(self) -> State:
        return {
            "rare_frames": self.rare_frames,
            "top": self.top,
            "id_window": self.id_window,
            "capacity": self.capacity,
        }


def _spaced(count: int, most: int) -> Tensor:
    """Up to ``most`` of so many rows, evenly spaced, so that all frames of a set have a say."""
    last = torch.linspace(0, count - 1, min(count, most), dtype=torch.float64, device="cpu")
    return last.round().long()


def _judged(
    regions: Regions, region_scores: Tensor, object_scores: Tensor, value: float, scene: Any
) -> FrameDetection:
    return FrameDetection(
        regions=regions,
        region_scores=region_scores,
        object_scores=object_scores,
        scene_scores=scene.scores.cpu(),
        is_object_rare=object_scores > value,
        is_scene_rare=scene.is_rare.cpu(),
        object_threshold=value,
        scene_threshold=scene.threshold,
    )
