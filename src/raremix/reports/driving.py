"""Writes one HTML file that shows what is rare in a driving folder: objects, scenes, and where.

Frames have been judged, neighbours found and classes counted by others; it lays them out. The page is
of the same make as that of ``report``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from raremix.data.frames import Frame, Frames
from raremix.data.kinds import PathLike
from raremix.data.writing import target_path
from raremix.errors import EmbeddingShapeError, OptionError
from raremix.evaluation import ClassJudged
from raremix.options import check_count
from raremix.regions.detector import FrameDetection
from raremix.regions.neighbours import RegionNeighbour
from raremix.reports.cards import FrameCards
from raremix.reports.files import write_text
from raremix.reports.layout import (
    NARROW,
    WIDE,
    Cell,
    Section,
    Table,
    fill_template,
    laid_out,
    laid_out_sections,
    percent,
    require_extra,
)
from raremix.reports.timeline import Panel, Timeline, draw_timeline

__all__ = ["write_driving_report"]

_LEAST_CLIP = 8  # frames; what is shorter is drawn together with other short clips
_MOST_CLIPS = 12


def write_driving_report(
    path: PathLike,
    *,
    detection: FrameDetection,
    frames: Frames,
    title: str = "Rare objects in ordinary scenes",
    object_frames: Sequence[int] | None = None,
    scene_frames: Sequence[int] | None = None,
    neighbours: Mapping[int, Sequence[RegionNeighbour]] | None = None,
    labels: Mapping[int, str] | None = None,
    classes: Mapping[str, Sequence[ClassJudged]] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
    sections: Sequence[Section] = (),
    notes: Sequence[str] = (),
    top: int = 24,
    scenes: int = 12,
    boxes: int = 3,
    command: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a judged driving set as one self-contained HTML file.

    It shows how object and scene scores run over each clip; the rarest region of each flagged frame
    beside its neighbours; the flagged frames with their rare regions marked and a heat map beside
    them; the rare scenes; and what the labels say. With 24 frames of each it stays below 3 MB.

    Args:
        path: The file, replaced in one step if it exists.
        detection: What a ``RegionDetector`` said of the frames.
        frames: The set that was judged; its places are the ids of ``detection.regions``. Images are
            read when they are shown, and one that cannot be read is left blank and listed.
        title: Heading of the cards.
        object_frames: Which frames with a rare object to show, rarest first, as rows of
            ``detection.regions.ids``; those with the highest object scores if not given.
            ``rarest_moments`` picks them so that near-duplicates are shown once.
        scene_frames: The same for rare scenes.
        neighbours: Of regions by their row, as ``nearest_regions`` finds them. Of each frame shown,
            the region ``rare_rows(frame)[0]`` is looked up.
        labels: What the labels say of regions, by their row; shown beside them.
        classes: Results of ``evaluate_classes`` by what was judged, such as ``"regions"``.
        left_out: What was left out and why.
        sections: Further tables and charts.
        notes: Sentences a reader should see first.
        top: How many frames with a rare object to show.
        scenes: How many rare scenes to show.
        boxes: How many regions to mark in a frame.
        command: How to make this page again.
        facts: Further facts by name: model, versions, seconds.

    Returns:
        The path.

    Raises:
        EmbeddingShapeError: If ``detection`` is of more frames than there are.
        MissingExtraError: If jinja2 is not installed.
        OptionError: If the file cannot be written there, a number is negative, or there is no such
            frame to show.
    """
    caller = "write_driving_report"
    target_path(path, caller=caller)
    require_extra()
    for name, count in (("top", top), ("scenes", scenes), ("boxes", boxes)):
        check_count(caller, name, count, least=0)
    ids = detection.regions.ids
    if len(ids) == 0 or int(ids.max()) >= len(frames) or int(ids.min()) < 0:
        raise EmbeddingShapeError(
            f"{caller} got a detection of {len(ids)} frames with ids up to "
            f"{int(ids.max()) if len(ids) else 'none'} for a set of {len(frames)} frames; pass the "
            "set that was judged, at least one frame of it."
        )
    cards = FrameCards(detection, frames, labels or {}, most_boxes=boxes, is_small=top > 24)
    objects = _chosen(
        "object_frames", object_frames, detection.object_scores, detection.is_object_rare, top
    )
    views = _chosen(
        "scene_frames", scene_frames, detection.scene_scores, detection.is_scene_rare, scenes
    )
    text = fill_template(
        "driving.html.j2",
        title=title,
        notes=list(notes),
        headline=_headline(detection, frames),
        timelines=_timelines(detection, frames),
        objects=cards.objects(objects, neighbours or {}),
        frames=cards.frames(objects),
        scenes=cards.scenes(views),
        heat=cards.heat_legend(objects),
        flagged=_flagged(detection),
        has_neighbours=bool(neighbours),
        sections=laid_out_sections(sections),
        classes=[laid_out(_class_table(name, rows)) for name, rows in (classes or {}).items()],
        left_out=[*left_out, *cards.left_out()],
        command=command,
        facts={name: str(value) for name, value in (facts or {}).items()},
    )
    write_text(path, text)
    return Path(path)


def _headline(detection: FrameDetection, frames: Frames) -> list[tuple[str, str, str]]:
    judged = len(detection.object_scores)
    missing, counts = len(frames) - judged, _flagged(detection)
    ordinary = counts["object"] - counts["both"]
    return [
        ("frames judged", f"{judged:,}", f"{missing:,} left out" if missing else ""),
        (
            "with a rare object",
            f"{counts['object']:,}",
            f"{percent(counts['object'] / judged)}, {ordinary:,} in ordinary scenes",
        ),
        (
            "rare as a scene",
            f"{counts['scene']:,}",
            f"{percent(counts['scene'] / judged)} of the frames",
        ),
        ("both", f"{counts['both']:,}", "counted in each of the two"),
    ]


def _chosen(
    name: str, given: Sequence[int] | None, scores: Tensor, flags: Tensor, most: int
) -> list[int]:
    """Rows of the frames to show: those given, or the rarest of those that are flagged."""
    if given is None:
        order = scores.argsort(descending=True, stable=True)
        return [int(row) for row in order[flags[order]][:most]]
    rows = [int(row) for row in given]
    wrong = [row for row in rows if not 0 <= row < len(flags) or not flags[row]]
    if wrong:
        raise OptionError(
            f"write_driving_report expects {name} as rows of the {int(flags.sum())} of "
            f"{len(flags)} frames that are flagged so, got {wrong[0]}."
        )
    return rows[:most]


def _flagged(detection: FrameDetection) -> dict[str, int]:
    is_object, is_scene = detection.is_object_rare, detection.is_scene_rare
    return {
        "object": int(is_object.sum()),
        "scene": int(is_scene.sum()),
        "both": int((is_object & is_scene).sum()),
    }


def _timelines(detection: FrameDetection, frames: Frames) -> dict[str, Any]:
    """A drawing for each long clip, those with the most flags; one for all that is short."""
    judged = [frames.frames[id] for id in detection.regions.ids.tolist()]
    rows_of: dict[str, list[int]] = {}
    for row, frame in enumerate(judged):
        rows_of.setdefault(frame.clip, []).append(row)
    is_flagged = (detection.is_object_rare | detection.is_scene_rare).numpy()
    long = [clip for clip, rows in rows_of.items() if len(rows) >= _LEAST_CLIP]
    long.sort(key=lambda clip: -int(is_flagged[rows_of[clip]].sum()))
    shown = set(long[:_MOST_CLIPS])
    drawn = []
    for clip, rows in rows_of.items():
        if clip in shown:
            times = np.array([np.nan if judged[r].time is None else judged[r].time for r in rows])
            is_timed = not np.isnan(times).any() and len(np.unique(times)) == len(times)
            if is_timed:
                order = np.argsort(times)
                times, rows = times[order] - times.min(), np.array(rows)[order].tolist()
            x = times if is_timed else np.arange(len(rows), dtype=np.float64)
            label = "seconds" if is_timed else "frames of the clip"
            drawn.append(_timeline(f"clip {clip}", x, label, rows, judged, detection))
    rest = [row for clip, rows in rows_of.items() if clip not in shown for row in rows]
    if rest:
        number = len(rows_of) - len(shown)
        title = f"{number:,} {'other ' if shown else ''}clip{'s' * (number != 1)}"
        x = np.arange(len(rest), dtype=np.float64)
        label = "frames, in the order of the set"
        drawn.append(_timeline(title, x, label, rest, judged, detection, is_clip=False))
    hidden = max(len(long) - _MOST_CLIPS, 0)
    note = f"Of {len(long):,} clips the {_MOST_CLIPS} with the most flagged frames have their own."
    return {"drawn": drawn, "note": note if hidden else ""}


def _timeline(
    title: str,
    x: Any,
    x_label: str,
    rows: list[int],
    judged: Sequence[Frame],
    detection: FrameDetection,
    *,
    is_clip: bool = True,
) -> dict[str, Any]:
    is_object = int(detection.is_object_rare[rows].sum())
    is_scene = int(detection.is_scene_rare[rows].sum())
    timeline = Timeline(
        title=title,
        x=x,
        x_label=x_label,
        names=[judged[row].name for row in rows],
        panels=[
            Panel(
                "object score",
                detection.object_scores[rows].double().numpy(),
                detection.object_threshold,
            ),
            Panel(
                "scene score",
                detection.scene_scores[rows].double().numpy(),
                detection.scene_threshold,
            ),
        ],
        is_clip=is_clip,
    )
    return {
        "title": title,
        "text": f"{len(rows):,} frames: {is_object:,} with a rare object, {is_scene:,} rare scenes",
        "drawn": [draw_timeline(timeline, width=width) for width in (WIDE, NARROW)],
    }


def _class_table(name: str, rows: Sequence[ClassJudged]) -> Table:
    """How much of each class is found, at each rate."""
    rates = [at.rate for at in rows[0].rates] if rows else []
    headers = ["class", "holding it", "judged"]
    has_groups = any(row.groups is not None for row in rows)
    headers += ["in groups"] if has_groups else []
    for rate in rates:
        headers += [f"found at {percent(rate)}", "at best"]
    headers.append("AUROC")
    cells: list[list[Cell]] = []
    for row in rows:
        line: list[Cell] = [row.name, row.count, row.samples]
        line += [row.groups] if has_groups else []
        for at in row.rates:
            known = at.recall_interval
            between = "" if known is None else f" ({100 * known.low:.0f} to {100 * known.high:.0f})"
            missing = np.isnan(at.recall)
            line.append(None if missing else f"{100 * at.recall:.0f} %{between}")
            line.append(None if missing else f"{100 * at.best_recall:.0f} %")
        line.append(round(row.auroc, 3))
        cells.append(line)
    notes = [f"{row.name}: {note}" for row in rows for note in row.notes]
    return Table(headers=headers, rows=cells, title=name, note=" ".join(notes))
