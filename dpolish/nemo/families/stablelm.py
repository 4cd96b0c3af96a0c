"""StableLM: gated layers under LayerNorm, part of each head rotated. GPT-2B-001 and its kin."""

from collections.abc import Iterator

from dpolish.nemo.families.family import FAMILIES, Family
from dpolish.nemo.families.lacks import full_heads, gated, layer_norms, rotary, together
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _no_bias_but_of_qkv(config: GptConfig) -> Iterator[str]:
    if config.bias:
        yield "of its linear layers only queries, keys and values can have a bias"


def _fields(config: GptConfig) -> dict[str, object]:
    return {
        "num_key_value_heads": config.num_query_groups,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layernorm_epsilon,
        "use_qkv_bias": config.qkv_bias,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
    }


def _read(source: Source) -> GptConfig:
    source.refuse("qk_layernorm", bool(source.get("qk_layernorm")), "NeMo's norms of queries and keys are others")
    source.refuse(
        "use_parallel_residual", bool(source.get("use_parallel_residual")), "NeMo computes attention, then the MLP"
    )
    return source.model(
        partly_rotated=True,
        normalization="layernorm",
        epsilon="layer_norm_eps",
        activation=source.activation(),
        gated=True,
        bias=False,
        qkv_bias=bool(source.get("use_qkv_bias")),
        dropout="hidden_dropout",
    )


FAMILIES.register("stablelm")(
    Family(
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        lacks=together(layer_norms, gated, rotary, _no_bias_but_of_qkv, full_heads),
        fields=_fields,
        read=_read,
    )
)
