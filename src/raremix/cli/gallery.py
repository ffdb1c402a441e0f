"""Gathers what a report shows beside the scores: pictures, neighbours and near duplicates."""

import argparse
import math
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raremix import __version__
from raremix.cli.console import Console, counted
from raremix.cli.scored import Scored
from raremix.cli.scoring import Rows
from raremix.data.kinds import split_member
from raremix.data.listing import read_image_list
from raremix.errors import FileFormatError, LabelError
from raremix.neighbors import Metric, NeighborIndex, nearest
from raremix.reports import Thumbnails, require_extra, write_report

__all__ = ["Gallery", "open_gallery", "write_gallery"]

_BESIDE = 4
_PAIRS = 6
_TWIN_COSINE = 0.99
# The search for duplicates compares all rows with all: seconds below, many minutes above.
_TWINS_UP_TO = 50_000
_CARDS = 100


@dataclass(frozen=True)
class Gallery:
    """The pictures of the rows, None if there are none, and what to call each row."""

    pictures: Thumbnails | None
    names: list[Any] | None


def open_gallery(where: str | None, rows: Rows, console: Console) -> Gallery:
    """Find the images of the rows, before the work of scoring them.

    Raises:
        FileFormatError: If there are no images where they were said to be.
        LabelError: If there are more or fewer than rows.
        MissingExtraError: If no page can be written for want of a package.
    """
    require_extra()
    images, names = _pictures(where, rows, console)
    n = len(rows.embeddings)
    return Gallery(None if images is None else Thumbnails(images, rows=n), names)


def write_gallery(
    path: str,
    gallery: Gallery,
    rows: Rows,
    scored: Scored,
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Write the report of scored rows; returns what a program should know of its pictures."""
    scores = np.asarray(scored.scores, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(scores) & rows.finite)
    cards = min(arguments.top, _CARDS)
    shown = known[np.argsort(-scores[known], kind="stable")][:cards]
    left_out = []
    twins: list[tuple[int, int, float]] = []
    if len(known) <= _TWINS_UP_TO:
        twins = _duplicates(rows, known, arguments)
    else:
        left_out.append(
            ("near duplicates", f"not looked for among more than {_TWINS_UP_TO:,} rows")
        )
    if arguments.top > _CARDS:
        left_out.append((f"ranks {_CARDS + 1} to {arguments.top}", "the page shows 100 at most"))
    write_report(
        path,
        scores=scores,
        threshold=scored.threshold,
        title=f"Rare samples of {rows.file.name}",
        images=gallery.pictures,
        names=gallery.names,
        labels=rows.labels,
        label_names=rows.label_names,
        neighbours=_beside(rows, shown, known, arguments),
        duplicates=twins,
        left_out=left_out,
        notes=scored.notes,
        top=cards,
        command=shlex.join(["raremix", *arguments.words]),
        facts={
            "embeddings": f"{rows.source}, {counted(len(scores), 'row')}, "
            f"{rows.embeddings.shape[1]} wide",
            "score": scored.scorer,
            "compared with": scored.reference,
            "threshold": f"{scored.threshold:.6g}",
            "distances to neighbours": _metric(arguments),
            "versions": f"raremix {__version__}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}",
        },
    )
    return _told(gallery, console)


def _told(gallery: Gallery, console: Console) -> dict[str, Any]:
    """Say how many pictures are missing from the page."""
    asked = set() if gallery.pictures is None else gallery.pictures.asked
    failed = {} if gallery.pictures is None else gallery.pictures.failed
    if failed:
        row = min(failed)
        name = row if gallery.names is None else gallery.names[row]
        console.note(
            f"{len(failed):,} of {counted(len(asked), 'picture')} could not be read, "
            f"the first: {name}: {failed[row]}"
        )
    return {"shown": len(asked) - len(failed), "unreadable": len(failed)}


def _pictures(where: str | None, rows: Rows, console: Console) -> tuple[Any, list[Any] | None]:
    """The images of the rows, and what to call them."""
    names: list[Any] | None = rows.paths
    if names is None and rows.ids is not None:
        names = rows.ids.tolist()
    if where is None:
        return _listed_files(rows, console), names
    n = len(rows.embeddings)
    if Path(where).is_dir():
        if rows.images is not None:
            found = rows.images.below(where)
            if not any(file.is_file() for file in found):
                raise FileFormatError(
                    f"--images {where} has none of the {counted(n, 'file')} that "
                    f"{rows.images_file} lists, such as {rows.images.files[0]}; name the folder "
                    "that these paths start from."
                )
            return found, names
        from raremix.data.images import ImageFiles

        folder = ImageFiles(where)
        _check_count(len(folder.paths), n, where)
        inside = [path.relative_to(folder.root).as_posix() for path in folder.paths]
        return folder.paths, inside if names is None else names
    file, member = split_member(where)
    if not Path(file).exists():
        raise FileFormatError(f"--images: no such folder or file: {file}.")
    if member is None and Path(file).suffix.lower() in {".txt", ".lst"}:
        listed = read_image_list(file)
        _check_count(len(listed.files), n, where)
        found = listed.located()
        if not any(one.is_file() for one in found):
            raise FileFormatError(
                f"--images {where} lists {counted(n, 'file')} and none is there; "
                f"the first: {found[0]}."
            )
        return found, listed.files if names is None else names
    from raremix.data.images import ImageArrays

    pixels = ImageArrays.from_npz(file, images=member).images
    _check_count(len(pixels), n, where)
    return pixels, names


def _listed_files(rows: Rows, console: Console) -> list[Path] | None:
    """The files that `raremix embed` wrote beside the embeddings, where they still are."""
    if rows.images is None:
        return None
    root = rows.images.root
    if root is not None and not root.is_dir():
        console.note(f"no pictures: the folder {root} is gone; pass --images DIR if it was moved")
        return None
    found = rows.images.located()
    # Lines without a root may be names of anything.
    return found if root is not None or all(file.is_file() for file in found[:3]) else None


def _beside(
    rows: Rows, shown: Any, known: Any, arguments: argparse.Namespace
) -> dict[int, list[tuple[int, float]]]:
    """The nearest other rows of the rows that are shown."""
    # Siblings share an id and are left out, so there may be fewer others than rows.
    most = int(np.bincount(rows.siblings[known]).max())
    count = min(_BESIDE, len(known) - most)
    if count < 1 or len(shown) == 0:
        return {}
    found = nearest(
        rows.embeddings[shown],
        rows.embeddings[known],
        count,
        query_ids=torch.from_numpy(rows.siblings[shown]),
        bank_ids=torch.from_numpy(rows.siblings[known]),
        metric=_metric(arguments),
    )
    others, distances = known[found.indices.numpy()].tolist(), found.distances.tolist()
    return {
        row: list(zip(near, far, strict=True))
        for row, near, far in zip(shown.tolist(), others, distances, strict=True)
    }


def _metric(arguments: argparse.Namespace) -> Metric:
    """Which distances the page shows; fused scores and those of a file have no metric."""
    metric: Metric = arguments.metric or "euclidean"
    return metric


def _duplicates(
    rows: Rows, known: Any, arguments: argparse.Namespace
) -> list[tuple[int, int, float]]:
    """The closest pairs of rows whose cosine is at least 0.99, nearest first."""
    most = int(np.bincount(rows.siblings[known]).max())
    if len(known) - most < 1:
        return []
    ids = torch.from_numpy(rows.siblings[known])
    index = NeighborIndex(rows.embeddings[known], ids, metric="cosine", engine=arguments.engine)
    found = index.leave_one_out(1)
    distances = found.distances[:, 0].numpy()
    others = known[found.indices[:, 0].numpy()]
    pairs: dict[tuple[int, int], float] = {}
    for place in np.argsort(distances, kind="stable").tolist():
        if distances[place] > math.sqrt(2 - 2 * _TWIN_COSINE) or len(pairs) == _PAIRS:
            break
        one, other = sorted((int(known[place]), int(others[place])))
        pairs.setdefault((one, other), float(distances[place]))
    return [(one, other, distance) for (one, other), distance in pairs.items()]


def _check_count(images: int, rows: int, where: str) -> None:
    if images != rows:
        raise LabelError(
            f"--images {where} has {counted(images, 'image')} for {counted(rows, 'row')} of "
            "embeddings; there must be "
            "one per row, in the same order. If some were skipped, pass --paths."
        )
