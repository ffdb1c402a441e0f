"""Exact nearest neighbours of embeddings, whatever engine proposes them."""

from raremix.neighbors.approximate import (
    Agreement,
    ApproximateIndex,
    ApproximateScores,
    IndexKind,
)
from raremix.neighbors.engines import CandidateEngine, EngineName, FaissEngine, TorchEngine
from raremix.neighbors.faiss_gpu import FaissGpuEngine
from raremix.neighbors.index import Metric, NeighborIndex, Neighbors
from raremix.neighbors.search import nearest

__all__ = [
    "Agreement",
    "ApproximateIndex",
    "ApproximateScores",
    "CandidateEngine",
    "EngineName",
    "FaissEngine",
    "FaissGpuEngine",
    "IndexKind",
    "Metric",
    "NeighborIndex",
    "Neighbors",
    "TorchEngine",
    "nearest",
]
