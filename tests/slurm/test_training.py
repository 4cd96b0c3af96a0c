"""Runs on a real Slurm end where one process ends: NeMo-Aligner's script, and the one that `dpolish slurm` submits.

Minutes on two cores, for every rank of every job imports torch.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.slurm.cluster import Cluster, Job, wait_until
from tests.tiny import Setup

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
SECONDS = 400
"""For a job of a few steps, most of which is the time to import torch, several times, on few cores."""

SCRIPT = r"""#!/bin/bash
#SBATCH -p main
#SBATCH -N {nodes}
#SBATCH -t 0:30:00
#SBATCH -J dpo
#SBATCH --ntasks-per-node={devices}
#SBATCH --exclusive
#SBATCH --overcommit

GPFS="{root}"
PRETRAINED_CHECKPOINT="{setup.model}"
TRAIN_DATA_PATH="{setup.train}"
VALID_DATA_PATH="{setup.validation}"
RESULTS_DIR="{results}"
mkdir -p ${{RESULTS_DIR}}

read -r -d '' cmd <<EOF
cd ${{GPFS}} \
&& export PYTHONPATH="${{GPFS}}:${{PYTHONPATH}}" \
&& python -u ${{GPFS}}/examples/nlp/gpt/train_gpt_dpo.py \
   trainer.num_nodes=${{SLURM_JOB_NUM_NODES}} \
   trainer.devices={devices} \
   pretrained_checkpoint.restore_from_path='${{PRETRAINED_CHECKPOINT}}' \
   "++model.data.data_prefix={{train: [${{TRAIN_DATA_PATH}}], validation: [${{VALID_DATA_PATH}}]}}" \
   ++model.micro_batch_size=1 \
   exp_manager.explicit_log_dir=${{RESULTS_DIR}} \
   exp_manager.create_wandb_logger=False \
   exp_manager.wandb_logger_kwargs.name=${{NAME}} \
   exp_manager.wandb_logger_kwargs.project=${{PROJECT}} \
   {overrides}
EOF

srun -o ${{RESULTS_DIR}}/dpo-%j_%t.out -e ${{RESULTS_DIR}}/dpo-%j_%t.err bash -c "${{cmd}}"
"""
"""NeMo-Aligner's way to submit: the command is a text that `bash -c` runs in each task, and each task has its logs."""


def script(setup: Setup, results: Path, nodes: int, devices: int, *overrides: str) -> str:
    """The script of one run."""
    words = " ".join((*setup.overrides, *overrides))
    return SCRIPT.format(root=ROOT, setup=setup, results=results, nodes=nodes, devices=devices, overrides=words)


@pytest.fixture(scope="module")
def one_process(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process that did the same."""
    directory = tmp_path_factory.mktemp("one") / "run"
    setup.run(directory, "model.micro_batch_size=1")
    return directory


def environment(folder: Path) -> dict[str, str]:
    """Of a job: this Python, one thread for each rank, and nobody's reference cache."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "OMP_NUM_THREADS": "1", "DPOLISH_CACHE": str(folder / "cache")}


def logs(job: Job, results: Path) -> str:
    """Everything that was written."""
    files = [job.log, *sorted(results.glob("*.out")), *sorted(results.glob("*.err"))]
    return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')}" for file in files if file.is_file())


def same_run(ours: Path, theirs: Path) -> None:
    """Every metric that is no time, and the weights."""
    for split in ("train", "val"):
        ours_, theirs_ = tiny.metrics(ours, split), tiny.metrics(theirs, split)
        assert len(ours_) == len(theirs_) > 0
        for one, other in zip(ours_, theirs_, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            measured = [name for name in other if name.endswith(("_time", "_per_second"))]
            for name in other.keys() - set(measured):
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, one, other)
    assert tiny.largest_difference(tiny.weights(ours / "model"), tiny.weights(theirs / "model")) < 1e-4


@pytest.mark.parametrize(("nodes", "devices"), [(2, 1), (2, 2)])
def test_nemos_script_ends_where_one_process_ends(
    cluster: Cluster, setup: Setup, one_process: Path, tmp_path: Path, nodes: int, devices: int
) -> None:
    results = tmp_path / "results"
    job_id = cluster.submit(script(setup, results, nodes, devices), cwd=tmp_path, **environment(tmp_path))
    job = cluster.wait(job_id, SECONDS)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), logs(job, results)
    same_run(results, one_process)


def test_dpolish_slurm_ends_where_one_process_ends(
    cluster: Cluster, setup: Setup, one_process: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    job_id = dpolish_slurm(cluster, setup, results, "model.micro_batch_size=1")
    job = cluster.wait(job_id, SECONDS)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), logs(job, results)
    same_run(results, one_process)
    said = (results / f"slurm-{job_id}.out").read_text(encoding="utf-8")
    assert said.count("step 5/5  train") == 1, said  # one rank speaks for all
    assert (results / "job.sbatch").is_file()


def dpolish_slurm(cluster: Cluster, setup: Setup, results: Path, *overrides: str) -> str:
    """The id of a job of `dpolish slurm`, two nodes with a rank on each; its script is what --dry-run prints."""
    flags = ["--nodes=2", "--devices-per-node=1", "--accelerator=cpu", "--cpus-per-task=1", "--time=0:30:00"]
    command = [sys.executable, "-m", "dpolish", "slurm", "dpo", *setup.arguments(results), *overrides, *flags]
    more = {**environment(results.parent), "PYTHONPATH": str(ROOT)}
    printed = cluster.run(*command, "--dry-run", cwd=results.parent, **more)
    assert not results.exists()
    said = cluster.run(*command, cwd=results.parent, **more)
    job_id = said.partition("job ")[2].partition(":")[0]
    assert f"log: {results}/slurm-{job_id}.out" in said
    assert cluster.run("scontrol", "write", "batch_script", job_id, "-").rstrip("\n") == printed.rstrip("\n")
    return job_id


# --- the death of a rank ----------------------------------------------------------------------------------------------

ENDLESS = ("trainer.dpo.max_epochs=5000", "trainer.dpo.max_steps=-1", "trainer.dpo.val_check_interval=1000000")


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("nemo", "error: rank 1 "),  # srun would wait for the other tasks: they end by themselves, and say why
        ("dpolish slurm", "task 1: Killed"),
    ],
)
def test_a_killed_task_ends_the_job(cluster: Cluster, setup: Setup, tmp_path: Path, way: str, says: str) -> None:
    results = tmp_path / "results"
    if way == "nemo":
        job_id = cluster.submit(script(setup, results, 2, 1, *ENDLESS), cwd=tmp_path, **environment(tmp_path))
    else:
        job_id = dpolish_slurm(cluster, setup, results, *ENDLESS)
    steps = results / "metrics.jsonl"
    wait_until(lambda: steps.exists() and steps.stat().st_size > 0, SECONDS, lambda: logs(cluster.job(job_id), results))
    (victim,) = tasks(cluster, job_id, rank=1)
    begin = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    job = cluster.wait(job_id, 30)
    assert time.monotonic() - begin < 30
    assert job.state == "FAILED", logs(job, results)
    assert says in logs(job, results)
    assert list(tasks(cluster, job_id, rank=0)) == []


def tasks(cluster: Cluster, job_id: str, rank: int) -> Iterator[int]:
    """The Python processes of one rank of a job on this machine."""
    marks = {f"SLURM_CONF={cluster.environment['SLURM_CONF']}", f"SLURM_JOB_ID={job_id}", f"SLURM_PROCID={rank}"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_text(errors="replace").split("\0")
            program = (folder / "cmdline").read_text(errors="replace").split("\0")[0]
        except OSError:  # it has ended meanwhile
            continue
        task = any(variable.startswith("SLURM_STEP_ID=") for variable in variables)
        if task and marks <= {*variables} and "python" in program:
            yield int(folder.name)
