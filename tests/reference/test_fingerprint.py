"""A fingerprint moves with what moves a log-probability, and with nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpolish.errors import ModelError
from dpolish.reference.fingerprint import fingerprint
from tests.tiny import Setup


@pytest.fixture
def folder(setup: Setup, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(setup.model, tmp_path / "model"))


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _nudge(tensors: dict[str, torch.Tensor]) -> None:
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["other"] = tensors.pop("model.norm.weight")


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous().view(tensors["lm_head.weight"].shape)


def _exchange(tensors: dict[str, torch.Tensor]) -> None:
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]


@pytest.mark.parametrize("change", [_nudge, _rename, _reshape, _exchange])
def test_a_changed_weight_changes_it(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    before = fingerprint(folder)
    edit_weights(folder, change)
    assert fingerprint(folder) != before


def test_a_rounded_weight_changes_it(folder: Path) -> None:
    before = fingerprint(folder)
    edit_weights(folder, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()}))
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5000.0},
        {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        {"rms_norm_eps": 1e-3},
        {"num_attention_heads": 2},
        {"model_type": "mistral"},
    ],
)
def test_a_changed_architecture_changes_it(folder: Path, fields: dict[str, object]) -> None:
    before = fingerprint(folder)
    edit_config(folder, **fields)
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "fields",
    [
        {"transformers_version": "4.0.0"},
        {"_name_or_path": "elsewhere"},
        {"use_cache": False},
        {"torch_dtype": "bfloat16"},
        {"dtype": "bfloat16"},
    ],
)
def test_what_moves_no_number_leaves_it(folder: Path, fields: dict[str, object]) -> None:
    before = fingerprint(folder)
    edit_config(folder, **fields)
    assert fingerprint(folder) == before


def test_shards_metadata_and_other_files_leave_it(folder: Path) -> None:
    before = fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[1::2], names[::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in reversed(part)}, folder / shard, metadata={"note": "any"})
    (folder / "README.md").write_text("other")
    (folder / "tokenizer.json").unlink()
    assert fingerprint(folder) == before


def test_a_copy_has_the_same(setup: Setup, folder: Path) -> None:
    assert fingerprint(folder) == fingerprint(setup.model)


def test_pickled_weights_have_none(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors here; pickled weights are not opened"):
        fingerprint(folder)


def test_weights_that_are_cut_short_have_none(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: .* it was cut short or is damaged"):
        fingerprint(folder)
