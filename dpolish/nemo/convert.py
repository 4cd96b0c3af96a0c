"""Which way a conversion goes: what SOURCE and DESTINATION are decides.

a .nemo archive, its folder, or a folder of NeMo 2    →  a Hugging Face folder
a Hugging Face folder or hub id                       →  a .nemo archive
a .nemo archive or its folder                         →  a .nemo archive of another layout
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dpolish.errors import ConfigError
from dpolish.facts import find_model
from dpolish.nemo.checkpoint import open_checkpoint
from dpolish.nemo.destination import Show, require_free
from dpolish.nemo.exporting import ExportChoices, export_nemo, relayout
from dpolish.nemo.importing import ImportChoices, import_nemo
from dpolish.nemo.kind import is_nemo
from dpolish.nemo.safetensors_shards import DEFAULT_SHARD_BYTES
from dpolish.nemo.write.target import LayoutName
from dpolish.track.console import progress

__all__ = [
    "ExportChoices",
    "ImportChoices",
    "convert",
    "export_choices",
    "export_nemo",
    "import_nemo",
    "relayout",
]

_SHARDS = "--shard-size is for writing a Hugging Face folder"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_choices(
    layout: LayoutName | None, tensor_parallel: int | None, pipeline_parallel: int | None, dtype: str | None
) -> ExportChoices:
    """The choices of a command line: `dtype` is bf16, fp16 or fp32."""
    return ExportChoices(layout, tensor_parallel, pipeline_parallel, None if dtype is None else _DTYPES[dtype])


def convert(
    source: str,
    destination: Path,
    imported: ImportChoices | None = None,
    exported: ExportChoices | None = None,
    *,
    tokenizer: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    show: Show = progress,
) -> None:
    """Convert `source` to `destination`, whichever way that is.

    `tokenizer` is the one that is lacking: a Hugging Face folder for an archive that only names one, or for a folder
    whose tokenizer no archive can hold what NeMo is to load.
    Raises ConfigError for choices that have no meaning that way and for a destination that is taken, ModelError for
    what cannot be converted exactly, RunError for a full disk.
    """
    path = Path(source).expanduser()
    to_archive = destination.suffix == ".nemo"
    imported, exported = imported or ImportChoices(), exported or ExportChoices()
    require_free(destination, overwrite)
    if path.exists() and destination.exists() and path.samefile(destination):
        raise ConfigError(f"{destination}: is what is converted; name another place for the result")
    if not is_nemo(path):
        folder = find_model(source)
        if not to_archive and not (folder / "config.json").is_file():
            open_checkpoint(folder).archive.close()  # says what the folder is, and what to name instead
        if not to_archive:
            raise ConfigError(f"{source} is a Hugging Face model, so {destination} must be an archive: name it *.nemo")
        _refuse(imported != ImportChoices(), "--scale-positional-embedding is for reading .nemo")
        _refuse(shard_bytes != DEFAULT_SHARD_BYTES, _SHARDS)
        named = replace(exported, tokenizer=tokenizer or exported.tokenizer)
        export_nemo(folder, destination, named, overwrite=overwrite, say=say, show=show)
    elif to_archive:
        _refuse(shard_bytes != DEFAULT_SHARD_BYTES, _SHARDS)
        changes = imported != ImportChoices() or tokenizer is not None
        _refuse(changes, "an archive keeps its tokenizer and its positions in another layout: leave these options out")
        relayout(path, destination, exported, overwrite=overwrite, say=say, show=show)
    else:
        named_nemo = f"{destination}.nemo"
        _refuse(
            exported != ExportChoices(), f"--layout, --tp, --pp and --dtype are for writing .nemo: name {named_nemo}"
        )
        given = imported if tokenizer is None else replace(imported, tokenizer=Path(tokenizer).expanduser())
        import_nemo(path, destination, given, shard_bytes=shard_bytes, overwrite=overwrite, say=say, show=show)
    say(f"{destination}: written")


def _refuse(refused: bool, reason: str) -> None:
    if refused:
        raise ConfigError(reason)
