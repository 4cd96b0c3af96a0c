"""The plain bytes of a file, gzip and Zstandard undone: piece by piece, checked to the end, and within a sane ratio."""

import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 2**20

_PIECE_BYTES = 512  # of compressed input: the most hostile piece of Zstandard then yields some 16 MiB, not gigabytes
_FREE_BYTES = 64 * 2**20
_MAX_RATIO = 200  # text shrinks by 3 to 30


class BrokenError(Exception):
    """The plain bytes cannot be had; the message says why and what to do."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_CODECS: dict[bytes, tuple[str, Callable[[], _Decompressor]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"\x28\xb5\x2f\xfd": ("Zstandard", lambda: zstandard.ZstdDecompressor().decompressobj()),
}


def open_plain(path: str) -> io.BufferedReader:
    """The content of a file, inflated when its first bytes say that it is compressed; the name does not matter."""
    raw = io.FileIO(path)
    magic = raw.read(4)
    raw.seek(0)
    for start, (name, new) in _CODECS.items():
        if magic.startswith(start):
            return io.BufferedReader(_Inflater(raw, name, new), BUFFER_BYTES)
    return io.BufferedReader(raw, BUFFER_BYTES)


def is_compressed(stream: io.BufferedReader) -> bool:
    """Whether these bytes come out of a decompressor, so that one can only read on."""
    return isinstance(stream.raw, _Inflater)


class _Inflater(io.RawIOBase):
    """One member of compressed data behind the other, as one stream."""

    def __init__(self, file: io.FileIO, name: str, new: Callable[[], _Decompressor]) -> None:
        self._file, self._name, self._new = file, name, new
        self._member = new()
        self._pending = b""
        self._ready = memoryview(b"")
        self._num_in = self._num_out = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target) and (self._ready or self._inflate_more()):
            size = min(len(target) - filled, len(self._ready))
            target[filled : filled + size] = self._ready[:size]
            self._ready = self._ready[size:]
            filled += size
        return filled

    def _inflate_more(self) -> bool:
        """Whether the compressed data went on; `_ready` may be empty all the same."""
        piece = self._pending or self._file.read(_PIECE_BYTES)
        self._pending = b""
        if self._member.eof and piece.strip(b"\0"):  # a further member; zeros are padding
            self._member = self._new()
        if not piece:
            if not self._member.eof:
                raise BrokenError(f"the {self._name} data breaks off: the file is truncated; fetch or write it again")
            return False
        if not self._member.eof:
            try:
                self._ready = memoryview(self._member.decompress(piece))
            except (zlib.error, zstandard.ZstdError) as error:
                what = f"the {self._name} data is corrupt from here on ({error}); fetch or write the file again"
                raise BrokenError(what) from error
            self._pending = self._member.unused_data
            self._num_in += len(piece) - len(self._pending)
            self._num_out += len(self._ready)
            if self._num_out > _FREE_BYTES + _MAX_RATIO * self._num_in:
                raise BrokenError(
                    f"the {self._name} data grows more than {_MAX_RATIO}-fold, as no text does: "
                    "if it is meant, decompress the file first"
                )
        return True
