"""Where a conversion goes: a file or a folder that is complete or absent, and never takes another's place unasked."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from dpolish.errors import ConfigError, RunError
from dpolish.files import cannot_write, new_file, sync_directory

Show: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far something is: label and total, to a function that is told how much more is done."""

_SHOWN_FROM = 50 * 10**6


@contextmanager
def megabytes(show: Show, label: str, total: int, shown_from: int = _SHOWN_FROM) -> Iterator[Callable[[int], None]]:
    """A function that is told bytes, of which `show` gets megabytes; what is below `shown_from` is done at once."""
    if total < shown_from:
        yield lambda _: None
        return
    with show(f"{label} (MB)", total // 10**6) as advance:
        done = shown = 0

        def add(count: int) -> None:
            nonlocal done, shown
            done += count
            now = min(done, total) // 10**6  # a configuration beside the weights is not worth counting
            if now > shown:
                advance(now - shown)
                shown = now

        yield add


def require_free(path: Path, overwrite: bool) -> None:
    """Raise ConfigError where something stands at `path` that may not be replaced, or no folder to put it in."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}: make it first")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise ConfigError(f"{path}: exists, and nothing is overwritten unasked: name another, or pass --overwrite")
    if path.is_dir() and not (path / "config.json").is_file() and any(path.iterdir()):
        raise ConfigError(
            f"{path}: is a folder that holds no model (no config.json), and is not replaced; name another"
        )


@contextmanager
def new_archive(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write, which has its name once it is complete. Raises ConfigError, and RunError for a full disk."""
    require_free(path, overwrite)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, and a .nemo archive is a file; name another")
    with new_file(path, overwrite=overwrite) as file:
        yield file


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder to fill, which has its name once it is complete. Raises ConfigError, RunError for a full disk."""
    require_free(path, overwrite)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file, and a model is a folder; name another")
    unfinished, previous = _beside(path), _beside(path)
    try:
        try:
            unfinished.mkdir()
            yield unfinished
            _make_durable(unfinished)
            if path.exists():
                path.rename(previous)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if previous.exists():
                _restore_or_remove(previous, path)
        sync_directory(path.parent)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


def _restore_or_remove(previous: Path, path: Path) -> None:
    """What was replaced goes; where nothing has taken its place, it comes back."""
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # beside it: a rename must not cross disks


def _make_durable(folder: Path) -> None:
    for entry in folder.rglob("*"):
        if entry.is_dir():
            sync_directory(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(folder)
