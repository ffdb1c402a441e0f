"""Measures how well rare classes are found, beside the libraries one would use instead; a script.

    python tests/benchmarks/bench_quality.py --data FOLDER --out quality-table.md

FOLDER holds ``.npz`` files with ``embedding`` (n, dim) and ``is_rare`` (n,), perhaps with ``label``
(n,) and ``class_names``.
Nobody sees a label. Everybody runs with default settings; ``pip install raremix[bench]`` brings the
peers. The measure is average precision over that of the Euclidean distance to the mean, with paired
bootstrap intervals over the rows.

If the folder also holds the images of a set and the encoder that embedded them, ``--faults`` spoils
3 % of the images and asks how many of those are flagged, and adds near copies of rare images.
"""

import argparse
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """(3, n): every row against a random bank of a quarter of them, without itself, for 3 banks."""
    ids, found = torch.arange(len(rows)), []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        bank = torch.randperm(len(rows), generator=generator)[: len(rows) // 4]
        scorer = FusedDistance()
        scorer.fit(rows[bank], bank)
        found.append(scorer.score(rows, ids).numpy())
    return np.stack(found)


def streamed(rows: Tensor) -> Any:
    """Two passes of ``observe`` in batches of 256, in random order; what the second one says."""
    detector = OODDetector(FusedDistance(capacity=max(len(rows) // 4, 64)), smoothing=0.0)
    scores = np.full(len(rows), np.nan)
    for turn in range(2):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(turn))
        for ids in torch.split(order, 256):
            scores[ids.numpy()] = detector.observe(rows[ids], ids).scores.numpy()
    return scores


QUARTER = "the same against a random quarter, mean of 3"
STREAM = "the same in a stream, bank of a quarter"

OURS: dict[str, Score] = {
    DEFAULT: fitted(FusedDistance),
    QUARTER: quarter,
    STREAM: streamed,
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


def precision_of(scores: Any, is_rare: Any) -> float:
    """Of (draws, n) scores the mean over the draws: ranks averaged over draws would flatter."""
    return float(np.mean([average_precision(draw, is_rare) for draw in scores]))


def resampled(scores: dict[str, Any], is_rare: Any) -> dict[str, Any]:
    """Precision of every score in the same bootstrap samples, the samples within each kind."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(is_rare), np.flatnonzero(~is_rare)]
    found: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(RESAMPLES):
        rows = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        for name, values in scores.items():
            found[name].append(precision_of(values[:, rows], is_rare[rows]))
    return {name: np.array(values) for name, values in found.items()}


def bracket(drawn: Any) -> str:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Held:
    """One set: its rows, which of them are rare, and their classes if known."""

    rows: Tensor
    is_rare: Any
    label: Any


def read(folder: Path) -> dict[str, Held]:
    sets = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as held:
            if {"embedding", "is_rare"} <= set(held.files):
                rows = torch.from_numpy(held["embedding"].astype(np.float32))
                label = held["label"] if "label" in held.files else None
                if label is not None and "class_names" in held.files:
                    label = held["class_names"][label]
                sets[file.stem] = Held(rows, held["is_rare"].astype(bool), label)
    return sets


def scored(held: Held, contenders: dict[str, Score]) -> dict[str, Any]:
    """(draws, n) scores of every contender."""
    scores = {}
    for contender, score in contenders.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores[contender] = np.atleast_2d(np.asarray(score(held.rows), dtype=np.float64))
    return scores


def compare(sets: dict[str, Held]) -> Iterator[str]:
    """The tables over all sets, and how far the default is ahead."""
    contenders = {**OURS, **dict(peers())}
    ratios: dict[str, list[Any]] = {name: [] for name in contenders}
    points: dict[str, list[float]] = {name: [] for name in contenders}
    table: dict[str, list[str]] = {name: [] for name in contenders}
    default = {}
    for name, held in sets.items():
        print(name, file=sys.stderr, flush=True)
        scores = scored(held, contenders)
        default[name] = scores[DEFAULT][0]
        drawn = resampled(scores, held.is_rare)
        base = precision_of(scores[BASE], held.is_rare)
        for contender, values in scores.items():
            precision = precision_of(values, held.is_rare)
            area = np.mean([auroc(draw, held.is_rare) for draw in values])
            points[contender].append(precision / base)
            ratios[contender].append(drawn[contender] / drawn[BASE])
            table[contender].append(
                f"{area:.2f} / {precision:.3f}, "
                f"{precision / base:.2f} {bracket(ratios[contender][-1])}"
            )
    yield "### AUROC / average precision, ratio to the Euclidean mean distance"
    yield ""
    yield f"| | {' | '.join(sets)} | geometric mean | lowest |"
    yield "|---" * (len(sets) + 3) + "|"
    shares = (f"{held.is_rare.mean():.3f}, n {len(held.rows):,}" for held in sets.values())
    yield f"| prevalence | {' | '.join(shares)} | | |"
    means = {}
    for contender, cells in table.items():
        means[contender] = np.exp(np.log(ratios[contender]).mean(axis=0))
        point = np.exp(np.log(points[contender]).mean())
        yield (
            f"| {contender} | {' | '.join(cells)} | {point:.3f} {bracket(means[contender])} | "
            f"{min(points[contender]):.2f} |"
        )
    yield ""
    others = {name: np.log(points[name]).mean() for name in contenders if name not in OURS}
    if others:
        best = max(others, key=lambda name: others[name])
        ahead = bracket(means[DEFAULT] / means[best])
        point = np.exp(np.log(points[DEFAULT]).mean() - others[best])
        yield (
            f"The best peer is {best}; the default has {point:.2f} {ahead} times its "
            "average precision, in the geometric mean over the sets. Brackets: 95 %, paired bootstrap."
        )
        yield ""
    yield from bars(list(sets), points)
    yield "### Rare classes, by the default"
    yield ""
    yield "| set | class | n | AUROC against all common | flagged at 5 % |"
    yield "|---|---|---|---|---|"
    for name, held in sets.items():
        yield from by_class(name, default[name], held.is_rare, held.label)
    yield ""
    yield from common_classes(sets, default)
    yield from injected(sets)


LEAST_MEAN, LEAST_EACH, LEAST_KEPT = 1.35, 1.15, 0.9  # ratios, and the share of the gain online


def bars(names: list[str], points: dict[str, list[float]]) -> Iterator[str]:
    """What was asked for, and what is reached; the gain is the ratio less one."""
    columns = {way: [float(np.exp(np.log(points[way]).mean())), *points[way]] for way in OURS}
    yield "### The bars"
    yield ""
    yield f"| | asked for | geometric mean | {' | '.join(names)} |"
    yield "|---" * (len(names) + 3) + "|"
    cells = " | ".join(f"{ratio:.2f}" for ratio in columns[DEFAULT])
    yield f"| ratio of the default | {LEAST_MEAN}, and {LEAST_EACH} on each | {cells} |"
    for way in (QUARTER, STREAM):
        kept = [(b - 1) / (a - 1) for a, b in zip(columns[DEFAULT], columns[way], strict=True)]
        cells = " | ".join(f"{share:.2f}" for share in kept)
        yield f"| share of its gain kept: {way} | {LEAST_KEPT} | {cells} |"
    yield ""


def common_classes(sets: dict[str, Held], default: dict[str, Any]) -> Iterator[str]:
    """Which common classes are flagged by nature, and whether those are the wide ones."""
    yield "### How often common classes are flagged as they are, by the default"
    yield ""
    yield "| set | class | n | share of the rows | spread | lift among the 5 % flagged |"
    yield "|---|---|---|---|---|---|"
    for name, held in sets.items():
        if held.label is None:
            continue
        rows, flagged = held.rows.numpy(), default[name] > np.quantile(default[name], 0.95)

        def spread(own: Any, rows: Any = rows) -> float:
            return float(np.sqrt(np.square(rows[own] - rows[own].mean(0)).sum(1).mean()))

        for value in np.unique(held.label[~held.is_rare]):
            own = (held.label == value) & ~held.is_rare
            yield (
                f"| {name} | {value} | {own.sum():,} | {own.mean():.0%} | "
                f"{spread(own) / spread(~held.is_rare):.2f} | "
                f"{flagged[own].mean() / flagged.mean():.2f} |"
            )
    yield ""


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


def injected(sets: dict[str, Held]) -> Iterator[str]:
    """A common class spread twice as wide about its mean, and exact copies of a rare image."""
    yield "### Injected into the embeddings: a common class twice as wide, a rare image 20 times"
    yield ""
    yield "| set | score | lift of the widened class, before | after | 20 copies still flagged |"
    yield "|---|---|---|---|---|"
    scorers: dict[str, Callable[[], Any]] = {
        "default": FusedDistance,
        "KNNDistance(10)": lambda: KNNDistance(10),
        "ClusterMass()": ClusterMass,
    }
    for name, held in sets.items():
        rows, is_rare, label = held.rows, held.is_rare, held.label
        if label is None:
            continue
        values, counts = np.unique(label[~is_rare], return_counts=True)
        largest = values[counts.argmax()]
        own = torch.from_numpy((label == largest) & ~is_rare)
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
    side = image.shape[0]
    if kind == "blurred":
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(max(side / 12, 1.5))))
    if kind == "noisy":
        return np.clip(image + rng.normal(0, 60, image.shape), 0, 255).astype(np.uint8)
    if kind == "garbled":
        return garbled(picture, rng)
    if kind == "compressed":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=3)
        return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    if kind == "cut out":
        cut, width = image.copy(), 2 * side // 3
        top, left = rng.integers(0, side - width + 1, 2)
        cut[top : top + width, left : left + width] = 0
        return cut
    if kind == "grey":
        return np.clip(128 + (image.astype(float) - 128) * 0.08, 0, 255).astype(np.uint8)
    return np.clip(rng.normal(3, 3, image.shape), 0, 255).astype(np.uint8)


def garbled(picture: Any, rng: Any) -> Any:
    """Some bytes of the JPEG file changed, as it still decodes."""
    from PIL import Image

    file = io.BytesIO()
    picture.resize((128, 128)).save(file, "JPEG", quality=30)
    while True:
        content = bytearray(file.getvalue())
        for place in rng.integers(len(content) // 3, len(content) - 2, 12):
            content[place] = rng.integers(0, 255)
        try:
            decoded = Image.open(io.BytesIO(bytes(content))).convert("RGB")
        except (OSError, SyntaxError):
            continue
        return np.asarray(decoded.resize(picture.size))


KINDS = ("blurred", "noisy", "garbled", "compressed", "cut out", "grey", "black")
FAULTY = 0.03
IMAGES = 4000


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


SCORERS: dict[str, Callable[[], Any]] = {
    "default": FusedDistance,
    "KNNDistance(10)": lambda: KNNDistance(10),
    "NoiseGate(FusedDistance())": lambda: NoiseGate(FusedDistance()),
}


def faults(folder: Path) -> Iterator[str]:
    """3 % of the images spoilt and embedded again: their share among the 5 % flagged."""
    model = encoder(folder / "mobilenet_v2_imagenet.pt")
    with np.load(folder / "cifar10_lt.npz") as held:
        pictures = {"camvid_crops": crops(folder), "cifar10_lt_embeddings": list(held["images"])}
    copies = []
    yield "### 3 % of the images spoilt: their share among the 5 % flagged, over 3 %"
    yield ""
    yield f"Of {IMAGES:,} images. At most 1.5 is asked for; *mixed* is all kinds, equally many."
    yield ""
    columns = ("mixed", *KINDS)
    yield f"| set | score | {' | '.join(columns)} | average precision, clean rows, mixed |"
    yield "|---" * (len(columns) + 3) + "|"
    for name, images in pictures.items():
        rng = np.random.default_rng(0)
        subset = np.sort(rng.choice(len(images), min(IMAGES, len(images)), replace=False))
        with np.load(folder / f"{name}.npz") as held:
            rows = torch.from_numpy(held["embedding"][subset].astype(np.float32))
            is_rare = held["is_rare"][subset].astype(bool)
        chosen = rng.choice(len(rows), round(FAULTY * len(rows)), replace=False)
        shown = [images[subset[place]] for place in chosen]
        spoilt = {kind: embed(model, [spoil(one, kind, rng) for one in shown]) for kind in KINDS}
        turns = range(len(chosen))
        spoilt["mixed"] = torch.stack([spoilt[KINDS[turn % len(KINDS)]][turn] for turn in turns])
        clean = np.ones(len(rows), bool)
        clean[chosen] = False
        for described, make in SCORERS.items():
            cells, precision = [], 0.0
            for column in columns:
                changed = rows.clone()
                changed[torch.from_numpy(chosen)] = spoilt[column]
                scores = fitted(make)(changed)
                top = np.argsort(-scores, kind="stable")[: round(0.05 * len(scores))]
                cells.append(f"{(~clean[top]).mean() / FAULTY:.2f}")
                if column == "mixed":
                    precision = average_precision(scores[clean], is_rare[clean])
            yield f"| {name} | {described} | {' | '.join(cells)} | {precision:.3f} |"
        copies += list(near_copies(name, model, [images[i] for i in subset], rows, is_rare))
    yield ""
    yield "### 19 near copies of a rare image: crops of 90 to 97 % of its side, saved as JPEG"
    yield ""
    yield "| set | score | of the 5 rarest rare images still flagged at 5 % |"
    yield "|---|---|---|"
    yield from copies
    yield ""


def near_copies(
    name: str, model: Any, images: list[Any], rows: Tensor, is_rare: Any
) -> Iterator[str]:
    rng = np.random.default_rng(1)
    for described in ("default", "KNNDistance(10)"):
        score = fitted(SCORERS[described])
        plain = score(rows)
        kept = 0
        for row in np.flatnonzero(is_rare)[plain[is_rare].argsort()[::-1][:5]].tolist():
            added = embed(model, [slightly_changed(images[row], rng) for _ in range(19)])
            scores = score(torch.cat([rows, added]))
            kept += int(scores[row] > np.quantile(scores, 0.95))
        yield f"| {name} | {described} | {kept} of 5 |"


def slightly_changed(image: Any, rng: Any) -> Any:
    from PIL import Image

    height, width = image.shape[:2]
    kept = rng.uniform(0.9, 0.97)
    top, left = (int(rng.integers(0, side - int(kept * side) + 1)) for side in (height, width))
    cut = image[top : top + int(kept * height), left : left + int(kept * width)]
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--faults", action="store_true", help="also spoil images")
    given = parser.parse_args()
    sets = read(given.data)
    if not sets:
        raise SystemExit(f"no .npz with embedding and is_rare in {given.data}")
    lines = list(compare(sets))
    if given.faults:
        lines += faults(given.data)
    print("\n".join(lines))
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
