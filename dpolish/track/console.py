"""What a person sees while a run goes on.

Results go to stdout, one line per record, so that `dpolish … | tee log` and a Slurm log hold them. What only moves, the
bar, goes to stderr and only if that is a terminal. Where stdout is a terminal too, the bar stands for the lines of the
training steps, and the lines of validations stay above it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from dpolish.records import StepRecord

_SHOWN = (
    ("loss", "loss {:.4f}"),
    ("perplexity", "perplexity {:.2f}"),
    ("acc", "acc {:.3f}"),
    ("rewards_margin_mean", "margin {:.3f}"),
    ("lr", "lr {:.1e}"),
    ("tokens_per_second", "{:,.0f} tok/s"),
)


class ConsoleSink:
    """Records on the terminal: a bar with the time left and the metrics that matter, and plain lines for a pipe."""

    def __init__(self, total_steps: int, *, out: Console | None = None, err: Console | None = None) -> None:
        """Begin to show; make it when training begins, and close it also when training fails."""
        self._total = total_steps
        self._out, err = out or Console(), err or Console(stderr=True)
        self._first: tuple[float, int] | None = None  # when which step was reported first
        self._bar: Progress | None = None
        if err.is_interactive:
            count = MofNCompleteColumn(table_column=Column(min_width=2 * len(str(total_steps)) + 1, no_wrap=True))
            self._bar = _live((count, BarColumn(bar_width=None), TextColumn("{task.description}")), self._out, err)
            self._task = self._bar.add_task("", total=total_steps)

    def write(self, record: StepRecord) -> None:
        """Show the record."""
        shown = [form.format(record.metrics[name]) for name, form in _SHOWN if name in record.metrics]
        if record.split == "train":
            shown.insert(0, f"ETA {self._time_left(record)}")  # first: a narrow terminal cuts the end off
            if self._bar:
                self._bar.update(self._task, completed=record.step, description=" ".join(shown))
                if self._out.is_terminal:
                    return
        self._print("  ".join([f"step {record.step}/{self._total}", record.split, *shown]))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar:
            self._bar.stop()

    def _print(self, line: str) -> None:
        if self._bar and self._out.is_terminal:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:  # written to the file itself: rich ends the process when a pipe breaks
            self._out.file.write(f"{line}\n")
            self._out.file.flush()

    def _time_left(self, record: StepRecord) -> str:
        """From the time between reports, validation included; from the step's own time at the first one."""
        now = time.monotonic()
        started, first = self._first = self._first or (now, record.step)
        if record.step > first:
            pace = (now - started) / (record.step - first)
        elif "step_time" in record.metrics:
            pace = record.metrics["step_time"]
        else:
            return "?"
        return _duration(pace * (self._total - record.step))


@contextmanager
def progress(
    label: str, total: int, *, err: Console | None = None, every: float = 10.0
) -> Iterator[Callable[[int], None]]:
    """A function that says that n more of `total` are done: a bar on a terminal, else a line every `every` seconds.

    All of it on stderr, for it is no result.
    """
    err = err or Console(stderr=True)
    if err.is_interactive:
        label_column, bar_column = TextColumn("{task.description}"), BarColumn(bar_width=None)
        columns = (label_column, bar_column, MofNCompleteColumn(), TimeRemainingColumn())
        bar = _live(columns, Console(), err)
        task = bar.add_task(label, total=total)
        try:
            yield lambda more: bar.advance(task, more)
        finally:
            bar.stop()
        return

    done, started = 0, time.monotonic()
    said = started

    def advance(more: int) -> None:
        nonlocal done, said
        done, now = done + more, time.monotonic()
        if done >= total:
            say(f"{label}: {done:,}/{total:,} in {_duration(now - started)}")
        elif now - said >= every:
            said = now
            say(f"{label}: {done:,}/{total:,}, ETA {_duration((now - started) / done * (total - done))}")

    def say(line: str) -> None:
        err.file.write(f"{line}\n")
        err.file.flush()

    yield advance


def _live(columns: Sequence[ProgressColumn], out: Console, err: Console) -> Progress:
    """A running bar. rich may take stdout over only if it is the terminal: else results would leave the pipe."""
    bar = Progress(*columns, console=err, refresh_per_second=4, redirect_stdout=out.is_terminal, expand=True)
    bar.start()
    return bar


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
