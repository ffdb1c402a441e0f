import io

import pytest

from raremix.errors import OptionError
from raremix.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, total: int | None, *, steps: int, seconds: float, n: int = 1) -> None:
    clock = Clock()
    with Progress(total, label="embedding", unit="images", stream=stream, clock=clock) as progress:
        for _ in range(steps):
            clock.now += seconds
            progress.advance(n)


def test_a_log_gets_one_whole_line_every_ten_seconds() -> None:
    log = io.StringIO()
    run(log, 1000, steps=10, seconds=5.0, n=100)
    assert log.getvalue().splitlines() == [
        "embedding: 200 of 1,000 images (20%), 20/s, 40 s left",
        "embedding: 400 of 1,000 images (40%), 20/s, 30 s left",
        "embedding: 600 of 1,000 images (60%), 20/s, 20 s left",
        "embedding: 800 of 1,000 images (80%), 20/s, 10 s left",
        "embedding: 1,000 of 1,000 images (100%), 20/s, 0 s left",
        "embedding: 1,000 of 1,000 images (100%), 20/s, took 50 s",
    ]


def test_work_under_ten_seconds_leaves_a_log_empty() -> None:
    log = io.StringIO()
    run(log, 9, steps=9, seconds=1.0)
    assert log.getvalue() == ""


def test_a_terminal_line_is_redrawn_in_place_and_ended_once() -> None:
    terminal = Terminal()
    run(terminal, 3, steps=3, seconds=1.0)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("took 3 s\n")
    assert [part.rstrip() for part in text.split("\r")[1:]] == [
        "embedding: 1 of 3 images (33%), 1/s, 2 s left",
        "embedding: 2 of 3 images (67%), 1/s, 1 s left",
        "embedding: 3 of 3 images (100%), 1/s, 0 s left",
        "embedding: 3 of 3 images (100%), 1/s, took 3 s",
    ]


def test_a_shorter_terminal_line_covers_the_longer_one_before_it() -> None:
    terminal = Terminal()
    run(terminal, 100, steps=2, seconds=3000.0, n=50)
    first, second, _ = terminal.getvalue().split("\r")[1:]
    assert len(second) >= len(first.rstrip())


def test_a_terminal_is_redrawn_at_most_ten_times_a_second() -> None:
    terminal = Terminal()
    run(terminal, 1000, steps=1000, seconds=0.001)
    assert terminal.getvalue().count("\r") <= 11


def test_a_terminal_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    run(terminal, 10, steps=10, seconds=1.0)
    assert max(len(part.rstrip("\n")) for part in terminal.getvalue().split("\r")) == 19


def test_an_error_inside_the_block_still_ends_the_line() -> None:
    terminal, clock = Terminal(), Clock()

    def interrupted() -> None:
        with Progress(5, label="scoring", unit="rows", stream=terminal, clock=clock) as progress:
            clock.now += 1
            progress.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("took 1 s\n")


def test_nothing_is_written_when_switched_off() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress(5, label="a", unit="b", stream=terminal, enabled=False, clock=clock) as progress:
        clock.now += 100
        progress.advance()
    assert terminal.getvalue() == ""
    assert progress.done == 1


def test_without_a_total_there_is_a_rate_and_no_time_left() -> None:
    log = io.StringIO()
    run(log, None, steps=1, seconds=20.0, n=10)
    assert log.getvalue().splitlines()[0] == "embedding: 10 images, 0.5/s"


@pytest.mark.parametrize(
    ("seconds", "left"), [(125, "2 min 05 s left"), (3600 * 3 + 61, "3 h 01 min left")]
)
def test_long_times_are_told_in_minutes_and_hours(seconds: float, left: str) -> None:
    log = io.StringIO()
    run(log, 2, steps=1, seconds=seconds)
    assert log.getvalue().splitlines()[0].endswith(left)


def test_standard_error_is_the_default_and_standard_output_stays_clean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress(2, label="a", unit="b", clock=clock) as progress:
        clock.now += 11
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("a: 1 of 2 b (50%)")


def test_a_closed_stream_does_not_stop_the_work() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(2, label="a", unit="b", stream=log, clock=clock) as progress:
        log.close()
        for _ in range(2):
            clock.now += 11
            progress.advance()
    assert progress.done == 2


def test_an_empty_loop_says_nothing_and_divides_by_nothing() -> None:
    clock = Clock()
    log = io.StringIO()
    with Progress(0, label="a", unit="b", stream=log, clock=clock) as progress:
        clock.now += 11
        progress.advance(0)
    assert "0 of 0 b (100%)" in log.getvalue()


def test_a_negative_total_is_refused() -> None:
    with pytest.raises(OptionError, match=r"total of 0 or more, or None, got -1"):
        Progress(-1, label="a", unit="b")
