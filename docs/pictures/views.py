"""Draws the picture of the page on views: a photo, the boxes drawn for it, and the views they give.

python docs/pictures/views.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image
from torch import Tensor

from raremix import MultiCropTransform
from raremix.views import ViewParameters, from_rows

SEED = 2286  # one whose boxes keep clear of each other, with all kinds of changes
TARGET = Path(__file__).with_name("views.jpg")
MARGIN, GAP, LINE, TAG = 24, 12, 26, 24
PAPER, INK, SOFT = "#fcfbf9", "#1c1b1a", "#6b6862"
GLOBAL, LOCAL = "#b5471f", "#1f6fb5"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def seen(view: Tensor, side: int) -> Image.Image:
    """A view as a picture again, its normalisation undone."""
    pixels = view.permute(1, 2, 0).numpy() * STD + MEAN
    picture = Image.fromarray((255 * pixels).round().clip(0, 255).astype(np.uint8))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def changes(drawn: ViewParameters) -> str:
    """What was done to a view, but for the jitter that most have."""
    done = {
        "mirror": drawn.flipped,
        "gray": drawn.grayscale,
        "blur": drawn.blur_sigma > 0,
        "solarize": drawn.solarized,
    }
    return ", ".join(name for name, is_done in done.items() if is_done)


def main() -> None:
    """Draw the photo and its boxes, the global views to the right, the local ones below."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    transform = MultiCropTransform()
    views, rows = transform.with_rows(photo, seed=SEED)
    drawn = from_rows(rows)
    n = transform.n_global_views
    n_local = len(views) - n

    left, top = MARGIN, MARGIN + LINE
    right, below = left + photo.width + MARGIN, top + photo.height + 2 * LINE + GAP
    wide = (photo.height - LINE - GAP) // 2
    width = right + wide + MARGIN
    small = (width - 2 * MARGIN - (n_local - 1) * GAP) // n_local
    sheet = Image.new("RGB", (width, below + small + LINE + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, plain = ImageFont.load_default(size=18), ImageFont.load_default(size=16)

    def heading(x: int, y: int, words: str, color: str) -> None:
        pen.text((x, y - 8), words, color, large, anchor="ls")

    def tag(x: int, y: int, number: int, color: str) -> None:
        pen.rectangle((x, y, x + TAG, y + TAG), fill=color)
        pen.text((x + TAG / 2, y + TAG / 2), str(number), "white", large, anchor="mm")

    heading(left, top, "One image, and the eight boxes drawn for it", INK)
    sheet.paste(photo, (left, top))
    colors = [GLOBAL] * n + [LOCAL] * n_local
    for what, color in zip(drawn, colors, strict=True):
        x0, y0, x1, y1 = what.box
        pen.rectangle((left + x0, top + y0, left + x1 - 1, top + y1 - 1), outline=color, width=4)
    # Tags last: none may lie under a box.
    for number, (what, color) in enumerate(zip(drawn, colors, strict=True), 1):
        tag(left + what.box[0], top + what.box[1], number, color)

    sizes = [what.size for what in drawn]
    heading(right, top, f"{n} global, {sizes[0]} x {sizes[0]}", GLOBAL)
    heading(left, below, f"{n_local} local, {sizes[-1]} x {sizes[-1]}", LOCAL)
    for at, (view, color) in enumerate(zip(views, colors, strict=True)):
        if at < n:
            side, x, y = wide, right, top + at * (wide + LINE + GAP)
        else:
            side, x, y = small, left + (at - n) * (small + GAP), below
        sheet.paste(seen(view, side), (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=color, width=3)
        tag(x, y, at + 1, color)
        pen.text((x, y + side + 4), changes(drawn[at]), SOFT, plain)
    sheet.save(TARGET, quality=82, optimize=True)


if __name__ == "__main__":
    main()
