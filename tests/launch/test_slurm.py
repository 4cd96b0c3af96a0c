"""Slurm jobs as text: what is asked for, how it is quoted, what is refused. tests/slurm has a real Slurm take them."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpolish.cli.slurm import slurm
from dpolish.errors import ConfigError, RunError
from dpolish.launch.slurm import Container, Mount, SlurmJob, own_mounts, parse_mounts, render, submit

JOB = SlurmJob(
    program=("python", "-u", "-m", "dpolish", "dpo"),
    arguments=("--model", "/m", "--train", "a b.jsonl", "model.seed=1"),
    num_nodes=4,
    tasks_per_node=8,
    device="gpu",
    name="dpolish-dpo",
    log_directory=Path("/results/dpo"),
    working_directory=Path("/home/me"),
)
FULL = replace(
    JOB,
    time="4:00:00",
    account="lab",
    partition="batch",
    cpus_per_task=14,
    exclusive=True,
    more=("--qos=high", "--comment=a b", "--overcommit"),
    container=Container("example.org#lab/pytorch:26.01", parse_mounts(["/home/me,/lustre/me:/results"])),
)


# --- the script -------------------------------------------------------------------------------------------------------


def test_a_script() -> None:
    assert render(JOB) == (
        "#!/bin/bash\n"
        "# 4 nodes × 8 GPUs, written by dpolish slurm. "
        "`sbatch` takes it again; the directory of the log must be there.\n"
        "#SBATCH --job-name=dpolish-dpo\n"
        "#SBATCH --nodes=4\n"
        "#SBATCH --ntasks-per-node=8\n"
        "#SBATCH --gpus-per-node=8\n"
        "#SBATCH --chdir=/home/me\n"
        "#SBATCH --output=/results/dpo/slurm-%j.out\n"
        "\n"
        "set -euo pipefail\n"
        "\n"
        "# One task per device. The first that fails ends them all.\n"
        "srun --kill-on-bad-exit=1 \\\n"
        "    python -u -m dpolish dpo \\\n"
        "    --model /m \\\n"
        "    --train 'a b.jsonl' \\\n"
        "    model.seed=1\n"
    )


def test_everything_that_can_be_asked_for() -> None:
    assert render(FULL) == (
        "#!/bin/bash\n"
        "# 4 nodes × 8 GPUs, written by dpolish slurm. "
        "`sbatch` takes it again; the directory of the log must be there.\n"
        "#SBATCH --job-name=dpolish-dpo\n"
        "#SBATCH --account=lab\n"
        "#SBATCH --partition=batch\n"
        "#SBATCH --time=4:00:00\n"
        "#SBATCH --nodes=4\n"
        "#SBATCH --ntasks-per-node=8\n"
        "#SBATCH --gpus-per-node=8\n"
        "#SBATCH --cpus-per-task=14\n"
        "#SBATCH --exclusive\n"
        "#SBATCH --qos=high\n"
        '#SBATCH --comment="a b"\n'
        "#SBATCH --overcommit\n"
        "#SBATCH --chdir=/home/me\n"
        "#SBATCH --output=/results/dpo/slurm-%j.out\n"
        "\n"
        "set -euo pipefail\n"
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-14}"\n'
        "\n"
        "# One task per device. The first that fails ends them all.\n"
        "srun --kill-on-bad-exit=1 --cpus-per-task=14 \\\n"
        "    '--container-image=example.org#lab/pytorch:26.01' \\\n"
        "    --container-mounts=/home/me:/home/me,/lustre/me:/results \\\n"
        "    --container-workdir=/home/me \\\n"
        "    python -u -m dpolish dpo \\\n"
        "    --model /m \\\n"
        "    --train 'a b.jsonl' \\\n"
        "    model.seed=1\n"
    )


def test_cpus_ask_for_no_gpus() -> None:
    script = render(replace(JOB, device="cpu", num_nodes=1, tasks_per_node=1))
    assert "gpu" not in script.lower()
    assert "# 1 node × 1 CPU rank, " in script


def test_a_percent_in_the_run_directory_is_no_pattern_of_slurms() -> None:
    assert "--output=/r/50%%j/slurm-%j.out\n" in render(replace(JOB, log_directory=Path("/r/50%j")))


def command_of(script: str) -> list[str]:
    """The words with which bash would start srun."""
    echo = "srun() { printf '%s\\0' srun \"$@\"; }\n"
    done = subprocess.run(["bash"], input=(echo + script).encode(), check=True, capture_output=True)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
AWKWARD = st.sampled_from(
    ["--model", "--train=x", "--", "$(id)", "`id`", "'", "\\\n", "\\", "~", "a # b", "{a,b}", "*", "!!"]
)


@settings(max_examples=50)
@given(arguments=st.lists(TEXT | AWKWARD, max_size=6))
def test_bash_hands_on_every_argument_verbatim(arguments: list[str]) -> None:
    assert command_of(render(replace(JOB, arguments=tuple(arguments)))) == [
        *("srun", "--kill-on-bad-exit=1"),
        *JOB.program,
        *arguments,
    ]


@pytest.mark.parametrize("name", ["", "two\nlines", 'a"b', "a\\b", "bell\a"])
def test_what_sbatch_could_not_read_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--job-name .*sbatch cannot read this"):
        render(replace(JOB, name=name))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("qos=high", "expected one option with its value, such as --sbatch=--qos=high"),
        ("--qos high", "expected one option"),
        ("--nodes=2", "dpolish slurm writes nodes itself"),
        ("--gpus-per-node=a100:8", "dpolish slurm writes gpus-per-node itself"),
        ("--comment=a\n#SBATCH --nodes=9", "sbatch cannot read this"),
    ],
)
def test_other_options_of_sbatch_that_are_refused(option: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        render(replace(JOB, more=(option,)))


# --- containers -------------------------------------------------------------------------------------------------------


def test_where_a_path_of_the_container_lies_on_the_node() -> None:
    container = Container("image", parse_mounts(["/lustre:/data", "/lustre/me/out:/data/out:rw", "/home"]))
    assert container.on_node(Path("/data/out/run")) == Path("/lustre/me/out/run")
    assert container.on_node(Path("/data/outer")) == Path("/lustre/outer")
    assert container.on_node(Path("/home/me")) == Path("/home/me")
    assert container.on_node(Path("/results")) is None


def test_the_working_directory_is_the_containers_too_where_it_is_mounted() -> None:
    assert "--container-workdir" not in render(replace(FULL, container=Container("i", parse_mounts(["/results"]))))


def test_paths_are_mounted_once() -> None:
    paths = [Path(text) for text in ("/a/b", "/a", "/a", "/ab", "/a/c/d")]
    assert own_mounts(paths) == (Mount(Path("/a"), Path("/a")), Mount(Path("/ab"), Path("/ab")))


@pytest.mark.parametrize("text", ["data:/x", "/x:data", "x", "/ok,:/x"])
def test_mounts_are_absolute(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--container-mounts .*: expected absolute paths"):
        parse_mounts([text])


def test_a_path_that_pyxis_cannot_mount() -> None:
    with pytest.raises(ConfigError, match="/a,b: pyxis cannot mount"):
        render(replace(FULL, container=Container("i", own_mounts([Path("/a,b")]))))


# --- placing and submitting -------------------------------------------------------------------------------------------


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an sbatch of this body in front of everything else."""

    def put(body: str) -> None:
        file = tmp_path / "bin" / "sbatch"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return put


def test_the_script_lies_in_the_run_directory_by_default(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch('[[ $1 == --parsable ]] && echo "4711;cluster"')
    job = replace(JOB, log_directory=tmp_path / "new" / "run")
    path = tmp_path / "new" / "run" / "job.sbatch"
    assert submit(job) == ("4711", path)
    assert submit(replace(job, num_nodes=2)) == ("4711", path)  # another try has its place
    assert path.read_text(encoding="utf-8") == render(replace(job, num_nodes=2))


def test_a_named_script_takes_no_other_files_place(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch("echo 1")
    job, file = replace(JOB, log_directory=tmp_path / "run"), tmp_path / "scripts" / "mine.sh"
    assert submit(job, file) == submit(job, file) == ("1", file)
    assert list((tmp_path / "run").iterdir()) == []  # it is there, or Slurm could not write its log
    with pytest.raises(ConfigError, match=r"mine\.sh: is another file already"):
        submit(replace(job, num_nodes=2), file)
    assert file.read_text(encoding="utf-8") == render(job)
    with pytest.raises(ConfigError, match="is a directory"):
        submit(job, tmp_path)


def test_a_directory_that_cannot_be_made(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch("echo 1")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/run: cannot be written: Not a directory"):
        submit(replace(JOB, log_directory=tmp_path / "file" / "run"))


def test_a_refusal_of_sbatch_is_passed_on(sbatch: Callable[[str], None], tmp_path: Path) -> None:
    sbatch('echo "sbatch: error: Invalid account" >&2; exit 1')
    with pytest.raises(ConfigError, match=r"(?s)did not take .*job\.sbatch; nothing was submitted:.*Invalid account"):
        submit(replace(JOB, log_directory=tmp_path))


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the verb is typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    return tmp_path


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `dpolish slurm dpo` prints, with a model and a training file."""
    words = ["dpo", "--model", "m", "--train", "train.jsonl", *arguments]
    slurm.main(words, prog_name="dpolish slurm", standalone_mode=False)
    return capsys.readouterr().out


def test_flags_become_overrides_and_directives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = typed(
        capsys, "--nodes", "4", "model.seed=7", "--gpus-per-node=8", "--time", "4:00:00", "--dry-run", "--output", "o"
    )
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=dpolish-dpo",
        "--time=4:00:00",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        f"--chdir={folder}",
        f"--output={folder}/o/slurm-%j.out",
    ]
    assert command_of(script) == [
        *("srun", "--kill-on-bad-exit=1", sys.executable, "-u", "-m", "dpolish", "dpo", "--model", "m"),
        *("--train", "train.jsonl", "model.seed=7", "--output", "o"),
        *("trainer.num_nodes=4", "trainer.devices=8", "trainer.accelerator=gpu"),
    ]
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "size", "added"),
    [
        (["trainer.num_nodes=2", "trainer.devices=4"], ("2", "4", True), ["trainer.accelerator=gpu"]),
        (["trainer.num_nodes=2", "--nodes=2", "trainer.devices=[0,1]"], ("2", "2", True), ["trainer.accelerator=gpu"]),
        (
            ["trainer.devices=auto", "--gpus-per-node=8"],
            ("1", "8", True),
            ["trainer.devices=8", "trainer.accelerator=gpu"],
        ),
        (["trainer.accelerator=gpu"], ("1", "1", True), []),
        (["trainer.accelerator=cpu", "--devices-per-node=2"], ("1", "2", False), ["trainer.devices=2"]),
        (["--accelerator=cpu"], ("1", "1", False), ["trainer.accelerator=cpu"]),
        (["--config=job.yaml", "--nodes=3"], ("3", "6", False), ["trainer.num_nodes=3"]),
    ],
)
def test_what_is_said_once_is_enough(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    size: tuple[str, str, bool],
    added: Sequence[str],
) -> None:
    (folder / "job.yaml").write_text("trainer: {num_nodes: 1, devices: 6, accelerator: cpu}\n", encoding="utf-8")
    script = typed(capsys, *arguments, "--dry-run")
    nodes, tasks, gpus = size
    assert f"--nodes={nodes}\n#SBATCH --ntasks-per-node={tasks}\n" in script
    assert (f"--gpus-per-node={tasks}\n" in script) == gpus
    given = [word for word in arguments if not word.startswith("--") or word.startswith("--config")]
    assert command_of(script)[11:] == [*given, *added]


REFUSED: dict[str, tuple[list[str], str]] = {
    "nodes": (["--nodes=4", "trainer.num_nodes=2"], "--nodes 4 contradicts trainer.num_nodes=2: give one of them"),
    "gpus": (["--gpus-per-node=8", "++trainer.devices=4"], "--gpus-per-node 8 contradicts trainer.devices=4"),
    "a list": (["--gpus-per-node=8", "trainer.devices=[0,1]"], "--gpus-per-node 8 contradicts trainer.devices=2"),
    "GPUs and a CPU": (
        ["--gpus-per-node=8", "trainer.accelerator=cpu"],
        "--gpus-per-node 8 contradicts trainer.accelerator=cpu",
    ),
    "accelerators": (["--accelerator=cpu", "trainer.accelerator=gpu"], "contradicts trainer.accelerator=gpu"),
    "both": (["--gpus-per-node=8", "--accelerator=cpu"], "say --devices-per-node 8"),
    "ranks of GPUs": (["--devices-per-node=8"], "say --gpus-per-node 8, or add --accelerator cpu"),
    "all devices": (["trainer.devices=-1"], "trainer.devices=-1: Slurm has to be told a number; say --gpus-per-node N"),
    "no such device": (["trainer.accelerator=mps"], "no node of a Slurm cluster has such a device"),
    "mounts of nothing": (["--container-mounts=/a"], "--container-mounts needs --container"),
    "results that vanish": (
        ["--container=i", "--container-mounts=/a", "--output=/b/c"],
        "the run directory /b/c lies in none of --container-mounts",
    ),
    "a typo in a key": (["model.sede=1"], "unknown key 'model.sede'. Did you mean 'model.seed'?"),
    "a typo in a flag of ours": (["--nodse=4"], "unknown option --nodse. Did you mean '--nodes'?"),
    "a typo in a flag of the verb": (["--validaton", "f"], "Did you mean '--validation'?"),
    "no file": (["model.data.data_prefix=null"], "contradicts"),
    "cfg": (["--cfg", "job"], "--cfg submits nothing"),
    "a folder of the script": (["--config-path", "conf"], "say --config FILE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str], sbatch: Callable[[str], None], name: str) -> None:
    sbatch(f"touch {folder}/submitted")
    arguments, says = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        typed(capsys, *arguments)
    assert says in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "train.jsonl"]


def test_a_run_without_its_data_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="train is missing"):
        slurm.main(["dpo", "--model", "m"], standalone_mode=False)


def test_zero_nodes_are_a_usage_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.BadParameter, match="0 is not in the range"):
        typed(capsys, "--nodes", "0")


def test_a_directory_that_holds_a_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        typed(capsys, "--output", "run")


def test_a_submission(folder: Path, capsys: pytest.CaptureFixture[str], sbatch: Callable[[str], None]) -> None:
    sbatch("cp $2 submitted; echo 12")
    printed = typed(capsys, "--nodes=2", "--gpus-per-node=8", "--output=run")
    assert printed.splitlines() == [
        "job 12: dpolish-dpo, 2 nodes × 8 GPUs",
        f"log: {folder}/run/slurm-12.out",
        f"script: {folder}/run/job.sbatch",
    ]
    shown = typed(capsys, "--nodes=2", "--gpus-per-node=8", "--output=run", "--dry-run")
    assert (folder / "submitted").read_text(encoding="utf-8") == shown


def test_without_sbatch_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder / "nowhere"))
    with pytest.raises(ConfigError, match="there is no sbatch here: submit from a login node"):
        typed(capsys, "--output=run")
    assert not (folder / "run").exists()
    script = typed(capsys, "--output=run", "--dry-run", "--output-script", "mine.sh")
    assert (folder / "mine.sh").read_text(encoding="utf-8") == script


def test_a_container_sees_what_the_run_names(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("model", "more.jsonl", "run.yaml"):
        (elsewhere / name).touch()
    words = [f"--config={elsewhere}/run.yaml", f"--train={elsewhere}/more.jsonl", f"--model={elsewhere}/model"]
    script = typed(capsys, *words, "--container=image", "--output=/r/run", "--dry-run")
    (mounts,) = [word for word in command_of(script) if word.startswith("--container-mounts=")]
    paths = [mount.partition(":")[0] for mount in mounts.partition("=")[2].split(",")]
    assert sorted(paths) == sorted(
        [str(folder), "/r/run", *(f"{elsewhere}/{name}" for name in ("model", "more.jsonl", "run.yaml"))]
    )
    assert "    python -u -m dpolish dpo \\\n" in script


def test_nothing_here_loads_torch(folder: Path) -> None:
    code = """
import sys
from dpolish.cli.slurm import slurm
slurm.main(["sft", "--model", "m", "--train", "train.jsonl", "--nodes", "2", "--dry-run"], standalone_mode=False)
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
