"""Reasons for which an architecture does not compute a model exactly. A family puts its own together."""

from collections.abc import Callable, Iterator

from dpolish.nemo.gpt_config import GptConfig

Lacks = Callable[[GptConfig], Iterator[str]]
"""What an architecture lacks for a model; nothing if it computes it exactly."""


def together(*parts: Lacks) -> Lacks:
    """All reasons of the parts, in order."""

    def lacks(config: GptConfig) -> Iterator[str]:
        for part in parts:
            yield from part(config)

    return lacks


def layer_norms(config: GptConfig) -> Iterator[str]:
    """For an architecture that has LayerNorm."""
    if config.normalization != "layernorm" or not config.layernorm_bias:
        yield "its norms are LayerNorm with a bias"


def ungated(config: GptConfig) -> Iterator[str]:
    """For one whose feed-forward layers are two matrices."""
    if config.gated:
        yield "its layers do not gate the activation"


def gated(config: GptConfig) -> Iterator[str]:
    """For one whose feed-forward layers are three."""
    if not config.gated:
        yield f"its layers gate the activation, {config.activation} here does not"


def rotary(config: GptConfig) -> Iterator[str]:
    """For one with rotary positions."""
    if config.position_embedding_type != "rope":
        yield f"its positions are rotary, not {config.position_embedding_type}"


def learned_positions(config: GptConfig) -> Iterator[str]:
    """For one with a table of positions."""
    if config.position_embedding_type != "learned_absolute":
        yield f"its positions are a learned table, not {config.position_embedding_type}"


def rotary_whole_heads(config: GptConfig) -> Iterator[str]:
    """For one that rotates heads in full."""
    yield from rotary(config)
    if config.position_embedding_type == "rope" and config.rotary_percentage != 1.0:
        yield f"it rotates whole heads, rotary_percentage is {config.rotary_percentage:g}"


def biases_everywhere(config: GptConfig) -> Iterator[str]:
    """For one whose linear layers have biases."""
    if not config.bias:
        yield "its linear layers have biases"


def biases_everywhere_or_nowhere(config: GptConfig) -> Iterator[str]:
    """For one with a single switch for biases."""
    if config.qkv_bias != config.bias:
        yield "it has biases everywhere or nowhere"


def own_keys(config: GptConfig) -> Iterator[str]:
    """For one without grouped queries."""
    if config.num_query_groups != config.num_attention_heads:
        yield f"every head has its own keys, num_query_groups is {config.num_query_groups}"


def full_heads(config: GptConfig) -> Iterator[str]:
    """For one whose width of a head is not a field of its own."""
    if config.kv_channels * config.num_attention_heads != config.hidden_size:
        yield f"{config.num_attention_heads} heads of {config.kv_channels} must fill hidden_size {config.hidden_size}"
