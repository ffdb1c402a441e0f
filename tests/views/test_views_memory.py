"""The compiled kernel touches no memory but its own: 4,000 views under the compiler's sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import raremix.views
from raremix.views import kernel

SOURCES = Path(raremix.views.__file__).parent
FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")


def _compiled(target: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not kernel.runs() or not (SOURCES / "make.c").exists():
        pytest.skip("there is no C compiler or no kernel here, or no source")
    files = [
        Path(__file__).with_name("fuzz.c"),
        *(SOURCES / f"{n}.c" for n in ("make", "resize", "finish")),
    ]
    command = [
        *compiler.split(),
        *FLAGS,
        f"-I{SOURCES}",
        *map(str, files),
        "-lm",
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "asan" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert not done.returncode, done.stderr
    return target


def test_no_view_reads_or_writes_beyond_what_it_was_given(tmp_path: Path) -> None:
    done = subprocess.run(
        [_compiled(tmp_path / "fuzz")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all views are sound\n"), done.stderr[-3000:]
