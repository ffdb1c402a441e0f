"""Judges scores and embeddings against labels that neither was allowed to see."""

from raremix.evaluation.classes import ClassRow, class_table
from raremix.evaluation.cuts import DEFAULT_RATES, ThresholdRow, threshold_at_rate, threshold_table
from raremix.evaluation.frames import (
    ANY_RARE,
    CLASS_RATES,
    ClassJudged,
    RateJudged,
    evaluate_classes,
)
from raremix.evaluation.groups import GROUPS, Group, class_groups, rarest_classes, rarest_of
from raremix.evaluation.longtail import long_tail_counts, long_tail_subset
from raremix.evaluation.metrics import FPR95, auroc, average_precision, fpr_at_95_tpr
from raremix.evaluation.paired import Paired, paired_difference
from raremix.evaluation.probes import ProbeResult, knn_probe, linear_probe
from raremix.evaluation.resampling import Interval
from raremix.evaluation.summary import Evaluation, bootstrap_intervals, evaluate

__all__ = [
    "ANY_RARE",
    "CLASS_RATES",
    "DEFAULT_RATES",
    "FPR95",
    "GROUPS",
    "ClassJudged",
    "ClassRow",
    "Evaluation",
    "Group",
    "Interval",
    "Paired",
    "ProbeResult",
    "RateJudged",
    "ThresholdRow",
    "auroc",
    "average_precision",
    "bootstrap_intervals",
    "class_groups",
    "class_table",
    "evaluate",
    "evaluate_classes",
    "fpr_at_95_tpr",
    "knn_probe",
    "linear_probe",
    "long_tail_counts",
    "long_tail_subset",
    "paired_difference",
    "rarest_classes",
    "rarest_of",
    "threshold_at_rate",
    "threshold_table",
]
