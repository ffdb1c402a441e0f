"""Judges scores and embeddings against labels that neither was allowed to see."""

from raremix.evaluation.classes import ClassRow, class_table
from raremix.evaluation.cuts import DEFAULT_RATES, ThresholdRow, threshold_at_rate, threshold_table
from raremix.evaluation.groups import GROUPS, Group, class_groups, rarest_classes
from raremix.evaluation.longtail import long_tail_counts, long_tail_subset
from raremix.evaluation.metrics import FPR95, auroc, average_precision, fpr_at_95_tpr
from raremix.evaluation.probes import ProbeResult, knn_probe, linear_probe
from raremix.evaluation.summary import Evaluation, Interval, bootstrap_intervals, evaluate

__all__ = [
    "DEFAULT_RATES",
    "FPR95",
    "GROUPS",
    "ClassRow",
    "Evaluation",
    "Group",
    "Interval",
    "ProbeResult",
    "ThresholdRow",
    "auroc",
    "average_precision",
    "bootstrap_intervals",
    "class_groups",
    "class_table",
    "evaluate",
    "fpr_at_95_tpr",
    "knn_probe",
    "linear_probe",
    "long_tail_counts",
    "long_tail_subset",
    "rarest_classes",
    "threshold_at_rate",
    "threshold_table",
]
