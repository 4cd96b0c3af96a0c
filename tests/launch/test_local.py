"""`trainer.devices=2` in a plain terminal: two ranks, one voice, and one end for all of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tiny import Setup

PROC = Path("/proc")
FOR_EVER = ("trainer.dpo.max_epochs=100000", "trainer.dpo.max_steps=300000", "trainer.dpo.val_check_interval=100000")

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="ranks are found in /proc")


@contextmanager
def training(setup: Setup, output: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The command on two ranks, once it trains."""
    arguments = [
        *("--model", str(setup.model), "--train", str(setup.train), "--validation", str(setup.validation)),
        *("--output", str(output), *setup.overrides, *FOR_EVER, "trainer.devices=2", *overrides),
    ]
    command = [sys.executable, "-m", "dpolish", "dpo", *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=True
    ) as process:
        try:
            metrics, start = output / "metrics.jsonl", time.monotonic()
            while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
                assert time.monotonic() - start < 240, "it never began to train"
                time.sleep(0.2)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def rank_of(process: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank."""
    for entry in PROC.iterdir():
        try:
            environ = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if f"RANK={rank}".encode() in environ and f"DPOLISH_LAUNCHER={process.pid}".encode() in environ:
            return int(entry.name)
    raise AssertionError(f"there is no rank {rank}")


@pytest.mark.parametrize(
    ("rank", "sent", "code", "message"),
    [
        (1, signal.SIGKILL, 3, "died without a word: killed, or out of memory"),
        (0, signal.SIGKILL, 3, "error: rank 0 has died"),
        (1, signal.SIGTERM, 143, "error: [rank 1] ended by SIGTERM"),
    ],
)
def test_one_rank_that_ends_ends_all_and_is_named(
    setup: Setup, tmp_path: Path, rank: int, sent: signal.Signals, code: int, message: str
) -> None:
    with training(setup, tmp_path / "run") as process:
        lost, other = rank_of(process, rank), rank_of(process, 1 - rank)
        os.kill(lost, sent)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert message in said
    assert said.count("error: ") == 1
    assert f"process {lost})" in said or rank == 0 or sent == signal.SIGTERM
    assert not (PROC / str(other)).exists()


def test_an_interrupted_command_says_so_once(setup: Setup, tmp_path: Path) -> None:
    with training(setup, tmp_path / "run") as process:
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in said.splitlines() if "scoring" not in line] == ["error: interrupted"]


def test_ranks_end_with_the_process_that_started_them(setup: Setup, tmp_path: Path) -> None:
    with training(setup, tmp_path / "run") as process:
        ranks = [rank_of(process, rank) for rank in (0, 1)]
        process.kill()
        process.wait(10)
        start = time.monotonic()
        while any((PROC / str(rank)).exists() for rank in ranks):
            assert time.monotonic() - start < 30, "they train on"
            time.sleep(0.2)
