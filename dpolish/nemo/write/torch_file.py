"""The zip file of `torch.save`, written by hand: its size is known beforehand, and one tensor is held at a time.

    archive/data.pkl    the value, in which a tensor is (storage key, shape, strides)
    archive/byteorder   "little"
    archive/data/N      the bytes of storage N, at a multiple of 64, so that the file can be mapped into memory
    archive/version     "3"

All members are stored, none compressed. `torch.load(weights_only=True)` reads it, from torch 1.13 on.
"""

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

from dpolish.nemo.stored import StoredTensor
from dpolish.nemo.write.tar import Sink

_ALIGNMENT = 64
_ELSEWHERE, _ELSEWHERE_16 = 0xFFFFFFFF, 0xFFFF
"""In place of a number that is in the fields of zip64."""
_LIMIT, _MOST_RECORDS = _ELSEWHERE, _ELSEWHERE_16
"""What is not below these goes there."""
_STORAGES: dict[torch.dtype, type] = {
    torch.float32: torch.FloatStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float64: torch.DoubleStorage,
}


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A file that `torch.load` reads, before it is written."""

    size: int
    write: Callable[[Sink], None]


def torch_file(value: object) -> TorchFile:
    """`torch.save(value)`. A StoredTensor in it becomes a tensor, and is loaded when its turn comes."""
    pickled, tensors = _pickled(value)
    records = [_small("data.pkl", pickled), _small("byteorder", b"little")]
    records += [_Record(f"data/{index}", nbytes(tensor), _loader(tensor)) for index, tensor in enumerate(tensors)]
    records.append(_small("version", b"3\n"))
    return TorchFile(_zip_size(records), lambda sink: _write_zip(sink, records))


def nbytes(tensor: StoredTensor) -> int:
    """Bytes that a tensor takes."""
    size = tensor.dtype.itemsize
    for length in tensor.shape:
        size *= length
    return size


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's own memory, little-endian and in C order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _loader(tensor: StoredTensor) -> Callable[[], memoryview]:
    return lambda: raw_bytes(tensor.load())


# --- the pickle -------------------------------------------------------------------------------------------------------


class _Storage:
    """Stands for the storage of a tensor while a value is pickled."""

    def __init__(self, key: str, tensor: StoredTensor) -> None:
        self.key, self.tensor = key, tensor


class _Pickler(pickle.Pickler):
    """Pickles a StoredTensor as torch pickles a tensor: a reference to a storage, and how it is viewed."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[StoredTensor] = []
        self.dispatch_table = {StoredTensor: self._reduced}

    def _reduced(self, tensor: StoredTensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        storage = _Storage(str(len(self.tensors)), tensor)
        self.tensors.append(tensor)
        return _rebuild_tensor_v2, (storage, 0, tensor.shape, _strides(tensor.shape), False, OrderedDict())

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, _Storage):
            return None
        count = nbytes(value.tensor) // value.tensor.dtype.itemsize
        return "storage", _STORAGES[value.tensor.dtype], value.key, "cpu", count


def _pickled(value: object) -> tuple[bytes, list[StoredTensor]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler.tensors


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


# --- the zip ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    size: int
    content: Callable[[], bytes | memoryview]

    @property
    def path(self) -> bytes:
        return f"archive/{self.name}".encode()


def _small(name: str, content: bytes) -> _Record:
    return _Record(name, len(content), lambda: content)


def _zip_size(records: Sequence[_Record]) -> int:
    offset, directory = 0, 0
    for record in records:
        directory += len(_central_header(record, 0, offset))
        offset += len(_local_header(record, 0, offset)) + record.size
    return offset + directory + len(_end(len(records), directory, offset))


def _write_zip(sink: Sink, records: Sequence[_Record]) -> None:
    offset, directory = 0, bytearray()
    for record in records:
        content = record.content()
        assert len(content) == record.size, f"{record.name}: {len(content)} bytes, {record.size} announced"
        checksum = zlib.crc32(content)
        directory += _central_header(record, checksum, offset)
        header = _local_header(record, checksum, offset)
        sink.write(header)
        sink.write(content)
        offset += len(header) + record.size
        del content  # before the next one is loaded
    sink.write(bytes(directory))
    sink.write(_end(len(records), len(directory), offset))


_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<IIQI")
_UTF8 = 0x0800
_NEW_YEAR_1980 = 0x0021
_VERSION, _VERSION64 = 20, 45


def _local_header(record: _Record, checksum: int, offset: int) -> bytes:
    """The header of a member at `offset`, padded so that the content begins at a multiple of the alignment."""
    large = record.size >= _LIMIT
    extra = struct.pack("<HHQQ", 1, 16, record.size, record.size) if large else b""
    size = _ELSEWHERE if large else record.size
    begin = offset + _LOCAL.size + len(record.path) + len(extra) + 4
    padding = -begin % _ALIGNMENT
    extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
    version = _VERSION64 if large else _VERSION
    fixed = (0x04034B50, version, _UTF8, 0, 0, _NEW_YEAR_1980, checksum, size, size, len(record.path), len(extra))
    return _LOCAL.pack(*fixed) + record.path + extra


def _central_header(record: _Record, checksum: int, offset: int) -> bytes:
    wide = [value for value in (record.size, record.size, offset) if value >= _LIMIT]
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = record.size if record.size < _LIMIT else _ELSEWHERE
    place = offset if offset < _LIMIT else _ELSEWHERE
    version = _VERSION64 if wide else _VERSION
    head = (0x02014B50, version, version, _UTF8, 0, 0, _NEW_YEAR_1980, checksum, size, size)
    return _CENTRAL.pack(*head, len(record.path), len(extra), 0, 0, 0, 0, place) + record.path + extra


def _end(count: int, directory: int, offset: int) -> bytes:
    """What closes the file: where the directory lies, in zip64 too where a number is too large."""
    fields = (count, directory, offset)
    if count < _MOST_RECORDS and directory < _LIMIT and offset < _LIMIT:
        return _end_record(*fields)
    wide = _END64.pack(0x06064B50, 44, _VERSION64, _VERSION64, 0, 0, count, *fields)
    locator = _LOCATOR64.pack(0x07064B50, 0, offset + directory, 1)
    return wide + locator + _end_record(_ELSEWHERE_16, _ELSEWHERE, _ELSEWHERE)


def _end_record(count: int, directory: int, offset: int) -> bytes:
    return _END.pack(0x06054B50, 0, 0, count, count, directory, offset, 0)
