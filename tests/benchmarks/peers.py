"""Finds the libraries that the benchmarks compare with."""

import importlib
import sys
import warnings
from typing import Any

__all__ = ["peer"]


def peer(module: str) -> Any:
    """A package to compare with; None, and a line that says so, where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what they import in their turn
            return importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {module} ({error})", file=sys.stderr)
        return None
