"""A model on its way into an archive: the layout asked for, and the configuration, rows and types that follow."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from dpolish.errors import ConfigError, ModelError
from dpolish.nemo.gpt_config import HINT, GptConfig, padded
from dpolish.nemo.gpt_defaults import DEFAULTS
from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.write.flat import FlatLayout, flat_entries
from dpolish.nemo.write.tar import Entry
from dpolish.nemo.write.torch_dist import torch_dist_entries
from dpolish.nemo.write.zarr import zarr_entries

LayoutName = Literal["mcore-zarr", "mcore-torch-dist", "legacy"]
LAYOUTS: tuple[LayoutName, ...] = ("mcore-zarr", "mcore-torch-dist", "legacy")

_DIST_FORMATS: Mapping[LayoutName, str] = {"mcore-zarr": "zarr", "mcore-torch-dist": "torch_dist"}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_MULTIPLE = 128
"""What NeMo pads vocabularies to, per tensor-parallel rank."""
_MCORE_ONLY = ("qkv_bias", "scale_positional_embedding", "layernorm_zero_centered_gamma")
_PRECISIONS: Mapping[torch.dtype, str | int] = {torch.bfloat16: "bf16", torch.float16: 16, torch.float32: 32}


@dataclass(frozen=True, slots=True)
class Target:
    """The layout of an archive."""

    layout: LayoutName
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def legacy(self) -> bool:
        """Whether it is for NeMo's own layers, not for Megatron-core."""
        return self.layout == "legacy"


def rows_for(rows: int, tokenizer_size: int, tensor_parallel: int) -> int:
    """Rows of the embedding in the archive: as many as there are, unless NeMo needs more to hold or to divide them."""
    if rows >= tokenizer_size and rows % tensor_parallel == 0:
        return rows
    return padded(max(rows, tokenizer_size), _MULTIPLE * tensor_parallel)


def with_rows(weights: Weights, rows: int) -> dict[str, StoredTensor]:
    """The weights with as many rows in the embedding and the head: zeros are added, or the last ones left out."""
    return {name: _resized(tensor, rows) if name in _VOCABULARY else tensor for name, tensor in weights.items()}


def _resized(tensor: StoredTensor, rows: int) -> StoredTensor:
    missing = rows - tensor.shape[0]
    if missing == 0:
        return tensor

    def load() -> torch.Tensor:
        return functional.pad(tensor.load(), (0, 0, 0, missing)).contiguous()  # a negative number cuts

    return StoredTensor((rows, *tensor.shape[1:]), tensor.dtype, load)


def padding_is_zero(weights: Weights, rows: int) -> bool:
    """Whether nothing was ever learned in the rows from `rows` on."""
    return not any(weights[name].load()[rows:].any() for name in _VOCABULARY if name in weights)


def with_dtypes(weights: Weights, dtypes: Mapping[str, torch.dtype]) -> dict[str, StoredTensor]:
    """The weights, cast where `dtypes` says so."""
    return {name: _cast(tensor, dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}


def _cast(tensor: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    if tensor.dtype == dtype:
        return tensor
    return StoredTensor(tensor.shape, dtype, lambda: tensor.load().to(dtype))


def precision_of(weights: Weights) -> str | int:
    """What NeMo calls the type of the matrices."""
    return _PRECISIONS.get(weights[_VOCABULARY[0]].dtype, 32)


def model_config(
    raw: Mapping[str, object] | None,
    config: GptConfig,
    target: Target,
    *,
    rows: int,
    tokenizer_size: int | None,
    weights: Weights,
) -> dict[str, object]:
    """`model_config.yaml` for the model in the layout of `target`.

    `raw` is what the file said before; of it all is kept but what the layout changes. What a key means depends on the
    implementation that reads it, so the outcome is read again, and where it is another model the keys of the
    architecture are written anew. Raises ModelError for what NeMo cannot compute.
    """
    _check_division(config, target)
    fresh = config.to_nemo(
        rows=rows,
        tokenizer_size=min(tokenizer_size or rows, rows),
        precision=precision_of(weights),
        legacy=target.legacy,
        tensor_parallel=target.tensor_parallel,
        pipeline_parallel=target.pipeline_parallel,
    )
    made = dict(fresh) if raw is None else {**raw, **_running(raw, target)}
    if not target.legacy:
        made["dist_ckpt_format"] = _DIST_FORMATS[target.layout]
    if raw is None:
        return made
    if tokenizer_size is None:
        if raw.get("tensor_model_parallel_size", 1) != target.tensor_parallel:
            made["override_vocab_size"] = rows  # what NeMo would make of an unknown size is unknown
    elif config.padded_vocab_size(tokenizer_size, target.tensor_parallel) != rows:
        made.pop("override_vocab_size", None)
        names = ("make_vocab_size_divisible_by", "override_vocab_size")
        made |= {name: fresh[name] for name in names if name in fresh}
    if HINT in fresh:
        made[HINT] = fresh[HINT]
    if not _same_model(made, config):
        made |= {name: value for name, value in fresh.items() if name not in DEFAULTS and name != "precision"}
        made |= {name: False for name in _MCORE_ONLY if name in made and name not in fresh}
    if not _same_model(made, config):
        raise ModelError("model_config.yaml: its keys mean another model in this layout; choose another --layout")
    return made


def _same_model(raw: Mapping[str, object], config: GptConfig) -> bool:
    try:
        return GptConfig.from_nemo(raw) == config
    except ModelError:
        return False


def _running(raw: Mapping[str, object], target: Target) -> dict[str, object]:
    """Keys that say how weights lie in the file, and for which implementation."""
    keys: dict[str, object] = {
        "mcore_gpt": not target.legacy,
        "tensor_model_parallel_size": target.tensor_parallel,
        "pipeline_model_parallel_size": target.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": None,
    }
    if target.legacy or not raw.get("mcore_gpt"):
        keys["transformer_engine"] = not target.legacy  # Megatron-core's tensors have one name with it and without
    keys |= {name: False for name in ("megatron_legacy", "fsdp") if raw.get(name)}
    if target.tensor_parallel == 1 and raw.get("sequence_parallel"):
        keys["sequence_parallel"] = False
    if not target.legacy and not raw.get("mcore_gpt") and raw.get("name"):
        keys["name"] = ""  # to Megatron-core it names a kind of layers
    activation = raw.get("activation")
    if not target.legacy and activation in ("swiglu", "geglu", "reglu"):
        keys["activation"] = f"fast-{activation}"  # Megatron-core has gate and up in one tensor
    return keys


def _check_division(config: GptConfig, target: Target) -> None:
    """Raise ConfigError where the ranks cannot share the model evenly; Megatron needs that whatever the layout."""
    counts = {
        "--tp": (target.tensor_parallel, {
            "attention heads": config.num_attention_heads,
            "query groups": config.num_query_groups,
            "channels of the MLP": config.ffn_hidden_size,
        }),
        "--pp": (target.pipeline_parallel, {"layers": config.num_layers}),
    }  # fmt: skip
    for option, (ranks, sizes) in counts.items():
        for what, size in sizes.items():
            if size % ranks:
                largest = math.gcd(*sizes.values())
                fitting = ", ".join(str(number) for number in range(1, largest + 1) if largest % number == 0)
                raise ConfigError(f"{option} {ranks}: the model has {size:,} {what}; choose one of {fitting}")


def weight_entries(weights: Weights, config: GptConfig, made: Mapping[str, object], target: Target) -> Iterable[Entry]:
    """The weights of the archive in the layout of `target`. `made` is the configuration that goes with them."""
    if target.layout == "mcore-zarr":
        return zarr_entries(weights)
    if target.layout == "mcore-torch-dist":
        return torch_dist_entries(weights)
    rotary = config.position_embedding_type == "rope"
    layout = FlatLayout(
        target.tensor_parallel,
        target.pipeline_parallel,
        gated=config.gated,
        gate_apart=config.gated and not str(made.get("activation")).startswith("fast-"),
        tied=config.share_embeddings_and_output_weights,
        inverse_frequencies=_inverse_frequencies(config) if rotary else None,
    )
    return flat_entries(weights, layout)


def _inverse_frequencies(config: GptConfig) -> StoredTensor:
    """The buffer of the rotary embedding as NeMo computes it, in float32."""
    channels = config.rotary_channels

    def load() -> torch.Tensor:
        return 1.0 / (config.rotary_base ** (torch.arange(0, channels, 2).float() / channels))

    return StoredTensor((channels // 2,), torch.float32, load)
