"""Mistral: Llama without biases, and with a window that NeMo does not have here."""

from collections.abc import Iterator

from dpolish.nemo.families.family import FAMILIES, Family
from dpolish.nemo.families.llama import lacks_rms_gated, rms_gated_fields
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig


def _lacks(config: GptConfig) -> Iterator[str]:
    yield from lacks_rms_gated(config)
    if config.qkv_bias:
        yield "it has no biases"


def _read(source: Source) -> GptConfig:
    source.refuse_window()
    return source.model(
        normalization="rmsnorm", epsilon="rms_norm_eps", activation=source.activation(), gated=True, bias=False
    )


FAMILIES.register("mistral")(
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        lacks=_lacks,
        fields=lambda config: rms_gated_fields(config) | {"sliding_window": None},
        read=_read,
    )
)
