import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raremix
from raremix.data.writing import NpyWriter, target_path, write_npy
from raremix.errors import EmbeddingShapeError, OptionError


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 7), max_size=6),
    dim=st.integers(1, 5),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64"]),
)
def test_rows_written_piece_by_piece_are_the_concatenation(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dim: int, dtype: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    parts = [np.full((size, dim), n, dtype=dtype) for n, size in enumerate(sizes)]
    with NpyWriter(path, dim=dim, dtype=dtype) as writer:
        for part in parts:
            writer.write(part)
    expected = np.concatenate([np.empty((0, dim), dtype), *parts])
    read = np.load(path, allow_pickle=False)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_the_final_name_appears_only_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with NpyWriter(path, dim=2) as writer:
        writer.write(np.ones((3, 2)))
        assert not path.exists()
        assert (tmp_path / "rows.npy.part").exists()
    assert os.listdir(tmp_path) == ["rows.npy"]
    assert writer.rows == 3


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    write_npy(path, np.arange(3))

    def fail() -> None:
        with NpyWriter(path, dim=2) as writer:
            writer.write(np.ones((3, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ["rows.npy"]
    np.testing.assert_array_equal(np.load(path), np.arange(3))


@pytest.mark.parametrize(
    "work",
    [
        """
        with NpyWriter(path, dim=4) as writer:
            writer.write(np.ones((1000, 4)))
            print("writing", flush=True)
            time.sleep(60)
        """,
        """
        save = np.save
        def slow(file, array, **options):
            save(file, array, **options)
            print("writing", flush=True)
            time.sleep(60)
        np.save = slow
        write_npy(path, np.ones((1000, 4)))
        """,
    ],
    ids=["NpyWriter", "write_npy"],
)
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_file_whole(tmp_path: Path, work: str) -> None:
    path = tmp_path / "rows.npy"
    write_npy(path, np.arange(3))
    head = f"""
        import time, numpy as np
        from raremix.data.writing import NpyWriter, write_npy
        path = {str(path)!r}
    """
    code = textwrap.dedent(head) + textwrap.dedent(work)
    source = str(Path(raremix.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    np.testing.assert_array_equal(np.load(path), np.arange(3))


def test_the_name_is_taken_exactly_and_a_link_stays_a_link(tmp_path: Path) -> None:
    write_npy(tmp_path / "no_suffix", np.arange(3))
    assert os.listdir(tmp_path) == ["no_suffix"]
    (tmp_path / "link").symlink_to(tmp_path / "no_suffix")
    write_npy(tmp_path / "link", np.arange(5))
    assert (tmp_path / "link").is_symlink()
    assert len(np.load(tmp_path / "no_suffix")) == 5


def test_a_failed_write_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_npy(tmp_path / "a.npy", np.arange(3))
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"f cannot write to .*: it is a folder; name a file"):
        target_path(tmp_path, caller="f")
    with pytest.raises(OptionError, match=r"the folder .*none does not exist; create it first"):
        target_path(tmp_path / "none" / "a.npy", caller="f")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match=r"cannot write to .*: Permission denied; name a file"):
        target_path(tmp_path / "a.npy", caller="f")
    tmp_path.chmod(0o700)


def test_what_needs_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Python objects need pickle"):
        write_npy(tmp_path / "a.npy", np.array([{}]))


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with (
        NpyWriter(tmp_path / "a.npy", dim=2) as writer,
        pytest.raises(EmbeddingShapeError, match=r"rows of shape \(batch, 2\), got \(3, 4\)"),
    ):
        writer.write(np.ones((3, 4)))


def test_a_writer_outside_of_its_block_or_of_no_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="works inside `with NpyWriter"):
        NpyWriter(tmp_path / "a.npy", dim=2).write(np.ones((1, 2)))
    with pytest.raises(OptionError, match="dim of 1 or more and a dtype of real numbers, got 0"):
        NpyWriter(tmp_path / "a.npy", dim=0)
    with pytest.raises(OptionError, match="got 2 and <U3"):
        NpyWriter(tmp_path / "a.npy", dim=2, dtype="<U3")
