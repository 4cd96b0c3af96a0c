"""One model out of the files of its ranks: layers counted through the pipeline stages, shards joined by their names.

A shard is read when the joined tensor is, into its place; nothing else of the model is in memory then.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dpolish.errors import ModelError
from dpolish.nemo.gpt_config import GptConfig
from dpolish.nemo.names import UP, canonical, naming_of
from dpolish.nemo.stored import StoredTensor
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.torch_file import FileTensor

Rank = tuple[int, int]
"""(tensor parallel rank, pipeline stage)."""

_ROWS = re.compile(r"(embedding\.word_embeddings|output_layer)\.weight|.*\.(linear_qkv|linear_fc1|up)\.(weight|bias)")
_COLUMNS = re.compile(r".*\.(linear_proj|linear_fc2)\.weight")
_FC1 = re.compile(r"(.*\.)mlp\.linear_fc1\.(weight|bias)")
_QKV = re.compile(r".*\.linear_qkv\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class _Order:
    """How rows lie in the shards of one checkpoint."""

    heads_inside: bool
    """QKV is [3, heads, channels]."""
    fused_gate: bool
    """fc1 is [gate; up] in every shard."""
    channels: int


def merge_ranks(
    ranks: Mapping[Rank, Mapping[str, FileTensor]], config: GptConfig, where: str
) -> dict[str, StoredTensor]:
    """The whole tensors of a model by canonical names. Raises ModelError where the ranks do not fit together."""
    tensor_parallel, stages = max(tp for tp, _ in ranks) + 1, max(pp for _, pp in ranks) + 1
    if config.num_layers % stages:
        raise ModelError(f"{where}: {config.num_layers} layers do not divide into its {stages} pipeline stages")
    names = [name for tensors in ranks.values() for name in tensors]
    order = _Order(
        heads_inside=config.megatron_legacy and naming_of(names).startswith("legacy"),
        fused_gate=config.gated and not any(UP in canonical(name)[1] for name in names),
        channels=config.kv_channels,
    )
    merged: dict[str, StoredTensor] = {}
    for stage in range(stages):
        shards = [_renamed(ranks[tp, stage], stage, stages, config, where) for tp in range(tensor_parallel)]
        for name in shards[0]:
            if any(shard.keys() != shards[0].keys() for shard in shards):
                raise ModelError(f"{where}: the ranks of pipeline stage {stage} hold different tensors")
            if name in merged:
                raise ModelError(f"{where}: {quoted(name)} is in more than one pipeline stage")
            merged[name] = _merged(name, [shard[name] for shard in shards], order, where)
    return _with_joined_gates(merged, where)


def _renamed(
    tensors: Mapping[str, FileTensor], stage: int, stages: int, config: GptConfig, where: str
) -> dict[str, FileTensor]:
    """The tensors of one rank under canonical names, its layers counted from the first of the model."""
    of_stage = config.num_layers // stages
    renamed: dict[str, FileTensor] = {}
    for name, tensor in tensors.items():
        layer, rest = canonical(name)
        if layer is not None:
            if layer >= of_stage:
                raise ModelError(
                    f"{where}: {quoted(name)} is one layer too many: the configuration says {of_stage} here"
                )
            rest = f"decoder.layers.{stage * of_stage + layer}.{rest}"
        if rest == "word_embeddings.weight" or (
            rest == "output_layer.weight" and config.share_embeddings_and_output_weights
        ):
            continue  # the last stage's copy of the embedding, which serves as the head
        if rest in renamed:
            raise ModelError(f"{where}: {quoted(rest)} is there under two names")
        renamed[rest] = tensor
    return renamed


def _merged(name: str, shards: Sequence[FileTensor], order: _Order, where: str) -> StoredTensor:
    """One tensor from what each tensor parallel rank has of it."""
    first = shards[0]
    if any((shard.shape, shard.dtype) != (first.shape, first.dtype) for shard in shards):
        raise ModelError(f"{where}: the ranks hold pieces of {quoted(name)} that differ in shape or dtype")
    pieces = [shard.stored() for shard in shards]
    if order.heads_inside and _QKV.fullmatch(name):
        pieces = [_interleaved(piece, order.channels, f"{where}: {quoted(name)}") for piece in pieces]
    if order.fused_gate and len(shards) > 1 and _FC1.fullmatch(name):
        pieces = [_rows(shard, half, f"{where}: {quoted(name)}") for half in range(2) for shard in shards]
    if _ROWS.fullmatch(name) and first.shape:
        return joined(pieces, 0)
    if _COLUMNS.fullmatch(name) and len(first.shape) == 2:
        return joined(pieces, 1)
    return pieces[0]  # every rank holds all of it


def _rows(shard: FileTensor, half: int, where: str) -> StoredTensor:
    """The first or second half of a shard's rows."""
    if not shard.shape or shard.shape[0] % 2:
        raise ModelError(f"{where}: has {shard.shape} and should hold a gate and a projection of equal size")
    rows = shard.shape[0] // 2
    return StoredTensor((rows, *shard.shape[1:]), shard.dtype, partial(shard.load_rows, half * rows, rows))


def _interleaved(piece: StoredTensor, channels: int, where: str) -> StoredTensor:
    """Rows [3, heads, channels], the order of the first Megatron-LM, as [heads, 3, channels]."""
    if not piece.shape or piece.shape[0] % (3 * channels):
        raise ModelError(f"{where}: has {piece.shape}, which is no queries, keys and values of {channels} channels")

    def load() -> torch.Tensor:
        blocks = piece.load().view(3, -1, channels, *piece.shape[1:])
        return blocks.transpose(0, 1).reshape(piece.shape).contiguous()

    return StoredTensor(piece.shape, piece.dtype, load)


def _with_joined_gates(tensors: dict[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """The same with each gate and the matrix beside it as one fc1: all rows of the gate, then all of the other."""
    whole = {name: tensor for name, tensor in tensors.items() if UP not in name}
    for name, up in tensors.items():
        if UP in name:
            fc1 = name.replace(UP, "mlp.linear_fc1.")
            gate = whole.get(fc1)
            if gate is None or (gate.shape, gate.dtype) != (up.shape, up.dtype):
                raise ModelError(f"{where}: {quoted(fc1)} does not fit the second matrix beside it")
            whole[fc1] = joined([gate, up], 0)
    return whole


def joined(pieces: Sequence[StoredTensor], axis: int) -> StoredTensor:
    """The concatenation of `pieces` along `axis`, each read into its place."""
    if len(pieces) == 1:
        return pieces[0]
    shape = list(pieces[0].shape)
    shape[axis] = sum(piece.shape[axis] for piece in pieces)

    def load() -> torch.Tensor:
        whole = torch.empty(shape, dtype=pieces[0].dtype)
        at = 0
        for piece in pieces:
            whole.narrow(axis, at, piece.shape[axis]).copy_(piece.load())
            at += piece.shape[axis]
        return whole

    return StoredTensor(tuple(shape), pieces[0].dtype, load)
