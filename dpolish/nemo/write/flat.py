"""Legacy NeMo checkpoints: one torch.save file per rank, under legacy names, layers counted from 0 in every stage.

    TP 1, PP 1    model_weights.ckpt
    PP 1          mp_rank_{tp:02d}/model_weights.ckpt
    else          tp_rank_{tp:02d}_pp_rank_{pp:03d}/model_weights.ckpt

Embeddings lie in the first stage, final norm and head in the last; there a tied head is a copy of the embedding.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.write.stacked import num_layers
from dpolish.nemo.write.tar import Entry, Folder, Member
from dpolish.nemo.write.torch_file import torch_file

FILE = "model_weights.ckpt"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EMBEDDING = "embedding.word_embeddings.weight"
_FIRST_STAGE = (_EMBEDDING, "embedding.position_embeddings.weight")
_PREFIX = "model.language_model."

_IN_LAYER = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "self_attention.linear_qkv.": "self_attention.query_key_value.",
    "self_attention.linear_proj.": "self_attention.dense.",
    "mlp.linear_fc1.layer_norm_": "post_attention_layernorm.",
    "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
    "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
}
"""Beginnings of names in a layer; the first that fits counts."""

Axis = Literal["rows", "columns", "halves", "none"]
_AXES: tuple[tuple[str, Axis], ...] = (
    ("layer_norm_", "none"),
    ("layernorm.", "none"),
    ("position_embeddings.", "none"),
    ("word_embeddings.", "rows"),
    ("output_layer.", "rows"),
    ("linear_qkv.", "rows"),
    ("linear_fc1.", "rows"),
    ("linear_proj.weight", "columns"),
    ("linear_fc2.weight", "columns"),
    ("linear_proj.bias", "none"),
    ("linear_fc2.bias", "none"),
)
"""How tensor parallelism cuts a tensor, by a part of its name; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """What a flat checkpoint looks like, beside the weights."""

    tensor_parallel: int
    pipeline_parallel: int
    gated: bool
    """Whether linear_fc1 is [gate; up]."""
    gate_apart: bool
    """Whether gate and up are two tensors, as activations without `fast-` have them."""
    tied: bool
    inverse_frequencies: StoredTensor | None
    """The buffer of the rotary embedding, which legacy models hold in every rank."""


def flat_entries(weights: Weights, layout: FlatLayout) -> Iterator[Entry]:
    """The weight files of an archive, rank by rank."""
    for tensor_rank in range(layout.tensor_parallel):
        for stage in range(layout.pipeline_parallel):
            folder = _folder(layout, tensor_rank, stage)
            if folder:
                yield Folder(folder)
            file = torch_file(OrderedDict(_rank(weights, layout, tensor_rank, stage)))  # as state_dict() is
            yield Member(f"{folder}/{FILE}" if folder else FILE, file.size, file.write)


def _folder(layout: FlatLayout, tensor_rank: int, stage: int) -> str:
    if layout.pipeline_parallel > 1:
        return f"tp_rank_{tensor_rank:02d}_pp_rank_{stage:03d}"
    return f"mp_rank_{tensor_rank:02d}" if layout.tensor_parallel > 1 else ""


def _rank(weights: Weights, layout: FlatLayout, tensor_rank: int, stage: int) -> Iterator[tuple[str, StoredTensor]]:
    """The state dict of one rank."""
    per_stage = num_layers(weights) // layout.pipeline_parallel
    last = stage == layout.pipeline_parallel - 1
    if layout.inverse_frequencies is not None:
        yield f"{_PREFIX}rotary_pos_emb.inv_freq", layout.inverse_frequencies
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        home = int(match[1]) // per_stage if match else 0 if name in _FIRST_STAGE else layout.pipeline_parallel - 1
        if home == stage:
            yield from _named(name, match, tensor, layout, tensor_rank, per_stage)
    if last and stage > 0 and layout.tied:
        yield "model.word_embeddings.weight", shard(_EMBEDDING, weights[_EMBEDDING], layout, tensor_rank)


def _named(
    name: str,
    match: re.Match[str] | None,
    tensor: StoredTensor,
    layout: FlatLayout,
    tensor_rank: int,
    per_stage: int,
) -> Iterator[tuple[str, StoredTensor]]:
    """A tensor's legacy names in one rank: one, or two where gate and up are apart."""
    if match is None:
        yield _PREFIX + name.replace("decoder.", "encoder."), shard(name, tensor, layout, tensor_rank)
        return
    start = f"{_PREFIX}encoder.layers.{int(match[1]) % per_stage}."
    begin = next(begin for begin in _IN_LAYER if match[2].startswith(begin))
    legacy, what = start + _IN_LAYER[begin], match[2].removeprefix(begin)
    if begin == "mlp.linear_fc1." and layout.gated and layout.gate_apart:
        for half, part in enumerate((legacy, f"{legacy.removesuffix('.')}_2.")):
            yield part + what, _slice(_half(tensor, half), 0, tensor_rank, layout.tensor_parallel)
    else:
        yield legacy + what, shard(name, tensor, layout, tensor_rank)


def axis_of(name: str, gated: bool) -> Axis:
    """How tensor parallelism cuts a tensor."""
    axis = next(axis for part, axis in _AXES if part in name)
    return "halves" if gated and axis == "rows" and "linear_fc1." in name else axis


def shard(name: str, tensor: StoredTensor, layout: FlatLayout, rank: int) -> StoredTensor:
    """The part of a tensor that a tensor-parallel rank holds."""
    count, axis = layout.tensor_parallel, axis_of(name, layout.gated)
    if count == 1 or axis == "none":
        return tensor
    if axis == "halves":  # every rank has its part of the gate above its part of the other branch
        gate, up = (_slice(_half(tensor, half), 0, rank, count) for half in (0, 1))
        rows = gate.shape[0] + up.shape[0]
        return StoredTensor((rows, *gate.shape[1:]), tensor.dtype, _halves(tensor, rank, count))
    return _slice(tensor, 0 if axis == "rows" else 1, rank, count)


def _halves(tensor: StoredTensor, rank: int, count: int) -> Callable[[], torch.Tensor]:
    """Loads the tensor once for both halves."""

    def load() -> torch.Tensor:
        gate, up = tensor.load().chunk(2)
        return torch.cat([gate.chunk(count)[rank], up.chunk(count)[rank]])

    return load


def _half(tensor: StoredTensor, half: int) -> StoredTensor:
    return _slice(tensor, 0, half, 2)


def _slice(tensor: StoredTensor, dim: int, index: int, count: int) -> StoredTensor:
    if count == 1:
        return tensor
    length = tensor.shape[dim] // count
    assert length * count == tensor.shape[dim], f"{tensor.shape} cannot be cut into {count} along {dim}"
    shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
    # a copy: the file must not hold what lies around it
    return StoredTensor(
        shape,
        tensor.dtype,
        lambda: tensor.load().narrow(dim, index * length, length).clone(memory_format=torch.contiguous_format),
    )
