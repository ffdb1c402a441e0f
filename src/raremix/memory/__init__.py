"""Remembering rare samples."""

from raremix.memory.buffer import RareMemoryBuffer
from raremix.memory.entries import BufferEntries
from raremix.memory.limits import SamplesPerInsert
from raremix.memory.policies import (
    FIFO,
    ClusterBalanced,
    LeastRedundant,
    Policy,
    RarestK,
    Reservoir,
    TwoTier,
)

__all__ = [
    "FIFO",
    "BufferEntries",
    "ClusterBalanced",
    "LeastRedundant",
    "Policy",
    "RareMemoryBuffer",
    "RarestK",
    "Reservoir",
    "SamplesPerInsert",
    "TwoTier",
]
