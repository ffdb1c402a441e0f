"""Seeds for draws that depend on what is drawn, not on how many draws came before.

Every random decision of the package comes from a generator seeded this way, so that it is the same
for any number of workers and after a resume.
"""

from typing import Any

import numpy as np
import torch

__all__ = ["derive_seed", "derive_seeds", "seeded_generator", "uniforms", "uniforms_of"]

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15

# As numpy scalars, since every Python number would have to be made one at each use.
_FACTORS = [np.uint64(f) for f in (_GAMMA, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]
_SHIFTS = [np.uint64(bits) for bits in (30, 27, 31, 11)]
_STEPS = np.arange(1, 513, dtype=np.uint64) * _FACTORS[0]


def derive_seed(*parts: int) -> int:
    """Mix integers into one seed in [0, 2**63); other integers or another order give another one.

    Source:
        The mixing step of SplitMix64: Steele, Lea and Flood, Fast Splittable Pseudorandom Number
        Generators, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195.

    Example:
        >>> derive_seed(1, 2) == derive_seed(1, 2), derive_seed(1, 2) == derive_seed(2, 1)
        (True, False)
    """
    state = 0
    for part in parts:
        state = _mixed(state + (int(part) & _MASK))
    return state >> 1


def derive_seeds(
    first: int,
    second: "int | np.ndarray[Any, np.dtype[np.int64]]",
    last: "np.ndarray[Any, np.dtype[np.int64]]",
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Call ``derive_seed(first, second, last)`` for every number of ``last``, and of ``second``.

    Returns:
        Int64 of the shape of ``last``, from 0.

    Example:
        >>> derive_seeds(1, 2, np.array([3, 4])).tolist() == [derive_seed(1, 2, n) for n in (3, 4)]
        True
    """
    states = np.full(last.shape, _mixed(int(first) & _MASK), np.uint64)
    for part in (second, last):
        states += np.asarray(part, np.int64).astype(np.uint64) + _FACTORS[0]
        _mix(states)
    seeds: np.ndarray[Any, np.dtype[np.int64]] = (states >> np.uint64(1)).astype(np.int64)
    return seeds


def _mixed(state: int) -> int:
    state = (state + _GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _mix(states: "np.ndarray[Any, np.dtype[np.uint64]]") -> None:
    """The steps of ``_mixed`` after the sum, in place."""
    states ^= states >> _SHIFTS[0]
    states *= _FACTORS[1]
    states ^= states >> _SHIFTS[1]
    states *= _FACTORS[2]
    states ^= states >> _SHIFTS[2]


def seeded_generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def uniforms(seed: int, count: int, *, start: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers ``start`` to ``start + count`` of the endless stream of this seed, each in [0, 1).

    Integer arithmetic only, so they are the same on every platform and in every release; and some
    microseconds cheaper than a generator that has to be seeded first.

    Returns:
        Float64 of shape (count,), multiples of 2**-53.

    Source:
        SplitMix64, as for ``derive_seed``.

    Example:
        >>> uniforms(1, 2).tolist() == [*uniforms(1, 1), *uniforms(1, 1, start=1)]
        True
    """
    return _drawn(_steps(start, count) + np.uint64(seed & _MASK))


def uniforms_of(
    seeds: "np.ndarray[Any, np.dtype[np.int64]]", count: int
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The first ``count`` numbers of the streams of some seeds, (n,) to (n, count); see ``uniforms``.

    Example:
        >>> uniforms_of(np.array([1, 2]), 3)[1].tolist() == uniforms(2, 3).tolist()
        True
    """
    return _drawn(seeds.astype(np.uint64)[:, None] + _steps(0, count))


def _steps(start: int, count: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    steps: np.ndarray[Any, np.dtype[np.uint64]]
    if start + count <= len(_STEPS):
        steps = _STEPS[start : start + count]
    else:
        steps = np.arange(start + 1, start + count + 1, dtype=np.uint64) * _FACTORS[0]
    return steps


def _drawn(
    states: "np.ndarray[Any, np.dtype[np.uint64]]",
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    _mix(states)
    states >>= _SHIFTS[3]
    return states.astype(np.float64) * 2.0**-53
