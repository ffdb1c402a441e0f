"""Finding rare embeddings: one scorer and one threshold rule, acting together."""

from raremix.detection.bank import ReferenceBank
from raremix.detection.detector import Detection, OODDetector
from raremix.detection.scorers import KNNDistance, MeanDistance
from raremix.detection.thresholds import FixedThreshold, FlagRate, QuantileThreshold

__all__ = [
    "Detection",
    "FixedThreshold",
    "FlagRate",
    "KNNDistance",
    "MeanDistance",
    "OODDetector",
    "QuantileThreshold",
    "ReferenceBank",
]
