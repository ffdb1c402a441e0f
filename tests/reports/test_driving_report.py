"""The page of a driving folder: complete, self-contained, safe, small, and right about what it shows."""

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import read_page
from PIL import Image

from raremix.data.driving import read_folder
from raremix.data.frames import Frames
from raremix.errors import EmbeddingShapeError, OptionError
from raremix.evaluation import evaluate_classes
from raremix.regions.boxes import window_grid
from raremix.regions.detector import FrameDetection
from raremix.regions.neighbours import RegionNeighbour, nearest_regions
from raremix.regions.regions import Regions
from raremix.reports import BarChart, Section, Table, write_driving_report

COUNT, HEIGHT, WIDTH = 30, 120, 160


def write_frames(
    folder: Path, count: int = COUNT, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Frames:
    """Two clips of grey frames; the brightness of each is four times its number."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((*size, 3), 4 * (number % 60), dtype=np.uint8)
        clip = "day" if number < count // 2 else "night"
        Image.fromarray(pixels).save(folder / f"{clip}_{number:03}.png")
    return read_folder(folder, fps=1)


def detect(
    count: int = COUNT, *, flags: int = 4, size: tuple[int, int] = (HEIGHT, WIDTH), dim: int = 3
) -> FrameDetection:
    """Frames whose object scores fall with their number, and whose scene scores rise with it."""
    boxes, scale = window_grid(*size)
    random = torch.Generator().manual_seed(0)
    n = len(boxes)
    scores = torch.rand(count * n, generator=random)
    # In frame f, window 3 + f is the rarest, and then the first one.
    for frame in range(count):
        scores[frame * n + 3 + frame] = 20.0 + count - frame
        scores[frame * n] = 19.0 + count - frame
    objects = torch.arange(count, 0, -1).float() + 19
    return FrameDetection(
        regions=Regions(
            embeddings=torch.randn(count * n, dim, generator=random),
            boxes=boxes.repeat(count, 1),
            scale=scale.repeat(count),
            frame=torch.arange(count).repeat_interleave(n),
            scenes=torch.zeros(count, 1),
            ids=torch.arange(count),
            sizes=torch.tensor([size] * count),
        ),
        region_scores=scores,
        object_scores=objects,
        scene_scores=torch.arange(count).float(),
        is_object_rare=torch.arange(count) < flags,
        is_scene_rare=torch.arange(count) >= count - flags,
        object_threshold=float(objects[flags]) if flags < count else 0.0,
        scene_threshold=float(count - flags) - 0.5,
    )


def written(tmp_path: Path, **options: Any) -> Path:
    given: dict[str, Any] = {"detection": detect(), "frames": None}
    given.update(options)
    frames = given.pop("frames") or write_frames(tmp_path / "frames")
    return write_driving_report(tmp_path / "page.html", frames=frames, **given)


def part(path: Path, title: str) -> str:
    """The source of the section with this heading."""
    text = path.read_text(encoding="utf-8")
    return text.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def cards(source: str) -> list[str]:
    return re.findall(r'<li class="card.*?</li>', source, re.S)


def pictures(source: str) -> list[tuple[str, Image.Image]]:
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"[^>]* alt="([^"]*)"', source)
    return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for data, alt in found]


def boxes_of(source: str) -> list[tuple[int, ...]]:
    found = re.findall(r'<rect x="(-?\d+)" y="(-?\d+)" width="(\d+)" height="(\d+)"/>', source)
    return [tuple(map(int, numbers)) for numbers in found]


def test_everything_is_inside_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    page = read_page(path)
    outside = [one for one in page.addresses if not one.startswith(("data:image/", "#"))]
    assert outside == []
    # What is pointed at within the page is there.
    assert {one[1:] for one in page.addresses if one.startswith("#")} <= set(page.ids)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    source = path.read_text(encoding="utf-8")
    assert "url(" not in source
    assert "@import" not in source
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    assert "default-src 'none'" in source


def test_the_headline_counts_frames_of_each_kind(tmp_path: Path) -> None:
    found = detect()
    both = replace(found, is_scene_rare=found.is_scene_rare | (torch.arange(COUNT) == 1))
    kept = torch.arange(COUNT - 3)
    some = replace(
        both,
        regions=both.regions.of_frames(kept),
        region_scores=both.region_scores[: int((both.regions.frame < COUNT - 3).sum())],
        object_scores=both.object_scores[kept],
        scene_scores=both.scene_scores[kept],
        is_object_rare=both.is_object_rare[kept],
        is_scene_rare=both.is_scene_rare[kept],
    )
    text = read_page(written(tmp_path, detection=some)).text
    assert re.search(r"frames judged\s*27\s*3 left out", text)
    assert re.search(r"with a rare object\s*4\s*14.8 %, 3 in ordinary scenes", text)
    assert re.search(r"rare as a scene\s*2\s*7.41 % of the frames", text)
    assert re.search(r"both\s*1\s*counted in each", text)


def test_flagged_frames_come_rarest_first_with_score_kind_clip_and_time(tmp_path: Path) -> None:
    path = written(tmp_path)
    found = cards(part(path, "Where they are"))
    assert len(found) == 4
    for rank, card in enumerate(found):
        assert f"<span>{rank + 1}</span>" in card
        assert f'<div class="score">{COUNT - rank + 19}</div>' in card
        assert "rare object, ordinary scene" in card
        assert f"clip day, at {rank}.0 s" in card
        assert f"day_{rank:03}.png" in card
        assert f"scene {rank}, below its threshold of 25.5" in card


def test_the_rare_regions_are_framed_where_they_are(tmp_path: Path) -> None:
    detection = detect()
    card = cards(part(written(tmp_path, detection=detection), "Where they are"))[2]
    rows = detection.rare_rows(2).tolist()
    assert len(rows) >= 2
    expected = [
        (left, top, right - left, bottom - top)
        for left, top, right, bottom in detection.regions.boxes[rows].tolist()
    ]
    picture, _, heat = card.partition("Heat map of")
    assert boxes_of(picture) == boxes_of(heat) == expected
    assert f'viewBox="0 0 {WIDTH} {HEIGHT}"' in card
    assert f"region 1: {detection.region_scores[rows[0]]:.4g}" in card


def test_pictures_are_those_of_the_frames(tmp_path: Path) -> None:
    path = written(tmp_path)
    frames = [one for one in pictures(part(path, "Where they are")) if one[0].startswith("Frame")]
    scenes = pictures(part(path, "Rare scenes"))
    assert [round(np.asarray(image).mean() / 4) for _, image in frames] == [0, 1, 2, 3]
    assert [round(np.asarray(image).mean() / 4) for _, image in scenes] == [29, 28, 27, 26]
    assert frames[1][0] == "Frame day_001.png, 2 rare regions marked"


def test_a_heat_map_is_bright_where_its_frame_is_rare(tmp_path: Path) -> None:
    detection = detect(flags=1)
    scores = torch.zeros_like(detection.region_scores)
    corner = (detection.regions.boxes[:, :2] >= torch.tensor([WIDTH // 2, HEIGHT // 2])).all(dim=1)
    scores[corner] = 30.0
    path = written(tmp_path, detection=replace(detection, region_scores=scores))
    ((alt, image),) = [
        one for one in pictures(part(path, "Where they are")) if one[0].startswith("Heat")
    ]
    assert alt == "Heat map of day_000.png, brightest at the bottom right"
    grey = np.asarray(image.convert("L")).astype(float)
    height, width = grey.shape
    assert grey[height // 2 :, width // 2 :].mean() > 4 * grey[: height // 2, : width // 2].mean()


def test_the_colours_are_explained_in_words(tmp_path: Path) -> None:
    text = read_page(written(tmp_path)).text
    assert "The brighter, the rarer" in text
    assert re.search(r"usual, 0 or less\s*rare, [\d.]+ or more", text)


def test_rare_objects_stand_beside_their_neighbours_of_other_frames(tmp_path: Path) -> None:
    detection = detect()
    rows = [int(detection.rare_rows(frame, most=1)[0]) for frame in range(4)]
    near = dict(zip(rows, nearest_regions(detection.regions, rows, count=3), strict=True))
    labels = {rows[1]: "bicyclist", near[rows[1]][0].row: "pole"}
    path = written(tmp_path, detection=detection, neighbours=near, labels=labels)
    found = cards(part(path, "Rare objects"))
    assert len(found) == 4
    for frame, card in enumerate(found):
        shown = pictures(card)
        others = near[rows[frame]]
        assert len(shown) == 4
        brightness = [round(np.asarray(image).mean() / 4) for _, image in shown]
        assert brightness == [frame, *(one.frame for one in others)]
        distances = re.findall(r"<figcaption><b>([^<]*)</b>", card)
        assert distances == [f"{one.distance:.4g}" for one in others]
    assert '<span class="tag">bicyclist</span>' in found[1]
    assert pictures(found[1])[0][0] == "Region of day_001.png, bicyclist"
    assert pictures(found[1])[1][0].endswith(", pole")


def test_a_region_is_framed_inside_what_is_shown_around_it(tmp_path: Path) -> None:
    detection = detect()
    card = cards(part(written(tmp_path, detection=detection), "Rare objects"))[0]
    ((left, top, width, height),) = boxes_of(card)
    box = detection.regions.boxes[int(detection.rare_rows(0, most=1)[0])].tolist()
    assert (width, height) == (box[2] - box[0], box[3] - box[1])
    view = re.search(r'viewBox="0 0 (\d+) (\d+)"', card)
    assert view is not None
    side, other = map(int, view.groups())
    assert side == other > width
    assert 0 <= left <= side - width
    assert 0 <= top <= side - height


def test_only_the_frames_asked_for_are_shown_and_in_that_order(tmp_path: Path) -> None:
    path = written(tmp_path, object_frames=[3, 1], scene_frames=[27], top=5)
    names = [re.findall(r"day_\d+", card)[0] for card in cards(part(path, "Rare objects"))]
    assert names == ["day_003", "day_001"]
    assert "Of 4 frames with a rare object 2 are shown" in read_page(path).text
    assert [alt for alt, _ in pictures(part(path, "Rare scenes"))] == ["Frame night_027.png"]
    path = written(tmp_path, top=1, scenes=0)
    assert len(cards(part(path, "Where they are"))) == 1
    assert pictures(part(path, "Rare scenes")) == []


def test_each_clip_has_a_timeline_and_short_ones_share_one(tmp_path: Path) -> None:
    source = part(written(tmp_path), "Over time")
    assert re.findall(r"<h3>(.*?)</h3>", source) == ["clip day", "clip night"]
    assert source.count("<svg") == 4  # each for wide and for narrow screens
    assert "15 frames: 4 with a rare object, 0 rare scenes" in source
    assert "<title>day_002.png: 47</title>" in source
    single = [replace(one, clip=one.name) for one in write_frames(tmp_path / "frames").frames]
    alone = written(tmp_path, frames=Frames(tmp_path / "frames", single, {}))
    source = part(alone, "Over time")
    assert re.findall(r"<h3>(.*?)</h3>", source) == ["30 clips"]
    assert "frames, in the order of the set" in source


def test_of_very_many_clips_only_those_with_flags_have_their_own_timeline(tmp_path: Path) -> None:
    count = 20 * 8
    frames = write_frames(tmp_path / "frames", count)
    many = [replace(one, clip=f"c{n // 8:02}") for n, one in enumerate(frames.frames)]
    path = written(
        tmp_path, detection=detect(count, flags=10), frames=Frames(tmp_path, many, {}), top=2
    )
    titles = re.findall(r"<h3>(.*?)</h3>", part(path, "Over time"))
    assert titles[:2] == ["clip c00", "clip c01"]
    assert {"clip c18", "clip c19"} <= set(titles)
    assert titles[-1] == "8 other clips"
    assert "Of 20 clips the 12 with the most flagged frames" in read_page(path).text


def test_frames_that_cannot_be_read_any_more_are_blank_and_listed(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames")
    frames.frames[0].path.unlink()
    frames.frames[1].path.write_bytes(b"cut short")
    Image.new("RGB", (30, 20)).save(frames.frames[2].path)
    detection = detect()
    rows = [int(detection.rare_rows(frame, most=1)[0]) for frame in range(4)]
    neighbours = {rows[3]: [RegionNeighbour(rows[0], 0, 1.5)]}
    path = written(tmp_path, frames=frames, detection=detection, neighbours=neighbours)
    found = cards(part(path, "Rare objects"))
    assert ["cannot be read" in card for card in found] == [True] * 4
    assert [len(pictures(card)) for card in found] == [0, 0, 0, 1]
    listed = read_page(path).text.partition("Left out")[2]
    assert re.search(r"the picture of day_000.png\s*.*there is no such file", listed)
    assert re.search(r"the picture of day_001.png\s*.*no image that Pillow knows", listed)
    assert "it has 30 x 20 pixels now and had 160 x 120" in listed
    assert "no heat map" in part(path, "Where they are")


def test_a_long_list_of_what_was_left_out_is_cut_and_counted(tmp_path: Path) -> None:
    left_out = [(f"ride/{n:04}.png", "cut short") for n in range(3000)]
    text = read_page(written(tmp_path, left_out=left_out)).text
    assert "ride/0099.png" in text
    assert "ride/0100.png" not in text
    assert "and 2,900 more" in text


def test_classes_show_recall_with_interval_and_what_is_possible(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    holds = random.random((400, 2)) < (0.2, 0.0)
    holds[5:7, 1] = True
    scores = random.normal(size=400) + holds[:, 0]
    rows = evaluate_classes(
        scores,
        holds,
        names=["bus", "train"],
        rates=[0.05],
        groups=np.arange(400) // 2,
        resamples=20,
    )
    path = written(tmp_path, classes={"regions": rows})
    table = part(path, "By class").partition("<table>")[2].partition("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert heads == [
        "class",
        "holding it",
        "judged",
        "in groups",
        "found at 5 %",
        "at best",
        "AUROC",
    ]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]]
    assert [line[0] for line in cells] == ["bus", "train", "any rare"]
    for line, row in zip(cells, rows, strict=True):
        at = row.rates[0]
        assert at.recall_interval is not None
        assert line[1:4] == [str(row.count), "400", str(row.groups)]
        low, high = 100 * at.recall_interval.low, 100 * at.recall_interval.high
        assert line[4] == f"{100 * at.recall:.0f} % ({low:.0f} to {high:.0f})"
        assert line[5] == f"{100 * at.best_recall:.0f} %"
    assert rows[1].notes
    assert rows[1].notes[0] in read_page(path).text


def test_without_labels_nothing_is_said_of_classes(tmp_path: Path) -> None:
    assert "By class" not in read_page(written(tmp_path)).text


def test_nothing_flagged_makes_a_page_that_says_so(tmp_path: Path) -> None:
    quiet = replace(
        detect(flags=0), object_threshold=math.inf, scene_threshold=math.inf,
        scene_scores=torch.full((COUNT,), math.nan),
    )  # fmt: skip
    text = read_page(written(tmp_path, detection=quiet)).text
    assert "No frame has a rare object." in text
    assert "No frame is rare as a whole." in text
    assert "Where they are" not in text


def test_nothing_a_caller_passes_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=1>"
    detection = detect()
    frames = write_frames(tmp_path / "frames")
    named = [replace(one, name=f"{n} {evil}", clip=evil) for n, one in enumerate(frames.frames)]
    row = int(detection.rare_rows(0, most=1)[0])
    rows = evaluate_classes([0.1, 0.2, 0.3], [[True], [False], [False]], names=[evil], resamples=0)
    path = written(
        tmp_path,
        detection=detection,
        frames=Frames(frames.root, named, {}),
        title=evil,
        labels={row: evil},
        neighbours={row: [RegionNeighbour(row, 0, 1.0)]},
        classes={evil: rows},
        left_out=[(evil, evil)],
        notes=[evil],
        sections=[
            Section(evil, [Table([evil], [[evil]]), BarChart(evil, [evil], {evil: [1.0]})], evil)
        ],
        command=evil,
        facts={evil: evil},
    )
    page = read_page(path)
    assert "script" not in page.tags
    assert page.text.count(evil) > 20


def test_the_command_and_the_facts_end_the_page(tmp_path: Path) -> None:
    path = written(tmp_path, command="python driving.py frames", facts={"versions": "raremix 1"})
    assert re.search(
        r"How this page was made\s*python driving.py frames\s*versions\s*raremix 1\s*$",
        read_page(path).text,
    )


def test_the_same_numbers_make_the_same_page(tmp_path: Path) -> None:
    first = written(tmp_path).read_bytes()
    assert written(tmp_path).read_bytes() == first


@pytest.mark.parametrize("size", [(360, 480), (480, 480)])
def test_a_full_page_of_busy_frames_stays_under_three_megabytes(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    detection = detect(40, flags=24, size=size)
    frames = write_frames(tmp_path / "frames", 40, size=(8, 8))
    noise = np.random.default_rng(0)
    for frame in frames.frames:
        # Coarse noise is as hard on JPEG as foliage.
        coarse = noise.integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(frame.path, compress_level=1)
    rows = [int(detection.rare_rows(frame, most=1)[0]) for frame in range(24)]
    near = nearest_regions(detection.regions, rows)
    path = written(
        tmp_path,
        detection=detection,
        frames=frames,
        neighbours=dict(zip(rows, near, strict=True)),
    )
    assert path.read_text().count("<img") == 24 * 2 + 24 * 5 + 12
    assert path.stat().st_size < 3e6


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames")
    with pytest.raises(EmbeddingShapeError, match=r"30 frames with ids up to 29 for a set of 5"):
        written(tmp_path, frames=frames.subset(list(range(5))))
    with pytest.raises(OptionError, match=r"object_frames as rows of the 4 of 30 frames .* got 7"):
        written(tmp_path, object_frames=[1, 7])
    with pytest.raises(OptionError, match=r"scene_frames as rows .* got 30"):
        written(tmp_path, scene_frames=[30])
    with pytest.raises(OptionError, match="top as a whole number of at least 0, got -1"):
        written(tmp_path, top=-1)
    with pytest.raises(OptionError, match="does not exist"):
        write_driving_report(tmp_path / "no" / "p.html", detection=detect(), frames=frames)
    assert not (tmp_path / "page.html").exists()
