"""mcore checkpoints in torch's distributed format: `.metadata` says which bytes of which `.distcp` hold which chunk.

.metadata      a pickle of torch.distributed.checkpoint's Metadata, with Megatron-core's own `mcore_data`
__0_N.distcp   the chunks one after the other, each a whole torch.save file
"""

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dpolish.nemo.stored import Weights
from dpolish.nemo.write.stacked import EXTRA_STATES, GlobalTensor, common_members, global_tensors, num_layers
from dpolish.nemo.write.tar import Entry, Folder, Member, Sink, in_memory
from dpolish.nemo.write.torch_file import TorchFile, torch_file
from dpolish.nemo.write.zarr import FOLDER

_LARGEST_FILE = 4 << 30
_PROTOCOL = 4


@dataclass(frozen=True, slots=True)
class _Item:
    """What one entry of the index points at."""

    index: MetadataIndex
    blob: TorchFile


def torch_dist_entries(weights: Weights, largest_file: int = _LARGEST_FILE) -> Iterator[Entry]:
    """The folder `model_weights` of an archive. A data file ends before it exceeds `largest_file`, if it can."""
    tensors, layers = list(global_tensors(weights)), num_layers(weights)
    files = list(_files(list(_items(tensors, layers)), largest_file))
    yield Folder(FOLDER)
    for name, content in common_members("torch_dist").items():
        yield in_memory(f"{FOLDER}/{name}", content)
    yield in_memory(f"{FOLDER}/.metadata", _metadata(tensors, layers, files))
    for name, items in files:
        yield Member(f"{FOLDER}/{name}", sum(item.blob.size for item in items), _write(items))


def _items(tensors: Sequence[GlobalTensor], layers: int) -> Iterator[_Item]:
    for key in EXTRA_STATES:
        for layer in range(layers):
            yield _Item(MetadataIndex(_object_key(key, layer, layers)), torch_file([None]))
    for tensor in tensors:
        for number, chunk in enumerate(tensor.chunks):
            yield _Item(MetadataIndex(tensor.key, tensor.offset(number), number), torch_file(chunk))


def _object_key(key: str, layer: int, layers: int) -> str:
    return f"{key}/shard_{layer}_{layers}"


def _files(items: Sequence[_Item], largest: int) -> Iterator[tuple[str, list[_Item]]]:
    """Data files: name, and the items in it in order."""
    current: list[_Item] = []
    size = count = 0
    for item in items:
        if current and size + item.blob.size > largest:
            yield f"__0_{count}.distcp", current
            current, size, count = [], 0, count + 1
        current.append(item)
        size += item.blob.size
    yield f"__0_{count}.distcp", current


def _write(items: Sequence[_Item]) -> Callable[[Sink], None]:
    def write(sink: Sink) -> None:
        for item in items:
            item.blob.write(sink)

    return write


def _metadata(tensors: Sequence[GlobalTensor], layers: int, files: Sequence[tuple[str, Sequence[_Item]]]) -> bytes:
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        tensor.key: _described(tensor) for tensor in tensors
    }
    for key in EXTRA_STATES:
        described |= {_object_key(key, layer, layers): BytesStorageMetadata() for layer in range(layers)}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for name, items in files:
        offset = 0
        for item in items:
            places[item.index] = _StorageInfo(name, offset, item.blob.size)
            offset += item.blob.size
    metadata = Metadata(described, {key: (key,) for key in described}, places)
    vars(metadata)["mcore_data"] = {tensor.key: dict[str, object]() for tensor in tensors}
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=_PROTOCOL).dump(metadata)
    return buffer.getvalue()


def _described(tensor: GlobalTensor) -> TensorStorageMetadata:
    sizes = torch.Size(tensor.chunk_shape)
    chunks = [ChunkStorageMetadata(torch.Size(tensor.offset(number)), sizes) for number in range(len(tensor.chunks))]
    return TensorStorageMetadata(TensorProperties(tensor.dtype), torch.Size(tensor.shape), chunks)
