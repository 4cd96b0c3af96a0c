"""Ranks for tests: forked from a server that has torch loaded, so that a handful of them starts in a second."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_PRELOADED = ["dpolish.api", "tests.tiny"]
_SECONDS = 180.0


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _become(rank: int, size: int, environ: dict[str, str]) -> None:
    """What torchrun tells a process; `nodes` of them are made up of the ranks of this machine."""
    os.environ.update(environ)
    on_node = size // int(environ["NODES"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank % on_node))
    os.environ.update(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(on_node))
    import torch

    torch.set_num_threads(1)


def _answer(
    rank: int,
    size: int,
    environ: dict[str, str],
    err: Path,
    answers: "Queue[Any]",
    job: Callable[..., Any],
    *args: Any,
) -> None:
    _become(rank, size, environ)
    with err.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        answer = (rank, job(*args), None)
    except BaseException:
        answer = (rank, None, traceback.format_exc())
    answers.put(answer)
    answers.close()
    answers.join_thread()


def _end(rank: int, size: int, environ: dict[str, str], err: Path, job: Callable[..., Any], *args: Any) -> None:
    _become(rank, size, environ)
    with err.open("w") as file:
        os.dup2(file.fileno(), 2)
    job(*args)


def _environ(nodes: int = 1) -> dict[str, str]:
    environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "NODES": str(nodes)}
    return environ | {name: os.environ[name] for name in ("DPOLISH_CACHE", "HF_HUB_OFFLINE") if name in os.environ}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(size: int, job: Callable[..., Any], *args: Any, nodes: int = 1) -> list[Any]:
    """What `job(*args)`, a function of a module, returns on each of `size` ranks. Fails when one of them raises.

    Arrays come back, tensors do not: they would lie in memory that ends with the rank.
    """
    context = _context()
    answers: Queue[Any] = context.Queue()
    environ = _environ(nodes)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(TemporaryDirectory()))
        files = [folder / f"rank{rank}.err" for rank in range(size)]
        processes = [
            context.Process(target=_answer, args=(rank, size, environ, files[rank], answers, job, *args), daemon=True)
            for rank in range(size)
        ]
        for process in processes:
            process.start()
            ending.callback(process.kill)
        found = dict[int, Any]()
        deadline = time.monotonic() + _SECONDS
        while len(found) < size:
            over = [rank for rank, process in enumerate(processes) if process.exitcode is not None]
            try:  # what a rank that is over has to say lies in the queue by now
                rank, answer, fault = answers.get(timeout=0.5)
            except Empty:
                silent = [rank for rank in over if rank not in found]
                if silent or time.monotonic() > deadline:
                    pytest.fail(_unanswered(processes, files, silent), pytrace=False)
                continue
            if fault is not None:
                pytest.fail(f"rank {rank} of {size}:\n{fault}", pytrace=False)
            found[rank] = answer
        for process in processes:
            process.join(30)
    return [found[rank] for rank in range(size)]


def _unanswered(processes: Sequence[ForkServerProcess], files: Sequence[Path], silent: Sequence[int]) -> str:
    """What is known of ranks of which some ended without an answer, as the watch ends them, or none did in time."""
    if not silent:
        return f"no answer within {_SECONDS:g} s"
    codes = ", ".join(f"rank {rank}: {processes[rank].exitcode}" for rank in silent)
    said = "".join(file.read_text(errors="replace") for file in files if file.exists())
    return f"ended without an answer ({codes}):\n{said}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: its exit code (negative: the signal), what it wrote to stderr, and after how many seconds."""

    code: int | None
    err: str
    seconds: float


def end_ranks(folder: Path, size: int, job: Callable[..., Any], *args: Any, within: float = 60.0) -> list[Ended]:
    """How each of `size` ranks ends that runs `job(*args)`, for jobs that fail or hang; code None: it still runs."""
    context, environ = _context(), _environ()
    files = [folder / f"rank{rank}.err" for rank in range(size)]
    processes = [
        context.Process(target=_end, args=(rank, size, environ, files[rank], job, *args), daemon=True)
        for rank in range(size)
    ]
    start = time.monotonic()
    ended = dict[int, float]()
    with ExitStack() as ending:
        for process in processes:
            process.start()
            ending.callback(process.kill)
        while len(ended) < size and time.monotonic() - start < within:
            for rank, process in enumerate(processes):
                if rank not in ended and process.exitcode is not None:
                    ended[rank] = time.monotonic() - start
            time.sleep(0.05)
        codes = [process.exitcode for process in processes]
    return [Ended(codes[rank], files[rank].read_text(), ended.get(rank, within)) for rank in range(size)]
