"""``raremix embed``: a folder of images to a file of embeddings."""

import argparse
import time

from raremix.cli import arguments as options
from raremix.cli.console import Console

__all__ = ["add_command"]

_DESCRIPTION = """\
Embed images with a local checkpoint; nothing is ever downloaded.

Writes the embeddings, one row per image, and NAME.paths.txt beside them with the path of each row.
Images that cannot be read are left out, counted and listed.
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
    parser.add_argument("--out", metavar="FILE.npy", required=True, help="where to write the rows")
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
        "--image-size",
        type=options.count,
        default=224,
        help="side of the square the encoder sees (default: %(default)s)",
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
    from raremix.data.pictures import Unreadable, find_unreadable
    from raremix.data.writing import target_path
    from raremix.embedding.backbones import backbone, load_dino
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
    paths_file = out.with_name(f"{out.stem}.paths.txt")
    for target in (out, paths_file):  # Before the work, not after it.
        target_path(target, caller="raremix embed")

    is_random = arguments.weights == "random" and not Path("random").exists()
    if is_random:
        # The seed makes the command repeatable; the process's own generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = backbone(arguments.backbone, patch_size=arguments.patch_size)
    else:
        model = load_dino(arguments.backbone, arguments.weights, patch_size=arguments.patch_size)

    # 224 of 256, the usual share, whatever the size.
    size = arguments.image_size
    transform = eval_transform(size, round(size * 256 / 224))
    unreadable: list[Unreadable] = []
    paths: list[str] | None = None
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
                f"raremix embed can read none of the {len(found.paths)} images in "
                f"{arguments.images}; the first: {unreadable[0].reason}."
            )
        dataset = ImageFiles(arguments.images, files=kept, transform=transform)
        paths = [str(path) for path in kept]
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
    if paths is not None:
        write_text(paths_file, "".join(f"{path}\n" for path in paths))
        files.append(str(paths_file))
    seconds = time.perf_counter() - started

    n, dim = rows.shape
    for image in unreadable[:10]:
        console.note(f"left out {image.path}: {image.reason}")
    if len(unreadable) > 10:
        console.note(f"and {len(unreadable) - 10} more")
    weights = "random weights" if is_random else arguments.weights
    console.say(f"{n:,} images, {dim} wide, by {arguments.backbone} with {weights} on {device}")
    if unreadable:
        console.say(f"{len(unreadable):,} images could not be read and were left out")
    for file in files:
        console.say(f"wrote {file}")
    console.say(f"{seconds:.1f} s, {n / seconds:,.0f} images a second")
    console.result(
        {
            "command": "embed",
            "rows": n,
            "dim": dim,
            "backbone": arguments.backbone,
            "weights": arguments.weights,
            "device": str(device),
            "left_out": [{"path": str(i.path), "reason": i.reason} for i in unreadable],
            "files": files,
            "seconds": round(seconds, 3),
        }
    )
