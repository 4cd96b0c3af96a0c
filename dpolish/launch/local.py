"""Ranks of a plain terminal: `trainer.devices=N` starts N of them through torchrun's own API."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn


def start_ranks(count: int, command: Sequence[str] | None = None) -> NoReturn:
    """Run `command`, by default this very one, as `count` ranks on this machine, and leave with their exit code."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The ranks say themselves what went wrong; the launcher's own account would bury it.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
    os.environ["DPOLISH_LAUNCHER"] = str(os.getpid())
    folder = tempfile.TemporaryDirectory(prefix="dpolish-ranks-")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"dpolish-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=folder.name),
    )
    words = list(command or [sys.executable, *sys.orig_argv[1:]])
    with folder:
        try:
            elastic_launch(config, words[0])(*words[1:])
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            sys.exit(next((code for code in sorted(codes) if code > 0), 3))
        except SignalException as error:
            sys.exit(128 + int(error.sigval))
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
