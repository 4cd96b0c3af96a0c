"""Rows of `.jsonl`, `.json` and `.parquet` files, also `.gz` and `.zst`, each with its place; every bad row is found.

A file is known by its content, not by its name: magic bytes tell gzip, Zstandard and Parquet, and a JSON list begins
with a bracket. One record is in memory at a time, and none over 16 MiB.
"""

import codecs
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from dpolish.data.inflate import BUFFER_BYTES, BrokenError, is_compressed, open_plain
from dpolish.errors import DataError, join_faults
from dpolish.registry import did_you_mean

MAX_RECORD_BYTES = 16 * 2**20
"""A line, or an element of a list, may not be longer."""

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    where: str
    """`path:line`, counted from 1; `path:row N` in Parquet."""
    value: dict[str, object]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no row here."""

    where: str
    """`path:line`, with `:column` where one is known."""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Faults:
    """Faults found so far: the first ones to the letter, the rest as a number, so that any file is cheap to read on."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self.count = 0

    def add(self, fault: Fault | DataError) -> None:
        """Remember one more."""
        self.count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(str(fault))

    def check(self) -> None:
        """Raise one DataError that tells all of them, if there is any."""
        if self.count:
            raise DataError(join_faults([*self._shown, *[""] * (self.count - len(self._shown))], shown=_SHOWN))


def read_rows(path: str) -> Iterator[Row]:
    """Every row of a file, in order; after the last one, a DataError that names every bad one."""
    faults = Faults()
    for item in scan(path):
        if isinstance(item, Fault):
            faults.add(item)
        else:
            yield item
    faults.check()


def scan(path: str) -> Iterator[Row | Fault]:
    """Every row of a file, and a fault in the place of each that cannot be read. A missing file is a DataError."""
    path = os.path.expanduser(path)
    _require_file(path)
    try:
        stream = open_plain(path)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be opened: {error.strerror}") from error
    empty = True
    with stream:
        for item in _content(path, stream):
            empty = False
            yield item
    if empty:
        yield Fault(f"{path}:1", "no rows here: the file is empty, or holds blank lines or an empty list")


def json_type(value: object) -> str:
    """What JSON calls the type of a value, for messages."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _require_file(path: str) -> None:
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        inside = sorted(os.listdir(path))
        listed = f" it holds {', '.join(inside[:5])}{' …' if len(inside) > 5 else ''}" if inside else " it is empty"
        raise DataError(f"{path}: a folder; name the files in it:{listed}")
    if os.path.exists(path):
        raise DataError(f"{path}: not a regular file; write the rows into one")
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    near = {os.path.join(folder, entry): entry for entry in sorted(os.listdir(folder or "."))}
    hint = did_you_mean(os.path.join(folder, name), near)
    raise DataError(f"{path}: no such file.{hint}")


def _content(path: str, stream: io.BufferedReader) -> Iterator[Row | Fault]:
    try:
        head = stream.peek()
    except (BrokenError, OSError) as error:
        yield Fault(f"{path}:1", str(error))
        return
    if head.startswith(b"PAR1"):
        yield from _parquet_rows(path, stream)
    elif encoding := _wide_encoding(head):
        yield Fault(f"{path}:1", f"the text is in {encoding}; convert it: iconv -f {encoding} -t UTF-8")
    else:
        if head.startswith(codecs.BOM_UTF8):
            head = head.removeprefix(stream.read(len(codecs.BOM_UTF8)))
        yield from _json_rows(path, stream, head)


def _wide_encoding(head: bytes) -> str | None:
    """The name of a Unicode encoding of 16 or 32 bits, by its mark or by the zeros between the first letters."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "UTF-16LE"
    return "UTF-16BE" if zeros == [True, False, True, False] else None


def _json_rows(path: str, stream: io.BufferedReader, head: bytes) -> Iterator[Row | Fault]:
    """A list when the text begins with a bracket, a row per line otherwise; one object over many lines is neither."""
    suffix = Path(path.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    text = head.lstrip()
    blank_lines = head[: len(head) - len(text)].count(b"\n")
    where = f"{path}:{blank_lines + 1}"
    line, newline, _ = text.partition(b"\n")
    whole = _is_json(line)
    if text.startswith(b"[") and suffix != ".jsonl":
        yield from _list_rows(path, stream)
    elif text.startswith(b"[") and not whole:
        yield Fault(where, "one JSON list, where .jsonl means one object per line: name the file .json")
    elif text.startswith(b"{") and suffix == ".json" and newline and not whole and line.strip() == b"{":
        yield Fault(where, "one JSON object: expected a list of rows, [{…}, {…}], or one object per line")
    else:
        yield from _line_rows(path, stream)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


# Lines


def _line_rows(path: str, stream: io.BufferedReader) -> Iterator[Row | Fault]:
    number = 0
    try:
        while line := stream.readline(MAX_RECORD_BYTES + 1):
            number += 1
            if len(line) > MAX_RECORD_BYTES:
                hint = "; its line ends may be CR alone: convert them: tr '\\r' '\\n'" if b"\r" in line[:-2] else ""
                yield Fault(f"{path}:{number}", f"the line is longer than 16 MiB{hint}")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_RECORD_BYTES)
            elif not line.isspace():
                yield _record(path, number, 1, line.rstrip(b"\r\n"), last=not line.endswith(b"\n"))
    except (BrokenError, OSError) as error:
        yield Fault(f"{path}:{number + 1}", str(error))


# Lists

_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[][{},]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Element:
    """What stands between two commas of the outermost list, blanks included, and where its first byte is."""

    raw: bytes
    line: int
    column: int
    end: str
    """What follows: `,` or `]`, or nothing where the input ends first; `behind` marks what stands after the list."""


def _elements(stream: io.BufferedReader) -> Iterator[_Element]:
    """A JSON list, cut at its own commas. What is between them is left to the parser: a bad element is one fault."""
    buffer = stream.read(BUFFER_BYTES)
    start = at = buffer.index(b"[") + 1
    line, column = _moved(1, 1, buffer[:start])
    depth = 0
    while True:
        token = _STRUCTURE.search(buffer, at)
        if token is None or token.group(1) == b"":  # no more structure, or a string that goes on behind the buffer
            at = (token.start() if token else len(buffer)) - start
            buffer, start = buffer[start:], 0
            if len(buffer) > MAX_RECORD_BYTES:
                raise BrokenError("an element of the list is longer than 16 MiB; nothing behind it was read")
            if not (more := stream.read(BUFFER_BYTES)):
                yield _Element(buffer, line, column, "")
                return
            buffer += more
            continue
        symbol, at = token.group(), token.end()
        if depth == 0 and symbol in (b",", b"]"):
            yield _Element(buffer[start : at - 1], line, column, symbol.decode())
            line, column = _moved(line, column, buffer[start:at])
            start = at
            if symbol == b"]":
                break
        elif symbol in (b"{", b"["):
            depth += 1
        elif symbol in (b"}", b"]"):
            depth = max(0, depth - 1)
    rest = buffer[start:]
    while not rest.strip() and (more := stream.read(BUFFER_BYTES)):
        line, column = _moved(line, column, rest)
        rest = more
    yield _Element(rest, line, column, "behind")


def _moved(line: int, column: int, passed: bytes) -> tuple[int, int]:
    """The place behind the bytes `passed`, which begin at the place given; columns count characters."""
    newlines = passed.count(b"\n")
    tail = passed[passed.rfind(b"\n") + 1 :]
    return line + newlines, (1 if newlines else column) + len(tail.decode("utf-8", "replace"))


def _list_rows(path: str, stream: io.BufferedReader) -> Iterator[Row | Fault]:
    line, first = 1, True
    try:
        for element in _elements(stream):
            raw = element.raw.strip()
            line, column = _moved(element.line, element.column, element.raw[: element.raw.find(raw)])
            where = f"{path}:{line}:{column}"
            if element.end == "behind":
                if raw:
                    yield Fault(where, "something stands behind the list: remove it")
            elif raw:
                yield _record(path, line, column, raw, last=not element.end)
            elif element.end == "," or (element.end == "]" and not first):
                yield Fault(where, "a comma with no row on one side of it: remove it")
            if not element.end:
                yield Fault(where, "the list is not closed with ]: is the file truncated?")
            first = False
    except (BrokenError, OSError) as error:
        yield Fault(f"{path}:{line}", str(error))


# One record

_KEY = re.compile(rb'"[ \t\r\n]*:')


def _record(path: str, line: int, column: int, raw: bytes, *, last: bool) -> Row | Fault:
    """One JSON object; `last` where the input ends with it and might have been cut."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        fault = _syntax_fault(path, line, column, raw, error)
        return replace(fault, what=f"{fault.what}; the file ends here: is it truncated?") if last else fault
    where = f"{path}:{line}"
    if not isinstance(value, dict):
        hint = "; a file that is one list is named .json" if isinstance(value, list) else ""
        return Fault(where, f"expected a JSON object, got {json_type(value)}{hint}")
    # Every key ends in this pattern, and so may other text: equal counts prove that no object has a key twice.
    if len(_KEY.findall(raw)) != _num_keys(value) and (key := _repeated_key(raw)) is not None:
        return Fault(where, f"the key {key!r} stands twice in one object, and only one of its values could be used")
    return Row(where, value)


def _num_keys(value: object) -> int:
    count, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            count += len(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return count


def _repeated_key(raw: bytes) -> str | None:
    repeated: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        repeated.extend(key for key in keys if keys.count(key) > 1)

    try:
        json.loads(raw, object_pairs_hook=note)
    except RecursionError:
        return "… (nested too deep to tell)"
    return repeated[0] if repeated else None


def _syntax_fault(path: str, line: int, column: int, raw: bytes, error: orjson.JSONDecodeError) -> Fault:
    """What is wrong with a record that is not JSON, and where exactly."""
    try:
        text = raw.decode()
        before, after = text[: error.pos], text[error.pos :]
        what = _syntax_error(before, after, error.msg)
    except UnicodeDecodeError as bad:
        before = raw[: bad.start].decode()
        what = (
            f"byte {bad.start + 1} of the record is 0x{raw[bad.start]:02X}, which is not UTF-8; "
            "convert a file in Latin-1 or Windows-1252: iconv -f WINDOWS-1252 -t UTF-8"
        )
    line, column = _moved(line, column, before.encode())
    return Fault(f"{path}:{line}:{column}", what)


def _syntax_error(before: str, after: str, message: str) -> str:
    if after.startswith("\0"):
        return "a raw NUL byte: remove it, or write it as \\u0000 within a string"
    if literal := re.match(r"-?(NaN|Infinity)", "-" * before.endswith("-") + after):
        return f"{literal.group()} is not JSON: write a number, or leave the field out"
    if before.rstrip(" \t").endswith("\r") and _is_json(before.encode()):
        return "a second row on the same line: the line ends are CR alone; convert them: tr '\\r' '\\n'"
    if re.search(r"\\u[dD][89a-fA-F]\w*$", (before + after[:6])[-12:]):
        return "an escape \\uD800 … \\uDFFF without its other half is no character: remove it"
    if before.count("{") + before.count("[") > 1000:
        return "objects or lists are nested more than 1,000 deep"
    near = before[-20:] + after[:20]
    return f"not valid JSON: {message}, near {near!r}"


# Parquet


def _parquet_rows(path: str, stream: io.BufferedReader) -> Iterator[Row | Fault]:
    try:
        import pyarrow  # deferred: heavy, and only for this
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    number = 0
    try:
        with tempfile.TemporaryFile() as plain:
            if is_compressed(stream):  # Parquet is read from its end
                shutil.copyfileobj(stream, plain, BUFFER_BYTES)
            table = parquet.ParquetFile(plain if is_compressed(stream) else path)
            names = table.schema_arrow.names
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                yield Fault(f"{path}:row 1", f"two columns are named {', '.join(repeated)}: rename or drop one")
                return
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:row {number}", value)
    except (BrokenError, OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        yield Fault(f"{path}:row {number + 1}", f"the Parquet file cannot be read from here on: {error}")
