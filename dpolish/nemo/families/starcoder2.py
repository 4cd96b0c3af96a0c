"""Starcoder2: LayerNorm, ungated layers, whole heads rotated, keys shared among heads."""

from dpolish.nemo.families.family import FAMILIES, Family, Names
from dpolish.nemo.families.lacks import biases_everywhere_or_nowhere, layer_norms, rotary_whole_heads, together, ungated
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


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
        lacks=together(layer_norms, ungated, rotary_whole_heads, biases_everywhere_or_nowhere),
        fields=_fields,
        read=_read,
        names=Names(fc1=("mlp.c_fc",), fc2="mlp.c_proj"),
    )
)
