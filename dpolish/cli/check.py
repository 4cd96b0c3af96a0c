"""`dpolish check`: the doctor of data files. Without --model nothing here loads torch or transformers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpolish.cli.process import prepare_process

if TYPE_CHECKING:
    from dpolish.data.check.model import TokenChecks
    from dpolish.data.check.report import Report
    from dpolish.data.check.source import Options

_PAIRS = click.Choice(["best_vs_worst", "best_vs_rest", "adjacent", "all"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1)
@click.option("--validation", multiple=True, metavar="FILE", help="Validation file, to find what leaks; repeatable.")
@click.option("--model", help="Hugging Face folder or hub id: adds everything that needs its tokenizer.")
@click.option(
    "--task", type=click.Choice(["dpo", "sft"]), help="What the rows are for; the first row tells by default."
)
@click.option("--sft", is_flag=True, help="Short for --task sft.")
@click.option("--format", "format_", metavar="FORMAT", help="Shape of the rows, where it is not recognised.")
@click.option("--pairs", type=_PAIRS, default="best_vs_worst", help="How several answers to a prompt become pairs.")
@click.option("--chat-template", metavar="TEMPLATE", help="extra_id, nemo or a .jinja file, not the model's own.")
@click.option(
    "--append-eod/--no-append-eod",
    default=None,
    help="Whether training appends the end of sequence to strings. In SFT it does by default (add_eos).",
)
@click.option("--prompt-template", default="{input} {output}", help="How prompt-response rows become text (SFT).")
@click.option("--label-key", default="output", help="Field of such rows that is trained on (SFT).")
@click.option("--trained-turns", type=click.Choice(["all", "last"]), default="all", help="Turns trained on (SFT).")
@click.option("--seq-length", type=click.IntRange(min=1), help="Longest row: longer ones are counted and named.")
@click.option("--strict", is_flag=True, help="Leave 2 with warnings too.")
@click.option("--fix", metavar="OUT", type=click.Path(path_type=Path), help="Write the clean rows here, as JSONL.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--show", type=click.IntRange(min=1), metavar="N", help="Show what is trained in the first N rows.")
@click.option("--formats", is_flag=True, help="List the shapes of rows that are recognised, and stop.")
def check(**options: Any) -> None:
    """Find what is wrong with data before anything is trained.

    Reads FILES once, with --validation those too. Leaves 2 where training would refuse the data, with --strict also
    where it would leave rows out or learn something that was hardly meant; 0 otherwise.

    \b
    dpolish check train.jsonl --validation valid.jsonl
    dpolish check train.jsonl --model ./sft_model --seq-length 2048 --show 3
    dpolish check train.jsonl --validation valid.jsonl --fix clean.jsonl
    dpolish check --formats
    """
    if options["formats"]:
        _list_formats()
        return
    from dpolish.errors import ConfigError

    if not options["files"]:
        raise ConfigError("dpolish check: no file. Name the training files: dpolish check train.jsonl")
    if options["show"] and not options["model"]:
        raise ConfigError("--show needs --model: what is trained is a matter of tokens")
    if options["show"] and options["as_json"]:
        raise ConfigError("--show and --json exclude each other: one is for people, the other for programs")
    reading = _reading(options)
    tokens = _tokens(options, reading.task)
    if options["show"] and tokens is not None:
        _show(options["files"], reading, tokens, options["show"])
    from dpolish.data.check.run import check as run_check

    with _progress() as progress:
        report = run_check(
            options["files"], options["validation"], reading, tokens=tokens, fix=options["fix"], progress=progress
        )
    _print(report, as_json=options["as_json"])
    sys.exit(report.exit_code(strict=options["strict"]))


def _reading(options: dict[str, Any]) -> "Options":
    from dpolish.data.check.source import Options, task_of
    from dpolish.errors import ConfigError

    if options["sft"] and options["task"] == "dpo":
        raise ConfigError("--sft and --task dpo exclude each other")
    task = "sft" if options["sft"] else options["task"] or task_of(options["files"], options["format_"])
    reading = Options(
        task,
        options["format_"],
        options["pairs"],
        options["prompt_template"],
        options["label_key"],
        options["trained_turns"],
    )
    if reading.format is not None:
        reading.formats[reading.format]  # an unknown name is an error before anything is read
    return reading


def _tokens(options: dict[str, Any], task: str) -> "TokenChecks | None":
    if options["model"] is None:
        given = [name for name in ("chat_template", "seq_length", "append_eod") if options[name] is not None]
        if given:
            from dpolish.errors import ConfigError

            raise ConfigError(f"--{given[0].replace('_', '-')} needs --model: it is a matter of tokens")
        return None
    prepare_process()
    from dpolish.data.check.model import load

    appended = options["append_eod"]
    return load(
        options["model"],
        chat_template=options["chat_template"],
        append_eod=task == "sft" if appended is None else appended,
        seq_length=options["seq_length"],
    )


def _print(report: "Report", *, as_json: bool) -> None:
    if as_json:
        import orjson

        click.echo(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console
    from rich.text import Text

    from dpolish.data.check.render import lines

    console = Console(highlight=False)
    for style, line in lines(report):
        console.print(Text(line, style), soft_wrap=True)


def _show(files: tuple[str, ...], reading: "Options", tokens: "TokenChecks", count: int) -> None:
    from rich.console import Console

    from dpolish.data.check.show import show

    show(Console(highlight=False), files, reading, tokens, count)


def _list_formats() -> None:
    import json
    from textwrap import wrap

    from dpolish.data.formats import FORMATS, SFT_FORMATS

    for title, registry in (("Preference rows", FORMATS), ("Demonstrations (SFT)", SFT_FORMATS)):
        click.secho(title, bold=True)
        for shape in registry.values():
            click.echo()
            click.secho(f"  {shape.name}", fg="cyan")
            for line in wrap(shape.description, 74):
                click.echo(f"    {line}")
            click.echo(f"    fields: {shape.fields}{f' ({shape.needs})' if shape.needs else ''}")
            click.echo(f"    {json.dumps(shape.example, ensure_ascii=False)}")
        click.echo()
    click.echo("One of these names in --format, or in model.data.format, reads all files that way.")


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None] | None]:
    """A bar on standard error where that is a terminal; rows of a file are counted by its line ends beforehand."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dpolish.data.check.render import printable

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(path: str, rows: int) -> None:
            if path not in tasks:
                tasks[path] = bar.add_task(printable(Path(path).name), total=_num_lines(path))
            bar.update(tasks[path], completed=rows)

        yield show


def _num_lines(path: str) -> int | None:
    """Lines of a plain JSONL file; None where rows are not lines."""
    if Path(path).suffix != ".jsonl" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
