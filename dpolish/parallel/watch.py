"""Ranks that watch over each other: when one fails, dies or hangs, all end within seconds, and its message is shown.

Every rank has a connection to the first one and tells it twice a second how far it is. The kernel closes the connection
of a process that dies, whatever it died of; a process that is stopped, or stuck, stops telling or does not get further.
The first rank (`monitor`) judges, and its verdict ends every process, also one that waits in a collective for ever.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from dpolish.errors import DpolishError, printable

BEAT_SECONDS = 0.5
_STACK_EVERY = 10
"""Beats between two stacks of a process that gets on: if it is stopped, its last one is known."""
_OURS, _INNERMOST = str(Path(__file__).parents[1] / "training"), 6
"""Frames of a stack that are told: those of the loop, and the last."""
_SEND_SECONDS = 5.0
_LONGEST_LINE = 1 << 20
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

    def __init__(self, longest: int = _LONGEST_LINE) -> None:
        self.longest = longest
        self._rest = b""

    def receive(self, connection: socket.socket) -> list[dict[str, object]] | None:
        """The messages that have come whole; None when the other side is gone. Raises ValueError for anything else."""
        try:
            data = connection.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        if not data:
            return None
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self.longest:
            raise ValueError("a line without end")
        messages = [json.loads(line) for line in whole]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages


@contextmanager
def watched(rank: int, size: int, timeout: float) -> Iterator[None]:
    """Run the body under watch: an exception on any rank, its death, or `timeout` seconds of silence ends all.

    Every rank of the process group enters it together, and leaves it when all have come to its end.
    """
    from dpolish.parallel.monitor import Monitor

    monitor = Monitor(size, timeout) if rank == 0 else None
    box: list[tuple[int, str, str, int] | None] = [None]
    if monitor is not None:
        box = [(monitor.port, monitor.token, machine(), os.getpid())]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    port, token, first_machine, first_pid = box[0]
    host = "127.0.0.1" if rank == 0 else os.environ["MASTER_ADDR"]
    watch = Watch(rank, (host, port), token, (first_machine, first_pid), timeout)
    with watch.handling_signals():
        try:
            yield
        except BaseException as error:
            watch.failed(error)
            raise
        watch.done()
        if monitor is not None:
            monitor.close()  # not before the others know that all are done


def machine() -> str:
    """What tells processes whether they can end each other: the host, and its numbering of processes."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


class Watch:
    """This rank's side: it tells how far it is, and ends the process when told to."""

    def __init__(self, rank: int, monitor: tuple[str, int], token: str, first: tuple[str, int], timeout: float) -> None:
        """Connect to the `monitor` (host, port); `first` is the (machine, process) that has it."""
        self._rank, self._first, self._timeout = rank, first, timeout
        self._main = threading.main_thread().ident
        self._code = 3
        self._ending, self._finished = threading.Event(), threading.Event()
        self._leaving = False
        self._lock = threading.Lock()
        self._signalled, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._parent = int(os.environ.get("DPOLISH_LAUNCHER", os.getppid()))
        self._connection = socket.create_connection(monitor, timeout=30)
        _keep_alive(self._connection)
        self._connection.settimeout(_SEND_SECONDS)
        send(self._connection, token=token, rank=rank, machine=machine(), pid=os.getpid())
        threading.Thread(target=self._beat, name="dpolish-watch", daemon=True).start()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Let SIGTERM reach the watch, also while a collective keeps Python's main thread: a launcher sends it to the
        ranks that are left when one has died, and why must be said first."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        descriptor = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGTERM, handler)

    def failed(self, error: BaseException) -> None:
        """Tell that this rank's run has failed, and leave when all have been told why."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher sends it again
        if isinstance(error, KeyboardInterrupt):
            code, text = 130, "interrupted"
        elif isinstance(error, DpolishError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            code, text = error.exit_code, str(error)
        else:
            code = error.exit_code if isinstance(error, DpolishError) else 1
            text = "".join(traceback.format_exception(error)).rstrip()
        self._tell(failed=text, code=code, own=not _lost_another(error))
        self._ending.wait(4 * GRACE_SECONDS)
        _leave(self._code if self._ending.is_set() else code)

    def done(self) -> None:
        """This rank has nothing more to do with the others: wait until that is so of all, however long they write."""
        self._tell(done=True)
        self._finished.wait()

    def _tell(self, **message: object) -> None:
        with suppress(OSError), self._lock:
            send(self._connection, **message)

    def _beat(self) -> None:
        lines, silent, seen, beats = Lines(), 0, -1, 0
        while not self._finished.is_set():
            ready, _, _ = select.select([self._connection, self._signalled], [], [], BEAT_SECONDS)
            if self._signalled in ready and signal.SIGTERM in self._signalled.recv(64) and not self._leaving:
                self._leaving = True
                self._tell(failed="ended by SIGTERM", code=128 + signal.SIGTERM, own=False)
                threading.Timer(2 * GRACE_SECONDS, _leave, [128 + signal.SIGTERM]).start()
            messages = lines.receive(self._connection) if self._connection in ready else []
            if messages is None:
                self._end("rank 0 has died: killed, or out of memory")
            for message in messages or ():
                silent = 0
                if "end" in message:
                    self._obey(message)
                if "all_done" in message:
                    self._finished.set()
                    return
            silent += 1  # counted, not timed: a job that was suspended as a whole has not hung
            if silent * BEAT_SECONDS > self._timeout:
                self._end(f"rank 0 gave no sign of life for {self._timeout:g} s; is it stopped?", kill=True)
            if os.getppid() != self._parent:
                self._end("the process that started the ranks has died")
            stuck = _PROGRESS.ticks == seen
            stack = self._stack() if stuck or beats % _STACK_EVERY == 0 else None
            seen, beats = _PROGRESS.ticks, beats + 1
            self._tell(ticks=seen, timed=_PROGRESS.timed, stack=stack)

    def _obey(self, message: dict[str, object]) -> None:
        """End as the verdict says; the first rank last, for it has said why."""
        self._code = int(str(message["end"]))
        for where, pid in message.get("kill") or ():  # type: ignore[attr-defined]
            self._kill(where, pid)
        self._ending.set()
        time.sleep(GRACE_SECONDS if self._rank == 0 else 0.2)
        _leave(self._code)

    def _end(self, text: str, *, kill: bool = False) -> None:
        """End without a verdict, for there is nobody to give it."""
        if kill:
            self._kill(*self._first)
        if self._rank == 1:  # one voice is enough
            write_error(text)
        _leave(3)

    def _kill(self, where: str, pid: int) -> None:
        if where == machine() and pid != os.getpid():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _stack(self) -> str:
        """Where the main thread is: our own frames, and the innermost of others'."""
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        frames = traceback.extract_stack(frame) if frame is not None else []
        own = [each for each in frames[:-_INNERMOST] if _OURS in each.filename]
        return "".join(traceback.format_list([*own, *frames[-_INNERMOST:]]))


def write_error(text: str) -> None:
    """Say it on stderr, if there is one left."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"error: {printable(text)}\n")
        sys.stderr.flush()


def _leave(code: int) -> None:
    """End the process at once, whatever its main thread waits for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


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
