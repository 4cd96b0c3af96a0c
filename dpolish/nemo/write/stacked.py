"""What both mcore layouts hold: every kind of layer tensor as one global tensor with the layers in front.

    decoder.layers.{i}.mlp.linear_fc2.weight, i < L    →    model.decoder.layers.mlp.linear_fc2.weight, [L, H, F]

A chunk is one layer, so that one layer is in memory at a time; readers with any TP and PP take their part of it.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.write.torch_file import torch_file

PREFIX = "model."
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")

EXTRA_STATES = tuple(
    f"{PREFIX}decoder.layers.{module}._extra_state"
    for module in ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
)
"""Objects, one per layer, without which Megatron-core refuses to load; empty ones do."""


@dataclass(frozen=True, slots=True)
class GlobalTensor:
    """A tensor of the checkpoint and its chunks: by layer where there is a layer axis, else one."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[StoredTensor, ...]
    """Each of the shape of the whole, but for the first axis of a stacked one, which is 1."""
    stacked: bool

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of every chunk."""
        return (1, *self.shape[1:]) if self.stacked else self.shape

    def offset(self, chunk: int) -> tuple[int, ...]:
        """Where a chunk begins."""
        return (chunk, *(0 for _ in self.shape[1:]))


def global_tensors(weights: Weights) -> Iterator[GlobalTensor]:
    """The tensors of the checkpoint, in the order in which they first appear in `weights`."""
    layers: dict[str, dict[int, StoredTensor]] = {}
    single: dict[str, StoredTensor] = {}
    order: dict[str, None] = {}
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        key = PREFIX + (f"decoder.layers.{match[2]}" if match else name)
        order[key] = None
        if match:
            layers.setdefault(key, {})[int(match[1])] = tensor
        else:
            single[key] = tensor
    for key in order:
        yield _stacked(key, layers[key]) if key in layers else _whole(key, single[key])


def _whole(key: str, tensor: StoredTensor) -> GlobalTensor:
    return GlobalTensor(key, tensor.shape, tensor.dtype, (tensor,), stacked=False)


def _stacked(key: str, by_layer: Mapping[int, StoredTensor]) -> GlobalTensor:
    chunks = tuple(by_layer[layer] for layer in range(len(by_layer)))
    shape, dtype = chunks[0].shape, chunks[0].dtype
    assert all((chunk.shape, chunk.dtype) == (shape, dtype) for chunk in chunks), f"{key}: layers differ"
    return GlobalTensor(key, (len(chunks), *shape), dtype, tuple(_with_axis(chunk) for chunk in chunks), stacked=True)


def _with_axis(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor((1, *tensor.shape), tensor.dtype, lambda: tensor.load().unsqueeze(0))


def num_layers(weights: Weights) -> int:
    """Layers that the names in `weights` speak of."""
    return 1 + max(int(match[1]) for name in weights if (match := _LAYER.fullmatch(name)))


def small_file(value: object) -> bytes:
    """`torch.save` of a value without tensors."""
    buffer = io.BytesIO()
    torch_file(value).write(buffer)
    return buffer.getvalue()


def common_members(backend: str) -> dict[str, bytes]:
    """The files that say what the folder is."""
    described = (
        f'{{"sharded_backend": "{backend}", "sharded_backend_version": 1, '
        '"common_backend": "torch", "common_backend_version": 1}'
    )
    return {"metadata.json": described.encode(), "common.pt": small_file({})}
