"""Mixing rare samples back into the batches of an ordinary loader."""

from raremix.mixing.loader import MixedLoader
from raremix.mixing.sampler import Batch, BufferedMixSampler, DrawnId

__all__ = ["Batch", "BufferedMixSampler", "DrawnId", "MixedLoader"]
