"""The entries of a zip archive that torch wrote, each a span of the file: stored as they are, and read in place."""

import struct
from itertools import pairwise

from dpolish.errors import ModelError
from dpolish.nemo.archive import Span
from dpolish.nemo.tar_plan import quoted

MAX_ENTRIES = 65_536
MAX_DIRECTORY = 16 << 20
"""Bytes of the list of entries; each takes 46 and its name."""

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MOST = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
"""What the first end record has for numbers that only the wide one can hold."""
_TAIL = 22 + 65_535
"""The end record and the longest comment behind it."""


def zip_entries(span: Span) -> dict[str, Span]:
    """The stored bytes of every entry by its name. Raises ModelError for anything but what torch writes.

    The list at the end and the header before each entry must agree, and no two entries may share a byte: readers that
    trust one or the other would otherwise see different files.
    """
    count, size, start = _end_record(span)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY or start + size > span.size:
        raise ModelError(f"{span.label}: claims to hold {count} entries; it is damaged or no checkpoint")
    directory = span.read(start, size)
    entries: dict[str, Span] = {}
    used: list[tuple[int, int]] = []
    position = 0
    for _ in range(count):
        name, header, length, position = _directory_entry(directory, position, span)
        if name in entries:
            raise ModelError(f"{span.label}: holds {quoted(name)} twice")
        data = _data_start(span, header, name)
        if data + length > start:
            raise ModelError(f"{span.label}: {quoted(name)} lies outside of it; it is damaged")
        entries[name] = span.part(data, length, f"{span.label}: {quoted(name)}")
        used.append((header, data + length))
    used.sort()
    if any(end > following for (_, end), (following, _) in pairwise(used)):
        raise ModelError(f"{span.label}: holds entries that overlap; no checkpoint does")
    return entries


def _end_record(span: Span) -> tuple[int, int, int]:
    """(number of entries, size and start of their list), from the end of the file."""
    tail = span.read(max(0, span.size - _TAIL), min(span.size, _TAIL))
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise ModelError(f"{span.label}: is no whole torch file: its end is missing. Get it again.")
    _, _, _, _, count, size, start, comment = struct.unpack("<4s4H2LH", tail[at : at + 22])
    if at + 22 + comment != len(tail):
        raise ModelError(f"{span.label}: goes on behind its end; it is damaged")
    end = span.size - len(tail) + at
    if end >= 20 and span.read(end - 20, 4) == _LOCATOR64:
        data = span.read(int.from_bytes(span.read(end - 12, 8), "little"), 56)
        if data[:4] != _END64:
            raise ModelError(f"{span.label}: has a damaged end; get it again")
        wide = struct.unpack("<QQQ", data[32:56])
        if any(one not in (two, most) for one, two, most in zip((count, size, start), wide, _MOST, strict=True)):
            raise ModelError(f"{span.label}: has two ends that differ; readers would see different files")
        count, size, start = wide
    return count, size, start


def _directory_entry(directory: bytes, position: int, span: Span) -> tuple[str, int, int, int]:
    """(name, where the entry's header is, its length, where the next one of the list is)."""
    fixed = directory[position : position + 46]
    if len(fixed) < 46 or fixed[:4] != b"PK\x01\x02":
        raise ModelError(f"{span.label}: has a damaged list of entries; get it again")
    flags, method = struct.unpack("<HH", fixed[8:12])
    packed, length, names, extras, comments = struct.unpack("<LLHHH", fixed[20:34])
    (header,) = struct.unpack("<L", fixed[42:46])
    variable = directory[position + 46 : position + 46 + names + extras + comments]
    if len(variable) < names + extras + comments:
        raise ModelError(f"{span.label}: has a damaged list of entries; get it again")
    name = variable[:names].decode(errors="replace")
    if flags & 1 or method != 0:
        raise ModelError(f"{span.label}: {quoted(name)} is compressed or encrypted, which torch never does")
    if 0xFFFFFFFF in (packed, length, header):
        length, packed, header = _wide(variable[names : names + extras], length, packed, header, span)
    if packed != length:
        raise ModelError(f"{span.label}: {quoted(name)} has two sizes, {packed} and {length}; it is damaged")
    return name, header, length, position + 46 + names + extras + comments


def _wide(extra: bytes, length: int, packed: int, header: int, span: Span) -> tuple[int, int, int]:
    """(length, packed length, header) with those that need 64 bits taken from the extra field."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == 1:
            numbers = iter(struct.unpack(f"<{min(size, len(extra) - 4) // 8}Q", extra[4 : 4 + size // 8 * 8]))
            wide = [next(numbers, value) if value == 0xFFFFFFFF else value for value in (length, packed, header)]
            return wide[0], wide[1], wide[2]
        extra = extra[4 + size :]
    raise ModelError(f"{span.label}: has a damaged list of entries; get it again")


def _data_start(span: Span, header: int, name: str) -> int:
    """Where the bytes of the entry begin, behind a header that bears the same name."""
    fixed = span.read(header, 30)
    names, extras = int.from_bytes(fixed[26:28], "little"), int.from_bytes(fixed[28:30], "little")
    if fixed[:4] != b"PK\x03\x04" or span.read(header + 30, names).decode(errors="replace") != name:
        raise ModelError(f"{span.label}: {quoted(name)} is not where its list of entries says; it is damaged")
    return header + 30 + names + extras
