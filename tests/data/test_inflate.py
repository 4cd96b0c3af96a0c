"""Compressed bytes come out whole, or not at all."""

import gzip
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.inflate import BrokenError, is_compressed, open_plain

CODECS = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor(write_checksum=True).compress}
NOISE = random.Random(0).randbytes(200_000)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "content", [b"", b"a", NOISE, NOISE[:1000] + b"\0" * 300_000], ids=["none", "one", "noise", "run"]
)
def test_what_was_compressed_comes_back(tmp_path: Path, codec: str, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(CODECS[codec](content) * 2)
    with open_plain(str(path)) as stream:
        assert is_compressed(stream)
        assert stream.read() == content * 2


def test_plain_bytes_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NOISE)
    with open_plain(str(path)) as stream:
        assert not is_compressed(stream)
        assert stream.read() == NOISE


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, codec: str, data: st.DataObject) -> None:
    content = NOISE[:3000]
    whole = CODECS[codec](content)
    path = tmp_path_factory.getbasetemp() / "damaged"
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(4, len(whole) - 1))]
    else:
        at = data.draw(st.integers(12, len(whole) - 1))  # behind the headers, whose fields say nothing of the content
        damaged = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
    path.write_bytes(damaged)
    with open_plain(str(path)) as stream, pytest.raises(BrokenError, match=r"breaks off|corrupt"):
        stream.read()


@pytest.mark.parametrize("codec", CODECS)
def test_growth_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(CODECS[codec](b"\0" * 8 * 2**20))
    with open_plain(str(path)) as stream:
        assert len(stream.read()) == 8 * 2**20  # small enough for anyone
    monkeypatch.setattr("dpolish.data.inflate._FREE_BYTES", 2**20)
    with open_plain(str(path)) as stream, pytest.raises(BrokenError, match="more than 200-fold"):
        stream.read()
