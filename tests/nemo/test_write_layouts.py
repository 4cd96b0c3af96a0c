"""The three layouts, read by those whose formats they are: torch itself, and by hand what only zarr and NeMo read."""

import io
import json
import pickle
import pickletools
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dpolish.nemo.write.flat import FlatLayout, flat_entries
from dpolish.nemo.write.stacked import EXTRA_STATES
from dpolish.nemo.write.tar import Entry, write_tar
from dpolish.nemo.write.torch_dist import torch_dist_entries
from dpolish.nemo.write.zarr import zarr_entries
from tests.nemo.small_weights import FFN, HIDDEN, LAYERS, ROWS, random_weights, stored

SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real archives beside the checkout, ../shared")


def unpacked(entries: Iterable[Entry], folder: Path) -> Path:
    buffer = io.BytesIO()
    write_tar(buffer, entries, lambda _: None)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="r:") as archive:
        archive.extractall(folder, filter="data")
    return folder


def stacked(weights: dict[str, torch.Tensor], rest: str) -> torch.Tensor:
    return torch.stack([weights[f"decoder.layers.{layer}.{rest}"] for layer in range(LAYERS)])


# --- zarr -------------------------------------------------------------------------------------------------------------


def zarr_tensor(folder: Path) -> torch.Tensor:
    """An array as the format describes it: chunks in C order, `i.j.k` by their place in the grid."""
    about = json.loads((folder / ".zarray").read_text())
    assert (about["zarr_format"], about["compressor"], about["filters"], about["order"]) == (2, None, None, "C")
    bfloat16 = about["dtype"] == "bfloat16"
    whole = np.empty(about["shape"], dtype="<u2" if bfloat16 else about["dtype"])
    grid = [size // chunk for size, chunk in zip(about["shape"], about["chunks"], strict=True)]
    for place in np.ndindex(*grid):
        chunk = np.fromfile(folder / ".".join(map(str, place)), dtype=whole.dtype).reshape(about["chunks"])
        whole[tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, about["chunks"], strict=True))] = chunk
    tensor = torch.from_numpy(whole)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zarr(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = random_weights(dtype=dtype)
    folder = unpacked(zarr_entries(stored(weights)), tmp_path) / "model_weights"
    assert json.loads((folder / "metadata.json").read_text()) == {
        "sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1,
    }  # fmt: skip
    assert torch.load(folder / "common.pt", weights_only=True) == {}
    whole = zarr_tensor(folder / "model.decoder.layers.mlp.linear_fc1.weight")
    assert torch.equal(whole, stacked(weights, "mlp.linear_fc1.weight"))
    head = zarr_tensor(folder / "model.output_layer.weight")
    assert head.dtype == dtype
    assert torch.equal(head, weights["output_layer.weight"])
    for key in EXTRA_STATES:
        states = sorted(path.name for path in (folder / key).iterdir())
        assert states == [f"shard_{layer}_{LAYERS}.pt" for layer in range(LAYERS)]
        assert torch.load(folder / key / states[0], weights_only=True) is None


@needs_shared
def test_the_members_are_those_of_a_genuine_archive(tmp_path: Path) -> None:
    from dpolish.nemo.checkpoint import open_checkpoint

    source = SHARED / "mcore_gpt2b_style.nemo"
    with open_checkpoint(source) as checkpoint:
        folder = unpacked(zarr_entries(checkpoint.weights), tmp_path)
    with tarfile.open(source) as archive:
        genuine = {member.name for member in archive if member.name.startswith("./model_weights/")}
    ours = {f"./{path.relative_to(folder)}" for path in (folder / "model_weights").rglob("*")}
    halves = {name for name in genuine if "linear_fc1.weight/" in name and name.endswith(".1.0")}
    assert ours == genuine - halves  # the genuine writer has the branches of a gate in two chunks


# --- torch_dist -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_reads_its_own_format(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = random_weights(bias=True, dtype=dtype)
    entries = torch_dist_entries(stored(weights), largest_file=20_000)
    folder = unpacked(entries, tmp_path) / "model_weights"
    assert len(list(folder.glob("__0_*.distcp"))) > 1
    state: dict[str, object] = {
        key: torch.empty(about.size, dtype=about.properties.dtype) if isinstance(about, TensorStorageMetadata) else None
        for key, about in FileSystemReader(folder).read_metadata().state_dict_metadata.items()
    }
    load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    for name in ("mlp.linear_fc1.weight", "self_attention.linear_qkv.bias", "mlp.linear_fc1.layer_norm_weight"):
        tensor = state[f"model.decoder.layers.{name}"]
        assert isinstance(tensor, torch.Tensor)
        assert torch.equal(tensor, stacked(weights, name)), name
    embedding = state["model.embedding.word_embeddings.weight"]
    assert isinstance(embedding, torch.Tensor)
    assert torch.equal(embedding, weights["embedding.word_embeddings.weight"])
    objects = {key: value for key, value in state.items() if "_extra_state" in key}
    assert objects.keys() == {f"{key}/shard_{layer}_{LAYERS}" for key in EXTRA_STATES for layer in range(LAYERS)}
    assert all(value == [None] for value in objects.values())


def globals_of(pickled: bytes) -> set[str]:
    """What a pickle names, by a look at its opcodes."""
    memo: list[object] = []
    stack: list[object] = []
    found = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "STACK_GLOBAL":
            found.add(".".join(map(str, stack[-2:])))
            stack = [None]
        elif opcode.name == "MEMOIZE":
            memo.append(stack[-1] if stack else None)
        elif opcode.name == "BINGET":
            stack.append(memo[argument] if isinstance(argument, int) else None)
        else:
            stack.append(argument)
    return found


def test_metadata_names_only_what_every_torch_knows(tmp_path: Path) -> None:
    folder = unpacked(torch_dist_entries(stored(random_weights())), tmp_path) / "model_weights"
    pickled = (folder / ".metadata").read_bytes()
    classes = (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )  # fmt: skip
    assert globals_of(pickled) == {
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in classes),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.Size", "torch.float32", "torch.serialization._get_layout",
    }  # fmt: skip
    metadata = pickle.loads(pickled)
    tensors = {key for key in metadata.state_dict_metadata if "_extra_state" not in key}
    assert metadata.mcore_data == {key: {} for key in tensors}
    ends = {}
    for info in metadata.storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    assert ends == {path.name: path.stat().st_size for path in folder.glob("*.distcp")}


# --- legacy -----------------------------------------------------------------------------------------------------------

NAMES_OF_A_LAYER = {
    "input_layernorm.weight", "input_layernorm.bias", "self_attention.query_key_value.weight",
    "self_attention.query_key_value.bias", "self_attention.dense.weight", "self_attention.dense.bias",
    "post_attention_layernorm.weight", "post_attention_layernorm.bias", "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias",
}  # fmt: skip


def layout(tensor: int, pipeline: int, *, gated: bool = True, apart: bool = False, tied: bool = False) -> FlatLayout:
    return FlatLayout(tensor, pipeline, gated=gated, gate_apart=apart, tied=tied, inverse_frequencies=None)


def ranks(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The state dict of every rank by the name of its folder."""
    return {
        str(file.parent.relative_to(folder)): torch.load(file, weights_only=True)
        for file in sorted(folder.rglob("model_weights.ckpt"))
    }


@pytest.mark.parametrize(
    ("tensor", "pipeline", "folders"),
    [
        (1, 1, ["."]),
        (2, 1, ["mp_rank_00", "mp_rank_01"]),
        (1, 2, ["tp_rank_00_pp_rank_000", "tp_rank_00_pp_rank_001"]),
        (4, 4, [f"tp_rank_{t:02d}_pp_rank_{p:03d}" for t in range(4) for p in range(4)]),
    ],
)
def test_ranks_and_names(tmp_path: Path, tensor: int, pipeline: int, folders: list[str]) -> None:
    weights = random_weights(bias=True)
    found = ranks(unpacked(flat_entries(stored(weights), layout(tensor, pipeline)), tmp_path))
    assert list(found) == folders
    for folder, state in found.items():
        stage = int(folder.rpartition("_")[2]) if pipeline > 1 else 0
        expected = {
            f"model.language_model.encoder.layers.{layer}.{name}"
            for layer in range(LAYERS // pipeline)
            for name in NAMES_OF_A_LAYER
        }
        if stage == 0:
            expected |= {"model.language_model.embedding.word_embeddings.weight"}
        if stage == pipeline - 1:
            expected |= {f"model.language_model.encoder.final_layernorm.{part}" for part in ("weight", "bias")}
            expected |= {"model.language_model.output_layer.weight"}
        assert state.keys() == expected, folder


def test_every_rank_has_its_part(tmp_path: Path) -> None:
    weights = random_weights(bias=True)
    found = ranks(unpacked(flat_entries(stored(weights), layout(2, 2)), tmp_path))
    first, second = found["tp_rank_00_pp_rank_001"], found["tp_rank_01_pp_rank_001"]
    local, whole = "model.language_model.encoder.layers.1.", "decoder.layers.3."  # the second stage counts from 0

    def both(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return first[local + name], second[local + name]

    assert torch.equal(
        torch.cat(both("self_attention.query_key_value.weight")), weights[whole + "self_attention.linear_qkv.weight"]
    )
    assert torch.equal(
        torch.cat(both("self_attention.dense.weight"), 1), weights[whole + "self_attention.linear_proj.weight"]
    )
    assert torch.equal(torch.cat(both("mlp.dense_4h_to_h.weight"), 1), weights[whole + "mlp.linear_fc2.weight"])
    gates, ups = zip(*(part.chunk(2) for part in both("mlp.dense_h_to_4h.weight")), strict=True)
    assert torch.equal(torch.cat([*gates, *ups]), weights[whole + "mlp.linear_fc1.weight"])
    for name in ("self_attention.dense.bias", "mlp.dense_4h_to_h.bias", "input_layernorm.weight"):
        assert torch.equal(*both(name))
    assert first["model.language_model.output_layer.weight"].shape == (ROWS // 2, HIDDEN)


def test_gate_and_up_apart(tmp_path: Path) -> None:
    weights = random_weights()
    found = ranks(unpacked(flat_entries(stored(weights), layout(2, 1, apart=True)), tmp_path))
    start = "model.language_model.encoder.layers.2.mlp.dense_h_to_4h"
    halves = [torch.cat([state[f"{start}{end}.weight"] for state in found.values()]) for end in ("", "_2")]
    assert [half.shape for half in halves] == [(FFN, HIDDEN)] * 2
    assert torch.equal(torch.cat(halves), weights["decoder.layers.2.mlp.linear_fc1.weight"])


def test_a_tied_head_is_a_copy_in_the_last_stage(tmp_path: Path) -> None:
    weights = random_weights(tied=True, gated=False)
    found = ranks(unpacked(flat_entries(stored(weights), layout(2, 2, tied=True, gated=False)), tmp_path))
    for rank in range(2):
        first, last = (found[f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"] for stage in range(2))
        copy = last["model.word_embeddings.weight"]
        assert torch.equal(copy, first["model.language_model.embedding.word_embeddings.weight"])
    one = ranks(unpacked(flat_entries(stored(weights), layout(2, 1, tied=True, gated=False)), tmp_path / "one"))
    assert not any("model.word_embeddings.weight" in state for state in one.values())


@needs_shared
def test_keys_are_those_of_a_genuine_archive(tmp_path: Path) -> None:
    from dpolish.nemo.checkpoint import open_checkpoint

    with tarfile.open(SHARED / "legacy_gpt2b_tp2pp2.nemo") as archive:
        archive.extractall(tmp_path / "genuine", filter="data")
    genuine = ranks(tmp_path / "genuine")
    buffer = genuine["tp_rank_00_pp_rank_000"]["model.language_model.rotary_pos_emb.inv_freq"]
    (frequencies,) = stored({"x": buffer}).values()
    with open_checkpoint(SHARED / "legacy_gpt2b_tp2pp2.nemo") as checkpoint:
        ours = ranks(
            unpacked(
                flat_entries(checkpoint.weights, FlatLayout(2, 2, True, False, False, frequencies)), tmp_path / "ours"
            )
        )
    assert ours.keys() == genuine.keys()
    for folder, state in genuine.items():
        tensors = {name: tensor for name, tensor in state.items() if tensor is not None}
        assert ours[folder].keys() == tensors.keys()
        assert all(torch.equal(ours[folder][name], tensor) for name, tensor in tensors.items()), folder
