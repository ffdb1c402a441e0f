"""``raremix report``: pictures from everywhere, neighbours, duplicates."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raremix.cli import main


@pytest.fixture
def here(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    np.save(tmp_path / "e.npy", generator.normal(size=(30, 4)).astype(np.float32))
    pixels = generator.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", images=pixels)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02}.png")
    names = "".join(f"{number:02}.png\n" for number in range(30))
    (tmp_path / "photos" / "list.txt").write_text(names)
    return tmp_path


def _run(here: Path, *words: Any) -> str:
    assert main(["report", f"{here}/e.npy", "--out", f"{here}/r.html", *map(str, words)]) == 0
    return (here / "r.html").read_text(encoding="utf-8")


def _pictures(page: str) -> list[str]:
    return re.findall(r'src="(data:[^"]*)"', page)


def test_folder_array_and_list_show_the_same_pictures(here: Path) -> None:
    pages = [
        _run(here, "--images", here / where) for where in ("photos", "i.npz", "photos/list.txt")
    ]
    assert len(_pictures(pages[0])) > 30
    assert _pictures(pages[0]) == _pictures(pages[1]) == _pictures(pages[2])
    assert "07.png" in pages[0]


def test_a_list_of_paths_says_which_files_of_a_folder_are_meant(here: Path) -> None:
    # Backwards, so that the order of the list and that of the folder differ.
    names = "".join(f"{number:02}.png\n" for number in reversed(range(30)))
    (here / "e.paths.txt").write_text(names)
    turned = _run(here, "--images", here / "photos", "--top", 1)
    (here / "e.paths.txt").unlink()
    plain = _run(here, "--images", here / "photos", "--top", 1)
    assert _pictures(turned)[0] != _pictures(plain)[0]


def test_the_neighbours_are_the_nearest_rows(here: Path) -> None:
    rows = np.load(here / "e.npy").astype(np.float64)
    page = _run(here, "--top", 3, "--k", 5)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    rarest = np.argsort(-np.sort(distances, axis=1)[:, 5])[:3]
    for row, card in zip(rarest, re.findall(r'class="sample".*?</tr>', page, re.S), strict=True):
        shown = [float(value) for value in re.findall(r'class="near">.*?</b> ([^<]*)</span>', card)]
        assert shown == pytest.approx(np.sort(distances[row])[1:5].tolist(), rel=1e-3)


def test_the_page_says_which_distance_it_shows(here: Path) -> None:
    for options, metric in (((), "euclidean"), (("--metric", "cosine"), "cosine")):
        page = " ".join(_run(here, *options).split())
        assert re.search(rf"distances to neighbours</\w+>\s*<\w+[^>]*>{metric}<", page)


def test_near_duplicates_are_found_once_each(here: Path) -> None:
    rows = np.load(here / "e.npy")
    rows[3] = rows[20]
    np.save(here / "e.npy", rows)
    page = _run(here, "--images", here / "photos")
    pairs = page.partition("Near duplicates")[2]
    assert pairs.count('class="pair"') == 1
    assert "03.png" in pairs
    assert "20.png" in pairs


def test_scores_that_exist_are_shown_as_they_are(here: Path) -> None:
    np.save(here / "s.npy", np.arange(30, dtype=np.float32))
    page = _run(here, "--scores", here / "s.npy", "--rate", 0.1, "--top", 1)
    assert '<td class="n score">29</td>' in page
    assert re.search(r'called rare</dt><dd class="big">3<', page)


def test_rows_with_nan_are_listed_and_no_neighbours(here: Path) -> None:
    rows = np.load(here / "e.npy")
    rows[4] = np.nan
    np.save(here / "e.npy", rows)
    page = _run(here, "--images", here / "i.npz")
    assert "the embedding holds NaN or infinity" in page
    assert 'title="4"' not in page.partition("Left out")[0]


def test_labels_and_command_are_on_the_page(here: Path) -> None:
    (here / "labels.txt").write_text("".join("ab"[n % 2] + "\n" for n in range(30)))
    page = _run(here, "--labels", here / "labels.txt")
    assert "By label" in page
    assert f"raremix report {here}/e.npy" in page


def test_siblings_are_not_shown_as_neighbours(here: Path) -> None:
    (here / "ids.txt").write_text("".join(f"{n // 10}\n" for n in range(30)))
    images = ("--images", here / "i.npz")
    page = _run(here, "--ids", here / "ids.txt", "--top", 2, "--k", 3, *images)
    for card in re.findall(r'class="card".*?</li>', page, re.S):
        own, *others = re.findall(r'class="(?:more )?name" title="(\d)"', card)
        assert len(others) == 4
        assert own not in others


def test_another_number_of_images_is_explained(here: Path, capsys: Any) -> None:
    (here / "photos" / "07.png").unlink()
    assert (
        main(["report", f"{here}/e.npy", "--out", f"{here}/r.html", "--images", f"{here}/photos"])
        == 1
    )
    err = capsys.readouterr().err
    assert "has 29 images for 30 rows" in err
    assert "pass --paths" in err


def test_images_win_over_the_absolute_paths_of_a_list_made_elsewhere(here: Path) -> None:
    (here / "photos" / "a").mkdir()
    for file in (here / "photos").glob("*.png"):
        file.rename(file.parent / "a" / file.name)
    lines = "".join(f"/somewhere/else/a/{number:02}.png\n" for number in range(30))
    (here / "e.paths.txt").write_text(lines)
    assert len(_pictures(_run(here, "--images", here / "photos"))) > 30


def test_a_folder_without_any_file_of_the_list_is_an_error(here: Path, capsys: Any) -> None:
    (here / "e.paths.txt").write_text("".join(f"x{number}.png\n" for number in range(30)))
    words = ["report", f"{here}/e.npy", "--out", f"{here}/r.html", "--images", f"{here}/photos"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "has none of the 30 files that" in err
    assert "x0.png" in err
    assert not (here / "r.html").exists()


def test_pictures_that_cannot_be_read_are_counted(here: Path, capsys: Any) -> None:
    for number in range(29):
        (here / "photos" / f"{number:02}.png").write_bytes(b"broken")
    _run(here, "--images", here / "photos", "--json")
    out, err = capsys.readouterr()
    assert "raremix: 29 of 30 pictures could not be read, the first: 00.png: " in err
    assert json.loads(out)["pictures"] == {"shown": 1, "unreadable": 29}


def test_without_images_there_are_rows_of_numbers_and_no_empty_frames(here: Path) -> None:
    rows = np.load(here / "e.npy")
    rows[3] = rows[20]
    np.save(here / "e.npy", rows)
    page = _run(here)
    assert "no picture" not in page
    assert page.count('class="sample"') == 30
    assert page.count('class="frame"') == 0
    assert page.count('class="pair-row"') == 1
