"""Scores that say how rare an embedding is beside what has been seen; larger is rarer.

A scorer knows embeddings and ids. It judges nothing: where rarity begins is the threshold's to say.
"""

from raremix.detection.scorers.knn import KNNDistance
from raremix.detection.scorers.mean import MeanDistance

__all__ = ["KNNDistance", "MeanDistance"]
