"""Finds the compiled kernels of the package, which are built when it is installed.

It knows where they lie and whether they run here, not what they do.
"""

import ctypes
import functools
from pathlib import Path

__all__ = ["compiled"]


@functools.cache
def compiled(path: Path) -> ctypes.CDLL | str:
    """The library at ``path``, or why there is none.

    Its suffix is ``.kernel`` and not that of a Python module, as it is none; it has a function
    ``supported`` that says whether this processor can run the rest.
    """
    if not path.exists():
        return "it was not built when raremix was installed, for want of a C compiler or of x86-64"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as cause:
        return f"{path.name} cannot be loaded: {cause}"
    if not library.supported():
        return "this processor has no AVX2"
    return library
