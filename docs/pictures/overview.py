"""Draws the picture of the README from what `make demo` left behind.

python docs/pictures/overview.py demo docs/pictures/overview.svg
"""

import base64
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import raremix

WIDTH, HEIGHT, TILE, GAP = 1000, 330, 44, 6
PAPER, INK, SOFT, COMMON, RARE = "#fcfbf9", "#1c1b1a", "#6b6862", "#a9b0b7", "#b5471f"


def digit(pixels: np.ndarray, x: float, y: float, border: str) -> str:
    """One handwritten digit as a framed tile."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    frame = f'<rect x="{x - 1.5}" y="{y - 1.5}" width="{TILE + 3}" height="{TILE + 3}" rx="3" '
    return (
        f'{frame}fill="{border}"/><image x="{x}" y="{y}" width="{TILE}" height="{TILE}" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def text(
    x: float, y: float, words: str, color: str = INK, size: int = 14, weight: int = 400
) -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" fill="{color}" font-size="{size}" font-weight="{weight}">{words}</text>'


def main() -> None:
    """Score, bin, draw."""
    demo, target = Path(sys.argv[1]), Path(sys.argv[2])
    embeddings = np.load(demo / "embeddings.npy")
    with np.load(demo / "images.npz") as archive:
        images, labels = archive["images"], archive["label"]
    found = raremix.OODDetector().fit(embeddings)
    scores = found.scores.numpy()
    order = np.argsort(-scores)

    parts = [text(30, 42, "How rare is each image?", size=17, weight=600)]
    left, right, top, floor = 30, 420, 70, 280
    counts, edges = np.histogram(scores, bins=40)
    step = (right - left) / len(counts)
    for index, (count, edge) in enumerate(zip(counts, edges, strict=False)):
        tall = (floor - top) * count / counts.max()
        color = RARE if edge > found.threshold else COMMON
        parts.append(
            f'<rect x="{left + index * step:.1f}" y="{floor - tall:.1f}" width="{step - 1.5:.1f}" '
            f'height="{tall:.1f}" fill="{color}"/>'
        )
    cut = left + (right - left) * (found.threshold - edges[0]) / (edges[-1] - edges[0])
    parts.append(f'<path d="M{cut:.1f} {top - 6}V{floor}" stroke="{RARE}" stroke-width="1.5"/>')
    parts.append(f'<path d="M{left} {floor}H{right}" stroke="{SOFT}"/>')
    parts.append(text(cut + 6, top + 6, "flagged: 5 %", RARE, 13))
    parts.append(text(left, floor + 22, "rarity score: how empty the surroundings are", SOFT, 13))

    begin, columns = 470, 10
    rows = {
        f"the {2 * columns} rarest of {len(labels)}": (order[: 2 * columns], RARE),
        f"{2 * columns} at random": (
            np.random.default_rng(0).permutation(len(labels))[: 2 * columns],
            COMMON,
        ),
    }
    for band, (title, (chosen, color)) in enumerate(rows.items()):
        y = 42 + band * 142
        tail = (labels[chosen] >= 7).mean()
        parts.append(text(begin, y, title, size=17, weight=600))
        parts.append(
            text(begin + 250, y, f"{100 * tail:.0f} % are 7, 8 or 9, the rarest digits", SOFT, 13)
        )
        for place, image in enumerate(chosen):
            x = begin + place % columns * (TILE + GAP)
            parts.append(digit(images[image], x, y + 14 + place // columns * (TILE + GAP), color))
    body = "\n".join(parts)
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif"><rect width="{WIDTH}" height="{HEIGHT}" rx="10" '
        f'fill="{PAPER}"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
