"""`dpolish slurm`: a run as a Slurm job. Its configuration is checked before it waits in a queue, without torch."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from dpolish.config.compose import Composed
    from dpolish.config.schema import RunConfig, TrainerConfig
    from dpolish.config.sources import Setting
    from dpolish.launch.slurm import Container, SlurmJob

_POSITIVE = click.IntRange(min=1)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("verb", type=click.Choice(["dpo", "sft"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--nodes", type=_POSITIVE, metavar="N", help="Machines (trainer.num_nodes).")
@click.option("--gpus-per-node", type=_POSITIVE, metavar="N", help="GPUs of each, one rank on each (trainer.devices).")
@click.option("--accelerator", type=click.Choice(["gpu", "cpu"]), help="cpu asks for no GPUs (trainer.accelerator).")
@click.option("--devices-per-node", type=_POSITIVE, metavar="N", help="Ranks on each machine with --accelerator cpu.")
@click.option("--cpus-per-task", type=_POSITIVE, metavar="N", help="CPUs of each rank.")
@click.option("--time", metavar="H:MM:SS", help="Time limit, as sbatch takes it.")
@click.option("--account", help="Who is charged.")
@click.option("--partition", help="Which nodes it may run on.")
@click.option("--job-name", metavar="NAME", help="dpolish-dpo or dpolish-sft by default.")
@click.option("--exclusive", is_flag=True, help="Share the nodes with nobody.")
@click.option("--container", metavar="IMAGE", help="Run in this image, through the plug-in pyxis.")
@click.option(
    "--container-mounts",
    multiple=True,
    metavar="FROM:TO",
    help="What the container sees of the node; by default the working directory and the run's own paths. Repeatable.",
)
@click.option("--sbatch", "more", multiple=True, metavar="OPTION", help="One more for sbatch: --sbatch=--qos=high.")
@click.option(
    "--output-script", type=click.Path(path_type=Path), help="Where the script goes; by default the run directory."
)
@click.option("--dry-run", is_flag=True, help="Print the script and submit nothing.")
def slurm(verb: Literal["dpo", "sft"], arguments: tuple[str, ...], **options: Any) -> None:
    """Submit a run of `dpolish dpo` or `dpolish sft` to Slurm, one rank per device.

    ARGUMENTS are those of the verb. The configuration is checked first, so that no typo waits in a queue.

    \b
    dpolish slurm dpo --model ./sft_model --train train.jsonl --output /results/dpo model.global_batch_size=512 \\
        --nodes 4 --gpus-per-node 8 --time 4:00:00 --account ACCOUNT --partition PARTITION
    """
    from dpolish.launch.slurm import render, submit, write_script

    job, file = _job(verb, arguments, options), options["output_script"]
    if options["dry_run"]:
        script = render(job)
        if file:
            write_script(file, script)
        click.echo(script, nl=False)
        return
    job_id, path = submit(job, file)
    click.echo(f"job {job_id}: {job.name}, {job.size}")
    click.echo(f"log: {job.log(job_id)}")
    click.echo(f"script: {path}")


@dataclass(frozen=True, slots=True)
class _Request:
    """A flag of ours that stands for a key of the configuration."""

    key: str
    value: int | str
    said: str
    """The flag as it was written."""


def _job(verb: Literal["dpo", "sft"], arguments: tuple[str, ...], options: dict[str, Any]) -> "SlurmJob":
    """The job of a checked configuration. Raises ConfigError about either."""
    from dpolish.launch.slurm import SlurmJob
    from dpolish.run_directory import run_directory

    composed, arguments = _checked(verb, arguments, _requests(options))
    trainer = composed.config.trainer
    device, ranks = _devices(trainer, options["devices_per_node"])
    if trainer.accelerator == "auto":
        arguments = (*arguments, "trainer.accelerator=gpu")  # a node that shows no GPU is an error, not a slow run
    directory = run_directory(composed.config).absolute()
    values = [word.partition("=")[2] for word in arguments]  # of `--config=FILE`
    container = _container(options, directory, [composed.resolved, arguments, values])
    return SlurmJob(
        program=("python" if container else sys.executable, "-u", "-m", "dpolish", verb),
        arguments=arguments,
        num_nodes=trainer.num_nodes,
        tasks_per_node=ranks,
        device=device,
        name=options["job_name"] or f"dpolish-{verb}",
        log_directory=_log_directory(directory, container),
        working_directory=Path.cwd(),
        time=options["time"],
        account=options["account"],
        partition=options["partition"],
        cpus_per_task=options["cpus_per_task"],
        exclusive=options["exclusive"],
        more=options["more"],
        container=container,
    )


def _devices(trainer: "TrainerConfig", ranks: int | None) -> tuple[Literal["gpu", "cpu"], int]:
    """What a rank runs on, and the ranks on each node; `ranks` is --devices-per-node."""
    from dpolish.errors import ConfigError

    if trainer.accelerator == "mps":
        raise ConfigError("trainer.accelerator=mps: no node of a Slurm cluster has such a device; say gpu or cpu")
    device: Literal["gpu", "cpu"] = "cpu" if trainer.accelerator == "cpu" else "gpu"
    if ranks and device == "gpu":
        raise ConfigError(
            f"--devices-per-node {ranks} counts ranks on CPUs: say --gpus-per-node {ranks}, or add --accelerator cpu"
        )
    number = _number(trainer.devices)
    if number is None:
        flag = "--gpus-per-node" if device == "gpu" else "--devices-per-node"
        raise ConfigError(f"trainer.devices={trainer.devices}: Slurm has to be told a number; say {flag} N")
    return device, number


def _number(devices: int | Literal["auto"] | tuple[int, ...]) -> int | None:
    """How many devices `trainer.devices` means; None for all that there are."""
    if isinstance(devices, tuple):
        return len(devices)
    return None if devices == "auto" or devices == -1 else devices


def _requests(options: dict[str, Any]) -> list[_Request]:
    """The flags that were given and stand for keys. Raises ConfigError where flags contradict each other."""
    from dpolish.errors import ConfigError

    gpus, ranks, accelerator = options["gpus_per_node"], options["devices_per_node"], options["accelerator"]
    if gpus and accelerator == "cpu":
        raise ConfigError(f"--gpus-per-node {gpus} contradicts --accelerator cpu: say --devices-per-node {gpus}")
    if options["container_mounts"] and not options["container"]:
        raise ConfigError("--container-mounts needs --container: without it the job sees all of the node's files")
    found = (
        ("trainer.num_nodes", options["nodes"], f"--nodes {options['nodes']}"),
        ("trainer.devices", gpus, f"--gpus-per-node {gpus}"),
        ("trainer.devices", ranks, f"--devices-per-node {ranks}"),
        ("trainer.accelerator", accelerator, f"--accelerator {accelerator}"),
        ("trainer.accelerator", "gpu" if gpus and not accelerator else None, f"--gpus-per-node {gpus}"),
    )
    return [_Request(key, value, said) for key, value, said in found if value is not None]


# --- the configuration ------------------------------------------------------------------------------------------------


def _checked(
    verb: str, arguments: tuple[str, ...], requests: list[_Request]
) -> "tuple[Composed[RunConfig], tuple[str, ...]]":
    """The verb's configuration with these arguments, and the arguments with the overrides that our flags stand for.

    As with `--model`, a flag outdoes a file, and it must say what an override says.
    """
    from dpolish.cli.commands import COMMANDS, _compose
    from dpolish.config.compose import require_complete
    from dpolish.config.schema import ROOTS
    from dpolish.errors import ConfigError

    command = COMMANDS[verb]
    given = command.make_context(verb, list(arguments)).params
    _refuse_what_no_job_can(command, given)
    typed = {
        setting.key
        for setting in _readable(given["overrides"], ROOTS[verb])
        if setting.action != "delete" and setting.value not in ("auto", -1)
    }
    added = tuple(f"{request.key}={request.value}" for request in requests if request.key not in typed)
    composed = _compose({**given, "overrides": (*given["overrides"], *added)}, verb)
    require_complete(composed.config)
    trainer = composed.config.trainer
    values = {
        "trainer.num_nodes": trainer.num_nodes,
        "trainer.devices": _number(trainer.devices),
        "trainer.accelerator": trainer.accelerator,
    }
    for request in requests:
        value = values[request.key]
        if value != request.value:
            raise ConfigError(f"{request.said} contradicts {request.key}={value}: give one of them")
    return composed, (*arguments, *added)


def _refuse_what_no_job_can(command: click.Command, given: dict[str, Any]) -> None:
    """Raise ConfigError about an unknown option, and about those that a terminal has and a job has not."""
    from dpolish.errors import ConfigError
    from dpolish.registry import did_you_mean

    for word in given["overrides"]:
        if word.startswith("--"):
            known = {flag for one in (slurm, command) for option in one.params for flag in option.opts}
            name = word.partition("=")[0]
            raise ConfigError(f"unknown option {name}.{did_you_mean(name, sorted(known))}")
    if given["cfg"]:
        raise ConfigError(f"--cfg submits nothing: `dpolish {command.name} --cfg job …` prints the configuration")
    if given["config_path"] and not Path(given["config_path"]).is_absolute():
        raise ConfigError("--config-path starts at the script's folder, which is another in the job; say --config FILE")


def _readable(overrides: Iterable[str], root: type) -> "Iterator[Setting]":
    """The settings of the overrides that can be read; `compose` reports the others."""
    from dpolish.config.sources import override_settings
    from dpolish.errors import ConfigError

    for text in overrides:
        with suppress(ConfigError):
            yield from override_settings(text, root)


# --- its paths --------------------------------------------------------------------------------------------------------


def _log_directory(directory: Path, container: "Container | None") -> Path:
    """Where the run directory lies on the node. Raises ConfigError where it is taken, or nowhere."""
    from dpolish.errors import ConfigError
    from dpolish.run_directory import require_free

    on_node = container.on_node(directory) if container else directory
    if on_node is None:
        raise ConfigError(
            f"the run directory {directory} lies in none of --container-mounts, so that the results would vanish with "
            "the container: mount it, or name another with --output (exp_manager.explicit_log_dir)"
        )
    require_free(on_node)
    return on_node


def _container(options: dict[str, Any], directory: Path, said: object) -> "Container | None":
    """The container. Without mounts it sees the working and the run directory, and every path that was `said`."""
    from dpolish.launch.slurm import Container, own_mounts, parse_mounts

    if options["container"] is None:
        return None
    if options["container_mounts"]:
        return Container(options["container"], parse_mounts(options["container_mounts"]))
    return Container(options["container"], own_mounts([Path.cwd(), directory, *_paths(said)]))


def _paths(said: object) -> Iterator[Path]:
    """The files and folders that a plain value names and that are here."""
    if isinstance(said, str):
        with suppress(OSError, RuntimeError):  # a text too long for a name; `~somebody`
            path = Path(said).expanduser().absolute()
            if path.exists():
                yield path
    elif isinstance(said, dict | list | tuple):
        for inner in said.values() if isinstance(said, dict) else said:
            yield from _paths(inner)
