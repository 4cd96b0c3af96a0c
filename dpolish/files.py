"""Files that are complete or absent: what a crash or a full disk leaves is the old file, or none."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dpolish.errors import ConfigError, RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Put `content` (text as UTF-8) at `path` in one step, durably; a failure leaves what was there, and is a RunError.

    The bytes reach the disk before the name does, and the name before this returns.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # beside it: a rename must not cross disks
    try:
        try:
            with temporary.open("xb") as file:  # a plain open, so that the umask decides who may read
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write that has its name only once it is complete and on the disk.

    It takes another's place only to `overwrite` it. Raises ConfigError where there is a file by then, RunError where it
    cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike a rename, it fails where there is a file
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{path}: was made by something else meanwhile, and no file is overwritten") from error
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


def cache_root() -> Path:
    """Where what can be made again lies: `$DPOLISH_CACHE`, else `$XDG_CACHE_HOME/dpolish`, else `~/.cache/dpolish`."""
    chosen = os.environ.get("DPOLISH_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpolish"


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> str:
    """The message for a file that could not be written: where, why, and what to do."""
    return f"{path}: cannot be written: {error.strerror or error}. Free space or mend the permissions, and start again."
