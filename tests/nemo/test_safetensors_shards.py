"""Shards as transformers has them: read by safetensors itself, within the size, one tensor in memory at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpolish.errors import ModelError
from dpolish.facts import weight_files
from dpolish.nemo.safetensors_shards import read_weights, write_weights
from tests.nemo.small_weights import loaded, random_weights, stored


@pytest.mark.parametrize("shard_bytes", [1, 1000, 10**9])
def test_what_is_written_is_read(tmp_path: Path, shard_bytes: int) -> None:
    weights = random_weights(dtype=torch.bfloat16)
    weights["decoder.final_layernorm.weight"] = torch.randn(3)  # float32 behind an odd number of bytes
    told: list[int] = []
    write_weights(tmp_path, stored(weights), told.append, shard_bytes)
    files = weight_files(tmp_path)
    found: dict[str, torch.Tensor] = {}
    for file in files:
        found |= load_file(file)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    again = loaded(read_weights(tmp_path))
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert sum(told) == sum(tensor.nbytes for tensor in weights.values())
    if shard_bytes == 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(told)
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
        assert {name for name, shard in index["weight_map"].items() if shard == file.name} == tensors.keys()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \*\.safetensors here"):
        read_weights(tmp_path)
    save_file({"x": torch.arange(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="'x' is of type 'I64'; weights are read of types F64, F32, F16, BF16"):
        read_weights(tmp_path)
    save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="ends inside x; it was changed while it was read"):
        weights["x"].load()


def test_a_header_that_lies_about_the_shape_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match="x has 4 bytes, its shape needs 4,398,046,511,104"):
        read_weights(tmp_path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"x has the shape \(-1,\)"):
        read_weights(tmp_path)
