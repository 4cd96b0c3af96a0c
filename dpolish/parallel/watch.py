"""Ranks that watch over each other: when one fails, dies or hangs, all end within seconds, and its message is shown.

Every rank has a connection to the first one and tells it twice a second how far it is. The kernel closes the connection
of a process that dies, whatever it died of; a process that is stopped, or stuck, stops telling or does not get further.
The first rank (`monitor`) judges, and its verdict ends every process, also one that waits in a collective for ever.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import torch.distributed as dist

from dpolish.errors import DpolishError

BEAT_SECONDS = 0.5
_STACK_EVERY = 10
"""Beats between two stacks of a process that gets on: if it is stopped, its last one is known."""
GRACE_SECONDS = 3.0
"""How long a process has to end by itself once the verdict is known."""


@dataclass(slots=True)
class _Progress:
    """How far this process is. A slot of the process: the loop that ticks knows nothing of watches."""

    ticks: int = 0
    timed: bool = False
    """Whether standing still means anything: not while data are read, weights are loaded, or files are written."""


_PROGRESS = _Progress()


def tick() -> None:
    """One forward or backward pass more is done."""
    _PROGRESS.ticks += 1
    _PROGRESS.timed = True


def rest() -> None:
    """What comes now takes its time, and that is no hang."""
    _PROGRESS.timed = False


def send(connection: socket.socket, **message: object) -> None:
    """Send one line of JSON."""
    connection.sendall(json.dumps(message).encode() + b"\n")


class Lines:
    """Messages out of a connection as they arrive."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, connection: socket.socket) -> list[dict[str, object]] | None:
        """The messages that have come whole; None when the other side is gone."""
        try:
            data = connection.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        if not data:
            return None
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in whole]


@contextmanager
def watched(rank: int, size: int, timeout: float) -> Iterator[None]:
    """Run the body under watch: an exception on any rank, its death, or `timeout` seconds of silence ends all.

    Every rank of the process group enters it together.
    """
    from dpolish.parallel.monitor import Monitor

    monitor = Monitor(size, timeout) if rank == 0 else None
    box = [None if monitor is None else (monitor.port, monitor.token)]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    watch = Watch(rank, "127.0.0.1" if rank == 0 else os.environ["MASTER_ADDR"], *box[0], timeout)
    try:
        yield
        dist.barrier()
    except BaseException as error:
        watch.failed(error)
        raise
    watch.done()
    if monitor is not None:
        monitor.done()


class Watch:
    """This rank's side: it tells how far it is, and ends the process when told to."""

    def __init__(self, rank: int, host: str, port: int, token: str, timeout: float) -> None:
        self._rank, self._timeout = rank, timeout
        self._main = threading.main_thread().ident
        self._connection = socket.create_connection((host, port), timeout=30)
        _keep_alive(self._connection)
        self._ending = threading.Event()
        self._code = 3
        self._finished = False
        send(self._connection, token=token, rank=rank, host=socket.gethostname(), pid=os.getpid())
        self._connection.settimeout(BEAT_SECONDS)
        self._lock = threading.Lock()
        self._parent = os.getppid() if "DPOLISH_LAUNCHER" in os.environ else None
        threading.Thread(target=self._beat, name="dpolish-watch", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        """Tell that this rank's run has failed, and leave when all have been told why."""
        if isinstance(error, KeyboardInterrupt):
            code, text = 130, "interrupted"
        elif isinstance(error, DpolishError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            code, text = error.exit_code, str(error)
        else:
            code = error.exit_code if isinstance(error, DpolishError) else 1
            text = "".join(traceback.format_exception(error)).rstrip()
        with suppress(OSError), self._lock:
            send(self._connection, failed=text, code=code, own=not _lost_another(error), input=code == 2)
        self._ending.wait(4 * GRACE_SECONDS)
        _flush()
        os._exit(self._code if self._ending.is_set() else code)

    def done(self) -> None:
        """This rank has nothing more to do with the others."""
        self._finished = True
        with suppress(OSError), self._lock:
            send(self._connection, done=True)

    def _beat(self) -> None:
        lines, silent, seen, beats = Lines(), 0, -1, 0
        while not self._finished:
            messages = lines.receive(self._connection)
            if self._finished:
                return
            if messages is None:
                self._end(3, "rank 0 has died: killed, or out of memory")
            for message in messages or ():
                if "end" in message:
                    self._obey(message)
                silent = 0
            silent += 1  # counted, not timed: a job that was suspended as a whole has not hung
            if silent * BEAT_SECONDS > self._timeout:
                self._end(3, f"rank 0 gave no sign of life for {self._timeout:g} s; is it stopped?")
            if self._parent is not None and os.getppid() != self._parent:
                self._end(3, "the process that started the ranks has died")
            stuck = _PROGRESS.ticks == seen
            seen = _PROGRESS.ticks
            beats += 1
            stack = self._stack() if stuck or beats % _STACK_EVERY == 0 else None
            with suppress(OSError), self._lock:
                send(self._connection, ticks=seen, timed=_PROGRESS.timed, stack=stack)

    def _obey(self, message: dict[str, object]) -> None:
        self._code = int(str(message["end"]))
        self._ending.set()
        for host, pid in message.get("kill") or ():  # type: ignore[attr-defined]
            if host == socket.gethostname() and pid != os.getpid():
                with suppress(OSError):
                    os.kill(pid, 9)
        time.sleep(GRACE_SECONDS if self._rank == 0 else 0.2)
        _flush()
        os._exit(self._code)

    def _end(self, code: int, text: str) -> None:
        if self._rank == 1:  # one voice is enough
            sys.stderr.write(f"error: {text}\n")
        self._code = code
        self._ending.set()
        _flush()
        os._exit(code)

    def _stack(self) -> str:
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        return "".join(traceback.format_stack(frame)[-12:]) if frame is not None else ""


def _lost_another(error: BaseException) -> bool:
    """Is it only that a collective lost its partner? Then the partner's own fate is what counts."""
    if isinstance(error, dist.DistError):
        return True
    told = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in told)


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice within half a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
