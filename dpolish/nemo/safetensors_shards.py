"""Weights of a Hugging Face folder, read and written tensor by tensor.

What is written is what `save_pretrained` would: `model.safetensors`, or numbered shards with an index beside them. The
headers are known before the first tensor is loaded, so one tensor is in memory at a time.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dpolish.errors import ModelError
from dpolish.facts import TensorHeader, tensor_headers, weight_files
from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.write.torch_file import nbytes, raw_bytes

DEFAULT_SHARD_BYTES = 5 * 10**9
"""What transformers' own `max_shard_size` means by 5GB."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder by name. Raises ModelError where a file or a header cannot be used."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, header in tensor_headers(file).items():
            if name in found:
                raise ModelError(f"{file}: {name} lies in another file of {folder} too")
            found[name] = _stored(file, name, header)
    if not found:
        raise ModelError(f"{folder}: no *.safetensors here; save the model as safetensors")
    return found


def _stored(file: Path, name: str, header: TensorHeader) -> StoredTensor:
    dtype = _DTYPES.get(str(header.dtype))
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise ModelError(
            f"{file}: {quoted(name)} is of type {str(header.dtype)[:60]!a}; weights are read of types {known}"
        )
    tensor = StoredTensor(header.shape, dtype, lambda: _load(file, name, header, dtype))
    if any(not isinstance(length, int) or length < 0 for length in header.shape):
        raise ModelError(f"{file}: {name} has the shape {header.shape}")
    if nbytes(tensor) != header.end - header.begin:
        raise ModelError(f"{file}: {name} has {header.end - header.begin:,} bytes, its shape needs {nbytes(tensor):,}")
    return tensor


def _load(file: Path, name: str, header: TensorHeader, dtype: torch.dtype) -> torch.Tensor:
    data = torch.empty(header.end - header.begin, dtype=torch.uint8)
    view = data.numpy().data
    with file.open("rb", buffering=0) as handle:
        handle.seek(header.begin)
        done = 0
        while done < len(view):
            count = handle.readinto(view[done:])
            if not count:
                raise ModelError(f"{file}: ends inside {name}; it was changed while it was read")
            done += count
    return data.view(dtype).reshape(header.shape)


@dataclass(frozen=True, slots=True)
class _Shard:
    tensors: Mapping[str, StoredTensor]
    num_bytes: int


def write_weights(
    folder: Path, weights: Weights, wrote: Callable[[int], None], shard_bytes: int = DEFAULT_SHARD_BYTES
) -> None:
    """Write `weights` to `folder`, in shards of at most `shard_bytes`, each file durable.

    A tensor that is larger has a shard of its own. `wrote` is told the bytes of tensors as they go out.
    """
    shards = list(_shards(weights, shard_bytes))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard.tensors, wrote)
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard.tensors}
        total = sum(shard.num_bytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(weights: Weights, limit: int) -> Iterator[_Shard]:
    current: dict[str, StoredTensor] = {}
    size = 0
    for name, tensor in weights.items():
        if current and size + nbytes(tensor) > limit:
            yield _shard(current)
            current, size = {}, 0
        current[name] = tensor
        size += nbytes(tensor)
    yield _shard(current)


def _shard(tensors: Mapping[str, StoredTensor]) -> _Shard:
    # wide types first: readers view the bytes in place, which needs each tensor at a multiple of its item's size
    ordered = dict(sorted(tensors.items(), key=lambda entry: -entry[1].dtype.itemsize))
    return _Shard(ordered, sum(map(nbytes, tensors.values())))


def _write_shard(path: Path, tensors: Mapping[str, StoredTensor], wrote: Callable[[int], None]) -> None:
    with path.open("xb") as file:
        file.write(_header(tensors))
        for name, tensor in tensors.items():
            loaded = tensor.load()
            assert (tuple(loaded.shape), loaded.dtype) == (tensor.shape, tensor.dtype), name
            file.write(raw_bytes(loaded))
            wrote(nbytes(tensor))
            del loaded  # before the next one is read
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, StoredTensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + nbytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
