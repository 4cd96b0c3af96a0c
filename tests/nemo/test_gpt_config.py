"""`model_config.yaml` in, the same model out; what cannot be computed is refused by name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from dpolish.errors import ModelError
from dpolish.nemo.gpt_config import LLAMA31, GptConfig, RopeScaling
from tests.nemo.megatron import MODELS

SIZES: Mapping[str, Any] = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
LEGACY = {**SIZES, "encoder_seq_length": 128, "max_position_embeddings": 256}
MCORE = {**LEGACY, "mcore_gpt": True}
ROPE = {**MCORE, "position_embedding_type": "rope"}


def read(**keys: Any) -> GptConfig:
    return GptConfig.from_nemo({**MCORE, **keys})


def test_absent_keys_have_nemos_defaults() -> None:
    assert GptConfig.from_nemo(LEGACY) == GptConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_query_groups=4,
        kv_channels=16,
        ffn_hidden_size=256,
        max_position_embeddings=256,
        normalization="layernorm",
        layernorm_zero_centered_gamma=False,
        layernorm_bias=True,
        layernorm_epsilon=1e-5,
        bias=True,
        qkv_bias=True,
        activation="gelu_pytorch_tanh",
        gated=False,
        position_embedding_type="learned_absolute",
        rotary_percentage=1.0,
        rotary_base=10000.0,
        rope_scaling=None,
        share_embeddings_and_output_weights=True,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        init_method_std=0.02,
    )


def test_null_is_unset_for_sizes_and_false_for_flags() -> None:
    config = read(kv_channels=None, num_query_groups=None, share_embeddings_and_output_weights=None, bias=None)
    assert (config.kv_channels, config.num_query_groups) == (16, 4)
    assert not config.share_embeddings_and_output_weights
    assert not config.bias


def test_numbers_that_yaml_takes_for_text_are_read() -> None:
    assert read(layernorm_epsilon="1e-6").layernorm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("keys", "activation", "gated"),
    [
        ({}, "gelu_pytorch_tanh", False),
        ({"bias_activation_fusion": False}, "gelu", False),
        ({"bias": False}, "gelu", False),
        ({"bias": False, "openai_gelu": True}, "gelu_pytorch_tanh", False),
        ({"activation": "approx-gelu", "bias_activation_fusion": False}, "quick_gelu", False),
        ({"activation": "squared-relu", "bias": False}, "relu2", False),
        ({"activation": "fast-swiglu", "bias": False}, "silu", True),
        ({"activation": "swiglu", "bias": False}, "silu", True),
        ({"activation": "fast-reglu", "bias": False}, "relu", True),
        ({"activation": "fast-geglu", "bias_activation_fusion": False}, "gelu", True),
        ({"activation": "fast-geglu"}, "gelu_pytorch_tanh", True),
        ({"activation": "fast-swiglu", "bias": False, "openai_gelu": True}, "gelu_pytorch_tanh", True),
    ],
)
@pytest.mark.parametrize("mcore", [True, False])
def test_which_gelu_is_meant_follows_from_three_keys(
    keys: dict[str, Any], activation: str, gated: bool, mcore: bool
) -> None:
    config = GptConfig.from_nemo({**LEGACY, "mcore_gpt": mcore, **keys})
    assert (config.activation, config.gated) == (activation, gated)


def test_only_megatron_core_fuses_a_gated_gelu_without_bias() -> None:
    keys = {"activation": "fast-geglu", "bias": False, "bias_activation_fusion": True}
    assert GptConfig.from_nemo({**MCORE, **keys}).activation == "gelu_pytorch_tanh"
    assert GptConfig.from_nemo({**LEGACY, **keys}).activation == "gelu"


@pytest.mark.parametrize(
    ("keys", "norm", "zero_centered", "bias"),
    [
        ({"normalization": "layernorm1p", "bias": False}, "layernorm", True, True),
        ({"normalization": "LayerNorm"}, "layernorm", False, True),
        ({"layernorm_zero_centered_gamma": True}, "layernorm", True, True),
        ({"normalization": "rmsnorm"}, "rmsnorm", False, False),
        ({"normalization": "RMSNorm", "layernorm_zero_centered_gamma": True}, "rmsnorm", True, False),
        ({"mcore_gpt": False, "layernorm_zero_centered_gamma": True}, "layernorm", False, True),
        ({"mcore_gpt": False, "normalization": "low_precision_layernorm"}, "layernorm", False, True),
        (
            {"mcore_gpt": False, "normalization": "low_precision_layernorm", "bias": False},
            "layernorm",
            False,
            False,
        ),
    ],
)
def test_norms(keys: dict[str, Any], norm: str, zero_centered: bool, bias: bool) -> None:
    config = read(**keys)
    found = (config.normalization, config.layernorm_zero_centered_gamma, config.layernorm_bias)
    assert found == (norm, zero_centered, bias)


def test_the_implementations_read_other_keys_for_the_rows_of_the_position_table() -> None:
    assert GptConfig.from_nemo(LEGACY).max_position_embeddings == 256
    assert GptConfig.from_nemo(MCORE).max_position_embeddings == 128
    assert GptConfig.from_nemo({**SIZES, "mcore_gpt": True}).max_position_embeddings == 512
    assert GptConfig.from_nemo(ROPE).max_position_embeddings == 256


@pytest.mark.parametrize("reference", ["${.encoder_seq_length}", "${model.encoder_seq_length}"])
def test_the_self_reference_of_configurations_by_hand_is_followed(reference: str) -> None:
    assert GptConfig.from_nemo({**LEGACY, "max_position_embeddings": reference}).max_position_embeddings == 128


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${.hidden_size}", "${.max_position_embeddings}", "x"])
def test_no_other_interpolation_is_followed(text: str) -> None:
    with pytest.raises(ModelError, match="max_position_embeddings"):
        GptConfig.from_nemo({**LEGACY, "max_position_embeddings": text, "encoder_seq_length": text})


def test_qkv_bias_is_megatron_cores() -> None:
    assert read(bias=False, qkv_bias=True).qkv_bias
    assert not read(bias=False, qkv_bias=True, mcore_gpt=False).qkv_bias


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"transformer_block_type": "post_ln"}, "transformer_block_type"),
        ({"transformer_block_type": "normformer"}, "transformer_block_type"),
        ({"normalize_attention_scores": False}, "normalize_attention_scores"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type: 'alibi' adds ALiBi"),
        ({"position_embedding_type": "kerple"}, "KERPLE"),
        ({"position_embedding_type": "sandwich"}, "Sandwich"),
        ({"position_embedding_type": "xpos"}, "xpos"),
        ({"position_embedding_type": "fourier"}, "fourier"),
        ({"rotary_interleaved": True}, "rotary_interleaved"),
        ({"headscale": True}, "headscale"),
        ({"num_moe_experts": 8}, "num_moe_experts: 8 is a mixture of experts"),
        ({"qk_layernorm": True}, "qk_layernorm"),
        ({"window_size": [4096, 0]}, "window_size"),
        ({"apply_embedding_scaling": True}, "apply_embedding_scaling"),
        ({"mcore_customization_config": {"final_logit_softcapping": 30}}, "mcore_customization_config"),
        ({"attention_type": "cross"}, "attention_type"),
        ({"name": "megatron_falcon_gpt"}, "megatron_falcon_gpt"),
        ({"name": "megatron_gpt_full_te_layer_autocast"}, "megatron_gpt_full_te_layer_autocast"),
        ({"normalization": "low_precision_layernorm"}, "normalization"),
        ({"normalization": "batchnorm"}, "normalization"),
        ({"activation": "mish"}, "activation 'mish'"),
        ({"activation": "fast-gelu"}, "activation 'fast-gelu'"),
        ({"position_embedding_type": "rope", "rotary_percentage": 0.0}, "rotary_percentage"),
        ({"position_embedding_type": "rope", "rotary_percentage": 1.5}, "rotary_percentage"),
        ({"position_embedding_type": "rope", "rotary_percentage": 0.2}, "rotary_percentage 0.2 of 16 channels|0.2"),
        ({"position_embedding_type": "rope", "seq_len_interpolation_factor": 0.5}, "seq_len_interpolation_factor"),
        ({"mcore_gpt": False, "activation": "squared-relu"}, "skip the activation squared-relu"),
        ({"mcore_gpt": False, "activation": "swiglu", "bias": False, "onnx_safe": True}, "onnx_safe"),
        ({"num_query_groups": 3}, "3 does not divide the 4 heads"),
        ({"hidden_size": 66}, "kv_channels"),
        ({"num_layers": None}, "num_layers is missing"),
        ({"num_layers": 10**9}, "num_layers 1000000000"),
        ({"hidden_size": -64}, "hidden_size -64"),
        ({"hidden_size": "64; import os"}, "hidden_size"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"layernorm_epsilon": float("nan")}, "layernorm_epsilon"),
        ({"bias": "yes"}, "bias 'yes' is neither true nor false"),
        ({"activation": ["gelu"]}, "activation"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"model_config.yaml: .*({named})"):
        read(**keys)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ModelError, match="2 problems") as raised:
        read(headscale=True, num_moe_experts=8)
    assert "headscale" in str(raised.value)
    assert "num_moe_experts" in str(raised.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"window_size": None},
        {"window_size": [None, 0]},
        {"window_size": [-1, -1]},
        {"mcore_customization_config": {}},
        {"num_moe_experts": None},
        {"headscale": None},
        {"fp32_residual_connection": True},
        {"apply_query_key_layer_scaling": True},
        {"name": "te_gpt"},
        {"ub_tp_comm_overlap": True, "optim": {"name": "adam"}, "dpo": {"ref_policy_kl_penalty": 0.1}},
    ],
)
def test_what_changes_nothing_is_not_refused(keys: dict[str, Any]) -> None:
    assert read(**keys) == read()


def test_llama31_scaling_is_followed_and_can_be_overridden() -> None:
    keys = {**ROPE, "scale_positional_embedding": True, "rotary_base": 500000.0}
    config = GptConfig.from_nemo(keys)
    assert (config.rope_scaling, config.warnings) == (LLAMA31, ())
    assert GptConfig.from_nemo(keys, scale_positional_embedding=False).rope_scaling is None
    assert GptConfig.from_nemo(ROPE, scale_positional_embedding=True).rope_scaling == LLAMA31


def test_llama31_scaling_on_the_base_of_llama2_is_followed_with_a_warning() -> None:
    keys = {**ROPE, "scale_positional_embedding": True}
    (warning,) = GptConfig.from_nemo(keys).warnings
    assert "rotary_base 10000" in warning
    assert GptConfig.from_nemo(keys).rope_scaling == LLAMA31
    assert GptConfig.from_nemo(keys, scale_positional_embedding=False).warnings == ()


def test_the_legacy_model_does_not_read_llama31_scaling() -> None:
    config = GptConfig.from_nemo({**ROPE, "mcore_gpt": False, "scale_positional_embedding": True})
    assert config.rope_scaling is None
    assert "legacy" in config.warnings[0]


def test_double_scaling_is_undone_with_a_warning_only_as_the_converter_made_it() -> None:
    keys = {**ROPE, "scale_positional_embedding": True, "rotary_base": 5e5}
    config = GptConfig.from_nemo({**keys, "seq_len_interpolation_factor": 8})
    assert config.rope_scaling == LLAMA31
    assert "scales twice" in config.warnings[0]
    with pytest.raises(ModelError, match="seq_len_interpolation_factor 2"):
        GptConfig.from_nemo({**keys, "seq_len_interpolation_factor": 2})


def test_interpolation_is_linear_scaling() -> None:
    assert GptConfig.from_nemo({**ROPE, "seq_len_interpolation_factor": 4}).rope_scaling == RopeScaling("linear", 4.0)
    assert GptConfig.from_nemo({**ROPE, "seq_len_interpolation_factor": 1}).rope_scaling is None


NEMO2 = {
    "_target_": "nemo.collections.llm.gpt.model.llama.LlamaModel",
    "config": {
        "_target_": "nemo.collections.llm.gpt.model.llama.Llama3Config8B",
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 96,
        "kv_channels": None,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "layernorm_zero_centered_gamma": False,
        "gated_linear_unit": True,
        "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "position_embedding_type": "rope",
        "rotary_base": 500000,
        "rotary_percent": 1.0,
        "seq_length": 256,
        "share_embeddings_and_output_weights": False,
        "window_size": None,
        "num_moe_experts": None,
    },
    "tokenizer": {"_target_": "nemo.collections.common.tokenizers.AutoTokenizer"},
}


def test_nemo2_describes_the_same_model_in_other_words() -> None:
    nemo1 = {
        **ROPE,
        "num_query_groups": 2,
        "ffn_hidden_size": 96,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "rotary_base": 5e5,
        "share_embeddings_and_output_weights": False,
    }
    config = GptConfig.from_nemo(NEMO2)
    assert config == GptConfig.from_nemo(nemo1)
    assert config.mcore_gpt
    assert GptConfig.from_nemo({"model": NEMO2["config"]}) == config  # Megatron-Bridge's run_config.yaml
    assert GptConfig.from_nemo(NEMO2["config"]) == config


@pytest.mark.parametrize(
    ("fields", "activation"),
    [
        ({"activation_func": {"_target_": "torch._C._nn.gelu"}, "gated_linear_unit": False}, "gelu"),
        (
            {"activation_func": "torch.nn.functional.gelu", "gated_linear_unit": False, "add_bias_linear": True}
            | {"bias_activation_fusion": True},
            "gelu_pytorch_tanh",
        ),
        (
            {"activation_func": {"_target_": "megatron.core.activations.squared_relu"}, "gated_linear_unit": False},
            "relu2",
        ),
        (
            {
                "_target_": "nemo.collections.llm.gpt.model.nemotron.Nemotron3Config4B",
                "activation_func": {"_target_": "torch.jit._script.ScriptFunction"},
                "gated_linear_unit": False,
            },
            "relu2",
        ),
        ({"activation_func": {"_target_": "builtins.builtin_function_or_method"}, "gated_linear_unit": False}, "gelu"),
        ({"activation_func": "nemo.collections.llm.fn.activation.openai_gelu"}, "gelu_pytorch_tanh"),
    ],
)
def test_activations_of_nemo2(fields: dict[str, Any], activation: str) -> None:
    assert GptConfig.from_nemo({"config": {**NEMO2["config"], **fields}}).activation == activation


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"activation_func": {"_target_": "torch.jit._script.ScriptFunction"}}, "ScriptFunction"),
        ({"activation_func": {"_target_": "torch.nn.functional.silu"}, "gated_linear_unit": False}, "silu"),
        ({"window_size": [4096, 0]}, "window_size"),
        ({"num_moe_experts": 8}, "num_moe_experts"),
        ({"rotary_interleaved": True}, "rotary_interleaved"),
    ],
)
def test_refusals_of_nemo2(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        GptConfig.from_nemo({"config": {**NEMO2["config"], **fields}})


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_factor": 32, "low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 8192},
        {"rope_scaling": True, "rope_scaling_factor": 32.0},
    ],
)
def test_llama32_scaling_has_numbers_of_its_own_in_nemo2_and_none_in_nemo1(fields: dict[str, Any]) -> None:
    config = GptConfig.from_nemo({"config": {**NEMO2["config"], **fields}})
    assert config.rope_scaling == replace(LLAMA31, factor=32.0)
    with pytest.raises(ModelError, match="llama3 with factor 32"):
        config.to_nemo(rows=512, tokenizer_size=500, precision=32)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_for_nemo_is_read_as_the_same_model(name: str) -> None:
    config = GptConfig.from_nemo(MODELS[name][1])
    raw = config.to_nemo(rows=512, tokenizer_size=500, precision="bf16")
    assert GptConfig.from_nemo(raw) == config
    assert (raw["mcore_gpt"], raw["transformer_engine"], raw["precision"]) == (True, True, "bf16")


@pytest.mark.parametrize("name", ["GPT-2B-001", "GPT-345M", "GPT-NeoX", "Llama, interpolated", "Nemotron with biases"])
def test_the_legacy_layout_is_written_as_the_same_model(name: str) -> None:
    config = GptConfig.from_nemo(MODELS[name][1])
    raw = config.to_nemo(rows=512, tokenizer_size=500, precision=32, legacy=True)
    assert GptConfig.from_nemo(raw) == config
    assert (raw["mcore_gpt"], raw["transformer_engine"]) == (False, False)  # with either, tensors have other names
    assert raw["bias_dropout_add_fusion"] == config.bias  # NeMo refuses one without the other
    assert config.bias or not raw["bias_activation_fusion"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Llama", "2 key-value heads for 4 heads"),
        ("Llama 3.1", "Llama 3.1's rope scaling"),
        ("Llama with biases and norms less one", "an RMSNorm whose weight is stored less one"),
        ("Qwen2", "a bias on queries, keys and values alone"),
    ],
)
def test_what_only_megatron_core_has_is_refused_for_the_legacy_layout(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"{reason}.*write an mcore layout"):
        GptConfig.from_nemo(MODELS[name][1]).to_nemo(rows=512, tokenizer_size=500, precision=32, legacy=True)


def test_an_activation_that_nemo_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match="no relu as an ungated activation"):
        replace(read(), activation="relu").to_nemo(rows=512, tokenizer_size=500, precision=32)


def test_what_does_not_divide_among_ranks_is_refused() -> None:
    with pytest.raises(ModelError, match="3 problems") as raised:
        read(num_query_groups=2).to_nemo(
            rows=510, tokenizer_size=500, precision=32, tensor_parallel=4, pipeline_parallel=4
        )
    for reason in ("2 layers do not divide into 4", "2 query groups do not divide among 4", "510 rows"):
        assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "size", "divisor", "override"),
    [(256000, 256000, 128, None), (512, 500, 128, 512), (32000, 32000, 128, 32000), (50257, 50257, 1, 50257)],
)
def test_nemo_arrives_at_the_same_rows_under_any_tensor_parallelism(
    rows: int, size: int, divisor: int, override: int | None
) -> None:
    raw = read().to_nemo(rows=rows, tokenizer_size=size, precision=32)
    assert (raw["make_vocab_size_divisible_by"], raw.get("override_vocab_size")) == (divisor, override)
    config = GptConfig.from_nemo(raw)
    assert {config.padded_vocab_size(size, ranks) for ranks in (1, 2, 4, 8)} == {rows}


def test_fewer_rows_than_tokens_are_refused() -> None:
    with pytest.raises(ModelError, match="400 rows for 500 tokens"):
        read().to_nemo(rows=400, tokenizer_size=500, precision=32)


def test_padding_depends_on_tensor_parallelism_where_no_key_fixes_it() -> None:
    assert GptConfig.from_nemo(MCORE).padded_vocab_size(500, 1) == 512
    assert GptConfig.from_nemo(MCORE).padded_vocab_size(500, 8) == 1024


def test_blocks_that_the_writer_fills_are_its_own() -> None:
    first, second = (read().to_nemo(rows=512, tokenizer_size=500, precision=32) for _ in range(2))
    tokenizer = first["tokenizer"]
    assert isinstance(tokenizer, dict)
    tokenizer["model"] = "nemo:x.model"
    assert second["tokenizer"] != tokenizer
