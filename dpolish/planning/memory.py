"""Estimated memory of one rank at the peak of a step, by what takes it.

Counted, not fitted: what autograd keeps of a gated transformer layer, what FSDP gathers, what the head's chunks hold.
`Work` says how a rank computes; the layout says how much of the model is its own.

On a CPU the C library's heap takes more than is in it: blocks of many sizes come and go, and leave holes that the next
ones do not fit into. That share alone is fitted, to measured runs.
"""

from dataclasses import dataclass, replace

from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout
from dpolish.planning.values import Memory

HEAD_BYTES = 2**29 + 2**27
"""Most that the head takes of logits: probabilities that it keeps for the backward pass, and the chunk at work."""
HEAP_SHARE = 0.6
"""Holes in the heap of a CPU, for each byte that activations and head take: benchmarks/scale_memory.py."""
RESERVED_SHARE = 0.1
"""Share of the memory that is left alone: the device's context, communication buffers, holes between tensors."""


@dataclass(frozen=True, slots=True)
class Work:
    """How one rank computes."""

    device: str
    """cpu, cuda or mps."""
    precision: str
    """32 or bf16."""
    tokens: int
    """Tokens of its largest micro-batch, of which context-parallel ranks compute a part each."""
    scored_share: float = 1.0
    """How many of them are scored, so that they have logits."""
    recompute: bool = False
    """Layers keep their input alone, and are computed again in the backward pass."""
    sequence_parallel: bool = False
    """Tensor-parallel ranks split the sequence where they do not split matrices."""
    offload: bool = False
    """Weights, gradients and optimizer state are in the host's memory, which on a CPU is the same."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number in a layer."""
        return 4 if self.precision == "32" else 2


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a model as one tensor-parallel rank has them, before FSDP shards them."""

    whole: float
    layer: float
    """The largest layer."""
    outside: float
    """Embeddings, last norm, head."""

    @staticmethod
    def of(model: ModelFacts, tensor: int) -> "Counts":
        """Matrices are split, vectors are not."""
        of = model.parameters
        return Counts(
            of.matrices / tensor + of.vectors,
            of.layer_matrices / tensor + of.layer_vectors,
            of.outside_matrices / tensor + of.outside_vectors,
        )


def memory_of(model: ModelFacts, layout: RankLayout, work: Work, memory: int) -> Memory:
    """The estimate for a rank that may take `memory` bytes."""
    counts = Counts.of(model, layout.tensor)
    weights, gradients, optimizer = _state(counts, layout, work)
    gathered = _gathered(counts, layout, work)
    activations, head = activations_of(model, layout, work), _head(model, layout, work)
    away = work.offload and work.device != "cpu"
    holes = HEAP_SHARE * (activations + head) if work.device == "cpu" else 0.0
    return Memory(
        weights=0 if away else round(weights),
        gradients=0 if away else round(gradients),
        optimizer=0 if away else round(optimizer),
        gathered=round(gathered),
        activations=round(activations),
        head=round(head),
        fragmentation=round(holes),
        reserve=round(RESERVED_SHARE * memory),
    )


def fitting_tokens(model: ModelFacts, layout: RankLayout, work: Work, memory: int) -> int:
    """The most tokens of a micro-batch, up to those of `work`, that fit; 0 where the model alone does not."""
    few, many = 0, work.tokens + 1
    while many - few > 1:
        tokens = (few + many) // 2
        fits = memory_of(model, layout, replace(work, tokens=tokens), memory).total <= memory
        few, many = (tokens, many) if fits else (few, tokens)
    return few


def _state(counts: Counts, layout: RankLayout, work: Work) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer.

    One rank in bf16 has bf16 weights and float32 masters besides; FSDP's shards are the masters themselves.
    """
    own = counts.whole / layout.shard
    if layout.world == 1 and work.precision != "32":
        return 2 * own, 4 * own, 12 * own
    return 4 * own, 4 * own, 8 * own


def _gathered(counts: Counts, layout: RankLayout, work: Work) -> float:
    """Bytes of FSDP's buffers; 0 on one rank.

    Two layers (one is fetched ahead) and what is outside of layers stand gathered; so do the gradients of one layer and
    of the outside, first as they were computed, then in float32 as they are reduced. Whole copies keep the float32
    gradients of all layers besides, for they are reduced once a step.
    """
    if layout.world == 1:
        return 0.0
    size = work.itemsize
    gradients = counts.layer * (size + 4) + counts.outside * size
    whole = 4 * counts.whole if layout.shard == 1 else 0.0
    return (2 * counts.layer + counts.outside) * size + gradients + whole


def activations_of(model: ModelFacts, layout: RankLayout, work: Work) -> float:
    """Bytes that the layers keep for the backward pass, and those that the layer at work takes besides."""
    split = layout.tensor
    along = split if work.sequence_parallel else 1
    norms, attended = _kept(work)
    kept = (
        2 * model.hidden_size  # what norms give to linear layers: tensor-parallel ranks all need the whole of it
        + norms * model.hidden_size / along
        + (attended * model.query_size + 2 * model.key_value_size + 4 * model.intermediate_size) / split
    )
    busy = (2 * model.hidden_size + 3 * model.intermediate_size / split) * work.itemsize
    layers = model.num_layers * model.hidden_size / along + kept if work.recompute else model.num_layers * kept
    return work.tokens / layout.context * (layers * work.itemsize + busy)


def _kept(work: Work) -> tuple[int, int]:
    """Vectors of the hidden size that two norms keep for themselves, and of the queries' size that attention keeps.

    Our float32 norm on a CPU keeps its input. A model's own keeps the normalised input too, and under bf16 its input in
    float32. Attention keeps queries and output; off the CPU the output a second time, in the order of the next layer.
    """
    if work.device == "cpu":
        return (2, 2) if work.precision == "32" else (6, 2)
    return (4, 3) if work.precision == "32" else (6, 3)


def _head(model: ModelFacts, layout: RankLayout, work: Work) -> float:
    """Bytes of logits, and of the head's gradient before it is added to the others'."""
    vocabulary = model.vocabulary_size / layout.tensor
    gradient = vocabulary * model.hidden_size * work.itemsize
    scored = work.tokens * work.scored_share / layout.context
    return min(scored * vocabulary * 4, HEAD_BYTES) + gradient
