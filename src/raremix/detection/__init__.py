"""Finding rare embeddings: one scorer and one threshold rule, acting together."""

from raremix.detection.bank import ReferenceBank
from raremix.detection.detector import Detection, OODDetector
from raremix.detection.scorers import (
    ClusterMass,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    TwoScaleDistance,
)
from raremix.detection.thresholds import (
    ConformalThreshold,
    FixedThreshold,
    FlagRate,
    QuantileThreshold,
    benjamini_hochberg,
)

__all__ = [
    "ClusterMass",
    "ConformalThreshold",
    "Detection",
    "FixedThreshold",
    "FlagRate",
    "FusedDistance",
    "KNNDistance",
    "Mahalanobis",
    "MeanDistance",
    "NoiseGate",
    "OODDetector",
    "QuantileThreshold",
    "ReferenceBank",
    "TwoScaleDistance",
    "benjamini_hochberg",
]
