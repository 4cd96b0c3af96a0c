"""Llama, and what Mistral and Qwen2 share with it: RMSNorm, gated layers, whole heads rotated."""

from collections.abc import Iterator

from dpolish.nemo.families.family import FAMILIES, Family
from dpolish.nemo.families.lacks import gated, rotary_whole_heads, together
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _rms_norms(config: GptConfig) -> Iterator[str]:
    if config.normalization != "rmsnorm":
        yield f"its norms are RMSNorm, not {config.normalization}"


lacks_rms_gated = together(_rms_norms, gated, rotary_whole_heads)
"""What none of the three can express."""


def rms_gated_fields(config: GptConfig) -> dict[str, object]:
    """The fields that the three have in common."""
    return {
        "num_key_value_heads": config.num_query_groups,
        "head_dim": config.kv_channels,
        "intermediate_size": config.ffn_hidden_size,
        "hidden_act": config.activation,
        "rms_norm_eps": config.layernorm_epsilon,
        "attention_dropout": config.attention_dropout,
    }


def _lacks(config: GptConfig) -> Iterator[str]:
    yield from lacks_rms_gated(config)
    if config.qkv_bias and not config.bias:
        yield "with a bias on queries, keys and values it has one on the output of attention too"
    if config.hidden_size % config.num_attention_heads:
        yield f"hidden_size {config.hidden_size} must divide by its {config.num_attention_heads} heads"


def _read(source: Source) -> GptConfig:
    biased = bool(source.get("attention_bias"))
    source.refuse(
        "attention_bias", biased != bool(source.get("mlp_bias")), "NeMo has biases everywhere, on QKV alone, or nowhere"
    )
    return source.model(
        normalization="rmsnorm", epsilon="rms_norm_eps", activation=source.activation(), gated=True, bias=biased
    )


FAMILIES.register("llama")(
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        lacks=_lacks,
        fields=lambda config: rms_gated_fields(config) | {"attention_bias": config.bias, "mlp_bias": config.bias},
        read=_read,
    )
)
