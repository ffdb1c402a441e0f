"""``raremix evaluate``: how well scores find what is known to be rare."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raremix.cli import arguments as options
from raremix.cli.console import Console, number, percent

if TYPE_CHECKING:
    from raremix.cli.judging import Truth
    from raremix.data.arrays import Array
    from raremix.evaluation import ClassRow, Evaluation, Interval

__all__ = ["add_command"]

_DESCRIPTION = """\
Judge scores by labels that the scoring never saw.

Labels are true and false per row, or classes together with --rare-classes or --rare-share. A .npz
may hold both, as `is_rare` and `label`, with `class_names`.
"""
_EXAMPLE = """\
  raremix evaluate crops.scores.npy --labels crops.npz
  raremix evaluate knn.npy mean.npy --labels labels.csv:class --rare-classes train,rider
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command to argparse."""
    parser = options.add_command(
        commands,
        "evaluate",
        summary="judge scores by labels",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "scores", metavar="SCORES", nargs="+", help="one score per row: .npy, .npz, .pt, .csv, .txt"
    )
    parser.add_argument("--labels", metavar="FILE[:MEMBER]", required=True)
    rare = parser.add_mutually_exclusive_group()
    rare.add_argument(
        "--rare-classes",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="the classes that count as rare, by label or name",
    )
    rare.add_argument(
        "--rare-share",
        type=options.share,
        metavar="SHARE",
        help="the smallest classes that together stay under this share count as rare",
    )
    cuts = parser.add_mutually_exclusive_group()
    cuts.add_argument("--thresholds", type=options.numbers, metavar="T,T", help="scores to cut at")
    cuts.add_argument(
        "--rates",
        type=options.shares,
        metavar="R,R",
        help="shares of the rows to flag (default: 0.01,0.02,0.05,0.1,0.2)",
    )
    parser.add_argument(
        "--resamples",
        type=options.whole,
        default=1000,
        help="bootstrap resamples of the intervals, at least 20, or 0 for none (default: %(default)s)",
    )
    parser.add_argument("--seed", type=options.whole, default=0, help="of the bootstrap")
    options.add_output_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Judge every file of scores by the same labels."""
    from raremix.cli.judging import read_scores, read_truth

    # All that can be wrong with a file is found before the first result is printed.
    scores = [read_scores(file) for file in arguments.scores]
    truth = read_truth(arguments, [len(values) for values in scores])
    judged = [_judge(values, truth, arguments) for values in scores]
    results: list[dict[str, Any]] = []
    for file, (found, classes, cut) in zip(arguments.scores, judged, strict=True):
        if results:
            console.say()
        _tell(file, truth.definition, found, classes, cut, console)
        entry = {"file": file, **asdict(found)}
        if classes:
            entry["class_threshold"] = cut
            entry["classes"] = [asdict(row) for row in classes]
        results.append(entry)
    console.result(
        {
            "command": "evaluate",
            "labels": arguments.labels,
            "rare": truth.definition,
            "evaluations": results,
        }
    )


def _judge(
    scores: "Array", truth: "Truth", arguments: argparse.Namespace
) -> "tuple[Evaluation, tuple[ClassRow, ...], float]":
    """What was found overall and of each class, and where the classes were cut."""
    import numpy as np

    from raremix.evaluation import DEFAULT_RATES, class_table, evaluate, threshold_at_rate

    found = evaluate(
        scores,
        truth.is_rare,
        thresholds=arguments.thresholds,
        rates=arguments.rates or DEFAULT_RATES,
        resamples=arguments.resamples,
        seed=arguments.seed,
        skip_nan=True,
    )
    # One cut for the table of classes: the only one given, else the usual flag rate.
    if arguments.thresholds is not None and len(arguments.thresholds) == 1:
        cut = float(arguments.thresholds[0])
    else:
        rates = arguments.rates or []
        rate = rates[0] if len(rates) == 1 else 0.05
        cut = threshold_at_rate(scores[~np.isnan(scores)], rate)
    if truth.classes is None:
        return found, (), cut
    classes = class_table(
        scores, truth.classes, threshold=cut, is_rare=truth.is_rare, names=truth.class_names
    )
    return found, classes, cut


def _tell(
    file: str,
    definition: str,
    found: "Evaluation",
    classes: "tuple[ClassRow, ...]",
    cut: float,
    console: Console,
) -> None:
    console.say(
        f"{file}: {found.samples:,} samples, {found.rare:,} rare "
        f"(prevalence {percent(found.prevalence)}; {definition})"
    )
    for note in found.notes:
        console.say(f"note: {note}")
    console.say(f"  AUROC              {found.auroc:.4f}{_interval(found.auroc_interval)}")
    console.say(
        f"  average precision  {found.average_precision:.4f}"
        f"{_interval(found.average_precision_interval)}, {found.lift:.2f} times chance"
    )
    rare, common = found.fpr95.rare_positive, found.fpr95.common_positive
    console.say(f"  FPR95              {rare:.4f} of the common flagged where 95 % of the rare are")
    console.say(f"  FPR95, inverted    {common:.4f} of the rare kept where 95 % of the common are")
    console.say()
    console.table(
        ["Flagged", "Threshold", "Precision", "Recall", "F1", "Best F1", "Lift"],
        [
            [
                percent(row.flag_rate),
                f"{row.threshold:.6g}",
                number(row.precision),
                number(row.recall),
                number(row.f1),
                number(row.best_f1),
                number(row.lift, 3),
            ]
            for row in found.thresholds
        ],
    )
    if classes:
        console.say()
        console.table(
            ["Class", "Samples", "Rare", "AUROC", f"Flagged above {cut:.4g}", "Lift"],
            [
                [
                    row.name,
                    f"{row.count:,}",
                    "yes" if row.is_rare else "no",
                    number(row.auroc, 3),
                    percent(row.flagged_share),
                    number(row.lift, 3),
                ]
                for row in classes
            ],
            left=1,
        )


def _interval(interval: "Interval | None") -> str:
    return "" if interval is None else f"  [{interval.low:.4f}, {interval.high:.4f}]"
