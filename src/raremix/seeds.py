"""Seeds for draws that depend on what is drawn, not on how many draws came before.

Every random decision of the package comes from a generator seeded this way, so that it is the same
for any number of workers and after a resume.
"""

import torch

__all__ = ["derive_seed", "seeded_generator"]

_MASK = 2**64 - 1


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
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seeded_generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed``."""
    return torch.Generator().manual_seed(derive_seed(*parts))
