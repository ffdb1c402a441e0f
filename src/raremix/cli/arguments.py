"""Arguments that several commands share, and the types that check them."""

import argparse
import contextlib
from typing import Any

__all__ = [
    "add_command",
    "add_output_options",
    "add_scoring_options",
    "count",
    "count_or_share",
    "numbers",
    "share",
    "shares",
    "whole",
]


# Those of raremix.neighbors, whose import would bring torch before a word of help is printed.
ENGINES = ("auto", "int16", "half", "torch", "faiss")


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    *,
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command with its example; the caller adds the arguments."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--quiet``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and no text")
    parser.add_argument("--quiet", action="store_true", help="print no text and no notes")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """What to score, against what, and how."""
    parser.add_argument(
        "embeddings",
        metavar="EMBEDDINGS",
        help=".npy, .npz or .pt with a matrix of one row per image; FILE:MEMBER names an array",
    )
    parser.add_argument("--member", help="the array of a .npz, or tensor of a .pt, to score")
    parser.add_argument(
        "--scorer",
        choices=("fused", "knn", "two-scale", "clusters", "mahalanobis", "mean"),
        help="distances at many scales in three geometries, which has nothing to set; distance to "
        "the k-th nearest row, alone or beside that to the 3rd; smallness of the row's cluster; "
        "distance to the mean of all, with or without the covariance (default: fused, or knn "
        "where --k or --metric is given)",
    )
    parser.add_argument(
        "--clusters",
        type=count,
        help="clusters of --scorer clusters, about as many as classes (default: 20)",
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help="score 0 where a row lies far more alone than its neighbours: reject noise",
    )
    parser.add_argument(
        "--k",
        type=count_or_share,
        help="which neighbour's distance is the score of knn and two-scale: a count, or a share of "
        "the rows (default: 10, or 20 for two-scale)",
    )
    parser.add_argument(
        "--metric",
        choices=("euclidean", "cosine"),
        help="cosine scales rows to unit length first; not for fused, which looks at both "
        "(default: euclidean, or cosine for mahalanobis)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what searches; all find the same neighbours (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=share,
        default=0.05,
        help="share of the rows to call rare; with --reference, the share of its rows that would be "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="score against these embeddings instead of the other rows of EMBEDDINGS",
    )
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="one id per row; rows with one id are never neighbours; not with --reference",
    )
    parser.add_argument("--paths", metavar="FILE", help="text file with one image path per row")
    parser.add_argument(
        "--labels", metavar="FILE[:MEMBER]", help="one label per row, shown and never scored"
    )


def share(text: str) -> float:
    """A number in (0, 1)."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return int(text)


def count_or_share(text: str) -> Any:
    """A whole number of at least 1, or a number in (0, 1)."""
    for kind in (count, share):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return kind(text)
    raise argparse.ArgumentTypeError(
        f"expected a whole number of at least 1, or a share between 0 and 1, got {text}"
    )


def numbers(text: str) -> list[float]:
    """Numbers separated by commas."""
    return [_number(part) for part in text.split(",")]


def shares(text: str) -> list[float]:
    """Numbers in (0, 1), separated by commas."""
    return [share(part) for part in text.split(",")]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value
