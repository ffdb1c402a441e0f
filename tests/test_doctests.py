"""Runs what the docstrings and the README show."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import raremix

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(raremix.__path__, "raremix.")
    if not module.name.endswith("__main__")
)
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    given = {"torch": torch, "raremix": raremix}
    result = doctest.testmod(
        module, extraglobs=given, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0


def test_examples_are_found_at_all() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in (
        "raremix.detection.scorers.knn",
        "raremix.detection.thresholds.flag_rate",
        "raremix.seeds",
    ):
        assert any(test.examples for test in finder.find(importlib.import_module(name)))


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line number and source of every block marked as Python."""
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


def test_the_code_of_the_readme_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    if not blocks:
        pytest.skip("the README shows no Python")
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {"__name__": "readme"}
    for line, source in blocks:
        # Blank lines before the block make a traceback point into the README.
        exec(compile("\n" * line + source, str(README), "exec"), shared)


def test_only_blocks_marked_as_python_are_taken() -> None:
    text = "a\n```bash\nls\n```\n```python\nx = 1\n```\ntext\n```python\ny = 2\n```\n"
    assert python_blocks(text) == [(5, "x = 1\n"), (9, "y = 2\n")]
