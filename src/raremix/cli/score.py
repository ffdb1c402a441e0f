"""``raremix score``: a file of embeddings to a file of scores and a list of the rarest rows."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from raremix.cli import arguments as options
from raremix.cli.console import Console, counted, number, percent

if TYPE_CHECKING:
    from raremix.cli.scored import Scored
    from raremix.cli.scoring import Rows

__all__ = ["add_command"]

_DESCRIPTION = """\
Score every embedding by how far it lies from the others; larger is rarer.

Writes NAME.scores.npy, one float32 per row, NaN for rows that hold NaN or infinity, and
NAME.rarest.csv, the highest scores first. NAME is that of the embeddings.
"""
_EXAMPLE = """\
  raremix score embeddings.npy --rate 0.02 --out scores/
  raremix score crops.npz:embedding --labels crops.npz:label --json
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command to argparse."""
    parser = options.add_command(
        commands,
        "score",
        summary="score embeddings by rarity",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    options.add_scoring_options(parser)
    parser.add_argument("--out", metavar="DIR", default=".", help="folder for the two files")
    parser.add_argument(
        "--top", type=options.count, default=100, help="rows in the list (default: %(default)s)"
    )
    parser.add_argument("--html", metavar="FILE", help="also write the report of `raremix report`")
    parser.add_argument(
        "--images",
        metavar="WHERE",
        help="pictures for --html: a folder, .npz or list of paths "
        "(default: the files in NAME.paths.txt, if they are there)",
    )
    options.add_output_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Read, score, write, and say what was done."""
    from pathlib import Path

    from raremix.cli.gallery import open_gallery, write_gallery
    from raremix.cli.scoring import read_rows, score_rows
    from raremix.data.writing import target_path, write_npy
    from raremix.errors import OptionError
    from raremix.reports.files import write_text

    if arguments.images is not None and arguments.html is None:
        arguments.parser.error("--images is for the pictures of the report; add --html FILE")
    started = time.perf_counter()
    rows = read_rows(arguments, console)
    # Whatever can be wrong is found before the work, not after it.
    folder = Path(arguments.out)
    gallery = None
    if arguments.html is not None:
        gallery = open_gallery(arguments.images, rows, console)
        # The folder that is about to be made may hold the page, too.
        if Path(arguments.html).absolute().parent != folder.absolute():
            target_path(arguments.html, caller="raremix score")
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--out is a folder; {folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    scores_file = folder / f"{rows.stem}.scores.npy"
    rarest_file = folder / f"{rows.stem}.rarest.csv"
    for file in (scores_file, rarest_file, *([arguments.html] if gallery else [])):
        target_path(file, caller="raremix score")
    scored = score_rows(rows, arguments, console)
    write_npy(scores_file, scored.scores)
    listed = _listed(rows, scored, arguments.top)
    write_text(rarest_file, _as_csv(listed))
    files = [str(scores_file), str(rarest_file)]
    pictures = None
    if gallery is not None:
        pictures = write_gallery(arguments.html, gallery, rows, scored, arguments, console)
        files.append(str(arguments.html))
    for note in scored.notes:
        console.note(note)
    _tell(rows, scored, listed, files, pictures, time.perf_counter() - started, console)


def _listed(rows: "Rows", scored: "Scored", top: int) -> list[dict[str, Any]]:
    import numpy as np

    known = np.flatnonzero(~np.isnan(scored.scores))
    order = known[np.argsort(-scored.scores[known], kind="stable")][:top]
    ascending = np.sort(scored.scores[known])
    listed = []
    for rank, row in enumerate(order.tolist(), start=1):
        below = int(np.searchsorted(ascending, scored.scores[row], side="left"))
        entry = {
            "rank": rank,
            "id": rows.id_of(row),
            "score": float(scored.scores[row]),
            "percentile": 100 * below / len(known),
            "is_rare": bool(scored.is_rare[row]),
        }
        if rows.paths is not None:
            entry["path"] = rows.paths[row]
        if rows.labels is not None:
            entry["label"] = rows.label_of(row)
        listed.append(entry)
    return listed


def _as_csv(listed: list[dict[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(listed[0])
    for entry in listed:
        written = {
            **entry,
            "score": f"{entry['score']:.9g}",
            "percentile": f"{entry['percentile']:.4f}",
            "is_rare": str(entry["is_rare"]).lower(),
        }
        writer.writerow(written.values())
    return text.getvalue()


def _tell(
    rows: "Rows",
    scored: "Scored",
    listed: list[dict[str, Any]],
    files: list[str],
    pictures: dict[str, Any] | None,
    seconds: float,
    console: Console,
) -> None:
    import numpy as np

    from raremix.reports.summary import score_quantiles

    known = scored.scores[~np.isnan(scored.scores)]
    left_out = np.flatnonzero(np.isnan(scored.scores)).tolist()
    percentiles = score_quantiles(known)
    flagged = int(scored.is_rare.sum())
    n, dim = rows.embeddings.shape

    console.say(f"{rows.source}: {counted(n, 'row')}, {dim} wide")
    console.say(f"scored by {scored.scorer}; against {scored.reference}")
    if left_out:
        some = ", ".join(str(rows.id_of(row)) for row in left_out[:10])
        console.say(
            f"left out  {counted(len(left_out), 'row')} with NaN or infinity: "
            f"{some}{' ...' if len(left_out) > 10 else ''}"
        )
    console.say("scores    " + "  ".join(f"{name} {number(v)}" for name, v in percentiles.items()))
    share = percent(flagged / len(known))
    console.say(f"rare      {flagged:,} of {len(known):,} ({share}) above {scored.threshold:.6g}")
    console.say()
    console.table(
        list(listed[0]),
        [[_cell(value) for value in entry.values()] for entry in listed[:10]],
        left=0,
    )
    console.say()
    for file in files:
        console.say(f"wrote {file}")
    console.say(f"{seconds:.1f} s")
    console.result(
        {
            "command": "score",
            "file": str(rows.file),
            "member": rows.member,
            "rows": n,
            "dim": dim,
            "scorer": scored.scorer,
            "reference": scored.reference,
            "left_out": [rows.id_of(row) for row in left_out],
            "percentiles": percentiles,
            "threshold": scored.threshold,
            "flagged": flagged,
            "notes": scored.notes,
            "image_root": None if rows.images is None else rows.images.root,
            "pictures": pictures,
            "rarest": listed,
            "files": files,
            "seconds": round(seconds, 3),
        }
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
