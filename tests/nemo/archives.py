"""Small checkpoints of every kind, put together here from the description of the formats: what the readers are held to.

Files of tensors come from torch.save, archives from tarfile, `.metadata` from PyTorch's own classes; how tensors are
named and cut is written out once more, and shares no line with the code under test.
"""

import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.nemo.small_weights import FFN, HIDDEN, LAYERS

Tensors = Mapping[str, torch.Tensor]
Files = dict[str, bytes]

SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo"

LEGACY = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "self_attention.linear_qkv.": "self_attention.query_key_value.",
    "self_attention.linear_proj.": "self_attention.dense.",
    "mlp.linear_fc1.layer_norm_": "post_attention_layernorm.",
    "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
    "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
}
LEGACY_TE = {
    "self_attention.linear_qkv.": "self_attention.layernorm_qkv.",
    "self_attention.linear_proj.": "self_attention.proj.",
    "mlp.linear_fc1.layer_norm_": "layernorm_mlp.layer_norm_",
    "mlp.linear_fc1.": "layernorm_mlp.fc1_",
    "mlp.linear_fc2.": "layernorm_mlp.fc2_",
}
MCORE_LOCAL = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
FIRST_MEGATRON = {ours: theirs.replace("self_attention", "attention") for ours, theirs in LEGACY.items()}
NAMINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "legacy": ("encoder", LEGACY),
    "legacy-first": ("transformer", FIRST_MEGATRON),
    "legacy-te": ("encoder", LEGACY_TE),
    "mcore-local": ("decoder", MCORE_LOCAL),
    "mcore-te": ("decoder", {}),
}


def config(**changes: object) -> dict[str, object]:
    """The settings of `small_weights`: gated, no biases, a head of its own."""
    return {
        "mcore_gpt": True,
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_attention_heads": 4,
        "encoder_seq_length": 16,
        "max_position_embeddings": 16,
        "normalization": "layernorm1p",
        "bias": False,
        "activation": "fast-swiglu",
        "bias_activation_fusion": False,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
        "tokenizer": {"library": "sentencepiece", "model": "nemo:0123_tok.model"},
        **changes,
    }


def settings(**changes: object) -> Files:
    """model_config.yaml and the tokenizer that it names."""
    return {"model_config.yaml": yaml.safe_dump(config(**changes)).encode(), "0123_tok.model": b"pieces"}


def torch_bytes(value: object) -> bytes:
    """A torch.save file."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pack(files: Mapping[str, bytes], path: Path, mode: str = "w:") -> Path:
    """Files as NeMo archives them: uncompressed, and every name with `./` before it."""
    with tarfile.open(path, mode) as archive:
        folders = {"."} | {f"./{name[:at]}" for name in files for at, letter in enumerate(name) if letter == "/"}
        for folder in sorted(folders):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpack(files: Mapping[str, bytes], folder: Path) -> Path:
    """Files as they lie in the folder of an unpacked archive."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- flat -------------------------------------------------------------------------------------------------------------


def renamed(name: str, naming: str) -> str:
    """A canonical name as a writer of this kind has it, without prefix."""
    stack, table = NAMINGS[naming]
    name = name.replace("decoder.", f"{stack}.")
    for ours, theirs in table.items():
        if ours in name:
            return name.replace(ours, theirs)
    return name


def shard(name: str, tensor: torch.Tensor, rank: int, ranks: int, *, gated: bool) -> torch.Tensor:
    """What one tensor parallel rank holds of a tensor."""
    if "layer_norm" in name or "final_layernorm" in name or "position" in name:
        return tensor
    if "linear_fc1" in name and gated:
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]])
    if "linear_proj" in name or "linear_fc2" in name:
        return tensor.chunk(ranks, 1)[rank] if name.endswith("weight") else tensor
    return tensor.chunk(ranks)[rank]


def flat_files(
    weights: Tensors, naming: str, *, prefix: str = "model.", tp: int = 1, pp: int = 1, gated: bool = True,
    split: bool = False, tied: bool = False,
) -> Files:  # fmt: skip
    """The `model_weights.ckpt` of every rank. `split`: the gate and the matrix beside it are two tensors."""
    files: Files = {}
    for rank, stage in itertools.product(range(tp), range(pp)):
        held: dict[str, object] = {}
        for name, tensor in weights.items():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            home = (0 if name.startswith("embedding.") else pp - 1) if layer is None else layer // (LAYERS // pp)
            if home != stage:
                continue
            piece = shard(name, tensor, rank, tp, gated=gated).clone()
            if layer is not None:
                name = name.replace(f".{layer}.", f".{layer % (LAYERS // pp)}.")
            key = prefix + renamed(name, naming)
            if split and "linear_fc1." in name and "norm" not in name:
                first, second = piece.chunk(2)
                held |= {key: first.clone(), key.replace("h_to_4h.", "h_to_4h_2."): second.clone()}
            else:
                held[key] = piece
            if key.endswith(".weight") and "norm" not in key and layer is not None:
                held[key.replace(".weight", "._extra_state")] = io.BytesIO(b"\x80\x02N.") if "te" in naming else None
        held[f"{prefix}rotary_pos_emb.inv_freq"] = torch.ones(1)
        if tied and pp > 1 and stage == pp - 1:
            copy = "model.word_embeddings.weight" if naming.startswith("legacy") else f"{prefix}output_layer.weight"
            held[copy] = weights["embedding.word_embeddings.weight"].chunk(tp)[rank].clone()
        folder = f"tp_rank_{rank:02d}_pp_rank_{stage:03d}/" if pp > 1 else f"mp_rank_{rank:02d}/" if tp > 1 else ""
        files[f"{folder}model_weights.ckpt"] = torch_bytes(held)
    return files


# --- distributed ------------------------------------------------------------------------------------------------------


def stacks(weights: Tensors, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The tensors of all layers on top of each other, under the names of distributed checkpoints."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        found.setdefault(prefix + ".".join(part for part in parts if not part.isdigit()), []).append(tensor)
    return {name: torch.stack(parts) if ".layers." in name else parts[0] for name, parts in found.items()}


def grid(name: str, shape: tuple[int, ...], tp: int, gated: bool) -> list[int]:
    """Into how many pieces each axis is cut."""
    cuts = [1] * len(shape)
    axis = 1 if ".layers." in name and not any(part.isdigit() for part in name.split(".")) else 0
    if axis:
        cuts[0] = shape[0]
    if "norm" not in name and "position" not in name and not ("bias" in name and ("proj" in name or "fc2" in name)):
        cuts[axis + ("proj.w" in name or "fc2.w" in name)] = tp * (2 if gated and "fc1" in name else 1)
    return cuts


def pieces(name: str, tensor: torch.Tensor, tp: int, gated: bool) -> dict[tuple[int, ...], torch.Tensor]:
    """Offsets to the pieces that ranks write."""
    cuts = grid(name, tuple(tensor.shape), tp, gated)
    steps = [size // cut for size, cut in zip(tensor.shape, cuts, strict=True)]
    found = {}
    for place in itertools.product(*map(range, cuts)):
        offset = tuple(at * step for at, step in zip(place, steps, strict=True))
        box = tuple(slice(at, at + step) for at, step in zip(offset, steps, strict=True))
        found[offset] = tensor[box].contiguous()
    return found


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def zarr_files(tensors: Tensors, *, folder: str = "model_weights/", tp: int = 1, gated: bool = True) -> Files:
    """A folder per tensor."""
    dtypes = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}
    about = {"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch"}
    files = {f"{folder}metadata.json": json.dumps(about).encode(), f"{folder}common.pt": b"never read"}
    for name, tensor in tensors.items():
        found = pieces(name, tensor, tp, gated)
        chunks = list(next(iter(found.values())).shape)
        description = {
            "zarr_format": 2, "shape": list(tensor.shape), "chunks": chunks, "dtype": dtypes[tensor.dtype],
            "compressor": None, "filters": None, "fill_value": None, "order": "C",
        }  # fmt: skip
        files[f"{folder}{name}/.zarray"] = json.dumps(description).encode()
        for offset, piece in found.items():
            index = ".".join(str(at // step) for at, step in zip(offset, chunks, strict=True))
            files[f"{folder}{name}/{index}"] = raw_bytes(piece)
        if "linear_fc1.weight" in name:
            files[f"{folder}{name.replace('weight', '_extra_state')}/shard_0_4.pt"] = b"never read"
    return files


def torch_dist_files(tensors: Tensors, *, folder: str = "model_weights/", tp: int = 1, gated: bool = True) -> Files:
    """Pieces of two ranks' files, and `.metadata`."""
    data, described, stored = [b"", b""], {}, {}
    for name, tensor in tensors.items():
        boxes = []
        for count, (offset, piece) in enumerate(pieces(name, tensor, tp, gated).items()):
            blob = torch_bytes(piece)
            place = torch.Size(offset)
            boxes.append(ChunkStorageMetadata(place, piece.shape))
            file = count % 2
            stored[MetadataIndex(name, place, count)] = _StorageInfo(f"__0_{file}.distcp", len(data[file]), len(blob))
            data[file] += blob
        described[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, boxes)
    extra = "model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_4"
    described[extra] = BytesStorageMetadata()
    stored[MetadataIndex(extra)] = _StorageInfo("__0_0.distcp", 0, 10)
    metadata = Metadata(described, planner_data={name: (name,) for name in described}, storage_data=stored)
    return {
        f"{folder}metadata.json": b'{"sharded_backend": "torch_dist", "sharded_backend_version": 1}',
        f"{folder}.metadata": pickle.dumps(metadata, 4),
        f"{folder}__0_0.distcp": data[0],
        f"{folder}__0_1.distcp": data[1],
    }
