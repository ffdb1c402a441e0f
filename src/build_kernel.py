"""Compiles the kernels of the package while it is built, where that can be done.

Without a C compiler, or away from x86-64, the package is pure Python and does all with torch.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ROOT = Path("src", "raremix")
_KERNELS = {
    _ROOT / "neighbors" / "int16.kernel": ("int16.c",),
    _ROOT / "views" / "views.kernel": ("draw.c", "make.c", "resize.c", "finish.c"),
}


class KernelBuildHook(BuildHookInterface):
    """Adds every ``.kernel`` to the wheel, or to the checkout of an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as bound to this platform."""
        if self.target_name != "wheel":
            return
        for relative, names in _KERNELS.items():
            target = Path(self.root) / relative
            target.unlink(missing_ok=True)  # one of another machine must not slip into the wheel
            reason = _compile([target.with_name(name) for name in names], target)
            if reason:
                self.app.display_warning(
                    f"raremix is built without its compiled kernel {target.name}: {reason}"
                )
                continue
            build_data["artifacts"].append(f"/{relative.as_posix()}")
        if not build_data["artifacts"]:
            return
        build_data["pure_python"] = False
        build_data["tag"] = (
            f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        )


def _compile(sources: list[Path], target: Path) -> str:
    """Compile the sources to one library, or say why not."""
    if platform.machine().lower() not in ("x86_64", "amd64") or os.name != "posix":
        return f"it is written for x86-64 on Linux and macOS, not for {platform.machine()}"
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "no C compiler was found (cc, gcc or clang; or name one in CC)"
    # The two that change no value, but let the compiler turn a choice into vector instructions.
    free = ["-fno-trapping-math", "-fno-math-errno"]
    flags = ["-O3", *free, "-shared", "-fPIC", "-o", str(target), *map(str, sources), "-lm"]
    try:
        done = subprocess.run([*compiler.split(), *flags], capture_output=True, text=True)
    except OSError as cause:
        return f"{compiler} cannot be run: {cause}"
    if done.returncode:
        target.unlink(missing_ok=True)
        return f"{compiler} failed: {done.stderr.strip()}"
    return ""
