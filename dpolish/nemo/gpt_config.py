"""What a Megatron GPT model computes, read from and written to NeMo's `model_config.yaml`.

    model_config.yaml (NeMo 1)  ─┐                       ┌─ families: a Hugging Face configuration
    context/model.yaml (NeMo 2) ─┴─ GptConfig.from_nemo ─┤
    a Hugging Face configuration ── families ── GptConfig ── to_nemo ── model_config.yaml

NeMo decides some of the arithmetic by keys that do not look like it (a fused kernel is another GELU), by which of its
two implementations runs (`mcore_gpt`), and by defaults of keys that are absent. `GptConfig` holds what comes out of
that. Every key that changes the arithmetic is either understood here or refused by name.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dpolish.errors import ModelError, join_faults
from dpolish.nemo import gpt_nemo2
from dpolish.nemo.gpt_defaults import DATA, DEFAULTS, LEGACY_DEFAULTS
from dpolish.nemo.gpt_keys import Keys
from dpolish.nemo.gpt_refusals import refusals

Normalization = Literal["layernorm", "rmsnorm"]
PositionEmbedding = Literal["rope", "learned_absolute", "none"]
RopeKind = Literal["linear", "llama3"]

HINT = "dpolish"
"""The block of `model_config.yaml` that NeMo does not read: which Hugging Face family the model came from."""

_POSITIONS: Mapping[str, PositionEmbedding] = {
    "rope": "rope",
    "learned_absolute": "learned_absolute",
    "none": "none",
}
_LARGEST = {"num_layers": 4096, "num_attention_heads": 1 << 16}
_TANH, _ERF, _QUICK = "gelu_pytorch_tanh", "gelu", "quick_gelu"
_FUNCTIONS = {
    "gelu": _ERF,
    "geglu": _ERF,
    "approx-gelu": _QUICK,  # x σ(1.702 x), not the tanh form that its name suggests
    "squared-relu": "relu2",
    "swiglu": "silu",
    "reglu": "relu",
}
_GATED_NAMES = {"silu": "fast-swiglu", _ERF: "fast-geglu", _TANH: "fast-geglu", "relu": "fast-reglu"}
_PLAIN_NAMES = {_ERF: "gelu", _TANH: "gelu", _QUICK: "approx-gelu", "relu2": "squared-relu"}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts; the three last fields are for "llama3" alone."""

    kind: RopeKind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


LLAMA31 = RopeScaling("llama3", 8.0)
"""What `scale_positional_embedding` means: NeMo 1 has these numbers in its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptConfig:
    """A decoder with pre-norm blocks and causal attention, under NeMo's names."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """Width of one head; heads need not fill `hidden_size`."""
    ffn_hidden_size: int
    """Width of one branch: fc1 has twice as many rows where it is gated."""
    max_position_embeddings: int
    """Rows of the position table; with rotary positions, how far the model was meant to go."""
    normalization: Normalization
    layernorm_zero_centered_gamma: bool
    """The weights of norms are stored less one."""
    layernorm_bias: bool
    layernorm_epsilon: float
    bias: bool
    """Every linear layer but the head has a bias."""
    qkv_bias: bool
    """The projection to queries, keys and values has one."""
    activation: str
    """Its name in transformers' ACT2FN, which says exactly which GELU is meant."""
    gated: bool
    position_embedding_type: PositionEmbedding
    rotary_percentage: float
    rotary_base: float
    rope_scaling: RopeScaling | None
    share_embeddings_and_output_weights: bool
    hidden_dropout: float
    attention_dropout: float
    init_method_std: float
    mcore_gpt: bool = field(default=True, compare=False)
    """Which of NeMo's two implementations it is for. The arithmetic is settled in the other fields."""
    megatron_legacy: bool = field(default=False, compare=False)
    """The rows of QKV lie as [3, heads, channels] in the file."""
    make_vocab_size_divisible_by: int = field(default=128, compare=False)
    override_vocab_size: int | None = field(default=None, compare=False)
    hugging_face: str | None = field(default=None, compare=False)
    """The family (`model_type`) that it came from, where several compute the same."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was read in a way that the user should know of."""

    @classmethod
    def from_nemo(
        cls,
        raw: Mapping[str, object],
        *,
        scale_positional_embedding: bool | None = None,
        where: str = "model_config.yaml",
    ) -> "GptConfig":
        """The model that a configuration of NeMo 1, NeMo 2 or Megatron-Bridge describes.

        `scale_positional_embedding` overrides the key of that name: NeMo's Llama converters of 2024 set it for models
        that had never seen it. Raises ModelError with every reason for which the model cannot be computed here.
        """
        keys = gpt_nemo2.in_nemo1_spelling(raw, where) if gpt_nemo2.is_nemo2(raw) else Keys(raw, where)
        config = _read(cls, keys, scale_positional_embedding)
        if keys.faults:
            raise ModelError(join_faults(keys.faults))
        assert config is not None
        return config

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused projection: for each group its queries, one key and one value."""
        return (self.num_attention_heads + 2 * self.num_query_groups) * self.kv_channels

    @property
    def rotary_channels(self) -> int:
        """How many channels of a head are rotated."""
        return int(self.kv_channels * self.rotary_percentage)

    def padded_vocab_size(self, tokenizer_size: int, tensor_parallel: int) -> int:
        """The rows that NeMo gives the embedding for a tokenizer of this size, under its tensor parallelism."""
        if self.override_vocab_size is not None:
            return self.override_vocab_size
        return padded(tokenizer_size, self.make_vocab_size_divisible_by * tensor_parallel)

    def to_nemo(
        self,
        *,
        rows: int,
        tokenizer_size: int,
        precision: str | int,
        legacy: bool = False,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
    ) -> dict[str, object]:
        """A `model_config.yaml` from which NeMo builds this model, with `rows` in its embedding.

        Its `tokenizer` block is empty and `dist_ckpt_format` is not in it: whoever writes the archive fills them.
        Raises ModelError for what NeMo, or its legacy implementation if `legacy`, cannot compute.
        """
        faults = [*_not_in_nemo(self), *(_not_in_legacy(self) if legacy else ())]
        if self.num_layers % pipeline_parallel:
            faults.append(f"{self.num_layers} layers do not divide into {pipeline_parallel} pipeline stages")
        for what, size in (("query groups", self.num_query_groups), ("rows of the vocabulary", rows)):
            if size % tensor_parallel:
                faults.append(f"{size} {what} do not divide among {tensor_parallel} tensor-parallel ranks")
        if faults:
            raise ModelError(join_faults([f"cannot be written for NeMo: {fault}" for fault in faults]))
        blocks = copy.deepcopy(dict(DEFAULTS))  # whoever gets them fills them
        blocks["data"] = {**DATA, "seq_length": self.max_position_embeddings}
        return {
            **blocks,
            **(LEGACY_DEFAULTS if legacy else {}),
            **self._architecture(),
            **_vocabulary(rows, tokenizer_size, tensor_parallel),
            "tensor_model_parallel_size": tensor_parallel,
            "pipeline_model_parallel_size": pipeline_parallel,
            "precision": precision,
            **({HINT: {"hugging_face": self.hugging_face}} if self.hugging_face else {}),
        }

    def _architecture(self) -> dict[str, object]:
        rope, scaling = self.position_embedding_type == "rope", self.rope_scaling
        fused_gelu = self.activation == _TANH and not self.gated and self.bias  # the fused kernel is the tanh form
        layernorm = "layernorm1p" if self.layernorm_zero_centered_gamma else "layernorm"
        keys: dict[str, object] = {
            "encoder_seq_length": self.max_position_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.ffn_hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": None if self.num_query_groups == self.num_attention_heads else self.num_query_groups,
            "kv_channels": None if self._heads_fill_hidden() else self.kv_channels,
            "normalization": "rmsnorm" if self.normalization == "rmsnorm" else layernorm,
            "layernorm_epsilon": self.layernorm_epsilon,
            "bias": self.bias,
            "activation": (_GATED_NAMES if self.gated else _PLAIN_NAMES)[self.activation],
            "bias_activation_fusion": fused_gelu,
            "openai_gelu": self.activation == _TANH and not fused_gelu,
            "bias_dropout_add_fusion": self.bias,
            "position_embedding_type": self.position_embedding_type,
            "rotary_percentage": self.rotary_percentage if rope else 1.0,
            "rotary_base": self.rotary_base if rope else 10000,
            "seq_len_interpolation_factor": scaling.factor if scaling and scaling.kind == "linear" else None,
            "share_embeddings_and_output_weights": self.share_embeddings_and_output_weights,
            "hidden_dropout": self.hidden_dropout,
            "attention_dropout": self.attention_dropout,
            "init_method_std": self.init_method_std,
        }
        if self.qkv_bias and not self.bias:
            keys["qkv_bias"] = True
        if scaling == LLAMA31:
            keys["scale_positional_embedding"] = True
        if self.normalization == "rmsnorm" and self.layernorm_zero_centered_gamma:
            keys["layernorm_zero_centered_gamma"] = True
        return keys

    def _heads_fill_hidden(self) -> bool:
        return self.kv_channels * self.num_attention_heads == self.hidden_size


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def _vocabulary(rows: int, tokenizer_size: int, tensor_parallel: int) -> dict[str, object]:
    """Keys under which NeMo arrives at `rows`, whatever the tensor parallelism that it reads the model with."""
    if rows < tokenizer_size:
        raise ModelError(f"cannot be written for NeMo: the vocabulary has {rows} rows for {tokenizer_size} tokens")
    divisors = [128 >> shift for shift in range(8)]
    fitting = [m for m in divisors if padded(tokenizer_size, m * tensor_parallel) == rows]
    divisor = fitting[0] if fitting else 1
    keys: dict[str, object] = {"make_vocab_size_divisible_by": divisor}
    if any(padded(tokenizer_size, divisor * ranks) != rows for ranks in (1, 2, 4, 8)):
        keys["override_vocab_size"] = rows
    return keys


def _read(cls: type[GptConfig], keys: Keys, scale_positional_embedding: bool | None) -> GptConfig | None:
    """The configuration; None where a fault was noted in `keys` without which it cannot be built."""
    keys.faults.extend(refusals(keys))
    mcore = keys.flag("mcore_gpt", False)
    layers, hidden = keys.size("num_layers", at_most=_LARGEST["num_layers"]), keys.size("hidden_size")
    heads = keys.size("num_attention_heads", at_most=_LARGEST["num_attention_heads"])
    groups = keys.size("num_query_groups", heads, at_most=_LARGEST["num_attention_heads"])
    if heads % groups:
        keys.fault("num_query_groups", f"{groups} does not divide the {heads} heads")
    if keys.get("kv_channels") is None and hidden % heads:
        keys.fault("kv_channels", f"is not set, and hidden_size {hidden} does not divide into {heads} heads")
    channels = keys.size("kv_channels", max(hidden // heads, 1))
    bias = keys.flag("bias", True)
    activation, gated = _activation(keys, mcore, bias)
    normalization, zero_centered, norm_bias = _norm(keys, mcore, bias)
    position = keys.text("position_embedding_type", "learned_absolute")
    warnings: list[str] = []
    percentage = keys.number("rotary_percentage", 1.0)
    scaling = _rope_scaling(keys, mcore, scale_positional_embedding, warnings) if position == "rope" else None
    if position == "rope" and (not 0 < percentage <= 1 or int(channels * percentage) % 2 or channels * percentage < 2):
        keys.fault("rotary_percentage", f"{percentage:g} of {channels} channels is not an even number of them")
    if position not in _POSITIONS or keys.faults:
        return None  # a position embedding outside the three is among the refusals
    hint = keys.mapping(HINT).get("hugging_face")
    return cls(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=channels,
        ffn_hidden_size=keys.size("ffn_hidden_size", 4 * hidden),
        max_position_embeddings=_max_positions(keys, mcore, position),
        normalization=normalization,
        layernorm_zero_centered_gamma=zero_centered,
        layernorm_bias=norm_bias,
        layernorm_epsilon=keys.number("layernorm_epsilon", 1e-5),
        bias=bias,
        qkv_bias=bias or (mcore and keys.flag("qkv_bias", False)),
        activation=activation,
        gated=gated,
        position_embedding_type=_POSITIONS[position],
        rotary_percentage=percentage if position == "rope" else 1.0,
        rotary_base=keys.number("rotary_base", 10000.0) if position == "rope" else 10000.0,
        rope_scaling=scaling,
        share_embeddings_and_output_weights=keys.flag("share_embeddings_and_output_weights", True),
        hidden_dropout=keys.number("hidden_dropout", 0.1),
        attention_dropout=keys.number("attention_dropout", 0.1),
        init_method_std=keys.number("init_method_std", 0.02),
        mcore_gpt=mcore,
        megatron_legacy=not mcore and keys.flag("megatron_legacy", False),
        make_vocab_size_divisible_by=keys.size("make_vocab_size_divisible_by", 128),
        override_vocab_size=keys.optional_size("override_vocab_size"),
        hugging_face=hint if isinstance(hint, str) else None,
        warnings=tuple(warnings),
    )


def _activation(keys: Keys, mcore: bool, bias: bool) -> tuple[str, bool]:
    """The activation's name in ACT2FN, and whether it gates.

    Which GELU a `gelu` is, is decided by whether NeMo's fused kernel runs, for that one is the tanh form.
    """
    name = keys.text("activation", "gelu").lower()
    function = _FUNCTIONS.get(name.removeprefix("fast-"))
    if function is None or (name.startswith("fast-") and not name.endswith("glu")):
        keys.fault("activation", f"is none of NeMo's: {', '.join(_FUNCTIONS)}, fast-geglu, fast-swiglu, fast-reglu")
        return _ERF, False
    gated, fused = name.endswith("glu"), keys.flag("bias_activation_fusion", True)
    if not mcore and keys.flag("onnx_safe", False) and function != _ERF:
        keys.fault("onnx_safe", f"true replaces {name} by a rounded GELU")
    if not mcore and bias and fused and function != _ERF:
        keys.fault(
            "bias_activation_fusion",
            f"true makes NeMo's legacy layers skip the activation {name} and its bias; the model was trained so, or "
            "the key is wrong: set it to false",
        )
    if keys.flag("openai_gelu", False):
        return _TANH, gated  # NeMo lets this key win over `activation`
    if function == _ERF and fused and (bias or (mcore and gated)):
        return _TANH, gated
    return function, gated


def _norm(keys: Keys, mcore: bool, bias: bool) -> tuple[Normalization, bool, bool]:
    """Which norm, whether its weight is stored less one, and whether it has a bias."""
    name = keys.text("normalization", "layernorm").lower()
    zero_centered = mcore and keys.flag("layernorm_zero_centered_gamma", False)
    if name == "rmsnorm":
        return "rmsnorm", zero_centered, False
    if name == "low_precision_layernorm" and not mcore:
        return "layernorm", False, bias
    if name not in ("layernorm", "layernorm1p"):
        keys.fault("normalization", "is none of layernorm, layernorm1p, rmsnorm")
    return "layernorm", zero_centered or name == "layernorm1p", True


def _rope_scaling(keys: Keys, mcore: bool, override: bool | None, warnings: list[str]) -> RopeScaling | None:
    """How the frequencies are stretched. Only one way at a time has a counterpart outside NeMo."""
    factor = keys.number("seq_len_interpolation_factor", 1.0)
    if factor < 1:
        keys.fault("seq_len_interpolation_factor", "is less than 1")
    linear = RopeScaling("linear", factor) if factor > 1 else None
    asked = keys.flag("scale_positional_embedding", False)
    if asked and not mcore and override is None:
        warnings.append(
            f"{keys.where}: scale_positional_embedding is not followed: NeMo's legacy model does not read it"
        )
    if not (asked and mcore if override is None else override):
        return linear
    llama3 = gpt_nemo2.llama3_numbers(keys)
    if asked and override is None and keys.number("rotary_base", 10000.0) <= 10000:
        warnings.append(
            f"{keys.where}: scale_positional_embedding is true, as NeMo computes it, but rotary_base 10000 is that of "
            "Llama 2, which NeMo's converter marked so by mistake. If the model was not trained in NeMo after the "
            "conversion, import it again with scale_positional_embedding=false"
        )
    if linear is not None and factor != LLAMA31.factor:
        keys.fault("seq_len_interpolation_factor", "and scale_positional_embedding together have no counterpart")
    elif linear is not None:
        warnings.append(
            f"{keys.where}: seq_len_interpolation_factor 8 is dropped: beside scale_positional_embedding it scales "
            "twice, which NeMo's converter of Llama 3.1 set by mistake"
        )
    return RopeScaling("llama3", *llama3)


def _max_positions(keys: Keys, mcore: bool, position: str) -> int:
    """Rows of the position table, for which the implementations read different keys; with rope, an upper bound."""
    encoder = keys.optional_size("encoder_seq_length")
    table = keys.optional_size("max_position_embeddings")
    if position == "learned_absolute" and mcore:
        return encoder or 512
    if found := table or encoder:
        return found
    keys.fault("max_position_embeddings", "is missing")
    return 1


def _not_in_nemo(config: GptConfig) -> list[str]:
    faults = []
    if config.activation not in (_GATED_NAMES if config.gated else _PLAIN_NAMES):
        kind = "a gated" if config.gated else "an ungated"
        faults.append(f"NeMo has no {config.activation} as {kind} activation")
    if config.position_embedding_type == "rope" and (config.rotary_channels % 2 or not config.rotary_channels):
        faults.append(f"{config.rotary_channels} rotated channels of {config.kv_channels} are not an even number")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3" and scaling != LLAMA31:
        faults.append(
            f"rope scaling llama3 with factor {scaling.factor:g}, low_freq_factor {scaling.low_freq_factor:g}, "
            f"high_freq_factor {scaling.high_freq_factor:g} and original_max_position_embeddings "
            f"{scaling.original_max_position_embeddings}: NeMo has those of Llama 3.1 alone, 8, 1, 4 and 8192"
        )
    if not config.layernorm_bias and config.normalization == "layernorm":
        faults.append("NeMo's layer norms have a bias")
    return faults


def _not_in_legacy(config: GptConfig) -> list[str]:
    """What only Megatron-core can do."""
    faults = []
    if config.num_query_groups != config.num_attention_heads:
        faults.append(f"{config.num_query_groups} key-value heads for {config.num_attention_heads} heads")
    if config.qkv_bias and not config.bias:
        faults.append("a bias on queries, keys and values alone")
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        faults.append("Llama 3.1's rope scaling")
    if config.normalization == "rmsnorm" and config.layernorm_zero_centered_gamma:
        faults.append("an RMSNorm whose weight is stored less one")
    return [f"{fault}: the legacy layout has none; write an mcore layout" for fault in faults]
