"""Finds the rare samples of an image collection and mixes them back into training.

Names are loaded on first use, so that importing the package costs next to nothing: torchvision and
FAISS are imported only by the parts that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raremix.detection.detector import Detection as Detection
    from raremix.detection.detector import OODDetector as OODDetector
    from raremix.detection.scorers import KNNDistance as KNNDistance
    from raremix.detection.scorers import MeanDistance as MeanDistance
    from raremix.detection.thresholds import FixedThreshold as FixedThreshold
    from raremix.detection.thresholds import FlagRate as FlagRate
    from raremix.detection.thresholds import QuantileThreshold as QuantileThreshold
    from raremix.memory.buffer import BufferEntries as BufferEntries
    from raremix.memory.buffer import RareMemoryBuffer as RareMemoryBuffer
    from raremix.mixing.loader import MixedLoader as MixedLoader
    from raremix.mixing.sampler import Batch as Batch
    from raremix.mixing.sampler import BufferedMixSampler as BufferedMixSampler
    from raremix.views.multicrop import MultiCropTransform as MultiCropTransform

__version__ = "0.1.0"

_HOMES = {
    "Batch": "raremix.mixing.sampler",
    "BufferEntries": "raremix.memory.buffer",
    "BufferedMixSampler": "raremix.mixing.sampler",
    "Detection": "raremix.detection.detector",
    "FixedThreshold": "raremix.detection.thresholds",
    "FlagRate": "raremix.detection.thresholds",
    "KNNDistance": "raremix.detection.scorers",
    "MeanDistance": "raremix.detection.scorers",
    "MixedLoader": "raremix.mixing.loader",
    "MultiCropTransform": "raremix.views.multicrop",
    "OODDetector": "raremix.detection.detector",
    "QuantileThreshold": "raremix.detection.thresholds",
    "RareMemoryBuffer": "raremix.memory.buffer",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raremix' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
