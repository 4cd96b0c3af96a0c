"""sha256 of files, remembered as long as the files are untouched.

A remembered digest holds for a file of the same path, size, times and inode. The kernel sets the change time, and no
program can set it back; a file that was still being changed when it was hashed is hashed again.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from dpolish.errors import ModelError, RunError
from dpolish.files import write_atomically

_SETTLED_NANOSECONDS = 2 * 10**9
"""Some file systems count in seconds: within two, a second change may leave the same times."""
_BLOCK = 1 << 22


def files_of(path: Path) -> dict[str, Path]:
    """The plain files at `path` by name: the file itself under "", or all below a folder. Raises ModelError."""
    if not path.is_dir():
        return {"": path}
    found: dict[str, Path] = {}
    for folder, _, names in os.walk(path, onerror=_unreadable):
        for name in names:
            file = Path(folder, name)
            found[file.relative_to(path).as_posix()] = file
    return dict(sorted(found.items()))


def _unreadable(error: OSError) -> None:
    raise ModelError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def digests(files: Mapping[str, Path], memory: Path | None, hashed: Callable[[int], None]) -> dict[str, str]:
    """sha256 of each file by name. `memory` is where they are remembered; `hashed` is told the bytes that were read.

    Raises ModelError for a file that cannot be read, or is no plain file.
    """
    remembered = _remembered(memory)
    found: dict[str, str] = {}
    kept: dict[str, list[object]] = {}
    for name, file in files.items():
        details = _details(file)
        state = [str(file.absolute()), details.st_size, details.st_mtime_ns, details.st_ctime_ns, details.st_ino]
        entry = remembered.get(name)
        if isinstance(entry, list) and entry[:-1] == state and isinstance(entry[-1], str):
            found[name] = entry[-1]
            hashed(details.st_size)
        else:
            found[name] = _sha256(file, hashed)
        if max(details.st_mtime_ns, details.st_ctime_ns) + _SETTLED_NANOSECONDS < time.time_ns():
            kept[name] = [*state, found[name]]
    if memory is not None and kept != remembered:
        with suppress(OSError, RunError):  # what cannot be remembered is computed again
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(kept))
    return found


def _details(file: Path) -> os.stat_result:
    try:
        details = file.stat()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(details.st_mode):
        raise ModelError(f"{file}: is not a plain file")
    return details


def _remembered(memory: Path | None) -> dict[str, object]:
    if memory is None:
        return {}
    try:
        value = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha256(file: Path, hashed: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
                hashed(len(block))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
