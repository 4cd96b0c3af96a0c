"""A result is complete or absent, and what stood there stays until then."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from dpolish.errors import ConfigError, RunError
from dpolish.nemo.destination import megabytes, new_archive, new_folder, require_free


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "old").touch()
    return path


def test_a_folder_is_there_once_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with new_folder(target, overwrite=False) as folder:
        (folder / "nemo_source").mkdir()
        (folder / "nemo_source" / "file").write_text("x")
        assert not target.exists()
    assert (target / "nemo_source" / "file").read_text() == "x"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_new(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        model_folder(tmp_path / "model")
        (tmp_path / "x.nemo").write_bytes(b"old")

    def half_a_folder() -> None:
        with new_folder(tmp_path / "model", overwrite) as folder:
            (folder / "half").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_a_file() -> None:
        with new_archive(tmp_path / "x.nemo", overwrite) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="model: cannot be written: No space left"):
        half_a_folder()
    with pytest.raises(RunError, match=r"x\.nemo: cannot be written: No space left"):
        half_a_file()
    kept = {"model/config.json", "model/old", "x.nemo"} if overwrite else set()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert not overwrite or (tmp_path / "x.nemo").read_bytes() == b"old"


def test_what_is_replaced_goes(tmp_path: Path) -> None:
    target = model_folder(tmp_path / "model")
    with new_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
    with new_archive(tmp_path / "x.nemo", overwrite=True) as file:
        file.write(b"1")
    with new_archive(tmp_path / "x.nemo", overwrite=True) as file:
        file.write(b"2")
    assert (tmp_path / "x.nemo").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "x.nemo"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_nothing_is_overwritten_unasked_nor_anything_that_is_no_model(tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"exists, and nothing is overwritten unasked.*--overwrite"):
        require_free(tmp_path / "model", overwrite=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds no model"):
        require_free(home, overwrite=True)
    with pytest.raises(ConfigError, match="make it first"):
        require_free(tmp_path / "absent" / "model", overwrite=False)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists"):
        require_free(dangling, overwrite=False)
    for contextmanager, path in ((new_archive, tmp_path / "model"), (new_folder, tmp_path / "file")):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="is a f"), contextmanager(path, overwrite=True):
            pass


def test_megabytes_lose_no_byte() -> None:
    told: list[int] = []
    totals: list[int] = []

    def show(_: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        totals.append(total)
        return nullcontext(told.append)

    with megabytes(show, "x", 100_500_000) as add:
        for _ in range(67):
            add(1_500_000)
    assert totals == [100]
    assert sum(told) == 100
    with megabytes(show, "x", 10) as add:
        add(10)
    assert totals == [100]
