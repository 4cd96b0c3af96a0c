"""Records read back from where they went: our own file by json, the others by the real libraries."""

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpolish.errors import ConfigError, RunError
from dpolish.records import StepRecord
from dpolish.track.sinks import Guarded, MetricsFile, TensorBoardSink, WandbSink

RECORDS = [
    StepRecord(1, "train", {"loss": 0.6931, "acc": 0.5, "lr": 9e-7}),
    StepRecord(2, "train", {"loss": 0.5, "acc": 0.75, "lr": 9e-6}),
    StepRecord(2, "val", {"loss": 0.25, "acc": 1.0}),
]


def test_metrics_file_has_one_object_per_record_with_bare_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = MetricsFile(path)
    for record in RECORDS:
        sink.write(record)
    before_close = path.read_text()
    sink.close()
    assert path.read_text() == before_close
    assert [json.loads(line) for line in before_close.splitlines()] == [
        {"step": 1, "split": "train", "loss": 0.6931, "acc": 0.5, "lr": 9e-7},
        {"step": 2, "split": "train", "loss": 0.5, "acc": 0.75, "lr": 9e-6},
        {"step": 2, "split": "val", "loss": 0.25, "acc": 1.0},
    ]


def test_metrics_file_writes_null_where_json_has_no_number(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "metrics.jsonl")
    sink.write(StepRecord(1, "train", {"loss": math.nan, "grad_norm": math.inf, "acc": 0.0}))
    sink.close()
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"step": 1, "split": "train", "loss": null, "grad_norm": null, "acc": 0.0}\n'


def test_metrics_file_appends(tmp_path: Path) -> None:
    for record in RECORDS[:2]:
        sink = MetricsFile(tmp_path / "metrics.jsonl")
        sink.write(record)
        sink.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_run_error_that_names_file_and_cause(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    sink = MetricsFile(path)
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        sink.write(RECORDS[0])
    sink.close()


def test_a_missing_run_directory_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent/metrics\.jsonl: cannot be written: No such file or directory"):
        MetricsFile(tmp_path / "absent" / "metrics.jsonl")


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    for record in RECORDS:
        sink.write(record)
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "train/acc", "train/lr", "val/loss", "val/acc"]
    assert [(event.step, event.value) for event in events.Scalars("train/acc")] == [(1, 0.5), (2, 0.75)]
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(2, 0.25)]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_ENTITY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # in wandb's own code
def test_wandb_reads_back_what_was_written(tmp_path: Path) -> None:
    sink = WandbSink(
        tmp_path,
        {"model": {"seed": 1234}},
        project="dpo_training",
        name="",
        group="sweep",
        tags=["a", "b"],
        id="run1",
        resume="allow",
    )
    for record in RECORDS:
        sink.write(record)
    sink.close()

    import wandb

    wandb.teardown()  # as at the exit of a process: its service writes the end of the file
    (path,) = tmp_path.glob("wandb/offline-run-*/run-run1.wandb")
    records = list(wandb_records(path))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.run_id, run.run_group, list(run.tags)) == ("dpo_training", "run1", "sweep", ["a", "b"])
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["model"] == {"seed": 1234}
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    metrics = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
    assert [row["_step"] for row in rows] == [1, 2]
    assert metrics == [  # the validation after step 2 joins the row of step 2
        {"train/loss": 0.6931, "train/acc": 0.5, "train/lr": 9e-7},
        {"train/loss": 0.5, "train/acc": 0.75, "train/lr": 9e-6, "val/loss": 0.25, "val/acc": 1.0},
    ]


def wandb_records(path: Path) -> Iterator["Record"]:  # noqa: F821 (wandb is loaded where it is used)
    """The protocol buffers of a .wandb file: a 7-byte head, then LevelDB log blocks of crc, length, type, data."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_that_does_not_start_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"create_wandb_logger: W&B did not start: .*\n.*WANDB_MODE=off") as caught:
        WandbSink(tmp_path, {}, project="p", id="no/slashes")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"create_{package}_logger: .*pip install 'dpolish\[{package}\]'"):
        WandbSink(tmp_path, {}) if package == "wandb" else TensorBoardSink(tmp_path)


class Failing:
    """A sink that fails from its second call on, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def write(self, record: StepRecord) -> None:
        self.calls.append(f"write {record.step}")
        if len(self.calls) > 1:
            raise ConnectionError("the server\nis gone")

    def close(self) -> None:
        self.calls.append("close")


def test_a_sink_that_fails_is_left_behind_with_one_warning() -> None:
    failing, warnings = Failing(), []
    sink = Guarded("W&B", failing, warnings.append)
    for record in [*RECORDS, *RECORDS]:
        sink.write(record)
    sink.close()
    assert failing.calls == ["write 1", "write 2"]
    assert warnings == ["W&B failed, and is left out from here on: ConnectionError: the server is gone"]


def test_a_sink_that_works_gets_everything_and_is_closed_once() -> None:
    inner, warnings = Failing(), []
    sink = Guarded("W&B", inner, warnings.append)
    sink.write(RECORDS[0])
    sink.close()
    sink.close()
    assert inner.calls == ["write 1", "close"]
    assert warnings == []
