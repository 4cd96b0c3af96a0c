"""The files of a checkpoint, each read in place: of a `.nemo` archive, compressed or not, or of an unpacked folder.

Nothing is ever unpacked under a name that the archive chose. A plain tar is read where it lies; a compressed one is
first unpacked, within quotas, into one nameless temporary file.
"""

import os
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from dpolish.errors import ModelError
from dpolish.nemo.decompress import decompressed
from dpolish.nemo.tar_plan import MAX_MEMBERS, MAX_NAME_BYTES, plan_tar, quoted, valid_name

MAX_DEPTH = 12
"""Folders within folders; a genuine checkpoint has three."""


class Source(Protocol):
    """Bytes that stand at offsets of one open file."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """How many bytes of `buffer` were filled from `offset` on; fewer only at the end. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open file that is kept open."""

    number: int

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`, in as many reads as the system needs."""
        filled = 0
        while filled < len(buffer):
            count = os.preadv(self.number, [buffer[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return filled


@dataclass(frozen=True, slots=True)
class LooseFile:
    """A file of a folder, opened for each read: a zarr folder has more files than a process may hold open."""

    path: str

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`, unless a link or a device has taken the file's place."""
        number = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise OSError("it is no longer a plain file")
            return Descriptor(number).read_at(buffer, offset)
        finally:
            os.close(number)


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes of a file from `start` on, known to messages as `label`. No read leaves it."""

    source: Source
    label: str
    start: int
    size: int

    def read_into(self, buffer: memoryview, offset: int = 0) -> None:
        """Fill all of `buffer` from `offset` of the span on. Raises ModelError where the bytes are not there."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise ModelError(
                f"{self.label}: bytes {offset} to {offset + len(buffer)} are wanted, and it has {self.size}. "
                "It is damaged; get it again."
            )
        try:
            filled = self.source.read_at(buffer, self.start + offset)
        except OSError as error:
            raise ModelError(f"{self.label}: cannot be read: {error.strerror or error}") from error
        if filled < len(buffer):
            raise ModelError(f"{self.label}: ends early. It was cut short or changed while it was read; get it again.")

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on."""
        if offset < 0 or length < 0 or offset + length > self.size:  # before the memory is taken
            raise ModelError(f"{self.label}: {length} bytes at {offset} are wanted, and it has {self.size}")
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_all(self, limit: int) -> bytes:
        """The whole span. Raises ModelError where it is longer than `limit`."""
        if self.size > limit:
            raise ModelError(f"{self.label}: is {self.size} bytes long; a genuine one has at most {limit}")
        return self.read(0, self.size)

    def part(self, offset: int, size: int, label: str) -> "Span":
        """The span of `size` bytes at `offset` of this one."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ModelError(f"{label}: lies outside of its file ({offset} + {size} of {self.size} bytes)")
        return Span(self.source, label, self.start + offset, size)


class Archive:
    """The files of one checkpoint by their names (`model_weights/metadata.json`), all known before any is read."""

    def __init__(
        self, path: Path, names: dict[str, int], size_of: Callable[[int], int], span_of: Callable[[str, int], Span],
        close: Callable[[], None],
    ) -> None:  # fmt: skip
        self.path = path
        self._names, self._size_of, self._span_of, self._close = names, size_of, span_of, close

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. Spans must not be read afterwards."""
        self._close()

    def size(self, name: str) -> int:
        """The size in bytes of the file of this name."""
        return self._size_of(self._names[name])

    def under(self, folder: str) -> list[str]:
        """The names of all files below `folder` (which ends in a slash)."""
        return [name for name in self._names if name.startswith(folder)]

    def span(self, name: str) -> Span:
        """The bytes of the file of this name. Raises ModelError where there is none."""
        if name not in self._names:
            raise ModelError(f"{self.path}: has no {quoted(name)}. It is incomplete; get it again.")
        return self._span_of(name, self._names[name])


def open_archive(path: Path) -> Archive:
    """The files of the checkpoint at `path`, an archive or a folder, all names and sizes checked. Raises ModelError."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _open_folder(path)
        if stat.S_ISREG(mode):
            return _open_tar(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise ModelError(f"{path}: is neither a file nor a folder; name a .nemo archive or the folder it was unpacked to")


def _open_tar(path: Path) -> Archive:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        plain = decompressed(number, path)
        if plain is not None:
            os.close(number)
            number = plain
        source = Descriptor(number)
        names, offsets, sizes = plan_tar(source.read_at, os.fstat(number).st_size, path)
    except BaseException:
        os.close(number)
        raise

    def span(name: str, index: int) -> Span:
        return Span(source, f"{path}: {quoted(name)}", offsets[index], sizes[index])

    return Archive(path, names, sizes.__getitem__, span, lambda: os.close(number))


def _open_folder(root: Path) -> Archive:
    names: dict[str, int] = {}
    sizes = array("Q")
    paths: dict[str, str] = {}  # only where a link leads elsewhere in the folder
    for name, target, size in _walk(root):
        if target is not None:
            paths[name] = target
        names[name] = len(sizes)
        sizes.append(size)

    def span(name: str, index: int) -> Span:
        return Span(LooseFile(paths.get(name, str(root / name))), f"{root}: {quoted(name)}", 0, sizes[index])

    return Archive(root, names, sizes.__getitem__, span, lambda: None)


def _walk(root: Path) -> Iterator[tuple[str, str | None, int]]:
    """(name, where a link leads, size) of every file below `root`; refuses what no checkpoint holds."""
    real_root = os.path.realpath(root)
    waiting, members, name_bytes = [""], 0, 0
    while waiting:
        folder = waiting.pop()
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = valid_name(f"{folder}{entry.name}", root)
                members, name_bytes = members + 1, name_bytes + len(name)
                if members > MAX_MEMBERS or name_bytes > MAX_NAME_BYTES:
                    raise ModelError(f"{root}: holds more than {MAX_MEMBERS} files; no checkpoint does")
                if entry.is_dir(follow_symlinks=False):
                    if name.count("/") + 1 >= MAX_DEPTH:
                        raise ModelError(f"{root}: {quoted(name)} lies deeper than {MAX_DEPTH} folders")
                    waiting.append(f"{name}/")
                    continue
                target = _inside(entry, name, root, real_root) if entry.is_symlink() else None
                details = entry.stat(follow_symlinks=target is not None)
                if not stat.S_ISREG(details.st_mode):
                    raise ModelError(f"{root}: {quoted(name)} is neither a plain file nor a folder; remove it")
                yield name, target, details.st_size


def _inside(entry: os.DirEntry[str], name: str, root: Path, real_root: str) -> str:
    """Where a link leads: a plain file of the same folder. Raises ModelError for any other."""
    target = os.path.realpath(entry.path)
    if os.path.commonpath([target, real_root]) != real_root:
        raise ModelError(
            f"{root}: {quoted(name)} is a link that leads out of the folder. "
            f"If you trust it, copy the files themselves: cp -rL {root} COPY"
        )
    if not os.path.isfile(target):
        raise ModelError(f"{root}: {quoted(name)} is a link that does not lead to a file; remove it")
    return target
