"""Times the views of an image against the libraries that one would use instead; a script, not a test.

    python tests/benchmarks/bench_views.py --json views.json
    python tests/benchmarks/bench_views.py --only small --repeats 5

``pip install raremix[bench]`` brings the peers; one that is not installed is left out. On the
processor every contender runs once in each round on one thread, so that a slow moment of the machine
falls on all of them, and a ratio is the median of the ratios of the rounds. Rates are of processor
time, which other processes disturb less than the clock on the wall. Everyone gets the same images in
the form that it likes best, decoded already: a PIL image, an array, a tensor.

All make the same views with the same chances, but not the same pixels: albumentations resizes with
OpenCV's INTER_AREA, as lightly-train has it do, and kornia bicubically without smoothing, both of
which is less work than an antialiased bicubic resize. The tensors of albumentations are views of
arrays in the order height, width, channel; a loader has yet to copy them.
"""

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import peer
from PIL import Image, ImageFilter, ImageOps
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from raremix import MultiCropTransform

OURS = "raremix"
LOCAL_VIEWS = 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.4, 0.4, 0.2, 0.1)
SIGMA = (0.1, 2.0)
# Real frames, where the folder with the evaluation data lies beside the checkout.
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

Views = list[Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of view: all have flips at .5, jitter at .8 and gray at .2 besides."""

    side: int
    scale: tuple[float, float]
    blur: float
    solarize: float


@dataclass(frozen=True)
class Case:
    """What is to be made, of what.

    Attributes:
        name: How ``--only`` calls it.
        title: What the table says above.
        width: Of the images.
        height: Of the images.
        images: How many different ones, which is a round.
        at_once: How many of them those get together that take batches.
        kinds: The first global view, the second and the six local ones.
    """

    name: str
    title: str
    width: int
    height: int
    images: int
    at_once: int
    kinds: tuple[Kind, Kind, Kind]

    @property
    def sides(self) -> list[int]:
        """Of the views, in order."""
        first, second, local = self.kinds
        return [first.side, second.side, *[local.side] * LOCAL_VIEWS]


DINO = (
    Kind(224, (0.4, 1.0), 1.0, 0.0),
    Kind(224, (0.4, 1.0), 0.1, 0.2),
    Kind(96, (0.05, 0.4), 0.5, 0.0),
)
SMALL = (
    Kind(32, (0.5, 1.0), 0.0, 0.0),
    Kind(32, (0.5, 1.0), 0.0, 0.2),
    Kind(16, (0.2, 0.5), 0.0, 0.0),
)
CASES = (
    Case("hd", "2 x 224 + 6 x 96 of 1280 x 720", 1280, 720, 16, 8, DINO),
    Case("sq", "2 x 224 + 6 x 96 of 256 x 256", 256, 256, 32, 32, DINO),
    Case("small", "2 x 32 + 6 x 16 of 32 x 32", 32, 32, 256, 256, SMALL),
)


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: What the table calls it.
        make: The views of the image of that number, or of the batch that begins there.
        at_once: How many images a call takes.
        is_whole: Whether it makes finished views, and not only a part of the way to them.
    """

    name: str
    make: Callable[[int], Any]
    at_once: int = 1
    is_whole: bool = True


@dataclass
class Result:
    """What was found of a contender.

    Attributes:
        name: What the table calls it.
        rates: Images a second, round by round.
        mean: Of all values of its views; NaN where they are not finished.
        std: Their standard deviation.
        threads: Processor time over time on the wall: above 1, it ran on several threads.
    """

    name: str
    rates: list[float] = field(default_factory=list)
    mean: float = float("nan")
    std: float = float("nan")
    threads: float = 0.0


def eight(first: Any, second: Any, local: Any) -> Callable[[Any], Views]:
    """All views of an image, from what makes one of each kind."""
    return lambda image: [
        first(image),
        second(image),
        *(local(image) for _ in range(LOCAL_VIEWS)),
    ]


# ------------------------------------------------------------------ images


class Images:
    """The images of a case, in every form."""

    def __init__(self, case: Case, data: Path) -> None:
        self.is_real, self.pil = images_of(case, data)
        self.arrays = [np.array(image) for image in self.pil]
        # Channels last, as a decoder leaves them.
        self.tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in self.arrays]

    def batch(self, first: int, count: int) -> Tensor:
        """Some of them as (count, 3, height, width)."""
        return torch.stack(self.tensors[first : first + count]).contiguous()


def images_of(case: Case, data: Path) -> tuple[bool, list[Image.Image]]:
    """Whether they are real, and images of the size of the case."""
    size = case.width, case.height
    if case.name == "small" and (data / "cifar10_lt.npz").exists():
        with np.load(data / "cifar10_lt.npz") as arrays:
            return True, [Image.fromarray(image) for image in arrays["images"][: case.images]]
    frames = sorted((data / "camvid" / "images").glob("*.jpg"))
    if frames and case.name != "small":
        chosen = frames[:: len(frames) // case.images][: case.images]
        opened = [Image.open(frame).convert("RGB") for frame in chosen]
        # Cut to the wanted shape, then resized: by "fit" both at once.
        return True, [ImageOps.fit(frame, size, Image.Resampling.BICUBIC) for frame in opened]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(case.images, 3, 9, 16, generator=generator)
    smooth = interpolate(coarse, size=size[::-1], mode="bicubic").clamp_(0, 1).mul_(255)
    pixels = smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return False, [Image.fromarray(image) for image in pixels]


# ------------------------------------------------------------------ ours


def ours(case: Case) -> MultiCropTransform:
    """Our transform for a case."""
    return MultiCropTransform() if case.kinds == DINO else MultiCropTransform.recipe("small")


def our_contenders(case: Case, images: Images) -> Iterator[Contender]:
    transform = ours(case)
    yield Contender(OURS, lambda index: transform(images.tensors[index]))
    yield Contender(
        f"{OURS}, cut only", lambda index: transform.cut(images.tensors[index]), is_whole=False
    )
    count = case.at_once
    batches = {first: images.batch(first, count) for first in range(0, case.images, count)}

    def batched(first: int) -> Any:
        return transform.batch(batches[first], seeds=torch.randint(2**62, (count,)))

    yield Contender(f"{OURS}, batches of {count}", batched, at_once=count)


# ------------------------------------------------------------------ peers


class PillowBlur:
    """As in the code of DINO, ``GaussianBlur`` of its utils.py."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*SIGMA)))


class PillowSolarize:
    """As in the code of DINO, ``Solarization`` of its utils.py."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def pillow_view(transforms: Any, kind: Kind) -> Any:
    """One view of ``DataAugmentationDINO``.

    Source:
        https://github.com/facebookresearch/dino/blob/main/main_dino.py.
    """
    steps = [
        transforms.RandomResizedCrop(
            kind.side, scale=kind.scale, interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]
    if kind.blur:
        steps.append(PillowBlur(kind.blur))
    if kind.solarize:
        steps.append(PillowSolarize(kind.solarize))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def tensor_view(v2: Any, kind: Kind, *, is_float: bool) -> Any:
    """One view of torchvision's transforms v2, whose colours change in uint8 or in float32."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [
        v2.RandomResizedCrop(
            kind.side,
            scale=kind.scale,
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        ),
        *([to_float] if is_float else []),
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    if kind.blur:
        # A tenth of the side, as SimCLR has it.
        blur = v2.GaussianBlur(kernel_size=kind.side // 10 // 2 * 2 + 1, sigma=SIGMA)
        steps.append(v2.RandomApply([blur], p=kind.blur))
    if kind.solarize:
        steps.append(v2.RandomSolarize(threshold=0.5 if is_float else 128, p=kind.solarize))
    if not is_float:
        steps.append(to_float)
    return v2.Compose([*steps, v2.Normalize(MEAN, STD)])


def opencv_view(package: Any, cv2: Any, to_tensor: Any, kind: Kind) -> Any:
    """One view of albumentations, put together as lightly-train does."""
    steps = [
        package.RandomResizedCrop(
            size=(kind.side, kind.side), scale=kind.scale, interpolation=cv2.INTER_AREA
        ),
        package.HorizontalFlip(p=0.5),
        package.ColorJitter(*JITTER, p=0.8),
        package.ToGray(p=0.2),
    ]
    if kind.blur:
        steps.append(package.GaussianBlur(blur_limit=0, sigma_limit=SIGMA, p=kind.blur))
    if kind.solarize:
        steps.append(package.Solarize(threshold_range=(0.5, 0.5), p=kind.solarize))
    # It draws from a generator of its own.
    composed = package.Compose([*steps, package.Normalize(MEAN, STD), to_tensor()], seed=0)
    return lambda image: composed(image=image)["image"]


def kornia_view(augmentation: Any, kind: Kind, device: torch.device) -> Any:
    """One view of kornia, of batches of floats in [0, 1]."""
    side = kind.side
    steps = [
        augmentation.RandomResizedCrop(
            (side, side), scale=kind.scale, resample="BICUBIC", align_corners=False
        ),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(*JITTER, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
    ]
    if kind.blur:
        kernel = side // 10 // 2 * 2 + 1
        steps.append(augmentation.RandomGaussianBlur((kernel, kernel), SIGMA, p=kind.blur))
    if kind.solarize:
        # A single number would be a half-width around .5, not the threshold.
        steps.append(
            augmentation.RandomSolarize(
                thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=kind.solarize
            )
        )
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return torch.nn.Sequential(*steps, augmentation.Normalize(mean, std)).to(device)


def kornia_views(kornia: Any, case: Case, device: torch.device) -> Callable[[Tensor], Views]:
    """All views of a batch of uint8, which it has to turn to floats first: once, for all views."""
    views = eight(*(kornia_view(kornia, kind, device) for kind in case.kinds))
    return lambda batch: views(batch.float().div_(255))


def peer_contenders(case: Case, images: Images) -> Iterator[Contender]:
    transforms = peer("torchvision.transforms")
    if transforms is not None:
        pillow = eight(*(pillow_view(transforms, kind) for kind in case.kinds))
        yield Contender("DINO's code, Pillow", lambda index: pillow(images.pil[index]))
    lightly = peer("lightly.transforms.dino_transform")
    if lightly is not None:
        first, second, local = case.kinds
        transform = lightly.DINOTransform(
            global_crop_size=first.side,
            global_crop_scale=first.scale,
            local_crop_size=local.side,
            local_crop_scale=local.scale,
            n_local_views=LOCAL_VIEWS,
            gaussian_blur=(first.blur, second.blur, local.blur),
            solarization_prob=second.solarize,
        )
        yield Contender("lightly DINOTransform", lambda index: transform(images.pil[index]))
    v2 = peer("torchvision.transforms.v2")
    if v2 is not None:
        # It recommends uint8 to the end; floats from the crop on are faster here.
        for is_float, name in ((False, "uint8"), (True, "float32 after the crop")):
            tensors = eight(*(tensor_view(v2, kind, is_float=is_float) for kind in case.kinds))
            yield Contender(
                f"torchvision v2, {name}",
                lambda index, of=tensors: of(images.tensors[index]),  # type: ignore[misc]  # mypy types no lambda defaults
            )
    cv2, package = peer("cv2"), peer("albumentations")
    if cv2 is not None and package is not None:
        cv2.setNumThreads(0)
        to_tensor = importlib.import_module("albumentations.pytorch").ToTensorV2
        opencv = eight(*(opencv_view(package, cv2, to_tensor, kind) for kind in case.kinds))
        yield Contender("albumentations, OpenCV", lambda index: opencv(images.arrays[index]))
    kornia = peer("kornia.augmentation")
    if kornia is not None:
        count = case.at_once
        batched = kornia_views(kornia, case, torch.device("cpu"))
        batches = {first: images.batch(first, count) for first in range(0, case.images, count)}
        yield Contender(
            f"kornia, batches of {count}", lambda first: batched(batches[first]), at_once=count
        )


def floor_contenders(case: Case, images: Images) -> Iterator[Contender]:
    """The crops alone, of boxes that were drawn before."""
    draws = ours(case)
    generator = torch.Generator().manual_seed(0)
    boxes = [
        [
            (row.box, row.size)
            for row in draws.draw(height=case.height, width=case.width, generator=generator)
        ]
        for _ in range(case.images)
    ]

    def resized(index: int) -> Views:
        image = images.tensors[index][None]
        return [
            interpolate(
                image[:, :, top:bottom, left:right],
                size=(side, side),
                mode="bicubic",
                antialias=True,
            )
            for (left, top, right, bottom), side in boxes[index]
        ]

    yield Contender("resize alone, torch", resized, is_whole=False)

    def by_pillow(index: int) -> list[Image.Image]:
        image = images.pil[index]
        return [
            image.resize((side, side), Image.Resampling.BICUBIC, box=box)
            for box, side in boxes[index]
        ]

    yield Contender("resize alone, Pillow", by_pillow, is_whole=False)


# ------------------------------------------------------------------ timing


def check(contender: Contender, case: Case, result: Result) -> None:
    """Look at what it makes: sizes, dtype, and the mean and deviation of a round."""
    values = []
    for index in range(0, case.images, contender.at_once):
        views = contender.make(index)
        lead = () if contender.at_once == 1 else (contender.at_once,)
        shapes = [tuple(view.shape) for view in views]
        if shapes != [(*lead, 3, side, side) for side in case.sides]:
            raise SystemExit(f"{contender.name} makes views of other shapes: {shapes}")
        if any(view.dtype != torch.float32 for view in views):
            raise SystemExit(f"{contender.name} makes no float32")
        # All views alike, whatever their size.
        values += [(float(view.mean()), float(view.square().mean())) for view in views]
    result.mean = statistics.fmean(mean for mean, _ in values)
    result.std = (statistics.fmean(square for _, square in values) - result.mean**2) ** 0.5


def timed(contenders: Sequence[Contender], case: Case, repeats: int) -> list[Result]:
    """Time all of them, in turn."""
    results = [Result(contender.name) for contender in contenders]
    for turn in range(repeats + 1):
        for contender, result in zip(contenders, results, strict=True):
            # Other draws in each round, the same for a contender in each run of the script.
            random.seed(turn)
            np.random.seed(turn)
            torch.manual_seed(turn)
            if not turn:  # the first round warms up
                if contender.is_whole:
                    check(contender, case, result)
                else:
                    contender.make(0)
                continue
            wall, start = time.perf_counter(), time.process_time()
            for index in range(0, case.images, contender.at_once):
                contender.make(index)
            took = time.process_time() - start
            result.rates.append(case.images / took)
            result.threads = max(result.threads, took / (time.perf_counter() - wall))
    return results


def table(title: str, results: Sequence[Result]) -> Iterator[str]:
    """All of them beside each of ours."""
    bases = [result for result in results if result.name.startswith(OURS)]
    yield f"### {title}"
    yield ""
    yield (
        "| | images/s, best | median | mean | std |"
        + "".join(f" {base.name}, times as fast |" for base in bases)
    )
    yield "|---|" + "---|" * (4 + len(bases))
    for result in results:
        cells = [f"{max(result.rates):,.1f}", f"{statistics.median(result.rates):,.1f}"]
        is_whole = result.mean == result.mean
        cells += [f"{result.mean:.2f}", f"{result.std:.2f}"] if is_whole else ["", ""]
        for base in bases:
            pairs = zip(base.rates, result.rates, strict=True)
            cells.append(f"{statistics.median(a / b for a, b in pairs):.2f}")
        yield f"| {result.name} | " + " | ".join(cells) + " |"
    for result in results:
        if result.threads > 1.2:
            yield f"\n{result.name} ran on {result.threads:.1f} threads; all of them are counted."
    yield ""


def job_cpu(case: Case, data: Path, repeats: int, record: dict[str, Any]) -> Iterator[str]:
    images = Images(case, data)
    contenders = [
        *our_contenders(case, images),
        *peer_contenders(case, images),
        *floor_contenders(case, images),
    ]
    results = timed(contenders, case, repeats)
    what = "real" if images.is_real else "synthetic"
    title = f"{case.title}, {case.images} {what} images, one thread"
    record[case.name] = {"title": title, "results": [asdict(result) for result in results]}
    yield from table(title, results)


# ------------------------------------------------------------------ GPU


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time on the wall of a call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def copy_rate(device: torch.device, nbytes: int) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = [seconds(lambda: target.copy_(source), device) for _ in range(12)]
    return 2 * nbytes / statistics.median(taken[2:])


def nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def job_gpu(
    case: Case,
    data: Path,
    repeats: int,
    record: dict[str, Any],
    *,
    count: int,
    device: torch.device,
    copied: int = 2**30,
) -> Iterator[str]:
    """Whole batches on a device, all views of it, with the share of what a copy of it would take."""
    images = Images(case, data)
    picked = [index % case.images for index in range(count)]
    batch = torch.stack([images.tensors[index] for index in picked]).contiguous().to(device)
    transform = ours(case)
    seeds = torch.arange(count)
    # As a loader hands it over, and then on the device but for the rows, which are small.
    crops = default_collate([transform.cut(images.tensors[index]) for index in picked])
    held = {key: value if key == "rows" else value.to(device) for key, value in crops.items()}
    runs: dict[str, tuple[Callable[[], Any], int]] = {
        f"{OURS}, batch": (lambda: transform.batch(batch, seeds=seeds), nbytes([batch])),
        f"{OURS}, finish": (lambda: transform.finish(held, device=device), nbytes(held.values())),
        f"{OURS}, finish, with the copy to the device": (
            lambda: transform.finish(crops, device=device),
            nbytes(crops.values()),
        ),
    }
    kornia = peer("kornia.augmentation")
    if kornia is not None:
        views = kornia_views(kornia, case, device)
        runs["kornia"] = (lambda: views(batch), nbytes([batch]))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    moved: dict[str, int] = {}
    for turn in range(repeats + 2):
        for name, (run, read) in runs.items():
            torch.manual_seed(turn)
            if not turn:
                made = run()
                shapes = [tuple(view.shape) for view in made]
                if shapes != [(count, 3, side, side) for side in case.sides]:
                    raise SystemExit(f"{name} makes views of other shapes: {shapes}")
                moved[name] = read + nbytes(made)
                del made
                continue
            took = seconds(run, device)
            if turn > 1:  # the first two warm up
                taken[name].append(took)
    rate = copy_rate(device, copied)
    title = f"{case.title}, batches of {count:,} on {device_name(device)}, time on the wall"
    yield f"### {title}"
    yield ""
    yield f"A copy within the device moves {rate / 1e9:,.0f} GB/s."
    yield ""
    yield "| | images/s, best | median | GB read and written | share of a copy | times as long as ours |"
    yield "|---|---|---|---|---|---|"
    base = next(iter(taken))
    rows = []
    for name, times in taken.items():
        best, median = count / min(times), count / statistics.median(times)
        share = moved[name] / statistics.median(times) / rate
        ratio = statistics.median(a / b for a, b in zip(times, taken[base], strict=True))
        yield (
            f"| {name} | {best:,.0f} | {median:,.0f} | {moved[name] / 1e9:.2f} | {share:.1%} "
            f"| {ratio:.2f} |"
        )
        rows.append({"name": name, "seconds": times, "bytes": moved[name], "share": share})
    record[f"gpu {case.name}"] = {"title": title, "bytes_a_second": rate, "results": rows}
    yield ""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


# ------------------------------------------------------------------ the script


def facts(repeats: int, record: dict[str, Any]) -> Iterator[str]:
    """What was measured on what."""
    versions = {"Python": platform.python_version()}
    for name in (
        "torch",
        "torchvision",
        "pillow",
        "lightly",
        "albumentations",
        "opencv-python-headless",
        "kornia",
        "numpy",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    record["versions"], record["load"], record["repeats"] = versions, load, repeats
    yield f"- {os.cpu_count()} CPUs, one thread for everyone, load {load} at the start"
    yield "- " + ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"- {repeats} rounds"
    yield ""


def main() -> None:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*names, "gpu"], default=[*names, "gpu"])
    parser.add_argument("--repeats", type=int, default=9, help="rounds to take the median of")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with real images")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    given = parser.parse_args()
    # Before the peers are imported: albumentations would look for a newer version of itself.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    jobs: list[Callable[[], Iterator[str]]] = [
        functools.partial(facts, given.repeats, record),
        *(
            functools.partial(job_cpu, case, given.data, given.repeats, record)
            for case in CASES
            if case.name in given.only
        ),
    ]
    if "gpu" in given.only and torch.cuda.is_available():
        device = torch.device("cuda")
        for case, count in ((CASES[1], 256), (CASES[2], 2048)):
            jobs.append(
                functools.partial(
                    job_gpu, case, given.data, given.repeats, record, count=count, device=device
                )
            )
    with threadpool_limits(1):
        for job in jobs:
            for line in job():
                print(line, flush=True)
    if "gpu" in given.only and not torch.cuda.is_available():
        print("The GPU part did not run: torch sees no CUDA device.")
    if given.json is not None:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
