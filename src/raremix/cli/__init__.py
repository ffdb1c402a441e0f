"""The command line: reads arguments, calls one function, prints.

Commands are modules of this room and import what they need when they run, so that help and
mistakes are answered at once.
"""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from raremix import __version__
from raremix.cli import embed, evaluate, report, score
from raremix.cli.console import Console
from raremix.errors import RaremixError, RaremixWarning

__all__ = ["main"]

_EXAMPLE = """\
example:
  raremix embed photos/ --weights dino_resnet50.pth --out embeddings.npy
  raremix score embeddings.npy
  raremix report embeddings.npy --images photos/ --out report.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``raremix``; those of the process if not given.

    Returns:
        0 if the work was done, 1 if it failed, 2 if the command was not understood, 130 if it was
        interrupted.
    """
    console = Console()
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        arguments = _parser().parse_args(words, argparse.Namespace(words=words))
        console = Console(json=arguments.json, quiet=arguments.quiet)
        with warnings.catch_warnings():
            warnings.simplefilter("always", RaremixWarning)
            warnings.showwarning = _show_warning
            arguments.run(arguments, console)
        console.flush()
        return 0
    except SystemExit as stop:  # argparse has said what there is to say.
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more at exit.
        _silence(sys.stdout)
        return 1
    except RaremixError as error:
        return _failed(f"error: {error}", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _failed(f"error: {error.strerror or error}{where}", 1)
    except MemoryError:
        return _failed("error: not enough memory; score a part of the rows", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raremix",
        description="Find the rare samples of an image collection.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"raremix {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (embed, score, report, evaluate):
        module.add_command(commands)
    return parser


def _failed(message: str, code: int) -> int:
    print(f"raremix: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"raremix: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _silence(stream: TextIO) -> None:
    # A stream that is no real file has nothing to flush at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
