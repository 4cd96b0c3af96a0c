"""How the numbers of one Megatron tensor lie in Hugging Face's tensors, each layout with its exact inverse.

fused QKV, rows    [q q k v | q q k v]       one block per query group, here of two query heads
Llama and kin      [q q q q] [k k] [v v]     three tensors
GPT-2              [q q q q k k v v], transposed
GPT-NeoX           as it is: its groups have one query head
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpolish.nemo.gpt_config import GptConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One Megatron tensor as one or several others. `split` and `join` may give views."""

    shapes: Callable[[Shape], tuple[Shape, ...]]
    split: Callable[[Tensor], tuple[Tensor, ...]]
    join: Callable[[tuple[Tensor, ...]], Tensor]


def _only(parts: tuple[Tensor, ...]) -> Tensor:
    (part,) = parts
    return part


SAME = Layout(lambda shape: (shape,), lambda tensor: (tensor,), _only)
"""Number for number."""

TRANSPOSED = Layout(lambda shape: (shape[::-1],), lambda tensor: (tensor.T,), lambda parts: _only(parts).T)
"""GPT-2's Conv1D: inputs are rows."""


def gate_and_up() -> Layout:
    """A gated first layer: the rows of the activated branch, then those of the linear one."""

    def shapes(shape: Shape) -> tuple[Shape, ...]:
        half = (shape[0] // 2, *shape[1:])
        return half, half

    return Layout(shapes, lambda tensor: tensor.chunk(2), torch.cat)


def separate_qkv(config: GptConfig) -> Layout:
    """Queries, keys and values as three tensors, heads in order."""
    groups, channels = config.num_query_groups, config.kv_channels
    rows = (config.num_attention_heads * channels, groups * channels, groups * channels)

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        blocks = tensor.view(groups, -1, *tensor.shape[1:])
        parts = torch.split(blocks, [blocks.shape[1] - 2 * channels, channels, channels], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)

    def join(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)

    return Layout(lambda shape: tuple((count, *shape[1:]) for count in rows), split, join)


def stacked_qkv(config: GptConfig, transposed: bool) -> Layout:
    """All queries, all keys, all values in one tensor; a weight is transposed besides."""
    separate = separate_qkv(config)
    rows = [config.num_attention_heads * config.kv_channels, *2 * [config.num_query_groups * config.kv_channels]]

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        stacked = torch.cat(separate.split(tensor))
        return (stacked.T if transposed else stacked,)

    def join(parts: tuple[Tensor, ...]) -> Tensor:
        stacked = _only(parts).T if transposed else _only(parts)
        return separate.join(torch.split(stacked, rows))

    return Layout(lambda shape: (shape[::-1] if transposed else shape,), split, join)
