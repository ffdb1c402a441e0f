"""Who stays in a buffer, and who is drawn."""

from raremix.memory.policies.base import Policy
from raremix.memory.policies.clusters import ClusterBalanced
from raremix.memory.policies.redundancy import LeastRedundant
from raremix.memory.policies.simple import FIFO, RarestK, Reservoir, TwoTier

__all__ = [
    "FIFO",
    "ClusterBalanced",
    "LeastRedundant",
    "Policy",
    "RarestK",
    "Reservoir",
    "TwoTier",
]
