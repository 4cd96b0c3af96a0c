"""Starcoder2: LayerNorm, ungated layers, whole heads rotated, keys shared among heads."""

from collections.abc import Iterator

from dpolish.nemo.families.family import FAMILIES, Family, Names
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _lacks(config: GptConfig) -> Iterator[str]:
    if config.normalization != "layernorm" or not config.layernorm_bias:
        yield "its norms are LayerNorm with a bias"
    if config.gated:
        yield "its layers do not gate the activation"
    if config.position_embedding_type != "rope":
        yield f"its positions are rotary, not {config.position_embedding_type}"
    elif config.rotary_percentage != 1.0:
        yield f"it rotates whole heads, rotary_percentage is {config.rotary_percentage:g}"
    if config.qkv_bias != config.bias:
        yield "it has biases everywhere or nowhere"


def _fields(config: GptConfig) -> dict[str, object]:
    return {
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "norm_epsilon": config.layernorm_epsilon,
        "use_bias": config.bias,
        "sliding_window": None,
        "residual_dropout": config.hidden_dropout,
        "embedding_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
    }


def _read(source: Source) -> GptConfig:
    source.refuse_window()
    return source.model(
        normalization="layernorm",
        epsilon="norm_epsilon",
        activation=source.activation(),
        gated=False,
        bias=bool(source.get("use_bias")),
        dropout="residual_dropout",
    )


FAMILIES.register("starcoder2")(
    Family(
        model_type="starcoder2",
        architecture="Starcoder2ForCausalLM",
        lacks=_lacks,
        fields=_fields,
        read=_read,
        names=Names(fc1=("mlp.c_fc",), fc2="mlp.c_proj"),
    )
)
