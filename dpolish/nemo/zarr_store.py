"""The tensors of a zarr checkpoint: a folder each, with a description in JSON and one raw file per chunk.

Only what Megatron writes is read: zarr's version 2, no compression, C order, little-endian. The `.pt` files of objects
(`_extra_state`) are pickles and stay unread.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import Archive, Span
from dpolish.nemo.chunks import Chunk, ChunkedTensor
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.torch_file import MAX_DIMS, read_numbers

MAX_DESCRIPTION = 16 << 10
DTYPES: Mapping[str, torch.dtype] = {
    "<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16, "<f8": torch.float64,
}  # fmt: skip
_DESCRIPTION = ".zarray"


def read_zarr(archive: Archive, folder: str, wanted: Callable[[str], bool]) -> dict[str, ChunkedTensor]:
    """The tensors below `folder` (which ends in a slash) whose names are `wanted`. Raises ModelError."""
    files: dict[str, list[str]] = {}
    for name in archive.under(folder):
        key, _, file = name.removeprefix(folder).rpartition("/")
        if key and wanted(key):
            files.setdefault(key, []).append(file)
    return {
        key: _tensor(archive, f"{folder}{key}/", set(found)) for key, found in files.items() if _DESCRIPTION in found
    }


def _tensor(archive: Archive, folder: str, files: set[str]) -> ChunkedTensor:
    where = f"{archive.path}: {quoted(folder.rstrip('/'))}"
    shape, grain, dtype = _description(read_json(archive.span(f"{folder}{_DESCRIPTION}"), MAX_DESCRIPTION), where)
    counts = [-(-size // step) for size, step in zip(shape, grain, strict=True)]
    found = {file for file in files if not file.startswith(".")}
    if math.prod(counts) != len(found):
        raise ModelError(
            f"{where}: has {len(found)} chunks and needs {math.prod(counts)}. It is not whole; get it again."
        )
    size = math.prod(grain) * dtype.itemsize
    chunks = []
    for index in itertools.product(*map(range, counts)):
        span = archive.span(f"{folder}{'.'.join(map(str, index))}")
        if span.size != size:
            raise ModelError(f"{span.label}: has {span.size} bytes and needs {size}; get it again")
        offset = tuple(at * step for at, step in zip(index, grain, strict=True))
        box = tuple(min(step, end - at) for step, end, at in zip(grain, shape, offset, strict=True))
        chunks.append(Chunk(offset, box, _rows(span, grain, box, dtype)))
    return ChunkedTensor(shape, dtype, chunks)


def _rows(
    span: Span, grain: tuple[int, ...], box: tuple[int, ...], dtype: torch.dtype
) -> Callable[[int, int], torch.Tensor]:
    """What reads slices of a chunk file, which is as large as `grain` even where only a `box` of it counts."""

    def read(start: int, count: int) -> torch.Tensor:
        row = math.prod(grain[1:])
        numbers = read_numbers(span, start * row * dtype.itemsize, count * row, dtype).view(count, *grain[1:])
        return numbers[(slice(None), *(slice(size) for size in box[1:]))].contiguous()

    return read


def _description(about: Mapping[str, object], where: str) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """(shape, shape of a chunk, dtype). Raises ModelError for what Megatron does not write."""
    expected: dict[str, Sequence[object]] = {
        "zarr_format": [2], "compressor": [None], "filters": [None, []], "order": ["C"], "dimension_separator": ["."],
    }  # fmt: skip
    for key, values in expected.items():
        if about.get(key, values[0]) not in values or (key not in about and key == "zarr_format"):
            raise ModelError(f"{where}: has {key} {str(about.get(key))[:60]!a}; checkpoints of NeMo have {values[0]!r}")
    dtype = DTYPES.get(str(about.get("dtype")))
    if dtype is None:
        raise ModelError(f"{where}: has the dtype {str(about.get('dtype'))[:60]!a}; known are {', '.join(DTYPES)}")
    shape, grain = _sizes(about.get("shape")), _sizes(about.get("chunks"))
    if not shape or len(shape) != len(grain) or any(step > size for step, size in zip(grain, shape, strict=True)):
        raise ModelError(f"{where}: has a shape and chunks that do not fit together")
    return shape, grain, dtype


def _sizes(value: object) -> tuple[int, ...]:
    """The sizes that a list holds, each from 1 on; none where it is something else."""
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        return ()
    sizes = tuple(size for size in value if type(size) is int and 1 <= size < 1 << 48)
    return sizes if len(sizes) == len(value) else ()


def read_json(span: Span, limit: int) -> dict[str, object]:
    """The JSON object in `span`, of at most `limit` bytes. Raises ModelError."""
    data = span.read_all(limit)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{span.label}: is no JSON that can be read: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{span.label}: holds no JSON object")
    return value
