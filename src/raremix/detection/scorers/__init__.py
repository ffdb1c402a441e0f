"""Scores that say how rare an embedding is beside what has been seen; larger is rarer.

A scorer knows embeddings and ids. It judges nothing: where rarity begins is the threshold's to say.
"""

from raremix.detection.scorers.cluster_mass import ClusterMass
from raremix.detection.scorers.fused import FusedDistance
from raremix.detection.scorers.knn import KNNDistance
from raremix.detection.scorers.mahalanobis import Mahalanobis
from raremix.detection.scorers.mean import MeanDistance
from raremix.detection.scorers.noise_gate import BankScorer, NoiseGate
from raremix.detection.scorers.two_scale import TwoScaleDistance

__all__ = [
    "BankScorer",
    "ClusterMass",
    "FusedDistance",
    "KNNDistance",
    "Mahalanobis",
    "MeanDistance",
    "NoiseGate",
    "TwoScaleDistance",
]
