"""`dpolish convert`: `.nemo` to Hugging Face and back, or to another layout."""

import re
from pathlib import Path
from typing import Any

import click

from dpolish.cli.process import prepare_process
from dpolish.nemo.destination import require_free
from dpolish.nemo.kind import is_nemo

_LAYOUTS = click.Choice(["mcore-zarr", "mcore-torch-dist", "legacy"])
_DTYPES = click.Choice(["bf16", "fp16", "fp32"])
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)


def _bytes(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """5GB as a number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if size < 1:
        raise click.BadParameter(f"{text!r} is no size; write 5GB or 500MB")
    return size


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--layout", type=_LAYOUTS, help="Of a .nemo that is written; what the model had, else mcore-zarr.")
@click.option("--tp", type=click.IntRange(1, 1024), metavar="N", help="Its tensor-parallel size.")
@click.option("--pp", type=click.IntRange(1, 1024), metavar="N", help="Its pipeline-parallel size.")
@click.option("--dtype", type=_DTYPES, help="Its weights' type; what they were in .nemo, else are.")
@click.option("--tokenizer", help="Folder of the tokenizer that a .nemo only names; or what NeMo is to load.")
@click.option(
    "--scale-positional-embedding/--no-scale-positional-embedding",
    default=None,
    help="Rotary frequencies as in Llama 3.1, whatever the key of this name in the .nemo says.",
)
@click.option("--shard-size", callback=_bytes, default="5GB", show_default=True, help="Largest file of weights.")
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION, once the new one is complete.")
def convert(source: str, destination: Path, shard_size: int, overwrite: bool, **choices: Any) -> None:
    """Convert a .nemo checkpoint to a Hugging Face folder, or the other way.

    SOURCE is a .nemo archive, the folder of one, a folder of NeMo 2, or a Hugging Face folder or hub id. DESTINATION is
    an archive if its name ends in .nemo, else a folder. From .nemo to .nemo the layout changes.

    \b
    dpolish convert GPT-2B-001_bf16_tp1.nemo ./gpt_2b
    dpolish convert ./llama_2_7b llama.nemo --layout mcore-torch-dist --tp 4
    dpolish convert legacy.nemo mcore.nemo
    """
    prepare_process()
    require_free(destination, overwrite)
    if is_nemo(Path(source)):
        from dpolish.nemo.checking import require_readable

        reads_tokenizer = destination.suffix != ".nemo" and choices["tokenizer"] is None
        require_readable(
            Path(source),
            scale_positional_embedding=choices["scale_positional_embedding"],
            reads_tokenizer=reads_tokenizer,
        )
    from dpolish.nemo.convert import ImportChoices, export_choices
    from dpolish.nemo.convert import convert as run

    run(
        source,
        destination,
        ImportChoices(scale_positional_embedding=choices["scale_positional_embedding"]),
        export_choices(choices["layout"], choices["tp"], choices["pp"], choices["dtype"]),
        tokenizer=choices["tokenizer"],
        shard_bytes=shard_size,
        overwrite=overwrite,
        say=click.echo,
    )
