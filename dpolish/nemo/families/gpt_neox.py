"""GPT-NeoX without its parallel residual: LayerNorm, ungated layers with biases, QKV fused as Megatron fuses it."""

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
    if not config.bias:
        yield "its linear layers have biases"
    if config.num_query_groups != config.num_attention_heads:
        yield f"every head has its own keys, num_query_groups is {config.num_query_groups}"
    if config.kv_channels * config.num_attention_heads != config.hidden_size:
        yield f"{config.num_attention_heads} heads of {config.kv_channels} must fill hidden_size {config.hidden_size}"


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
        lacks=_lacks,
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
