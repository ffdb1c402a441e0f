"""Exact nearest neighbours of embeddings, by torch or by FAISS."""

from raremix.neighbors.engines import CandidateEngine, EngineName, FaissEngine, TorchEngine
from raremix.neighbors.search import Metric, Neighbors, nearest

__all__ = [
    "CandidateEngine",
    "EngineName",
    "FaissEngine",
    "Metric",
    "Neighbors",
    "TorchEngine",
    "nearest",
]
