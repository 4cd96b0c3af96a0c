"""Training from an archive is training from the same weights as a Hugging Face folder, and can end in an archive."""

from dataclasses import replace
from pathlib import Path

import pytest

from dpolish.errors import InputError
from dpolish.nemo.exporting import ExportChoices, export_nemo
from dpolish.nemo.importing import import_nemo
from dpolish.nemo.write.target import LayoutName
from tests.nemo.tiny_hugging_face import assert_same_tensors, save_tiny, tensors_of
from tests.tiny import Setup, metrics, rows, write_rows

GENUINE = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo" / "legacy_gpt2b_style.nemo"
TIMES = ("time", "second", "throughput", "memory", "utilization")
"""Parts of the names of numbers that no two runs have alike."""
SHORT = ("trainer.dpo.max_steps=2", "trainer.dpo.val_check_interval=2")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Data, and a cache of its own; the model is still to be named."""
    monkeypatch.setenv("DPOLISH_CACHE", str(tmp_path / "cache"))
    train, validation = write_rows(tmp_path / "train.jsonl", rows(7)), write_rows(tmp_path / "val.jsonl", rows(3, 1))
    return Setup(tmp_path / "absent", train, validation)


def numbers(run: Path) -> list[dict[str, float]]:
    """All that was measured, but for times."""
    found = [
        {name: value for name, value in record.items() if not any(part in name for part in TIMES)}
        for split in ("train", "val")
        for record in metrics(run, split)
    ]
    assert any("loss" in name for record in found for name in record)
    return found


def assert_same_run(setup: Setup, archive: Path, folder: Path, place: Path) -> None:
    for name, model in (("nemo", archive), ("hf", folder)):
        replace(setup, model=model).run(place / name, *SHORT)
    assert numbers(place / "nemo") == numbers(place / "hf")
    assert_same_tensors(tensors_of(place / "nemo" / "model"), tensors_of(place / "hf" / "model"))


def own_archive(folder: Path, layout: LayoutName = "mcore-zarr", name: str = "stablelm") -> tuple[Path, Path]:
    """An archive, and the Hugging Face folder that it was made from."""
    model = save_tiny(name, folder / "source")
    export_nemo(model, folder / "source.nemo", ExportChoices(layout=layout, tensor_parallel=2), say=lambda _: None)
    return folder / "source.nemo", model


@pytest.mark.parametrize("layout", ["legacy", "mcore-torch-dist"])
def test_an_archive_trains_as_its_folder_does(setup: Setup, tmp_path: Path, layout: LayoutName) -> None:
    archive, folder = own_archive(tmp_path, layout)
    assert_same_run(setup, archive, folder, tmp_path)


@pytest.mark.skipif(not GENUINE.is_file(), reason="needs the real archives beside the checkout, ../shared")
def test_a_genuine_archive_trains_as_its_folder_does(setup: Setup, tmp_path: Path) -> None:
    import_nemo(GENUINE, tmp_path / "folder", say=lambda _: None)
    assert_same_run(setup, GENUINE, tmp_path / "folder", tmp_path)


@pytest.mark.parametrize("from_archive", [True, False])
def test_a_run_can_end_in_an_archive(setup: Setup, tmp_path: Path, from_archive: bool) -> None:
    archive, folder = own_archive(tmp_path)
    run = tmp_path / "run"
    at_end = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=true"
    replace(setup, model=archive if from_archive else folder).run(run, *SHORT, at_end, "exp_manager.name=mine")
    assert [path.name for path in (run / "checkpoints").glob("*.nemo")] == ["mine.nemo"]
    import_nemo(run / "checkpoints" / "mine.nemo", tmp_path / "again", say=lambda _: None)
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(run / "model"))
    with pytest.raises(AssertionError):
        assert_same_tensors(tensors_of(run / "model"), tensors_of(folder))  # it has learned


def test_what_cannot_end_in_an_archive_does_not_begin(setup: Setup, tmp_path: Path) -> None:
    _, folder = own_archive(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"use_parallel_residual": false', '"use_parallel_residual": true'))
    at_end = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=true"
    with pytest.raises(InputError, match="NeMo computes attention, then the MLP"):
        replace(setup, model=folder).run(tmp_path / "run", *SHORT, at_end)
    assert not (tmp_path / "run" / "model").exists()
