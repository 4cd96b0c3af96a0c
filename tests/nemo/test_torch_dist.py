"""Checkpoints that torch.distributed.checkpoint itself writes; refusals are in test_hostile."""

import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dpolish.nemo.archive import open_archive
from dpolish.nemo.names import is_weight
from dpolish.nemo.torch_dist import read_torch_dist
from tests.nemo.archives import torch_dist_files, unpack


@pytest.mark.filterwarnings("ignore")  # of torch's own, about running alone
def test_what_torch_writes(tmp_path: Path) -> None:
    tensors = {
        "model.decoder.layers.mlp.linear_fc2.weight": torch.randn(3, 8, 16).bfloat16(),
        "model.decoder.final_layernorm.weight": torch.randn(8),
        "model.embedding.word_embeddings.weight": torch.randn(32, 8).half(),
    }
    others = {
        "model.decoder.layers.mlp.linear_fc2._extra_state/shard_0_3": io.BytesIO(b"x"),
        "optimizer.state.x": torch.ones(3),
        "rng_state": {"a": [1, 2]},
    }
    dcp.save({**tensors, **others}, storage_writer=dcp.FileSystemWriter(tmp_path / "w"), no_dist=True)
    with open_archive(tmp_path) as archive:
        found = read_torch_dist(archive, "w/", is_weight)
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor.whole().load(), tensors[name])
        stack = found["model.decoder.layers.mlp.linear_fc2.weight"].slices()
        for layer, part in enumerate(stack):
            assert torch.equal(part.load(), tensors["model.decoder.layers.mlp.linear_fc2.weight"][layer])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol(tmp_path: Path, protocol: int) -> None:
    tensors = {"model.decoder.layers.mlp.linear_fc1.weight": torch.randn(4, 24, 8)}
    files = torch_dist_files(tensors, folder="w/", tp=2)
    files["w/.metadata"] = pickle.dumps(pickle.loads(files["w/.metadata"]), protocol)  # made above
    with open_archive(unpack(files, tmp_path)) as archive:
        found = read_torch_dist(archive, "w/", is_weight)
        for name, tensor in tensors.items():
            assert len(found[name].chunks) == 16
            assert torch.equal(found[name].whole().load(), tensor)
            assert torch.equal(torch.stack([part.load() for part in found[name].slices()]), tensor)
