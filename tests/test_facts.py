"""What a folder says about its model, and what is said of a folder that is none."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dpolish.errors import ModelError
from dpolish.facts import (
    Parameters,
    TensorHeader,
    find_model,
    has_weights,
    host_memory,
    read_model_facts,
    tensor_headers,
    weight_files,
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
HEADER = {
    "a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
    "b": {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]},
}


def safetensors(path: Path, header: object = HEADER, size: int = 58, metadata: bool = True) -> Path:
    """A file of the format, written by its specification."""
    fields = {"__metadata__": {"format": "pt"}, **header} if metadata and isinstance(header, dict) else header
    text = json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors(tmp_path / "model.safetensors")
    return tmp_path


def configure(folder: Path, **fields: object) -> None:
    kept = {name: value for name, value in {**CONFIG, **fields}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert find_model(folder.name) == Path(folder.name)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_model(f"~/{folder.name}") == folder


@pytest.mark.parametrize("name", ["./sft", "/no/such/place", "~/no-such-place", "a/b/c", "../sft"])
def test_a_path_that_is_no_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"^{name}: no such folder"):
        find_model(name)


def test_a_path_that_is_nearly_one_has_a_hint(tmp_path: Path) -> None:
    (tmp_path / "llama-sft").mkdir()
    with pytest.raises(ModelError, match="Did you mean 'llama-sft'"):
        find_model(str(tmp_path / "lama-sft"))


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors is a file; name the folder"):
        find_model(str(folder / "model.safetensors"))


@pytest.mark.parametrize("name", ["gpt2", "nobody/nothing"])
def test_a_hub_id_that_cannot_be_reached(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=f"^{name}: no folder of this name, and the hub gives no such model"):
        find_model(name)


def test_a_hub_id_gives_its_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("someone/model") == folder
    assert asked == ["someone/model"]


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes(folder: Path) -> None:
    facts = read_model_facts(folder)
    assert (facts.folder, facts.architecture, facts.num_parameters) == (folder, "LlamaForCausalLM", 17)
    assert (facts.num_layers, facts.hidden_size, facts.intermediate_size) == (2, 8, 24)
    assert (facts.key_value_size, facts.vocabulary_size, facts.max_positions) == (4, 50, 64)
    assert facts.varying_rope is None


def test_other_names_and_what_is_left_out(folder: Path) -> None:
    gpt2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "n_inner": None, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **gpt2}))
    facts = read_model_facts(folder)
    assert (facts.architecture, facts.num_layers, facts.hidden_size) == ("gpt2", 3, 16)
    assert (facts.intermediate_size, facts.key_value_size, facts.max_positions) == (64, 16, 32)
    configure(folder, max_position_embeddings=None, num_key_value_heads=None, head_dim=5)
    facts = read_model_facts(folder)
    assert (facts.max_positions, facts.key_value_size) == (None, 20)


def test_the_text_part_of_a_larger_model(folder: Path) -> None:
    whole = {"architectures": ["GemmaForConditionalGeneration"], "hidden_size": 999, "text_config": CONFIG}
    (folder / "config.json").write_text(json.dumps(whole))
    facts = read_model_facts(folder)
    assert (facts.hidden_size, facts.architecture) == (8, "GemmaForConditionalGeneration")


def test_parameters_of_all_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    safetensors(
        folder / "model-00002-of-00002.safetensors", {"c": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, 4
    )
    assert read_model_facts(folder).num_parameters == 18


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ("dynamic", 64)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("dynamic", 64)),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}}, ("longrope", 32)),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 16}, ("su", 16)),
        ({"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 32}}, None),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, None),
        ({"rope_scaling": None}, None),
    ],
)
def test_rotary_positions_that_vary(folder: Path, fields: dict[str, object], expected: tuple[str, int] | None) -> None:
    configure(folder, **fields)
    assert read_model_facts(folder).varying_rope == expected


# --- folders that are no model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json here; name a Hugging Face model folder"),
        ("{", "config.json: cannot be read"),
        ("[1]", "config.json: expected a JSON object, got list"),
        ("[" * 100_000, "config.json: cannot be read"),
        ('{"hidden_size": 8}', "is this a causal language model?"),
        (json.dumps({**CONFIG, "vocab_size": "many"}), "no vocab_size; is this a causal language model?"),
        (json.dumps({**CONFIG, "num_hidden_layers": True}), "no num_hidden_layers or n_layer"),
    ],
)
def test_a_configuration_that_says_too_little(folder: Path, content: str | None, message: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        read_model_facts(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_named_and_not_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(
        ModelError, match=rf"only pickled weights \({name}\), which are never opened; save the model as"
    ):
        read_model_facts(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights; save the model as safetensors"):
        read_model_facts(folder)


# --- headers ----------------------------------------------------------------------------------------------------------


def test_headers(folder: Path) -> None:
    headers = tensor_headers(folder / "model.safetensors")
    assert headers.keys() == {"a.weight", "b"}
    first, second = headers["a.weight"], headers["b"]
    assert (first.dtype, first.shape, first.end - first.begin) == ("F32", (3, 4), 48)
    assert second == TensorHeader("BF16", (5,), first.end, (folder / "model.safetensors").stat().st_size)


@pytest.mark.parametrize("length", [0, 4, 8, 9, 40])
def test_a_file_cut_short_within_its_header(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file, or cut short"):
        tensor_headers(file)


def test_a_file_cut_short_within_its_data(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ModelError, match=r"model\.safetensors: b lies outside the file; it was cut short or is damaged"
    ):
        tensor_headers(file)


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="not a safetensors file, or cut short"):
        tensor_headers(file)


@pytest.mark.parametrize(
    "header",
    [
        ["a"],
        "text",
        {"a": []},
        {"a": {"dtype": "F32", "shape": [3]}},
        {"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": ["0", "12"]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [-12, 0]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 9999]}},
    ],
)
def test_a_header_that_makes_no_sense(tmp_path: Path, header: object) -> None:
    file = safetensors(tmp_path / "model.safetensors", header, metadata=False)
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        tensor_headers(file)


def test_a_header_that_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 4) + b"\xff{{{" + bytes(8))
    with pytest.raises(ModelError, match="header is not readable"):
        tensor_headers(file)


# --- the machine ------------------------------------------------------------------------------------------------------


def test_memory_of_this_machine() -> None:
    assert 10**7 < host_memory() < 10**14


def test_loads_without_torch() -> None:
    code = "import sys, dpolish.facts, dpolish.planning; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- which files hold the weights -------------------------------------------------------------------------------------


def test_the_same_weights_in_one_piece_beside_the_shards_count_once(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    safetensors(folder / "consolidated.safetensors")
    assert [file.name for file in weight_files(folder)] == [
        "consolidated.safetensors",
        "model-00001-of-00001.safetensors",
    ]
    shards = {"weight_map": dict.fromkeys(HEADER, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert [file.name for file in weight_files(folder)] == ["model-00001-of-00001.safetensors"]
    assert read_model_facts(folder).num_parameters == 17


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "../model-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-2.safetensors is missing, which model.safetensors.index.json names"):
        weight_files(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model.safetensors.index.json: cannot be read"):
        weight_files(folder)


# --- where the parameters are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.layers", "transformer.h", "gpt_neox.layers", "decoder.blocks"])
def test_parameters_by_place_and_kind(prefix: str) -> None:
    counted = Parameters.of(
        {
            "embed.weight": (10, 4),
            f"{prefix}.0.linear.weight": (4, 4),
            f"{prefix}.0.norm.weight": (4,),
            f"{prefix}.1.linear.weight": (8, 4),
            f"{prefix}.1.mlp.experts.gate_up_proj": (2, 3, 4),
            f"{prefix}.1.linear.bias": (8,),
            f"{prefix}.11.linear.weight": (1, 4),
            "norm.weight": (4,),
        }
    )
    assert counted == Parameters(
        matrices=40 + 16 + 32 + 24 + 4,
        vectors=4 + 8 + 4,
        layer_matrices=32 + 24,
        layer_vectors=8,
        outside_matrices=40,
        outside_vectors=4,
        experts=24,
    )
    assert counted.total == 132


def test_shapes_stand_for_weights_that_are_not_there(folder: Path) -> None:
    assert has_weights(folder)
    (folder / "model.safetensors").unlink()
    assert not has_weights(folder)
    assert read_model_facts(folder, {"a.weight": (3, 4), "b": (5,)}).num_parameters == 17


def test_pickled_weights_are_weights_too(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert has_weights(folder)


@pytest.mark.parametrize(
    ("fields", "width", "share"),
    [
        ({}, 24, 1.0),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 48, 0.25),
        ({"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 6}, 24, 0.25),
        (
            {"n_routed_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 6, "n_shared_experts": 2},
            18,
            0.25,
        ),
    ],
)
def test_experts_that_a_token_passes_through(folder: Path, fields: dict[str, object], width: int, share: float) -> None:
    configure(folder, **fields)
    facts = read_model_facts(folder)
    assert (facts.intermediate_size, facts.expert_share) == (width, share)


def test_a_plan_fetches_no_weights_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("someone/model", weights=False) == folder
    assert asked == [["*.json", "*.model", "*.txt", "*.jinja"]]
