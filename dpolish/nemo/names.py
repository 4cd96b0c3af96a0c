"""What a tensor of NeMo is called here: the names of Megatron-core with Transformer Engine, whoever wrote the file.

model.language_model.encoder.layers.0.self_attention.query_key_value.weight   NeMo's own layers
model.language_model.encoder.layers.0.self_attention.layernorm_qkv.weight     the same with Transformer Engine
model.decoder.layers.0.input_layernorm.weight                                 Megatron-core, local layers
module.decoder.layers.self_attention.linear_qkv.weight                        NeMo 2, all layers stacked
→ decoder.layers.0.self_attention.linear_qkv.weight and so on
"""

import re
from typing import Literal, TypeAlias

Naming: TypeAlias = Literal["legacy", "legacy-te", "mcore-local", "mcore-te", "distributed"]

UP = "mlp.up."
"""Where NeMo's own layers hold the second matrix of a gated fc1; no name of Megatron-core, and joined before use."""

_PREFIXES = ("model.", "module.", "language_model.")
_VIRTUAL = re.compile(r"model\d+\.")
_LAYERS = re.compile(r"(?:encoder|decoder|transformer)\.layers\.(?:(\d{1,6})\.)?(.+)", re.DOTALL)
_FINAL = re.compile(r"(?:encoder|transformer)\.(final_layernorm\.)")
_QKV, _FC1 = "self_attention.linear_qkv.", "mlp.linear_fc1."
_IN_LAYER = {
    "input_layernorm.": f"{_QKV}layer_norm_",
    "self_attention.query_key_value.": _QKV,
    "self_attention.dense.": "self_attention.linear_proj.",
    "post_attention_layernorm.": f"{_FC1}layer_norm_",
    "pre_mlp_layernorm.": f"{_FC1}layer_norm_",
    "mlp.dense_h_to_4h.": _FC1,
    "mlp.dense_h_to_4h_2.": UP,
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
    "self_attention.layernorm_qkv.": _QKV,
    "self_attention.proj.": "self_attention.linear_proj.",
    "layernorm_mlp.layer_norm_": f"{_FC1}layer_norm_",
    "layernorm_mlp.fc1_": _FC1,
    "layernorm_mlp.fc2_": "mlp.linear_fc2.",
}
_RUN_STATE = ("optimizer.", "optimizer_", "rng_state", "rerun_state", "opt_param_scheduler")


def bare(name: str) -> str:
    """The name without what wraps the model: `model.`, `module.`, `language_model.`, in any order."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def is_weight(name: str) -> bool:
    """True if the name is a tensor of the model, and not a state of the run, of its kernels, or recomputed."""
    name = bare(name)
    return (
        not name.startswith(_RUN_STATE)
        and not name.endswith(("_extra_state", ".inv_freq"))
        and "_extra_state/" not in name
    )


def is_virtual(name: str) -> bool:
    """True for a tensor of a virtual pipeline stage, which files number `model0.`, `model1.` …"""
    return _VIRTUAL.match(name) is not None


def canonical(name: str) -> tuple[int | None, str]:
    """(layer or None, name) in Megatron-core's spelling; the name is within the layer if there is one.

    A stack of all layers has no layer and begins with `decoder.layers.`; an unknown name comes back bare.
    """
    name = bare(name)
    found = _LAYERS.fullmatch(name)
    if found is None:
        return None, _FINAL.sub(r"decoder.\1", name, count=1)
    rest = re.sub(r"^attention\.", "self_attention.", found[2])
    for old, new in _IN_LAYER.items():
        if rest.startswith(old):
            rest = new + rest.removeprefix(old)
            break
    return (None, f"decoder.layers.{rest}") if found[1] is None else (int(found[1]), rest)


def naming_of(names: list[str]) -> Naming:
    """Who wrote a flat checkpoint with these tensors."""
    rests = [bare(name) for name in names]
    te = any(".layernorm_qkv." in rest or ".layernorm_mlp." in rest for rest in rests)
    if any(rest.startswith(("encoder.", "transformer.")) for rest in rests):
        return "legacy-te" if te else "legacy"
    return "mcore-local" if any("_layernorm." in rest and ".layers." in rest for rest in rests) else "mcore-te"


def is_full_te(names: list[str]) -> bool:
    """True for Megatron-core with whole layers of Transformer Engine, whose order of rows is not known here."""
    return any(bare(name).startswith("decoder.") and ".layernorm_mlp." in name for name in names)
