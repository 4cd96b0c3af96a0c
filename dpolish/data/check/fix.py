"""The clean file: training rows that no finding takes out, as native JSONL, and a list of those that went."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from dpolish.data.check.report import Fixed
from dpolish.data.check.source import SKIPPED, Options, refusal, rows
from dpolish.data.convert import native_row
from dpolish.data.formats import Skipped
from dpolish.errors import ConfigError, DataError
from dpolish.files import new_file
from dpolish.records import Conversation, PreferencePair

_SHAPES = {"prompt", "completion", "text", "messages"}
"""Keys that tell the native shapes of demonstrations from each other; a file has one."""


def require_new(path: Path) -> None:
    """Raise a ConfigError unless the clean file and its list can be made here without touching another file."""
    if path.suffix != ".jsonl":
        raise ConfigError(f"--fix {path}: the clean file is JSONL: name it {path.stem or 'clean'}.jsonl")
    for made in (path, list_path(path)):
        if made.exists():
            raise ConfigError(f"--fix {path}: {made} exists, and no file is overwritten: name another, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"--fix {path}: there is no folder {path.parent}")


def list_path(path: Path) -> Path:
    """Where the list of what was left out stands: clean.jsonl has clean.dropped.jsonl."""
    return path.with_suffix(".dropped.jsonl")


def write_clean(path: Path, files: Sequence[str], options: Options, flags: bytes, reasons: Sequence[str]) -> Fixed:
    """Read the files again and write the records without a flag; the two files appear complete, or not at all."""
    dropped = Counter[str]()
    seen, kept, shape = 0, 0, set[str]()
    with new_file(list_path(path)) as left_out, new_file(path) as clean:
        for file in files:
            for item in rows(options.open(file)):
                if isinstance(item, PreferencePair | Conversation):
                    if seen == len(flags):
                        raise DataError(f"{file}: the file has grown since it was read: start again")
                    flag, seen = flags[seen], seen + 1
                    if not flag:
                        row, kept = native_row(item), kept + 1
                        if (keys := row.keys() & _SHAPES) != (shape := shape or keys):
                            raise ConfigError(f"--fix {path}: {file} has other rows than {files[0]}: mend each alone")
                        clean.write(_line(row))
                        continue
                    where, kind, detail = item.where, reasons[flag - 1], ""
                elif isinstance(item, Skipped):
                    where, kind, detail = item.where, SKIPPED.kind, item.reason
                else:
                    check, where, detail = refusal(item, file)
                    kind = check.kind
                dropped[kind] += 1
                left_out.write(_line({"where": where, "kind": kind, "detail": detail}))
        if seen < len(flags):
            raise DataError(f"{files[-1]}: the files have shrunk since they were read: start again")
    return Fixed(str(path), kept, dict(dropped), str(list_path(path)))


def _line(row: Mapping[str, object]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
