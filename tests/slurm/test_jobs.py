"""What `dpolish.launch.slurm` writes, as a real Slurm takes it; the tasks are small programs, not trainings."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dpolish.errors import ConfigError
from dpolish.launch.slurm import SlurmJob, render, submit
from tests.slurm.cluster import Cluster, Job

pytestmark = pytest.mark.slurm

SAY = """
import json, os, sys
names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURMD_NODENAME",
         "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), **{name: os.environ.get(name) for name in names}}))
"""
"""What a task knows of itself, as one line."""


@pytest.fixture(autouse=True)
def conf(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch means this Slurm."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])


def job_of(folder: Path, code: str, *arguments: str) -> SlurmJob:
    """Two nodes with a task on each, on CPUs."""
    return SlurmJob(
        program=(sys.executable, "-c", code),
        arguments=arguments,
        num_nodes=2,
        tasks_per_node=1,
        device="cpu",
        name="small",
        log_directory=folder,
        working_directory=folder,
    )


def ended(cluster: Cluster, job: SlurmJob, seconds: float = 60) -> tuple[Job, str]:
    """The job after its end, and its log."""
    job_id, _ = submit(job)
    end = cluster.wait(job_id, seconds)
    return end, job.log(job_id).read_text(encoding="utf-8")


def said(log: str) -> list[dict[str, object]]:
    """What the tasks said, by rank."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: int(line["SLURM_PROCID"]))


def test_every_device_gets_a_task_that_knows_its_rank(cluster: Cluster, tmp_path: Path) -> None:
    end, log = ended(cluster, replace(job_of(tmp_path, SAY), tasks_per_node=2))
    assert (end.state, end.exit_code) == ("COMPLETED", 0), log
    tasks = said(log)
    assert [(task["SLURM_PROCID"], task["SLURM_LOCALID"], task["SLURMD_NODENAME"]) for task in tasks] == [
        ("0", "0", "n1"),
        ("1", "1", "n1"),
        ("2", "0", "n2"),
        ("3", "1", "n2"),
    ]
    assert {(task["SLURM_STEP_NUM_TASKS"], task["SLURM_STEP_TASKS_PER_NODE"]) for task in tasks} == {("4", "2(x2)")}


NASTY = [
    "model.name='a b'",
    '"quoted"',
    "$HOME `id` $(id) \\",
    "++model.data.data_prefix={train: [/p/t.jsonl], validation: [/p/v.jsonl]}",
    "--train",
    "two\nlines",
    "é%j #!",
    "",
]


def test_arguments_and_paths_arrive_verbatim(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "re sults #1 %j 'é'"
    folder.mkdir()
    end, log = ended(cluster, replace(job_of(folder, SAY, *NASTY), name="a name #2", more=("--comment=x y",)))
    assert end.state == "COMPLETED", log
    for task in said(log):
        assert (task["argv"], task["cwd"]) == (NASTY, str(folder))


def test_cpus_per_task_reach_the_tasks(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, log = ended(cluster, replace(job_of(tmp_path, SAY), cpus_per_task=3))
    assert [(task["SLURM_CPUS_PER_TASK"], task["OMP_NUM_THREADS"]) for task in said(log)] == [("3", "3")] * 2


def test_the_first_task_that_fails_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    code = "import os, sys, time\nos.environ['SLURM_PROCID'] == '1' and sys.exit(3)\ntime.sleep(600)"
    begin = time.monotonic()
    end, log = ended(cluster, job_of(tmp_path, code), seconds=30)
    assert end.state == "FAILED", log
    assert "task 1: Exited with exit code 3" in log
    assert time.monotonic() - begin < 30


def test_what_sbatch_says_is_passed_on(cluster: Cluster, tmp_path: Path) -> None:
    job = replace(job_of(tmp_path, SAY), partition="nowhere")
    with pytest.raises(ConfigError, match=r"nothing was submitted:\n.*invalid partition"):
        submit(job)
    assert cluster.run("squeue", "--noheader").strip() == ""


def test_sbatch_keeps_the_script_as_it_was_printed(cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path, SAY, *NASTY)
    job_id, _ = submit(job, tmp_path / "mine.sbatch")
    cluster.wait(job_id, 60)
    assert cluster.run("scontrol", "write", "batch_script", job_id, "-").rstrip("\n") == render(job).rstrip("\n")
