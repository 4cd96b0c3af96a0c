"""The files decide where weights are, and opening reads none of them; whole models are in test_checkpoint."""

from pathlib import Path

import pytest
import torch

from dpolish.nemo import torch_file, zarr_store
from dpolish.nemo.archive import open_archive
from dpolish.nemo.gpt_config import GptConfig
from dpolish.nemo.layouts import Layout, read_layout
from tests.nemo.archives import Files, config, flat_files, stacks, torch_dist_files, unpack, zarr_files
from tests.nemo.small_weights import random_weights


def layout(files: Files, place: Path, **changes: object) -> Layout:
    raw = config(**changes)
    with open_archive(unpack(files, place)) as archive:
        return read_layout(archive, "model_weights/", raw, GptConfig.from_nemo(raw))


@pytest.mark.parametrize("kind", ["flat", "ranks", "zarr", "torch_dist"])
def test_opening_reads_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    weights = random_weights()
    files = {
        "flat": lambda: flat_files(weights, "mcore-te"),
        "ranks": lambda: flat_files(weights, "mcore-te", tp=2, pp=2),
        "zarr": lambda: zarr_files(stacks(weights), tp=2),
        "torch_dist": lambda: torch_dist_files(stacks(weights), tp=2),
    }[kind]()

    def read(*_: object) -> torch.Tensor:
        raise AssertionError("numbers were read")

    for module in (torch_file, zarr_store):
        monkeypatch.setattr(module, "read_numbers", read)
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2} if kind == "ranks" else {}
    found = layout(files, tmp_path, **sizes)
    assert found.tensors.keys() == weights.keys()
    with pytest.raises(AssertionError, match="numbers were read"):
        found.tensors["output_layer.weight"].load()


@pytest.mark.parametrize("mcore_gpt", [True, False])
def test_the_settings_do_not_decide(tmp_path: Path, mcore_gpt: bool) -> None:
    """Megatron-core models were saved flat too, by NeMo 1.20 and with FSDP."""
    weights = random_weights()
    for index, naming in enumerate(("legacy", "mcore-local", "mcore-te")):
        found = layout(flat_files(weights, naming), tmp_path / str(index), mcore_gpt=mcore_gpt)
        assert (found.format, found.naming) == ("flat", naming)
        assert found.tensors.keys() == weights.keys()


def test_distributed_checkpoints_say_by_settings_how_they_were_trained(tmp_path: Path) -> None:
    sizes = {"tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 2}
    found = layout(zarr_files(stacks(random_weights())), tmp_path, **sizes)
    assert (found.tensor_parallel, found.pipeline_parallel) == (8, 2)
