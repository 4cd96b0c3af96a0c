"""Read checkpoints that may mean harm, each in a process of its own that watches what it does.

    python -m tests.nemo.read_guarded [--together] < paths > results

One path per line; one line of JSON per path: exit code, message, peak memory in MB, and what it did that it must not.
`--together` reads all in one process, which is faster; the peaks are then of all so far.
"""

import json
import os
import sys
from pathlib import Path

from dpolish.errors import DpolishError
from dpolish.nemo.checkpoint import open_checkpoint

FORBIDDEN = ("pickle.", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "marshal.", "code.", "exec", "compile")
HARMLESS = ("os.scandir", "os.listdir", "shutil.disk_usage")


def read(path: Path) -> tuple[int, str]:
    """(exit code, message) of opening a checkpoint and reading all of it."""
    try:
        with open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.weights.values():
                tensor.load()
    except DpolishError as error:
        return error.exit_code, str(error)
    except BaseException as error:
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""


def guard() -> list[str]:
    """From now on, what this process does that it must not."""
    done: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            temporary = str(arguments[0]).startswith(os.environ["TMPDIR"])
            if writes and not temporary:
                done.append(f"open {arguments[0]}")
        elif event.startswith(FORBIDDEN) and event not in HARMLESS:
            done.append(f"{event} {str(arguments)[:100]}")

    sys.addaudithook(watch)
    return done


def memory(which: str) -> int:
    """KiB of this process: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])


def result(path: Path, done: list[str], inherited: int = 0) -> str:
    """What happened when a checkpoint was read, as JSON. `inherited`: KiB that a child does not count as its own."""
    done.clear()
    code, message = read(path)
    events = list(done)
    peak = (memory("VmHWM") + inherited) * 1024 // 1_000_000
    return json.dumps({"code": code, "message": message[:4000], "peak": peak, "events": events})


def together() -> None:
    """All in this process."""
    done = guard()
    for line in sys.stdin:
        sys.stdout.write(f"{result(Path(line.rstrip(chr(10))), done)}\n")


def apart() -> None:
    """A child for each path: what one has read costs the next nothing."""
    of_parent = memory("VmHWM")
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            inherited = of_parent - memory("VmRSS")
            os.write(writing, result(Path(line.rstrip("\n")), guard(), inherited).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            died = json.dumps({"code": -1, "message": "died", "peak": 0, "events": []})
            sys.stdout.write(f"{answer.read() or died}\n")
            sys.stdout.flush()
        os.waitpid(child, 0)


if __name__ == "__main__":
    together() if "--together" in sys.argv else apart()
