"""Whether a folder can become an archive is known before a run is spent on it; and what is lost silently is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpolish.errors import ConfigError, ModelError
from dpolish.nemo.exporting import ExportChoices, export_nemo, require_exportable
from dpolish.nemo.importing import import_nemo
from tests.nemo.tiny_hugging_face import assert_same_tensors, save_tiny, tensors_of


def quiet(_: str) -> None:
    """What is said does not matter here."""


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def imported(folder: Path) -> Path:
    """A model folder that came from an archive."""
    save_tiny("stablelm", folder / "source")
    export_nemo(folder / "source", folder / "source.nemo", say=quiet)
    import_nemo(folder / "source.nemo", folder / "model", say=quiet)
    return folder / "model"


@pytest.mark.parametrize("name", ["stablelm", "gpt2"])
def test_what_can_be_exported_passes_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = save_tiny(name, tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))

    def unread(*_: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("dpolish.nemo.safetensors_shards._load", unread)
    require_exportable(model)
    assert sorted(tmp_path.rglob("*")) == before


def _other_family(model: Path) -> None:
    edit(model / "config.json", model_type="bloom")


def _no_counterpart(model: Path) -> None:
    edit(model / "config.json", use_parallel_residual=True)


def _no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _other_weights(model: Path) -> None:
    weights = tensors_of(model)
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors")


def _damaged_sidecar(model: Path) -> None:
    (model / "nemo_source" / "model_config.yaml").write_text("num_layers: 5\n")


def _another_model(model: Path) -> None:
    edit(model / "config.json", layer_norm_eps=1e-3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_other_family, "model_type 'bloom' has no counterpart"),
        (_no_counterpart, "NeMo computes attention, then the MLP"),
        (_no_tokenizer, "neither tokenizer.json nor tokenizer.model"),
        (_other_weights, "model.norm.weight is missing"),
        (_damaged_sidecar, "model_config.yaml is not what was kept"),
        (_another_model, "layernorm_epsilon was 1e-05 and is 0.001"),
    ],
)
def test_what_export_would_refuse_is_refused_before(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    model = imported(tmp_path)
    damage(model)
    with pytest.raises(ModelError) as before:
        require_exportable(model)
    with pytest.raises(ModelError) as after:
        export_nemo(model, tmp_path / "x.nemo", say=quiet)
    assert reason in str(before.value)
    assert str(before.value) == str(after.value)


def test_the_layout_that_is_asked_for_counts(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(ModelError, match="the legacy layout has none"):
        require_exportable(model, ExportChoices(layout="legacy"))
    with pytest.raises(ConfigError, match="--tp 8"):
        require_exportable(model, ExportChoices(tensor_parallel=8))
    require_exportable(model, ExportChoices(layout="mcore-torch-dist", tensor_parallel=4))


def test_weights_that_go_with_the_archive_and_back(tmp_path: Path) -> None:
    model = imported(tmp_path)
    require_exportable(model)
    assert_same_tensors(tensors_of(model), tensors_of(tmp_path / "source"))
