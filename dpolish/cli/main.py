"""The `dpolish` command, and the boundary where an error becomes one message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from dpolish import __version__
from dpolish.cli.commands import COMMANDS
from dpolish.errors import DpolishError, printable


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dpolish")
def cli() -> None:
    """Polish language models: SFT on demonstrations, then DPO and its relatives on preference data.

    \b
    dpolish demo                                                  see it work, in minutes, on a laptop
    dpolish check pairs.jsonl --model DIR                         what is wrong with the data
    dpolish plan  --model DIR --train pairs.jsonl                 every number of a run, nothing trained
    dpolish sft   --model DIR --train chats.jsonl --output OUT    fine-tune on demonstrations
    dpolish dpo   --model DIR --train pairs.jsonl --output OUT    train on preferences

    Exit codes: 0 done, 1 a fault of dpolish, 2 your input or configuration, 3 the run failed.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit code. HYDRA_FULL_ERROR=1 shows whole tracebacks."""
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="dpolish", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except DpolishError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        click.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
