"""Writes one HTML file that shows which samples are rare, and lets a reader see why.

The numbers come in; it sorts them, counts them and lays them out. The page carries its pictures
and charts inside it, runs no script and asks the network for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raremix.data.kinds import PathLike
from raremix.data.writing import target_path
from raremix.errors import EmbeddingShapeError, LabelError, OptionError
from raremix.evaluation import ClassRow, class_table
from raremix.reports.charts import draw_histogram
from raremix.reports.files import write_text
from raremix.reports.layout import (
    NARROW,
    WIDE,
    Section,
    Table,
    fill_template,
    laid_out,
    laid_out_sections,
    percent,
    require_extra,
)
from raremix.reports.pictures import ImageSource, Picture, Thumbnails
from raremix.reports.summary import score_quantiles

__all__ = ["write_report"]


@dataclass(frozen=True)
class _Shown:
    """A row with its picture and what stands beside it."""

    name: str
    picture: Picture | None
    missing: str
    label: str
    is_rare: bool
    figure: str
    detail: str
    rank: int = 0
    neighbours: Sequence["_Shown"] = ()


def write_report(
    path: PathLike,
    *,
    scores: Any,
    threshold: float,
    title: str = "Rare samples",
    images: ImageSource | Thumbnails | None = None,
    names: Sequence[Any] | None = None,
    labels: Any = None,
    label_names: Mapping[Any, str] | None = None,
    neighbours: Mapping[int, Sequence[tuple[int, float]]] | None = None,
    duplicates: Sequence[tuple[int, int, float]] = (),
    left_out: Sequence[tuple[str, str]] = (),
    sections: Sequence[Section] = (),
    notes: Sequence[str] = (),
    top: int = 24,
    common: int = 8,
    command: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a scored collection as one self-contained HTML file.

    Args:
        path: The file, replaced in one step if it exists.
        scores: (n,) floats, larger is rarer; NaN for rows that were left out.
        threshold: Scores above it are rare; infinity if nothing is.
        title: Heading of the page.
        images: A function of the row that returns a PIL image or uint8 array, or one path per row,
            or one uint8 array of shape (n, height, width, 3) or (n, height, width). An image that
            cannot be read leaves an empty frame and is listed; a ``Thumbnails`` of one of these
            also remembers it. Without images, samples are rows of numbers.
        names: What to call each row, such as its file name; the row number if not given.
        labels: (n,) class labels, for a table and beside the pictures; they change no order.
        label_names: Name of each label.
        neighbours: For a row, its nearest other rows with their distances, nearest first.
        duplicates: Pairs of rows that look alike, with their distance.
        left_out: What was left out and why.
        sections: Further tables and charts.
        notes: Sentences a reader should see first.
        top: How many of the rarest samples to show.
        common: How many of the most common samples to show.
        command: How to make this page again.
        facts: Further facts by name: model, versions, seconds.

    Returns:
        The path.

    Raises:
        EmbeddingShapeError: If ``scores`` is not (n,), or holds nothing but NaN.
        ImageInputError: If there are more or fewer images than scores.
        LabelError: If there are more or fewer names or labels than scores.
        MissingExtraError: If jinja2 or Pillow is not installed.
        OptionError: If the file cannot be written there, or ``top`` or ``common`` is negative.
    """
    target_path(path, caller="write_report")
    require_extra()

    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).any():
        raise EmbeddingShapeError(
            f"write_report expects scores of shape (n,), at least one of them finite, got shape "
            f"{values.shape}."
        )
    if top < 0 or common < 0:
        raise OptionError(
            f"write_report expects top and common of 0 or more, got {top} and {common}."
        )
    for what, given in (("names", names), ("labels", labels)):
        if given is not None and len(given) != len(values):
            raise LabelError(
                f"write_report got {len(given)} {what} for {len(values)} scores; pass one per "
                "score, in the same order."
            )
    rows = _Rows(values, threshold, images, names, labels, label_names or {}, top)
    order = rows.order
    classes: Sequence[ClassRow] = ()
    if labels is not None:
        classes = class_table(
            values, np.asarray(labels), threshold=threshold, names=label_names or {}
        )
    rarest = [rows.card(row, rank, neighbours or {}) for rank, row in enumerate(order[:top], 1)]
    # No sample is shown as rare and as common.
    usual = [rows.small(row) for row in order[top:][::-1][:common]]
    twins = [(rows.small(a), rows.small(b), f"{distance:.4g}") for a, b, distance in duplicates]
    page = fill_template(
        "report.html.j2",
        title=title,
        notes=list(notes),
        headline=rows.headline(),
        histogram=_draw_histogram(values, threshold),
        sections=laid_out_sections(sections),
        rarest=rarest,
        common=usual,
        twins=twins,
        pictured=images is not None,
        classes=laid_out(_class_table(classes)) if classes else None,
        left_out=[*left_out, *rows.left_out()],
        command=command,
        facts={name: str(value) for name, value in (facts or {}).items()},
    )
    write_text(path, page)
    return Path(path)


class _Rows:
    """The scored rows in order of rarity, and how each is shown."""

    def __init__(
        self,
        values: Any,
        threshold: float,
        images: ImageSource | Thumbnails | None,
        names: Sequence[Any] | None,
        labels: Any,
        label_names: Mapping[Any, str],
        top: int,
    ) -> None:
        self.values, self.threshold, self.names = values, threshold, names
        self.labels = None if labels is None else np.asarray(labels).tolist()
        self.label_names = label_names
        self.thumbnails = (
            images if isinstance(images, Thumbnails) else Thumbnails(images, rows=len(values))
        )
        self.scored = int((~np.isnan(values)).sum())
        # Stable, so that of equal scores the first row comes first; NaN sorts last.
        self.order: list[int] = np.argsort(-values, kind="stable")[: self.scored].tolist()
        # A page of a hundred cards must still travel by mail.
        self.large, self.little = (224, 112) if top <= 40 else (160, 80)

    def card(
        self, row: int, rank: int, neighbours: Mapping[int, Sequence[tuple[int, float]]]
    ) -> _Shown:
        below = int((self.values < self.values[row]).sum())
        beside = [
            self._shown(other, self.little, figure=f"{distance:.4g}")
            for other, distance in neighbours.get(row, ())
        ]
        return self._shown(
            row,
            self.large,
            rank=rank,
            figure=f"{self.values[row]:.4g}",
            detail=f"rarer than {percent(below / self.scored)}",
            neighbours=beside,
        )

    def small(self, row: int) -> _Shown:
        return self._shown(row, self.little, figure=f"{self.values[row]:.4g}")

    def headline(self) -> list[tuple[str, str, str]]:
        known = self.values[~np.isnan(self.values)]
        flagged = int((known > self.threshold).sum())
        at = score_quantiles(known)
        left = len(self.values) - self.scored
        return [
            ("samples scored", f"{self.scored:,}", f"{left:,} left out" if left else ""),
            ("called rare", f"{flagged:,}", f"{percent(flagged / self.scored)} of them"),
            ("threshold", f"{self.threshold:.4g}", "scores above it are rare"),
            ("median score", f"{at['p50']:.4g}", f"p99 {at['p99']:.4g}, p99.9 {at['p99.9']:.4g}"),
        ]

    def left_out(self) -> list[tuple[str, str]]:
        found = []
        missing = np.flatnonzero(np.isnan(self.values)).tolist()
        if missing:
            some = ", ".join(self._name(row) for row in missing[:12])
            more = f" and {len(missing) - 12:,} more" if len(missing) > 12 else ""
            found.append((some + more, "no score: the embedding holds NaN or infinity"))
        for row, reason in sorted(self.thumbnails.failed.items()):
            found.append((f"the picture of {self._name(row)}", reason))
        return found

    def _name(self, row: int) -> str:
        return str(row) if self.names is None else str(self.names[row])

    def _shown(
        self,
        row: int,
        size: int,
        *,
        figure: str,
        detail: str = "",
        rank: int = 0,
        neighbours: Sequence[_Shown] = (),
    ) -> _Shown:
        picture = self.thumbnails.make(row, size=size, quality=80 if size > 160 else 70)
        label = "" if self.labels is None else self.labels[row]
        return _Shown(
            name=self._name(row),
            picture=picture,
            missing=self.thumbnails.failed.get(row, ""),
            label=str(self.label_names.get(label, label)),
            is_rare=bool(self.values[row] > self.threshold),
            figure=figure,
            detail=detail,
            rank=rank,
            neighbours=neighbours,
        )


def _draw_histogram(values: Any, threshold: float) -> list[str]:
    known = values[~np.isnan(values)]
    at = score_quantiles(known)
    marks = {"median": at["p50"], "p99": at["p99"]}
    return [draw_histogram(known, threshold, width=width, marks=marks) for width in (WIDE, NARROW)]


def _class_table(classes: Sequence[ClassRow]) -> Table:
    return Table(
        headers=["label", "samples", "share", "called rare", "of its samples", "lift"],
        rows=[
            [
                row.name,
                row.count,
                percent(row.share),
                row.flagged,
                percent(row.flagged_share),
                round(row.lift, 2),
            ]
            for row in classes
        ],
        note="Lift is how much more often a label is called rare than samples are on average.",
    )
