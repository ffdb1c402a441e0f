"""The main job in some minutes on a CPU: train on a long tail, find what is rare, look at it.

    python examples/demo.py            # what `make demo` runs
    python examples/demo.py --short    # a few epochs, for continuous integration

It trains DINO on scikit-learn's handwritten digits, cut to a long tail (405 images; the three rarest
digits are 6 % of them), with rare samples mixed back in; then it scores the training images with the
trained encoder and writes a report. Labels are used to judge, never to train or to score.
"""

import argparse
import csv
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import raremix
import train_dino
from raremix.reports import BarChart, LineChart, Section, Table


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on long-tailed digits and write a report.")
    parser.add_argument("--out", default="demo", help="folder to write to (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="train for a tenth of the time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    begun = time.perf_counter()

    # A demo starts afresh; train_dino.py itself would go on with what it finds.
    shutil.rmtree(out / "run", ignore_errors=True)
    settings = train_dino.Settings(**train_dino.PRESETS["digits"])
    settings.out, settings.seed = str(out / "run"), arguments.seed
    if arguments.short:
        settings.epochs, settings.warmup_epochs, settings.eval_every = 6, 1, 3
    run = train_dino.train(settings)
    if run.step < settings.epochs * run.steps_per_epoch:
        raise SystemExit(130)

    # What training leaves behind: an encoder. Everything below works on any embeddings.
    labels = run.data.labels
    assert labels is not None
    embeddings = run.embed(run.data.plain)
    found = raremix.OODDetector().fit(embeddings)
    groups = np.array(raremix.class_groups(np.bincount(labels).tolist()))
    is_tail = groups[labels] == "few"
    judged = judge(embeddings, is_tail)
    history = read_history(out / "run" / "metrics.csv")
    shares = held_shares(history)

    np.save(out / "embeddings.npy", embeddings.numpy())
    np.savez(out / "images.npz", images=run.data.dataset.images, label=labels)
    report = write_report(out / "report.html", run, found, embeddings, judged, history, shares)

    last = [row for row in history if row["knn"]][-1]
    print("\nk-NN accuracy on 400 test images, 40 of each digit")
    for name, column in (
        ("all", "knn"),
        ("many  (0-3)", "knn_many"),
        ("medium (4-6)", "knn_medium"),
        ("few   (7-9)", "knn_few"),
    ):
        print(f"  {name:<14}{100 * float(last[column]):5.1f} %")
    print("\ntail digits (7, 8, 9: no label was used to find them)")
    print(f"  share of the data            {100 * is_tail.mean():5.1f} %")
    print(f"  share of the buffer, last    {100 * shares['last']:5.1f} %")
    print(f"  share of the buffer, mean    {100 * shares['mean']:5.1f} %  over the second half")
    print("\nfinding them in the trained embeddings (average precision; chance is the share)")
    for name, (area, precision) in judged.items():
        print(f"  {name:<32}{precision:.3f}   AUROC {area:.3f}")
    print(f"\n{time.perf_counter() - begun:.0f} s. Look at {report}")
    command = Path(sys.executable).with_name("raremix")
    print(f"The same from the shell: {command} score {out / 'embeddings.npy'} --out {out}")


def judge(embeddings: Any, is_tail: Any) -> dict[str, tuple[float, float]]:
    """AUROC and average precision of the default and of the score this project began from."""
    scorers = {
        "raremix default": raremix.FusedDistance(),
        "distance to the 10th neighbour": raremix.KNNDistance(),
        "distance from the mean": raremix.MeanDistance(metric="cosine"),
    }
    judged = {}
    for name, scorer in scorers.items():
        scores = raremix.OODDetector(scorer).fit(embeddings).scores
        result = raremix.evaluate(scores, is_tail, resamples=200)
        judged[name] = (result.auroc, result.average_precision)
    return judged


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that end an epoch."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["tail_in_data"]]


def held_shares(history: list[dict[str, str]]) -> dict[str, float]:
    """The tail's share of the buffer at the end, and on average over the second half."""
    half = [float(row["tail_in_buffer"]) for row in history[len(history) // 2 :]]
    return {"last": half[-1], "mean": float(np.mean(half))}


def write_report(
    path: Path,
    run: train_dino.Run,
    found: raremix.Detection,
    embeddings: Any,
    judged: dict[str, tuple[float, float]],
    history: list[dict[str, str]],
    shares: dict[str, float],
) -> Path:
    labels = run.data.labels
    rows = torch.arange(len(found.scores))
    near = raremix.nearest(embeddings, embeddings, 4, query_ids=rows, bank_ids=rows)
    beside = {
        row: list(zip(near.indices[row].tolist(), near.distances[row].tolist(), strict=True))
        for row in found.scores.argsort(descending=True)[:24].tolist()
    }
    epochs = [float(row["epoch"]) + 1 for row in history]
    probed = [row for row in history if row["knn"]]

    def column(name: str, rows: list[dict[str, str]]) -> list[float]:
        return [float(row[name]) if row[name] else math.nan for row in rows]

    training = Section(
        "What happened in training",
        [
            LineChart(
                "Tail digits in the buffer and in the data",
                epochs,
                {
                    "buffer": column("tail_in_buffer", history),
                    "data": column("tail_in_data", history),
                },
                x_label="epoch",
                y_label="share of 7, 8 and 9",
                percent=True,
                note="The buffer is filled by the detector, which sees no labels.",
            ),
            BarChart(
                "k-NN accuracy on the balanced test digits",
                ["many (0-3)", "medium (4-6)", "few (7-9)"],
                {
                    f"epoch {int(row['epoch']) + 1}": [
                        float(row[name]) for name in ("knn_many", "knn_medium", "knn_few")
                    ]
                    for row in (probed[0], probed[-1])
                },
                percent=True,
                note="One run of one seed: it shows that training works, not that replay helps.",
            ),
            Table(
                ["score", "AUROC", "average precision"],
                [[name, f"{a:.3f}", f"{p:.3f}"] for name, (a, p) in judged.items()],
                title="Finding the tail digits in the trained embeddings",
                note=f"Chance is an average precision of {history[-1]['tail_in_data']}.",
            ),
        ],
        text="DINO on 405 handwritten digits, from 120 zeros down to 6 nines, one in eight images of "
        "each batch drawn from the buffer of rare samples.",
    )
    return raremix.write_report(
        path,
        scores=found.scores,
        threshold=found.threshold,
        title="Rare handwritten digits",
        images=run.data.dataset.images,
        labels=labels,
        neighbours=beside,
        sections=[training],
        command="python examples/demo.py",
        facts={
            "data": "load_digits of scikit-learn, cut to a long tail (examples/train_dino.py)",
            "tail in the buffer": f"{100 * shares['mean']:.0f} % on average over the second half",
            "versions": f"raremix {raremix.__version__}, torch {torch.__version__}",
        },
    )


if __name__ == "__main__":
    main()
