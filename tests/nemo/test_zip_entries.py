"""Entries of zip files, found as Python's zipfile finds them; refusals are in test_hostile."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import LooseFile, Span
from dpolish.nemo.zip_entries import zip_entries
from tests.nemo.archives import torch_bytes


def entries(content: bytes, folder: Path) -> dict[str, bytes]:
    (folder / "file").write_bytes(content)
    span = Span(LooseFile(str(folder / "file")), "file", 0, len(content))
    return {name: entry.read_all(1 << 20) for name, entry in zip_entries(span).items()}


def test_torch_and_zipfile(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.comment = b"a comment PK"
        file.writestr("a/empty", b"")
        file.writestr("a/some", b"content")
        with file.open("a/wide", "w", force_zip64=True) as entry:
            entry.write(b"wide")
    for content in (out.getvalue(), torch_bytes({"x": torch.ones(3), "y": torch.zeros(0)})):
        with zipfile.ZipFile(io.BytesIO(content)) as source:
            expected = {name: source.read(name) for name in source.namelist()}
        assert entries(content, tmp_path) == expected


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a", b"1")
        file.writestr("a", b"2")
    with pytest.raises(ModelError, match="holds 'a' twice"):
        entries(out.getvalue(), tmp_path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    content = torch_bytes({"x": torch.ones(2)})
    for length in range(0, len(content), 7):
        with pytest.raises(ModelError):
            entries(content[:length], tmp_path)
