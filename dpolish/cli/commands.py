"""One function per verb. Everything heavy is imported inside, so that `--help` answers at once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dpolish.cli.check import check
from dpolish.cli.convert import convert
from dpolish.cli.process import prepare_process
from dpolish.cli.slurm import slurm

if TYPE_CHECKING:
    from dpolish.config.compose import Composed
    from dpolish.config.schema import RunConfig

_GRAMMAR = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""`-1` in an override is a value, not an option."""


def _configured(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that `dpo`, `sft` and `plan` share."""
    options = [
        click.option("--config", type=click.Path(path_type=Path), help="YAML file, in NeMo-Aligner's names."),
        click.option("--model", help="Hugging Face folder, hub id, or .nemo checkpoint."),
        click.option("--train", multiple=True, help="Training file, or a data set's hub id; repeatable."),
        click.option("--validation", multiple=True, help="Validation file; repeatable."),
        click.option("--output", help="Run directory (exp_manager.explicit_log_dir)."),
        click.option("--cfg", type=click.Choice(["job"]), help="Print the resolved configuration and stop."),
        click.option("--config-path", hidden=True),
        click.option("--config-name", hidden=True),
        click.option("--config-dir", hidden=True),
        click.option("-m", "--multirun", is_flag=True, hidden=True),
        click.argument("overrides", nargs=-1, type=click.UNPROCESSED),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _compose(options: dict[str, Any], verb: str) -> "Composed[RunConfig]":
    from dpolish.config.compose import compose, find_config
    from dpolish.config.schema import ROOTS
    from dpolish.errors import ConfigError
    from dpolish.registry import did_you_mean

    if options["multirun"]:
        raise ConfigError("--multirun is not in this version; start one run per value, they share the reference cache")
    flags = ("--config", "--model", "--train", "--validation", "--output", "--cfg", "--help")
    for word in options["overrides"]:
        if word.startswith("--"):
            raise ConfigError(f"unknown option {word}.{did_you_mean(word.partition('=')[0], flags)}")
    file = options["config"]
    if file is None:
        script = Path(sys.argv[0]).resolve().parent
        names = (options["config_path"], options["config_name"], options["config_dir"])
        file = find_config(*names, script, root=ROOTS[verb])
    return compose(
        file,
        options["overrides"],
        root=ROOTS[verb],
        model=options["model"],
        train=options["train"],
        validation=options["validation"],
        output=options["output"],
    )


def _print_configuration(composed: "Composed[RunConfig]") -> None:
    from dpolish.config.compose import to_yaml

    click.echo(to_yaml(composed.config), nl=False)


@click.command(context_settings=_GRAMMAR)
@_configured
def dpo(cfg: str | None, **options: Any) -> None:
    """Train with Direct Preference Optimization.

    OVERRIDES are in Hydra's grammar: key=value, +key=value, ++key=value, ~key, left to right.

    \b
    dpolish dpo --model ./sft_model --train train.jsonl --validation valid.jsonl --output results/dpo \\
        model.global_batch_size=64 model.dpo.ref_policy_kl_penalty=0.1
    """
    _train(_compose(options, "dpo"), cfg)


@click.command(context_settings=_GRAMMAR)
@_configured
def sft(cfg: str | None, **options: Any) -> None:
    """Fine-tune on demonstrations (SFT).

    OVERRIDES are in Hydra's grammar: key=value, +key=value, ++key=value, ~key, left to right.

    \b
    dpolish sft --model ./base_model --train train.jsonl --validation valid.jsonl --output results/sft \\
        model.data.train_ds.global_batch_size=64 model.optim.lr=5e-6
    """
    _train(_compose(options, "sft"), cfg)


def _train(composed: "Composed[RunConfig]", cfg: str | None) -> None:
    if cfg is not None:
        _print_configuration(composed)
        return
    prepare_process()
    from dpolish.world import ranks_to_start

    if count := ranks_to_start(composed, os.environ):
        from dpolish.launch.local import start_ranks

        start_ranks(count)
    from dpolish import api

    api.train(composed, argv=sys.argv, say=click.echo)


@click.command(context_settings=_GRAMMAR)
@click.option("--sft", "verb", flag_value="sft", help="Plan a run of `dpolish sft` instead of `dpolish dpo`.")
@click.option("--gpu", metavar="NAME", help="Plan for this kind of GPU, as h100-80gb, without having one.")
@_configured
def plan(cfg: str | None, verb: str | None, gpu: str | None, **options: Any) -> None:
    """Print every derived number of a run, and train nothing.

    Takes the arguments of `dpolish dpo`, or with --sft those of `dpolish sft`. Each value is marked default, given,
    derived or assumed. Neither the ranks nor the model's weights need to be here, and without --train rows are assumed.

    \b
    dpolish plan --model ./sft_model --train train.jsonl model.global_batch_size=256
    dpolish plan --sft --model ./base_model --train train.jsonl
    dpolish plan --model ./llama_70b --gpu h100-80gb trainer.num_nodes=8 trainer.devices=8 \\
        model.tensor_model_parallel_size=8
    """
    composed = _compose(options, verb or "dpo")
    if cfg is not None:
        _print_configuration(composed)
        return
    prepare_process()
    from dpolish import api

    for line in api.plan(composed, gpu=gpu):
        click.echo(line)


@click.command("convert-data")
@click.argument("source")
@click.argument("destination")
@click.option("--format", "format_", metavar="FORMAT", help="Shape of the rows, where it is not recognised.")
@click.option(
    "--pairs",
    type=click.Choice(["best_vs_worst", "best_vs_rest", "adjacent", "all"]),
    default="best_vs_worst",
    show_default=True,
    help="How several answers to a prompt become pairs.",
)
@click.option("--sft", is_flag=True, help="Read rows as demonstrations, where they could be either.")
def convert_data(source: str, destination: str, format_: str | None, pairs: str, sft: bool) -> None:
    """Write the rows of SOURCE, of whatever shape, as native JSON lines to DESTINATION.

    \b
    dpolish convert-data ultrafeedback.parquet train.jsonl --pairs best_vs_rest
    """
    from dpolish.data.convert import convert

    kind: Literal["sft"] | None = "sft" if sft else None
    for line in convert(source, destination, format=format_, pairs=pairs, kind=kind).lines():
        click.echo(line)


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Hugging Face folder.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="What the user says; repeatable.")
@click.option("--max-new-tokens", default=256, show_default=True, help="Longest answer, in tokens.")
def generate(model: Path, prompts: tuple[str, ...], max_new_tokens: int) -> None:
    """Print a model's greedy answers, each up to the end of the turn in the template that it was trained with.

    \b
    dpolish generate --model results/dpo/model --prompt "Which year was the Magna Carta signed?"
    """
    prepare_process()
    from dpolish import api

    for answer in api.generate(model, prompts, max_new_tokens):
        click.echo(answer)


@click.command()
@click.option("--output", default="results/demo", show_default=True, help="Run directory.")
@click.option("--seed", default=0, show_default=True, help="Seed of the generated pairs.")
def demo(output: str, seed: int) -> None:
    """Train a real 135M model on a preference, and show what changed. A few minutes on two cores.

    \b
    dpolish demo --output results/demo
    """
    prepare_process()
    from dpolish.demo.run import run_demo

    run_demo(Path(output), seed, say=click.echo)


COMMANDS = {str(verb.name): verb for verb in (dpo, sft, check, convert, convert_data, plan, generate, slurm, demo)}
