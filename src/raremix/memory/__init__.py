"""Remembering rare samples."""

from raremix.memory.buffer import RareMemoryBuffer
from raremix.memory.entries import BufferEntries

__all__ = ["BufferEntries", "RareMemoryBuffer"]
