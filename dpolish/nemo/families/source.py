"""A Hugging Face configuration, read field by field with the defaults of its class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpolish.errors import ModelError
from dpolish.nemo.gpt_config import GptConfig, Normalization, PositionEmbedding, RopeScaling
from dpolish.nemo.gpt_keys import LARGEST_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LARGEST = {"num_hidden_layers": 4096, "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16}
"""As where NeMo's configuration is read: the names of a billion layers would fill the memory."""
_SAME_FUNCTION = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(slots=True)
class Source:
    """A configuration and what was found in it that Megatron's GPT cannot do."""

    config: "PreTrainedConfig"
    faults: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """A field's value; None where the class has no such field."""
        return getattr(self.config, name, None)

    def size(self, name: str) -> int:
        """A positive whole number; 1 after a fault."""
        value = self.get(name)
        most = _LARGEST.get(name, LARGEST_SIZE)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.faults.append(f"{name} {value!r} is not a whole number from 1 to {most}")
            return 1
        return value

    def refuse(self, name: str, asks: bool, reason: str) -> None:
        """Note that a field asks for what Megatron's GPT does not compute."""
        if asks:
            self.faults.append(f"{name} {self.get(name)!r}: {reason}")

    def refuse_window(self) -> None:
        """Note a sliding window that is shorter than the longest text."""
        window, longest = self.get("sliding_window"), self.size("max_position_embeddings")
        self.refuse(
            "sliding_window",
            window is not None and window < longest,
            f"NeMo would attend to all {longest} positions; for texts up to {window} tokens, where both are the same, "
            f"set max_position_embeddings to {window} in config.json",
        )

    def activation(self, name: str = "hidden_act") -> str:
        """The activation, different names of one function made equal."""
        value = self.get(name)
        self.refuse(name, value not in _SAME_FUNCTION, "NeMo has no such activation")
        return _SAME_FUNCTION.get(value, "gelu")

    def rope(self) -> tuple[float, float, RopeScaling | None]:
        """The rotated share of a head, the base, and how frequencies are stretched."""
        rope: Mapping[str, Any] = self.get("rope_parameters") or {}
        share, base = float(rope.get("partial_rotary_factor") or 1.0), float(rope.get("rope_theta") or 10000.0)
        match rope.get("rope_type", "default"):
            case "default":
                return share, base, None
            case "linear":
                return share, base, RopeScaling("linear", float(rope["factor"]))
            case "llama3":
                factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
                context = int(rope["original_max_position_embeddings"])
                return share, base, RopeScaling("llama3", factor, low, high, context)
            case kind:
                self.faults.append(f"rope_type {kind!r}: NeMo has linear scaling and that of Llama 3.1")
                return share, base, None

    def model(
        self,
        *,
        normalization: Normalization,
        epsilon: str,
        activation: str,
        gated: bool,
        bias: bool,
        qkv_bias: bool | None = None,
        zero_centered: bool = False,
        position: PositionEmbedding = "rope",
        partly_rotated: bool = False,
        groups: str | None = "num_key_value_heads",
        width: str = "intermediate_size",
        dropout: str | None = None,
        attention_dropout: str = "attention_dropout",
    ) -> GptConfig:
        """The model, from the fields that all families have under one name and those that are given here."""
        heads, hidden = self.size("num_attention_heads"), self.size("hidden_size")
        share, base, scaling = self.rope() if position == "rope" else (1.0, 10000.0, None)
        return GptConfig(
            num_layers=self.size("num_hidden_layers"),
            hidden_size=hidden,
            num_attention_heads=heads,
            num_query_groups=heads if groups is None else self.size(groups),
            kv_channels=self.get("head_dim") or hidden // heads,
            ffn_hidden_size=self.size(width),
            max_position_embeddings=self.size("max_position_embeddings"),
            normalization=normalization,
            layernorm_zero_centered_gamma=zero_centered,
            layernorm_bias=normalization == "layernorm",
            layernorm_epsilon=float(self.get(epsilon)),
            bias=bias,
            qkv_bias=bias if qkv_bias is None else qkv_bias,
            activation=activation,
            gated=gated,
            position_embedding_type=position,
            rotary_percentage=share if partly_rotated else 1.0,  # Llama's code does not look at the share
            rotary_base=base,
            rope_scaling=scaling,
            share_embeddings_and_output_weights=bool(self.get("tie_word_embeddings")),
            hidden_dropout=float(self.get(dropout) or 0.0) if dropout else 0.0,
            attention_dropout=float(self.get(attention_dropout) or 0.0),
            init_method_std=float(self.get("initializer_range")),
            hugging_face=str(self.config.model_type),
        )


def read_source(raw: Mapping[str, object]) -> Source:
    """The configuration in `config.json`, absent fields filled in. Code that it names is not run."""
    from transformers import CONFIG_MAPPING  # deferred: reading a `.nemo` needs none of it

    model_type = str(raw["model_type"])
    if raw.get("quantization_config"):
        raise ModelError("config.json: the weights are quantized; convert the model as it was before")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(dict(raw))
    except Exception as error:
        raise ModelError(f"config.json: transformers cannot read it as {model_type}: {error}") from error
    return Source(config)
