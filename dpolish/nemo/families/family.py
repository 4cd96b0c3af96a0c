"""A family: a Hugging Face architecture, what it cannot express, and where each of its tensors comes from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from dpolish.nemo.families.lacks import Lacks
from dpolish.nemo.families.layout import SAME, TRANSPOSED, Layout, gate_and_up, separate_qkv, stacked_qkv
from dpolish.nemo.families.source import Source
from dpolish.nemo.gpt_config import GptConfig
from dpolish.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Hugging Face's names of the modules. The defaults are Llama's, which most families took over."""

    base: str = "model."
    embedding: str = "embed_tokens"
    positions: str | None = None
    layer: str = "layers"
    norm1: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Three modules, or one."""
    proj: str = "self_attn.o_proj"
    norm2: str = "post_attention_layernorm"
    fc1: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Two modules where the activation gates, else one."""
    fc2: str = "mlp.down_proj"
    final_norm: str = "norm"
    head: str = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of transformers. What is registered under FAMILIES is converted in both directions."""

    model_type: str
    architecture: str
    lacks: Lacks
    """Reasons for which the architecture does not compute this model exactly; none if it does."""
    fields: Callable[[GptConfig], dict[str, object]]
    """Its configuration's fields beside those that all families share."""
    read: Callable[[Source], GptConfig]
    """The model that a configuration of this architecture describes."""
    names: Names = Names()
    config_names: Mapping[str, str] = field(default_factory=dict)
    """What it calls the fields that all families share, where it has names of its own."""
    zero_centered: bool = False
    """Weights of norms are stored less one."""
    conv1d: bool = False
    """Linear layers are stored transposed, and QKV stacked."""


FAMILIES: Registry[Family] = Registry("family of Hugging Face models")


@dataclass(frozen=True, slots=True)
class Piece:
    """One Megatron tensor and the Hugging Face tensors that hold its numbers."""

    core: str
    hugging_face: tuple[str, ...]
    layout: Layout = SAME
    is_norm_weight: bool = False


def pieces(family: Family, config: GptConfig) -> Iterator[Piece]:
    """Every tensor of the model, first to last."""
    names = family.names
    yield Piece("embedding.word_embeddings.weight", (f"{names.base}{names.embedding}.weight",))
    if names.positions is not None:
        yield Piece("embedding.position_embeddings.weight", (f"{names.base}{names.positions}.weight",))
    for layer in range(config.num_layers):
        yield from _layer(family, config, f"decoder.layers.{layer}.", f"{names.base}{names.layer}.{layer}.")
    yield from _norm(config, "decoder.final_layernorm.", f"{names.base}{names.final_norm}.")
    if not config.share_embeddings_and_output_weights:
        yield Piece("output_layer.weight", (names.head,))


def _layer(family: Family, config: GptConfig, core: str, base: str) -> Iterator[Piece]:
    names, linear = family.names, TRANSPOSED if family.conv1d else SAME
    qkv, proj = f"{core}self_attention.linear_qkv.", f"{core}self_attention.linear_proj."
    fc1, fc2 = f"{core}mlp.linear_fc1.", f"{core}mlp.linear_fc2."
    yield from _norm(config, f"{qkv}layer_norm_", f"{base}{names.norm1}.")
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        layout = SAME
        if len(names.qkv) > 1:
            layout = separate_qkv(config)
        elif family.conv1d:
            layout = stacked_qkv(config, transposed=kind == "weight")
        yield Piece(f"{qkv}{kind}", tuple(f"{base}{name}.{kind}" for name in names.qkv), layout)
    kinds = ("weight", "bias") if config.bias else ("weight",)
    for kind in kinds:
        yield Piece(f"{proj}{kind}", (f"{base}{names.proj}.{kind}",), linear if kind == "weight" else SAME)
    yield from _norm(config, f"{fc1}layer_norm_", f"{base}{names.norm2}.")
    for kind in kinds:
        layout = gate_and_up() if config.gated else linear if kind == "weight" else SAME
        yield Piece(f"{fc1}{kind}", tuple(f"{base}{name}.{kind}" for name in names.fc1), layout)
    for kind in kinds:
        yield Piece(f"{fc2}{kind}", (f"{base}{names.fc2}.{kind}",), linear if kind == "weight" else SAME)


def _norm(config: GptConfig, core: str, base: str) -> Iterator[Piece]:
    yield Piece(f"{core}weight", (f"{base}weight",), is_norm_weight=True)
    if config.layernorm_bias:
        yield Piece(f"{core}bias", (f"{base}bias",))
