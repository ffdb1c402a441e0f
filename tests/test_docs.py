"""What the pages show runs, and what they list is all there is.

Blocks of a page run in order, in one namespace and one folder. ``python`` and ``sh`` blocks run;
``no-run`` behind the language leaves one out, and its page says why. A ``text`` block right below
a block that ran is what it prints, numbers to three digits.
"""

import argparse
import importlib.util
import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raremix
import raremix.cli
import raremix.errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$(\n*)", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, whether it is marked ``no-run``, its text and first line."""

    language: str
    is_left_out: bool
    text: str
    line: int
    follows: bool  # nothing but empty lines lies between it and the block above


def blocks(page: Path) -> list[Block]:
    text, found, end = page.read_text(encoding="utf-8"), [], -1
    for match in _FENCE.finditer(text):
        found.append(
            Block(
                language=match[1],
                is_left_out="no-run" in match[2],
                text=match[3],
                line=text.count("\n", 0, match.start()) + 2,
                follows=match.start() == end,
            )
        )
        end = match.end()
    return found


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
RUNNING = [
    page
    for page in PAGES
    if any(block.language in ("python", "sh") and not block.is_left_out for block in blocks(page))
]


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def commands(block: Block) -> list[list[str]]:
    joined = block.text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_the_blocks_of_a_page_run_and_print_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    printed: str | None = None
    for block in blocks(page):
        if block.language == "text" and block.follows and printed is not None:
            assert_printed(block, printed, page)
        printed = None
        if block.is_left_out:
            continue
        if block.language == "python":
            # Line numbers as in the page, so that a traceback points into it.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(page), "exec"), namespace)
            printed = capsys.readouterr().out
        elif block.language == "sh":
            for words in commands(block):
                assert words[0] == "raremix", f"{page}:{block.line} runs {words[0]}"
                assert raremix.cli.main(words[1:]) == 0, capsys.readouterr().err
            printed = capsys.readouterr().out


def assert_printed(block: Block, printed: str, page: Path) -> None:
    """The lines shown are the first lines printed, but for the last digits of their numbers."""
    shown, lines = block.text.splitlines(), printed.splitlines()
    where = f"{page}:{block.line}, which printed\n{printed}"
    assert len(shown) <= len(lines), where
    for expected, line in zip(shown, lines, strict=False):
        assert _NUMBER.sub("#", expected) == _NUMBER.sub("#", line), where
        for ours, theirs in zip(_NUMBER.findall(expected), _NUMBER.findall(line), strict=True):
            assert math.isclose(float(ours), float(theirs), rel_tol=1e-3), where


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_that_a_page_does_not_run_are_understood(page: Path) -> None:
    for block in blocks(page):
        for words in commands(block) if block.language == "sh" else ():
            while words and "train_dino.py" not in words[0] and words[0] != "raremix":
                words = words[1:]
            if words and words[0] == "raremix":
                raremix.cli._parser().parse_args(words[1:])
            elif words:
                trainer().parse(words[1:])


def trainer() -> Any:
    spec = importlib.util.spec_from_file_location("train_dino", ROOT / "examples" / "train_dino.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_dino"] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def test_every_block_left_out_is_marked_as_one_that_would_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert not block.is_left_out or block.language in ("python", "sh"), name(page)


def test_every_public_name_has_its_place_in_the_reference() -> None:
    written = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"auto(?:class|function):: raremix\.(\w+)$", written, re.MULTILINE))
    elsewhere = {"__version__", "RaremixError", "RaremixWarning"}  # errors.md has all errors
    assert set(raremix.__all__) - elsewhere == documented


def test_every_error_is_in_the_table_of_errors() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    raised = {
        (error, getattr(raremix.errors, error).__mro__[2].__name__)
        for error in raremix.errors.__all__
        if error not in ("RaremixError", "RaremixWarning")
    }
    assert listed == raised


@pytest.mark.parametrize("command", ["embed", "score", "report", "evaluate"])
def test_the_reference_lists_exactly_the_options_of_a_command(command: str) -> None:
    sections = re.split(r"^## ", (DOCS / "reference" / "cli.md").read_text(), flags=re.MULTILINE)
    by_command = {section.partition("\n")[0]: section for section in sections}

    def options(section: str) -> set[str]:
        return set(re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE))

    listed = options(by_command[command])
    if command == "report":  # "All options of `score` up to `--labels`"
        listed |= options(by_command["score"].partition("| `--out")[0])
    (parsers,) = (
        action
        for action in raremix.cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    real = {
        option
        for action in parsers.choices[command]._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert listed == real - {"--help", "--json", "--quiet"}


def test_every_preset_of_the_trainer_is_in_its_table() -> None:
    page = (DOCS / "get-started" / "training.md").read_text()
    section = page.partition("## The reference trainer")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(trainer().PRESETS)
