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
MARGIN, GAP, LINE, TAG = 24, 12, 26, 26
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
    """Draw the photo and its boxes on the left, the views on the right."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    transform = MultiCropTransform()
    views, rows = transform.with_rows(photo, seed=SEED)
    drawn = from_rows(rows)
    n = transform.n_global_views

    right, top = MARGIN + photo.width + 2 * GAP, MARGIN + LINE
    wide = 228
    small = (2 * wide + GAP - 2 * GAP) // 3
    width = right + 2 * wide + GAP + MARGIN
    height = top + wide + LINE + GAP + LINE + 2 * (small + LINE) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, plain = ImageFont.load_default(size=20), ImageFont.load_default(size=17)

    def tag(x: int, y: int, number: int, color: str) -> None:
        pen.rectangle((x, y, x + TAG, y + TAG), fill=color)
        pen.text((x + TAG / 2, y + TAG / 2), str(number), "white", large, anchor="mm")

    left, up = MARGIN, top
    pen.text((left, up - 8), "One image, and eight boxes drawn for it", INK, large, anchor="ls")
    sheet.paste(photo, (left, up))
    colors = [GLOBAL] * n + [LOCAL] * (len(views) - n)
    for view, color in zip(drawn, colors, strict=True):
        x0, y0, x1, y1 = view.box
        pen.rectangle((left + x0, up + y0, left + x1 - 1, up + y1 - 1), outline=color, width=4)
    # Tags last: none may lie under a box.
    for number, (view, color) in enumerate(zip(drawn, colors, strict=True), 1):
        tag(left + view.box[0], up + view.box[1], number, color)

    for at, (view, color) in enumerate(zip(views, colors, strict=True)):
        if at < n:
            side, x, y = wide, right + at * (wide + GAP), top
        else:
            row, column = divmod(at - n, 3)
            side, x = small, right + column * (small + GAP)
            y = top + wide + LINE + GAP + LINE + row * (small + LINE)
        sheet.paste(seen(view, side), (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=color, width=3)
        tag(x, y, at + 1, color)
        pen.text((x, y + side + 4), changes(drawn[at]), SOFT, plain)
    sizes = [view.size for view in drawn]
    pen.text((right, top - 8), f"{n} global views, {sizes[0]} x {sizes[0]}", GLOBAL, large, anchor="ls")
    words = f"{len(views) - n} local views, {sizes[-1]} x {sizes[-1]}"
    pen.text((right, top + wide + LINE + GAP + LINE - 8), words, LOCAL, large, anchor="ls")
    sheet.save(TARGET, quality=85, optimize=True)


if __name__ == "__main__":
    main()
