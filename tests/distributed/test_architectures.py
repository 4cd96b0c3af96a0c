"""What architectures do beside Llama, split over ranks: biases, fused matrices, norms over all heads, caps, experts.

The vocabulary is odd, so that the last tensor-parallel rank has less of it.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import models, tiny
from tests.data.small_tokenizers import byte_level
from tests.distributed.ranks import run_ranks
from tests.distributed.test_parity import Layout, require_equal, require_equal_weights, train

SEQUENCE, COPIES, SHARDS = Layout(2, tensor=2, sequence=True), Layout(4, tensor=2, strategy="replicate"), Layout(3)


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("qwen2", (SEQUENCE, COPIES)),  # biases of queries, keys and values
        ("phi3", (SEQUENCE, COPIES)),  # fused matrices, whose outputs are gathered
        ("gemma2", (SEQUENCE, SHARDS)),  # scaled embeddings, soft-caps, windows
        ("olmo2", (SEQUENCE, COPIES)),  # norms over the queries of all heads
        ("qwen3_moe", (Layout(4),)),  # experts, one to a rank; tensor parallelism does not split them
    ],
)
def test_an_architecture_trains_as_on_one_rank(tmp_path: Path, name: str, layouts: tuple[Layout, ...]) -> None:
    tokenizer = byte_level()
    assert len(tokenizer) % 2, "the vocabulary does not divide"
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    model = models.build(name, vocab_size=len(tokenizer), **special)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(1.5)  # gain 1: a larger one multiplies what rounding adds from step to step
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    setup = tiny.Setup(
        tmp_path / "model",
        tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(11)),
        tiny.write_rows(tmp_path / "validation.jsonl", tiny.rows(5, seed=1)),
    )
    asked = "model.data.tokens_per_micro_batch=60"  # several micro-batches a step
    (expected,) = run_ranks(1, train, setup, tmp_path / "one", asked)
    weights = load_file(tmp_path / "one/model/model.safetensors")
    for number, layout in enumerate(layouts):
        output = tmp_path / f"many{number}"
        found = run_ranks(layout.ranks, train, setup, output, asked, *layout.overrides)
        require_equal(found[0], expected)
        require_equal_weights(output / "model", weights)
