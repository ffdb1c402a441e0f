"""``raremix embed``: a folder of images to a file of embeddings."""

import argparse
import time
from typing import TYPE_CHECKING

from raremix.cli import arguments as options
from raremix.cli.console import Console, counted

if TYPE_CHECKING:
    from torch import nn

__all__ = ["add_command"]

_DESCRIPTION = """\
Embed images with a local checkpoint; nothing is ever downloaded.

Writes the embeddings, one row per image, and NAME.paths.txt beside them with the path of each row,
relative to IMAGES. Images that cannot be read are left out, counted and listed.
"""
_EXAMPLE = """\
  raremix embed photos/ --weights dino_resnet50.pth --out embeddings.npy
  raremix embed photos/ --backbone vit_small --patch-size 8 --weights dino.pth --out photos.npy
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command to argparse."""
    parser = options.add_command(
        commands,
        "embed",
        summary="turn images into embeddings",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "images", metavar="IMAGES", help="a folder of images, or a .npz with uint8 images"
    )
    parser.add_argument(
        "--out", metavar="FILE.npy", required=True, help="where to write the rows; ends in .npy"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a DINO checkpoint of the backbone; the word `random` for random weights, whose "
        "embeddings show nothing but how the command works",
    )
    parser.add_argument(
        "--backbone",
        choices=("resnet18", "resnet50", "vit_tiny", "vit_small", "vit_base"),
        default="resnet50",
        help="the network whose weights they are (default: %(default)s)",
    )
    parser.add_argument("--patch-size", type=options.count, help="of a ViT (default: 16)")
    parser.add_argument(
        "--small-images",
        action="store_true",
        help="the network is a ResNet for small images, with a 3x3 convolution at its foot and no "
        "pooling after it, as the reference trainer's resnet18-small; images are scaled to "
        "--image-size, and no border is cut off",
    )
    parser.add_argument(
        "--image-size",
        type=options.count,
        help="side of the square the encoder sees (default: 224; 32 with --small-images)",
    )
    parser.add_argument(
        "--batch-size",
        type=options.count,
        default=64,
        help="images embedded at once (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=options.whole, default=2, help="loader processes (default: %(default)s)"
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    options.add_output_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Find, check, embed, write."""
    from pathlib import Path

    import torch
    from torch.utils.data import DataLoader, Dataset

    from raremix.data.images import ImageArrays, ImageFiles
    from raremix.data.kinds import split_member
    from raremix.data.listing import image_list_text
    from raremix.data.pictures import Unreadable, find_unreadable
    from raremix.data.writing import target_path
    from raremix.embedding.backbones import backbone
    from raremix.embedding.extraction import extract_embeddings
    from raremix.embedding.preprocessing import eval_transform
    from raremix.errors import FileFormatError
    from raremix.reports.files import write_text

    if arguments.weights is None:
        arguments.parser.error(
            "--weights FILE is needed: a network with random weights gives no embeddings worth "
            "scoring (say `--weights random` to try the command all the same)"
        )
    started = time.perf_counter()
    out = Path(arguments.out)
    if out.suffix.lower() != ".npy":
        arguments.parser.error(
            f"--out {arguments.out}: the embeddings are written as .npy, so name a file that ends "
            "in .npy"
        )
    if arguments.small_images and not arguments.backbone.startswith("resnet"):
        arguments.parser.error(
            f"--small-images is for a ResNet; with --backbone {arguments.backbone}, pass a small "
            "--patch-size"
        )
    _check_source(arguments.images)
    paths_file = out.with_name(f"{out.stem}.paths.txt")
    for target in (out, paths_file):  # Before the work, not after it.
        target_path(target, caller="raremix embed")

    is_random = arguments.weights == "random" and not Path("random").exists()
    if is_random:
        # The seed makes the command repeatable; the process's own generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = backbone(
                arguments.backbone,
                patch_size=arguments.patch_size,
                small_images=arguments.small_images,
            )
    else:
        model = _loaded(arguments)

    size = arguments.image_size or (32 if arguments.small_images else 224)
    # 224 of 256, the usual share, whatever the size; of a small image the border is much of it.
    transform = eval_transform(size, size if arguments.small_images else round(size * 256 / 224))
    unreadable: list[Unreadable] = []
    listing: str | None = None
    dataset: Dataset[tuple[object, int]]
    if Path(arguments.images).is_dir():
        found = ImageFiles(arguments.images)
        unreadable = find_unreadable(
            found.paths, threads=max(1, arguments.workers), progress=console.progress
        )
        broken = {image.path for image in unreadable}
        kept = [path for path in found.paths if path not in broken]
        if not kept:
            raise FileFormatError(
                f"raremix embed found {counted(len(found.paths), 'image')} in {arguments.images} "
                f"and can read none; the first: {unreadable[0].reason}."
            )
        dataset = ImageFiles(arguments.images, files=kept, transform=transform)
        listing = image_list_text(found.root, kept)
    else:
        name, member = split_member(arguments.images)
        dataset = ImageArrays.from_npz(name, images=member, transform=transform)

    if is_random:
        console.note("random weights: these embeddings know nothing of the images' content")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loader = DataLoader(
        dataset,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        shuffle=False,
        # Else a loader draws its workers' seed from the process's own generator.
        generator=torch.Generator(),
    )
    rows = extract_embeddings(model, loader, device=device, out=out, progress=console.progress)
    files = [str(out)]
    if listing is not None:
        write_text(paths_file, listing)
        files.append(str(paths_file))
    seconds = time.perf_counter() - started

    n, dim = rows.shape
    for image in unreadable[:10]:
        console.note(f"left out {image.path}: {image.reason}")
    if len(unreadable) > 10:
        console.note(f"and {len(unreadable) - 10} more")
    weights = "random weights" if is_random else arguments.weights
    network = arguments.backbone + (" for small images" if arguments.small_images else "")
    console.say(f"{counted(n, 'image')}, {dim} wide, by {network} with {weights} on {device}")
    if unreadable:
        verb = "was" if len(unreadable) == 1 else "were"
        console.say(f"{counted(len(unreadable), 'image')} could not be read and {verb} left out")
    for file in files:
        console.say(f"wrote {file}")
    console.say(f"{seconds:.1f} s, {n / seconds:,.0f} images a second")
    console.result(
        {
            "command": "embed",
            "rows": n,
            "dim": dim,
            "backbone": arguments.backbone,
            "small_images": arguments.small_images,
            "image_size": size,
            "weights": arguments.weights,
            "device": str(device),
            "left_out": [{"path": str(i.path), "reason": i.reason} for i in unreadable],
            "files": files,
            "seconds": round(seconds, 3),
        }
    )


def _check_source(text: str) -> None:
    """Name what was asked for, where it is nothing that holds images."""
    from pathlib import Path

    from raremix.data.images import IMAGE_SUFFIXES
    from raremix.data.kinds import file_kind, split_member
    from raremix.data.pictures import find_unreadable
    from raremix.errors import FileFormatError

    place = Path(split_member(text)[0])
    if place.is_dir():
        return
    if not place.exists():
        raise FileFormatError(f"raremix embed: no such folder or file: {place}")
    wanted = "raremix embed expects a folder of images, or a .npz with uint8 images"
    # By its name too, so that a damaged image is called one.
    if place.suffix.lower() in IMAGE_SUFFIXES or not find_unreadable([place]):
        raise FileFormatError(f"{wanted}; {place} is one image. Pass the folder it lies in.")
    if file_kind(place, caller="raremix embed") == "text":
        raise FileFormatError(f"{wanted}; {place} is a text file.")


def _loaded(arguments: argparse.Namespace) -> "nn.Module":
    """The network with its weights; a mismatch names the options that would fit."""
    from raremix.embedding.backbones import guess_backbone, load_dino
    from raremix.embedding.checkpoints import read_weights
    from raremix.errors import CheckpointMismatchError

    name, patch, small = arguments.backbone, arguments.patch_size, arguments.small_images
    try:
        return load_dino(name, arguments.weights, patch_size=patch, small_images=small)
    except CheckpointMismatchError as error:
        guess = guess_backbone(read_weights(arguments.weights))
        if guess is None or guess.is_like(name, patch, small):
            raise
        fitting = f"--backbone {guess.name}"
        if guess.patch_size is not None:
            fitting += f" --patch-size {guess.patch_size}"
        if guess.small_images:
            fitting += " --small-images"
        raise CheckpointMismatchError(
            f"the weights in {arguments.weights} do not fit {_asked(name, patch, small)}; they "
            f"look like {fitting}"
        ) from error


def _asked(name: str, patch: int | None, small: bool) -> str:
    words = f"--backbone {name}" + (f" --patch-size {patch}" if patch else "")
    return f"{words} --small-images" if small else words
