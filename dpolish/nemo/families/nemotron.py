"""Nemotron: LayerNorm stored less one, ungated layers, part of each head rotated."""

from dpolish.nemo.families.family import FAMILIES, Family, Names
from dpolish.nemo.families.lacks import biases_everywhere_or_nowhere, layer_norms, rotary, together, ungated
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _fields(config: GptConfig) -> dict[str, object]:
    return {
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "norm_eps": config.layernorm_epsilon,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.attention_dropout,
    }


def _read(source: Source) -> GptConfig:
    biased = bool(source.get("attention_bias"))
    source.refuse(
        "attention_bias", biased != bool(source.get("mlp_bias")), "NeMo has biases everywhere, on QKV alone, or nowhere"
    )
    return source.model(
        partly_rotated=True,
        normalization="layernorm",
        zero_centered=True,
        epsilon="norm_eps",
        activation=source.activation(),
        gated=False,
        bias=biased,
        groups="num_key_value_heads" if source.get("num_key_value_heads") is not None else None,
    )


FAMILIES.register("nemotron")(
    Family(
        model_type="nemotron",
        architecture="NemotronForCausalLM",
        lacks=together(layer_norms, ungated, rotary, biases_everywhere_or_nowhere),
        fields=_fields,
        read=_read,
        names=Names(fc1=("mlp.up_proj",)),
        zero_centered=True,
    )
)
