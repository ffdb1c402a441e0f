"""``raremix evaluate``: how well scores find what is known to be rare."""

import argparse
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from raremix.cli import arguments as options
from raremix.cli.console import Console, number, percent

if TYPE_CHECKING:
    from raremix.cli.judging import Truth
    from raremix.data.arrays import Array
    from raremix.evaluation import ClassJudged, ClassRow, Evaluation, Interval

__all__ = ["add_command"]

_DESCRIPTION = """\
Judge scores by labels that the scoring never saw.

Labels are true and false per row, or classes together with --rare-classes or --rare-share. A .npz
may hold both, as `is_rare` and `label`, with `class_names`; or, of frames with several objects, the
matrix `holds` of true and false, with one name per column. What it calls `is_ignored` is not judged.
"""
_EXAMPLE = """\
  raremix evaluate crops.scores.npy --labels crops.npz
  raremix evaluate knn.npy mean.npy --labels labels.csv:class --rare-classes train,rider
  raremix evaluate crops.scores.npy --labels crops.npz --groups crops.npz:frame
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
    parser.add_argument(
        "--groups",
        metavar="FILE[:MEMBER]",
        help="the frame of each crop, or the clip of each frame, by number or name: intervals "
        "redraw whole groups, whose samples are not independent",
    )
    cuts = parser.add_mutually_exclusive_group()
    cuts.add_argument("--thresholds", type=options.numbers, metavar="T,T", help="scores to cut at")
    cuts.add_argument(
        "--rates",
        type=options.shares,
        metavar="R,R",
        help="shares of the rows to flag (default: 0.01,0.02,0.05,0.1,0.2, and 0.01,0.05,0.1 for "
        "each rare class)",
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
    judged = [_judge(values[truth.is_judged], truth, arguments) for values in scores]
    results: list[dict[str, Any]] = []
    for file, one in zip(arguments.scores, judged, strict=True):
        if results:
            console.say()
        _tell(file, truth.definition, one, arguments.groups, console)
        entry = {"file": file, **asdict(one.found)}
        if one.classes:
            entry["class_threshold"] = one.cut
            entry["classes"] = [asdict(row) for row in one.classes]
        if one.rare_classes:
            entry["rare_classes"] = [asdict(row) for row in one.rare_classes]
        results.append(entry)
    console.result(
        {
            "command": "evaluate",
            "labels": arguments.labels,
            "rare": truth.definition,
            "groups": arguments.groups,
            "ignored": int((~truth.is_judged).sum()),
            "evaluations": results,
        }
    )


@dataclass(frozen=True)
class _Judged:
    """What was found of one file of scores: overall, of each class, of each rare class.

    Attributes:
        found: Of all that is rare.
        classes: Of each class, cut once; empty where there are no labels of classes.
        cut: Where.
        rare_classes: Of each rare class at flag rates; empty where rarity is not by class.
    """

    found: "Evaluation"
    classes: "tuple[ClassRow, ...]"
    cut: float
    rare_classes: "tuple[ClassJudged, ...]"


def _judge(scores: "Array", truth: "Truth", arguments: argparse.Namespace) -> _Judged:
    import numpy as np

    from raremix.evaluation import (
        CLASS_RATES,
        DEFAULT_RATES,
        class_table,
        evaluate,
        evaluate_classes,
        threshold_at_rate,
    )

    shared: dict[str, Any] = {
        "groups": truth.groups,
        "resamples": arguments.resamples,
        "seed": arguments.seed,
        "skip_nan": True,
    }
    found = evaluate(
        scores,
        truth.is_rare,
        thresholds=arguments.thresholds,
        rates=arguments.rates or DEFAULT_RATES,
        **shared,
    )
    found = replace(found, notes=(*truth.notes, *found.notes))
    # One cut for the table of classes: the only one given, else the usual flag rate.
    if arguments.thresholds is not None and len(arguments.thresholds) == 1:
        cut = float(arguments.thresholds[0])
    else:
        rates = arguments.rates or []
        rate = rates[0] if len(rates) == 1 else 0.05
        cut = threshold_at_rate(scores[~np.isnan(scores)], rate)
    classes: tuple[ClassRow, ...] = ()
    if truth.classes is not None:
        classes = class_table(
            scores, truth.classes, threshold=cut, is_rare=truth.is_rare, names=truth.class_names
        )
    rare_classes: tuple[ClassJudged, ...] = ()
    if truth.holds is not None:
        rare_classes = evaluate_classes(
            scores,
            truth.holds,
            names=truth.rare_names,
            rates=arguments.rates or CLASS_RATES,
            **shared,
        )
    return _Judged(found, classes, cut, rare_classes)


def _tell(
    file: str, definition: str, judged: _Judged, groups: str | None, console: Console
) -> None:
    found, classes, cut = judged.found, judged.classes, judged.cut
    console.say(
        f"{file}: {found.samples:,} samples, {found.rare:,} rare "
        f"(prevalence {percent(found.prevalence)}; {definition})"
    )
    for note in found.notes:
        console.say(f"note: {note}")
    if found.groups is not None and found.auroc_interval is not None:
        console.say(f"intervals redraw whole groups, {found.groups:,} of {groups}")
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
    if judged.rare_classes:
        _tell_rare(judged.rare_classes, console)


def _tell_rare(rows: "tuple[ClassJudged, ...]", console: Console) -> None:
    """The table of the rare classes: beside each recall the best that the rate allows."""
    console.say()
    headers = ["Rare class", "Samples", "AP", "95 % interval"]
    for cut in rows[0].rates:
        headers += [f"Recall at {100 * cut.rate:g} %", "Best"]
    console.table(
        headers,
        [
            [
                row.name,
                f"{row.count:,}",
                # As many digits as its interval has.
                "-" if math.isnan(row.average_precision) else f"{row.average_precision:.4f}",
                _interval(row.average_precision_interval).strip() or "-",
                *(number(share, 3) for cut in row.rates for share in (cut.recall, cut.best_recall)),
            ]
            for row in rows
        ],
        left=1,
    )
    for row in rows:
        for note in row.notes:
            console.say(f"note: {row.name}: {note}")


def _interval(interval: "Interval | None") -> str:
    return "" if interval is None else f"  [{interval.low:.4f}, {interval.high:.4f}]"
