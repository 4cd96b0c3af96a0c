"""Keys that make NeMo compute something that no Hugging Face architecture here does, each with the reason."""

from collections.abc import Callable, Iterator, Mapping

from dpolish.nemo.gpt_keys import Keys, is_set

Asks = Callable[[object], bool]


def _is_false(value: object) -> bool:
    return value is False


def _restricts(window: object) -> bool:
    """A window of [null, 0] or [-1, 0] is none; NeMo's Starcoder2 converter writes such."""
    left = window[0] if isinstance(window, list | tuple) and window else window
    return left is not None and left != -1


def _any_set(block: object) -> bool:
    return any(is_set(value) for value in block.values()) if isinstance(block, Mapping) else is_set(block)


def _other_than(*accepted: object) -> Asks:
    return lambda value: value is not None and value not in accepted


REFUSED: Mapping[str, tuple[Asks, str]] = {
    "transformer_block_type": (
        _other_than("pre_ln"),
        "is not pre_ln: norms stand elsewhere, or there are more of them",
    ),
    "normalize_attention_scores": (_is_false, "leaves attention scores undivided by √(head width)"),
    "attention_type": (_other_than("multihead"), "is not multihead attention"),
    "rotary_interleaved": (is_set, "rotates neighbouring channels; the families here rotate halves"),
    "headscale": (is_set, "scales every head by a learned number"),
    "num_moe_experts": (is_set, "is a mixture of experts; dense models are read"),
    "qk_layernorm": (is_set, "normalises queries and keys"),
    "window_size": (_restricts, "limits attention to a window; if no text is longer than that, remove the key"),
    "apply_embedding_scaling": (is_set, "scales embeddings, as Gemma does"),
    "mcore_customization_config": (_any_set, "changes the layers, as Gemma 2 does"),
    "attn_logit_softcapping": (is_set, "caps attention scores, as Gemma 2 does"),
    "final_logit_softcapping": (is_set, "caps logits, as Gemma 2 does"),
    "softmax_scale": (is_set, "sets another scale of attention scores"),
    "softmax_type": (_other_than("vanilla"), "adds a sink to the softmax"),
    "multi_latent_attention": (is_set, "is multi-head latent attention"),
    "attention_output_gate": (is_set, "gates the output of attention"),
    "no_rope_freq": (is_set, "leaves some layers without positions"),
    "mtp_num_layers": (is_set, "predicts several tokens with layers of their own"),
    "activation_func_clamp_value": (is_set, "clamps the activation"),
    "glu_linear_offset": (is_set, "adds to the linear branch of the activation"),
    "apply_residual_connection_post_layernorm": (is_set, "takes the residual after the norm"),
    "hyena": (is_set, "replaces attention by Hyena operators"),
}
_POSITIONS = {
    "alibi": "adds ALiBi's slopes to the scores",
    "kerple": "adds KERPLE's learned biases to the scores",
    "sandwich": "adds Sandwich's biases to the scores",
    "xpos": "decays rotary positions",
}
_SPECS = ("", "te_gpt", "modelopt")
"""Plain layers, whichever library runs them."""


def refusals(keys: Keys) -> Iterator[str]:
    """One message for each key that asks for what cannot be done."""
    for key, (asks, reason) in REFUSED.items():
        if asks(keys.raw.get(key)):
            yield f"{keys.where}: {key}: {keys.raw[key]!r:.60} {reason}"
    position = keys.raw.get("position_embedding_type", "learned_absolute")
    if position not in ("rope", "learned_absolute", "none", None):
        reason = _POSITIONS.get(str(position), "is none of rope and learned_absolute")
        yield f"{keys.where}: position_embedding_type: {position!r:.60} {reason}"
    spec = keys.raw.get("name") or ""
    if keys.raw.get("mcore_gpt") and spec not in _SPECS:
        yield f"{keys.where}: name: {spec!r:.60} names layers of another kind than plain GPT"
