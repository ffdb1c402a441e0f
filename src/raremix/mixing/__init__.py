"""Mixing rare samples back into the batches of an ordinary loader."""

from raremix.mixing.batch import Batch, DrawnId
from raremix.mixing.loader import MixedLoader
from raremix.mixing.sampler import BufferedMixSampler

__all__ = ["Batch", "BufferedMixSampler", "DrawnId", "MixedLoader"]
