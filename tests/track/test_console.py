"""What is printed, and to which of the two streams."""

import io
import re

import pytest
from rich.console import Console

from dpolish.records import StepRecord
from dpolish.track import console as module
from dpolish.track.console import ConsoleSink, progress

TRAIN = {"loss": 0.69314, "acc": 0.5, "rewards_margin_mean": 0.0123, "lr": 9e-6, "tokens_per_second": 1234.5}


class Clock:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system="standard")


def printed(console: Console) -> str:
    """What was sent to the screen, a line for each time that a line was drawn."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")


def test_a_pipe_gets_a_line_per_record_and_stderr_nothing(clock: Clock) -> None:
    out, err = pipe(), pipe()
    sink = ConsoleSink(10, out=out, err=err)
    sink.write(StepRecord(1, "train", {**TRAIN, "step_time": 2.0}))
    clock.now += 3.0
    sink.write(StepRecord(2, "train", {**TRAIN, "step_time": 2.0}))
    sink.write(StepRecord(2, "val", {"loss": 0.5, "acc": 0.75, "rewards_margin_mean": 1.5, "step_time": 1.0}))
    sink.close()
    assert printed(out).splitlines() == [
        "step 1/10  train  ETA 0:00:18  loss 0.6931  acc 0.500  margin 0.012  lr 9.0e-06  1,234 tok/s",
        "step 2/10  train  ETA 0:00:24  loss 0.6931  acc 0.500  margin 0.012  lr 9.0e-06  1,234 tok/s",
        "step 2/10  val  loss 0.5000  acc 0.750  margin 1.500",
    ]
    assert printed(err) == ""


def test_the_time_left_counts_the_steps_between_reports(clock: Clock) -> None:
    out = pipe()
    sink = ConsoleSink(100, out=out, err=pipe())
    sink.write(StepRecord(10, "train", {"loss": 1.0}))
    clock.now += 40.0
    sink.write(StepRecord(20, "train", {"loss": 1.0}))
    assert [re.findall(r"ETA \S+", line) for line in printed(out).splitlines()] == [["ETA ?"], ["ETA 0:05:20"]]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_bar_with_the_lines_of_validations_above(clock: Clock, width: int) -> None:
    screen = terminal(width)
    sink = ConsoleSink(10, out=screen, err=screen)
    for step in (1, 2):
        sink.write(StepRecord(step, "train", TRAIN))
        clock.now += 1.0
    sink.write(StepRecord(2, "val", {"loss": 0.5, "acc": 0.75}))
    sink.close()
    text = printed(screen)
    assert "step 2/10  val  loss 0.5000  acc 0.750\n" in text
    assert "step 1/10" not in text
    last = text.splitlines()[-1]
    assert last.startswith(" 2/10 ")
    assert "━" in last
    assert last.rstrip().endswith("ETA 0:00:08 loss 0.6931 acc 0.500 margin 0.012 lr 9.0e-06 1,234 tok/s")


def test_results_stay_on_stdout_when_only_stderr_is_a_terminal() -> None:
    out, err = pipe(), terminal()
    sink = ConsoleSink(10, out=out, err=err)
    sink.write(StepRecord(1, "train", TRAIN))
    print("something else")  # noqa: T201 (a library that prints must not be pulled into the bar)
    sink.write(StepRecord(1, "val", {"loss": 0.5}))
    sink.close()
    assert [line.split("  ")[1] for line in printed(out).splitlines()] == ["train", "val"]
    assert " 1/10 " in printed(err)
    assert "step 1/10" not in printed(err)
    assert "something else" not in printed(err)


def test_a_broken_pipe_is_an_error_that_can_be_caught() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(f"nobody reads {len(text)} characters")

    sink = ConsoleSink(10, out=Console(file=Broken(), force_terminal=False), err=pipe())
    with pytest.raises(BrokenPipeError):
        sink.write(StepRecord(1, "train", TRAIN))


def test_progress_in_a_pipe_speaks_now_and_then(clock: Clock) -> None:
    err = pipe()
    with progress("scoring the reference", 1200, err=err, every=10.0) as advance:
        for _ in range(6):
            clock.now += 4.0
            advance(200)
    assert printed(err).splitlines() == [
        "scoring the reference: 600/1,200, ETA 0:00:12",
        "scoring the reference: 1,200/1,200 in 0:00:24",
    ]


def test_progress_on_a_terminal_is_a_bar_also_under_the_bar_of_a_run() -> None:
    screen = terminal()
    sink = ConsoleSink(10, out=screen, err=screen)
    with progress("scoring the reference", 12, err=screen) as advance:
        advance(12)
    sink.close()
    assert re.search(r"scoring the reference ━+ 12/12", printed(screen))
