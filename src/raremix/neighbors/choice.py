"""Which engine a search uses when the caller names none.

On a CPU that depends on what its multipliers are good at, so it is measured once a process.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Literal, get_args

import torch

from raremix.errors import EngineUnavailableError
from raremix.neighbors.engines import EngineName
from raremix.neighbors.faiss_door import load_faiss
from raremix.neighbors.kernel import NARROW, WIDE, Panels, load_kernel, search
from raremix.options import check_choice

__all__ = ["chosen_engine"]

_log = logging.getLogger(__name__)

# FAISS's blocked product overtakes torch's product and top-k from about this many CPU queries on;
# below, it compares pair by pair. tests/benchmarks/bench_neighbors.py measures both.
_FAISS_FROM_QUERIES = 512
# What a bfloat16 product must be faster by to pay for the passes over its result, which the
# compiled kernel does not need.
_HALF_ADVANTAGE = 2.0


def chosen_engine(
    engine: EngineName, *, queries: int, device: torch.device | str = "cpu"
) -> Literal["int16", "half", "torch", "faiss"]:
    """Say which engine a search of this size would use here.

    Args:
        engine: ``"auto"`` or the name of one.
        queries: How many queries the search has.
        device: Where they are.

    Raises:
        OptionError: If ``engine`` is none of the names.
    """
    check_choice("nearest", "engine", engine, get_args(EngineName))
    if engine != "auto":
        return engine
    kind = torch.device(device).type
    if kind == "cuda":
        return "half"
    if kind != "cpu":
        return "torch"
    best = _best_product()
    if best == "torch" and queries >= _FAISS_FROM_QUERIES:
        try:
            load_faiss("nearest")
        except EngineUnavailableError as cause:
            _log.info("searching with torch instead of FAISS: %s", cause)
        else:
            return "faiss"
    return best


@functools.cache
def _best_product() -> Literal["int16", "half", "torch"]:
    """The fastest way to multiply here, by a trial of some milliseconds."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn((96, 256), generator=generator, device="cpu")
    right = torch.randn((1536, 256), generator=generator, device="cpu")
    short_left, short_right = left.bfloat16(), right.bfloat16().T
    half = _seconds(lambda: torch.mm(short_left, short_right))
    try:
        load_kernel("nearest")
    except EngineUnavailableError as cause:
        _log.info("searching without the compiled kernel: %s", cause)
        whole = _seconds(lambda: torch.mm(left, right.T))
        return "half" if half * _HALF_ADVANTAGE < whole else "torch"
    narrow, wide = Panels(left[0], len(left), NARROW), Panels(left[0], len(right), WIDE)
    narrow.append(left)
    wide.append(right)
    int16 = _seconds(lambda: search(narrow, wide, 16))
    return "half" if half * _HALF_ADVANTAGE < int16 else "int16"


def _seconds(work: Callable[[], object]) -> float:
    """The least of a few runs: what the machine can do when nothing disturbs it."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
