"""Lists of image files."""

from pathlib import Path

import pytest

from raremix.data.listing import image_list_text, read_image_list
from raremix.errors import FileFormatError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = [tmp_path / "p" / "a b.png", tmp_path / "p" / "# x.png", Path("deep/ü.png")]
    (tmp_path / "l.txt").write_text(image_list_text(tmp_path / "p", files), encoding="utf-8")
    found = read_image_list(tmp_path / "l.txt")
    assert found.root == tmp_path / "p"
    assert found.files == ["a b.png", "./# x.png", "deep/ü.png"]
    assert found.located() == [
        tmp_path / "p" / file for file in ("a b.png", "# x.png", "deep/ü.png")
    ]


def test_another_folder_takes_the_place_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("# root: /gone\n# by hand\na/1.png\nb/2.png\n")
    found = read_image_list(tmp_path / "l.txt").below(tmp_path / "new")
    assert found == [tmp_path / "new/a/1.png", tmp_path / "new/b/2.png"]


def test_absolute_paths_lose_the_folders_they_were_moved_from(tmp_path: Path) -> None:
    (tmp_path / "new" / "b").mkdir(parents=True)
    (tmp_path / "new" / "b" / "2.png").touch()
    (tmp_path / "l.txt").write_text("/old/photos/a/1.png\n/old/photos/b/2.png\n")
    found = read_image_list(tmp_path / "l.txt").below(tmp_path / "new")
    assert found == [tmp_path / "new/a/1.png", tmp_path / "new/b/2.png"]


def test_without_a_root_files_lie_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("1.png\n")
    assert read_image_list(tmp_path / "l.txt").located() == [tmp_path / "1.png"]


def test_a_list_of_remarks_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("# root: /x\n")
    with pytest.raises(FileFormatError, match="lists no image"):
        read_image_list(tmp_path / "l.txt")
