"""The tensors of a `torch.save` file, read in place: its list of contents as data, its bytes where they lie.

Nothing of the file is run: see `pickle_records`. What the list says about a tensor (where it begins, its shape, its
strides) is checked against the bytes that are there, so that reading it takes no more memory than the file has bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import Span
from dpolish.nemo.pickle_records import Global, PersistentId, Record, Value, read_pickle
from dpolish.nemo.stored import StoredTensor
from dpolish.nemo.tar_plan import quoted
from dpolish.nemo.zip_entries import zip_entries

MAX_LIST = 12 << 20
"""Bytes of the pickle that lists the tensors; that of a model with a thousand tensors has 300 KB."""
MAX_DIMS = 8
_MAX_NUMBER = 1 << 62

DTYPES: Mapping[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip

_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_BYTES = ("_io.BytesIO", "io.BytesIO")
_ALLOWED = {
    *DTYPES, _TENSOR, _PARAMETER, *_BYTES, "collections.OrderedDict", "torch.Size", "torch.device",
    "_codecs.encode", "builtins.bytes", "__builtin__.bytes",  # the content of a BytesIO
}  # fmt: skip
_RESAVE = "open it where you trust it and save it again: torch.save(torch.load(FILE, weights_only=True), FILE)"


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a torch file: `numbers` of `dtype` from `offset` of a storage on, with `shape` and `strides`."""

    storage: Span
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stored(self) -> StoredTensor:
        """The same tensor, to be read when asked."""
        return StoredTensor(self.shape, self.dtype, self.load)

    def load(self) -> torch.Tensor:
        """The whole tensor."""
        return self._read(self.offset, self.shape)

    def load_rows(self, start: int, count: int) -> torch.Tensor:
        """`count` slices along the first axis from `start` on."""
        return self._read(self.offset + start * self.strides[0], (count, *self.shape[1:]))

    def _read(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        if 0 in shape:
            return torch.empty(shape, dtype=self.dtype)
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, self.strides, strict=True))
        numbers = read_numbers(self.storage, offset * self.dtype.itemsize, reach, self.dtype)
        return numbers.as_strided(shape, self.strides).contiguous()


def read_numbers(span: Span, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """(count,) The numbers that stand in `span` from the byte `offset` on, little-endian."""
    if offset + count * dtype.itemsize > span.size:  # before the memory is taken
        raise ModelError(f"{span.label}: has {span.size} bytes, fewer than its tensor; get it again")
    numbers = torch.empty(count, dtype=dtype)
    if count:
        span.read_into(numbers.view(torch.uint8).numpy().data, offset)
    return numbers


def read_torch_file(span: Span) -> dict[str, FileTensor]:
    """The tensors of a file that holds one flat mapping of names; `_extra_state` is left unread. Raises ModelError."""
    contents, entries = _contents(span)
    items = contents.items if isinstance(contents, Record) else contents
    if not isinstance(items, dict):
        raise ModelError(f"{span.label}: holds no mapping of names to tensors, so it is no checkpoint of a model")
    file = _File(span, entries)
    tensors: dict[str, FileTensor] = {}
    for name, value in items.items():
        if not isinstance(name, str):
            raise ModelError(f"{span.label}: holds a tensor without a name")
        if name.endswith("_extra_state"):
            continue  # None, or what another pickle holds: settings of low-precision kernels
        if isinstance(value, dict) or (isinstance(value, Record) and value.items is not None):
            raise ModelError(
                f"{span.label}: {quoted(name)} holds further names: it is a checkpoint of a run, with the optimizer's "
                "state. Name the .nemo that the run saved, or save the model's weights alone."
            )
        tensors[name] = file.tensor(value, name)
    file.check_total(tensors)
    return tensors


def read_one_tensor(span: Span) -> FileTensor:
    """The tensor of a file that holds nothing else. Raises ModelError."""
    contents, entries = _contents(span)
    return _File(span, entries).tensor(contents, "its content")


def _contents(span: Span) -> tuple[Value, dict[str, Span]]:
    """(what the file's pickle describes, the bytes of each storage by its key)."""
    _check_kind(span)
    entries = zip_entries(span)
    lists = [name for name in entries if name.endswith("/data.pkl")]
    if len(lists) != 1:
        raise ModelError(f"{span.label}: has {len(lists)} lists of contents where torch writes one")
    root = lists[0].removesuffix("data.pkl")
    if any(not name.startswith(root) for name in entries) or f"{root}constants.pkl" in entries:
        raise ModelError(f"{span.label}: is no file of tensors but a program (TorchScript) or something else")
    order = entries.get(f"{root}byteorder")
    if order is not None and order.read_all(16) != b"little":
        raise ModelError(f"{span.label}: was written by a big-endian machine; {_RESAVE}")
    contents = read_pickle(entries[lists[0]].read_all(MAX_LIST), _ALLOWED.__contains__, span.label)
    prefix = f"{root}data/"
    return contents, {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def _check_kind(span: Span) -> None:
    start = span.read(0, min(span.size, 264))
    if start.startswith(b"PK\x03\x04"):
        return
    if start.startswith(b"\x80") and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in start[:20]:
        raise ModelError(f"{span.label}: has torch's format from before version 1.6; {_RESAVE}")
    if start[257:262] == b"ustar" or start.startswith((b"sys_info", b"storages", b"pickle", b"./")):
        raise ModelError(f"{span.label}: has torch's oldest format, a tar of pickles; {_RESAVE}")
    if start.startswith(b"\x80"):
        raise ModelError(f"{span.label}: is a bare pickle and no torch file; nothing in it is run")
    raise ModelError(f"{span.label}: is no torch file. It may be damaged or not fully downloaded; get it again.")


@dataclass(frozen=True, slots=True)
class _File:
    """The storages of one file, and what makes tensors of them."""

    span: Span
    entries: Mapping[str, Span]

    def tensor(self, value: Value, name: str) -> FileTensor:
        """What a record describes, if all its bytes are there."""
        if isinstance(value, Record) and value.name == _PARAMETER and value.arguments:
            value = value.arguments[0]
        if not isinstance(value, Record) or value.name != _TENSOR or len(value.arguments) < 4:
            what = "binary data" if isinstance(value, Record) and value.name in _BYTES else "no tensor"
            raise ModelError(f"{self.span.label}: {quoted(name)} is {what}, and a model has tensors alone")
        storage, offset, shape, strides = value.arguments[:4]
        entry, dtype = self.storage(storage, name)
        found = FileTensor(entry, dtype, whole_number(offset), size_of(shape), size_of(strides))
        if found.offset < 0 or (-1,) in (found.shape, found.strides) or len(found.shape) != len(found.strides):
            raise self.damaged(name)
        reach = 0
        if 0 not in found.shape:
            steps = zip(found.shape, found.strides, strict=True)
            reach = found.offset + 1 + sum((size - 1) * stride for size, stride in steps)
        numbers = math.prod(found.shape)
        if max(reach, numbers) * dtype.itemsize > entry.size:
            raise self.damaged(name)
        return found

    def storage(self, value: Value, name: str) -> tuple[Span, torch.dtype]:
        """(bytes, dtype) of what a tensor refers to: ("storage", its class, key, device, numbers)."""
        identity = value.value if isinstance(value, PersistentId) else None
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise self.damaged(name)
        kind, key, numbers = identity[1], identity[2], whole_number(identity[4])
        dtype = DTYPES.get(kind.name) if isinstance(kind, Global) else None
        entry = self.entries.get(key) if isinstance(key, str) else None
        if dtype is None or entry is None or numbers * dtype.itemsize != entry.size:
            raise self.damaged(name)
        return entry, dtype

    def damaged(self, name: str) -> ModelError:
        return ModelError(
            f"{self.span.label}: {quoted(name)} refers to bytes that are not there, or does so as torch never does; "
            "it is damaged"
        )

    def check_total(self, tensors: Mapping[str, FileTensor]) -> None:
        """Tensors may share bytes (tied weights do), but a small file is not to become a large model."""
        size = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
        there = sum(entry.size for entry in self.entries.values())
        if size > 2 * there:
            raise ModelError(f"{self.span.label}: describes {size} bytes of tensors and holds {there}")


def whole_number(value: Value) -> int:
    """The number itself; -1 for what is no number that could count bytes."""
    return value if type(value) is int and 0 <= value < _MAX_NUMBER else -1


def size_of(value: Value) -> tuple[int, ...]:
    """The shape or strides that `value` holds; (-1,) for what is neither."""
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple) or len(value) > MAX_DIMS:
        return (-1,)
    sizes = tuple(whole_number(size) for size in value)
    return (-1,) if -1 in sizes else sizes
