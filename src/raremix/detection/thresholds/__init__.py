"""Rules that turn the scores seen so far into the score above which an image is rare.

A rule is shown every batch of scores once, in order. It knows no embeddings and no images.
"""

from raremix.detection.thresholds.conformal import ConformalThreshold, benjamini_hochberg
from raremix.detection.thresholds.fixed import FixedThreshold
from raremix.detection.thresholds.flag_rate import FlagRate
from raremix.detection.thresholds.quantile import QuantileThreshold

__all__ = [
    "ConformalThreshold",
    "FixedThreshold",
    "FlagRate",
    "QuantileThreshold",
    "benjamini_hochberg",
]
