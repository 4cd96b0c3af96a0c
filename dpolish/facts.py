"""What a model folder and a machine say about themselves: sizes for the plan, a folder for the loader.

The parameters are counted in the headers of the weights. Where a folder has no weights, whoever knows the architecture
hands in the shapes of its tensors.

Read without torch.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpolish.errors import ModelError
from dpolish.registry import did_you_mean

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS = "*.safetensors"
_WANTED = ["*.json", _WEIGHTS, "*.model", "*.txt", "*.jinja"]
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts?\.")

Shapes = Mapping[str, Sequence[int]]
"""The shape of every tensor of a model, by name."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers a model is made of, and where they are. Tensor parallelism splits matrices, not vectors."""

    matrices: int
    """All that have two axes or more."""
    vectors: int
    """All others: norms and biases."""
    layer_matrices: int
    """Those of the largest layer alone."""
    layer_vectors: int
    outside_matrices: int
    """Those of no layer: embeddings, head."""
    outside_vectors: int
    experts: int
    """Those of all experts, of which a token passes through some."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.vectors

    @staticmethod
    def of(shapes: Shapes) -> "Parameters":
        """The counts of these tensors."""
        layers: dict[str, list[int]] = {}
        outside, experts = [0, 0], 0
        for name, shape in shapes.items():
            size, is_vector = math.prod(shape), len(shape) < 2
            layer = _LAYER.search(name)
            counts = layers.setdefault(layer[1], [0, 0]) if layer else outside
            counts[is_vector] += size
            experts += size if _EXPERT.search(name) else 0
        layer_matrices, layer_vectors = max(layers.values(), key=sum, default=[0, 0])
        matrices, vectors = (sum(counts[axis] for counts in (*layers.values(), outside)) for axis in (0, 1))
        return Parameters(matrices, vectors, layer_matrices, layer_vectors, outside[0], outside[1], experts)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a causal language model, from config.json and the headers of its weights."""

    folder: Path
    architecture: str
    parameters: Parameters
    num_layers: int
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    """Width of the feed-forward part that one token passes through: of all its experts together."""
    expert_share: float
    """Share of the experts' parameters that one token passes through; 1 without experts."""
    query_size: int
    """Width of the queries of one token in one layer."""
    key_value_size: int
    """Width of the keys (and of the values) of one token in one layer."""
    vocabulary_size: int
    max_positions: int | None
    """Longest sequence that the model was made for; None where config.json does not say."""
    varying_rope: tuple[str, int] | None
    """Rotary positions that change with the longest row of a batch: (kind, length from which they do)."""

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return self.parameters.total


def find_model(name: str, *, weights: bool = True) -> Path:
    """The folder of a model: itself, or a hub id's copy, fetched if the hub can be reached. Raises ModelError.

    Without `weights` those of a hub id are not fetched, but may be there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name} is a file; name the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ModelError(f"{name}: no such folder.{did_you_mean(folder.name, near)}")
    return _from_hub(name, _WANTED if weights else [pattern for pattern in _WANTED if pattern != _WEIGHTS])


def _from_hub(name: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{name}: no folder of this name, and the hub gives no such model ({reason})") from error


def read_model_facts(folder: Path, shapes: Shapes | None = None) -> ModelFacts:
    """The sizes of the model in `folder`, its parameters those of its weights, or of `shapes` where they are given.

    Raises ModelError when config.json or the weights cannot be read.
    """
    whole = read_config_json(folder)
    text = whole.get("text_config")
    config: Mapping[str, object] = text if isinstance(text, dict) else whole
    hidden = _number(config, folder, "hidden_size", "n_embd", "d_model")
    heads = _number(config, folder, "num_attention_heads", "n_head", "n_heads", default=1)
    key_value_heads = _number(config, folder, "num_key_value_heads", default=heads)
    head_dim = _number(config, folder, "head_dim", default=hidden // max(heads, 1))
    intermediate, expert_share = _feed_forward(config, folder, hidden)
    return ModelFacts(
        folder=folder,
        architecture=", ".join(map(str, _as_list(whole.get("architectures")))) or str(whole.get("model_type")),
        parameters=Parameters.of(weight_shapes(folder) if shapes is None else shapes),
        num_layers=_number(config, folder, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        expert_share=expert_share,
        query_size=heads * head_dim,
        key_value_size=key_value_heads * head_dim,
        vocabulary_size=_number(config, folder, "vocab_size"),
        max_positions=_optional(config, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
        varying_rope=_varying_rope(config),
    )


def _feed_forward(config: Mapping[str, object], folder: Path, hidden: int) -> tuple[int, float]:
    """Width of the feed-forward part that a token passes through, and the share of the experts that it does."""
    dense = _number(config, folder, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    experts = _optional(config, "num_local_experts", "num_experts", "n_routed_experts")
    chosen = _optional(config, "num_experts_per_tok", "experts_per_token", "moe_topk")
    if experts is None or chosen is None:
        return dense, 1.0
    width = _optional(config, "moe_intermediate_size") or dense
    shared = (
        _optional(config, "shared_expert_intermediate_size") or (_optional(config, "n_shared_experts") or 0) * width
    )
    return chosen * width + shared, min(chosen / experts, 1.0)


def read_config_json(folder: Path) -> dict[str, object]:
    """The fields of a model folder's config.json. Raises ModelError when they cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no config.json here; name a Hugging Face model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _optional(config: Mapping[str, object], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _number(config: Mapping[str, object], folder: Path, *names: str, default: int | None = None) -> int:
    value = _optional(config, *names)
    value = default if value is None else value
    if value is None:
        raise ModelError(f"{folder}/config.json: no {' or '.join(names)}; is this a causal language model?")
    return value


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _varying_rope(config: Mapping[str, object]) -> tuple[str, int] | None:
    """Kind and original length of rotary scaling that looks at the longest row of a batch; None without such scaling.

    Dynamic and LongRoPE scaling do: beyond the original length a row's positions would depend on its neighbours.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return None
    kind = str(rope.get("rope_type", rope.get("type")))
    if kind not in ("dynamic", "longrope", "su", "yarn_dynamic"):
        return None
    limit = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    limit = limit if isinstance(limit, int) else _optional(config, "max_position_embeddings")
    return None if limit is None else (kind, limit)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: those of the index, else model.safetensors, else whatever there is.

    Other files may lie beside them: the same weights in one piece, or in another library's names.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: cannot be read ({error})") from error
    files = sorted(folder / Path(str(name)).name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder}: {', '.join(missing[:3])} is missing, which {index.name} names")
    return files


def has_weights(folder: Path) -> bool:
    """True where a folder holds weights, of whatever kind."""
    return any(folder.glob("*.safetensors")) or bool(_pickled(folder))


def _pickled(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"})


def weight_shapes(folder: Path) -> Shapes:
    """The shapes of all tensors in the safetensors files of a folder, by their headers. Raises ModelError."""
    shapes: dict[str, Sequence[int]] = {}
    for file in weight_files(folder):
        shapes |= {name: header.shape for name, header in tensor_headers(file).items()}
    if not any(math.prod(shape) for shape in shapes.values()):
        pickled = _pickled(folder)
        here = f"only pickled weights ({', '.join(pickled[:3])}), which are never opened" if pickled else "no weights"
        raise ModelError(f"{folder}: {here}; save the model as safetensors")
    return shapes


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


def tensor_headers(file: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name. Raises ModelError when it is not one, or is cut short."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        room = file.stat().st_size - 8
        if not 0 < size <= room:
            raise ModelError(f"{file}: not a safetensors file, or cut short")
        try:
            header = json.loads(handle.read(size))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{file}: the safetensors header is not readable ({error})") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file}: the safetensors header is not readable (it is no JSON object)")
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        try:
            first, last = entry["data_offsets"]
            found[name] = TensorHeader(entry["dtype"], tuple(entry["shape"]), 8 + size + first, 8 + size + last)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file}: the safetensors header of {name} is not readable") from error
        if not 0 <= first <= last <= room - size:
            raise ModelError(f"{file}: {name} lies outside the file; it was cut short or is damaged")
    return found


def host_memory() -> int:
    """Bytes of memory that this process may still take: what the system has available, within the container's limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    return max(available, 0)
