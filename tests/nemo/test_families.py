"""Models of every family: the same logits as Megatron's own equations, and every bit of every tensor there and back."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from dpolish.errors import ModelError
from dpolish.nemo.families import (
    FAMILIES,
    choose_family,
    expected_shapes,
    from_hugging_face,
    hugging_face_config,
    rounded_norms,
    to_hugging_face,
)
from dpolish.nemo.gpt_config import LLAMA31, GptConfig, RopeScaling
from dpolish.nemo.stored import StoredTensor, Weights
from tests.nemo import megatron

ROWS = 48


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0) -> Weights:
    """Large enough for every term to matter, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator) * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3)
        weights[name] = drawn.to(dtype)
    return stored(weights)


def stored(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone) for name, tensor in tensors.items()}


def loaded(weights: Weights) -> dict[str, Tensor]:
    """Every tensor, checked to be what was promised."""
    out = {}
    for name, entry in weights.items():
        out[name] = tensor = entry.load()
        assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), name
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, f"{name} holds on to more than itself"
    return out


def assert_same_bits(actual: Weights, expected: Weights) -> None:
    assert list(actual) == list(expected)
    want = loaded(expected)
    for name, tensor in loaded(actual).items():
        assert tensor.dtype == want[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), want[name].view(torch.uint8)), name


def save_and_load(config: Mapping[str, object], weights: Weights, folder: Path) -> PreTrainedModel:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(loaded(weights), folder / "model.safetensors", {"format": "pt"})
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.double().eval()


@pytest.mark.parametrize("name", megatron.MODELS)
def test_logits_are_those_of_megatrons_equations(name: str, tmp_path: Path) -> None:
    family, raw = megatron.MODELS[name]
    config = GptConfig.from_nemo(raw)
    weights = random_weights(expected_shapes(config, ROWS))
    hf_config = hugging_face_config(config, ROWS)
    assert hf_config["model_type"] == family
    model = save_and_load(hf_config, to_hugging_face(config, weights), tmp_path)
    ids = torch.randint(ROWS, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(ids).logits
    want = megatron.logits(raw, {name: tensor.double() for name, tensor in loaded(weights).items()}, ids)
    assert want.std() > 0.3
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", megatron.MODELS)
def test_nemo_to_hugging_face_and_back_loses_no_bit(name: str, dtype: torch.dtype) -> None:
    config = GptConfig.from_nemo(megatron.MODELS[name][1])
    weights = random_weights(expected_shapes(config, ROWS), dtype)
    hf = to_hugging_face(config, weights)
    back_config, back = from_hugging_face(
        hugging_face_config(config, ROWS, dtype=dtype), hf, original=config, exact_norms=rounded_norms(config, weights)
    )
    assert back_config is config
    assert_same_bits(back, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", megatron.MODELS)
def test_without_its_exact_norms_the_model_still_comes_back_to_the_same_hugging_face_folder(
    name: str, dtype: torch.dtype
) -> None:
    config = GptConfig.from_nemo(megatron.MODELS[name][1])
    weights = random_weights(expected_shapes(config, ROWS), dtype)
    hf = to_hugging_face(config, weights)
    back_config, back = from_hugging_face(hugging_face_config(config, ROWS), hf, original=config)
    assert {entry.dtype for entry in back.values()} == {dtype}
    assert_same_bits(to_hugging_face(back_config, back), hf)


@st.composite
def configs(draw: st.DrawFn, family: str) -> GptConfig:
    """Any model of a family, as its configuration in Hugging Face's format would describe it."""
    groups = draw(st.sampled_from([1, 2, 3]))
    heads = groups * (1 if family in ("gpt2", "gpt_neox") else draw(st.sampled_from([1, 2, 4])))
    if family in ("gpt2", "gpt_neox"):
        groups = heads
    gated = family in ("llama", "mistral", "qwen2", "stablelm")
    channels = 4 * draw(st.integers(1, 4))
    free_heads = family in ("nemotron", "mistral", "qwen2", "starcoder2", "llama") and draw(st.booleans())
    hidden = heads * (8 if free_heads else channels)
    biased = {"gpt2": True, "gpt_neox": True, "mistral": False, "qwen2": False, "stablelm": False}
    bias = biased.get(family, draw(st.booleans()))
    qkv_only = family == "qwen2" or (family == "stablelm" and draw(st.booleans()))
    partial = family in ("stablelm", "nemotron", "gpt_neox")
    return GptConfig(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=channels,
        ffn_hidden_size=draw(st.integers(1, 30)),
        max_position_embeddings=draw(st.integers(8, 4096)),
        normalization="rmsnorm" if family in ("llama", "mistral", "qwen2") else "layernorm",
        layernorm_zero_centered_gamma=family == "nemotron",
        layernorm_bias=family not in ("llama", "mistral", "qwen2"),
        layernorm_epsilon=draw(st.sampled_from([1e-5, 1e-6])),
        bias=bias,
        qkv_bias=bias or qkv_only,
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"] if gated else _UNGATED)),
        gated=gated,
        position_embedding_type="learned_absolute" if family == "gpt2" else "rope",
        rotary_percentage=draw(st.sampled_from([0.5, 1.0])) if partial else 1.0,
        rotary_base=10000.0 if family == "gpt2" else draw(st.sampled_from([10000.0, 5e5])),
        rope_scaling=None if family == "gpt2" else draw(st.sampled_from([None, RopeScaling("linear", 2.5), LLAMA31])),
        share_embeddings_and_output_weights=draw(st.booleans()),
        hidden_dropout=draw(st.sampled_from([0.0, 0.1])) if family in _HIDDEN_DROPOUT else 0.0,
        attention_dropout=draw(st.sampled_from([0.0, 0.1])),
        init_method_std=0.02,
        hugging_face=family,
    )


_UNGATED = ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu2"]
_HIDDEN_DROPOUT = ("gpt2", "gpt_neox", "stablelm", "starcoder2")


@settings(max_examples=12)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
@given(data=st.data())
def test_hugging_face_to_nemo_and_back_loses_no_bit(family: str, dtype: torch.dtype, data: st.DataObject) -> None:
    config = data.draw(configs(family))
    rows = data.draw(st.integers(1, 20))
    hf_config = hugging_face_config(config, rows)
    assert hf_config["model_type"] == family
    shapes = {
        name: entry.shape
        for name, entry in to_hugging_face(config, random_weights(expected_shapes(config, rows))).items()
    }
    hf = random_weights(shapes, dtype, seed=1)
    read, core = from_hugging_face(hf_config, hf)
    assert read == config
    assert {name: entry.shape for name, entry in core.items()} == expected_shapes(config, rows)
    raw = read.to_nemo(rows=rows, tokenizer_size=rows, precision=32)
    again = GptConfig.from_nemo(raw)
    assert again == config
    assert choose_family(again).model_type == family
    assert_same_bits(to_hugging_face(again, core), hf)


def test_parts_of_one_tensor_are_read_from_disk_once() -> None:
    config = GptConfig.from_nemo(megatron.MODELS["Llama"][1])
    reads: list[str] = []

    def counting(name: str, entry: StoredTensor) -> StoredTensor:
        def load() -> Tensor:
            reads.append(name)
            return entry.load()

        return StoredTensor(entry.shape, entry.dtype, load)

    weights = random_weights(expected_shapes(config, ROWS))
    hf = to_hugging_face(config, {name: counting(name, entry) for name, entry in weights.items()})
    assert reads == []
    loaded(hf)
    assert sorted(reads) == sorted(weights)


def _saved(name: str) -> tuple[dict[str, object], dict[str, StoredTensor]]:
    config = GptConfig.from_nemo(megatron.MODELS[name][1])
    weights = random_weights(expected_shapes(config, ROWS))
    return hugging_face_config(config, ROWS), dict(to_hugging_face(config, weights))


def test_buffers_and_a_second_copy_of_a_tied_head_are_passed_over() -> None:
    hf_config, hf = _saved("GPT-345M")
    extra = {
        "transformer.h.0.attn.bias": (1, 1, 32, 32),
        "transformer.h.1.attn.masked_bias": (),
    }
    buffers = stored({name: torch.ones(shape) for name, shape in extra.items()})
    copy = {"lm_head.weight": hf["transformer.wte.weight"]}
    _, core = from_hugging_face(hf_config, {**hf, **buffers, **copy})
    assert_same_bits(core, from_hugging_face(hf_config, hf)[1])


def test_names_of_a_model_saved_without_its_head_are_completed() -> None:
    hf_config, hf = _saved("GPT-345M")
    bare = {name.removeprefix("transformer."): entry for name, entry in hf.items()}
    assert_same_bits(from_hugging_face(hf_config, bare)[1], from_hugging_face(hf_config, hf)[1])


def test_the_head_of_gpt_neox_has_two_names() -> None:
    hf_config, hf = _saved("GPT-NeoX")
    newer = {name.replace("embed_out", "lm_head"): entry for name, entry in hf.items()}
    assert "lm_head.weight" in newer
    assert_same_bits(from_hugging_face(hf_config, newer)[1], from_hugging_face(hf_config, hf)[1])


def test_every_misfit_of_the_weights_is_named() -> None:
    hf_config, hf = _saved("Llama")
    del hf["model.layers.1.self_attn.k_proj.weight"]
    hf |= stored({"model.norm.weight": torch.ones(31), "model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
    with pytest.raises(ModelError) as raised:
        from_hugging_face(hf_config, hf)
    message = str(raised.value)
    assert "model.layers.1.self_attn.k_proj.weight is missing" in message
    assert "model.norm.weight has shape [31], config.json says [32]" in message
    assert "'model.layers.0.self_attn.q_norm.weight' has no place in LlamaForCausalLM" in message


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("Llama", {"normalization": "layernorm", "activation": "squared-relu", "rotary_percentage": 0.5}, None),
        ("Llama", {"rotary_percentage": 0.5}, "it rotates whole heads, rotary_percentage is 0.5"),
        ("Llama", {"activation": "squared-relu"}, "its layers gate the activation, relu2 here does not"),
        ("Llama", {"position_embedding_type": "none"}, "its positions are rotary, not none"),
        ("Llama", {"hidden_size": 34, "qkv_bias": False, "bias": True}, "34 must divide by its 4 heads"),
        ("GPT-345M", {"bias": False}, "gpt2: its linear layers have biases"),
        (
            "GPT-345M",
            {"normalization": "low_precision_layernorm", "bias": False},
            "its norms are LayerNorm with a bias",
        ),
        ("GPT-345M", {"mcore_gpt": True, "num_query_groups": 2}, "gpt2: every head has its own keys"),
        ("GPT-2B-001", {"kv_channels": 12}, "stablelm: 4 heads of 12 must fill hidden_size 32"),
        ("GPT-2B-001", {"bias": True, "activation": "swiglu"}, "stablelm: of its linear layers only queries"),
        ("GPT-NeoX", {"num_query_groups": 2}, None),
        ("Starcoder2", {"qkv_bias": True, "bias": False}, "it has biases everywhere or nowhere"),
    ],
)
def test_a_model_without_a_counterpart_is_refused_with_what_the_nearest_lack(
    name: str, change: dict[str, Any], reason: str | None
) -> None:
    config = GptConfig.from_nemo({**megatron.MODELS[name][1], **change})
    if reason is None:
        assert not list(choose_family(config).lacks(config))  # another family takes it
    else:
        with pytest.raises(ModelError, match="no Hugging Face architecture computes this model exactly") as raised:
            choose_family(config)
        assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("Llama", {"attention_bias": True}, "attention_bias True"),
        ("Llama", {"hidden_act": "relu6"}, "hidden_act 'relu6'"),
        ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ("Llama", {"model_type": "gemma2"}, "model_type 'gemma2' has no counterpart"),
        ("Llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ("Mistral", {"sliding_window": 16}, "set max_position_embeddings to 16"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window 8"),
        ("Starcoder2", {"sliding_window": 16}, "sliding_window 16"),
        ("GPT-2B-001", {"use_parallel_residual": True}, "use_parallel_residual True"),
        ("GPT-2B-001", {"qk_layernorm": True}, "qk_layernorm True"),
        ("GPT-NeoX", {"use_parallel_residual": True}, "use_parallel_residual True"),
        ("GPT-NeoX", {"attention_bias": False}, "attention_bias False"),
        ("GPT-345M", {"scale_attn_weights": False}, "scale_attn_weights False"),
        ("GPT-345M", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("GPT-345M", {"add_cross_attention": True}, "add_cross_attention True"),
        ("Nemotron", {"mlp_bias": True}, "attention_bias False"),
    ],
)
def test_what_megatron_does_not_compute_is_refused(name: str, change: dict[str, Any], reason: str) -> None:
    hf_config, hf = _saved(name)
    with pytest.raises(ModelError) as raised:
        from_hugging_face({**hf_config, "rope_parameters": None, **change}, hf)
    assert reason in str(raised.value)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    hf_config, hf = _saved("GPT-2B-001")
    with pytest.raises(ModelError, match="3 heads of 10 must fill hidden_size 32"):
        from_hugging_face({**hf_config, "num_attention_heads": 3}, hf)


def test_a_share_that_llamas_code_does_not_look_at_is_not_read() -> None:
    hf_config, hf = _saved("Llama")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert from_hugging_face({**hf_config, "rope_parameters": rope}, hf)[0].rotary_percentage == 1.0


def test_a_window_as_wide_as_the_longest_text_changes_nothing() -> None:
    hf_config, hf = _saved("Mistral")
    assert from_hugging_face({**hf_config, "sliding_window": 32}, hf)[0] == from_hugging_face(hf_config, hf)[0]


def test_fields_that_version_4_of_transformers_wrote_are_read() -> None:
    hf_config, hf = _saved("Llama 3.1")
    older = {name: value for name, value in hf_config.items() if name not in ("rope_parameters", "dtype")}
    older["rope_scaling"] = {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert from_hugging_face(older, hf)[0] == from_hugging_face(hf_config, hf)[0]


def test_a_configuration_that_was_changed_since_is_not_taken_for_the_original() -> None:
    config = GptConfig.from_nemo(megatron.MODELS["GPT-2B-001"][1])
    hf_config, hf = _saved("GPT-2B-001")
    longer = {**hf_config, "max_position_embeddings": 64}  # changes nothing that is computed
    assert from_hugging_face(longer, hf, original=config)[0] is config
    with pytest.raises(ModelError, match=r"layernorm_epsilon was 0\.0001 and is 1e-05"):
        from_hugging_face(hf_config, hf, original=replace(config, layernorm_epsilon=1e-4))


def test_norms_are_folded_in_float32_and_only_where_they_were_trained_do_they_change() -> None:
    config = GptConfig.from_nemo(megatron.MODELS["GPT-2B-001"][1])
    weights = random_weights(expected_shapes(config, ROWS), torch.bfloat16)
    hf = to_hugging_face(config, weights)
    assert hf["model.norm.weight"].dtype == torch.float32
    assert torch.equal(hf["model.norm.weight"].load(), 1 + loaded(weights)["decoder.final_layernorm.weight"].float())
    trained = loaded(hf)
    trained["model.norm.weight"][0] += 0.25
    _, back = from_hugging_face(
        hugging_face_config(config, ROWS),
        stored(trained),
        original=config,
        exact_norms=rounded_norms(config, weights),
        norm_dtype=torch.float32,
    )
    moved = back["decoder.final_layernorm.weight"].load() - weights["decoder.final_layernorm.weight"].load().float()
    assert moved[0] == pytest.approx(0.25)
    assert not moved[1:].any()


def test_token_ids_are_those_given_or_null() -> None:
    config = GptConfig.from_nemo(megatron.MODELS["Llama"][1])
    named = hugging_face_config(config, ROWS, dtype=torch.bfloat16, token_ids={"eos_token_id": 2})
    assert (named["bos_token_id"], named["eos_token_id"], named["pad_token_id"]) == (None, 2, None)
    assert named["dtype"] == "bfloat16"
    assert named["vocab_size"] == ROWS
