"""To a `.nemo` archive: from a Hugging Face folder, or from another archive into another layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from dpolish.errors import ModelError
from dpolish.facts import read_config_json
from dpolish.nemo.archive import open_archive
from dpolish.nemo.checkpoint import open_checkpoint
from dpolish.nemo.config_yaml import read_config
from dpolish.nemo.destination import Show, megabytes, new_archive
from dpolish.nemo.families import from_hugging_face
from dpolish.nemo.gpt_config import HINT, GptConfig
from dpolish.nemo.importing import HINTED_ROWS, referenced_artifacts
from dpolish.nemo.safetensors_shards import read_weights
from dpolish.nemo.sidecar import FILE, FOLDER, NemoSource, layer_class, read_sidecar, token_digest
from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.tokenizers.writing import NemoTokenizer, tokenizer_tokens
from dpolish.nemo.vocabulary import HINTED_FILES, ArchiveTokenizer, archive_tokenizer, size_in_archive
from dpolish.nemo.write.tar import in_memory, write_tar
from dpolish.nemo.write.target import (
    LayoutName,
    Target,
    model_config,
    precision_of,
    rows_for,
    weight_entries,
    with_dtypes,
    with_rows,
)
from dpolish.nemo.write.torch_file import nbytes
from dpolish.track.console import progress

CONFIG = "model_config.yaml"
_EMBEDDING = "embedding.word_embeddings.weight"
_ORIGINAL_LAYOUTS: Mapping[str, LayoutName] = {
    "legacy-flat": "legacy",
    "mcore-zarr": "mcore-zarr",
    "mcore-torch_dist": "mcore-torch-dist",
}


@dataclass(frozen=True, slots=True)
class ExportChoices:
    """How an archive is to be laid out; None is what the model had when it came from one."""

    layout: LayoutName | None = None
    """mcore-zarr for a model that came from elsewhere."""
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    dtype: torch.dtype | None = None
    """Of all weights. None: the types of the archive that the model came from, else those of the folder."""
    tokenizer: str | None = None
    """Where NeMo is to load a tokenizer from that no archive can hold; the folder itself unless given."""


@dataclass(frozen=True, slots=True)
class _Model:
    """What is written, wherever it came from."""

    config: GptConfig
    weights: Weights
    raw: Mapping[str, object] | None
    """The configuration that is kept as far as it goes."""
    raw_file: bytes | None
    """The same to the letter."""
    tokenizer: ArchiveTokenizer
    real_rows: int
    """Rows of the embedding that were not added for NeMo's sake alone."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """An archive of which all is settled, and nothing written."""

    model: _Model
    target: Target
    weights: Weights
    """With as many rows in the embedding as the archive has."""
    config: Mapping[str, object]
    config_file: bytes


def export_nemo(
    folder: Path,
    destination: Path,
    choices: ExportChoices | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    show: Show = progress,
) -> None:
    """Write the Hugging Face model in `folder` as the new archive `destination`, which is complete or not there.

    A model that was imported keeps its configuration, tokenizer and number of rows. Raises ModelError for what NeMo
    cannot compute, and for a model that is no longer the one that was imported.
    """
    with new_archive(destination, overwrite) as file:
        _write(file, _exported(folder, choices or ExportChoices(), say), destination.name, show)


def require_exportable(folder: Path, choices: ExportChoices | None = None) -> None:
    """Raise what `export_nemo` would raise for the model in `folder`, before a run is spent on it.

    Nothing is written, and of the weights only the headers are read.
    """
    _exported(folder, choices or ExportChoices(), lambda _: None)


def relayout(
    source: Path,
    destination: Path,
    choices: ExportChoices | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    show: Show = progress,
) -> None:
    """Write the checkpoint in `source` as an archive of another layout, mcore-zarr unless `choices` say otherwise.

    Configuration and tokenizer are kept. This is what NeMo's converter from legacy to Megatron-core does.
    """
    choices = choices or ExportChoices()
    with open_checkpoint(source) as checkpoint, new_archive(destination, overwrite) as file:
        if checkpoint.source.generation != "NeMo 1":
            raise ModelError(
                f"{source}: is a checkpoint of {checkpoint.source.generation}, which has no configuration of the kind "
                "that an archive holds. Convert it to a Hugging Face folder, and that to .nemo"
            )
        for warning in checkpoint.config.warnings:
            say(f"WARNING: {warning}")
        dtypes = {} if choices.dtype is None else dict.fromkeys(checkpoint.weights, choices.dtype)
        model = _Model(
            config=checkpoint.config,
            weights=with_dtypes(checkpoint.weights, dtypes),
            raw=checkpoint.raw_config,
            raw_file=checkpoint.config_file,
            tokenizer=ArchiveTokenizer(
                _block(checkpoint.raw_config),
                {name: checkpoint.artifact(name) for name in referenced_artifacts(checkpoint)},
                size_in_archive(checkpoint),
                _files(checkpoint.raw_config),
            ),
            real_rows=_real_rows(checkpoint.raw_config) or checkpoint.source.vocabulary_rows,
        )
        ranks = (checkpoint.source.tensor_parallel, checkpoint.source.pipeline_parallel)
        target = _target(choices, "mcore-zarr", ranks)
        _write(file, _planned(model, target, choices.dtype), destination.name, show)


def _target(choices: ExportChoices, layout: LayoutName, ranks: tuple[int, int]) -> Target:
    return Target(choices.layout or layout, choices.tensor_parallel or ranks[0], choices.pipeline_parallel or ranks[1])


# --- what is written --------------------------------------------------------------------------------------------------


def _exported(folder: Path, choices: ExportChoices, say: Callable[[str], None]) -> _Plan:
    """The archive of the model in a Hugging Face folder."""
    kept = read_sidecar(folder)
    layout: LayoutName = "mcore-zarr"
    if kept is None:
        model, ranks = _new(folder, choices.tokenizer, say), (1, 1)
    else:
        model, layout = _kept(folder, kept, choices, say), _ORIGINAL_LAYOUTS.get(kept.layout, "mcore-zarr")
        ranks = (kept.tensor_parallel, kept.pipeline_parallel)
    dtypes = _dtypes(model.weights, kept, choices.dtype, say)
    model = replace(model, weights=with_dtypes(model.weights, dtypes))
    return _planned(model, _target(choices, layout, ranks), choices.dtype)


def _new(folder: Path, name: str | None, say: Callable[[str], None]) -> _Model:
    """A model that was never NeMo's."""
    config, weights = from_hugging_face(read_config_json(folder), read_weights(folder))
    tokenizer = archive_tokenizer(folder, name, None, say)
    return _Model(config, weights, None, None, tokenizer, weights[_EMBEDDING].shape[0])


def _kept(folder: Path, kept: NemoSource, choices: ExportChoices, say: Callable[[str], None]) -> _Model:
    """A model that was, with the tokenizer that it had if it still has it."""
    raw = _raw(folder)
    original = GptConfig.from_nemo(raw, scale_positional_embedding=kept.scale_positional_embedding)
    weights = read_weights(folder)
    try:
        norms = load_safetensors(kept.norms) if kept.norms else {}
        config, core = from_hugging_face(
            read_config_json(folder),
            weights,
            original=original,
            exact_norms={name: in_memory_tensor(tensor) for name, tensor in norms.items()},
            norm_dtype=choices.dtype or _widest_norm(kept),
        )
    except (ModelError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: {error}\n  If it was changed on purpose, remove {FILE} and {FOLDER}/: the archive then gets a "
            "new configuration"
        ) from error
    rows = core[_EMBEDDING].shape[0]
    if kept.generation != "NeMo 1":
        return _Model(config, core, None, None, archive_tokenizer(folder, choices.tokenizer, None, say), rows)
    if token_digest(folder) == kept.tokens:
        tokenizer = ArchiveTokenizer(_block(raw), kept.artifacts, tokenizer_tokens(folder), _files(raw))
        return _Model(config, core, raw, kept.config, tokenizer, rows)
    say(f"{folder}: its tokenizer is not the one that came from {quoted(kept.name)}; the archive gets the folder's")
    was = NemoTokenizer(_block(raw), kept.artifacts)
    return _Model(config, core, raw, None, archive_tokenizer(folder, choices.tokenizer, was, say), rows)


def _widest_norm(kept: NemoSource) -> torch.dtype:
    norms = [dtype for name, dtype in kept.dtypes.items() if name.endswith(("layer_norm_weight", "layernorm.weight"))]
    return max(norms, key=lambda dtype: dtype.itemsize, default=torch.float32)


def _raw(folder: Path) -> dict[str, object]:
    with open_archive(folder / FOLDER) as files:
        return read_config(files.span(CONFIG))


def _block(raw: Mapping[str, object]) -> Mapping[str, object]:
    block = raw.get("tokenizer")
    return block if isinstance(block, dict) else {}


def _files(raw: Mapping[str, object]) -> Mapping[str, str]:
    hint = raw.get(HINT)
    files = hint.get(HINTED_FILES) if isinstance(hint, dict) else None
    return files if isinstance(files, dict) else {}


def _real_rows(raw: Mapping[str, object]) -> int | None:
    hint = raw.get(HINT)
    rows = hint.get(HINTED_ROWS) if isinstance(hint, dict) else None
    return rows if isinstance(rows, int) else None


def _dtypes(
    weights: Weights, kept: NemoSource | None, asked: torch.dtype | None, say: Callable[[str], None]
) -> dict[str, torch.dtype]:
    """The type of each tensor: as asked, else as it was in the archive that the model came from, else as it is."""
    if asked is not None:
        return dict.fromkeys(weights, asked)
    if kept is None:
        return _widest(weights)
    dtypes = {name: kept.dtype_of(name) or tensor.dtype for name, tensor in weights.items()}
    narrowed = [name for name, dtype in dtypes.items() if dtype.itemsize < weights[name].dtype.itemsize]
    if narrowed:
        had, has = (str(dtype).removeprefix("torch.") for dtype in (dtypes[narrowed[0]], weights[narrowed[0]].dtype))
        say(
            f"weights are rounded from {has} to {had}, the type that they had in {quoted(kept.name)}; "
            "--dtype keeps another"
        )
    return dtypes


def _widest(weights: Weights) -> dict[str, torch.dtype]:
    """The type of each tensor, for all layers one that holds the numbers of each. Raises ModelError for float64."""
    found: dict[str, torch.dtype] = {}
    for name, tensor in weights.items():
        kind = layer_class(name)
        found[kind] = torch.promote_types(found.get(kind, tensor.dtype), tensor.dtype)
    if torch.float64 in found.values():
        raise ModelError("the weights are float64, and NeMo's are at most float32: round them with --dtype fp32")
    return {name: found[layer_class(name)] for name in weights}


# --- the archive ------------------------------------------------------------------------------------------------------


def _planned(model: _Model, target: Target, dtype: torch.dtype | None) -> _Plan:
    """The archive of a model in a layout; `dtype` is of all weights where one was asked for."""
    have, tokenizer = model.weights[_EMBEDDING].shape[0], model.tokenizer
    rows = rows_for(have, tokenizer.size or have, target.tensor_parallel)
    weights = with_rows(model.weights, rows)
    made = model_config(model.raw, model.config, target, rows=rows, tokenizer_size=tokenizer.size, weights=weights)
    made["tokenizer"] = dict(tokenizer.block)
    if dtype is not None:
        made["precision"] = precision_of(weights)
    hint = _hint(made.pop(HINT, None), model, rows)
    made |= {HINT: hint} if hint else {}
    unchanged = model.raw_file is not None and made == model.raw
    text = model.raw_file if unchanged and model.raw_file is not None else _yaml(made)
    return _Plan(model, target, weights, made, text)


def _write(file: BinaryIO, plan: _Plan, name: str, show: Show) -> None:
    entries = [
        *(in_memory(artifact, content) for artifact, content in sorted(plan.model.tokenizer.artifacts.items())),
        in_memory(CONFIG, plan.config_file),
    ]
    size = sum(map(nbytes, plan.weights.values()))
    with megabytes(show, f"writing {name}", size) as wrote:
        write_tar(
            file, chain(entries, weight_entries(plan.weights, plan.model.config, plan.config, plan.target)), wrote
        )


def _hint(before: object, model: _Model, rows: int) -> dict[str, object]:
    """The block that NeMo does not read: what the way back to Hugging Face cannot see in the archive."""
    hint = dict(before) if isinstance(before, dict) else {}
    for name in (HINTED_ROWS, HINTED_FILES):
        hint.pop(name, None)
    if model.real_rows < rows:
        hint[HINTED_ROWS] = model.real_rows
    if model.tokenizer.files:
        hint[HINTED_FILES] = dict(model.tokenizer.files)
    return hint


def _yaml(value: Mapping[str, object]) -> bytes:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True).encode()


def in_memory_tensor(tensor: torch.Tensor) -> StoredTensor:
    """A tensor that is at hand."""
    return StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone)
