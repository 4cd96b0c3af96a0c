"""The machine's rate in matrix products of the model's own shapes, and the operations that a step cannot do without.

A step's share of the ceiling is needed operations, over its seconds, over that rate. Needed is what our micro-batches
hold: each prompt once, and once what they begin with alike; no padding, logits of scored tokens alone, keys that a
query sees, nothing computed twice.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dpolish.tensors import Layout, PackedBatch

_REPEATS = 3
_HEAD_ROWS = 512
"""Rows of logits in one product: more would measure the memory that holds them."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The matrices of a model."""

    linears: Counter[tuple[int, int]]
    """(features in, features out) of every linear layer but the head, and how many layers have it."""
    head: tuple[int, int]
    """(hidden size, vocabulary)."""
    attention_width: int
    """Attention heads times their size, added over layers."""


def shape_of(model: PreTrainedModel) -> ModelShape:
    """The matrices that a token passes through. Mixtures of experts, where it passes through some, are not counted."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = Counter(
        _features(module) for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * size
    vocabulary, hidden = head.weight.shape
    return ModelShape(linears, (hidden, vocabulary), width)


def _features(module: nn.Linear | Conv1D) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def needed_flops(shape: ModelShape, batches: Iterable[PackedBatch]) -> float:
    """Operations of one training step on micro-batches in which nothing stands twice.

    Three products for each matrix (output, input gradient, weight gradient) and six for attention (scores and output;
    gradients of values, probabilities, queries, keys), two operations for each multiply-add.
    """
    weights = sum(count * inner * outer for (inner, outer), count in shape.linears.items())
    head = shape.head[0] * shape.head[1]
    return sum(
        2.0
        * (
            3 * weights * batch.num_tokens
            + 3 * head * len(batch.targets)
            + 6 * shape.attention_width * seen(batch.layout)
        )
        for batch in batches
    )


def seen(layout: Layout) -> int:
    """Pairs of a query and a key that it sees."""
    lengths = [[layout.nodes[number].length for number in way] for way in layout.ways()]
    return sum(sum(before) * own + own * (own + 1) // 2 for *before, own in lengths)


def gemm_rate(shape: ModelShape, tokens: int, scored: int) -> float:
    """float32 operations a second in the three products of every matrix, weighted by their share of a step.

    `tokens` and `scored` are those of one micro-batch. Buffers are made beforehand: nothing but products is timed.
    """
    head_rows = min(scored, _HEAD_ROWS)
    work = [(inner, outer, tokens, float(count)) for (inner, outer), count in shape.linears.items()]
    work.append((*shape.head, head_rows, scored / head_rows))
    operations = sum(6.0 * inner * outer * rows * count for inner, outer, rows, count in work)
    seconds = sum(count * _three_products(inner, outer, rows) for inner, outer, rows, count in work)
    return operations / seconds


def _three_products(inner: int, outer: int, rows: int) -> float:
    """Median seconds of a linear layer's products in training."""
    inputs, weight, outputs = torch.randn(rows, inner), torch.randn(outer, inner), torch.empty(rows, outer)
    dinputs, dweight = torch.empty(rows, inner), torch.empty(outer, inner)

    def products() -> None:
        torch.mm(inputs, weight.T, out=outputs)
        torch.mm(outputs, weight, out=dinputs)
        torch.mm(outputs.T, inputs, out=dweight)

    return median(_timed(products) for _ in range(_REPEATS + 1))


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
