"""Where a run's records go. A sink sees a `StepRecord` and nothing else.

`metrics.jsonl` is the truth: when it cannot be written the run stops. The others are copies of it for other eyes:
wrapped in `Guarded`, one that fails in mid-run is left behind with a warning.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, cast

from dpolish.errors import ConfigError, RunError
from dpolish.files import cannot_write
from dpolish.records import StepRecord


class Sink(Protocol):
    """Something that takes the records of a run, in order."""

    def write(self, record: StepRecord) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish: nothing is written afterwards."""


class MetricsFile:
    """One JSON object per line: `{"step": 1, "split": "train", "loss": …}`, with the system before `write` returns.

    JSON has no NaN and no infinity: a metric without a finite value is null.
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)  # a buffer would fail once more when it is closed
        except OSError as error:
            raise RunError(cannot_write(path, error)) from error

    def write(self, record: StepRecord) -> None:
        """Append the record."""
        metrics = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
        line = json.dumps({"step": record.step, "split": record.split, **metrics}, allow_nan=False)
        left = f"{line}\n".encode()
        try:
            while left:  # a disk that is nearly full takes a part, and refuses the rest
                left = left[self._file.write(left) :]
        except OSError as error:
            raise RunError(cannot_write(self._path, error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbSink:
    """Weights & Biases, with metric names under `train/` and `val/`. W&B's own variables hold: `WANDB_MODE=offline`."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, object],
        *,
        project: str | None = None,
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        id: str | None = None,
        resume: str | bool | None = None,
    ) -> None:
        """Start a run that keeps its files under `directory/wandb`. An empty string counts as not given."""
        try:
            import wandb  # an extra, and slow to load
        except ImportError as error:
            raise ConfigError(_extra_missing("create_wandb_logger", "wandb")) from error
        try:
            self._run = wandb.init(
                dir=directory,
                config=dict(config),
                project=project or None,
                name=name or None,
                entity=entity or None,
                group=group or None,
                tags=tuple(tags) or None,
                id=id or None,
                resume=cast(bool | Literal["allow", "never", "must", "auto"] | None, resume or None),
            )
        except Exception as error:
            raise ConfigError(
                f"exp_manager.create_wandb_logger: W&B did not start: {_one_line(error)}\n"
                "  Log in with `wandb login`, set WANDB_MODE=offline, or switch it off with create_wandb_logger=false."
            ) from error

    def write(self, record: StepRecord) -> None:
        """Log the record at its step."""
        self._run.log(_prefixed(record), step=record.step)

    def close(self) -> None:
        """Wait until everything is sent, or saved where W&B is offline."""
        self._run.finish()


class TensorBoardSink:
    """TensorBoard event files, with metric names under `train/` and `val/`."""

    def __init__(self, directory: Path) -> None:
        """Start an event file in `directory`."""
        try:  # an extra; torch.utils.tensorboard is the same writer with torch around it
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(_extra_missing("create_tensorboard_logger", "tensorboard")) from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory), flush_secs=10)

    def write(self, record: StepRecord) -> None:
        """Log the record at its step."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _prefixed(record).items()]
        event = self._event(wall_time=time.time(), step=record.step, summary=self._summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class Guarded:
    """A sink that may fail without stopping the run: its first failure gives one warning and is its last call."""

    def __init__(self, name: str, sink: Sink, warn: Callable[[str], None]) -> None:
        self._name = name
        self._sink: Sink | None = sink
        self._warn = warn

    def write(self, record: StepRecord) -> None:
        """Pass the record on, if the sink still works."""
        self._attempt(lambda sink: sink.write(record))

    def close(self) -> None:
        """Close the sink, if it still works."""
        self._attempt(lambda sink: sink.close())
        self._sink = None

    def _attempt(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:
            self._sink = None
            self._warn(f"{self._name} failed, and is left out from here on: {_one_line(error)}")


def _prefixed(record: StepRecord) -> dict[str, float]:
    return {f"{record.split}/{name}": value for name, value in record.metrics.items()}


def require_installed(*, wandb: bool, tensorboard: bool) -> None:
    """Raise ConfigError for a logger whose library is not installed, without loading any."""
    if wandb and find_spec("wandb") is None:
        raise ConfigError(_extra_missing("create_wandb_logger", "wandb"))
    if tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(_extra_missing("create_tensorboard_logger", "tensorboard"))


def _extra_missing(key: str, extra: str) -> str:
    return (
        f"exp_manager.{key}: the package {extra} is not installed. Install it with `pip install 'dpolish[{extra}]'`, "
        f"or set exp_manager.{key}=false."
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
