"""From a `.nemo` checkpoint to a Hugging Face folder, tensor by tensor."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers
from safetensors.torch import save

from dpolish.nemo.checkpoint import NemoCheckpoint, open_checkpoint
from dpolish.nemo.destination import Show, megabytes, new_folder
from dpolish.nemo.families import hugging_face_config, rounded_norms, to_hugging_face
from dpolish.nemo.gpt_config import HINT
from dpolish.nemo.safetensors_shards import DEFAULT_SHARD_BYTES, write_weights
from dpolish.nemo.sidecar import NemoSource, dtypes_of, token_digest, write_sidecar
from dpolish.nemo.stored import Weights
from dpolish.nemo.tokenizers.reading import require_same_ids
from dpolish.nemo.vocabulary import save_tokenizer
from dpolish.nemo.write.target import padding_is_zero, with_rows
from dpolish.nemo.write.torch_file import nbytes
from dpolish.track.console import progress

HINTED_ROWS = "vocab_size"
"""Key of the block `dpolish` in a configuration: rows without the padding that an export added."""

_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class ImportChoices:
    """What a user may decide where a checkpoint does not say it, or says it wrongly."""

    tokenizer: Path | None = None
    """Folder of the Hugging Face tokenizer, for checkpoints that only name one."""
    scale_positional_embedding: bool | None = None
    """Instead of the configuration's key of that name, which NeMo's Llama converters set by mistake."""


def import_nemo(
    source: Path,
    destination: Path,
    choices: ImportChoices | None = None,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    show: Show = progress,
) -> None:
    """Write the model in `source`, an archive or a folder of NeMo's, to the new Hugging Face folder `destination`.

    The folder is complete or not there. Raises ModelError for what cannot be imported exactly, ConfigError where the
    destination is taken, RunError for a full disk.
    """
    choices = choices or ImportChoices()
    with (
        open_checkpoint(source, scale_positional_embedding=choices.scale_positional_embedding) as checkpoint,
        new_folder(destination, overwrite) as folder,
    ):
        for warning in checkpoint.config.warnings:
            say(f"WARNING: {warning}")
        weights = _without_added_rows(checkpoint)
        rows = weights[_EMBEDDING].shape[0]
        tokens = save_tokenizer(checkpoint, folder, rows, choices.tokenizer)
        for warning in tokens.warnings:
            say(f"WARNING: {warning}")
        _write_json(
            folder / "config.json",
            {
                **hugging_face_config(checkpoint.config, rows, dtype=weights[_EMBEDDING].dtype, token_ids=tokens.ids),
                "transformers_version": transformers.__version__,
            },
        )
        _write_json(folder / "generation_config.json", _generation(tokens.ids))
        if tokens.kind != "huggingface":  # else transformers reads it as it read the one that was exported
            require_same_ids(folder, str(source))
        converted = to_hugging_face(checkpoint.config, weights)
        size = sum(map(nbytes, converted.values()))
        with megabytes(show, f"writing {destination.name}", size) as wrote:
            write_weights(folder, converted, wrote, shard_bytes)
        write_sidecar(folder, _kept(checkpoint, choices, token_digest(folder)))


def _without_added_rows(checkpoint: NemoCheckpoint) -> Weights:
    """The weights, less the rows that an export added to a model that had none, as long as they are zeros."""
    hint = checkpoint.raw_config.get(HINT)
    rows = hint.get(HINTED_ROWS) if isinstance(hint, dict) else None
    whole = checkpoint.source.vocabulary_rows
    if not isinstance(rows, int) or isinstance(rows, bool) or not 0 < rows < whole:
        return checkpoint.weights
    if not padding_is_zero(checkpoint.weights, rows):
        return checkpoint.weights
    return with_rows(checkpoint.weights, rows)


def _kept(checkpoint: NemoCheckpoint, choices: ImportChoices, tokens: str) -> NemoSource:
    """What is not in a Hugging Face folder and is needed to write the archive again."""
    source, norms = checkpoint.source, rounded_norms(checkpoint.config, checkpoint.weights)
    return NemoSource(
        name=checkpoint.path.name,
        generation=source.generation,
        layout=f"{'legacy' if source.naming.startswith('legacy') else 'mcore'}-{source.format}",
        tensor_parallel=source.tensor_parallel,
        pipeline_parallel=source.pipeline_parallel,
        scale_positional_embedding=choices.scale_positional_embedding,
        dtypes=dtypes_of(checkpoint.weights),
        tokens=tokens,
        config=checkpoint.config_file,
        norms=save({name: tensor.load() for name, tensor in norms.items()}) if norms else b"",
        artifacts={name: checkpoint.artifact(name) for name in referenced_artifacts(checkpoint)},
    )


def referenced_artifacts(checkpoint: NemoCheckpoint) -> list[str]:
    """The files of the archive that its configuration names. NeMo 2's are laid out in another way, and not kept."""
    if checkpoint.source.generation != "NeMo 1":
        return []
    named = {Path(text.removeprefix("nemo:")).name for text in _texts(checkpoint.raw_config)}
    return [name for name in checkpoint.artifacts if name in named]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _generation(ids: Mapping[str, int | None]) -> dict[str, object]:
    known = {name: number for name, number in ids.items() if number is not None}
    return {"_from_model_config": True, **known, "transformers_version": transformers.__version__}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
