"""A Slurm of two nodes on this machine: munge, a controller, two node daemons, in one directory, nothing left behind.

It has its own ports, sockets and key, and takes no notice of another Slurm or munge that the machine may have.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
MinJobAge=300
SlurmctldTimeout=60
SlurmdTimeout=60
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in (*DAEMONS, *COMMANDS) if find(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: install slurm-wlm and munge"
    if os.geteuid() != 0:
        return "Slurm's daemons need root here"
    return None


def find(program: str) -> str | None:
    """Where a program is; daemons lie outside an ordinary PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as `scontrol` shows it."""

    state: str
    exit_code: int
    log: Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running Slurm."""

    folder: Path
    environment: dict[str, str]
    """Of its commands: SLURM_CONF says which Slurm is meant."""

    def run(self, *command: str, cwd: Path | None = None, check: bool = True, **more: str) -> str:
        """What a command prints; with `more` in its environment."""
        done = subprocess.run(
            command,
            env={**self.environment, **more},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} left {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, script: str, cwd: Path | None = None, **more: str) -> str:
        """The id of a new job with this script."""
        folder = cwd or self.folder
        file = folder / f"script-{os.urandom(4).hex()}.sh"
        file.write_text(script, encoding="utf-8")
        return self.run("sbatch", "--parsable", str(file), cwd=folder, **more).strip()

    def job(self, job_id: str) -> Job:
        """How a job stands."""
        shown = self.run("scontrol", "show", "job", job_id)
        state, code, log = (
            re.findall(pattern, shown)[0] for pattern in (r"JobState=(\w+)", r"ExitCode=(\d+)", r"StdOut=(.*)")
        )
        return Job(state, int(code), Path(log))

    def wait(self, job_id: str, seconds: float) -> Job:
        """The job when it has ended. Fails when it has not by then, with what it wrote."""
        wait_until(lambda: self.job(job_id).state in ENDED, seconds, lambda: self.account(job_id))
        return self.job(job_id)

    def account(self, job_id: str) -> str:
        """The job, the end of its log, and the daemons' last words: for messages."""
        job = self.job(job_id)
        logs = [job.log, *self.folder.glob("*.log")]
        tails = [f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.is_file()]
        return "\n".join([f"job {job_id} is {job.state}", *tails])


def wait_until(condition: Callable[[], bool], seconds: float, account: Callable[[], str]) -> None:
    """Return once the condition holds; an assertion fails when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {account()}"
        time.sleep(0.1)


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """A Slurm in `folder`, its nodes idle."""
    controller, first, second = free_ports(3)
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    file = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    file.write_text(
        CONFIGURATION.format(folder=folder, host=host, controller=controller, first=first, second=second),
        encoding="utf-8",
    )
    munge_key = folder / "munge.key"
    munge_key.write_bytes(os.urandom(128))
    munge_key.chmod(0o400)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    cluster = Cluster(folder, {**inherited, "SLURM_CONF": str(file)})
    munge = ["munged", "--foreground", "--force", f"--key-file={munge_key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    with ExitStack() as stack:
        stack.enter_context(daemon(munge, cluster))
        wait_until((folder / "munge.socket").exists, 20, lambda: (folder / "munged.out").read_text())
        stack.enter_context(daemon(["slurmctld", "-D", "-c", "-f", str(file)], cluster))
        for node in ("n1", "n2"):
            stack.enter_context(daemon(["slurmd", "-D", "-f", str(file), "-N", node], cluster))
        stack.callback(cancel_all, cluster)
        wait_until(
            lambda: cluster.run("sinfo", "--noheader", "--format=%D %t", check=False).strip() == "2 idle",
            60,
            lambda: "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(folder.glob("*.log"))),
        )
        yield cluster


@contextmanager
def daemon(command: list[str], cluster: Cluster) -> Iterator[None]:
    """A daemon that is there until the end, in a session of its own."""
    program = find(command[0])
    assert program is not None
    with (cluster.folder / f"{command[0]}.out").open("ab") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            env=cluster.environment,
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cancel_all(cluster: Cluster) -> None:
    """End every job and wait until none is left, so that no task outlives its node."""
    cluster.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)  # no grace for tasks that are left
    cluster.run("scancel", "--user=root", check=False)
    wait_until(lambda: cluster.run("squeue", "--noheader").strip() == "", 60, lambda: cluster.run("squeue"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
