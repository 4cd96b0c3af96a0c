"""The tar as NeMo packs it, byte for byte the same every time."""

import io
import tarfile

import pytest

from dpolish.nemo.write.tar import Entry, Folder, Member, in_memory, write_tar


def packed(entries: list[Entry]) -> bytes:
    buffer = io.BytesIO()
    write_tar(buffer, entries, lambda _: None)
    return buffer.getvalue()


def test_as_nemo_packs_it() -> None:
    content = packed(
        [in_memory("model_config.yaml", b"x: 1\n"), Folder("model_weights"), in_memory("model_weights/a", b"")]
    )
    assert len(content) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            ".",
            "./model_config.yaml",
            "./model_weights",
            "./model_weights/a",
        ]
        assert [member.mode for member in members] == [0o700, 0o644, 0o755, 0o644]
        assert members[0].isdir()
        assert members[0].tobuf()[:3] == b"./\0"
        config = archive.extractfile(members[1])
        assert config is not None
        assert config.read() == b"x: 1\n"


def test_equal_content_gives_equal_bytes() -> None:
    entries: list[Entry] = [Folder("a"), in_memory("a/b", bytes(1000))]
    assert packed(entries) == packed(list(entries))


@pytest.mark.parametrize("length", [99, 100, 101, 300])
def test_long_names(length: int) -> None:
    name = "n" * (length - 2)
    with tarfile.open(fileobj=io.BytesIO(packed([in_memory(name, b"1")])), mode="r:") as archive:
        assert archive.getnames() == [".", f"./{name}"]


def test_sizes_beyond_the_field() -> None:
    sparse = Member("large", 9 << 30, lambda _: None)
    buffer = io.BytesIO()
    with pytest.raises(AssertionError, match="large: 0 bytes, 9663676416 announced"):
        write_tar(buffer, [sparse], lambda _: None)
    headers = buffer.getvalue()[tarfile.BLOCKSIZE :]
    assert tarfile.TarInfo.frombuf(headers[: tarfile.BLOCKSIZE], "utf-8", "strict").type == tarfile.XHDTYPE
    assert b"size=9663676416\n" in headers


def test_what_is_written_is_told() -> None:
    told: list[int] = []
    write_tar(io.BytesIO(), [in_memory("a", bytes(40 << 20)), in_memory("b", bytes(3))], told.append)
    assert sum(told) == (40 << 20) + 3
    assert max(told) == 16 << 20  # a bar moves inside a large tensor
