"""The page: complete, self-contained, safe, small."""

import builtins
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, read_page

from raremix.errors import EmbeddingShapeError, LabelError, MissingExtraError, OptionError
from raremix.reports import BarChart, LineChart, Section, Table, write_report


def _scores(n: int = 200) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).permutation(n).astype(np.float32)


def _images(n: int = 200) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)


def _cards(path: Path) -> list[str]:
    return re.findall(r'<li class="card">.*?</li>', path.read_text(encoding="utf-8"), re.S)


def test_the_rarest_come_first_with_rank_score_and_percentile(tmp_path: Path) -> None:
    scores = _scores()
    path = write_report(
        tmp_path / "r.html", scores=scores, threshold=189.0, top=12, images=_images()
    )
    cards = _cards(path)
    assert len(cards) == 12
    order = np.argsort(-scores)
    for rank, card in enumerate(cards):
        text = Page(card.replace("</span><", "</span> <")).text.split()
        assert text[0] == str(rank + 1)
        assert str(order[rank]) in text
        assert f"{scores[order[rank]]:g}" in text
        assert (text[1] == "rare") == (scores[order[rank]] > 189)
    assert "rarer than 99.500 %" in cards[0]


def test_the_headline_counts_what_was_scored_and_flagged(tmp_path: Path) -> None:
    scores = np.r_[_scores(), np.nan]
    text = read_page(write_report(tmp_path / "r.html", scores=scores, threshold=189.0)).text
    assert re.search(r"samples scored\s*200\s*1 left out", text)
    assert re.search(r"called rare\s*10\s*5 % of them", text)
    assert re.search(r"threshold\s*189", text)


def test_everything_is_inside_the_file(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", scores=_scores(), threshold=9.0, images=_images())
    page = read_page(path)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    source = path.read_text(encoding="utf-8")
    assert "@import" not in source
    assert "url(" not in source
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source


def test_nothing_a_caller_passes_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=1>"
    table = Table([evil], [[evil]], title=evil, note=evil)
    path = write_report(
        tmp_path / "r.html",
        scores=_scores(20),
        threshold=9.0,
        title=evil,
        names=[evil] * 20,
        labels=[evil] * 20,
        left_out=[(evil, evil)],
        notes=[evil],
        sections=[Section(evil, [table, BarChart(evil, [evil], {evil: [1.0]})], text=evil)],
        command=evil,
        facts={evil: evil},
    )
    page = read_page(path)
    assert "script" not in page.tags
    assert page.text.count(evil) > 20


def test_a_card_shows_its_neighbours_with_distance_and_label(tmp_path: Path) -> None:
    scores = np.arange(10.0)
    path = write_report(
        tmp_path / "r.html",
        scores=scores,
        threshold=8.0,
        images=_images(10),
        labels=[0] * 9 + [1],
        label_names={0: "car", 1: "train"},
        neighbours={9: [(3, 1.25), (4, 2.5)]},
        top=2,
        common=0,
    )
    first, second = _cards(path)
    assert first.count("<img") == 3
    assert second.count("<img") == 1
    assert re.findall(r"<b>([^<]*)</b>", first) == ["1.25", "2.5"]
    assert first.count("car") >= 2
    assert "train" in first


def test_common_samples_are_the_lowest_and_never_rare_ones_too(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "r.html",
        scores=np.arange(5.0),
        threshold=3.0,
        top=3,
        common=8,
        images=_images(5),
    )
    row = path.read_text().partition("most common samples")[2]
    assert re.findall(r"<figcaption><b>([^<]*)</b>", row) == ["0", "1"]


def test_duplicates_are_shown_in_pairs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threshold": 3.0, "duplicates": [(1, 2, 0.125)]}
    path = write_report(tmp_path / "r.html", scores=np.arange(9.0), images=_images(9), **options)
    assert "distance 0.125" in read_page(path).text
    path = write_report(tmp_path / "r.html", scores=np.arange(9.0), **options)
    assert re.search(r"Near duplicates.*distance\s*1\s*2\s*0.125", read_page(path).text, re.S)


def test_without_images_samples_are_rows_with_rank_score_and_neighbours(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "r.html",
        scores=np.arange(30.0),
        threshold=28.0,
        labels=["car"] * 30,
        neighbours={29: [(3, 1.25)]},
        top=2,
        common=1,
    )
    page = read_page(path)
    assert _cards(path) == []
    assert "no picture" not in page.text
    assert re.search(
        r"1\s*29\s+car\s*29\s*96.7 %\s*rare\s*3\s+car\s+1.25\s+2\s*28\s+car\s*28\s*93.3 %",
        page.text,
    )
    assert re.search(r"most common samples.*score\s*0\s+car\s*0\s", page.text, re.S)


def test_labels_get_a_table_with_share_and_lift(tmp_path: Path) -> None:
    scores = np.r_[np.zeros(90), np.ones(10)]
    labels = ["car"] * 95 + ["train"] * 5
    path = write_report(tmp_path / "r.html", scores=scores, threshold=0.5, labels=labels)
    table = path.read_text().partition("By label")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]]
    assert rows == [
        ["train", "5", "5 %", "5", "100 %", "10"],
        ["car", "95", "95 %", "5", "5.26 %", "0.53"],
    ]


def test_rows_without_a_score_or_a_picture_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    scores = np.r_[np.arange(4.0), np.nan]
    path = write_report(
        tmp_path / "r.html",
        scores=scores,
        threshold=2.0,
        images=[tmp_path / "bad.png"] * 5,
        names=[f"photo{n}.png" for n in range(5)],
        left_out=[("2 images", "could not be decoded")],
    )
    text = read_page(path).text.partition("Left out")[2]
    assert re.search(r"photo4.png\s*no score: the embedding holds NaN or infinity", text)
    assert "the picture of photo3.png" in text
    assert "could not be decoded" in text
    assert "cannot be read" in _cards(path)[0]


def test_sections_hold_tables_and_charts(tmp_path: Path) -> None:
    section = Section(
        "Does it help",
        [
            Table(["arm", "few"], [["plain", 0.25], ["replay", None]], title="runs"),
            BarChart("accuracy", ["many", "few"], {"plain": [0.7, 0.3], "replay": [0.7, 0.4]}),
            LineChart("share", [0, 1], {"buffer": [0.1, 0.3]}, note="per epoch"),
        ],
    )
    path = write_report(tmp_path / "r.html", scores=_scores(), threshold=9.0, sections=[section])
    page = read_page(path)
    # Every chart is there twice, for wide and for narrow screens.
    assert page.tags.count("svg") == 2 * 3
    for words in ("Does it help", "runs", "replay", "per epoch", "0.25", "–"):  # noqa: RUF001
        assert words in page.text


def test_the_same_numbers_make_the_sameread_page(tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / name, scores=_scores(), threshold=9.0, images=_images())
        for name in ("a.html", "b.html")
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_hundred_cards_of_photographs_stay_under_three_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def photo(row: int) -> np.ndarray[Any, Any]:
        # Coarse noise is as hard on JPEG as foliage.
        coarse = noise.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        return coarse.repeat(10, axis=0).repeat(10, axis=1)

    scores = np.arange(500.0)
    path = write_report(
        tmp_path / "r.html",
        scores=scores,
        threshold=475.0,
        images=photo,
        neighbours={row: [(row - 9 - n, 1.0) for n in range(4)] for row in range(400, 500)},
        top=100,
    )
    assert path.read_text().count("<img") == 508
    assert path.stat().st_size < 3e6


def test_a_failure_leaves_the_old_page_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, scores=_scores(), threshold=9.0)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("scores", [np.zeros((2, 2)), np.array([np.nan]), np.empty(0)])
def test_scores_that_hold_no_number_are_refused(tmp_path: Path, scores: Any) -> None:
    with pytest.raises(EmbeddingShapeError, match=r"write_report expects scores of shape \(n,\)"):
        write_report(tmp_path / "r.html", scores=scores, threshold=0.0)


def test_lengths_and_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path, scores = tmp_path / "r.html", np.arange(3.0)
    with pytest.raises(LabelError, match="got 2 labels for 3 scores"):
        write_report(path, scores=scores, threshold=1.0, labels=[0, 1])
    with pytest.raises(LabelError, match="got 1 names for 3 scores"):
        write_report(path, scores=scores, threshold=1.0, names=["a"])
    with pytest.raises(OptionError, match="top and common of 0 or more, got -1"):
        write_report(path, scores=scores, threshold=1.0, top=-1)
    with pytest.raises(OptionError, match="does not exist"):
        write_report(tmp_path / "no" / "r.html", scores=scores, threshold=1.0)
    with pytest.raises(OptionError, match="expects 2 cells in each row"):
        Table(["a", "b"], [["c"]])
    assert not path.exists()


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_jinja2(name: str, *rest: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_jinja2)
    with pytest.raises(MissingExtraError, match=r'pip install "raremix\[report\]"'):
        write_report(tmp_path / "r.html", scores=_scores(), threshold=9.0)
