"""Qwen2: Llama with a bias on queries, keys and values alone."""

from collections.abc import Iterator

from dpolish.nemo.families.family import FAMILIES, Family
from dpolish.nemo.families.llama import lacks_rms_gated, rms_gated_fields
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _lacks(config: GptConfig) -> Iterator[str]:
    yield from lacks_rms_gated(config)
    if config.bias or not config.qkv_bias:
        yield "it has a bias on queries, keys and values, and no other"


def _read(source: Source) -> GptConfig:
    if "sliding_attention" in (source.get("layer_types") or ()):
        source.refuse_window()
    return source.model(
        normalization="rmsnorm",
        epsilon="rms_norm_eps",
        activation=source.activation(),
        gated=True,
        bias=False,
        qkv_bias=True,
    )


FAMILIES.register("qwen2")(
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        lacks=_lacks,
        fields=lambda config: rms_gated_fields(config) | {"use_sliding_window": False},
        read=_read,
    )
)
