"""What is found in a tar, and what tarfile and GNU tar mean by it; refusals are in test_hostile."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.errors import ModelError
from dpolish.nemo.archive import Descriptor, open_archive
from dpolish.nemo.tar_plan import quoted, valid_name
from tests.nemo.hostile import END, header, member, pax

NAMES = st.text(st.sampled_from("abz._-é漢 0"), min_size=1, max_size=90).filter(lambda name: set(name) != {"."})


def plan(content: bytes, place: Path) -> dict[str, bytes]:
    """All files of a tar, read through the archive."""
    (place / "x.nemo").write_bytes(content)
    with open_archive(place / "x.nemo") as archive:
        return {name: archive.span(name).read_all(1 << 20) for name in archive}


@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=1500)), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    st.sampled_from(["./", ""]),
)
def test_finds_what_tarfile_wrote(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], kind: int, prefix: str
) -> None:
    files = dict(members)
    if any(other.startswith(f"{name}/") for name in files for other in files):
        return  # a file and a folder of one name
    buffer = io.BytesIO()
    try:
        with tarfile.open(fileobj=buffer, mode="w:", format=kind) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{prefix}{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    except ValueError:
        return  # ustar has no room for the name
    assert plan(buffer.getvalue(), tmp_path_factory.mktemp("tar")) == files


def test_old_headers_and_folders(tmp_path: Path) -> None:
    old = header(b"old", 3, b"\0", magic=b"") + b"abc".ljust(512, b"\0")
    folders = header(b"./", 0, b"5") + header(b"./d/", 0, b"5") + header(b"e/", 0, b"\0") + header(b"d", 0, b"5")
    assert plan(folders + old + member(b"./d/f", b"x") + END, tmp_path) == {"old": b"abc", "d/f": b"x"}


def test_what_extended_headers_say_of_time_and_owner_is_ignored(tmp_path: Path) -> None:
    records = {b"mtime": b"1.5", b"comment": b"a=b\nc", b"path": b"long", b"uname": b"\xff"}
    assert plan(pax(records) + member(b"short", b"x") + pax({b"mtime": b"1"}, b"g") + END, tmp_path) == {"long": b"x"}


@pytest.mark.parametrize("wide", [header(b"big", 9 << 30), pax({b"size": b"%d" % (9 << 30)}) + header(b"big", 0)])
def test_members_beyond_8_gib(tmp_path: Path, wide: bytes) -> None:
    """Only the headers are read, so the file may be all hole."""
    file = tmp_path / "x.nemo"
    with file.open("wb") as out:
        out.write(wide)
        out.seek(9 << 30, os.SEEK_CUR)
        out.write(member(b"after", b"found") + END)
    with open_archive(file) as archive:
        assert list(archive) == ["big", "after"]
        assert archive.size("big") == 9 << 30
        assert archive.span("after").read_all(10) == b"found"
        assert archive.span("big").read((9 << 30) - 2, 2) == b"\0\0"


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.nemo"
    file.write_bytes(member(b"a", b"x" * 1000) + END)
    with open_archive(file) as archive:
        os.truncate(file, 700)
        with pytest.raises(ModelError, match=r"'a': ends early"):
            archive.span("a").read_all(1000)


def test_names() -> None:
    path = Path("x")
    for good in ("a", "model_weights/.metadata", "a..b/c", "é漢 ()", "-x"):
        assert valid_name(good, path) == good
    for bad in (
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "a/./b",
        "..",
        "a/..",
        "a\\b",
        "c:a",
        "a\nb",
        "a\x1bb",
        "\u202e",
        "a" * 256,
    ):
        with pytest.raises(ModelError):
            valid_name(bad, path)
    assert quoted("a\x1b[2Jé") == r"'a\x1b[2J\xe9'"
    assert len(quoted("a" * 10_000)) == 122


def test_reads_stop_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    number = os.open(tmp_path / "f", os.O_RDONLY)
    buffer = bytearray(5)
    assert Descriptor(number).read_at(memoryview(buffer), 1) == 2
    assert bytes(buffer) == b"bc\0\0\0"
    os.close(number)
