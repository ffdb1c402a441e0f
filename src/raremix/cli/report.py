"""``raremix report``: a page with the rarest images and their nearest neighbours."""

import argparse
import time

from raremix.cli import arguments as options
from raremix.cli.console import Console, counted

__all__ = ["add_command"]

_CARDS = 100

_DESCRIPTION = """\
Write one HTML file that shows the rarest samples beside their nearest neighbours.

The file carries its pictures inside, runs no script and needs no network. Without --scores, the
embeddings are scored first, as `raremix score` does.
"""
_EXAMPLE = """\
  raremix report embeddings.npy --images photos/ --out report.html
  raremix report cifar.npz --images cifar_images.npz --labels cifar.npz:label --out cifar.html
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command to argparse."""
    parser = options.add_command(
        commands,
        "report",
        summary="show the rarest samples on a page",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    options.add_scoring_options(parser)
    parser.add_argument("--out", metavar="FILE", required=True, help="the HTML file")
    parser.add_argument(
        "--images",
        metavar="WHERE",
        help="a folder, a .npz with uint8 images, or a text file with one path per row "
        "(default: the files in NAME.paths.txt, if they are there)",
    )
    parser.add_argument("--scores", metavar="FILE", help="the NAME.scores.npy of `raremix score`")
    parser.add_argument(
        "--top",
        type=options.count,
        default=48,
        help=f"samples to show, {_CARDS} at most (default: %(default)s)",
    )
    options.add_output_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Score if need be, gather, write."""
    import numpy as np

    from raremix.cli.gallery import open_gallery, write_gallery
    from raremix.cli.judging import read_scores
    from raremix.cli.scored import Scored
    from raremix.cli.scoring import read_rows, score_rows
    from raremix.data.writing import target_path
    from raremix.errors import LabelError
    from raremix.evaluation import threshold_at_rate

    started = time.perf_counter()
    if arguments.top > _CARDS:
        arguments.parser.error(f"--top: a page shows {_CARDS} samples at most, got {arguments.top}")
    if arguments.scores is not None:
        # Not --metric and --engine, by which the page looks for neighbours all the same.
        for option in ("reference", "scorer", "k", "clusters", "gate"):
            if getattr(arguments, option):
                arguments.parser.error(
                    f"--{option} says how to score; with --scores nothing is scored"
                )
    target_path(arguments.out, caller="raremix report")
    rows = read_rows(arguments, console)
    gallery = open_gallery(arguments.images, rows, console)
    if arguments.scores is None:
        scored = score_rows(rows, arguments, console)
    else:
        scores = read_scores(arguments.scores)
        if len(scores) != len(rows.embeddings):
            raise LabelError(
                f"--scores {arguments.scores} has {counted(len(scores), 'score')} for "
                f"{counted(len(rows.embeddings), 'row')} of {rows.file}; score these embeddings."
            )
        threshold = threshold_at_rate(scores[~np.isnan(scores)], arguments.rate)
        scored = Scored(
            scores,
            scores > threshold,
            threshold,
            f"read from {arguments.scores}",
            "not known",
            rate=arguments.rate,
        )
    pictures = write_gallery(arguments.out, gallery, rows, scored, arguments, console)
    for note in scored.notes:
        console.note(note)
    seconds = time.perf_counter() - started
    if rows.member is not None:
        console.say(f"of {rows.source}")
    console.say(
        f"wrote {arguments.out} ({int(scored.is_rare.sum()):,} of {len(scored.scores):,} "
        f"called rare), {seconds:.1f} s"
    )
    console.result(
        {
            "command": "report",
            "file": str(rows.file),
            "member": rows.member,
            "rows": len(scored.scores),
            "threshold": scored.threshold,
            "flagged": int(scored.is_rare.sum()),
            "notes": scored.notes,
            "pictures": pictures,
            "files": [str(arguments.out)],
            "seconds": round(seconds, 3),
        }
    )
