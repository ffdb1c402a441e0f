"""Remembering rare samples."""

from raremix.memory.buffer import BufferEntries, RareMemoryBuffer

__all__ = ["BufferEntries", "RareMemoryBuffer"]
