"""Members into an uncompressed tar, as NeMo packs them: names start with `./`, and the first is the folder itself.

Equal members give equal bytes: owner, time and mode are fixed.
"""

import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

_COPY_BYTES = 16 << 20


class Sink(Protocol):
    """What a member's bytes are written to."""

    def write(self, data: "bytes | memoryview", /) -> int:
        """Take all of `data`."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive whose size is known before its content is."""

    name: str
    """Path inside the archive, without the leading `./`."""
    size: int
    write: Callable[[Sink], None]
    """Writes exactly `size` bytes."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the archive."""

    name: str


Entry = Member | Folder


def in_memory(name: str, content: bytes) -> Member:
    """A member with content that is at hand."""
    return Member(name, len(content), lambda sink: _write_all(sink, content))


def write_tar(file: BinaryIO, entries: Iterable[Entry], wrote: Callable[[int], None]) -> None:
    """Write the archive; `wrote` is told the bytes of content as they go out."""
    file.write(_header("./", tarfile.DIRTYPE, 0, 0o700))
    size = tarfile.BLOCKSIZE
    for entry in entries:
        if isinstance(entry, Folder):
            header = _header(f"./{entry.name}/", tarfile.DIRTYPE, 0, 0o755)
            size += file.write(header)
            continue
        size += file.write(_header(f"./{entry.name}", tarfile.REGTYPE, entry.size, 0o644))
        counted = _Counted(file, wrote)
        entry.write(counted)
        assert counted.count == entry.size, f"{entry.name}: {counted.count} bytes, {entry.size} announced"
        size += entry.size + file.write(bytes(-entry.size % tarfile.BLOCKSIZE))
    file.write(bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))


def _header(name: str, kind: bytes, size: int, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.uname, info.gname = kind, size, mode, "root", "root"
    return info.tobuf(tarfile.PAX_FORMAT)


def _write_all(sink: Sink, content: bytes) -> None:
    sink.write(content)


class _Counted:
    """A sink that passes on what it gets in pieces, so that progress is seen inside a large tensor."""

    def __init__(self, file: BinaryIO, wrote: Callable[[int], None]) -> None:
        self._file, self._wrote = file, wrote
        self.count = 0

    def write(self, data: bytes | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _COPY_BYTES):
            piece = view[start : start + _COPY_BYTES]
            self._file.write(piece)
            self._wrote(len(piece))
        self.count += len(view)
        return len(view)
