"""Measures how well rare objects are found in driving frames, beside what one would use instead; a script.

    python tests/benchmarks/bench_driving.py --data FOLDER --cache regions.npz --out driving-table.md

FOLDER holds ``camvid/`` (frames and masks), ``camvid_crops.npz`` (embedded crops of objects and of
windows) and ``mobilenet_v2_imagenet.pt`` (the encoder that embedded them). Nobody sees a label but the
probes that say what the embeddings hold. Everybody runs with default settings; ``pip install
raremix[bench]`` brings the peers. Embedding the windows of the frames takes some ten minutes on two
cores, once: the cache keeps them.

Crops: everybody fits on some frames and scores the crops of others, in five parts of each sequence or
sequence by sequence. Frames, too, are scored by what was fitted to other ones; these are collections in which few frames hold an object of a class, drawn so that
no two frames lie within two seconds, since a frame that has its likeness beside it looks common to most
scores and unusual to none. What RegionDetector does by default was chosen on the sequence 0016E5; the
other two are held out.
"""

import argparse
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_quality import encoder
from torch import Tensor

from raremix.data.camvid import read_camvid
from raremix.data.frames import Frames
from raremix.detection import (
    FlagRate,
    FusedDistance,
    KNNDistance,
    Mahalanobis,
    MeanDistance,
    OODDetector,
)
from raremix.evaluation import auroc, average_precision
from raremix.regions import CropEncoder, RegionDetector, Regions
from raremix.regions.labels import label_crops_by_mask, rare_in_frame

Fitted = Callable[[Tensor], Any]
"""Scores of other rows than those that were fitted to."""
Method = Callable[[Tensor], Fitted]

ORIGINAL = "the original: cosine distance to the mean"
OURS = "**raremix default**"
APART = 2.0  # seconds; nearer frames of a sequence show the same
DEVELOPED_ON = "0016E5"
HELD_OUT = ("0001TP", "0006R0")
PARTS = {
    "held-out": (f"Held out: {' and '.join(HELD_OUT)}", HELD_OUT),
    "developed-on": (f"Developed on: {DEVELOPED_ON}", (DEVELOPED_ON,)),
    "all": ("All three", (*HELD_OUT, DEVELOPED_ON)),
}
RESAMPLES = 1000
DRAWS = 20
FRAME_CLASSES = ("bicyclist", "pedestrian", "fence", "sign_symbol")
SHARE = 0.06  # of the frames of a collection hold the object
BUDGET = 0.10
CLEAR = (40, 600)  # pixels, of an object that a frame is said to hold: longest side, area
ABSENT = (24, 150)  # a frame without has none as large as this


# ------------------------------------------------------------------ who is compared


def ours(make: Callable[[], Any]) -> Method:
    def fit(rows: Tensor) -> Fitted:
        detector = OODDetector(make())
        detector.fit(rows)
        return lambda others: detector.score(others).numpy()

    return fit


def pyod(make: Any, options: dict[str, int], rows: Tensor) -> Fitted:
    detector = make(**options).fit(rows.numpy())
    return lambda others: detector.decision_function(others.numpy())


def pytorch_ood(make: Any, rows: Tensor) -> Fitted:
    detector = make(len(rows))
    detector.fit_features(rows, torch.zeros(len(rows), dtype=torch.int64))
    return lambda others: np.asarray(detector.predict_features(others))


def cleanlab(make: Any, rows: Tensor) -> Fitted:
    detector = make()
    detector.fit(features=rows.numpy(), verbose=False)
    return lambda others: -detector.score(features=others.numpy())


def patchcore(rows: Tensor) -> Fitted:
    """A bank of a tenth of the rows, greedily spread, and the distance to the nearest of them.

    anomalib's recipe (``KCenterGreedy`` with ``coreset_sampling_ratio=0.1`` and one neighbour), on
    the rows given.
    """
    centred = rows - rows.mean(dim=0)
    # Its own chooses in a random projection, for speed; this one in the rows themselves.
    chosen = [0]
    nearest = (centred - centred[0]).square().sum(dim=1)
    for _ in range(max(round(0.1 * len(rows)), 1) - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (centred - centred[chosen[-1]]).square().sum(dim=1))
    bank = rows[chosen]
    return lambda others: torch.cdist(others, bank).amin(dim=1).numpy()


def methods() -> dict[str, Method]:
    found: dict[str, Method] = {
        OURS: ours(FusedDistance),
        "raremix KNNDistance(10)": ours(lambda: KNNDistance(10)),
        ORIGINAL: ours(lambda: MeanDistance(metric="cosine")),
        "Euclidean distance to the mean": ours(MeanDistance),
    }
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
            found[f"PyOD {name}"] = functools.partial(pyod, make, options)
    try:
        from pytorch_ood.detector import KNN as OODKNN
        from pytorch_ood.detector import Mahalanobis as OODMahalanobis
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    else:
        # Its default of 50 neighbours is more than some collections of frames have.
        found["pytorch-ood KNN"] = functools.partial(
            pytorch_ood, lambda rows: OODKNN(None, k=min(50, rows // 2))
        )
        found["pytorch-ood Mahalanobis"] = functools.partial(
            pytorch_ood, lambda rows: OODMahalanobis(None)
        )
    try:
        from cleanlab.outlier import OutOfDistribution
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    else:
        found["cleanlab OutOfDistribution"] = functools.partial(cleanlab, OutOfDistribution)
    found["PatchCore's bank (anomalib's recipe)"] = patchcore
    return found


def scored(method: Method, rows: Tensor, parts: Any) -> Any:
    """Scores of all rows, each part by what was fitted to the other parts."""
    scores = np.full(len(rows), np.nan)
    for part in np.unique(parts):
        own = parts == part
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores[own] = method(rows[torch.from_numpy(~own)])(rows[torch.from_numpy(own)])
    # A peer may give NaN; it then says nothing, which counts as common.
    return np.nan_to_num(scores, nan=-np.inf)


# ------------------------------------------------------------------ intervals


def redrawn(groups: Any, resamples: int = RESAMPLES) -> Iterator[Any]:
    """Weights of the samples, whole groups drawn with replacement."""
    names, place = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        yield np.bincount(drawn, minlength=len(names))[place]


def weighted_precision(scores: Any, is_rare: Any, weights: Any) -> float:
    order = np.argsort(-scores, kind="stable")
    flagged = weights[order].cumsum()
    rare = (weights * is_rare)[order]
    return float((rare * (rare.cumsum() / np.maximum(flagged, 1))).sum() / rare.sum())


def weighted_recall(scores: Any, is_rare: Any, weights: Any, budget: float) -> float:
    """Share of the rare among a share of the samples, over that share: 1 is chance."""
    order = np.argsort(-scores, kind="stable")
    total = weights.sum()
    # The last sample counts for what is left of the budget, so that small sets are not rounded down.
    spent = np.clip(budget * total - (weights[order].cumsum() - weights[order]), 0, weights[order])
    return float((spent * is_rare[order]).sum() / (weights * is_rare).sum() / budget)


def bracket(values: Any) -> str:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]"


# ------------------------------------------------------------------ crops


def f1_at(scores: Any, is_rare: Any, rate: float) -> float:
    flagged = np.argsort(-scores, kind="stable")[: int(rate * len(scores))]
    return float(2 * is_rare[flagged].sum() / (len(flagged) + is_rare.sum()))


def crops(folder: Path) -> Iterator[str]:
    """The table of crops."""
    with np.load(folder / "camvid_crops.npz", allow_pickle=False) as held:
        rows = torch.from_numpy(held["embedding"].astype(np.float32))
        is_rare, frame = held["is_rare"].astype(bool), held["frame"]
        label, class_names = held["label"], held["class_names"]
        names = held["frame_names"]
    sequence = np.array([str(name)[:6] for name in names])[frame]
    # Five stretches of each sequence; at their ends frames meet that are a second apart.
    fifth = np.zeros(len(frame), dtype=int)
    for one in np.unique(sequence):
        own = sequence == one
        places = np.unique(frame[own], return_inverse=True)[1]
        fifth[own] = places * 5 // (places.max() + 1)
    contenders = methods()
    tables = {"fifths": fifth, "sequences": np.unique(sequence, return_inverse=True)[1]}
    found = {
        way: {name: scored(method, rows, parts) for name, method in contenders.items()}
        for way, parts in tables.items()
    }
    yield "### Crops"
    yield ""
    yield (
        f"{len(rows):,} crops of {len(names)} frames, {is_rare.sum()} of them rare ({is_rare.mean():.1%}: "
        f"{', '.join(class_names[c] for c in np.unique(label[is_rare]))}). Brackets: 95 %, frames redrawn."
    )
    yield ""
    for way, told in (
        ("fifths", "Each fifth of a sequence scored by the other four"),
        ("sequences", "Each sequence scored by the other two"),
    ):
        scores = found[way]
        drawn: dict[str, list[float]] = {name: [] for name in scores}
        for weights in redrawn(frame):
            for name, values in scores.items():
                drawn[name].append(weighted_precision(values, is_rare, weights))
        yield f"#### {told}"
        yield ""
        yield "| | AUROC | AP | over the original | F1 at 1 / 5 / 10 % flagged | over the original |"
        yield "|---|---|---|---|---|---|"
        rates = (0.01, 0.05, 0.1)
        base = [f1_at(scores[ORIGINAL], is_rare, rate) for rate in rates]
        for name, values in scores.items():
            precision = average_precision(values, is_rare)
            ratio = np.array(drawn[name]) / np.array(drawn[ORIGINAL])
            over = precision / average_precision(scores[ORIGINAL], is_rare)
            f1 = [f1_at(values, is_rare, rate) for rate in rates]
            times = [a / b if b else float("inf") for a, b in zip(f1, base, strict=True)]
            yield (
                f"| {name} | {auroc(values, is_rare):.2f} | {precision:.3f} {bracket(drawn[name])} | "
                f"{over:.2f} {bracket(ratio)} | {' / '.join(f'{v:.3f}' for v in f1)} | "
                f"{' / '.join(f'{v:.1f}' for v in times)} |"
            )
        best = [
            2 * min(int(r * len(rows)), is_rare.sum()) / (int(r * len(rows)) + is_rare.sum())
            for r in rates
        ]
        yield f"| the best any ranking could do | 1 | 1 | | {' / '.join(f'{v:.3f}' for v in best)} | |"
        yield ""
    yield from fixed_threshold(found["fifths"], is_rare)
    yield from probed(rows, is_rare, tables)


def fixed_threshold(scores: dict[str, Any], is_rare: Any) -> Iterator[str]:
    """The original with the thresholds it was published with, and others at its flag rate."""
    yield "#### The original's fixed thresholds, as distances between unit vectors"
    yield ""
    yield "| threshold | flagged | precision | recall | F1 | F1 of raremix at that rate | best F1 there |"
    yield "|---|---|---|---|---|---|---|"
    for threshold in (0.8, 0.99):
        flagged = scores[ORIGINAL] > threshold
        count, hit = int(flagged.sum()), int((flagged & is_rare).sum())
        rate = count / len(is_rare)
        f1 = 2 * hit / (count + is_rare.sum())
        same = f1_at(scores[OURS], is_rare, rate + 1e-9)
        best = 2 * min(count, is_rare.sum()) / (count + is_rare.sum())
        yield (
            f"| {threshold} | {rate:.2%} | {hit / max(count, 1):.3f} | {hit / is_rare.sum():.3f} | "
            f"{f1:.3f} | {same:.3f} | {best:.3f} |"
        )
    yield ""


def probed(rows: Tensor, is_rare: Any, tables: dict[str, Any]) -> Iterator[str]:
    """What a probe that sees the labels of the other parts makes of the same embeddings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def probe(fitted: Any, known: Any) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        return model.fit(fitted, known)

    yield "#### The ceiling: a linear probe with labels, trained on the other parts"
    yield ""
    yield "| parts | AUROC | AP |"
    yield "|---|---|---|"
    for way, parts in tables.items():
        values = np.zeros(len(rows))
        for part in np.unique(parts):
            own = parts == part
            values[own] = probe(rows.numpy()[~own], is_rare[~own]).decision_function(
                rows.numpy()[own]
            )
        yield f"| {way} | {auroc(values, is_rare):.2f} | {average_precision(values, is_rare):.3f} |"
    yield ""


# ------------------------------------------------------------------ frames


@dataclass(frozen=True)
class Collection:
    """Frames among which few hold an object of one class."""

    name: str
    frames: Any  # ascending rows of the whole set
    is_rare: Any


def windows_of(folder: Path) -> CropEncoder:
    """What embeds windows, by the encoder of the folder."""
    model = encoder(folder / "mobilenet_v2_imagenet.pt")
    pooled = torch.nn.Sequential(model.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())  # type: ignore[arg-type]
    half = (0.5, 0.5, 0.5)
    return CropEncoder(pooled, mean=half, std=half)


def embedded(folder: Path, frames: Frames, cache: Path | None) -> Regions:
    """The windows of all frames; half precision in the cache."""
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as held:
            parts = {name: torch.from_numpy(held[name]) for name in held.files}
        parts["embeddings"] = parts["embeddings"].float()
        return Regions(**parts)
    embed = windows_of(folder)
    found = []
    for pixels, id in frames:  # type: ignore[attr-defined]
        found.append(embed(pixels[None], [id]))
        if id % 20 == 0:
            print(f"embedded {id} of {len(frames)} frames", file=sys.stderr, flush=True)
        if id == len(frames) - 1:
            break
    regions = Regions.joined(found)
    if cache is not None:
        columns = {name: getattr(regions, name).numpy() for name in Regions.__dataclass_fields__}
        columns["embeddings"] = columns["embeddings"].astype(np.float16)
        np.savez(cache, **columns)
    return regions


def held_objects(frames: Frames) -> tuple[Any, Any, list[str]]:
    """Which frames clearly hold an object of a class, and which have none; (frames, classes)."""
    ids = {name: id for id, name in frames.class_names.items()}
    rare = [ids[name] for name in FRAME_CLASSES]
    counted: dict[tuple[int, int], list[Any]] = {CLEAR: [], ABSENT: []}
    for id in range(len(frames)):
        mask = frames.mask(id)
        assert mask is not None
        for (side, area), rows in counted.items():
            found = rare_in_frame(mask, rare=rare, least_side=side, least_area=area)
            rows.append([found.counted[found.classes.index(own)] for own in rare])
    return np.array(counted[CLEAR]) > 0, np.array(counted[ABSENT]) == 0, list(FRAME_CLASSES)


def collections(
    frames: Frames, kept: Any, draws: int, *, crowded: bool = False
) -> list[Collection]:
    """Collections of frames at least ``APART`` seconds from each other, for each class.

    If ``crowded``, only those that hold an object are, and all others are there.
    """
    moments, window = frames.moments(APART)
    near = np.abs(moments[:, None] - moments[None]) <= window
    clear, absent, names = held_objects(frames)
    found = []
    for column, name in enumerate(names):
        some = np.flatnonzero(clear[:, column] & kept)
        none = np.flatnonzero(absent[:, column] & kept)
        for draw in range(draws):
            generator = np.random.default_rng([draw, column])
            # Rare frames are set first, as there are few; then as many others as fit between.
            rare = apart(generator.permutation(some), near, [])
            rare = rare[: max(3, round(SHARE * len(none) / (1 - SHARE)))]
            common = none.tolist() if crowded else apart(generator.permutation(none), near, rare)
            rare = rare[: max(3, round(SHARE * len(common) / (1 - SHARE)))]
            chosen = np.sort(np.array(rare + common))
            found.append(Collection(name, chosen, np.isin(chosen, rare)))
    return found


def apart(order: Any, near: Any, taken: Sequence[int]) -> list[int]:
    chosen: list[int] = []
    for row in order.tolist():
        if not near[row, [*taken, *chosen]].any():
            chosen.append(row)
    return chosen


def by_frames(regions: Regions, all_methods: dict[str, Method]) -> dict[str, Callable[[Any], Any]]:
    """Scores of the frames of a collection, given as rows of the set."""

    def scene(method: Method, rows: Any) -> Any:
        scenes = regions.scenes[torch.from_numpy(rows)]
        return scored(method, scenes, np.arange(len(rows)) % 5)

    def objects(rows: Any) -> Any:
        detector = RegionDetector(scene=OODDetector(KNNDistance(1)))
        return detector.fit(regions.of_frames(torch.from_numpy(rows))).object_scores.numpy()

    def cores(rows: Any) -> Any:
        """PatchCore over the same windows: the others' coreset, and the frame's farthest window."""
        part = regions.of_frames(torch.from_numpy(rows))
        chosen = spread(part.embeddings, max(round(0.1 * len(part)), 1))
        bank, of = part.embeddings[chosen], part.frame[chosen]
        apart = torch.cdist(part.embeddings, bank)
        apart[part.frame[:, None] == of[None]] = torch.inf
        nearest = apart.amin(dim=1)
        return torch.stack([nearest[part.frame == row].max() for row in range(len(rows))]).numpy()

    found: dict[str, Callable[[Any], Any]] = {"**raremix object score**": objects}
    found["PatchCore over the same windows"] = cores
    for name, method in all_methods.items():
        if not name.startswith("PatchCore"):
            found[f"frame: {name}"] = functools.partial(scene, method)
    return found


def spread(rows: Tensor, count: int) -> Tensor:
    """Rows chosen greedily so that none is far from a chosen one, in a random projection."""
    generator = torch.Generator().manual_seed(0)
    flat = rows @ torch.randn(rows.shape[1], 64, generator=generator)
    chosen = [0]
    nearest = (flat - flat[0]).square().sum(dim=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (flat - flat[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen)


def segments(frames: Frames) -> Any:
    """(n,) which stretch of ten seconds each frame is of: what is redrawn for intervals."""
    clips = np.unique(frames.clips, return_inverse=True)[1]
    return clips * 100_000 + (frames.times // 10).astype(int)


def frame_tables(
    folder: Path, cache: Path | None, draws: int, parts: Sequence[str]
) -> Iterator[str]:
    """The tables of frames, one for each part."""
    frames = read_camvid(folder / "camvid")
    regions = embedded(folder, frames, cache)
    sequence = np.array(frames.clips)
    groups = segments(frames)
    yield "### Frames"
    yield ""
    yield (
        f"Collections in which {SHARE:.0%} of the frames (at least 3) hold an object of a class of at least "
        f"{CLEAR[0]} pixels and the others none of {ABSENT[0]}; all frames "
        f"{APART:g} s apart; {draws} draws for each class. Recall of those frames at a budget of "
        f"{BUDGET:.0%}, over chance. Brackets: 95 %, stretches of ten seconds redrawn."
    )
    yield ""
    for part in parts:
        told, chosen = PARTS[part]
        kept = np.isin(sequence, chosen)
        sets = collections(frames, kept, draws)
        sizes = [len(one.frames) for one in sets]
        print(told, len(sets), "collections", file=sys.stderr, flush=True)
        scores = {}
        for name, score in by_frames(regions, methods()).items():
            scores[name] = [score(one.frames) for one in sets]
            print(name, file=sys.stderr, flush=True)
        scores["ceiling: probe with labels on windows"] = probed_frames(frames, regions, sets, kept)
        yield f"#### {told}: {min(sizes)} to {max(sizes)} frames a collection"
        yield ""
        yield from one_frame_table(sets, scores, groups)
    if "held-out" in parts:
        yield from trap(frames, regions)


def trap(frames: Frames, regions: Regions, draws: int = 10) -> Iterator[str]:
    """How a score that only sees that a frame is alone passes for one that sees objects."""
    moments, window = frames.moments(APART)
    held_out = np.isin(frames.clips, HELD_OUT)

    def covariance(rows: Any) -> Any:
        return Mahalanobis().fit(regions.scenes[torch.from_numpy(rows)]).numpy()

    def objects(rows: Any) -> Any:
        detector = RegionDetector(id_window=window, scene=OODDetector(KNNDistance(1)))
        part = regions.of_frames(torch.from_numpy(rows))
        return detector.fit(part, moments[rows]).object_scores.numpy()

    yield "#### Frames without their likeness beside them"
    yield ""
    yield (
        "Held out sequences; the rare frames are alone, and the others either have their neighbours of a second "
        "before and after beside them or are alone, too. Nothing else differs."
    )
    yield ""
    yield "| recall at 10 %, over chance | neighbours beside | alone |"
    yield "|---|---|---|"
    for told, score in (
        ("frame: raremix Mahalanobis, fitted to all", covariance),
        ("raremix object score, id_window=2 s", objects),
    ):
        cells = []
        for crowded in (True, False):
            sets = collections(frames, held_out, draws, crowded=crowded)
            found = [
                weighted_recall(score(one.frames), one.is_rare, np.ones(len(one.frames)), BUDGET)
                for one in sets
            ]
            cells.append(f"{np.mean(found):.2f}")
        yield f"| {told} | {' | '.join(cells)} |"
    yield ""


def one_frame_table(
    sets: list[Collection], scores: dict[str, list[Any]], groups: Any
) -> Iterator[str]:
    names = list(dict.fromkeys(one.name for one in sets))
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    point: dict[str, Any] = {}

    def lifts(values: list[Any], weights: Any) -> Any:
        found: dict[str, list[float]] = {name: [] for name in names}
        for one, own in zip(sets, values, strict=True):
            mine = weights[one.frames]
            if (mine * one.is_rare).sum():
                found[one.name].append(weighted_recall(own, one.is_rare, mine, BUDGET))
        return np.array([np.mean(lift) if lift else np.nan for lift in found.values()])

    everyone = np.ones(len(groups))
    for name, values in scores.items():
        precision = [
            average_precision(own, one.is_rare) / one.is_rare.mean()
            for one, own in zip(sets, values, strict=True)
        ]
        point[name] = (lifts(values, everyone), np.mean(precision))
    for weights in redrawn(groups):
        for name, values in scores.items():
            drawn[name].append(float(np.nanmean(lifts(values, weights))))
    yield f"| | {' | '.join(names)} | mean | AP over chance |"
    yield "|---" * (len(names) + 3) + "|"
    for name in sorted(scores, key=lambda name: -point[name][0].mean()):
        by_class, precision = point[name]
        cells = " | ".join(f"{lift:.2f}" for lift in by_class)
        yield f"| {name} | {cells} | {by_class.mean():.2f} {bracket(drawn[name])} | {precision:.2f} |"
    yield ""
    mine = "**raremix object score**"
    whole = [name for name in scores if name.startswith("frame:")]
    best = max(whole, key=lambda name: point[name][0].mean())
    ratio = np.array(drawn[mine]) / np.array(drawn[best])
    yield (
        f"The best score of whole frames is {best.removeprefix('frame: ')}; the object score finds "
        f"{point[mine][0].mean() / point[best][0].mean():.2f} {bracket(ratio)} times as many."
    )
    yield ""


def probed_frames(frames: Frames, regions: Regions, sets: list[Collection], kept: Any) -> list[Any]:
    """Object scores by a probe that has seen the labels of windows of the other sequences.

    For "all three" and the sequence developed on, it is trained on frames outside of each collection
    that are more than two seconds from it.
    """
    from sklearn.linear_model import LogisticRegression

    ids = {name: id for id, name in frames.class_names.items()}
    held: dict[str, Any] = {name: np.zeros(len(regions), dtype=bool) for name in FRAME_CLASSES}
    for id in range(len(frames)):
        own = (regions.frame == id).numpy()
        mask = frames.mask(id)
        assert mask is not None
        for name in FRAME_CLASSES:
            found = label_crops_by_mask(regions.boxes[own].numpy(), mask, rare=[ids[name]])
            held[name][own] = found.is_rare
    rows = regions.embeddings
    mean, spread = rows[::7].mean(dim=0), rows[::7].std(dim=0) + 1e-6
    basis = torch.pca_lowrank((rows[::7] - mean) / spread, q=128)[2]
    flat = (((rows - mean) / spread) @ basis).numpy()
    of = regions.frame.numpy()
    moments, window = frames.moments(APART)
    scores = []
    for one in sets:
        gap = np.abs(moments[:, None] - moments[one.frames][None]).min(axis=1)
        other = gap > window
        fitted = np.isin(of, np.flatnonzero(other))
        known = held[one.name][fitted]
        if not known.any():
            scores.append(np.zeros(len(one.frames)))
            continue
        # All windows with the object, and every tenth without.
        take = known | (np.arange(len(known)) % 10 == 0)
        model = LogisticRegression(C=0.1, max_iter=500)
        model.fit(flat[fitted][take], known[take])
        logits = model.decision_function(flat)
        scores.append(
            np.array([np.sort(logits[of == frame])[::-1][:3].mean() for frame in one.frames])
        )
    return scores


# ------------------------------------------------------------------ object or scene


def altered(pixels: Tensor, kind: str, patch: Tensor, draw: int) -> Tensor:
    """A frame with a strange object in it, or turned to night or fog, or both."""
    generator = np.random.default_rng([7, draw])
    image = pixels.float()
    if kind in ("object", "both"):
        side = int(generator.integers(64, 112))
        height, width = image.shape[1:]
        left = int(generator.integers(0, width - side))
        top = int(generator.integers(height // 3, height - side))
        large = torch.nn.functional.interpolate(patch[None].float(), (side, side), mode="bicubic")[
            0
        ]
        ramp = (torch.arange(side).minimum(side - 1 - torch.arange(side)).float() / 6).clamp(max=1)
        soft = torch.outer(ramp, ramp)
        place = image[:, top : top + side, left : left + side]
        place.copy_(soft * large + (1 - soft) * place)
    if kind in ("scene", "both"):
        if draw % 2:
            tint = torch.tensor([0.30, 0.34, 0.45]).view(3, 1, 1)
            image = 255 * (image / 255).clamp(0, 1) ** 1.8 * tint
        else:
            blurred = torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)[0]
            image = 0.35 * blurred + 0.65 * 225
    return image.clamp(0, 255).round().to(torch.uint8)


def planted(folder: Path, cache: Path | None, each: int = 8) -> Iterator[str]:
    """What is said of frames whose rarity is known, since it was put there."""
    frames = read_camvid(folder / "camvid")
    regions = embedded(folder, frames, cache)
    moments, window = frames.moments(APART)
    near = np.abs(moments[:, None] - moments[None]) <= window
    order = np.random.default_rng(3).permutation(len(frames))
    chosen = np.sort(np.array(apart(order, near, [])))
    truth = np.array(["neither"] * len(chosen), dtype=object)
    places = np.random.default_rng(4).permutation(len(chosen))
    for at, kind in enumerate(("object", "scene", "both")):
        truth[places[at * each : (at + 1) * each]] = kind
    with np.load(folder / "cifar10_lt.npz", allow_pickle=False) as held:
        names, label = held["class_names"], held["test_labels"]
        animals = np.isin(names[label], ["bird", "deer", "frog", "horse"])
        patches = torch.from_numpy(held["test_images"][animals]).permute(0, 3, 1, 2)
    embed = windows_of(folder)
    parts = []
    for draw, (row, kind) in enumerate(zip(chosen.tolist(), truth.tolist(), strict=True)):
        if kind == "neither":
            parts.append(regions.of_frames(torch.tensor([row])))
        else:
            pixels = altered(frames[row][0], kind, patches[draw * 7 % len(patches)], draw)
            parts.append(embed(pixels[None], [row]))
    whole = Regions.joined(parts)
    rate = 2 * each / len(chosen)
    scene = OODDetector(FusedDistance(), FlagRate(rate))
    found = RegionDetector(threshold=FlagRate(rate), scene=scene).fit(whole)
    kinds = np.array(found.kinds, dtype=object)
    names_ = ("object", "scene", "both", "neither")
    yield "### Object or scene"
    yield ""
    yield (
        f"{len(chosen)} frames at least {APART:g} s apart. {each} of them got an animal of CIFAR-10, 64 to 112 "
        f"pixels large; {each} were turned to night or fog; {each} both. Both budgets are the share that was "
        f"planted, {rate:.1%}."
    )
    yield ""
    yield f"| planted | frames | {' | '.join(f'called {name}' for name in names_)} |"
    yield "|---" * 6 + "|"
    for name in names_:
        own = truth == name
        yield f"| {name} | {own.sum()} | {' | '.join(str((kinds[own] == k).sum()) for k in names_)} |"
    yield ""
    yield "| AUROC against the frames left alone | of frames with an object | of rare scenes |"
    yield "|---|---|---|"
    plain = truth == "neither"
    for told, values in (
        ("object score", found.object_scores.numpy()),
        ("scene score", found.scene_scores.numpy()),
        ("the original, of whole frames", MeanDistance(metric="cosine").fit(whole.scenes).numpy()),
    ):
        cells = []
        for kind in ("object", "scene"):
            own = plain | (truth == kind)
            cells.append(f"{auroc(values[own], truth[own] == kind):.2f}")
        yield f"| {told} | {' | '.join(cells)} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="where embedded windows are kept (.npz)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--parts", default=",".join(PARTS), help="of the tables of frames")
    parser.add_argument("--only", choices=["crops", "frames", "planted"], help="one of the tables")
    arguments = parser.parse_args()
    lines: list[str] = []
    if arguments.only in (None, "crops"):
        lines += crops(arguments.data)
    if arguments.only in (None, "frames"):
        lines += frame_tables(
            arguments.data, arguments.cache, arguments.draws, arguments.parts.split(",")
        )
    if arguments.only in (None, "planted"):
        lines += planted(arguments.data, arguments.cache)
    text = "\n".join(lines)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
