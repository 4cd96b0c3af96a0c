"""The first rank's side of the watch: it hears all ranks, and says who failed, died or hangs."""

import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from dpolish.parallel.watch import BEAT_SECONDS, Lines, send, write_error

SETTLE_SECONDS = 1.5
"""After the first bad news, how long to wait for worse: a partner may complain before the culprit has said why."""


_HELLO_BYTES, _LONGEST_LINE = 4096, 1 << 20
"""Most bytes of a line from a stranger, and from a rank."""
_HELLO_ROUNDS = 60.0 / BEAT_SECONDS
"""Rounds after which every rank must have reported, or longer if the limit of silence is."""
_UNREAD_ROUNDS = 1000
"""Rounds after which a rank that says nothing is told nothing: it does not read either."""
_INPUT, _INTERRUPTED = 2, 130
"""Exit codes of faults that are no rank's own."""


@dataclass(slots=True)
class _Peer:
    """What is known of one rank."""

    rank: int
    machine: str
    pid: int
    connection: socket.socket
    lines: Lines
    ticks: int = -1
    timed: bool = False
    stack: str = ""
    beats: int = 0
    """Rounds of the monitor since it was heard of. Counted, not timed: a job may be suspended as a whole."""
    still: int = 0
    """Rounds since it got further."""
    finished: bool = False
    dead: bool = False
    failure: dict[str, object] | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.machine.split()[0]}, process {self.pid})"


@dataclass(slots=True)
class _Verdict:
    """What ends the run."""

    text: str
    code: int = 3
    kill: list[tuple[str, int]] = field(default_factory=list)


class Monitor:
    """Listens to every rank, on a thread of its own."""

    def __init__(self, size: int, timeout: float) -> None:
        self._size, self._rounds = size, timeout / BEAT_SECONDS
        self._timeout = timeout
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=max(size, 128), dualstack_ipv6=both)
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._peers: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._bad_news: float | None = None
        self._waited = 0
        """Rounds in which not all ranks had been heard of."""
        self._finished = False
        self._thread = threading.Thread(target=self._run, name="dpolish-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return when every rank has been told that all are done, or at once where there is nobody to tell."""
        self._finished = True
        self._thread.join(10.0)

    def _run(self) -> None:
        """Listen and judge until the end. A fault of our own ends the run too, and says so."""
        try:
            verdict = self._judged()
        except Exception as error:
            verdict = _Verdict(f"the watch over the ranks has failed: {error!r}", 1)
        if verdict is not None:
            self._tell(end=verdict.code, kill=verdict.kill)
            write_error(verdict.text)
            return  # connections end with the process: a closed one would be taken for its death
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Peer):
                key.data.connection.close()
            elif isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _judged(self) -> _Verdict | None:
        due = time.monotonic()
        while not self._finished:
            for key, _ in self._selector.select(timeout=max(due - time.monotonic(), 0.0)):
                self._hear(key)
            if time.monotonic() >= due:
                due = time.monotonic() + BEAT_SECONDS
                self._round()
            if (verdict := self._verdict()) is not None:
                return verdict
        self._tell(all_done=True)
        return None

    def _hear(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            with suppress(OSError):
                stranger, _ = self._server.accept()
                stranger.setblocking(False)
                self._selector.register(stranger, selectors.EVENT_READ, Lines(_HELLO_BYTES))
            return
        connection = key.fileobj
        assert isinstance(connection, socket.socket)
        peer = key.data if isinstance(key.data, _Peer) else None
        lines: Lines = peer.lines if peer else key.data
        try:
            messages = lines.receive(connection)
            for message in messages or ():
                peer = self._note(peer, connection, lines, message)
        except (ValueError, KeyError, TypeError, RecursionError):
            messages = None  # not one of ours
        if messages is None:
            self._selector.unregister(connection)
            connection.close()
            if peer is not None and not peer.finished:
                peer.dead = True
                self._bad_news = self._bad_news or time.monotonic()

    def _note(self, peer: _Peer | None, connection: socket.socket, lines: Lines, message: dict[str, object]) -> _Peer:
        """The peer that a message is from, with what it says noted. Raises ValueError for a stranger."""
        if peer is None:
            if not secrets.compare_digest(str(message.get("token", "")).encode(), self.token.encode()):
                raise ValueError("a stranger")
            rank, where, pid = int(str(message["rank"])), str(message["machine"]), int(str(message["pid"]))
            lines.longest = _LONGEST_LINE
            peer = _Peer(rank, where, pid, connection, lines)
            self._peers[peer.rank] = peer
            self._selector.modify(connection, selectors.EVENT_READ, peer)
        elif "failed" in message:
            peer.failure = message
            self._bad_news = self._bad_news or time.monotonic()
        elif "done" in message:
            peer.finished = True
            if len(self._peers) == self._size and all(each.finished for each in self._peers.values()):
                self._finished = True
        else:
            ticks = int(str(message["ticks"]))
            peer.still = 0 if ticks != peer.ticks or not message["timed"] else peer.still
            peer.ticks, peer.timed, peer.beats = ticks, bool(message["timed"]), 0
            peer.stack = str(message["stack"] or peer.stack)
        return peer

    def _round(self) -> None:
        self._waited += len(self._peers) < self._size
        for peer in self._peers.values():
            peer.beats += 1
            peer.still += 1
        self._tell(ping=True)

    def _tell(self, **message: object) -> None:
        for peer in self._peers.values():
            if not peer.dead and peer.beats < _UNREAD_ROUNDS:
                with suppress(OSError):
                    send(peer.connection, **message)

    def _verdict(self) -> _Verdict | None:
        if self._bad_news is not None and time.monotonic() - self._bad_news > SETTLE_SECONDS:
            return self._after_bad_news()
        if self._waited > max(self._rounds, _HELLO_ROUNDS):
            missing = [str(rank) for rank in range(self._size) if rank not in self._peers]
            return _Verdict(f"rank {', '.join(missing[:8])} was started and never reported; has it died?")
        watched = [peer for peer in self._peers.values() if not peer.finished]
        silent = [peer for peer in watched if peer.beats > self._rounds]
        if silent:
            text = "; ".join(f"{peer} gave no sign of life for {self._timeout:g} s" for peer in silent[:4])
            return _Verdict(
                f"{text}. Is it stopped, or its machine gone? {_stacks(silent)}",
                kill=[(peer.machine, peer.pid) for peer in silent],
            )
        if len(watched) == self._size and all(peer.timed and peer.still > self._rounds for peer in watched):
            behind = min(peer.ticks for peer in watched)
            stuck = [peer for peer in watched if peer.ticks == behind]
            own = [peer for peer in stuck if "torch/distributed" not in peer.stack] or stuck
            text = ", ".join(str(peer) for peer in own[:4])
            return _Verdict(
                f"no rank got any further for {self._timeout:g} s (trainer.hang_timeout); {text} hangs. {_stacks(own)}",
                kill=[(peer.machine, peer.pid) for peer in own],
            )
        return None

    def _after_bad_news(self) -> _Verdict:
        failed = [peer for peer in sorted(self._peers.values(), key=lambda peer: peer.rank) if peer.failure]
        own = [peer for peer in failed if peer.failure and peer.failure["own"]]
        dead = [peer for peer in self._peers.values() if peer.dead and not peer.failure]
        if own or not dead:
            peer = (own or failed)[0]
            assert peer.failure is not None
            code = int(str(peer.failure["code"]))
            tag = "" if code == _INTERRUPTED or (code == _INPUT and peer.rank == 0) else f"[rank {peer.rank}] "
            return _Verdict(f"{tag}{peer.failure['failed']}", code)
        names = ", ".join(str(peer) for peer in dead[:4])
        return _Verdict(f"{names} died without a word: killed, or out of memory. {_stacks(dead)}")


def _stacks(peers: list[_Peer]) -> str:
    shown = [f"\n  {peer} was last seen at:\n{peer.stack.rstrip()}" for peer in peers[:4] if peer.stack]
    return "".join(shown)
