"""Read checkpoints that may mean harm, each in a process of its own that watches what it does.

    python -m tests.nemo.read_guarded [--together] < paths > results

One path per line; one line of JSON per path: exit code, message, peak memory in MB (and how much of that was there
before), and what it did that it must not.
`--together` reads all in one process, which is faster; the peaks are then of all so far. Apart, the peak leaves out the
families and transformers (15 MB), which a checkpoint loads only once it has passed all checks but that of shapes.
"""

import json
import os
import sys
from importlib import import_module
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
    peak = megabytes(memory("VmHWM") + inherited)
    return json.dumps({"code": code, "message": message[:4000], "peak": peak, "before": BEFORE, "events": events})


def megabytes(kibibytes: int) -> int:
    """Rounded down."""
    return kibibytes * 1024 // 1_000_000


BEFORE = megabytes(memory("VmHWM"))
"""What torch and this package take before they read anything."""


def together() -> None:
    """All in this process."""
    done = guard()
    for line in sys.stdin:
        sys.stdout.write(f"{result(Path(line.rstrip(chr(10))), done)}\n")


def apart(of_parent: int) -> None:
    """A child for each path: what one has read costs the next nothing. `of_parent`: KiB that each begins with."""
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            inherited = of_parent - memory("VmRSS")
            os.write(writing, result(Path(line.rstrip("\n")), guard(), inherited).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            died = json.dumps({"code": -1, "message": "died", "peak": 0, "before": 0, "events": []})
            sys.stdout.write(f"{answer.read() or died}\n")
            sys.stdout.flush()
        os.waitpid(child, 0)


def main() -> None:
    """Load what is loaded late before anything is watched, for that compiles and runs our own files."""
    before = memory("VmHWM")
    import_module("dpolish.nemo.families")
    together() if "--together" in sys.argv else apart(before)


if __name__ == "__main__":
    main()
