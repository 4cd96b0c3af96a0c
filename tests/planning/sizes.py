"""Models whose sizes make arithmetic easy, and one that is real."""

from collections.abc import Iterator
from pathlib import Path

from dpolish.facts import ModelFacts, Parameters


def llama_shapes(
    *, layers: int, hidden: int, intermediate: int, key_value: int, vocabulary: int, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """The shapes of a Llama's parameters, written down from the architecture."""

    def named() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (vocabulary, hidden)
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            for name, rows in (("q_proj", hidden), ("k_proj", key_value), ("v_proj", key_value), ("o_proj", hidden)):
                yield f"{prefix}.self_attn.{name}.weight", (rows, hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (intermediate, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (intermediate, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, intermediate)
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        if not tied:
            yield "lm_head.weight", (vocabulary, hidden)

    return dict(named())


SMALL = ModelFacts(
    folder=Path("llama"),
    architecture="LlamaForCausalLM",
    parameters=Parameters.of(llama_shapes(layers=10, hidden=100, intermediate=300, key_value=50, vocabulary=1000)),
    num_layers=10,
    hidden_size=100,
    num_heads=8,
    num_key_value_heads=4,
    intermediate_size=300,
    expert_share=1.0,
    query_size=100,
    key_value_size=50,
    vocabulary_size=1000,
    max_positions=2048,
    varying_rope=None,
)
"""1,402,100 parameters."""

LLAMA_70B = ModelFacts(
    folder=Path("llama-70b"),
    architecture="LlamaForCausalLM",
    parameters=Parameters.of(
        llama_shapes(layers=80, hidden=8192, intermediate=28672, key_value=1024, vocabulary=128256)
    ),
    num_layers=80,
    hidden_size=8192,
    num_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    expert_share=1.0,
    query_size=8192,
    key_value_size=1024,
    vocabulary_size=128256,
    max_positions=131072,
    varying_rope=None,
)
"""Llama 3 70B: 70,553,706,496 parameters."""
