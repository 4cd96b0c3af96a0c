"""What ranks send to each other in one optimizer step, by kind: counts and bytes, from the layout and the sizes.

Collectives are rings, the algorithm of large messages: to gather N bytes over g ranks each of them sends N (g-1)/g, to
reduce and scatter likewise, to all-reduce twice as much. In an all-to-all a rank keeps one of the g parts of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout
from dpolish.planning.memory import Counts, Work

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]
Group = Literal["tensor", "context", "shard", "replicate", "world"]

REDUCED = 4
"""Bytes of a gradient while it is reduced: float32."""
METRICS_BYTES = 32 * 8
"""Sums of metrics and the gradient norm, in float64; about."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of collective in one step, all of its calls together."""

    kind: Kind
    purpose: str
    group: Group
    ranks: int
    """How many take part."""
    calls: int
    sent: float
    """Bytes that each rank sends."""


def traffic_of(
    model: ModelFacts, layout: RankLayout, work: Work, micro_batches: int, tokens: float
) -> list[Collective]:
    """The collectives of a step in which each rank does so many micro-batches of `tokens` tokens each.

    Context-parallel ranks have a part of these tokens each.
    """
    tokens /= layout.context
    found = (
        *_of_shards(model, layout, work, micro_batches),
        *_of_sequences(model, layout, work, micro_batches, tokens),
        *_of_matrices(model, layout, work, micro_batches, tokens),
        _collective("all-reduce", "metrics and gradient norm", "world", layout.world, 1, METRICS_BYTES),
    )
    return [collective for collective in found if collective.ranks > 1]


def _of_shards(model: ModelFacts, layout: RankLayout, work: Work, micro_batches: int) -> Iterator[Collective]:
    """FSDP: weights in the compute dtype, forward and again backward; gradients in float32.

    Whole copies reduce once a step, shards with every micro-batch, and between copies once a step.
    """
    counts, layers = Counts.of(model, layout.tensor), model.num_layers
    in_layers = counts.whole - counts.outside
    weights = (2 * in_layers + counts.outside) * work.itemsize * micro_batches
    gathers = (2 * layers + 1) * micro_batches
    yield _collective("all-gather", "weights, forward and backward", "shard", layout.shard, gathers, weights)
    reductions = (layers + 1) * micro_batches
    reduced = counts.whole * REDUCED * micro_batches
    yield _collective("reduce-scatter", "gradients", "shard", layout.shard, reductions, reduced)
    own = counts.whole / layout.shard * REDUCED
    yield _collective("all-reduce", "gradients between copies", "replicate", layout.replicate, layers + 1, own)


def _of_sequences(
    model: ModelFacts, layout: RankLayout, work: Work, micro_batches: int, tokens: float
) -> Iterator[Collective]:
    """Context parallelism: queries, keys, values and output change hands around attention, and their gradients back."""
    directions = 3 if work.recompute else 2
    calls = 4 * directions * model.num_layers * micro_batches
    width = 2 * (model.query_size + model.key_value_size) / layout.tensor
    own = directions * model.num_layers * micro_batches * tokens * width * work.itemsize
    yield _collective("all-to-all", "queries, keys, values, output", "context", layout.context, calls, own)


def _of_matrices(
    model: ModelFacts, layout: RankLayout, work: Work, micro_batches: int, tokens: float
) -> Iterator[Collective]:
    """Tensor parallelism: two exchanges of all hidden states per layer and direction, and those of embedding and head.

    A recomputed layer does those of its forward pass again, but for the last, whose result no gradient needs.
    """
    hidden = model.hidden_size * work.itemsize * micro_batches
    layers, ranks, recompute = model.num_layers, layout.tensor, work.recompute

    def of_tensor(kind: Kind, purpose: str, calls: int, size: float) -> Collective:
        return _collective(kind, purpose, "tensor", ranks, calls * micro_batches, calls * size * hidden)

    if work.sequence_parallel:
        yield of_tensor("all-gather", "activations", (4 + 2 * recompute) * layers + 1, tokens)
        yield of_tensor("reduce-scatter", "activations", (4 + recompute) * layers, tokens)
        yield of_tensor("all-reduce", "embeddings", 1, tokens)
    else:
        yield of_tensor("all-reduce", "activations", (4 + recompute) * layers + 1, tokens)
    yield of_tensor("all-reduce", "hidden states of the head", 1, tokens * work.scored_share)


def _collective(kind: Kind, purpose: str, group: Group, ranks: int, calls: int, size: float) -> Collective:
    """`size` is that of the whole tensors, in bytes; of an all-to-all that of a rank's own."""
    return Collective(kind, purpose, group, ranks, calls, ring_bytes(kind, ranks, size))


def ring_bytes(kind: Kind, ranks: int, size: float) -> float:
    """Bytes that each of `ranks` sends in a ring for tensors of `size` bytes.

    >>> ring_bytes("all-gather", 4, 100), ring_bytes("all-reduce", 4, 100), ring_bytes("all-reduce", 1, 100)
    (75.0, 150.0, 0.0)
    """
    return (2 if kind == "all-reduce" else 1) * size * (ranks - 1) / ranks


def ranks_within_node(layout: RankLayout, group: Group) -> int:
    """How many ranks of a group share a node: as many network cards carry its traffic between nodes."""
    if group == "tensor":
        return layout.tensor
    if group == "context":
        return layout.context
    if group == "shard":
        return min(layout.shard, layout.devices // layout.tensor)
    if group == "replicate":
        return max(layout.devices // (layout.tensor * layout.shard), 1)
    return layout.devices


def seconds_of(collective: Collective, layout: RankLayout, within_node: float, between_nodes: float) -> float:
    """How long its bytes take: over the node's links, or over the network cards of those of the group in one node."""
    inside = ranks_within_node(layout, collective.group)
    if inside >= collective.ranks:
        return collective.sent / within_node
    return collective.sent / min(within_node, between_nodes * inside)
