"""The nearest way to run a model that fits: which few settings to change, where a plan does not fit or cannot be.

Tried are all tensor-parallel sizes that divide the model's heads and a node, every sharding strategy, recomputation,
sequence parallelism, no context parallelism, and smaller micro-batches; if nothing fits, more nodes. Nearest is what
changes least.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpolish.errors import ConfigError
from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout, ShardingStrategy, make_layout
from dpolish.planning.memory import Work, fitting_tokens, memory_of
from dpolish.planning.plan import context_fault, tensor_sizes
from dpolish.planning.values import Machine

_STRATEGIES: tuple[ShardingStrategy, ...] = ("auto", "full", "hybrid", "replicate")
_MOST_NODES = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings that decide what one rank holds."""

    num_nodes: int
    tensor: int
    context: int
    strategy: ShardingStrategy
    work: Work

    def layout(self, model: ModelFacts, machine: Machine) -> RankLayout:
        """The groups of ranks; raises ConfigError where they do not divide, or the model's heads over them."""
        layout = make_layout(
            self.num_nodes,
            machine.devices,
            self.tensor,
            self.strategy,
            model.num_parameters,
            machine.memory,
            self.context,
        )
        if fault := context_fault(model, layout):
            raise ConfigError(fault)
        return layout

    def total(self, model: ModelFacts, machine: Machine) -> int:
        """Bytes of one rank, the reserve included."""
        return memory_of(model, self.layout(model, machine), self.work, machine.memory).total

    def overrides(self, asked: "Choice") -> tuple[str, ...]:
        """What to type to get from `asked` to this."""
        changes = (
            ("trainer.num_nodes", asked.num_nodes, self.num_nodes),
            ("model.tensor_model_parallel_size", asked.tensor, self.tensor),
            ("model.context_parallel_size", asked.context, self.context),
            ("model.sequence_parallel", asked.work.sequence_parallel, self.work.sequence_parallel),
            ("model.fsdp_sharding_strategy", asked.strategy, self.strategy),
            ("model.activations_checkpoint_granularity", asked.work.recompute, self.work.recompute),
            ("model.data.tokens_per_micro_batch", asked.work.tokens, self.work.tokens),
        )
        written = {True: "true", False: "false"}
        return tuple(
            f"{key}={'full' if key.endswith('granularity') else written[new] if isinstance(new, bool) else new}"
            for key, old, new in changes
            if old != new
        )

    def distance(self, asked: "Choice") -> float:
        """How much of `asked` is changed, dearer changes counting more."""
        return (
            8 * math.log2(self.num_nodes / asked.num_nodes)
            + 3 * (self.tensor != asked.tensor)
            + abs(math.log2(self.tensor / asked.tensor))
            + 2 * (self.context != asked.context)
            + (self.work.sequence_parallel != asked.work.sequence_parallel)
            + (self.strategy != asked.strategy)
            + 2 * (self.work.recompute != asked.work.recompute)
            + (self.work.tokens != asked.work.tokens)
            + math.log2(asked.work.tokens / self.work.tokens)
        )


def nearest(asked: Choice, model: ModelFacts, machine: Machine, largest: int) -> Choice | None:
    """The choice that fits and is nearest to `asked`; None where no number of nodes has one.

    `largest` are the tokens of the largest row, which a micro-batch must hold.
    """
    nodes = asked.num_nodes
    while nodes <= max(_MOST_NODES, asked.num_nodes):
        fitting = list(_fitting(replace(asked, num_nodes=nodes), model, machine, largest))
        if fitting:
            return min(fitting, key=lambda choice: choice.distance(asked))
        nodes *= 2
    return None


def _fitting(asked: Choice, model: ModelFacts, machine: Machine, largest: int) -> Iterator[Choice]:
    """All choices on `asked.num_nodes` nodes that fit, each with the most tokens that it has room for."""
    strategies = dict.fromkeys((asked.strategy, *_STRATEGIES[1:]))
    recompute = dict.fromkeys((asked.work.recompute, True))
    sizes = tensor_sizes(model, machine.devices)
    contexts = dict.fromkeys((asked.context, 1))
    for tensor, context, strategy, recomputed in itertools.product(sizes, contexts, strategies, recompute):
        sequences = dict.fromkeys((asked.work.sequence_parallel, True)) if tensor > 1 else (False,)
        for sequence in sequences:
            work = replace(asked.work, recompute=recomputed, sequence_parallel=sequence)
            choice = Choice(asked.num_nodes, tensor, context, strategy, work)
            try:
                layout = choice.layout(model, machine)
            except ConfigError:
                continue
            tokens = fitting_tokens(model, layout, work, machine.memory)
            if tokens >= min(largest, asked.work.tokens):
                yield replace(choice, work=replace(work, tokens=_rounded(tokens, largest, asked.work.tokens)))


def _rounded(tokens: int, largest: int, asked: int) -> int:
    """Down to a multiple of 256 that still holds the largest row."""
    return tokens if tokens == asked else max(tokens // 256 * 256, min(largest, tokens))
