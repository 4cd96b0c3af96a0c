"""GPT-2: LayerNorm, ungated layers with biases, a learned table of positions. GPT-345M and its kin."""

from dpolish.nemo.families.family import FAMILIES, Family, Names
from dpolish.nemo.families.lacks import (
    biases_everywhere,
    full_heads,
    layer_norms,
    learned_positions,
    own_keys,
    together,
    ungated,
)
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _fields(config: GptConfig) -> dict[str, object]:
    return {
        "n_inner": config.ffn_hidden_size,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.layernorm_epsilon,
        "resid_pdrop": config.hidden_dropout,
        "embd_pdrop": config.hidden_dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _read(source: Source) -> GptConfig:
    source.refuse("scale_attn_weights", not source.get("scale_attn_weights"), "NeMo divides scores by √(head width)")
    source.refuse(
        "scale_attn_by_inverse_layer_idx",
        bool(source.get("scale_attn_by_inverse_layer_idx")),
        "NeMo scales all layers alike",
    )
    source.refuse("add_cross_attention", bool(source.get("add_cross_attention")), "NeMo's GPT is a decoder alone")
    if source.get("n_inner") is None:
        source.config.n_inner = 4 * source.size("hidden_size")
    return source.model(
        normalization="layernorm",
        epsilon="layer_norm_epsilon",
        activation=source.activation("activation_function"),
        gated=False,
        bias=True,
        position="learned_absolute",
        groups=None,
        width="n_inner",
        dropout="resid_pdrop",
        attention_dropout="attn_pdrop",
    )


FAMILIES.register("gpt2")(
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        lacks=together(
            layer_norms,
            ungated,
            learned_positions,
            biases_everywhere,
            own_keys,
            full_heads,
        ),
        fields=_fields,
        read=_read,
        names=Names(
            base="transformer.",
            embedding="wte",
            positions="wpe",
            layer="h",
            norm1="ln_1",
            qkv=("attn.c_attn",),
            proj="attn.c_proj",
            norm2="ln_2",
            fc1=("mlp.c_fc",),
            fc2="mlp.c_proj",
            final_norm="ln_f",
        ),
        config_names={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
        conv1d=True,
    )
)
