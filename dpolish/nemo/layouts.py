"""Where the weights of a checkpoint are, and what they are called there: decided by the files, never by the settings.

    model_weights.ckpt                                     one file                                       flat
    mp_rank_01/model_weights.ckpt                          one per tensor parallel rank                   flat
    tp_rank_01_pp_rank_002/model_weights.ckpt              one per tensor parallel rank and stage         flat
    model_weights/metadata.json, and a folder per tensor   of Megatron's distributed checkpoints          zarr
    model_weights/metadata.json, .metadata, *.distcp       the same in PyTorch's format                   torch_dist

NeMo 2 has its distributed checkpoint in `weights/`, Megatron-Bridge beside `run_config.yaml`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dpolish.errors import ModelError
from dpolish.nemo.archive import Archive
from dpolish.nemo.chunks import ChunkedTensor
from dpolish.nemo.config_yaml import parallel_size
from dpolish.nemo.gpt_config import GptConfig
from dpolish.nemo.merge import Rank, merge_ranks
from dpolish.nemo.names import Naming, canonical, is_full_te, is_virtual, is_weight, naming_of
from dpolish.nemo.stored import StoredTensor
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.torch_dist import read_torch_dist
from dpolish.nemo.torch_file import FileTensor, read_torch_file
from dpolish.nemo.zarr_store import read_json, read_zarr

Format: TypeAlias = Literal["flat", "zarr", "torch_dist"]

FLAT = "model_weights.ckpt"
_RANK = re.compile(r"(?:mp_rank_(\d{2,4})|tp_rank_(\d{2,4})_pp_rank_(\d{3,4}))/model_weights\.ckpt")
_READERS = {"zarr": read_zarr, "torch_dist": read_torch_dist}
_STACK = "decoder.layers."
_MAX_METADATA = 16 << 10
_GELUS = ("gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class Layout:
    """The weights of a checkpoint, not merged yet, and how they lie in it."""

    format: Format
    naming: Naming
    tensor_parallel: int
    pipeline_parallel: int
    tensors: Mapping[str, StoredTensor]
    """Whole tensors by canonical names."""


def read_layout(archive: Archive, folder: str, raw: Mapping[str, object], config: GptConfig) -> Layout:
    """The weights of the checkpoint, those of distributed ones being in `folder`. Raises ModelError."""
    files = _flat_files(archive)
    distributed = f"{folder}metadata.json" in archive
    if distributed and files:
        raise ModelError(f"{archive.path}: holds weights in two layouts; remove the one that is not meant")
    if distributed:
        return _read_distributed(archive, folder, raw, config)
    if files:
        return _read_flat(archive, files, raw, config)
    raise ModelError(
        f"{archive.path}: holds no weights: no {FLAT}, no mp_rank_XX or tp_rank_XX_pp_rank_XXX folder with one, and no "
        f"{folder}metadata.json. It is no checkpoint of a model, or not whole; get it again."
    )


def _flat_files(archive: Archive) -> dict[Rank, str]:
    """The files of flat checkpoints by rank. Raises ModelError where they are of two kinds."""
    found: dict[str, dict[Rank, str]] = {}
    for name in archive:
        match = _RANK.fullmatch(name)
        if match is not None:
            kind, rank = ("mp", (int(match[1]), 0)) if match[1] else ("tp_pp", (int(match[2]), int(match[3])))
            if rank in found.setdefault(kind, {}):
                raise ModelError(f"{archive.path}: has two files for one rank, {quoted(name)} and another")
            found[kind][rank] = name
        elif name == FLAT:
            found["one"] = {(0, 0): name}
    if len(found) > 1:
        raise ModelError(f"{archive.path}: holds weights in two layouts; remove the one that is not meant")
    return next(iter(found.values()), {})


def _read_flat(archive: Archive, files: Mapping[Rank, str], raw: Mapping[str, object], config: GptConfig) -> Layout:
    tensor_parallel, stages = max(tp for tp, _ in files) + 1, max(pp for _, pp in files) + 1
    said = parallel_size(raw, "tensor_model_parallel_size"), parallel_size(raw, "pipeline_model_parallel_size")
    if len(files) != tensor_parallel * stages or (len(files) > 1 and len(files) < said[0] * said[1]):
        raise ModelError(
            f"{archive.path}: has the files of {len(files)} ranks, and the configuration says "
            f"{said[0]} × {said[1]} (tensor × pipeline parallel). It is not whole; get it again."
        )
    ranks = {rank: _read_rank(archive, name) for rank, name in files.items()}
    names = [name for tensors in ranks.values() for name in tensors]
    where = str(archive.path)
    if any(map(is_virtual, names)) or (stages > 1 and parallel_size(raw, "virtual_pipeline_model_parallel_size") > 1):
        raise ModelError(
            f"{where}: was saved from a virtual pipeline, whose layers lie in another order. Save it once more from "
            "NeMo with virtual_pipeline_model_parallel_size=null."
        )
    if is_full_te(names):
        raise ModelError(
            f"{where}: has whole layers of Transformer Engine (megatron_gpt_full_te_layer_autocast); save it once more "
            "from NeMo with name=''"
        )
    naming = naming_of(names)
    if naming == "legacy-te" and (config.activation not in _GELUS or config.position_embedding_type == "rope"):
        raise ModelError(
            f"{where}: has NeMo's own layers with Transformer Engine, which compute GELU and no rotary positions, and "
            f"the configuration says {config.activation} and {config.position_embedding_type}: the model is another"
        )
    return Layout("flat", naming, tensor_parallel, stages, merge_ranks(ranks, config, where))


def _read_rank(archive: Archive, name: str) -> dict[str, FileTensor]:
    tensors = {key: tensor for key, tensor in read_torch_file(archive.span(name)).items() if is_weight(key)}
    if tensors and all("adapter" in key or "lora" in key for key in tensors):
        raise ModelError(
            f"{archive.path}: holds adapters alone, without the model that they belong to. "
            "Merge them first, with NeMo's scripts/nlp_language_modeling/merge_lora_weights/merge.py."
        )
    return tensors


def _read_distributed(archive: Archive, folder: str, raw: Mapping[str, object], config: GptConfig) -> Layout:
    span = archive.span(f"{folder}metadata.json")
    backend = read_json(span, _MAX_METADATA).get("sharded_backend")
    if backend not in ("zarr", "torch_dist"):
        raise ModelError(f"{span.label}: has sharded_backend {str(backend)[:60]!a}; known are zarr and torch_dist")
    stored = _READERS[backend](archive, folder, is_weight)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        for key, part in _unstacked(name, tensor, config, span.label):
            if key in tensors:
                raise ModelError(f"{span.label}: {quoted(key)} is there under two names")
            tensors[key] = part
    if config.share_embeddings_and_output_weights:
        tensors.pop("output_layer.weight", None)
    return Layout(
        "zarr" if backend == "zarr" else "torch_dist",
        "distributed",
        parallel_size(raw, "tensor_model_parallel_size"),
        parallel_size(raw, "pipeline_model_parallel_size"),
        tensors,
    )


def _unstacked(name: str, tensor: ChunkedTensor, config: GptConfig, where: str) -> list[tuple[str, StoredTensor]]:
    """A stack of layers as one tensor each; any other tensor as it is."""
    layer, rest = canonical(name)
    if layer is not None:
        return [(f"{_STACK}{layer}.{rest}", tensor.whole())]
    if not rest.startswith(_STACK):
        return [(rest, tensor.whole())]
    if tensor.shape[0] != config.num_layers:
        raise ModelError(
            f"{where}: {quoted(name)} has {tensor.shape[0]} layers, and the configuration says {config.num_layers}"
        )
    inner = rest.removeprefix(_STACK)
    return [(f"{_STACK}{index}.{inner}", part) for index, part in enumerate(tensor.slices())]
