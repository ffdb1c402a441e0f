r"""From a folder of frames to a page of its rare objects and rare scenes, in one command.

    python examples/driving.py frames/ --weights vit_small.pth --backbone vit_small --fps 30
    python examples/driving.py bdd100k/ --layout bdd100k --weights resnet50.pth --limit 3000
    python examples/driving.py camvid/ --layout camvid --weights mobilenet_v2.pt \
        --backbone mobilenet_v2 --same-padding --range11

It cuts windows of three sizes out of every frame (or takes the cells of one feature map, --regions
map), compares each with those of all other moments, and writes driving.html: frames with a rare
object, rare scenes, and what the rare things look most like. Labels, where the layout has them, are
used to judge, never to find. With --cache FILE.npz the embeddings are kept, so that the next page
takes seconds. Unreadable frames are passed over and listed on the page. --help lists all options.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import raremix
from raremix.data.boxes import Skipped
from raremix.data.camvid import read_camvid
from raremix.data.driving import read_bdd100k, read_cityscapes, read_folder
from raremix.data.frames import Frames
from raremix.data.writing import replacing, target_path
from raremix.embedding.backbones import BackboneName
from raremix.errors import FileFormatError, LabelError, OptionError
from raremix.evaluation import ClassJudged, Interval, evaluate_classes, rarest_of
from raremix.inputs import ArrayLike
from raremix.regions import CropEncoder, FrameDetection, MapEncoder, RegionDetector, Regions
from raremix.regions.encoding import encode_frames
from raremix.regions.labels import label_crops_by_boxes, label_crops_by_mask, rare_in_frame
from raremix.regions.neighbours import nearest_regions, rarest_moments
from raremix.reports import BarChart, Section, require_extra
from raremix.reports.driving import write_driving_report

# ----------------------------------------------------------------------------- the whole way


NO_RARE_CLASS = "no class stays under a share of {:g}; name some with --rare-classes to judge by"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except (raremix.RaremixError, OSError) as problem:
        raise SystemExit(f"driving: {problem}") from problem


def run(options: argparse.Namespace) -> None:
    require_extra()
    for path in filter(None, (options.out, options.cache)):
        target_path(path, caller="driving")
    frames = read_frames(options)
    clips = len(set(frames.clips))
    print(f"{len(frames):,} frames of {clips:,} clip{'s' * (clips != 1)} in {frames.root}")
    rare: list[int] = []
    if frames.unlabelled < len(frames):
        rare = rare_classes(frames, options)
        named = ", ".join(frames.class_names[id] for id in rare)
        print(f"rare classes: {named}" if rare else NO_RARE_CLASS.format(options.rare_share))

    # Frames near in time show the same things, so they are no evidence that these are common.
    untimed = bool(np.isnan(frames.times).any()) and clips < len(frames)
    moments, window = frames.moments(
        options.within, seconds_per_frame=options.seconds_per_frame if untimed else None
    )

    regions, skipped, cost = embedded(frames, options)
    moments = moments[regions.ids.numpy()]  # of the frames that could be read
    begun = time.perf_counter()
    detector = RegionDetector(
        threshold=raremix.FlagRate(options.rate),
        scene=raremix.OODDetector(
            raremix.FusedDistance(id_window=window), raremix.FlagRate(options.rate), smoothing=0.0
        ),
        id_window=window,
    )
    found = detector.fit(regions, moments)
    cost["scoring"] = time.perf_counter() - begun
    print(f"{len(skipped):,} frame{'s' * (len(skipped) != 1)} passed over")
    for one in skipped[:5]:
        print(f"  {one.path}: {one.reason}")

    count = len(regions.ids)
    each = ", ".join(f"{name} {1000 * seconds / count:,.0f}" for name, seconds in cost.items())
    print(f"{len(regions) / count:,.0f} regions a frame; ms a frame: {each}")
    objects, both = int(found.is_object_rare.sum()), found.kinds.count("both")
    print(f"{objects:,} frames with a rare object, {both:,} of them in a rare scene")
    print(f"{found.kinds.count('scene'):,} more rare scenes")

    judged = judge(frames, found, moments // (window + 1), rare)
    show(frames, found, moments, window, judged, skipped, each, untimed, options)


def show(
    frames: Frames,
    found: FrameDetection,
    moments: Any,
    window: int,
    judged: "Judged",
    skipped: Sequence[Skipped],
    cost: str,
    untimed: bool,
    options: argparse.Namespace,
) -> None:
    """Choose what to show, find its neighbours, and write the page."""
    objects = rarest_moments(
        found.object_scores, moments, among=found.is_object_rare, most=options.top, id_window=window
    )
    scenes = rarest_moments(
        found.scene_scores, moments, among=found.is_scene_rare, most=12, id_window=window
    )
    rows = [int(found.rare_rows(frame, most=1)[0]) for frame in objects]
    near = nearest_regions(found.regions, rows, moments, count=4, id_window=window)
    marked = [int(row) for frame in objects for row in found.rare_rows(frame)]
    beside = [other.row for found_near in near for other in found_near]
    left_out = [(str(one.path), one.reason) for one in [*frames.skipped, *skipped]]
    left_out += judged.left_out
    notes = list(judged.notes)
    count = len(found.regions.ids)
    if options.rate * count < 1:
        notes.append(
            f"A rate of {options.rate:g} of {count} frames is less than one frame, so nothing is "
            f"called rare; raise --rate above {1 / count:.2g}."
        )
    for note in notes:
        print(f"note: {note}")
    if untimed:
        notes.append(
            "The names of some frames tell no time: those of a clip were taken to be "
            f"{options.seconds_per_frame:g} s apart (--fps, --seconds-per-frame)."
        )
    place = write_driving_report(
        options.out,
        detection=found,
        frames=frames,
        title=f"Rare objects and scenes in {frames.root.name}",
        object_frames=objects,
        scene_frames=scenes,
        neighbours=dict(zip(rows, near, strict=True)),
        labels={row: judged.word(row) for row in {*marked, *beside}},
        classes=judged.classes,
        sections=judged.sections,
        left_out=left_out,
        notes=notes,
        top=options.top,
        command=options.command,
        facts={
            "encoder": f"{options.backbone}, {Path(options.weights).name}",
            "regions": f"{len(found.regions):,}, by {options.regions}",
            "same moment": f"frames of a clip within {options.within:g} s",
            "ms a frame": cost,
            "versions": f"raremix {raremix.__version__}, torch {torch.__version__}",
        },
    )
    print(f"wrote {place} ({place.stat().st_size / 1e6:.1f} MB), {len(left_out)} left out")


# ----------------------------------------------------------------------------- frames


def read_frames(options: argparse.Namespace) -> Frames:
    if options.layout == "folder":
        frames = read_folder(options.folder, fps=options.fps)
    elif options.layout == "camvid":
        frames = read_camvid(options.folder, split=options.split)
    elif options.layout == "cityscapes":
        frames = read_cityscapes(options.folder, split=options.split or "val")
    else:
        frames = read_bdd100k(options.folder, split=options.split or "val")
    if options.limit is not None and options.limit < len(frames):
        spread = np.linspace(0, len(frames) - 1, options.limit).round().astype(np.int64)
        frames = frames.subset(spread)
    return frames


# ----------------------------------------------------------------------------- embedding


def load_model(options: argparse.Namespace) -> nn.Module:
    """The encoder, as the regions need it: with its last pooling, or without."""
    model: Any
    if options.backbone == "mobilenet_v2":
        model = torchvision.models.mobilenet_v2(weights=None)
        model.classifier = nn.Identity()
        raremix.load_backbone(model, options.weights)
    else:
        model = raremix.load_dino(options.backbone, options.weights, patch_size=options.patch_size)
    if options.same_padding:
        use_same_padding(model)
    if options.regions == "map":
        if options.backbone == "mobilenet_v2":
            model = model.features
        elif options.backbone.startswith("resnet"):
            model = nn.Sequential(*list(model.children())[:-2])
    module: nn.Module = model.eval()
    return module


def use_same_padding(model: nn.Module) -> None:
    """Pad strided convolutions as TensorFlow does, which puts the odd pixel right and below."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1:
                more = [max(k - s, 0) for k, s in zip(child.kernel_size, child.stride, strict=True)]
                low = [side // 2 for side in more]
                pad = nn.ZeroPad2d((low[1], more[1] - low[1], low[0], more[0] - low[0]))
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(pad, child))


class Timed:
    """An encoder that adds up its seconds."""

    def __init__(self, encoder: CropEncoder | MapEncoder) -> None:
        self.encoder = encoder
        self.seconds = 0.0

    def __call__(self, frames: Tensor, ids: ArrayLike | Sequence[int]) -> Regions:
        begun = time.perf_counter()
        regions = self.encoder(frames, ids)
        self.seconds += time.perf_counter() - begun
        return regions


def embedded(
    frames: Frames, options: argparse.Namespace
) -> tuple[Regions, list[Skipped], dict[str, float]]:
    """The regions of all frames, what was passed over, and the seconds it took."""
    begun = time.perf_counter()
    if options.cache and Path(options.cache).exists():
        regions, skipped = read_cache(frames, options)
        return regions, skipped, {"reading the cache": time.perf_counter() - begun}
    constants = {"mean": options.mean, "std": options.std}
    if options.range11:
        constants = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    given = {name: value for name, value in constants.items() if value is not None}
    model = load_model(options).to(options.device)
    encoder = Timed(
        CropEncoder(model, crop_size=options.crop_size, **given)
        if options.regions == "crops"
        else MapEncoder(model, height=options.height, **given)
    )
    begun = time.perf_counter()
    regions, skipped = encode_frames(
        frames, encoder, dtype=torch.float16, max_memory=int(options.max_gib * 2**30)
    )
    # What is read while the frame before is embedded costs nothing.
    waited = time.perf_counter() - begun - encoder.seconds
    if options.cache:
        write_cache(frames, regions, skipped, options)
    return regions, skipped, {"reading": waited, "embedding": encoder.seconds}


# ----------------------------------------------------------------------------- the cache

COLUMNS = ("embeddings", "boxes", "scale", "frame", "scenes", "ids", "sizes")


def fingerprint(frames: Frames, options: argparse.Namespace) -> str:
    """What the embeddings depend on: every setting of the encoder, its weights, and the frames."""
    names = ("backbone", "patch_size", "same_padding", "mean", "std", "range11", "regions")
    settings = {name: getattr(options, name) for name in (*names, "crop_size", "height")}
    settings["weights"] = hashlib.sha256(Path(options.weights).read_bytes()).hexdigest()
    listed = "\n".join(f"{one.name} {one.path.stat().st_size}" for one in frames.frames)
    settings["frames"] = hashlib.sha256(listed.encode()).hexdigest()
    return json.dumps(settings, sort_keys=True)


def write_cache(
    frames: Frames, regions: Regions, skipped: Sequence[Skipped], options: argparse.Namespace
) -> None:
    with replacing(options.cache, caller="driving") as part, open(part, "wb") as file:
        np.savez(
            file,
            made_with=np.array(fingerprint(frames, options)),
            skipped=np.array(
                [[str(one.path), one.reason] for one in skipped] or np.empty((0, 2), str)
            ),
            **{name: getattr(regions, name).numpy() for name in COLUMNS},
        )


def read_cache(frames: Frames, options: argparse.Namespace) -> tuple[Regions, list[Skipped]]:
    try:
        with open(options.cache, "rb") as file, np.load(file, allow_pickle=False) as held:
            made_with = str(held["made_with"])
            columns = {name: torch.from_numpy(held[name]) for name in COLUMNS}
            skipped = [Skipped(Path(path), reason) for path, reason in held["skipped"].tolist()]
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise FileFormatError(
            f"{options.cache} is no cache of this example ({error}); remove it, or name another."
        ) from error
    wanted = fingerprint(frames, options)
    if made_with != wanted:
        before, now = json.loads(made_with), json.loads(wanted)
        others = ", ".join(name for name in now if now[name] != before.get(name))
        raise OptionError(
            f"{options.cache} was made with other {others}; remove it, or name another --cache."
        )
    return Regions(**columns), skipped


# ----------------------------------------------------------------------------- labels


@dataclass
class Judged:
    """What the labels say of the regions, and how well they were found."""

    words: dict[int, str]
    label: Any  # (n,) class of each region, -1 where there is none
    classes: dict[str, Sequence[ClassJudged]]
    sections: list[Section]
    notes: list[str]
    left_out: list[tuple[str, str]]

    def word(self, row: int) -> str:
        """The class of a region."""
        return self.words.get(int(self.label[row]), "")


def judge(frames: Frames, found: FrameDetection, stretches: Any, rare: list[int]) -> Judged:
    """Label regions and frames, and count what was found of each rare class."""
    regions = found.regions
    label = np.full(len(regions), -1)
    nothing = Judged(frames.class_names, label, {}, [], [], [])
    if not rare:
        return nothing
    rare_class = np.full(len(regions), -1)
    is_judged = np.zeros(len(regions), dtype=bool)
    counted = np.zeros((len(regions.ids), len(rare)), dtype=np.int64)
    unsure = np.ones((len(regions.ids), len(rare)), dtype=np.int64)  # until labels say otherwise
    rules: dict[str, Any] = {"rare": rare, "names": frames.class_names}
    for row, id in enumerate(regions.ids.tolist()):
        try:
            mask = frames.mask(id)
        except (FileFormatError, LabelError) as error:
            nothing.left_out.append((f"the labels of {frames.frames[id].name}", str(error)))
            continue
        objects = frames.objects(id)
        own = found.rows_of(row).numpy()
        boxes, size = regions.boxes[own].numpy(), tuple(regions.sizes[row].tolist())
        if mask is not None:
            crops = label_crops_by_mask(boxes, mask, size=size, **rules)
            whole = rare_in_frame(mask, size=size, **rules)
        elif objects is not None:
            crops = label_crops_by_boxes(boxes, objects, size, **rules)
            whole = rare_in_frame(objects, size=size, **rules)
        else:
            continue
        rare_class[own], is_judged[own] = crops.rare_class, ~crops.is_ignored
        label[own] = np.where(crops.is_rare, crops.rare_class, crops.dominant)
        order = [whole.classes.index(id) for id in rare]
        counted[row], unsure[row] = whole.counted[order], whole.unsure[order]

    names = [frames.class_names[id] for id in rare]
    holds = rare_class[:, None] == np.array(rare)
    is_judged &= torch.isfinite(found.region_scores).numpy()
    # A frame of which nobody knows whether it holds a rare object is not judged.
    is_known = ((counted > 0) | (unsure == 0)).all(axis=1)
    is_known &= torch.isfinite(found.object_scores).numpy()
    is_known &= torch.isfinite(found.scene_scores).numpy()
    classes: dict[str, Sequence[ClassJudged]] = {}
    try:
        if not is_judged.any() or not is_known.any():
            raise LabelError("no frame that was read has labels.")
        classes["Regions, by their own score (in groups: frames)"] = evaluate_classes(
            found.region_scores.numpy()[is_judged],
            holds[is_judged],
            names=names,
            groups=regions.frame.numpy()[is_judged],
            resamples=200,
        )
        for kind, scores in (("object", found.object_scores), ("scene", found.scene_scores)):
            classes[f"Frames, by their {kind} score (in groups: moments)"] = evaluate_classes(
                scores.numpy()[is_known],
                counted[is_known] > 0,
                names=names,
                groups=stretches[is_known],
                against="all",
            )
    except LabelError as error:
        nothing.notes.append(f"The labels could not be used to judge: {error}")
        return nothing
    for title, rows in classes.items():
        print(title)
        for judged in rows:
            shares = ", ".join(
                f"{at.recall:.0%} (at best {at.best_recall:.0%}) at {at.rate:.0%}"
                for at in judged.rates
            )
            print(f"  {judged.name}: {judged.count:,} of {judged.samples:,}; found {shares}")
    by_object, by_scene = list(classes.values())[1:]
    section = Section(
        "Does the object score see what the scene score does not?", [_chart(by_object, by_scene)]
    )
    return Judged(frames.class_names, label, classes, [section], [], nothing.left_out)


def _chart(by_object: Sequence[ClassJudged], by_scene: Sequence[ClassJudged]) -> BarChart:
    """What looking at a tenth of the frames finds of each class."""
    series, intervals = {}, {}
    for name, rows in (("object score", by_object), ("scene score", by_scene)):
        last = [row.rates[-1] for row in rows]
        series[name] = [at.recall for at in last]
        intervals[name] = [_ends(at.recall_interval, at.recall) for at in last]
    rate = by_object[0].rates[-1].rate
    return BarChart(
        f"Frames that hold the class, found among the {rate:.0%} with the highest scores",
        [row.name for row in by_object],
        series,
        percent=True,
        intervals=intervals,
        note="Of a class that most frames hold, no score can find more than a tenth here.",
    )


def _ends(interval: Interval | None, value: float) -> tuple[float, float]:
    return (value, value) if interval is None else (interval.low, interval.high)


def rare_classes(frames: Frames, options: argparse.Namespace) -> list[int]:
    """The ids of the classes named, or of the least frequent ones."""
    if options.rare_classes:
        ids = {name: id for id, name in frames.class_names.items()}
        wanted = options.rare_classes.split(",")
        unknown = [name for name in wanted if name not in ids]
        if unknown:
            raise LabelError(f"there is no class {unknown[0]!r}; known are {', '.join(ids)}.")
        return sorted(ids[name] for name in wanted)
    has_boxes = any(frame.objects is not None for frame in frames.frames)
    counts = frames.class_counts("objects" if has_boxes else "pixels", progress=True)
    total = sum(counts.values())
    if not any(0 < count < options.rare_share * total for count in counts.values()):
        return []  # the page goes without judgement
    return sorted(rarest_of(counts, options.rare_share))


# ----------------------------------------------------------------------------- command line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Find rare objects and rare scenes in a folder of frames, and write a page."
    )
    add = parser.add_argument
    add("folder", help="folder of frames, or the root of a data set")
    add("--weights", required=True, help="checkpoint of the encoder, a local file")
    add("--out", default="driving.html", help="the page (default: %(default)s)")
    add("--layout", choices=["folder", "camvid", "bdd100k", "cityscapes"], default="folder")
    add("--split", help="part of the data set (bdd100k, cityscapes: val if not given)")
    add("--limit", type=int, help="take so many frames only, spread over the folder")
    add("--cache", help="keep the embeddings in this .npz, and read them if it is there")
    group = parser.add_argument_group("the encoder")
    add = group.add_argument
    add("--backbone", choices=[*get_args(BackboneName), "mobilenet_v2"], default="resnet50")
    add("--patch-size", type=int, help="of a ViT (default: 16)")
    add("--same-padding", action="store_true", help="the weights come from TensorFlow")
    add("--mean", type=float, nargs=3, help="taken from colours in [0, 1] (ImageNet's)")
    add("--std", type=float, nargs=3, help="what they are divided by (ImageNet's)")
    add("--range11", action="store_true", help="colours from -1 to 1: --mean and --std of 0.5")
    add("--regions", choices=["crops", "map"], default="crops", help="windows, or one feature map")
    add("--crop-size", type=int, default=128, help="side of a window for the encoder, in pixels")
    add("--height", type=int, default=448, help="height of a frame for --regions map, in pixels")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--max-gib",
        type=float,
        default=8,
        help="memory that embeddings may take (default: %(default)s)",
    )
    group = parser.add_argument_group("what is rare")
    add = group.add_argument
    add("--rate", type=float, default=0.05, help="share of the frames to flag, for each score")
    add("--within", type=float, default=2.0, help="seconds within which frames show the same")
    add("--fps", type=float, help="how much the number in a frame's name grows in a second")
    add("--seconds-per-frame", type=float, default=1.0, help="where names tell no time")
    add("--top", type=int, default=24, help="frames with a rare object to show")
    add("--rare-classes", help="names with commas between, to judge by the labels")
    add("--rare-share", type=float, default=0.05, help="or: the classes that make up less")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    options.command = shlex.join(["python", "examples/driving.py", *given])
    return options


if __name__ == "__main__":
    main()
