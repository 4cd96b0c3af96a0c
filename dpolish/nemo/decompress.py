"""Unpack a compressed archive into a nameless temporary file, within quotas on what a small file may grow to."""

import bz2
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from dpolish.errors import ModelError

MAX_RATIO = 20
"""Trained weights shrink to two thirds at best."""
FREE_GROWTH = 64 << 20
"""Bytes that any archive may grow to, whatever the ratio."""
XZ_MEMORY = 80 << 20
"""Enough for `xz -9`, which wants 65 MiB."""
_IN, _OUT = 1 << 16, 1 << 20
_EMPTY_STREAMS = 16


class Decoder(Protocol):
    """One compressed stream: fed with bytes, it gives at most so many back at a time."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def starving(self) -> bool:
        """It can give nothing more before it is fed again."""
        ...

    def decode(self, data: bytes, limit: int) -> bytes:
        """At most `limit` bytes of what `data`, or what is left of earlier data, stands for."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self.starving = True

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decode(self, data: bytes, limit: int) -> bytes:
        plain = self._stream.decompress(self._stream.unconsumed_tail + data, limit)
        self.starving = len(plain) < limit and not self._stream.unconsumed_tail
        return plain


class _Buffered:
    """bz2 and xz, whose decoders keep by themselves what they have not used yet."""

    def __init__(self, stream: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._stream = stream

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    @property
    def starving(self) -> bool:
        return self._stream.needs_input

    def decode(self, data: bytes, limit: int) -> bytes:
        return self._stream.decompress(data, limit)


def _decoder(start: bytes) -> Decoder | None:
    """A decoder for data that begins so; None where no known compression does."""
    if start.startswith(b"\x1f\x8b"):
        return _Gzip()
    if start.startswith(b"BZh"):
        return _Buffered(bz2.BZ2Decompressor())
    if start.startswith(b"\xfd7zXZ\0"):
        return _Buffered(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY))
    return None


def decompressed(number: int, path: Path) -> int | None:
    """A descriptor of the plain tar inside of the compressed file `number`; None where that is not compressed.

    The caller closes it, and the space is free again then, or when the process ends in whatever way. Raises ModelError.
    """
    start = os.pread(number, 6, 0)
    if start.startswith((b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"\x1f\x9d", b"7z\xbc\xaf")):
        raise ModelError(f"{path}: is compressed in a way that NeMo does not use; unpack it first")
    if _decoder(start) is None:
        return None
    size = os.fstat(number).st_size
    allowed = max(FREE_GROWTH, MAX_RATIO * size)
    with tempfile.TemporaryFile(prefix="dpolish-") as plain:  # has no name: nothing is left behind
        room = shutil.disk_usage(tempfile.gettempdir()).free
        try:
            _unpack(number, plain, allowed, room, path)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise ModelError(f"{path}: cannot be decompressed: {error}. Get it again.") from error
        plain.flush()
        return os.dup(plain.fileno())


def _unpack(number: int, plain: BinaryIO, allowed: int, room: int, path: Path) -> None:
    written = 0
    for block in _plain_blocks(number, path):
        if written == 0 and not _looks_like_tar(block):
            raise ModelError(f"{path}: holds no tar archive under its compression, so it is no .nemo")
        written += len(block)
        if written > allowed:
            raise ModelError(
                f"{path}: grows to more than {allowed >> 20} MiB when it is decompressed, and weights hardly shrink. "
                "If you trust it, unpack it yourself and name the folder."
            )
        if written > room:
            raise ModelError(
                f"{path}: needs more room to be decompressed than {tempfile.gettempdir()} has. "
                "Point TMPDIR at a larger disk, or unpack it yourself and name the folder."
            )
        plain.write(block)


def _looks_like_tar(block: bytes) -> bool:
    return len(block) >= 512 and (block[257:262] == b"ustar" or not any(block[257:265]))


def _plain_blocks(number: int, path: Path) -> Iterator[bytes]:
    """The decompressed bytes, a MiB at most at a time, of one or more streams that follow each other."""
    position, empty = 0, 0
    data = os.pread(number, _IN, position)
    position += len(data)
    while data.strip(b"\0"):
        decoder = _decoder(data if len(data) >= 6 else data + os.pread(number, 6, position))
        if decoder is None:
            raise ModelError(f"{path}: goes on behind its compressed content; get it again")
        gave = False
        while not decoder.eof:
            if decoder.starving and not data:
                data = os.pread(number, _IN, position)
                position += len(data)
                if not data:
                    raise ModelError(f"{path}: ends in the middle of its compressed content; get it again")
            block, data = decoder.decode(data, _OUT), b""
            if block:
                gave = True
                yield block
        empty = 0 if gave else empty + 1
        if empty > _EMPTY_STREAMS:
            raise ModelError(f"{path}: is made of empty compressed parts")
        data = decoder.unused_data
        if not data.strip(b"\0"):
            data = os.pread(number, _IN, position)
            position += len(data)
