"""GPT-NeoX without its parallel residual: LayerNorm, ungated layers with biases, QKV fused as Megatron fuses it."""

from dpolish.nemo.families.family import FAMILIES, Family, Names
from dpolish.nemo.families.lacks import (
    biases_everywhere,
    full_heads,
    layer_norms,
    own_keys,
    rotary,
    together,
    ungated,
)
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _fields(config: GptConfig) -> dict[str, object]:
    return {
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layernorm_epsilon,
        "use_parallel_residual": False,
        "attention_bias": True,
        "rotary_pct": config.rotary_percentage,
        "rotary_emb_base": config.rotary_base,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
    }


def _read(source: Source) -> GptConfig:
    source.refuse(
        "use_parallel_residual", bool(source.get("use_parallel_residual")), "NeMo computes attention, then the MLP"
    )
    source.refuse("attention_bias", not source.get("attention_bias"), "NeMo has biases everywhere or nowhere")
    return source.model(
        partly_rotated=True,
        normalization="layernorm",
        epsilon="layer_norm_eps",
        activation=source.activation(),
        gated=False,
        bias=True,
        groups=None,
        dropout="hidden_dropout",
    )


FAMILIES.register("gpt_neox")(
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        lacks=together(layer_norms, ungated, rotary, biases_everywhere, own_keys, full_heads),
        fields=_fields,
        read=_read,
        names=Names(
            base="gpt_neox.",
            embedding="embed_in",
            qkv=("attention.query_key_value",),
            proj="attention.dense",
            fc1=("mlp.dense_h_to_4h",),
            fc2="mlp.dense_4h_to_h",
            final_norm="final_layer_norm",
            head="embed_out.weight",
        ),
    )
)
