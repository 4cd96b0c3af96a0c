"""Random weights under canonical names: the smallest that every layout and every cut can be seen on."""

from collections.abc import Mapping

import torch

from dpolish.nemo.stored import StoredTensor, Weights

LAYERS, HIDDEN, FFN, ROWS = 4, 8, 12, 32


def stored(tensors: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Tensors in memory as if they lay on disk."""

    def one(tensor: torch.Tensor) -> StoredTensor:
        return StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.clone)

    return {name: one(tensor) for name, tensor in tensors.items()}


def loaded(weights: Weights) -> dict[str, torch.Tensor]:
    """All of them in memory."""
    return {name: tensor.load() for name, tensor in weights.items()}


def random_weights(
    *, gated: bool = True, bias: bool = False, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A model of four layers with four heads, `gated` or not, with or without biases and a head of its own."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (ROWS, HIDDEN)}
    width = 2 * FFN if gated else FFN
    for layer in range(LAYERS):
        start = f"decoder.layers.{layer}."
        modules = {
            "self_attention.linear_qkv": (3 * HIDDEN, HIDDEN),
            "self_attention.linear_proj": (HIDDEN, HIDDEN),
            "mlp.linear_fc1": (width, HIDDEN),
            "mlp.linear_fc2": (HIDDEN, FFN),
        }
        for module, shape in modules.items():
            if module.endswith(("qkv", "fc1")):
                shapes |= {f"{start}{module}.layer_norm_{part}": (HIDDEN,) for part in ("weight", "bias")}
            shapes[f"{start}{module}.weight"] = shape
            if bias:
                shapes[f"{start}{module}.bias"] = shape[:1]
    shapes |= {f"decoder.final_layernorm.{part}": (HIDDEN,) for part in ("weight", "bias")}
    if not tied:
        shapes["output_layer.weight"] = (ROWS, HIDDEN)
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}
