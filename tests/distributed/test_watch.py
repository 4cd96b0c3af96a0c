"""One rank that fails, dies, stops or hangs ends all of them, and the message is that rank's."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dpolish.errors import ConfigError, RunError
from dpolish.parallel.join import joined
from dpolish.parallel.monitor import Monitor
from dpolish.parallel.watch import rest, tick
from dpolish.world import World
from tests.distributed.ranks import Ended, end_ranks, run_ranks

HANG = 8.0
"""Seconds: short, and long enough for a busy machine."""


def in_step(fault: Callable[[], None], culprit: int, timeout: float = 60.0) -> None:
    """Exchange a number over and over; the third time one rank does something else."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with joined(World(rank, size, rank, size, origin="torchrun"), torch.device("cpu"), timeout):
        for round_number in range(1000):
            if rank == culprit and round_number == 3:
                fault()
            dist.all_reduce(torch.ones(1))
            tick()


def raise_run_error() -> None:
    raise RunError("the numbers are spoiled")


def raise_config_error() -> None:
    raise ConfigError("model.seed=x: no")


def raise_bug() -> None:
    raise ValueError("a bug of ours")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    time.sleep(6 * 0.5)  # so that it has been seen where it stands
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1.0)


def said(ended: list[Ended]) -> str:
    """What all ranks together wrote, but for the warnings of libraries."""
    lines = "".join(rank.err for rank in ended).splitlines()
    return "\n".join(line for line in lines if "Warning" not in line and not line.startswith("[W"))


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (raise_run_error, 3, "error: [rank {}] the numbers are spoiled"),
        (raise_config_error, 2, "model.seed=x: no"),
        (raise_bug, 1, "ValueError: a bug of ours"),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_message(
    tmp_path: Path, fault: Callable[[], None], code: int, message: str, culprit: int
) -> None:
    ended = end_ranks(tmp_path, 3, in_step, fault, culprit)
    assert [rank.code for rank in ended] == [code] * 3
    assert said(ended).count("error: ") == 1
    assert message.format(culprit) in said(ended)
    assert max(rank.seconds for rank in ended) < 30


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_killed_ends_all(tmp_path: Path, culprit: int) -> None:
    ended = end_ranks(tmp_path, 3, in_step, die, culprit)
    assert ended[culprit].code == -signal.SIGKILL
    assert [rank.code for number, rank in enumerate(ended) if number != culprit] == [3, 3]
    assert f"rank {culprit}" in said(ended)
    assert "died" in said(ended)
    assert said(ended).count("error: ") == 1
    assert max(rank.seconds for rank in ended) < 30


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_ended(tmp_path: Path, culprit: int) -> None:
    ended = end_ranks(tmp_path, 2, in_step, stop, culprit, HANG)
    other = ended[1 - culprit]
    assert other.code == 3
    assert f"rank {culprit}" in other.err
    assert "no sign of life for 8 s" in other.err or "hangs" in other.err
    if culprit == 1:
        assert "in stop" in other.err, "its stack, as it was last seen"
        assert ended[1].code == -signal.SIGKILL


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path: Path, culprit: int) -> None:
    ended = end_ranks(tmp_path, 3, in_step, sleep_for_ever, culprit, HANG)
    assert f"rank {culprit} (" in said(ended)
    assert "in sleep_for_ever" in said(ended)
    assert f"rank {(culprit + 1) % 3} (" not in said(ended)
    assert None not in [rank.code for rank in ended]
    assert max(rank.seconds for rank in ended) < HANG + 10 + 10


def slow_work(seconds: float) -> int:
    """Stand still for longer than the limit, once before anything is timed and once while at rest."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with joined(World(rank, size, rank, size, origin="torchrun"), torch.device("cpu"), HANG):
        time.sleep(seconds)
        tick()
        dist.barrier()
        rest()
        time.sleep(seconds)
    return rank


def test_loading_and_saving_may_take_their_time() -> None:
    assert run_ranks(2, slow_work, HANG + 2) == [0, 1]


def suspended_as_a_whole(seconds: float) -> int:
    """Stop every rank at once, from outside, for longer than the limit, and let them go on."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with joined(World(rank, size, rank, size, origin="torchrun"), torch.device("cpu"), HANG):
        processes: list[int] = [0] * size
        dist.all_gather_object(processes, os.getpid())
        if rank == 0:
            everyone = " ".join(map(str, processes))
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -STOP {everyone}; sleep {seconds}; kill -CONT {everyone}"])
        start = time.monotonic()
        going = torch.ones(1)
        while going.item():
            tick()
            going = torch.tensor([float(time.monotonic() - start < seconds + 2)])
            dist.all_reduce(going, op=dist.ReduceOp.MAX)
    return rank


def test_a_job_that_is_suspended_as_a_whole_has_not_hung() -> None:
    assert run_ranks(2, suspended_as_a_whole, HANG + 2) == [0, 1]


@pytest.mark.parametrize(
    "line",
    [b"5\n", b"[]\n", b'{"token": "\xc3\xbc"}\n', b"[" * 5000 + b"\n", b"\xff\n", b"x" * 10_000, b'{"rank": 0}\n'],
)
def test_a_stranger_is_shown_out(line: bytes) -> None:
    monitor = Monitor(2, HANG)
    with socket.create_connection(("127.0.0.1", monitor.port), timeout=10) as stranger:
        stranger.sendall(line)
        assert stranger.recv(1) == b"", "the connection is closed"
    names = [thread.name for thread in threading.enumerate()]
    assert "dpolish-monitor" in names, "and the monitor goes on"
    monitor.close()


def slow_end(seconds: float) -> int:
    """The first rank writes for longer than the limit, while the others have nothing to do."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with joined(World(rank, size, rank, size, origin="torchrun"), torch.device("cpu"), HANG):
        tick()
        rest()
        if rank == 0:
            time.sleep(seconds)
    return rank


def test_the_others_wait_for_the_one_that_saves() -> None:
    assert run_ranks(2, slow_end, HANG + 3) == [0, 1]
