"""Pictures of judged frames and of regions in them, with what is marked on them and said of them.

It reads pixels when they are shown, and remembers what could not be read. What to show has been
chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raremix.data.frames import Frame, Frames
from raremix.data.pictures import read_image
from raremix.errors import FileFormatError
from raremix.regions.boxes import square_boxes
from raremix.regions.detector import FrameDetection, Kind
from raremix.regions.neighbours import RegionNeighbour
from raremix.reports.heat import HEAT_COLOURS, heat_over
from raremix.reports.pictures import Picture, encode_picture

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FrameCards", "Mark", "Shown"]

_CELL = 8  # pixels of the frame, of a heat map
_CONTEXT = 1.2  # times the longer side of a region, shown around it
_LEAST_SHOWN = 0.2  # of the shorter side of a frame, around a region however small
_KINDS: dict[Kind, str] = {
    "object": "rare object, ordinary scene",
    "scene": "rare scene",
    "both": "rare object in a rare scene",
    "neither": "",
}


@dataclass(frozen=True)
class Mark:
    """A box over a picture, in pixels of a picture ``width`` wide and ``height`` high."""

    left: int
    top: int
    width: int
    height: int
    word: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture with what is marked on it and what stands beside it."""

    name: str
    alt: str
    picture: Picture | None
    missing: str
    size: tuple[int, int]
    marks: Sequence[Mark] = ()
    label: str = ""
    figure: str = ""
    rank: int = 0
    kind: str = ""
    lines: Sequence[str] = ()
    heat: Picture | None = None
    heat_alt: str = ""
    neighbours: Sequence["Shown"] = ()


class FrameCards:
    """Makes the pictures of judged frames and of regions in them, with their words.

    Frames are rows of ``detection.regions.ids``, regions rows of ``detection.regions``.

    Attributes:
        failed: Why a frame could not be read, by its row.
    """

    def __init__(
        self,
        detection: FrameDetection,
        frames: Frames,
        labels: Mapping[int, str],
        *,
        most_boxes: int,
        is_small: bool,
    ) -> None:
        self.detection, self.set, self.labels = detection, frames, labels
        self.most_boxes = most_boxes
        self.kinds = detection.kinds
        self.failed: dict[int, str] = {}
        self.wide, self.large, self.little = (320, 120, 80) if is_small else (440, 160, 96)
        self._last: tuple[int, Image.Image | None] = (-1, None)
        self._heats: dict[int, Any] = {}

    def frames(self, rows: Sequence[int]) -> list[Shown]:
        """Frames with their rare regions marked, and a heat map of each."""
        low, high = self._heat_range(rows)
        found = []
        for rank, row in enumerate(rows, 1):
            marked = self._rare(row, most=self.most_boxes)
            height, width = self._size(row)
            marks, lines = [], []
            for number, region in enumerate(marked, 1):
                box = self.detection.regions.boxes[region].tolist()
                marks.append(_mark(box, (0, 0), str(number) if len(marked) > 1 else ""))
                said = f", {self.labels[region]}" if self.labels.get(region) else ""
                name = f"region {number}" if len(marked) > 1 else "the region"
                lines.append(f"{name}: {self.detection.region_scores[region]:.4g}{said}")
            image = self._image(row)
            heat = None
            if image is not None:
                small = image.copy()
                small.thumbnail((self.wide, self.wide))
                cell = _CELL * small.width / width
                over = heat_over(small, self._heat(row), cell=cell, low=low, high=high)
                heat = encode_picture(over, size=self.wide, quality=60)
            where = _where(self._heat(row))
            count = f"{len(marked)} rare region{'s' * (len(marked) != 1)} marked"
            found.append(
                Shown(
                    name=self._name(row),
                    alt=f"Frame {self._name(row)}, {count}",
                    picture=self._encoded(image, self.wide, 72),
                    missing=self.failed.get(row, ""),
                    size=(width, height),
                    marks=marks,
                    figure=f"{self.detection.object_scores[row]:.4g}",
                    rank=rank,
                    kind=_KINDS[self.kinds[row]],
                    lines=[*lines, self._scene_line(row), self._when(row)],
                    heat=heat,
                    heat_alt=f"Heat map of {self._name(row)}, brightest {where}",
                )
            )
        return found

    def objects(
        self, rows: Sequence[int], neighbours: Mapping[int, Sequence[RegionNeighbour]]
    ) -> list[Shown]:
        """The rarest region of each frame, with its neighbours in others."""
        found = []
        for rank, row in enumerate(rows, 1):
            region = self._rare(row, most=1)[0]
            beside = [
                self._crop(near.row, self.little, figure=f"{near.distance:.4g}")
                for near in neighbours.get(region, ())
            ]
            score = f"{self.detection.region_scores[region]:.4g}"
            found.append(self._crop(region, self.large, figure=score, rank=rank, neighbours=beside))
        return found

    def scenes(self, rows: Sequence[int]) -> list[Shown]:
        """Frames as they are, with their scene score."""
        found = []
        for row in rows:
            height, width = self._size(row)
            name = self._name(row)
            found.append(
                Shown(
                    name=name,
                    alt=f"Frame {name}",
                    picture=self._encoded(self._image(row), 320, 65),
                    missing=self.failed.get(row, ""),
                    size=(width, height),
                    figure=f"{self.detection.scene_scores[row]:.4g}",
                    kind=_KINDS[self.kinds[row]],
                    lines=[self._when(row)],
                )
            )
        return found

    def heat_legend(self, rows: Sequence[int]) -> dict[str, str]:
        """What the colours of the heat maps mean."""
        low, high = self._heat_range(rows)
        return {
            "gradient": f"linear-gradient(90deg, {', '.join(HEAT_COLOURS)})",
            "low": f"{low:.3g} or less",
            "high": f"{high:.3g} or more",
        }

    def left_out(self) -> list[tuple[str, str]]:
        """The pictures that are missing, and why."""
        return [
            (f"the picture of {self._name(row)}", reason)
            for row, reason in sorted(self.failed.items())
        ]

    def _rare(self, row: int, *, most: int) -> list[int]:
        return [int(region) for region in self.detection.rare_rows(row, most=most)]

    def _frame(self, row: int) -> Frame:
        return self.set.frames[int(self.detection.regions.ids[row])]

    def _name(self, row: int) -> str:
        return self._frame(row).name

    def _when(self, row: int) -> str:
        frame = self._frame(row)
        return f"clip {frame.clip}" + ("" if frame.time is None else f", at {frame.time:,.1f} s")

    def _scene_line(self, row: int) -> str:
        score, threshold = float(self.detection.scene_scores[row]), self.detection.scene_threshold
        if np.isnan(score):
            return "no scene score"
        if not np.isfinite(threshold):
            return f"scene {score:.4g}"
        side = "above" if score > threshold else "below"
        return f"scene {score:.4g}, {side} its threshold of {threshold:.4g}"

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self.detection.regions.sizes[row].tolist()
        return height, width

    def _heat(self, row: int) -> Any:
        if row not in self._heats:
            self._heats[row] = self.detection.heat(row, cell=_CELL).numpy()
        return self._heats[row]

    def _heat_range(self, rows: Sequence[int]) -> tuple[float, float]:
        """One for the whole page, so that frames can be compared; 0 is what half of all regions have.

        One frame in ten may go beyond its upper end: an outlier would leave the others dark.
        """
        peaks = [np.nanmax(heat) for heat in map(self._heat, rows) if np.isfinite(heat).any()]
        high = float(np.quantile(peaks, 0.9)) if peaks else 0.0
        return 0.0, high if high > 0 else 1.0

    def _image(self, row: int) -> "Image.Image | None":
        """The pixels of a frame, or None with the reason in ``failed``; the last one is kept."""
        if self._last[0] != row:
            image = None
            if row not in self.failed:
                try:
                    image = read_image(self._frame(row).path)
                except FileFormatError as error:
                    self.failed[row] = str(error)
            if image is not None and image.size != self._size(row)[::-1]:
                height, width = self._size(row)
                self.failed[row] = (
                    f"it has {image.width} x {image.height} pixels now and had {width} x {height}"
                )
                image = None
            self._last = (row, image)
        return self._last[1]

    def _encoded(self, image: "Image.Image | None", size: int, quality: int) -> Picture | None:
        return None if image is None else encode_picture(image.copy(), size=size, quality=quality)

    def _crop(
        self,
        region: int,
        size: int,
        *,
        figure: str,
        rank: int = 0,
        neighbours: Sequence[Shown] = (),
    ) -> Shown:
        """A region with what is around it."""
        regions = self.detection.regions
        row = int(regions.frame[region])
        box = regions.boxes[region]
        least = round(_LEAST_SHOWN * min(self._size(row)))
        square = square_boxes(box[None], self._size(row), context=_CONTEXT, least_side=least)[0]
        left, top, right, bottom = square.tolist()
        image = self._image(row)
        cut = None if image is None else image.crop((left, top, right, bottom))
        said = self.labels.get(region, "")
        return Shown(
            name=self._name(row),
            alt=f"Region of {self._name(row)}" + (f", {said}" if said else ""),
            picture=self._encoded(cut, size, 75),
            missing=self.failed.get(row, ""),
            size=(right - left, bottom - top),
            marks=[_mark(box.tolist(), (left, top))],
            label=said,
            figure=figure,
            rank=rank,
            kind=_KINDS[self.kinds[row]],
            lines=[self._when(row)],
            neighbours=neighbours,
        )


def _mark(box: Sequence[int], corner: tuple[int, int], word: str = "") -> Mark:
    left, top, right, bottom = box
    return Mark(left - corner[0], top - corner[1], right - left, bottom - top, word)


def _where(heat: Any) -> str:
    """Which ninth of a heat map its highest cell lies in, in words."""
    if not np.isfinite(heat).any():
        return "nowhere"
    row, column = np.unravel_index(np.nanargmax(heat), heat.shape)
    down = ("at the top", "in the middle", "at the bottom")[3 * int(row) // heat.shape[0]]
    across = (" left", "", " right")[3 * int(column) // heat.shape[1]]
    return down + across
