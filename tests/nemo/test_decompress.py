"""A compressed archive is unpacked within its quotas, to a file without a name; refusals are in test_hostile."""

import bz2
import gzip
import lzma
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dpolish.errors import ModelError
from dpolish.nemo import decompress
from dpolish.nemo.decompress import decompressed
from tests.nemo.hostile import END, member

PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
NOISE = random.Random(0).randbytes(200_000)
TAR = member(b"noise", NOISE) + END


def unpacked(content: bytes, file: Path) -> bytes | None:
    file.write_bytes(content)
    number = os.open(file, os.O_RDONLY)
    try:
        plain = decompressed(number, file)
        if plain is None:
            return None
        with os.fdopen(plain, "rb") as out:
            out.seek(0)
            return out.read()
    finally:
        os.close(number)


@pytest.mark.parametrize("name", PACKERS)
def test_equals_the_plain_archive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    pack = PACKERS[name]
    assert unpacked(pack(TAR), tmp_path / "x") == TAR
    assert unpacked(pack(TAR[:1000]) + pack(TAR[1000:]), tmp_path / "x") == TAR  # as parallel packers write
    assert unpacked(pack(TAR) + bytes(70_000), tmp_path / "x") == TAR  # as tapes pad
    assert not list((tmp_path / "tmp").iterdir())


def test_a_plain_archive_is_left_alone(tmp_path: Path) -> None:
    assert unpacked(TAR, tmp_path / "x") is None


@pytest.mark.parametrize("name", PACKERS)
def test_quotas(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = PACKERS[name](member(b"zeros", bytes(200_000)) + END)
    monkeypatch.setattr(decompress, "FREE_GROWTH", 1 << 20)
    assert unpacked(zeros, tmp_path / "x") is not None
    monkeypatch.setattr(decompress, "FREE_GROWTH", 100_000)
    with pytest.raises(ModelError, match=r"grows to more than .* MiB .* unpack it yourself"):
        unpacked(zeros, tmp_path / "x")
    monkeypatch.setattr(decompress, "FREE_GROWTH", 0)
    assert unpacked(PACKERS[name](TAR), tmp_path / "x") == TAR  # noise does not grow


def test_a_full_disk_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    with pytest.raises(ModelError, match="Point TMPDIR at a larger disk"):
        unpacked(gzip.compress(TAR), tmp_path / "x")
