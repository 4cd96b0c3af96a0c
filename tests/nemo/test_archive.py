"""One face for an archive, a compressed one and a folder; refusals are in test_hostile."""

import os
from pathlib import Path

import pytest

from dpolish.errors import InputError, ModelError
from dpolish.nemo.archive import Archive, open_archive
from tests.nemo.archives import pack, unpack

FILES = {
    "model_config.yaml": b"a: 1",
    "model_weights/.metadata": b"x" * 5000,
    "model_weights/t/0.0": b"",
    "n.model": b"n",
}


def opened(kind: str, place: Path) -> Archive:
    if kind == "folder":
        return open_archive(unpack(FILES, place / "model"))
    return open_archive(pack(FILES, place / "x.nemo", kind))


@pytest.mark.parametrize("kind", ["folder", "w:", "w:gz", "w:bz2", "w:xz"])
def test_files(tmp_path: Path, kind: str) -> None:
    with opened(kind, tmp_path) as archive:
        assert sorted(archive) == sorted(FILES)
        assert {name: archive.span(name).read_all(5000) for name in archive} == FILES
        assert {name: archive.size(name) for name in archive} == {name: len(FILES[name]) for name in FILES}
        assert sorted(archive.under("model_weights/")) == ["model_weights/.metadata", "model_weights/t/0.0"]
        assert "n.model" in archive
        assert "model_weights" not in archive


@pytest.mark.parametrize("kind", ["folder", "w:"])
def test_spans_stay_inside(tmp_path: Path, kind: str) -> None:
    with opened(kind, tmp_path) as archive:
        span = archive.span("model_config.yaml")
        assert span.read(1, 3) == b": 1"
        assert span.part(1, 2, "a part").read(1, 1) == b" "
        for offset, length in ((0, 5), (4, 1), (-1, 1), (2, -1), (1 << 60, 1 << 60)):
            with pytest.raises(ModelError, match=r"x\.nemo|model"):
                span.read(offset, length)
        with pytest.raises(ModelError, match="bytes 2 to 6 are wanted, and it has 4"):
            span.read_into(memoryview(bytearray(4)), 2)
        for offset, size in ((0, 5), (-1, 2), (3, 2), (1, -1)):
            with pytest.raises(ModelError, match="a part: lies outside"):
                span.part(offset, size, "a part")
        with pytest.raises(ModelError, match="is 4 bytes long; a genuine one has at most 3"):
            span.read_all(3)
        with pytest.raises(ModelError, match="has no 'absent'"):
            archive.span("absent")


def test_links_within_a_folder_are_followed(tmp_path: Path) -> None:
    folder = unpack({**FILES, "deep/er/file": b"linked"}, tmp_path / "model")
    (folder / "link").symlink_to("deep/er/file")
    (folder / "deep" / "up").symlink_to(folder / "link")
    (tmp_path / "same").symlink_to(folder)  # the folder itself may be named through a link
    for root in (folder, tmp_path / "same"):
        with open_archive(root) as archive:
            assert archive.span("link").read_all(10) == b"linked"
            assert archive.span("deep/up").read_all(10) == b"linked"


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"a: 2")
    with opened("folder", tmp_path) as archive:
        span = archive.span("model_config.yaml")
        (tmp_path / "model" / "model_config.yaml").unlink()
        (tmp_path / "model" / "model_config.yaml").symlink_to(tmp_path / "secret")
        with pytest.raises(ModelError, match="cannot be read"):
            span.read_all(4)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.nemo: cannot be read: No such file"):
        open_archive(tmp_path / "absent.nemo")
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        open_archive(Path("/dev/null"))


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for kind in ("w:", "w:gz"):
        with opened(kind, tmp_path):
            assert len(os.listdir("/proc/self/fd")) == before + 1
        assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / "x.nemo").write_bytes(b"no tar" * 500)
    with pytest.raises(ModelError):
        open_archive(tmp_path / "x.nemo")
    assert len(os.listdir("/proc/self/fd")) == before
