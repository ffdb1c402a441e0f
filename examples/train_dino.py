"""Train DINO with rare samples mixed back in: the whole recipe in one file, top to bottom.

    python examples/train_dino.py --preset digits                            # CPU, two minutes
    python examples/train_dino.py --preset small --data images.npz           # one GPU, 32-pixel images
    torchrun --nproc-per-node 8 examples/train_dino.py --preset paper --data /path/to/frames

Training goes on where it stopped when it is started again with the same --out: after Ctrl-C, after
a crash (from the last checkpoint), and then exactly as if it had never stopped. --no-mix trains the
baseline in the same order, --no-detect plain DINO with nothing of raremix but its loader. Every setting below can be given as an option; --help lists them.

The recipe is that of Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021, https://arxiv.org/abs/2104.14294. What raremix adds is marked with `raremix:`.
"""

import argparse
import csv
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import raremix

# ----------------------------------------------------------------------------- settings


def option(default: Any, text: str) -> Any:
    """A field of the settings with its line for --help."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Everything that decides what is trained. Lengths are in epochs or images, never in steps."""

    data: str = option("", "digits, an .npz of uint8 images, or a folder of images or frames")
    out: str = option("runs/dino", "folder of the run; a run found there goes on")
    seed: int = option(0, "of weights, order, views and draws")

    # The network.
    arch: str = option(
        "resnet50",
        "resnet18, resnet50, vit_tiny, vit_small, vit_base; resnet18-small and resnet50-small for "
        "images of some 32 to 64 pixels; tiny, a small convnet for 8 to 32",
    )
    patch_size: int = option(16, "side of a ViT's patch in pixels")
    out_dim: int = option(65536, "prototypes")
    head_hidden_dim: int = option(2048, "width of the head")
    head_bottleneck_dim: int = option(256, "width before the prototypes")

    # The views.
    global_crop_size: int = option(224, "pixels")
    local_crop_size: int = option(96, "pixels")
    n_local_views: int = option(6, "beside the two global ones")
    global_scale_min: float = option(0.4, "least share of the image in a global view")
    global_scale_max: float = option(1.0, "greatest share")
    local_scale_min: float = option(0.05, "least share of the image in a local view")
    local_scale_max: float = option(0.4, "greatest share")
    small_images: bool = option(
        False, "no blur and no solarization, which little images do not bear"
    )
    flip: float = option(0.5, "how often small images are mirrored; 0 for writing")

    # The optimisation.
    epochs: int = option(100, "passes over the data")
    batch_size: int = option(1024, "over all processes")
    optimizer: Literal["adamw", "sgd"] = option("adamw", "")
    lr_per_256: float = option(5e-4, "learning rate for 256 images; it grows with the batch")
    lr_final: float = option(1e-6, "learning rate at the end")
    warmup_epochs: int = option(10, "in which the learning rate rises")
    weight_decay: float = option(0.04, "at the beginning")
    weight_decay_final: float = option(0.4, "at the end")
    clip_grad: float = option(3.0, "of each parameter's gradient norm, as in DINO; 0 for none")
    freeze_last_layer_epochs: int = option(1, "in which the prototypes stay as they are")
    teacher_momentum: float = option(0.996, "at the beginning; it rises to 1")
    student_temperature: float = option(0.1, "of the student's softmax")
    teacher_temperature_start: float = option(0.04, "of the teacher's softmax at the beginning")
    teacher_temperature: float = option(0.04, "of the teacher's softmax after its warm-up")
    teacher_temperature_epochs: int = option(0, "length of that warm-up")
    center_momentum: float = option(0.9, "of the teacher's centre")
    amp: bool = option(True, "half precision, where the device has it")

    # raremix: what is rare, what is remembered, how much is mixed in.
    mix: bool = option(True, "mix rare samples in; without, they are watched only: the baseline")
    detect: bool = option(True, "use detector and buffer at all; without, plain DINO")
    replay: float = option(0.125, "share of each batch that comes from the buffer")
    buffer_capacity: int = option(0, "samples remembered; 0: 2 %% of the data, at least 32")
    policy: Literal["fifo", "reservoir", "rarest", "two-tier", "redundancy", "clusters"] = option(
        "fifo", "who stays in the buffer: the last, an even sample, the rarest, ..."
    )
    max_uses: int = option(0, "replays of one sample before it leaves; 0: no limit")
    scorer: Literal["fused", "knn", "mean"] = option(
        "fused", "distances at many scales, to a near neighbour, or to the mean"
    )
    threshold: Literal["rate", "fixed"] = option("rate", "a budget of flags, or a fixed score")
    flag_rate: float = option(0.05, "that budget, a share of the images")
    warmup_images: int = option(1024, "seen before the first is called rare")
    fixed_threshold: float = option(0.8, "that score")
    smoothing: float = option(0.9, "of a sample's score over its visits")
    lag: int = option(0, "batches between feedback and draw; 0: the least the workers allow")

    # Around the training.
    workers: int = option(min(4, os.cpu_count() or 1), "processes that load images")
    eval_every: int = option(10, "epochs between k-NN tests, where there are labels")
    save_every_minutes: float = option(10.0, "between checkpoints")
    stop_after_steps: int = option(0, "leave a resumable run after so many steps; 0: train on")


POLICIES = {
    "fifo": raremix.FIFO,
    "reservoir": raremix.Reservoir,
    "rarest": raremix.RarestK,
    "two-tier": raremix.TwoTier,
    "redundancy": raremix.LeastRedundant,
    "clusters": raremix.ClusterBalanced,
}

PRESETS: dict[str, dict[str, Any]] = {
    # scikit-learn's 8x8 digits, cut to a long tail: minutes on two CPU cores.
    "digits": {
        "data": "digits", "arch": "tiny", "out_dim": 128, "head_hidden_dim": 256,
        "head_bottleneck_dim": 32, "global_crop_size": 16, "local_crop_size": 12,
        "global_scale_min": 0.8, "local_scale_min": 0.5, "local_scale_max": 0.8,
        "small_images": True, "flip": 0.0, "epochs": 60, "batch_size": 32, "lr_per_256": 8e-3,
        "warmup_epochs": 5, "weight_decay_final": 0.04, "teacher_momentum": 0.98, "workers": 0,
        "eval_every": 10,
    },
    # Sets of 32-pixel images such as CIFAR-10.
    "small": {
        "arch": "resnet18-small", "out_dim": 4096, "global_crop_size": 32, "local_crop_size": 16,
        "global_scale_min": 0.5, "local_scale_min": 0.2, "local_scale_max": 0.5,
        "small_images": True, "epochs": 200, "batch_size": 256, "teacher_momentum": 0.99,
        "teacher_temperature": 0.07, "teacher_temperature_epochs": 30, "eval_every": 10,
    },
    # DINO's own advice for a ResNet-50.
    "resnet50": {
        "optimizer": "sgd", "lr_per_256": 0.03, "weight_decay": 1e-4, "weight_decay_final": 1e-4,
        "global_scale_min": 0.14, "local_scale_max": 0.14,
    },
    "vit": {"arch": "vit_small", "teacher_temperature": 0.07, "teacher_temperature_epochs": 30},
    # The set-up this project began from. Its threshold was published without a unit; here it is a
    # distance between vectors of unit length. The buffer holds 32 image ids, and a replay cuts
    # fresh crops from the image.
    "paper": {
        "arch": "resnet50", "epochs": 100, "batch_size": 1024, "optimizer": "adamw",
        "lr_per_256": 5e-4, "n_local_views": 6, "scorer": "mean", "threshold": "fixed",
        "fixed_threshold": 0.8, "smoothing": 0.0, "buffer_capacity": 32,
    },
}  # fmt: skip


# ----------------------------------------------------------------------------- network


def build_backbone(settings: Settings) -> tuple[nn.Module, int]:
    """The encoder and the width of its embeddings."""
    if settings.arch == "tiny":
        width = 32
        layers: list[nn.Module] = []
        for ins, outs, stride in ((3, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            layers += [
                nn.Conv2d(ins, outs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outs),
                nn.ReLU(inplace=True),
            ]
        # A 2x2 grid is kept, since strokes are told apart by where they are.
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 16 * width
    if settings.arch.startswith("vit"):
        model = raremix.backbone(
            settings.arch, patch_size=settings.patch_size, image_size=settings.global_crop_size
        )
    else:
        small = settings.arch.endswith("-small")
        model = raremix.backbone(settings.arch.removesuffix("-small"), small_images=small)
    model.eval()
    with torch.no_grad():
        side = settings.global_crop_size
        width = model(torch.zeros(1, 3, side, side)).shape[1]
    return model.train(), width


class Head(nn.Module):
    """Projects embeddings to the prototypes: three layers, a bottleneck, unit length, unit rows."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        hidden, bottleneck = settings.head_hidden_dim, settings.head_bottleneck_dim
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.empty(settings.out_dim, bottleneck))
        for parameter in [*self.mlp.parameters(), self.prototypes]:
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.linear(
            F.normalize(self.mlp(embeddings), dim=1), F.normalize(self.prototypes, dim=1)
        )


class Network(nn.Module):
    """Backbone and head; views of one size go through the backbone together."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.backbone, width = build_backbone(settings)
        self.head = Head(width, settings)

    def forward(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings and logits of all views, view after view."""
        parts, first = [], 0
        while first < len(views):
            last = first
            while last < len(views) and views[last].shape == views[first].shape:
                last += 1
            parts.append(self.backbone(torch.cat(views[first:last])))
            first = last
        embeddings = torch.cat(parts)
        return embeddings, self.head(embeddings)


# ----------------------------------------------------------------------------- loss


class DinoLoss:
    """Cross-entropy between the teacher's sharpened, centred view and the student's others."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings = settings
        self.center = torch.zeros(settings.out_dim, device=device)

    def __call__(self, student: Tensor, teacher: Tensor, n_views: int, epoch: int) -> Tensor:
        temperature = self.teacher_temperature(epoch)
        students = (student.float() / self.settings.student_temperature).log_softmax(1)
        # Float32: the softmax of half-precision logits at temperature 0.04 overflows.
        targets = ((teacher.float() - self.center) / temperature).softmax(1)
        self.entropy = float(-(targets * targets.clamp_min(1e-12).log()).sum(1).mean())
        terms = [
            -(target * view).sum(1).mean()
            for t, target in enumerate(targets.chunk(2))
            for s, view in enumerate(students.chunk(n_views))
            if s != t
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def update_center(self, teacher: Tensor) -> None:
        mean = teacher.float().mean(0)
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.center.lerp_(mean, 1 - self.settings.center_momentum)

    def teacher_temperature(self, epoch: int) -> float:
        s = self.settings
        share = (
            min(1.0, epoch / s.teacher_temperature_epochs) if s.teacher_temperature_epochs else 1.0
        )
        start = s.teacher_temperature_start
        return start + share * (s.teacher_temperature - start)


def cosine(start: float, end: float, share: float) -> float:
    """From start at share 0 to end at share 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


# ----------------------------------------------------------------------------- data


@dataclass
class Data:
    """Images to train on, and labelled ones to judge by; labels never reach the training."""

    dataset: Any
    plain: Any  # the same images as they are, for embedding
    labels: np.ndarray[Any, Any] | None = None
    test: Any = None
    test_labels: np.ndarray[Any, Any] | None = None
    class_names: tuple[str, ...] = ()


def long_tailed_digits() -> dict[str, np.ndarray[Any, Any]]:
    """The handwritten digits that ship with scikit-learn, cut to a long tail.

    Of each digit's 174 to 183 images of 8x8 pixels, 40 are set aside for testing. Of the others,
    digit 0 keeps 120, and each further one fewer, down to 6 for digit 9: 405 images, of which the
    three rarest digits are 6 %.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise SystemExit(
            'The digits ship with scikit-learn: pip install "raremix[demo]"'
        ) from cause
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    ranks = np.empty(len(images), dtype=int)
    for digit in range(10):
        members = order[bunch.target[order] == digit]
        ranks[members] = np.arange(len(members))
    is_test = ranks < 40
    pool = np.flatnonzero(~is_test)
    kept = pool[raremix.long_tail_subset(bunch.target[pool], 20, seed=0, n_max=120)]
    return {
        "images": images[kept],
        "labels": bunch.target[kept],
        "test_images": images[is_test],
        "test_labels": bunch.target[is_test],
    }


def make_views(settings: Settings) -> raremix.MultiCropTransform:
    """DINO's views, or what little images survive of them."""
    if settings.small_images:
        wide = raremix.View(
            settings.global_crop_size,
            (settings.global_scale_min, settings.global_scale_max),
            flip_p=settings.flip,
        )
        local = dataclasses.replace(
            wide,
            size=settings.local_crop_size,
            scale=(settings.local_scale_min, settings.local_scale_max),
        )
        return raremix.MultiCropTransform.from_views([wide] * 2, [local] * settings.n_local_views)
    return raremix.MultiCropTransform(
        global_crop_size=settings.global_crop_size,
        local_crop_size=settings.local_crop_size,
        n_local_views=settings.n_local_views,
        global_scale=(settings.global_scale_min, settings.global_scale_max),
        local_scale=(settings.local_scale_min, settings.local_scale_max),
    )


def load_data(settings: Settings, transform: Callable[..., Any]) -> Data:
    """Read the images; a draw of an image gives the same views whoever loads it, and when."""
    side = settings.global_crop_size
    # Of a small image the centre is all there is; of a large one, DINO leaves out the border.
    plain = raremix.eval_transform(side, side if settings.small_images else round(side * 256 / 224))
    options = {"transform": transform, "seed": settings.seed}

    if not settings.data:
        raise SystemExit("pass --data: an .npz of uint8 images, a folder of images, or digits")
    if settings.data != "digits" and Path(settings.data).is_dir():
        files = raremix.ImageFiles(settings.data, as_tensor=True, **options)
        labels = None if files.labels is None else files.labels.numpy()
        return Data(
            files,
            raremix.ImageFiles(settings.data, transform=plain),
            labels,
            class_names=tuple(files.class_names),
        )
    if settings.data == "digits":
        arrays = long_tailed_digits()
        names = tuple("0123456789")
    else:
        training = raremix.ImageArrays.from_npz(settings.data)
        arrays = {"images": training.images}
        names = tuple(training.class_names)
        if training.labels is not None:
            arrays["labels"] = training.labels.numpy()
        with np.load(settings.data, allow_pickle=False) as members:
            if "test_images" in members and "test_labels" in members:
                arrays["test_images"] = members["test_images"]
                arrays["test_labels"] = members["test_labels"]
    test = arrays.get("test_images")
    return Data(
        raremix.ImageArrays(arrays["images"], **options),
        raremix.ImageArrays(arrays["images"], transform=plain),
        arrays.get("labels"),
        None if test is None else raremix.ImageArrays(test, transform=plain),
        arrays.get("test_labels"),
        names,
    )


# ----------------------------------------------------------------------------- training


class Run:
    """All that a run consists of, and so all that a checkpoint holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        if settings.batch_size % self.world:
            raise SystemExit(
                f"batch_size {settings.batch_size} must divide by {self.world} processes"
            )

        # A GPU recolours a whole batch at once, and gets it as bytes. On a processor the workers, who
        # have time while it trains, had better do that too.
        self.views = make_views(settings)
        self.deferred = self.device.type == "cuda"
        self.data = load_data(settings, self.views.cut if self.deferred else self.views)
        loader = DataLoader(
            self.data.dataset,
            batch_size=settings.batch_size // self.world,
            shuffle=True,
            drop_last=True,
            num_workers=settings.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=settings.workers > 0,
        )
        # raremix: a detector, a buffer, and the same loader with rare samples mixed in.
        if settings.scorer == "mean":
            scorer = raremix.MeanDistance(metric="cosine")
        elif settings.scorer == "knn":
            scorer = raremix.KNNDistance()
        else:
            scorer = raremix.FusedDistance()
        if settings.threshold == "fixed":
            threshold = raremix.FixedThreshold(settings.fixed_threshold)
        else:
            threshold = raremix.FlagRate(settings.flag_rate, warmup_scores=settings.warmup_images)
        self.detector = raremix.OODDetector(scorer, threshold, smoothing=settings.smoothing)
        capacity = settings.buffer_capacity or max(32, round(0.02 * len(self.data.dataset)))
        self.buffer = raremix.RareMemoryBuffer(
            capacity, policy=POLICIES[settings.policy](), max_uses=settings.max_uses or None
        )
        self.loader = raremix.BufferedMixSampler.wrap(
            loader,
            self.buffer,
            replay=settings.replay if settings.mix and settings.detect else 0.0,
            seed=settings.seed,
            lag=settings.lag or 1 + settings.workers * (loader.prefetch_factor or 0),
        )
        self.steps_per_epoch = len(self.loader)
        if self.steps_per_epoch == 0:
            raise SystemExit(
                f"{len(self.data.dataset)} images make no batch of {settings.batch_size}; "
                "lower --batch-size"
            )

        torch.manual_seed(settings.seed)
        self.student, self.teacher = Network(settings), Network(settings)
        self.teacher.load_state_dict(self.student.state_dict())
        self.student.to(self.device)
        self.teacher.to(self.device).requires_grad_(False)
        self.student_ddp: nn.Module = self.student
        if self.world > 1:
            self.student = (
                nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
                if (self.device.type == "cuda")
                else self.student
            )
            self.student_ddp = DistributedDataParallel(self.student)
        self.loss = DinoLoss(settings, self.device)
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=0.0)
        half = self.device.type == "cuda" and settings.amp
        self.half = torch.bfloat16 if half and torch.cuda.is_bf16_supported() else torch.float16
        self.use_half = half
        self.scaler = torch.amp.GradScaler(enabled=half and self.half == torch.float16)
        self.step = 0
        self.last_saved = time.monotonic()

    # -- one step, and what it is made of

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", self.half) if self.use_half else nullcontext()

    def train_step(self, batch: Any) -> tuple[float, Tensor]:
        """One step of DINO; returns the loss and the teacher's embeddings of the images."""
        s, progress = self.settings, self.step / self.steps_per_epoch
        self.set_rates(progress)
        views = self.views.finish(batch, device=self.device) if self.deferred else batch
        with self.autocast():
            with torch.no_grad():
                features, targets = self.teacher(views[:2])
            _, logits = self.student_ddp(views)
            loss = self.loss(logits, targets, len(views), int(progress))
        if not bool(torch.isfinite(loss)):
            raise SystemExit(f"the loss is {float(loss)} at step {self.step}; lower --lr-per-256")
        self.loss.update_center(targets)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if s.clip_grad:
            for parameter in self.student.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, s.clip_grad)
        if progress < s.freeze_last_layer_epochs:
            self.student.head.prototypes.grad = None
        self.scaler.step(self.optimizer)
        self.scaler.update()

        momentum = cosine(s.teacher_momentum, 1.0, progress / s.epochs)
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - momentum)
        first, second = features.float().chunk(2)
        return float(loss.detach()), (
            first + second
        ) / 2  # two views, so that one odd crop weighs less

    def set_rates(self, progress: float) -> None:
        s = self.settings
        peak = s.lr_per_256 * s.batch_size / 256
        if progress < s.warmup_epochs:
            lr = peak * progress / s.warmup_epochs
        else:
            rest = max(s.epochs - s.warmup_epochs, 1e-9)
            lr = cosine(peak, s.lr_final, (progress - s.warmup_epochs) / rest)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.param_groups[0]["weight_decay"] = cosine(
            s.weight_decay, s.weight_decay_final, progress / s.epochs
        )

    # -- judging

    def evaluate(self) -> dict[str, float]:
        """k-NN accuracy on the test images, overall and by many, medium and few."""
        data = self.data
        if data.labels is None or data.test is None or data.test_labels is None:
            return {}
        train, test = (self.embed(images) for images in (data.plain, data.test))
        probe = raremix.knn_probe(train, data.labels, test, data.test_labels)
        return {"knn": probe.accuracy} | {
            f"knn_{group}": value for group, value in probe.groups.items()
        }

    def embed(self, images: Any) -> Any:
        loader = DataLoader(images, batch_size=256, num_workers=self.settings.workers)
        return raremix.extract_embeddings(self.teacher.backbone, loader, progress=False)

    def tail_shares(self) -> dict[str, float]:
        """How much of the data and of the buffer belongs to the rarest third of the classes."""
        labels = self.data.labels
        if labels is None:
            return {}
        counts = np.bincount(labels)
        groups = np.array(raremix.class_groups(counts.tolist()))
        is_tail = groups[labels] == "few"
        held = self.buffer.keys.numpy()
        share = float(is_tail[held].mean()) if len(held) else math.nan
        return {"tail_in_data": float(is_tail.mean()), "tail_in_buffer": share}

    # -- stopping and going on

    @property
    def checkpoint(self) -> Path:
        return Path(self.settings.out) / "checkpoint.pt"

    def save(self) -> None:
        """Write everything, whole or not at all; all processes hold the same, so one writes."""
        self.last_saved = time.monotonic()
        if self.rank:
            return
        state = {
            "settings": dataclasses.asdict(self.settings),
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "center": self.loss.center,
            "loader": self.loader.state_dict(),  # and the buffer's with it
            "detector": self.detector.state_dict(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        free = {"out", "workers", "save_every_minutes", "stop_after_steps"}
        for name, value in dataclasses.asdict(self.settings).items():
            if name not in free and state["settings"].get(name) != value:
                raise SystemExit(
                    f"{self.checkpoint} was trained with {name}={state['settings'].get(name)!r}, "
                    f"not {value!r}; give the same options, or another --out"
                )
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loss.center.copy_(state["center"])
        self.loader.load_state_dict(state["loader"])
        self.detector.load_state_dict(state["detector"])


class Stop:
    """Notes Ctrl-C and SIGTERM, so that the step at hand is finished and saved first."""

    def __init__(self) -> None:
        self.asked = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop; all of them must leave after the same step."""
        if not dist.is_initialized():
            return self.asked
        flag = torch.tensor(float(self.asked), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)


class Log:
    """One CSV row per step; rows after the step a run goes on from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        rows: list[dict[str, str]] = []
        if path.exists() and step:
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS)
        self.writer.writeheader()
        self.writer.writerows(rows)

    def write(self, **values: Any) -> None:
        self.writer.writerow({name: _short(value) for name, value in values.items()})

    def close(self) -> None:
        self.file.close()


COLUMNS = (
    "step", "epoch", "loss", "lr", "teacher_entropy", "feature_std", "images_per_s",
    "data_wait_share", "flag_rate", "threshold", "replayed", "buffer", "tail_in_buffer",
    "tail_in_data", "knn", "knn_many", "knn_medium", "knn_few",
)  # fmt: skip


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def train(settings: Settings, *, say: Callable[[str], None] = print) -> Run:
    """Train to the end, or until asked to stop; returns the run as it then is."""
    for name in ("epochs", "batch_size", "out_dim", "eval_every"):
        if getattr(settings, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1")
    stop = Stop()
    run = Run(settings)
    talk = say if run.rank == 0 else (lambda text: None)
    if run.checkpoint.exists():
        run.load()
        talk(f"going on from {run.checkpoint} at step {run.step}")
    total = settings.epochs * run.steps_per_epoch
    talk(
        f"{len(run.data.dataset)} images, {run.steps_per_epoch} steps an epoch, {run.device}, "
        f"learning rate {settings.lr_per_256 * settings.batch_size / 256:.3g} "
        f"at batch {settings.batch_size}"
    )
    too_short = total * settings.batch_size < settings.warmup_images
    if settings.detect and settings.threshold == "rate" and too_short:
        talk(
            "nothing will be called rare: this run sees fewer than --warmup-images "
            f"{settings.warmup_images}"
        )
    if run.step == total:
        talk("this run is finished; give another --out, or remove it, to train anew")
    log = Log(Path(settings.out) / "metrics.csv", run.step) if run.rank == 0 else None
    warned = False
    begun, done, waited = time.perf_counter(), 0, 0.0
    while run.step < total:
        asked = time.perf_counter()
        for views, _ in run.loader:
            waited += time.perf_counter() - asked
            loss, embeddings = run.train_step(views)

            # raremix: say what the batch was, let the detector judge it, keep what is rare.
            batch = run.loader.batch
            rarity: dict[str, Any] = {}
            if settings.detect:
                found = run.detector.observe(embeddings, ids=batch.ids, is_replay=batch.is_replay)
                features = embeddings if run.buffer.needs_features else None
                run.buffer.add(batch, found, features=features)
                rarity["flag_rate"] = float(found.is_rare[~batch.is_replay].float().mean())
                rarity["threshold"] = found.threshold

            row: dict[str, Any] = {
                "step": run.step,
                "epoch": run.step // run.steps_per_epoch,
                "loss": loss,
                "lr": run.optimizer.param_groups[0]["lr"],
                "teacher_entropy": run.loss.entropy,
                "feature_std": float(F.normalize(embeddings, dim=1).std(0).mean()),
                "replayed": int(batch.is_replay.sum()),
                "buffer": len(run.buffer),
                **rarity,
            }
            run.step += 1
            done += 1
            elapsed = time.perf_counter() - begun
            row["images_per_s"] = done * settings.batch_size / elapsed
            row["data_wait_share"] = waited / elapsed
            epoch_ends = run.step % run.steps_per_epoch == 0
            epoch = run.step // run.steps_per_epoch
            if epoch_ends:
                row |= run.tail_shares()
                if epoch % settings.eval_every == 0 or run.step == total:
                    row |= run.evaluate()
                talk(_epoch_line(epoch, settings, row))
            if log:
                log.write(**row)
            if abs(loss - math.log(settings.out_dim)) < 1e-2 and epoch > 1 and not warned:
                talk(f"collapsed? the loss is ln({settings.out_dim}), that of a constant output")
                warned = True
            progress_line(run, total, elapsed / done, row)

            leaving = stop.agreed(run.device) or run.step == settings.stop_after_steps
            late = time.monotonic() - run.last_saved > 60 * settings.save_every_minutes
            if leaving or late or run.step == total:
                run.save()
            if leaving and run.step < total:
                talk(f"stopped after step {run.step}; the same command goes on from there")
                if log:
                    log.close()
                return run
            asked = time.perf_counter()
    if log:
        log.close()
    if run.rank == 0:
        encoder = Path(settings.out) / "encoder.pt"
        torch.save(run.teacher.backbone.state_dict(), encoder)
        talk(f"wrote {encoder} and {encoder.with_name('metrics.csv')}")
    return run


def _epoch_line(epoch: int, settings: Settings, row: dict[str, Any]) -> str:
    text = f"epoch {epoch:>3}/{settings.epochs}  loss {row['loss']:.3f}"
    text += f" (ln K {math.log(settings.out_dim):.2f})"
    if "flag_rate" in row:
        text += f"  flagged {100 * row['flag_rate']:.0f} %  buffer {row['buffer']}"
    if row.get("buffer") and "tail_in_buffer" in row:
        text += f", tail {100 * row['tail_in_buffer']:.0f} %"
    if "knn" in row:
        text += "  k-NN " + " / ".join(
            f"{100 * row[name]:.1f}" for name in ("knn", "knn_many", "knn_medium", "knn_few")
        )
        text += " (all / many / medium / few)"
    return text


def progress_line(run: Run, total: int, seconds: float, row: dict[str, Any]) -> None:
    if run.rank == 0 and sys.stderr.isatty():
        left = seconds * (total - run.step)
        sys.stderr.write(
            f"\r\x1b[K{run.step}/{total}  loss {row['loss']:.3f}  "
            f"{row['images_per_s']:.0f} images/s  {left / 60:.1f} min left\r"
        )
        sys.stderr.flush()


# ----------------------------------------------------------------------------- command line


def parse(arguments: list[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(
        description="Train DINO with rare samples mixed back in.",
        epilog=f"presets: {', '.join(PRESETS)}; an option given beside one overrides it",
    )
    parser.add_argument("--preset", choices=list(PRESETS), default="digits")
    for field in dataclasses.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        kind: Any = field.type
        shown = f"{field.metadata['help']} (default: {field.default!r})".strip()
        if kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=None, help=shown)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), default=None, help=shown)
        else:
            metavar = kind.__name__.upper()
            parser.add_argument(flag, type=kind, default=None, metavar=metavar, help=shown)
    given = vars(parser.parse_args(arguments))
    values = PRESETS[given.pop("preset")] | {k: v for k, v in given.items() if v is not None}
    return Settings(**values)


def main() -> None:
    settings = parse()
    try:
        run = train(settings)
    except raremix.RaremixError as problem:
        raise SystemExit(f"train_dino: {problem}") from problem
    done = run.step == settings.epochs * run.steps_per_epoch
    if dist.is_initialized():
        dist.barrier()  # the first may still be writing; who leaves early can be torn down badly
        del run  # and with it DDP, which must not outlive the group
        dist.destroy_process_group()
    raise SystemExit(0 if done or settings.stop_after_steps else 130)


if __name__ == "__main__":
    main()
