"""Gathers what a report shows beside the scores: pictures, neighbours and near duplicates."""

import argparse
import math
import platform
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raremix import __version__
from raremix.cli.console import Console
from raremix.cli.scoring import Rows, Scored
from raremix.data.kinds import split_member
from raremix.data.vectors import read_lines
from raremix.errors import LabelError
from raremix.neighbors import nearest
from raremix.reports import write_report

__all__ = ["write_gallery"]

_BESIDE = 4
_PAIRS = 6
_TWIN_COSINE = 0.99
# The search for duplicates compares all rows with all: seconds below, many minutes above.
_TWINS_UP_TO = 50_000
_CARDS = 100


def write_gallery(
    path: str, rows: Rows, scored: Scored, arguments: argparse.Namespace, console: Console
) -> None:
    """Write the report of scored rows."""
    images, names = _pictures(arguments.images, rows)
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
        images=images,
        names=names,
        labels=rows.labels,
        label_names=rows.label_names,
        neighbours=_beside(rows, shown, known, arguments),
        duplicates=twins,
        left_out=left_out,
        top=cards,
        command=shlex.join(["raremix", *arguments.words]),
        facts={
            "embeddings": f"{rows.file}, {len(scores):,} rows, {rows.embeddings.shape[1]} wide",
            "score": scored.scorer,
            "compared with": scored.reference,
            "threshold": f"{scored.threshold:.6g}",
            "versions": f"raremix {__version__}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}",
        },
    )


def _pictures(where: str | None, rows: Rows) -> tuple[Any, list[Any] | None]:
    """The images of the rows, and what to call them."""
    names: list[Any] | None = rows.paths
    if names is None and rows.ids is not None:
        names = rows.ids.tolist()
    if where is None:
        # `raremix embed` writes the paths beside the embeddings; ids or other names are no files.
        on_disk = rows.paths is not None and all(Path(path).is_file() for path in rows.paths[:3])
        return (rows.paths if on_disk else None), names
    n = len(rows.embeddings)
    if Path(where).is_dir():
        if rows.paths is not None:
            return [Path(where, path) for path in rows.paths], names
        from raremix.data.images import ImageFiles

        folder = ImageFiles(where)
        _check_count(len(folder.paths), n, where)
        inside = [path.relative_to(folder.root).as_posix() for path in folder.paths]
        return folder.paths, inside if names is None else names
    file, member = split_member(where)
    if member is None and Path(file).suffix.lower() in {".txt", ".lst"}:
        lines = read_lines(file)
        _check_count(len(lines), n, where)
        home = Path(file).parent
        found = [Path(line) if Path(line).exists() else home / line for line in lines]
        return found, lines if names is None else names
    from raremix.data.images import ImageArrays

    pixels = ImageArrays.from_npz(file, images=member).images
    _check_count(len(pixels), n, where)
    return pixels, names


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
        metric=arguments.metric,
    )
    others, distances = known[found.indices.numpy()].tolist(), found.distances.tolist()
    return {
        row: list(zip(near, far, strict=True))
        for row, near, far in zip(shown.tolist(), others, distances, strict=True)
    }


def _duplicates(
    rows: Rows, known: Any, arguments: argparse.Namespace
) -> list[tuple[int, int, float]]:
    """The closest pairs of rows whose cosine is at least 0.99, nearest first."""
    most = int(np.bincount(rows.siblings[known]).max())
    if len(known) - most < 1:
        return []
    ids = torch.from_numpy(rows.siblings[known])
    found = nearest(
        rows.embeddings[known],
        rows.embeddings[known],
        1,
        query_ids=ids,
        bank_ids=ids,
        metric="cosine",
        engine=arguments.engine,
    )
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
            f"--images {where} has {images} images for {rows} rows of embeddings; there must be "
            "one per row, in the same order. If some were skipped, pass --paths."
        )
