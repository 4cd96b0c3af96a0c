"""SFT on several ranks is SFT on one: its losses are means over tokens or examples of the whole global batch.

Eleven rows in batches of four, five for validation: ranks have unequal tokens, and in some batches nothing to do.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import logging

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.distributed.test_parity import TIMES, Layout, Records, require_equal, require_equal_weights
from tests.training.test_sft import Files, chats, run

LAYOUTS = {
    "3 data-parallel": Layout(3),
    "2 copies": Layout(2, strategy="replicate"),
    "2 data × 2 tensor, sequence": Layout(4, tensor=2, sequence=True),
}


def train(model: Path, files: Files, output: Path, *overrides: str) -> Records:
    """One rank's records, without what the clock says."""
    logging.disable_progress_bar()
    found = run(model, files, output, *overrides).records
    return [(r.step, r.split, {k: v for k, v in r.metrics.items() if k not in TIMES}) for r in found]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("rows")
    return Files(
        tiny.write_rows(folder / "train.jsonl", chats(11, 0)), tiny.write_rows(folder / "validation.jsonl", chats(5, 1))
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("packing", ["model.data.tokens_per_micro_batch=60", "model.data.packing=false"])
def test_many_ranks_train_as_one(model: Path, files: Files, tmp_path: Path, average: str, packing: str) -> None:
    asked = (f"model.loss_average={average}", packing)
    (expected,) = run_ranks(1, train, model, files, tmp_path / "one", *asked)
    weights = load_file(tmp_path / "one/model/model.safetensors")
    assert {"loss", "perplexity", "tokens"} <= expected[0][2].keys()
    for number, layout in enumerate(LAYOUTS.values()):
        output = tmp_path / f"many{number}"
        found = run_ranks(layout.ranks, train, model, files, output, *asked, *layout.overrides)
        assert all(records == found[0] for records in found), "every rank knows the same numbers"
        for (step, split, ours), (_, _, theirs) in zip(found[0], expected, strict=True):
            assert ours["tokens"] == theirs["tokens"], f"trained tokens are counted once: {split} {step}"
        require_equal(found[0], expected)
        require_equal_weights(output / "model", weights)
