"""Whether a folder can become an archive is known before a run is spent on it; and what is lost silently is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dpolish.errors import ConfigError, ModelError
from dpolish.nemo.checkpoint import open_checkpoint
from dpolish.nemo.exporting import ExportChoices, export_nemo, relayout, require_exportable
from dpolish.nemo.importing import import_nemo
from dpolish.nemo.write.target import LAYOUTS
from tests.nemo.archives import pack
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


# --- what would be lost silently --------------------------------------------------------------------------------------


def test_a_head_that_differs_from_the_embedding_it_is_tied_to(tmp_path: Path) -> None:
    """transformers uses such a head, whatever the configuration says; NeMo has none."""
    model = save_tiny("llama", tmp_path / "model")
    weights = tensors_of(model)
    edit(model / "config.json", tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"tie_word_embeddings, and lm_head\.weight differs from model\.embed_tokens"):
        require_exportable(model)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, model / "model.safetensors")
    export_nemo(model, tmp_path / "x.nemo", say=quiet)
    import_nemo(tmp_path / "x.nemo", tmp_path / "again", say=quiet)
    del weights["lm_head.weight"]
    assert_same_tensors(tensors_of(tmp_path / "again"), weights)


def test_types_that_differ_between_layers_widen(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model", dtype=torch.bfloat16)
    weights = tensors_of(model)
    wide = ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight")
    save_file({**weights, **{name: weights[name].float() for name in wide}}, model / "model.safetensors")
    for layout in LAYOUTS[:2]:
        export_nemo(model, tmp_path / f"{layout}.nemo", ExportChoices(layout=layout), say=quiet)
        with open_checkpoint(tmp_path / f"{layout}.nemo") as checkpoint:
            for layer in range(4):
                fc2 = checkpoint.weights[f"decoder.layers.{layer}.mlp.linear_fc2.weight"]
                qkv = checkpoint.weights[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"]
                assert (fc2.dtype, qkv.dtype) == (torch.float32, torch.float32)
                assert torch.equal(fc2.load(), weights[f"model.layers.{layer}.mlp.down_proj.weight"].float())
            assert checkpoint.weights["decoder.layers.0.self_attention.linear_proj.weight"].dtype == torch.bfloat16


def test_float64_must_be_rounded_by_the_users_will(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model", dtype=torch.float64)
    with pytest.raises(ModelError, match=r"the weights are float64.*--dtype fp32"):
        require_exportable(model)
    require_exportable(model, ExportChoices(dtype=torch.float32))


def test_names_from_a_sidecar_cannot_command_a_terminal(tmp_path: Path) -> None:
    model = imported(tmp_path)
    edit(model / "nemo_source.json", name="\x1b[31mred\x07")
    narrow = {name: tensor.double() for name, tensor in tensors_of(model).items()}
    save_file(narrow, model / "model.safetensors")
    said: list[str] = []
    export_nemo(model, tmp_path / "x.nemo", say=said.append)
    assert any("red" in line for line in said)
    assert all(line.isprintable() for line in said)


# --- folders that mean harm -------------------------------------------------------------------------------------------


def _a_billion_layers(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=10**9)


def _a_type_that_is_a_list(model: Path) -> None:
    _headed(model, {"dtype": ["F32"]})


def _a_name_that_commands(model: Path) -> None:
    save_file({**tensors_of(model), "\x1b[31mred": torch.ones(1)}, model / "model.safetensors")


def _headed(model: Path, change: dict[str, object]) -> None:
    """Change what the file of weights says of one tensor."""
    data = (model / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_a_billion_layers, "num_hidden_layers 1000000000 is not a whole number from 1 to 4096"),
        (_a_type_that_is_a_list, "is of type \"['F32']\"; weights are read of types"),
        (_a_name_that_commands, "'\\x1b[31mred' has no place in LlamaForCausalLM"),
    ],
)
def test_hostile_folders(tmp_path: Path, harm: Callable[[Path], None], reason: str) -> None:
    model = save_tiny("llama", tmp_path / "model")
    harm(model)
    with pytest.raises(ModelError) as caught:
        export_nemo(model, tmp_path / "x.nemo", say=quiet)
    assert reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kept_file_cannot_stand_where_weights_do(tmp_path: Path) -> None:
    model = imported(tmp_path)
    (model / "nemo_source" / "model_weights").write_bytes(b"x")
    record = json.loads((model / "nemo_source.json").read_text())
    digest = hashlib.sha256(b"x").hexdigest()
    edit(model / "nemo_source.json", files={**record["files"], "model_weights": digest})
    with pytest.raises(ModelError, match="'model_weights' is no name of a file there"):
        require_exportable(model)


def test_a_name_of_layers_does_not_follow_into_megatron_core(tmp_path: Path) -> None:
    """NeMo's own layers do not read `name`; Megatron-core would take it for a kind of layers, and find none."""
    export_nemo(save_tiny("stablelm", tmp_path / "m"), tmp_path / "a.nemo", ExportChoices(layout="legacy"), say=quiet)
    with open_checkpoint(tmp_path / "a.nemo") as checkpoint:
        settings = yaml.safe_dump({**checkpoint.raw_config, "name": "megatron_gpt"})
        files = {name: checkpoint.archive.span(name).read_all(1 << 24) for name in checkpoint.archive}
    relayout(
        pack({**files, "model_config.yaml": settings.encode()}, tmp_path / "b.nemo"), tmp_path / "c.nemo", say=quiet
    )
    with open_checkpoint(tmp_path / "c.nemo") as checkpoint:
        assert checkpoint.raw_config["name"] == ""
