"""A digest is remembered, and believed only for a file that nobody touched."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from dpolish.errors import ModelError
from dpolish.nemo.digests import digests, files_of


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three seconds pass."""
    now = path.stat().st_ctime_ns + 3 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)


def hashed(path: Path, memory: Path) -> tuple[str, bool]:
    """The digest, and whether the file was read for it."""
    read: list[bool] = []
    opened = Path.open

    def spy(self: Path, *args: object, **kwargs: object) -> object:
        read.append(self == path)
        return opened(self, *args, **kwargs)  # type: ignore[arg-type,call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", spy)
        found = digests({"": path}, memory, lambda _: None)
    return found[""], any(read)


def test_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory" / "x.json"
    path.write_bytes(b"abc")
    wanted = hashlib.sha256(b"abc").hexdigest()
    assert hashed(path, memory) == (wanted, True)
    assert hashed(path, memory) == (wanted, True)  # it was changed a moment ago: not believed yet
    settled(path, monkeypatch)
    assert hashed(path, memory) == (wanted, True)
    assert hashed(path, memory) == (wanted, False)


def test_a_change_that_hides_its_time_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "file", tmp_path / "x.json"
    path.write_bytes(b"abc")
    before = path.stat()
    settled(path, monkeypatch)
    hashed(path, memory)
    time.sleep(0.02)
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settled(path, monkeypatch)
    assert hashed(path, memory) == (hashlib.sha256(b"abd").hexdigest(), True)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    path, memory = tmp_path / "file", tmp_path / "x.json"
    path.write_bytes(b"abc")
    memory.write_bytes(content)
    assert hashed(path, memory) == (hashlib.sha256(b"abc").hexdigest(), True)


def test_folders_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2", "a"):
        (tmp_path / name).write_text(name)
    assert list(files_of(tmp_path)) == ["a", "b/2"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="pipe: is not a plain file"):
        digests(files_of(tmp_path), None, lambda _: None)
    with pytest.raises(ModelError, match="gone: cannot be read"):
        digests({"": tmp_path / "gone"}, None, lambda _: None)
