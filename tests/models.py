"""Tiny models with random weights, one of each family that the product must compute exactly or refuse; no downloads.

Weights are large enough for attention, windows, caps and multipliers to matter: a wrong mask or a lost scale is off by
far more than rounding. Dropout stays at the library's defaults, so that the code under test must switch it off.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 128
WINDOW = 8
"""Sliding windows: shorter than the sequences of the tests."""

_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_ALTERNATING = {
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

_JUDGED: Mapping[str, Mapping[str, object]] = {
    "llama": _LLAMA_LIKE,
    "smollm": {
        **_LLAMA_LIKE,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "mistral": {**_LLAMA_LIKE, "head_dim": 16, "sliding_window": WINDOW},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16},
    "gemma2": {
        **_LLAMA_LIKE,
        **_ALTERNATING,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {**_LLAMA_LIKE, **_ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 12},
    "phi3": _LLAMA_LIKE,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {**_LLAMA_LIKE, "rotary_pct": 0.5},
    "stablelm": {**_LLAMA_LIKE, "use_qkv_bias": True},
    "nemotron": _LLAMA_LIKE,
    "olmo2": _LLAMA_LIKE,
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **_LLAMA_LIKE,
        "head_dim": 16,
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
_STANDARD: Mapping[str, Mapping[str, object]] = {
    "gpt_oss": {
        **_LLAMA_LIKE,
        **_ALTERNATING,
        "head_dim": 16,
        "max_position_embeddings": 131072,  # its YaRN factor is read against this
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "cohere2": {**_LLAMA_LIKE, **_ALTERNATING, "logit_scale": 0.5},
    "granite": {
        **_LLAMA_LIKE,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "starcoder2": {**_LLAMA_LIKE, "sliding_window": WINDOW, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "phi": {**_LLAMA_LIKE, "partial_rotary_factor": 0.5},
}
_OWN_ATTENTION: Mapping[str, Mapping[str, object]] = {
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": WINDOW,
        "max_position_embeddings": 256,
    },
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
}

_WITH_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
_CONFIGS = {**_JUDGED, **_STANDARD, **_OWN_ATTENTION}

JUDGED = tuple(_JUDGED)
"""Families that must run on the shared-prefix path, exactly."""
STANDARD = tuple(_STANDARD)
"""Further families with standard attention: on the fast path they must be exact, or they are named as not on it."""
OWN_ATTENTION = tuple(_OWN_ATTENTION)
"""Families whose layers never call the registered attention function, or are recurrent: plain path or refusal."""


def build(name: str, dtype: torch.dtype = torch.float32, **overrides: object) -> PreTrainedModel:
    """The tiny model `name` in training mode: the same weights in every call and, but for rounding, in every dtype."""
    fields: dict[str, Any] = {"model_type": name, **_TOKENS, **_CONFIGS[name], **overrides}
    # The grouped product of torch, which experts use by default, takes no float64.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 and name in _WITH_EXPERTS else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(**fields)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **experts)
        _enlarge(model)
    return cast(PreTrainedModel, model.to(dtype).train())


@torch.no_grad()
def _enlarge(model: nn.Module) -> None:
    """Matrices of gain 1.5, noise on every bias and norm: library defaults (0.02, zeros, ones) would hide errors."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))
