"""`.nemo` checkpoints that were imported once, stored by content.

    ROOT/KEY/model/           the Hugging Face folder
    ROOT/KEY/contents.json    sha256 of every file in it: a damaged entry is recognised, and made anew
    ROOT/digests/             what is known of files that have not changed since

KEY is the hash of the checkpoint's bytes and of the choices made at import. An entry is complete or not there; of
processes that want the same one, one imports and the others wait.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dpolish.errors import ModelError, RunError
from dpolish.files import cache_root, cannot_write, sync_directory, write_atomically
from dpolish.nemo.destination import Show, megabytes
from dpolish.nemo.digests import digests, files_of
from dpolish.nemo.importing import ImportChoices, import_nemo
from dpolish.track.console import progress

FORMAT = 1
"""Raised when the same checkpoint is imported to something else."""
_LARGE = 1 << 30
"""From this size on, hashing a checkpoint is shown."""


def imported_folder(
    path: Path,
    choices: ImportChoices | None = None,
    *,
    root: Path | None = None,
    say: Callable[[str], None] = print,
    waiting: Callable[[str], None] | None = None,
    show: Show = progress,
) -> Path:
    """The Hugging Face folder of the checkpoint at `path`, imported if it is not in the cache below `root` yet.

    `say` is told of an import that this process does, `waiting` (by default the same) of one that another does. Raises
    ModelError for what cannot be imported, RunError where the cache cannot be written.
    """
    root, choices = root or cache_root() / "nemo", choices or ImportChoices()
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder")
    entry = _Entry(root, _key(path, choices, root, show))
    if entry.is_sound(say):
        return entry.model
    with entry.locked(waiting or say):
        if entry.is_sound(say):  # another process was faster
            return entry.model
        say(f"{path}: imported once, into {entry.model}")
        entry.fill(lambda folder: import_nemo(path, folder, choices, say=say, show=show))
    return entry.model


def _key(path: Path, choices: ImportChoices, root: Path, show: Show) -> str:
    parts: dict[str, Mapping[str, str]] = {"checkpoint": _digests(path, root, show)}
    if choices.tokenizer is not None:
        parts["tokenizer"] = _digests(choices.tokenizer, root, show)
    chosen = {name: value for name, value in asdict(choices).items() if name != "tokenizer"}
    content = json.dumps([FORMAT, chosen, parts], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _digests(path: Path, root: Path, show: Show) -> dict[str, str]:
    files = files_of(path)
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    size = sum(file.stat().st_size for file in files.values() if file.is_file())
    with megabytes(show, f"reading {path.name}", size, shown_from=_LARGE) as hashed:
        return digests(files, root / "digests" / f"{place}.json", hashed)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A place in the cache, filled or not."""

    root: Path
    key: str

    @property
    def folder(self) -> Path:
        return self.root / self.key

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def is_sound(self, say: Callable[[str], None]) -> bool:
        """Whether it is there and undamaged. A damaged one is removed."""
        if not self.folder.exists():
            return False
        try:
            expected = json.loads((self.folder / "contents.json").read_text(encoding="utf-8"))
            found = digests(files_of(self.model), self._memory, lambda _: None)
        except (OSError, ValueError, RecursionError, ModelError):
            expected, found = None, {}
        if found == expected:
            return True
        changed = sorted(
            name for name in {**found, **(expected or {})} if found.get(name) != (expected or {}).get(name)
        )
        what = f"{changed[0]} is not what was written" if expected and changed else "it is incomplete"
        say(f"cache: {self.folder} is damaged ({what}); the checkpoint is imported again")
        self._remove()
        return False

    @property
    def _memory(self) -> Path:
        return self.root / "digests" / f"entry-{self.key}.json"

    def _remove(self) -> None:
        aside = self._beside()
        with suppress(OSError):  # another process was faster
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _beside(self) -> Path:
        return self.root / f".{self.key}.{secrets.token_hex(4)}.tmp"

    @contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Only one process of a machine at a time; where the file system has no locks, several may do the work."""
        lock = self.root / f".{self.key}.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = lock.open("wb")
        except OSError as error:
            raise RunError(_cache_unwritable(lock, error)) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another process, which imports the same checkpoint")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                yield
                return
            for unfinished in self.root.glob(f".{self.key}.*.tmp"):  # of a process that was killed
                shutil.rmtree(unfinished, ignore_errors=True)
            yield

    def fill(self, write: Callable[[Path], object]) -> None:
        """Make the entry: `write` writes the model to the folder that it is given, which does not exist."""
        unfinished = self._beside()
        try:
            unfinished.mkdir(parents=True)
            write(unfinished / "model")
            contents = digests(files_of(unfinished / "model"), None, lambda _: None)
            write_atomically(unfinished / "contents.json", json.dumps(contents, indent=2) + "\n")
            try:
                unfinished.rename(self.folder)
            except OSError:
                if not self.is_sound(lambda _: None):
                    raise
            sync_directory(self.root)
        except OSError as error:
            raise RunError(_cache_unwritable(self.folder, error)) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _cache_unwritable(path: Path, error: OSError) -> str:
    return f"cache: {cannot_write(path, error)}\n  Or set DPOLISH_CACHE to a folder with more room."
