"""Megatron's GPT in a page of plain PyTorch: the reference that conversions are compared with.

Written from the equations, on NeMo's configuration as it stands in `model_config.yaml` and on Megatron's tensors. It
shares no line with the code under test.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TINY: Mapping[str, Any] = {
    "mcore_gpt": True,
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 40,
    "num_attention_heads": 4,
    "encoder_seq_length": 32,
    "max_position_embeddings": 32,
}
_ROPE = {**TINY, "position_embedding_type": "rope"}
_GATED = {**_ROPE, "bias": False, "activation": "fast-swiglu", "share_embeddings_and_output_weights": False}
_RMS = {**_GATED, "normalization": "rmsnorm", "layernorm_epsilon": 1e-6}
_PLAIN = {**_ROPE, "bias": True, "activation": "gelu"}

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "GPT-2B-001": (
        "stablelm",
        {**_GATED, "mcore_gpt": False, "normalization": "layernorm1p", "rotary_percentage": 0.5}
        | {"bias_activation_fusion": False, "ffn_hidden_size": 37},
    ),
    "StableLM with shared keys, biased QKV and GEGLU": (
        "stablelm",
        {**_GATED, "num_query_groups": 2, "qkv_bias": True, "activation": "fast-geglu", "rotary_percentage": 0.25}
        | {"share_embeddings_and_output_weights": True},
    ),
    "Nemotron": (
        "nemotron",
        {**_ROPE, "normalization": "layernorm1p", "activation": "squared-relu", "bias": False, "num_query_groups": 2}
        | {"rotary_percentage": 0.5, "kv_channels": 12, "share_embeddings_and_output_weights": False},
    ),
    "Nemotron with biases": (
        "nemotron",
        {**_PLAIN, "normalization": "LayerNorm1P", "activation": "approx-gelu", "bias_activation_fusion": False},
    ),
    "Nemotron whose norms are not less one": (
        "nemotron",
        {**_ROPE, "activation": "squared-relu", "bias": False, "rotary_percentage": 0.5},
    ),
    "Llama": ("llama", {**_RMS, "num_query_groups": 2, "kv_channels": 16}),
    "Llama with biases and norms less one": (
        "llama",
        {**_RMS, "layernorm_zero_centered_gamma": True, "bias": True, "activation": "fast-reglu"},
    ),
    "Llama 3.1": ("llama", {**_RMS, "scale_positional_embedding": True, "rotary_base": 500000.0}),
    "Llama, interpolated": ("llama", {**_RMS, "seq_len_interpolation_factor": 4}),
    "Llama of the legacy implementation": (
        "llama",
        {**_RMS, "mcore_gpt": False, "activation": "swiglu", "openai_gelu": True, "num_query_groups": 4},
    ),
    "Mistral": ("mistral", {**_RMS, "num_query_groups": 1, "dpolish": {"hugging_face": "mistral"}}),
    "Qwen2": ("qwen2", {**_RMS, "qkv_bias": True, "num_query_groups": 2, "rotary_base": 1e6}),
    "GPT-345M": ("gpt2", {**TINY, "mcore_gpt": False}),
    "GPT-2 with the exact GELU": (
        "gpt2",
        {**TINY, "bias_activation_fusion": False, "share_embeddings_and_output_weights": False},
    ),
    "GPT-2 whose norms are less one": ("gpt2", {**TINY, "normalization": "layernorm1p", "encoder_seq_length": 24}),
    "GPT-NeoX": ("gpt_neox", {**_PLAIN, "rotary_percentage": 0.25, "share_embeddings_and_output_weights": False}),
    "Starcoder2 without biases": (
        "starcoder2",
        {**_PLAIN, "num_query_groups": 2, "bias": False, "openai_gelu": True, "bias_activation_fusion": False},
    ),
    "Starcoder2": ("starcoder2", {**_PLAIN, "num_query_groups": 2, "rotary_base": 1e5}),
}
"""For each model the family that must be chosen, and its configuration in NeMo."""


def logits(raw: Mapping[str, Any], weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """(B, T, V) for ids (B, T)."""
    hidden = weights["embedding.word_embeddings.weight"][ids]
    if raw.get("position_embedding_type", "learned_absolute") == "learned_absolute":
        hidden = hidden + weights["embedding.position_embeddings.weight"][: ids.shape[1]]
    for layer in range(raw["num_layers"]):
        own = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"decoder.layers.{layer}.")}
        normed = _norm(raw, own, "self_attention.linear_qkv.layer_norm_", hidden)
        hidden = hidden + _linear(own, "self_attention.linear_proj", _attend(raw, own, normed))
        normed = _norm(raw, own, "mlp.linear_fc1.layer_norm_", hidden)
        hidden = hidden + _linear(own, "mlp.linear_fc2", _activate(raw, _linear(own, "mlp.linear_fc1", normed)))
    hidden = _norm(raw, weights, "decoder.final_layernorm.", hidden)
    tied = raw.get("share_embeddings_and_output_weights", True)
    return hidden @ weights["embedding.word_embeddings.weight" if tied else "output_layer.weight"].T


def _linear(weights: Mapping[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    out = hidden @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def _norm(raw: Mapping[str, Any], weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    kind, epsilon, scale = raw.get("normalization", "layernorm").lower(), raw.get("layernorm_epsilon", 1e-5), 0.0
    if kind == "layernorm1p" or raw.get("layernorm_zero_centered_gamma"):
        scale = 1.0
    gamma = weights[f"{name}weight"] + scale
    if kind == "rmsnorm":
        return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma + weights[f"{name}bias"]


def _attend(raw: Mapping[str, Any], weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    heads = raw["num_attention_heads"]
    groups = raw.get("num_query_groups") or heads
    width = raw.get("kv_channels") or raw["hidden_size"] // heads
    batch, length, _ = hidden.shape
    fused = _linear(weights, "self_attention.linear_qkv", hidden).view(
        batch, length, groups, heads // groups + 2, width
    )
    queries = fused[:, :, :, :-2].reshape(batch, length, heads, width)
    keys, values = (fused[:, :, :, i].repeat_interleave(heads // groups, dim=2) for i in (-2, -1))
    if raw.get("position_embedding_type") == "rope":
        angles = _angles(raw, width, length)
        queries, keys = _rotate(queries, angles), _rotate(keys, angles)
    scores = torch.einsum("bqhc,bkhc->bhqk", queries, keys) / math.sqrt(width)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhc->bqhc", shares, values).reshape(batch, length, heads * width)


def _angles(raw: Mapping[str, Any], width: int, length: int) -> Tensor:
    """(T, R/2), one for each pair of rotated channels."""
    rotated = int(width * raw.get("rotary_percentage", 1.0))
    frequencies = []
    for channel in range(0, rotated, 2):
        frequency = raw.get("rotary_base", 10000.0) ** (-channel / rotated)
        if raw.get("scale_positional_embedding"):
            turns = 8192 * frequency / (2 * math.pi)  # in the context that the model was first trained on
            kept = min(max((turns - 1) / (4 - 1), 0.0), 1.0)
            frequency = kept * frequency + (1 - kept) * frequency / 8
        frequencies.append(frequency / (raw.get("seq_len_interpolation_factor") or 1))
    return torch.arange(length)[:, None] * torch.tensor(frequencies, dtype=torch.float64)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Pair channel i with channel i + R/2 and turn them; channels beyond R stay."""
    half = angles.shape[-1]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], dim=-1)


def _activate(raw: Mapping[str, Any], x: Tensor) -> Tensor:
    name = raw.get("activation", "gelu").removeprefix("fast-")
    gate, linear = x.chunk(2, -1) if name.endswith("glu") else (x, torch.ones(()))
    return _function(raw, name)(gate) * linear


def _function(raw: Mapping[str, Any], name: str) -> Any:
    def tanh_gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def exact_gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    if raw.get("openai_gelu"):
        return tanh_gelu
    return {
        "gelu": tanh_gelu if raw.get("bias_activation_fusion", True) else exact_gelu,
        "geglu": tanh_gelu if raw.get("bias_activation_fusion", True) else exact_gelu,
        "approx-gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "squared-relu": lambda x: x.clamp(min=0) ** 2,
        "swiglu": lambda x: x * torch.sigmoid(x),
        "reglu": lambda x: x.clamp(min=0),
    }[name]
