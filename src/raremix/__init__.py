"""Finds the rare samples of an image collection and mixes them back into training.

Names are loaded on first use, so that importing the package costs next to nothing: torchvision and
FAISS are imported only by the parts that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raremix.data.embeddings import read_embeddings as read_embeddings
    from raremix.data.images import ImageArrays as ImageArrays
    from raremix.data.images import ImageFiles as ImageFiles
    from raremix.detection.detector import Detection as Detection
    from raremix.detection.detector import OODDetector as OODDetector
    from raremix.detection.scorers.cluster_mass import ClusterMass as ClusterMass
    from raremix.detection.scorers.fused import FusedDistance as FusedDistance
    from raremix.detection.scorers.knn import KNNDistance as KNNDistance
    from raremix.detection.scorers.mahalanobis import Mahalanobis as Mahalanobis
    from raremix.detection.scorers.mean import MeanDistance as MeanDistance
    from raremix.detection.scorers.noise_gate import NoiseGate as NoiseGate
    from raremix.detection.scorers.two_scale import TwoScaleDistance as TwoScaleDistance
    from raremix.detection.thresholds import ConformalThreshold as ConformalThreshold
    from raremix.detection.thresholds import FixedThreshold as FixedThreshold
    from raremix.detection.thresholds import FlagRate as FlagRate
    from raremix.detection.thresholds import QuantileThreshold as QuantileThreshold
    from raremix.detection.thresholds import benjamini_hochberg as benjamini_hochberg
    from raremix.embedding.backbones import backbone as backbone
    from raremix.embedding.backbones import load_dino as load_dino
    from raremix.embedding.checkpoints import load_backbone as load_backbone
    from raremix.embedding.extraction import extract_embeddings as extract_embeddings
    from raremix.embedding.preprocessing import eval_transform as eval_transform
    from raremix.embedding.tap import EmbeddingTap as EmbeddingTap
    from raremix.errors import RaremixError as RaremixError
    from raremix.errors import RaremixWarning as RaremixWarning
    from raremix.evaluation import class_groups as class_groups
    from raremix.evaluation import evaluate as evaluate
    from raremix.evaluation import knn_probe as knn_probe
    from raremix.evaluation import linear_probe as linear_probe
    from raremix.evaluation import long_tail_subset as long_tail_subset
    from raremix.memory.buffer import RareMemoryBuffer as RareMemoryBuffer
    from raremix.memory.entries import BufferEntries as BufferEntries
    from raremix.memory.limits import SamplesPerInsert as SamplesPerInsert
    from raremix.memory.policies.base import Policy as Policy
    from raremix.memory.policies.clusters import ClusterBalanced as ClusterBalanced
    from raremix.memory.policies.redundancy import LeastRedundant as LeastRedundant
    from raremix.memory.policies.simple import FIFO as FIFO
    from raremix.memory.policies.simple import RarestK as RarestK
    from raremix.memory.policies.simple import Reservoir as Reservoir
    from raremix.memory.policies.simple import TwoTier as TwoTier
    from raremix.mixing.batch import Batch as Batch
    from raremix.mixing.crop_loader import CropLoader as CropLoader
    from raremix.mixing.crops import CropMixer as CropMixer
    from raremix.mixing.loader import MixedLoader as MixedLoader
    from raremix.mixing.sampler import BufferedMixSampler as BufferedMixSampler
    from raremix.neighbors import nearest as nearest
    from raremix.reports.report import write_report as write_report
    from raremix.views.multicrop import MultiCropTransform as MultiCropTransform
    from raremix.views.rarity import RarityViews as RarityViews
    from raremix.views.view import View as View

__version__ = "0.1.0"

_HOMES = {
    "Batch": "raremix.mixing.batch",
    "BufferEntries": "raremix.memory.entries",
    "BufferedMixSampler": "raremix.mixing.sampler",
    "ClusterMass": "raremix.detection.scorers.cluster_mass",
    "ConformalThreshold": "raremix.detection.thresholds",
    "CropLoader": "raremix.mixing.crop_loader",
    "CropMixer": "raremix.mixing.crops",
    "Detection": "raremix.detection.detector",
    "EmbeddingTap": "raremix.embedding.tap",
    "FixedThreshold": "raremix.detection.thresholds",
    "FlagRate": "raremix.detection.thresholds",
    "ImageArrays": "raremix.data.images",
    "ImageFiles": "raremix.data.images",
    "FusedDistance": "raremix.detection.scorers.fused",
    "KNNDistance": "raremix.detection.scorers.knn",
    "Mahalanobis": "raremix.detection.scorers.mahalanobis",
    "MeanDistance": "raremix.detection.scorers.mean",
    "MixedLoader": "raremix.mixing.loader",
    "MultiCropTransform": "raremix.views.multicrop",
    "NoiseGate": "raremix.detection.scorers.noise_gate",
    "OODDetector": "raremix.detection.detector",
    "QuantileThreshold": "raremix.detection.thresholds",
    "RareMemoryBuffer": "raremix.memory.buffer",
    "TwoTier": "raremix.memory.policies.simple",
    "SamplesPerInsert": "raremix.memory.limits",
    "Reservoir": "raremix.memory.policies.simple",
    "RarestK": "raremix.memory.policies.simple",
    "Policy": "raremix.memory.policies.base",
    "LeastRedundant": "raremix.memory.policies.redundancy",
    "ClusterBalanced": "raremix.memory.policies.clusters",
    "FIFO": "raremix.memory.policies.simple",
    "RarityViews": "raremix.views.rarity",
    "RaremixError": "raremix.errors",
    "RaremixWarning": "raremix.errors",
    "TwoScaleDistance": "raremix.detection.scorers.two_scale",
    "View": "raremix.views.view",
    "backbone": "raremix.embedding.backbones",
    "benjamini_hochberg": "raremix.detection.thresholds",
    "class_groups": "raremix.evaluation",
    "eval_transform": "raremix.embedding.preprocessing",
    "evaluate": "raremix.evaluation.summary",
    "extract_embeddings": "raremix.embedding.extraction",
    "knn_probe": "raremix.evaluation",
    "linear_probe": "raremix.evaluation",
    "load_backbone": "raremix.embedding.checkpoints",
    "load_dino": "raremix.embedding.backbones",
    "long_tail_subset": "raremix.evaluation",
    "nearest": "raremix.neighbors.search",
    "read_embeddings": "raremix.data.embeddings",
    "write_report": "raremix.reports.report",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raremix' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
