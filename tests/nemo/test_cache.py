"""A checkpoint is imported once, whoever asks; and what lies in the cache is believed only if it is whole."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpolish.errors import ModelError, RunError
from dpolish.files import cache_root
from dpolish.nemo import cache as module
from dpolish.nemo.cache import imported_folder
from dpolish.nemo.convert import ExportChoices, ImportChoices, export_nemo
from tests.nemo.tiny_hugging_face import assert_same_tensors, save_tiny, tensors_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stablelm", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    export_nemo(model, tmp_path / "x.nemo", say=lambda _: None)
    return tmp_path / "x.nemo"


class Asked:
    """A call of `imported_folder`, and what was said."""

    def __init__(self, path: Path, choices: ImportChoices | None = None) -> None:
        self.said: list[str] = []
        self.folder = imported_folder(path, choices, say=self.said.append)

    @property
    def imported(self) -> bool:
        return any("imported once" in line for line in self.said)


def test_once(archive: Path, model: Path, tmp_path: Path, cache: Path) -> None:
    first = Asked(archive)
    assert cache_root() == cache
    assert first.folder.is_relative_to(cache)
    assert first.said == [f"{archive}: imported once, into {first.folder}"]
    assert_same_tensors(tensors_of(first.folder), tensors_of(model))
    again = Asked(archive)
    assert (again.folder, again.said) == (first.folder, [])
    shutil.copy(archive, tmp_path / "copy.nemo")
    assert Asked(tmp_path / "copy.nemo").folder == first.folder  # by content, not by name
    shutil.unpack_archive(archive, tmp_path / "unpacked", "tar")
    assert Asked(tmp_path / "unpacked").imported  # other files, so another key; the same model
    assert_same_tensors(tensors_of(Asked(tmp_path / "unpacked").folder), tensors_of(model))


def test_other_content_and_other_choices_are_imported_anew(archive: Path, model: Path, tmp_path: Path) -> None:
    first = Asked(archive).folder
    assert Asked(archive, ImportChoices(tokenizer=model)).folder != first
    assert Asked(archive, ImportChoices(scale_positional_embedding=False)).folder != first
    export_nemo(model, archive, ExportChoices(dtype=torch.bfloat16), overwrite=True, say=lambda _: None)
    other = Asked(archive)
    assert other.imported
    assert other.folder != first


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "added", "no list", "bad list"])
def test_a_damaged_entry_is_imported_again(archive: Path, model: Path, damage: str) -> None:
    folder = Asked(archive).folder
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        before = weights.stat()
        weights.write_bytes(content)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "gone":
        (folder / "config.json").unlink()
    elif damage == "added":
        (folder / "model-00001-of-00001.safetensors").touch()
    elif damage == "no list":
        (folder.parent / "contents.json").unlink()
    else:
        (folder.parent / "contents.json").write_text("[" * 100_000)
    again = Asked(archive)
    assert again.folder == folder
    assert "is damaged" in again.said[0]
    assert again.imported
    assert_same_tensors(tensors_of(folder), tensors_of(model))
    assert Asked(archive).said == []
    assert [path.name for path in (cache_root() / "nemo").iterdir() if path.name.endswith(".tmp")] == []


def test_what_cannot_be_imported_leaves_no_entry(tmp_path: Path) -> None:
    (tmp_path / "bad.nemo").write_bytes(b"no archive")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"bad\.nemo"):
            Asked(tmp_path / "bad.nemo")
    assert {path.name for path in (cache_root() / "nemo").iterdir() if not path.name.endswith(".lock")} <= {"digests"}
    with pytest.raises(ModelError, match=r"absent\.nemo: no such file or folder"):
        Asked(tmp_path / "absent.nemo")


def test_a_full_disk_says_what_to_do(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "import_nemo", full)
    with pytest.raises(RunError, match=r"(?s)cannot be written: No space left.*set DPOLISH_CACHE"):
        Asked(archive)
    monkeypatch.undo()
    assert not any((cache_root() / "nemo").glob("*/model"))


def test_what_a_killed_process_left_is_swept(archive: Path) -> None:
    folder = Asked(archive).folder
    shutil.rmtree(folder.parent)
    leftover = (cache_root() / "nemo") / f".{folder.parent.name}.00000000.tmp"
    leftover.mkdir()
    assert Asked(archive).imported
    assert not leftover.exists()


def test_processes_that_start_at_once_import_once(archive: Path, cache: Path) -> None:
    code = "import sys, pathlib, dpolish.nemo.cache as cache; cache.imported_folder(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DPOLISH_CACHE": str(cache)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(archive)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("imported once" in lines for lines in said) == 1, said
