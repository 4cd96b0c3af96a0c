"""The tensors of a torch.distributed checkpoint: `.metadata` says where each piece lies in the `.distcp` files.

`.metadata` is a pickle and is read as data (see `pickle_records`); its names, offsets and sizes are checked before a
piece is read. A piece is a `torch.save` file of one tensor, within a `.distcp` file.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import Archive, Span
from dpolish.nemo.chunks import Chunk, ChunkedTensor, tiles
from dpolish.nemo.pickle_records import Global, Record, Value, read_pickle
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.torch_file import FileTensor, read_one_tensor, size_of, whole_number

MAX_METADATA = 8 << 20
"""Bytes of `.metadata`: one of 10,000 pieces has 1.5 MB."""

DTYPES: Mapping[str, torch.dtype] = {
    f"torch.{name}": getattr(torch, name)
    for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_METADATA = "torch.distributed.checkpoint.metadata"
_TENSOR, _INDEX = f"{_METADATA}.TensorStorageMetadata", f"{_METADATA}.MetadataIndex"
_CHUNK, _PROPERTIES = f"{_METADATA}.ChunkStorageMetadata", f"{_METADATA}.TensorProperties"
_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_ALLOWED = {
    *DTYPES, "torch.float8_e4m3fn", "torch.float8_e5m2", _TENSOR, _INDEX, _CHUNK, _PROPERTIES, _INFO,
    f"{_METADATA}.Metadata", f"{_METADATA}.BytesStorageMetadata", f"{_METADATA}.StorageMeta",
    f"{_METADATA}._MEM_FORMAT_ENCODING", "torch.distributed.checkpoint.filesystem._StoragePrefix", "torch.Size",
    "torch.serialization._get_layout", "pathlib.PosixPath", "pathlib._local.PosixPath", "collections.OrderedDict",
}  # fmt: skip

Place = tuple[str, tuple[int, ...]]
"""A tensor's name and the offset of one of its chunks."""


def read_torch_dist(archive: Archive, folder: str, wanted: Callable[[str], bool]) -> dict[str, ChunkedTensor]:
    """The tensors of the checkpoint in `folder` (which ends in a slash) whose names are `wanted`. Raises ModelError."""
    span = archive.span(f"{folder}.metadata")
    metadata = _fields(read_pickle(span.read_all(MAX_METADATA), _ALLOWED.__contains__, span.label))
    described, stored = metadata.get("state_dict_metadata"), metadata.get("storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise ModelError(f"{span.label}: lists no tensors; it is damaged, or of a version that is not known here")
    extras = metadata.get("mcore_data")
    pieces = _pieces(archive, folder, stored, wanted)
    tensors: dict[str, ChunkedTensor] = {}
    for name, about in described.items():
        if isinstance(name, str) and wanted(name) and isinstance(about, Record) and about.name == _TENSOR:
            extra = extras.get(name) if isinstance(extras, dict) else None
            if isinstance(extra, dict) and extra.get("nd_reformulated_orig_global_shape") is not None:
                raise ModelError(f"{span.label}: {quoted(name)} is flattened, as only optimizer states are")
            tensors[name] = _tensor(about, name, pieces, span.label)
    return tensors


def _fields(value: Value) -> dict[str, Value]:
    """The attributes of a record; none where it is something else."""
    state = value.state if isinstance(value, Record) else None
    return {key: item for key, item in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}


def _pieces(
    archive: Archive, folder: str, stored: Mapping[str | int | Record, Value], wanted: Callable[[str], bool]
) -> dict[Place, Span]:
    """Where each chunk of the wanted tensors lies; no two share a byte."""
    pieces: dict[Place, Span] = {}
    used: dict[str, list[tuple[int, int]]] = {}
    for key, value in stored.items():
        index, info = _fields(key if isinstance(key, Record) else None), _fields(value)
        name, offset = index.get("fqn"), index.get("offset")
        if not isinstance(name, str) or not wanted(name) or offset is None:
            continue
        path, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
        where = f"{archive.path}: {quoted(name)}"
        if not isinstance(path, str) or "/" in path or "\\" in path or not path.endswith(".distcp"):
            raise ModelError(f"{where} lies in the file {quoted(str(path))}, and only .distcp files hold tensors")
        if info.get("transform_descriptors"):
            raise ModelError(f"{where} is stored compressed, which checkpoints of NeMo are not")
        place = (name, size_of(offset))
        if place in pieces:
            raise ModelError(f"{where} has two pieces at one place; it is damaged")
        begin, size = whole_number(start), whole_number(length)
        pieces[place] = archive.span(f"{folder}{path}").part(begin, size, f"{where} in {quoted(path)}")
        used.setdefault(path, []).append((begin, begin + size))
    for path, ranges in used.items():
        if any(end > start for (_, end), (start, _) in pairwise(sorted(ranges))):
            raise ModelError(f"{archive.path}: {quoted(path)} holds pieces that overlap; it is damaged")
    return pieces


def _tensor(about: Record, name: str, pieces: Mapping[Place, Span], label: str) -> ChunkedTensor:
    fields = _fields(about)
    shape, dtype = size_of(fields.get("size")), _dtype(fields.get("properties"))
    listed = fields.get("chunks")
    if dtype is None or not shape or -1 in shape or 0 in shape or not isinstance(listed, list):
        raise ModelError(f"{label}: {quoted(name)} has no shape or no dtype that is known here")
    boxes = [(size_of(_fields(chunk).get("offsets")), size_of(_fields(chunk).get("sizes"))) for chunk in listed]
    if not tiles(shape, boxes) or len({offset for offset, _ in boxes}) != len(boxes):
        raise ModelError(f"{label}: the pieces of {quoted(name)} do not cover it; it is damaged")
    chunks = []
    for offset, box in boxes:
        piece = pieces.get((name, offset))
        if piece is None or math.prod(box) * dtype.itemsize > piece.size:
            raise ModelError(f"{label}: a piece of {quoted(name)} is missing or cut short; get it again")
        chunks.append(Chunk(offset, box, _stored(piece, box, dtype).load_rows))
    return ChunkedTensor(shape, dtype, chunks)


def _dtype(properties: Value) -> torch.dtype | None:
    """The dtype among a tensor's properties, which are pickled as a tuple that begins with it."""
    state = properties.state if isinstance(properties, Record) else None
    first = state[0] if isinstance(state, tuple) and state else None
    return DTYPES.get(first.name) if isinstance(first, Global) else None


def _stored(piece: Span, box: tuple[int, ...], dtype: torch.dtype) -> FileTensor:
    """The tensor in `piece`, which must be the one that `.metadata` announced; its numbers are not read yet."""
    tensor = read_one_tensor(piece)
    if tensor.shape != box or tensor.dtype != dtype:
        raise ModelError(f"{piece.label}: holds {tensor.dtype} {tensor.shape} where .metadata says {dtype} {box}")
    return tensor
