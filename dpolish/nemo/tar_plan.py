"""Where every member of a tar lies, found and checked before any is read.

Headers are read by hand, because `tarfile` takes memory as a header asks for it and accepts what no checkpoint holds.
Plain files and folders pass, once each; links, devices, sparse files, absolute names, `..`, and anything behind the end
mark do not. Names longer than a header are understood in both ways, GNU's and POSIX's, and sizes over 8 GiB.
"""

import os
from array import array
from collections.abc import Callable
from pathlib import Path

from dpolish.errors import ModelError

BLOCK = 512
MAX_MEMBERS = 200_000
"""The largest zarr checkpoints, one file per layer and shard, have some ten thousand."""
MAX_NAME_BYTES = 24 << 20
MAX_NAME = 1024
MAX_EXTENSION = 16 << 10
"""Bytes of a header that extends the next one, for a long name or size."""
MAX_PADDING = 1 << 20
"""Zeros behind the end mark; writers fill up to 10 KiB or so."""

_END = bytes(BLOCK)
_LINKS = {b"1": "a hard link", b"2": "a symbolic link", b"K": "a link"}
_DEVICES = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file", b"M": "a part of a split file"}

ReadAt = Callable[[memoryview, int], int]


def quoted(name: str) -> str:
    """A name from a file, short and safe to show on a terminal."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")


def valid_name(name: str, path: Path) -> str:
    """The name itself. Raises ModelError for one that could mean a file elsewhere, or that differs between systems."""
    parts = name.split("/")
    if len(name) > MAX_NAME or any(part in ("", ".", "..") or len(os.fsencode(part)) > 255 for part in parts):
        raise ModelError(f"{path}: holds a file named {quoted(name)}: names must stay inside of the archive")
    if "\\" in name or ":" in parts[0] or not name.isprintable():
        raise ModelError(f"{path}: holds a file named {quoted(name)}, with characters that no checkpoint uses")
    return name


def plan_tar(read_at: ReadAt, size: int, path: Path) -> tuple[dict[str, int], "array[int]", "array[int]"]:
    """(name → index, offsets, sizes) of all plain files of the tar of `size` bytes. Raises ModelError.

    Arrays and not records: 200,000 members then take 40 MB.
    """
    names: dict[str, int] = {}
    offsets, sizes = array("Q"), array("Q")
    folders: set[str] = set()
    position, members, name_bytes = 0, 0, 0
    extended: dict[str, str] = {}
    while (header := _block(read_at, position, size, path)) != _END:
        kind, length = header[156:157], _header_size(header, position, path)
        position += BLOCK
        if kind in b"xgL":
            extended |= _extension(kind, _data(read_at, position, length, size, path), path)
            position += -(-length // BLOCK) * BLOCK
            continue
        if "size" in extended:
            length = _decimal(extended.pop("size"), path)
        name = extended.pop("path", None) or _header_name(header, path)
        folder = kind == b"5" or (kind in b"\0" and name.endswith("/"))
        name = name.removeprefix("./").removesuffix("/")
        if name not in ("", "."):
            valid_name(name, path)
        elif not folder:
            raise ModelError(f"{path}: holds a file without a name")
        _check_kind(kind, name, folder, length, path)
        members, name_bytes = members + 1, name_bytes + len(name)
        if members > MAX_MEMBERS or name_bytes > MAX_NAME_BYTES:
            raise ModelError(f"{path}: holds more than {MAX_MEMBERS} files or {MAX_NAME_BYTES >> 20} MiB of names")
        if folder:
            folders.add(name)
            continue
        if position + length > size:
            raise ModelError(f"{path}: ends in the middle of {quoted(name)}. It is not whole; get it again.")
        if name in names:
            raise ModelError(f"{path}: holds {quoted(name)} twice, and readers would differ about which one counts")
        names[name] = len(offsets)
        offsets.append(position)
        sizes.append(length)
        position += -(-length // BLOCK) * BLOCK
    _check_padding(read_at, position, size, path)
    _check_tree(names, folders, path)
    return names, offsets, sizes


def _block(read_at: ReadAt, position: int, size: int, path: Path) -> bytes:
    if position == 0 and size < BLOCK:
        raise ModelError(f"{path}: is no tar archive, so no .nemo")
    if position + BLOCK > size:
        raise ModelError(f"{path}: ends without the end mark of an archive. It is not whole; get it again.")
    return _read(read_at, position, BLOCK, path)


def _read(read_at: ReadAt, position: int, length: int, path: Path) -> bytes:
    buffer = bytearray(length)
    if read_at(memoryview(buffer), position) < length:
        raise ModelError(f"{path}: became shorter while it was read")
    return bytes(buffer)


def _data(read_at: ReadAt, position: int, length: int, size: int, path: Path) -> bytes:
    if length > MAX_EXTENSION or position + length > size:
        raise ModelError(f"{path}: holds an extended header of {length} bytes; a genuine one has a few hundred")
    return _read(read_at, position, length, path)


def _header_size(header: bytes, position: int, path: Path) -> int:
    """The size of the member, from a header whose checksum is right."""
    wrong = ModelError(
        f"{path}: is no tar archive, so no .nemo"
        if position == 0
        else f"{path}: has a damaged header at byte {position}; get it again"
    )
    claimed = _number(header[148:156])
    if claimed is None or claimed != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise wrong
    length = _number(header[124:136])
    if length is None:
        raise wrong
    return length


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's binary form for what has too many of them; None where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if all(byte in b"01234567" for byte in digits) else None


def _decimal(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ModelError(f"{path}: has a header with the size {quoted(text)}")
    return int(text)


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: holds a file whose name is no UTF-8: {data[:80]!r}") from error


def _header_name(header: bytes, path: Path) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name, path)


def _extension(kind: bytes, data: bytes, path: Path) -> dict[str, str]:
    """The name and size that an extended header gives to the next member."""
    if kind == b"L":
        return {"path": _text(data.split(b"\0", 1)[0], path)}
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, _, _ = data[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record, rest = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(data):
            raise ModelError(f"{path}: has a damaged extended header; get it again")
        if key.startswith(b"GNU.sparse"):
            raise ModelError(f"{path}: holds a sparse file; pack the folder again without --sparse")
        if key in (b"path", b"size"):
            if kind == b"g":
                raise ModelError(f"{path}: has a header that gives all its members one {key.decode()}")
            found[key.decode()] = _text(value[:-1], path)
        data = rest
    return found


def _check_kind(kind: bytes, name: str, folder: bool, length: int, path: Path) -> None:
    if folder and length == 0:
        return
    if kind in (b"0", b"\0") and not folder:
        return
    what = _LINKS.get(kind) or _DEVICES.get(kind) or ("a folder with content" if folder else f"of the kind {kind!r}")
    raise ModelError(f"{path}: {quoted(name)} is {what}; a checkpoint holds plain files and folders alone")


def _check_padding(read_at: ReadAt, position: int, size: int, path: Path) -> None:
    rest = size - position
    if rest > MAX_PADDING or any(_read(read_at, position, rest, path)):
        raise ModelError(f"{path}: goes on behind its end mark, where some readers would find other files")


def _check_tree(names: dict[str, int], folders: set[str], path: Path) -> None:
    """No name is both a file and a folder."""
    for name in names:
        parent = name
        while parent := parent.rpartition("/")[0]:
            if parent in names:
                raise ModelError(f"{path}: {quoted(parent)} is both a file and a folder")
        if name in folders:
            raise ModelError(f"{path}: {quoted(name)} is both a file and a folder")
