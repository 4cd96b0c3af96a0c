"""One tiny model of each family that has a counterpart among NeMo's, with random weights and norms, and a tokenizer."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dpolish.facts import weight_files
from tests.data.small_tokenizers import byte_level

_SIZES: Mapping[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
_ALL_KEYS: Mapping[str, object] = {**_SIZES, "num_key_value_heads": 8}

MODELS: Mapping[str, Mapping[str, object]] = {
    "llama": _SIZES,
    "llama_mha": {**_ALL_KEYS, "model_type": "llama"},
    "mistral": {**_SIZES, "sliding_window": None},
    "qwen2": {**_SIZES, "tie_word_embeddings": True},
    "stablelm": {**_ALL_KEYS, "partial_rotary_factor": 0.5},
    "nemotron": {**_ALL_KEYS, "partial_rotary_factor": 0.5, "head_dim": 4},
    "nemotron_gqa": {**_SIZES, "model_type": "nemotron", "partial_rotary_factor": 0.5, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 8, "n_positions": 64},
    "gpt_neox": {**_ALL_KEYS, "rotary_pct": 0.5, "use_parallel_residual": False},
    "starcoder2": {**_SIZES, "sliding_window": None, "use_bias": True},
}

LEGACY_LACKS = ("llama", "mistral", "qwen2", "nemotron_gqa", "starcoder2")
"""Models that only Megatron-core computes: grouped queries, or a bias on queries, keys and values alone."""


def save_tiny(name: str, folder: Path, *, rows: int | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """The model of MODELS, by default with as many rows as its tokenizer has tokens, which no power of two divides."""
    tokenizer = byte_level()
    fields = {"model_type": name, **MODELS[name]}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(**fields, vocab_size=rows or len(tokenizer), **ids)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the safetensors files of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        found |= load_file(file)
    return found


def assert_same_tensors(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    """Names, types and every bit."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
