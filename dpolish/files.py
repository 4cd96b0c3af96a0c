"""Files that are complete or absent: what a crash or a full disk leaves is the old file, or none."""

import os
import secrets
from pathlib import Path

from dpolish.errors import RunError


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
