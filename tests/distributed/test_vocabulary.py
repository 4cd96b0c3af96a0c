"""The head split over the vocabulary gives the log-probabilities and gradients of the whole one."""

import os
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dpolish.model.head import LogitTransform, VocabularyPart, chunked_logprobs, naive_logprobs
from tests.distributed.ranks import run_ranks

SCORED, WIDTH, VOCABULARY = 23, 12, 41
"""A vocabulary that no number of ranks divides."""
Found = tuple[np.ndarray, dict[str, np.ndarray], tuple[int, int]]


def inputs(bias: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {
        "hidden": torch.randn(SCORED, WIDTH, generator=generator, dtype=torch.float64),
        "weight": torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64),
    }
    if bias:
        made["bias"] = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    return {name: value.requires_grad_() for name, value in made.items()}


def targets() -> torch.Tensor:
    return torch.randint(VOCABULARY, (SCORED,), generator=torch.Generator().manual_seed(4))


def split_head(transform: LogitTransform, bias: bool, keep_bytes: int) -> Found:
    """This rank's log-probabilities, its gradients, and its part of the vocabulary."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    assert group is not None
    part = -(-VOCABULARY // size)
    rows = slice(rank * part, min((rank + 1) * part, VOCABULARY))
    made = inputs(bias)
    mine = {name: value if name == "hidden" else value.detach()[rows].requires_grad_() for name, value in made.items()}
    found = chunked_logprobs(
        mine["hidden"],
        mine["weight"],
        mine.get("bias"),
        targets(),
        transform,
        VocabularyPart(rows.start, group),
        chunk_bytes=8 * part * 5,
        keep_bytes=keep_bytes,
    )
    (found * torch.arange(1.0, SCORED + 1, dtype=torch.float64)).sum().backward()
    grads = {name: value.grad.numpy() for name, value in mine.items() if value.grad is not None}
    dist.barrier()
    dist.destroy_process_group()
    return found.detach().numpy(), grads, (rows.start, rows.stop)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("transform", "bias", "keep_bytes"),
    [
        (LogitTransform(), False, 1 << 20),
        (LogitTransform(), True, 0),
        (LogitTransform(), True, 8 * 21 * 12),  # the first chunks kept, the last computed again
        (LogitTransform(scale=0.5, softcap=3.0), True, 1 << 20),
    ],
)
def test_equals_the_whole_head(ranks: int, transform: LogitTransform, bias: bool, keep_bytes: int) -> None:
    whole = inputs(bias)
    expected = naive_logprobs(whole["hidden"], whole["weight"], whole.get("bias"), targets(), transform)
    (expected * torch.arange(1.0, SCORED + 1, dtype=torch.float64)).sum().backward()
    for found, grads, (start, stop) in run_ranks(ranks, split_head, transform, bias, keep_bytes):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        for name, value in whole.items():
            gradient = value.grad
            assert gradient is not None
            part = gradient.numpy() if name == "hidden" else gradient.numpy()[start:stop]
            np.testing.assert_allclose(grads[name], part, rtol=1e-10, atol=1e-10)
