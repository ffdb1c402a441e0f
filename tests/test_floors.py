"""Holds the package to its floors: reads every module's imports and compares."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raremix

ROOT = Path(raremix.__file__).parent
FLOORS = {
    "cli": 6,
    "__main__": 7,  # starts the command line
    "reports": 5,
    "evaluation": 4,
    "mixing": 3,
    "regions": 3,
    "detection": 2,
    "memory": 2,
    "views": 2,
    "embedding": 2,
    "neighbors": 1,
    "data": 1,
    "compiled": 0,
    "errors": 0,
    "protocols": 0,
    "inputs": 0,
    "options": 0,
    "progress": 0,
    "distributed": 0,
    "seeds": 0,
    "state": 0,
}
# Rooms that meet only as tensors in the caller's loop.
STRANGERS = {"detection", "memory", "views", "embedding"}
# What may be imported only by some rooms.
KEPT_IN = {
    "faiss": {"neighbors"},
    "torchvision": {"views", "data", "embedding"},
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            home = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                # `from raremix import x` names a room, or a name of the public face.
                yield node.lineno, f"{home}.{alias.name}" if home == "raremix" else home


def complaints(room: str, source: str, package: str) -> list[str]:
    found = []
    for line, name in imports_of(source, package):
        top, _, rest = name.partition(".")
        if top in KEPT_IN and room not in KEPT_IN[top]:
            found.append(f"line {line}: {room} imports {top}")
        if top != "raremix":
            continue
        other = rest.partition(".")[0]
        if other == room or name == "raremix.__version__":
            continue
        if other not in FLOORS:
            found.append(f"line {line}: {room} imports {name}, which is on no floor")
        elif other == "cli" and room != "__main__":
            found.append(f"line {line}: {room} imports the command line")
        elif {room, other} <= STRANGERS:
            found.append(f"line {line}: {room} and {other} are to know nothing of each other")
        elif FLOORS[other] > FLOORS[room]:
            found.append(f"line {line}: {room} imports {other} from a floor above")
        elif FLOORS[other] == FLOORS[room] and FLOORS[room] > 0:
            found.append(f"line {line}: {room} imports {other} from its own floor")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"{room} has no floor yet: give it one in design and here"
    package = ".".join(["raremix", *path.relative_to(ROOT).parent.parts])
    assert complaints(room, path.read_text(encoding="utf-8"), package) == []


def test_modules_are_read_at_all() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert {"detection", "neighbors", "memory", "mixing", "errors", "state"} <= rooms


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("detection", "import faiss", "detection imports faiss"),
        ("mixing", "def f():\n    from torchvision.io import read", "mixing imports torchvision"),
        ("memory", "from raremix.detection import Detection", "know nothing of each other"),
        ("views", "import raremix.embedding.vit", "know nothing of each other"),
        ("detection", "from raremix import mixing", "from a floor above"),
        ("neighbors", "from raremix.data import read", "from its own floor"),
        ("reports", "from raremix.cli import main", "imports the command line"),
        ("mixing", "from ..evaluation.metrics import x", "from a floor above"),
        ("state", "from raremix.utils import x", "on no floor"),
        ("data", "from raremix import OODDetector", "on no floor"),
        ("evaluation", "from raremix.data import read", None),
        ("embedding", "import torchvision", None),
        ("detection", "from raremix import distributed", None),
        ("cli", "from raremix import __version__", None),
        ("state", "from raremix.protocols import State", None),
    ],
)
def test_a_wrong_import_is_complained_of(room: str, source: str, complaint: str | None) -> None:
    found = complaints(room, source, f"raremix.{room}")
    assert [complaint in line for line in found] == [True] if complaint else found == []
