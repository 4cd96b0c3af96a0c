"""mcore checkpoints in zarr 2: a folder per tensor, with `.zarray` and raw little-endian chunks named `i.j.k`.

NeMo 1.x to 24.09 read and write this. No compression, no filters; bfloat16 goes by that name, which zarr does not know
and Megatron's own reader does.
"""

import json
from collections.abc import Callable, Iterator

import torch

from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.write.stacked import (
    EXTRA_STATES,
    GlobalTensor,
    common_members,
    global_tensors,
    num_layers,
    small_file,
)
from dpolish.nemo.write.tar import Entry, Folder, Member, Sink, in_memory
from dpolish.nemo.write.torch_file import nbytes, raw_bytes

FOLDER = "model_weights"
_DTYPES = {torch.float32: "<f4", torch.float16: "<f2", torch.float64: "<f8", torch.bfloat16: "bfloat16"}


def zarr_entries(weights: Weights) -> Iterator[Entry]:
    """The folder `model_weights` of an archive."""
    yield Folder(FOLDER)
    for name, content in common_members("zarr").items():
        yield in_memory(f"{FOLDER}/{name}", content)
    for tensor in global_tensors(weights):
        yield from _tensor(tensor)
    layers, nothing = num_layers(weights), small_file(None)
    for key in EXTRA_STATES:
        yield Folder(f"{FOLDER}/{key}")
        for layer in range(layers):
            yield in_memory(f"{FOLDER}/{key}/shard_{layer}_{layers}.pt", nothing)


def _tensor(tensor: GlobalTensor) -> Iterator[Entry]:
    folder = f"{FOLDER}/{tensor.key}"
    described = {
        "chunks": list(tensor.chunk_shape),
        "compressor": None,
        "dtype": _DTYPES[tensor.dtype],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(tensor.shape),
        "zarr_format": 2,
    }
    yield Folder(folder)
    yield in_memory(f"{folder}/.zarray", json.dumps(described, indent=4).encode())
    for index, chunk in enumerate(tensor.chunks):
        place = ".".join(str(index if axis == 0 else 0) for axis in range(len(tensor.shape)))
        yield Member(f"{folder}/{place}", nbytes(chunk), _write(chunk))


def _write(chunk: StoredTensor) -> Callable[[Sink], None]:
    def write(sink: Sink) -> None:
        sink.write(raw_bytes(chunk.load()))

    return write
