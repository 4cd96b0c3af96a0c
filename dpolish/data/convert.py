"""Any shape of rows to the native JSON lines. Nothing is lost: the file, read again, gives the same records.

preference     prompt, chosen_response, rejected_response[, chosen_reward, rejected_reward]
demonstrations messages, or prompt and completion, or text
both           [tools, chat_template_kwargs]
"""

import gzip
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import orjson
import zstandard

from dpolish.data.formats import FORMATS, SFT_FORMATS, ConversationFile, PairFile, Skipped, detect_any
from dpolish.data.hub import rows_of
from dpolish.data.read import Fault, Faults, Row
from dpolish.data.summary import SHOWN_PLACES, Tally
from dpolish.errors import ConfigError, DataError
from dpolish.files import new_file
from dpolish.records import Conversation, Message, PreferencePair, Prompt, Response, TemplateArguments
from dpolish.registry import did_you_mean

Kind = Literal["preference", "sft"]

_SFT_KEYS = ("messages", "prompt", "completion", "text")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of the rows of a file."""

    source: str
    destination: str
    kind: Kind
    format: str
    """The shape that the rows had."""
    num_rows: int
    num_written: int
    skipped: Mapping[str, Tally]
    """Rows or answers that by their nature give no record, by reason."""
    remarks: Mapping[str, Tally]
    """By kind; these rows are written."""
    extra_columns: tuple[str, ...]
    """Columns that no record was made from."""

    def lines(self) -> list[str]:
        """The summary for a terminal."""
        what = "pair" if self.kind == "preference" else "demonstration"
        columns = [f"  columns not used: {', '.join(self.extra_columns)}"] if self.extra_columns else []
        return [
            f"{self.source}: read as {self.format}, {_counted(self.num_rows, 'row')}",
            f"{self.destination}: {_counted(self.num_written, what)} written",
            *(f"  skipped, {reason}: {tally}" for reason, tally in self.skipped.items()),
            *(f"  {remark}: {tally}" for remark, tally in self.remarks.items()),
            *columns,
        ]


def convert(
    source: str,
    destination: str,
    *,
    format: str | None = None,
    pairs: str = "best_vs_worst",
    kind: Kind | None = None,
    prompt_template: str = "{input} {output}",
    label_key: str = "output",
) -> Converted:
    """Write the records of a file, folder or hub data set as native JSON lines, compressed as the suffix says.

    The new file appears complete or not at all, and never in the place of another one. A DataError names every bad
    row; then nothing is written. `kind` says what the rows are for where `format` and the first row do not tell.
    """
    target = Path(os.path.expanduser(destination))
    _require_new(target)
    kind = kind or _kind_of(source, format)
    file: PairFile | ConversationFile
    if kind == "preference":
        file = PairFile(source, format, pairs)
    else:
        file = ConversationFile(source, format, prompt_template=prompt_template, label_key=label_key)
    written, skipped, first = 0, dict[str, Tally](), ""
    with new_file(target) as raw, _compressed(target, raw) as output:
        for record in _good(file):
            if isinstance(record, Skipped):
                tally = skipped.get(record.reason, Tally(0, ()))
                skipped[record.reason] = Tally(tally.count + 1, (*tally.places, record.where)[:SHOWN_PLACES])
                continue
            row = native_row(record)
            shape = ", ".join(key for key in row if key in _SFT_KEYS)
            first = first or shape
            if shape != first:
                what = f"written as {shape}, where the rows before it are written as {first}"
                raise DataError(f"{record.where}: would be {what}, and a file has one format: split the file first")
            output.write(native_line(record.where, row))
            written += 1
        if not written:
            reasons = "; ".join(f"{reason}: {tally}" for reason, tally in skipped.items())
            raise DataError(f"{source}: no row gives a record, so there is nothing to write ({reasons})")
    assert file.format is not None
    columns = tuple(file.extra_columns)
    return Converted(
        source, destination, kind, file.format.name, file.num_rows, written, skipped, dict(file.remarks), columns
    )


def native_row(record: PreferencePair | Conversation) -> dict[str, object]:
    """A record as the row that is read as it."""
    extras = _extras(record.arguments)
    if isinstance(record, Conversation):
        return {**_demonstration(record), **extras}
    rewards = {"chosen_reward": record.chosen_reward, "rejected_reward": record.rejected_reward}
    return {
        "prompt": _prompt(record.prompt),
        "chosen_response": _response(record.chosen),
        "rejected_response": _response(record.rejected),
        **{key: reward for key, reward in rewards.items() if reward is not None},
        **extras,
    }


def native_line(where: str, row: Mapping[str, object]) -> bytes:
    """A native row as a line of the file; `where` is the place that it came from."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise DataError(f"{where}: cannot be written as JSON: {error}") from error


def _prompt(prompt: Prompt) -> object:
    return prompt if isinstance(prompt, str) else [_message(message) for message in prompt]


def _response(response: Response) -> object:
    if isinstance(response, tuple) and len(response) == 1:
        return _message(response[0])
    return _prompt(response)


def _message(message: Message) -> dict[str, object]:
    more: dict[str, object] = orjson.loads(message.more) if message.more else {}
    return {"role": message.role, "content": message.content, **more}


def _demonstration(record: Conversation) -> dict[str, object]:
    strings = [piece for piece in record.pieces if isinstance(piece, str)]
    if strings:
        names = {(True,): ("text",), (False, True): ("prompt", "completion")}[record.trained]
        return dict(zip(names, strings, strict=True))
    turns = []
    for piece, trained in zip(record.pieces, record.trained, strict=True):
        assert isinstance(piece, Message)
        usual = trained == (piece.role == "assistant")
        turns.append(_message(piece) if usual else {**_message(piece), "weight": int(trained)})
    return {"messages": turns}


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _extras(arguments: TemplateArguments) -> dict[str, object]:
    texts = {"tools": arguments.tools, "chat_template_kwargs": arguments.kwargs}
    return {key: orjson.loads(text) for key, text in texts.items() if text}


def _good(file: PairFile | ConversationFile) -> Iterator[PreferencePair | Conversation | Skipped]:
    """The records of a file; after the last row, a DataError that names every bad one."""
    faults = Faults()
    for item in file.records():
        if isinstance(item, Fault | DataError):
            faults.add(item)
        else:
            yield item
    faults.check()


def _kind_of(source: str, format: str | None) -> Kind:
    """What rows are for, by the name of their shape, or by the first one that has a shape."""
    if format is not None and format not in FORMATS:
        if format not in SFT_FORMATS:
            known = sorted({*FORMATS, *SFT_FORMATS})
            hint = did_you_mean(format, known)
            raise ConfigError(f"unknown row format {format!r}.{hint} Known: {', '.join(known)}.")
        return "sft"
    if format is not None and format not in SFT_FORMATS:
        return "preference"
    for row in rows_of(source):
        if isinstance(row, Row):
            with suppress(DataError):
                return detect_any(row)[0] if format is None else _kind_by(format, row)
    return "preference"


def _kind_by(format: str, row: Row) -> Kind:
    """Of two shapes of one name, the one that a row has."""
    return "preference" if FORMATS[format].fits(row.value) else "sft"


def _require_new(path: Path) -> None:
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(f"{path}: rows are written as JSON lines: name the file *{', *'.join(_SUFFIXES)}")
    if path.exists():
        raise ConfigError(f"{path}: exists, and no file is overwritten: name another, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}: make it first")


@contextmanager
def _compressed(path: Path, file: IO[bytes]) -> Iterator[_Sink]:
    """The file itself, or what compresses into it; equal rows make equal bytes."""
    if path.suffix == ".gz":
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as output:
            yield output
    elif path.suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as output:
            yield output
    else:
        yield file
