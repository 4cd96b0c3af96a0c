"""A Slurm job that starts one rank per device: what it asks for, its script, its submission.

    #SBATCH …                       what the job asks for: nodes × tasks, one task per device
    srun … python -m dpolish dpo …  every task runs the same command and takes its rank from SLURM_PROCID

The script needs nothing but Slurm and the environment it was submitted from, or a container (pyxis). It can be read,
changed, and submitted again with plain `sbatch`.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpolish.errors import ConfigError, RunError
from dpolish.files import cannot_write, write_atomically

SCRIPT_NAME = "job.sbatch"
"""The script's name in the run directory."""

_TAKES = ("nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task", "cpus-per-task", "exclusive")
_NAMES = ("job-name", "account", "partition", "time", "chdir", "output", "error", "array", "wrap", "parsable")
_OWN = frozenset((*_TAKES, *_NAMES))
"""Options of sbatch that are written here, or that would contradict what is."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the node, and where the container sees it."""

    source: Path
    target: Path
    flags: str = ""

    def __str__(self) -> str:
        return ":".join(filter(None, (str(self.source), str(self.target), self.flags)))


@dataclass(frozen=True, slots=True)
class Container:
    """An image for pyxis, the container plug-in of Slurm, and what it sees of the node."""

    image: str
    mounts: tuple[Mount, ...]

    def on_node(self, path: Path) -> Path | None:
        """Where a path of the container lies on the node; None where it would vanish with the container."""
        inner = [mount for mount in self.mounts if path.is_relative_to(mount.target)]
        if not inner:
            return None
        mount = max(inner, key=lambda mount: len(mount.target.parts))
        return mount.source / path.relative_to(mount.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """What one job asks of Slurm, and the command that each of its tasks runs."""

    program: tuple[str, ...]
    """Python and the verb."""
    arguments: tuple[str, ...]
    num_nodes: int
    tasks_per_node: int
    """Ranks on each node, one per device."""
    device: Literal["gpu", "cpu"]
    name: str
    log_directory: Path
    """On the node, absolute."""
    working_directory: Path
    """Where relative paths of the command start; absolute."""
    time: str | None = None
    account: str | None = None
    partition: str | None = None
    cpus_per_task: int | None = None
    exclusive: bool = False
    """Share the nodes with nobody."""
    more: tuple[str, ...] = ()
    """Other options of sbatch's, as `--qos=high`."""
    container: Container | None = None

    @property
    def size(self) -> str:
        """What it takes, in words."""
        devices = "GPU" if self.device == "gpu" else "CPU rank"
        nodes = "node" if self.num_nodes == 1 else "nodes"
        return f"{self.num_nodes} {nodes} × {self.tasks_per_node} {devices}{'s' * (self.tasks_per_node > 1)}"

    def log(self, job_id: str) -> Path:
        """Where the job with this id writes what all of its ranks say."""
        return self.log_directory / f"slurm-{job_id}.out"


def parse_mounts(texts: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts of `SOURCE:TARGET[:FLAGS]` or `PATH`, several with commas, as pyxis reads them.

    >>> parse_mounts(["/data,/lustre/me:/results:rw"])[1]
    Mount(source=PosixPath('/lustre/me'), target=PosixPath('/results'), flags='rw')
    """
    mounts = []
    for text in filter(None, ",".join(texts).split(",")):
        source, _, rest = text.partition(":")
        target, _, flags = rest.partition(":")
        if not (source.startswith("/") and (target or source).startswith("/")):
            raise ConfigError(f"--container-mounts {text}: expected absolute paths, SOURCE:TARGET or PATH")
        mounts.append(Mount(Path(source), Path(target or source), flags))
    return tuple(mounts)


def own_mounts(paths: Sequence[Path]) -> tuple[Mount, ...]:
    """Each path where it is, without those that lie in another."""
    distinct = dict.fromkeys(paths)
    outer = (path for path in distinct if not any(path != other and path.is_relative_to(other) for other in distinct))
    return tuple(Mount(path, path) for path in outer)


# --- the script -------------------------------------------------------------------------------------------------------


def render(job: SlurmJob) -> str:
    """The sbatch script of a job. Raises ConfigError where a value cannot stand in one."""
    lines = [
        "#!/bin/bash",
        f"# {job.size}, written by dpolish slurm. `sbatch` takes it again; the directory of the log must be there.",
        *(f"#SBATCH {directive}" for directive in _directives(job)),
        "",
        "set -euo pipefail",
    ]
    if job.cpus_per_task:
        # Where tasks are not bound to cores, each would take all of them for its threads.
        lines.append(f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{job.cpus_per_task}}}"')
    lines += ["", "# One task per device. The first that fails ends them all.", _command(job)]
    return "\n".join(lines) + "\n"


def _directives(job: SlurmJob) -> Iterator[str]:
    yield _directive("job-name", job.name)
    for name, value in (("account", job.account), ("partition", job.partition), ("time", job.time)):
        if value is not None:
            yield _directive(name, value)
    yield _directive("nodes", str(job.num_nodes))
    yield _directive("ntasks-per-node", str(job.tasks_per_node))
    if job.device == "gpu":
        yield _directive("gpus-per-node", str(job.tasks_per_node))
    if job.cpus_per_task:
        yield _directive("cpus-per-task", str(job.cpus_per_task))
    if job.exclusive:
        yield "--exclusive"
    for option in job.more:
        yield _given_option(option)
    yield _directive("chdir", str(job.working_directory))
    yield _directive("output", f"{_without_patterns(job.log_directory)}/slurm-%j.out")


def _directive(name: str, value: str) -> str:
    return f"--{name}={_quoted(f'--{name}', value)}"


def _quoted(option: str, value: str) -> str:
    """The value as sbatch reads it from a script, where blanks end it, and `#` the line, unless it is quoted."""
    if not value or not value.isprintable() or re.search(r"[\"\\]", value):
        raise ConfigError(
            f"{option} {value!r}: sbatch cannot read this; it must not be empty and needs to do without "
            'line breaks, `"` and backslashes'
        )
    return value if re.fullmatch(r"[\w@%+=:,./-]+", value) else f'"{value}"'


def _without_patterns(path: Path) -> str:
    """The path, with every `%` as what it is: sbatch replaces `%j` and its like."""
    return str(path).replace("%", "%%")


def _given_option(option: str) -> str:
    """One `--name` or `--name=value` of the user's for sbatch."""
    found = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.+))?", option, re.DOTALL)
    if found is None:
        raise ConfigError(f"--sbatch {option!r}: expected one option with its value, such as --sbatch=--qos=high")
    name, value = found.groups()
    if name in _OWN:
        raise ConfigError(
            f"--sbatch={option}: dpolish slurm writes {name} itself; see `dpolish slurm --help` for what sets it"
        )
    return f"--{name}" if value is None else _directive(name, value)


def _command(job: SlurmJob) -> str:
    """`srun …` over several lines, an option and its value on one."""
    flags = ["srun", "--kill-on-bad-exit=1"]
    if job.cpus_per_task:
        flags.append(f"--cpus-per-task={job.cpus_per_task}")  # since 22.05 srun does not take it from the job
    lines = [shlex.join(flags)]
    if job.container:
        lines += map(shlex.quote, _container_flags(job.container, job.working_directory))
    lines.append(shlex.join(job.program))
    words = list(job.arguments)
    while words:
        with_value = words[0].startswith("--") and "=" not in words[0] and len(words) > 1
        lines.append(shlex.join(words[: 1 + with_value]))
        del words[: 1 + with_value]
    return " \\\n    ".join(lines)


def _container_flags(container: Container, working_directory: Path) -> Iterator[str]:
    yield f"--container-image={container.image}"
    unwritable = [str(mount) for mount in container.mounts if re.search(r"[:,]", f"{mount.source}{mount.target}")]
    if unwritable:
        raise ConfigError(
            f"{unwritable[0]}: pyxis cannot mount a path with `:` or `,`; move it, or give --container-mounts"
        )
    if container.mounts:
        yield f"--container-mounts={','.join(map(str, container.mounts))}"
    if container.on_node(working_directory):
        yield f"--container-workdir={working_directory}"


# --- submission -------------------------------------------------------------------------------------------------------


def write_script(path: Path, script: str) -> None:
    """Write the script where the user wants it, never over another file."""
    if path.is_dir():
        raise ConfigError(f"--output-script {path}: is a directory; name a file")
    if path.is_file() and path.read_bytes() != script.encode():
        raise ConfigError(f"--output-script {path}: is another file already; remove it, or name a new one")
    _make_directory(path.parent)
    write_atomically(path, script)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(cannot_write(directory, error)) from error


def _require_sbatch() -> None:
    """Raise ConfigError where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "there is no sbatch here: submit from a login node of the cluster. "
            "--dry-run prints the script, with --output-script FILE also into a file, without it"
        )


def submit(job: SlurmJob, file: Path | None = None) -> tuple[str, Path]:
    """Hand the job to sbatch: its id, and its script, which goes to `file` or into the run directory.

    A refusal of sbatch's is a ConfigError with its words.
    """
    _require_sbatch()
    script, path = render(job), file or job.log_directory / SCRIPT_NAME
    _make_directory(job.log_directory)  # Slurm does not make it, and without it the job would fail and not say why
    if file:
        write_script(file, script)
    else:
        write_atomically(path, script)
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"it left {done.returncode}"
        raise ConfigError(f"sbatch did not take {path}; nothing was submitted:\n{words}")
    return done.stdout.strip().partition(";")[0], path  # behind `;`: the cluster, where there are several
