"""Measures how well rare classes are found, beside the libraries one would use instead; a script.

    python tests/benchmarks/bench_quality.py --data FOLDER --out quality-table.md

FOLDER holds ``.npz`` files with ``embedding`` (n, dim) and ``is_rare`` (n,), and perhaps ``label``.
Nobody sees a label. Everybody runs with default settings; ``pip install raremix[bench]`` brings the
peers. The measure is average precision over that of the Euclidean distance to the mean, with paired
bootstrap intervals over the rows.

If the folder also holds the images of a set and the encoder that embedded them, ``--faults`` spoils
3 % of the images and asks how many of those are flagged.
"""

import argparse
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raremix.detection import (
    ClusterMass,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    NoiseGate,
    OODDetector,
    TwoScaleDistance,
)
from raremix.evaluation import auroc, average_precision

Score = Callable[[Tensor], Any]

DEFAULT = "**raremix default**"
BASE = "distance to the mean, Euclidean"
RESAMPLES = 300


def fitted(make: Callable[[], Any]) -> Score:
    return lambda rows: OODDetector(make()).fit(rows).scores.numpy()


def quarter(rows: Tensor) -> Any:
    """Every row against a random bank of a quarter of them, without itself; the mean of 3 banks."""
    ids, total = torch.arange(len(rows)), np.zeros(len(rows))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        bank = torch.randperm(len(rows), generator=generator)[: len(rows) // 4]
        scorer = FusedDistance()
        scorer.fit(rows[bank], bank)
        scores = scorer.score(rows, ids).numpy()
        total += scores.argsort().argsort()  # ranks, since each bank has its own unit
    return total


def streamed(rows: Tensor) -> Any:
    """Two passes of ``observe`` in batches of 256, in random order; what the second one says."""
    detector = OODDetector(FusedDistance(capacity=max(len(rows) // 4, 64)), smoothing=0.0)
    scores = np.full(len(rows), np.nan)
    for turn in range(2):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(turn))
        for ids in torch.split(order, 256):
            scores[ids.numpy()] = detector.observe(rows[ids], ids).scores.numpy()
    return scores


OURS: dict[str, Score] = {
    DEFAULT: fitted(FusedDistance),
    "the same against a random quarter": quarter,
    "the same in a stream, bank of a quarter": streamed,
    "raremix KNNDistance(10)": fitted(lambda: KNNDistance(10)),
    "raremix ClusterMass()": fitted(ClusterMass),
    "raremix TwoScaleDistance()": fitted(TwoScaleDistance),
    "raremix Mahalanobis(normalize=False)": fitted(lambda: Mahalanobis(normalize=False)),
    BASE: fitted(MeanDistance),
    "distance to the mean, cosine": fitted(lambda: MeanDistance(metric="cosine")),
}


def _of_pyod(make: Any, options: dict[str, int], rows: Tensor) -> Any:
    return make(**options).fit(rows.numpy()).decision_scores_


def peers() -> Iterator[tuple[str, Score]]:
    """Everyone else, at their defaults."""
    try:
        from pyod.models.ecod import ECOD
        from pyod.models.iforest import IForest
        from pyod.models.knn import KNN
        from pyod.models.lof import LOF
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    else:
        for name, make in (("KNN", KNN), ("LOF", LOF), ("ECOD", ECOD), ("IForest", IForest)):
            options = {"random_state": 0} if name == "IForest" else {}
            yield f"PyOD {name}", functools.partial(_of_pyod, make, options)
    try:
        import pytorch_ood.detector
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    else:

        def knn(rows: Tensor) -> Any:
            # It has no leave-one-out: one neighbour more than its default, the row itself.
            detector = pytorch_ood.detector.KNN(None, k=51)
            detector.fit_features(rows, torch.zeros(len(rows)))
            return np.asarray(detector.predict_features(rows))

        yield "pytorch-ood KNN", knn
    try:
        from cleanlab.outlier import OutOfDistribution
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    else:
        yield (
            "cleanlab OutOfDistribution",
            lambda rows: -OutOfDistribution().fit_score(features=rows.numpy(), verbose=False),
        )


def resampled(scores: dict[str, Any], is_rare: Any, seed: int = 0) -> dict[str, Any]:
    """Average precision of every score in the same bootstrap samples, the samples within each kind."""
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(is_rare), np.flatnonzero(~is_rare)]
    found: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(RESAMPLES):
        rows = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        for name, values in scores.items():
            found[name].append(average_precision(values[rows], is_rare[rows]))
    return {name: np.array(values) for name, values in found.items()}


def compare(folder: Path) -> Iterator[str]:
    """The table over all sets, and how far the default is ahead."""
    sets: dict[str, tuple[Tensor, Any, Any]] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as held:
            if {"embedding", "is_rare"} <= set(held.files):
                rows = torch.from_numpy(held["embedding"].astype(np.float32))
                label = held["label"] if "label" in held.files else None
                sets[file.stem] = rows, held["is_rare"].astype(bool), label
    if not sets:
        raise SystemExit(f"no .npz with embedding and is_rare in {folder}")
    contenders = {**OURS, **dict(peers())}
    ratios: dict[str, list[Any]] = {name: [] for name in contenders}
    points: dict[str, list[float]] = {name: [] for name in contenders}
    table: dict[str, list[str]] = {name: [] for name in contenders}
    per_class: list[str] = []
    for name, (rows, is_rare, label) in sets.items():
        print(name, file=sys.stderr, flush=True)
        scores = {}
        for contender, score in contenders.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores[contender] = np.asarray(score(rows), dtype=np.float64)
        drawn = resampled(scores, is_rare)
        base = average_precision(scores[BASE], is_rare)
        for contender, values in scores.items():
            precision = average_precision(values, is_rare)
            points[contender].append(precision / base)
            ratios[contender].append(drawn[contender] / drawn[BASE])
            low, high = np.quantile(ratios[contender][-1], [0.025, 0.975])
            table[contender].append(
                f"{auroc(values, is_rare):.2f} / {precision:.3f}, "
                f"{precision / base:.2f} [{low:.2f}, {high:.2f}]"
            )
        per_class += list(by_class(name, scores[DEFAULT], is_rare, label))
    yield "### AUROC / average precision, ratio to the Euclidean mean distance"
    yield ""
    yield f"| | {' | '.join(sets)} | geometric mean | lowest |"
    yield "|---" * (len(sets) + 3) + "|"
    yield (
        "| prevalence | "
        + " | ".join(f"{is_rare.mean():.3f}, n {len(rows):,}" for rows, is_rare, _ in sets.values())
        + " | | |"
    )
    means = {}
    for contender, cells in table.items():
        means[contender] = np.exp(np.log(ratios[contender]).mean(axis=0))
        low, high = np.quantile(means[contender], [0.025, 0.975])
        point = np.exp(np.log(points[contender]).mean())
        yield (
            f"| {contender} | {' | '.join(cells)} | {point:.3f} [{low:.2f}, {high:.2f}] | "
            f"{min(points[contender]):.2f} |"
        )
    yield ""
    others = {name: np.log(points[name]).mean() for name in contenders if name not in OURS}
    if others:
        best = max(others, key=lambda name: others[name])
        ahead = means[DEFAULT] / means[best]
        low, high = np.quantile(ahead, [0.025, 0.975])
        point = np.exp(np.log(points[DEFAULT]).mean() - others[best])
        yield (
            f"The best peer is {best}; the default has {point:.2f} [{low:.2f}, {high:.2f}] times its "
            "average precision, in the geometric mean over the sets. Brackets: 95 %, paired bootstrap."
        )
        yield ""
    yield "### Rare classes, by the default"
    yield ""
    yield "| set | class | n | AUROC against all common | flagged at 5 % |"
    yield "|---|---|---|---|---|"
    yield from per_class
    yield ""
    yield from wide_classes(sets)


def by_class(name: str, scores: Any, is_rare: Any, label: Any) -> Iterator[str]:
    if label is None:
        return
    cut = np.quantile(scores, 0.95)
    for value in np.unique(label[is_rare]):
        own = (label == value) & is_rare
        kept = own | ~is_rare
        area = auroc(scores[kept], own[kept])
        yield (
            f"| {name} | {value} | {own.sum():,} | {area:.2f} | {(scores[own] > cut).mean():.0%} |"
        )


def wide_classes(sets: dict[str, tuple[Tensor, Any, Any]]) -> Iterator[str]:
    """A common class spread twice as wide about its mean: is it flagged more than its share?"""
    yield "### Injected into the embeddings: a common class twice as wide, a rare image 20 times"
    yield ""
    yield "| set | score | lift of the widened class, before | after | 20 copies still flagged |"
    yield "|---|---|---|---|---|"
    scorers: dict[str, Callable[[], Any]] = {
        "default": FusedDistance,
        "KNNDistance(10)": lambda: KNNDistance(10),
        "ClusterMass()": ClusterMass,
    }
    for name, (rows, is_rare, label) in sets.items():
        if label is None:
            continue
        values, counts = np.unique(label[~is_rare], return_counts=True)
        widest = int(values[counts.argmax()])
        own = torch.from_numpy((label == widest) & ~is_rare)
        changed = rows.clone()
        centre = rows[own].mean(dim=0)
        changed[own] = centre + 2.0 * (rows[own] - centre)
        for described, make in scorers.items():
            lifts = []
            for given in (rows, changed):
                scores = fitted(make)(given)
                flagged = scores > np.quantile(scores, 0.95)
                lifts.append(flagged[own.numpy()].mean() / 0.05)
            plain = fitted(make)(rows)
            top = np.flatnonzero(is_rare)[plain[is_rare].argsort()[::-1][:5]]
            kept = 0
            for row in top.tolist():
                more = torch.cat([rows, rows[row].expand(19, -1)])
                scores = fitted(make)(more)
                kept += int(scores[row] > np.quantile(scores, 0.95))
            yield f"| {name} | {described} | {lifts[0]:.2f} | {lifts[1]:.2f} | {kept} of 5 |"
    yield ""


def encoder(file: Path) -> torch.nn.Module:
    """MobileNetV2 with TensorFlow's "SAME" padding, as the folder's README describes."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(weights=None)
    state = torch.load(file, weights_only=True)
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(module, name, torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), child))
    model.eval()
    whole: torch.nn.Module = model
    return whole


def embed(model: Any, images: list[Any]) -> Tensor:
    from PIL import Image

    rows = []
    with torch.no_grad():
        for image in images:
            pixels = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC))
            shown = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
            rows.append(model.features(shown[None]).mean((2, 3)))
    return torch.cat(rows)


def spoil(image: Any, kind: str, rng: Any) -> Any:
    from PIL import Image, ImageFilter

    picture = Image.fromarray(image)
    if kind == "blurred":
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(max(image.shape[0] / 12, 1.5))))
    if kind == "noisy":
        noise = rng.normal(0, 40, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)
    if kind == "garbled":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=3)
        return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    if kind == "cut out":
        cut = image.copy()
        cut[: image.shape[0] // 2] = 0
        return cut
    return np.full_like(image, 128 if kind == "grey" else 0)


KINDS = ("blurred", "noisy", "garbled", "cut out", "grey", "black")


def crops(folder: Path) -> list[Any]:
    from PIL import Image

    with np.load(folder / "camvid_crops.npz") as held:
        names, frames, boxes = held["frame_names"], held["frame"], held["box"]
    opened: dict[int, Any] = {}
    cut = []
    for frame, (top, left, bottom, right) in zip(frames.tolist(), boxes.tolist(), strict=True):
        if frame not in opened:
            [path] = (folder / "camvid" / "images").glob(f"{Path(str(names[frame])).stem}.*")
            opened = {frame: np.asarray(Image.open(path).convert("RGB"))}
        cut.append(opened[frame][top:bottom, left:right])
    return cut


def faults(folder: Path) -> Iterator[str]:
    """3 % of the images spoilt and embedded again: their share among the 5 % flagged."""
    model = encoder(folder / "mobilenet_v2_imagenet.pt")
    yield "### 3 % of the images spoilt: their share among the 5 % flagged, over 3 %"
    yield ""
    yield "| set | score | all kinds | " + " | ".join(KINDS) + " | average precision, clean rows |"
    yield "|---" * (len(KINDS) + 4) + "|"
    with np.load(folder / "cifar10_lt.npz") as held:
        pictures = {"cifar10_lt_embeddings": list(held["images"]), "camvid_crops": crops(folder)}
    scorers: dict[str, Callable[[], Any]] = {
        "default": FusedDistance,
        "KNNDistance(10)": lambda: KNNDistance(10),
        "NoiseGate(FusedDistance())": lambda: NoiseGate(FusedDistance()),
    }
    for name, images in pictures.items():
        with np.load(folder / f"{name}.npz") as held:
            rows = torch.from_numpy(held["embedding"].astype(np.float32))
            is_rare = held["is_rare"].astype(bool)
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(rows), round(0.03 * len(rows)), replace=False)
        kinds = np.array([KINDS[place % len(KINDS)] for place in range(len(chosen))])
        spoilt = [spoil(images[i], kind, rng) for i, kind in zip(chosen, kinds, strict=True)]
        changed = rows.clone()
        changed[torch.from_numpy(chosen)] = embed(model, spoilt)
        clean = np.ones(len(rows), bool)
        clean[chosen] = False
        for described, make in scorers.items():
            scores = fitted(make)(changed)
            flagged = scores > np.quantile(scores, 0.95)
            share = flagged[chosen].sum() / flagged.sum() / 0.03
            cells = [
                f"{flagged[chosen[kinds == kind]].sum()} of {(kinds == kind).sum()}"
                for kind in KINDS
            ]
            precision = average_precision(scores[clean], is_rare[clean])
            yield (
                f"| {name} | {described} | {share:.2f} | {' | '.join(cells)} | {precision:.3f} |"
            )
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--faults", action="store_true", help="also spoil images")
    given = parser.parse_args()
    lines = list(compare(given.data))
    if given.faults:
        lines += faults(given.data)
    print("\n".join(lines))
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
