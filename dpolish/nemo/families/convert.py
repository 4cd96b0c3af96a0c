"""From NeMo's tensors to Hugging Face's and back, lazily and without loss.

A norm whose weight the one side stores less one is folded in float32, and stays float32 on the Hugging Face side: in
bfloat16 three weights of four would be rounded. Weights that came from bfloat16 fold and unfold exactly but for those
below 2⁻¹⁶; of float32 weights the last bits can be lost, so `rounded_norms` says which tensors to keep beside the
model to have them back. The configuration's `dtype` is that of the matrices. `from_pretrained(dtype="auto")`, which
transformers does by default, casts everything to it, folded norms too; `dtype=torch.float32` keeps them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import partial, reduce

import torch
from torch import Tensor

from dpolish.errors import ModelError, join_faults
from dpolish.nemo.families.family import FAMILIES, Family, Piece, pieces
from dpolish.nemo.families.layout import SAME, Layout, Shape
from dpolish.nemo.families.source import read_source
from dpolish.nemo.gpt_config import GptConfig, RopeScaling
from dpolish.nemo.stored import StoredTensor, Weights
from dpolish.nemo.tar_plan import quoted

_BUFFERS = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias)$")
"""What older versions of transformers saved along with the parameters."""
_HEADS = ("lm_head.weight", "embed_out.weight")


def expected_shapes(config: GptConfig, rows: int) -> dict[str, Shape]:
    """Names and shapes of all the tensors that a model has whose embedding has `rows`."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    norm = ("weight", "bias") if config.layernorm_bias else ("weight",)
    shapes: dict[str, Shape] = {"embedding.word_embeddings.weight": (rows, hidden)}
    if config.position_embedding_type == "learned_absolute":
        shapes["embedding.position_embeddings.weight"] = (config.max_position_embeddings, hidden)
    layer: dict[str, Shape] = {f"self_attention.linear_qkv.layer_norm_{kind}": (hidden,) for kind in norm}
    layer |= _linear("self_attention.linear_qkv", config.qkv_rows, hidden, config.qkv_bias)
    heads = config.num_attention_heads * config.kv_channels
    layer |= _linear("self_attention.linear_proj", hidden, heads, config.bias)
    layer |= {f"mlp.linear_fc1.layer_norm_{kind}": (hidden,) for kind in norm}
    layer |= _linear("mlp.linear_fc1", 2 * ffn if config.gated else ffn, hidden, config.bias)
    layer |= _linear("mlp.linear_fc2", hidden, ffn, config.bias)
    for index in range(config.num_layers):
        shapes |= {f"decoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= {f"decoder.final_layernorm.{kind}": (hidden,) for kind in norm}
    if not config.share_embeddings_and_output_weights:
        shapes["output_layer.weight"] = (rows, hidden)
    return shapes


def choose_family(config: GptConfig) -> Family:
    """The architecture that computes the model exactly.

    Of several, the one that the model came from, else the first that takes the norms as they are stored. Raises
    ModelError with what the nearest ones lack.
    """
    lacks = {name: list(family.lacks(config)) for name, family in FAMILIES.items()}
    exact = [FAMILIES[name] for name, reasons in lacks.items() if not reasons]
    if not exact:
        fewest = min(len(reasons) for reasons in lacks.values())
        nearest = [f"{name}: {'; '.join(reasons)}" for name, reasons in lacks.items() if len(reasons) == fewest]
        raise ModelError(
            "model_config.yaml: no Hugging Face architecture computes this model exactly; the nearest are\n  "
            + "\n  ".join(nearest)
        )
    for family in exact:
        if family.model_type == config.hugging_face:
            return family
    return min(exact, key=lambda family: family.zero_centered != config.layernorm_zero_centered_gamma)


def hugging_face_config(
    config: GptConfig,
    rows: int,
    *,
    dtype: torch.dtype = torch.float32,
    token_ids: Mapping[str, int | None] | None = None,
) -> dict[str, object]:
    """The contents of `config.json`: the vocabulary has all `rows`, padding included, as the softmax in NeMo had.

    `token_ids` may give `bos_token_id`, `eos_token_id` and `pad_token_id`; what is absent is null, never the default
    of the class, which names another tokenizer's tokens.
    """
    family = choose_family(config)
    ids = {name: (token_ids or {}).get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shared: dict[str, object] = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
    }
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": rows,
        **{family.config_names.get(name, name): value for name, value in shared.items()},
        **family.fields(config),
        **(_rope(config, family) if config.position_embedding_type == "rope" else {}),
        "initializer_range": config.init_method_std,
        "tie_word_embeddings": config.share_embeddings_and_output_weights,
        **ids,
    }


def to_hugging_face(config: GptConfig, weights: Weights) -> dict[str, StoredTensor]:
    """The model's tensors under the names of its family; nothing is read yet."""
    family = choose_family(config)
    offset = _offset(config, family)
    out: dict[str, StoredTensor] = {}
    for piece in pieces(family, config):
        stored = weights[piece.core]
        if piece.is_norm_weight and offset:
            load = partial(_shifted, stored, offset)
            out[piece.hugging_face[0]] = StoredTensor(stored.shape, torch.float32, load)
        elif piece.layout is SAME:
            out[piece.hugging_face[0]] = stored
        else:
            parts = _Parts(stored, piece.layout)
            for index, (name, shape) in enumerate(
                zip(piece.hugging_face, piece.layout.shapes(stored.shape), strict=True)
            ):
                out[name] = StoredTensor(shape, stored.dtype, partial(parts.load, index))
    return out


def from_hugging_face(
    hf_config: Mapping[str, object],
    stored: Weights,
    *,
    original: GptConfig | None = None,
    exact_norms: Weights | None = None,
    norm_dtype: torch.dtype | None = None,
) -> tuple[GptConfig, dict[str, StoredTensor]]:
    """The model that a Hugging Face folder holds, under NeMo's names; nothing is read yet, but for a second tied head.

    `original` is what NeMo's configuration said where the folder came from NeMo: norms are stored as they were then.
    An unfolded norm has the dtype of the embedding, or `norm_dtype`, and where its folded value is still the one that
    `exact_norms` gives, exactly the number that it was. Raises ModelError for what Megatron's GPT does not compute,
    for tensors that are missing, unknown or misshapen, and where `original` is another model.
    """
    family, config = _read(hf_config)
    if original is not None:
        config = _as_it_was(config, original)
    weights = _renamed(stored, family)
    embedding = f"{family.names.base}{family.names.embedding}.weight"
    if embedding not in weights or len(weights[embedding].shape) != 2:
        raise ModelError(f"the weights have no matrix {embedding}")
    head = family.names.head
    if config.share_embeddings_and_output_weights and head in weights:
        _require_tied(weights[head], weights[embedding], head, embedding)
        del weights[head]
    shapes = expected_shapes(config, weights[embedding].shape[0])
    offset = _offset(config, family)
    out: dict[str, StoredTensor] = {}
    faults: list[str] = []
    for piece in pieces(family, config):
        faults += (found := list(_misfits(piece, shapes[piece.core], weights)))
        if found:
            continue
        parts = tuple(weights[name] for name in piece.hugging_face)
        if piece.is_norm_weight and offset:
            dtype = norm_dtype or weights[embedding].dtype
            exact = (exact_norms or {}).get(piece.core)
            load = partial(_unshifted, parts[0], offset, dtype, exact)
            out[piece.core] = StoredTensor(shapes[piece.core], dtype, load)
        elif piece.layout is SAME:
            out[piece.core] = parts[0]
        else:
            dtypes = [part.dtype for part in parts]
            load = partial(_joined, parts, piece.layout)
            out[piece.core] = StoredTensor(shapes[piece.core], reduce(torch.promote_types, dtypes), load)
    known = {name for piece in pieces(family, config) for name in piece.hugging_face}
    faults += [f"{quoted(name)} has no place in {family.architecture}" for name in sorted(weights.keys() - known)]
    if faults:
        raise ModelError(f"the weights do not fit config.json: {join_faults(faults, shown=6)}")
    return config, out


def rounded_norms(config: GptConfig, weights: Weights) -> dict[str, StoredTensor]:
    """The norm weights that the family folds: what `from_hugging_face` wants as `exact_norms` to restore every bit."""
    family = choose_family(config)
    if not _offset(config, family):
        return {}
    return {piece.core: weights[piece.core] for piece in pieces(family, config) if piece.is_norm_weight}


class _Parts:
    """The parts of one tensor, which is read once if all parts are asked for in turn, and let go after the last."""

    __slots__ = ("_held", "_layout", "_stored", "_wanted")

    def __init__(self, stored: StoredTensor, layout: Layout) -> None:
        self._stored, self._layout = stored, layout
        self._held: tuple[Tensor, ...] = ()
        self._wanted: set[int] = set()

    def load(self, index: int) -> Tensor:
        """Part `index`, with memory of its own."""
        if not self._held:
            self._held = self._layout.split(self._stored.load())
            self._wanted = set(range(len(self._held)))
        part = self._held[index].clone(memory_format=torch.contiguous_format)
        self._wanted.discard(index)
        if not self._wanted:
            self._held = ()
        return part


def _joined(parts: tuple[StoredTensor, ...], layout: Layout) -> Tensor:
    return layout.join(tuple(part.load() for part in parts)).contiguous()


def _shifted(stored: StoredTensor, offset: float) -> Tensor:
    return stored.load().float() + offset


def _unshifted(stored: StoredTensor, offset: float, dtype: torch.dtype, exact: StoredTensor | None) -> Tensor:
    """The norm's weight as NeMo stores it; the original number wherever the folded one has not changed."""
    folded = stored.load().float()
    unfolded = (folded - offset).to(dtype)
    if exact is None or exact.shape != stored.shape:
        return unfolded
    original = exact.load()
    return torch.where(original.float() + offset == folded, original.to(dtype), unfolded)


def _offset(config: GptConfig, family: Family) -> float:
    """What is added to a norm's weight on the way to Hugging Face."""
    return float(config.layernorm_zero_centered_gamma) - float(family.zero_centered)


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight


def _rope(config: GptConfig, family: Family) -> dict[str, object]:
    """Rotary fields as transformers 5 has them, and beside them those that version 4 and other readers know."""
    scaling = config.rope_scaling
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": config.rotary_base}
    if family.model_type in ("stablelm", "nemotron", "gpt_neox"):
        parameters["partial_rotary_factor"] = config.rotary_percentage
    if scaling is not None:
        parameters |= _scaling(scaling)
    older = {name: value for name, value in parameters.items() if name in ("rope_theta", "partial_rotary_factor")}
    return {
        "rope_parameters": parameters,
        **(older if family.model_type != "gpt_neox" else {}),  # it has names of its own for both
        **({"rope_scaling": dict(parameters)} if scaling is not None else {}),
    }


def _scaling(scaling: RopeScaling) -> dict[str, object]:
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def _read(hf_config: Mapping[str, object]) -> tuple[Family, GptConfig]:
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"config.json: model_type {model_type!r} has no counterpart among NeMo's GPT models; these have: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family, source = FAMILIES[model_type], read_source(hf_config)
    config = family.read(source)
    if faults := source.faults or list(family.lacks(config)):  # the second: sizes that do not go together
        raise ModelError(join_faults([f"config.json: {fault}" for fault in faults]))
    return family, config


def _as_it_was(config: GptConfig, original: GptConfig) -> GptConfig:
    """`original`, once it is clear that it is the model of `config`, which cannot know how norms were stored."""
    free = {
        "layernorm_zero_centered_gamma",
        "hidden_dropout",
        "attention_dropout",
        "init_method_std",
        *(("max_position_embeddings",) if original.position_embedding_type == "rope" else ()),
    }
    known = replace(config, **{name: getattr(original, name) for name in free})
    changed = [
        f"{part.name} was {getattr(original, part.name)!r} and is {getattr(known, part.name)!r}"
        for part in fields(GptConfig)
        if part.compare and getattr(original, part.name) != getattr(known, part.name)
    ]
    if changed:
        raise ModelError(
            "config.json is not of the model that NeMo's configuration beside it describes: " + "; ".join(changed)
        )
    return original


def _renamed(weights: Weights, family: Family) -> dict[str, StoredTensor]:
    """The parameters under the names of the whole model, without buffers."""
    names = family.names
    bare = not any(name.startswith(names.base) for name in weights)  # saved from the model without its head
    out: dict[str, StoredTensor] = {}
    for name, stored in weights.items():
        if _BUFFERS.search(name):
            continue
        if name in _HEADS:
            out[names.head] = stored
        else:
            out[f"{names.base}{name}" if bare else name] = stored
    return out


def _require_tied(head: StoredTensor, embedding: StoredTensor, name: str, embedding_name: str) -> None:
    """Raise ModelError unless the head is the embedding's copy: transformers uses one that differs, NeMo never."""
    if head.shape != embedding.shape or not torch.equal(head.load(), embedding.load()):
        raise ModelError(
            f"config.json says tie_word_embeddings, and {name} differs from {embedding_name}: set it to false to keep "
            f"the head, or remove {name}"
        )


def _misfits(piece: Piece, core: Shape, weights: Weights) -> Iterator[str]:
    for name, shape in zip(piece.hugging_face, piece.layout.shapes(core), strict=True):
        if name not in weights:
            yield f"{name} is missing"
        elif weights[name].shape != shape:
            yield f"{name} has shape {list(weights[name].shape)}, config.json says {list(shape)}"
