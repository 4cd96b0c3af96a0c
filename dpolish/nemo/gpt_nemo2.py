"""NeMo 2 and Megatron-Bridge describe a model by the fields of Megatron-core's classes; this spells them as NeMo 1 did.

The classes named under `_target_` are text: nothing is imported, nothing is called.
"""

from collections.abc import Mapping

from dpolish.nemo.gpt_keys import Keys

_RENAMED = {
    "add_bias_linear": "bias",
    "add_qkv_bias": "qkv_bias",
    "rotary_percent": "rotary_percentage",
    "seq_length": "encoder_seq_length",
    "vocab_size": "override_vocab_size",
}
_MARKS = ("gated_linear_unit", "add_bias_linear", "activation_func")
_ACTIVATIONS = (  # the first that the function's name ends with
    ("squared_relu", "squared-relu"),
    ("openai_gelu", "openai-gelu"),
    ("gelu_impl", "openai-gelu"),
    ("quick_gelu", "approx-gelu"),
    ("fast_gelu", "openai-gelu"),
    ("gelu", "gelu"),
    ("silu", "silu"),
    ("relu", "relu"),
)
_GATED = {"gelu": "fast-geglu", "silu": "fast-swiglu", "relu": "fast-reglu", "openai-gelu": "fast-geglu"}
_UNGATED = {"openai-gelu": "gelu"}
_LLAMA3_KEYS = {"scale_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192.0}


def is_nemo2(raw: Mapping[str, object]) -> bool:
    """Whether a configuration has Megatron-core's fields, by themselves or under `config` or `model`."""
    return any(mark in _fields(raw) for mark in _MARKS)


def in_nemo1_spelling(raw: Mapping[str, object], where: str) -> Keys:
    """The same model under NeMo 1's keys, with Megatron-core's defaults."""
    fields = _fields(raw)
    target = str(fields.get("_target_", ""))
    keys: dict[str, object] = {"mcore_gpt": True, "bias_activation_fusion": False}
    keys.update({_RENAMED.get(name, name): value for name, value in fields.items()})
    keys.pop("name", None)
    if fields.get("seq_length") is not None:
        keys["max_position_embeddings"] = fields["seq_length"]
    if fields.get("rope_scaling") is True:  # Megatron-core's own flag, in Megatron-Bridge
        keys |= {"scale_positional_embedding": True, "scale_factor": fields.get("rope_scaling_factor")}
    elif fields.get("scale_factor") is not None or "Llama31" in target or "Llama32" in target:
        keys["scale_positional_embedding"] = True
    out = Keys(keys, where)
    _spell_activation(fields, target, out, keys)
    return out


def llama3_numbers(keys: Keys) -> tuple[float, float, float, int]:
    """Factor, low and high frequency factor, and original context of Llama 3.1's scaling; NeMo 1 has them in code."""
    factor, low, high, context = (keys.number(name, default) for name, default in _LLAMA3_KEYS.items())
    return factor, low, high, int(context)


def _fields(raw: Mapping[str, object]) -> Mapping[str, object]:
    for block in ("config", "model"):
        inner = raw.get(block)
        if isinstance(inner, Mapping) and any(mark in inner for mark in _MARKS):
            return inner
    return raw


def _spell_activation(fields: Mapping[str, object], target: str, out: Keys, keys: dict[str, object]) -> None:
    """Set `activation` and `openai_gelu` from the function's name and `gated_linear_unit`."""
    function = fields.get("activation_func")
    named = str(function.get("_target_", "") if isinstance(function, Mapping) else function or "gelu")
    gated = out.flag("gated_linear_unit", False)
    word = next((known for end, known in _ACTIVATIONS if named.lower().endswith(end)), None)
    if word is None and named.endswith("builtin_function_or_method"):
        word = "gelu"  # the one of torch's activations that is no Python function, so that its name is lost
    if word is None and "Nemotron" in target:
        word = "squared-relu"  # a compiled function, whose name is lost as well
    names = (
        _GATED if gated else {"gelu": "gelu", "squared-relu": "squared-relu", "approx-gelu": "approx-gelu"} | _UNGATED
    )
    if word is None or word not in names:
        kind = "gated" if gated else "ungated"
        out.faults.append(f"{out.where}: activation_func {named!r:.80}, {kind}, is no activation that is known here")
        return
    keys["activation"] = names[word]
    keys["openai_gelu"] = word == "openai-gelu"
