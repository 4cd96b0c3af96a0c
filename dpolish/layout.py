"""How ranks share the work: which of them hold a copy of the model together, and which see the same rows.

    world = replicate × shard × tensor        tensor varies fastest, so that its ranks lie in one node

    tensor      ranks that split every weight matrix and see the same rows (tensor parallelism)
    shard       ranks that hold one copy of the model between them (FSDP)
    replicate   such groups, each with a whole copy (HSDP: gradients are all-reduced between them)

Within `shard` neighbours may share their rows, each with a part of every sequence (`context`); otherwise each has rows
of its own.

Read without torch.
"""

import math
from dataclasses import dataclass
from typing import Literal

from dpolish.errors import ConfigError

ShardingStrategy = Literal["auto", "full", "hybrid", "replicate"]

REPLICATED_SHARE = 0.25
"""`auto` gives every data-parallel rank a whole copy where its training state takes less than this of the memory."""
STATE_BYTES = 16
"""float32 weight, gradient and two moments of one parameter."""


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The sizes of one job's groups of ranks."""

    num_nodes: int = 1
    devices: int = 1
    """Ranks on each node."""
    tensor: int = 1
    shard: int = 1
    context: int = 1
    """Ranks that share a sequence, a divisor of `shard`."""
    expert: int = 1
    """Ranks that have experts of their own, and send each other tokens: a divisor of `shard`."""

    @property
    def world(self) -> int:
        """All ranks."""
        return self.num_nodes * self.devices

    @property
    def data(self) -> int:
        """Ranks, or groups of tensor- and context-parallel ones, that have rows of their own."""
        return self.world // (self.tensor * self.context)

    @property
    def replicate(self) -> int:
        """Whole copies of the model."""
        return self.world // (self.tensor * self.shard)

    def __str__(self) -> str:
        if self.world == 1:
            return "1 rank"
        nodes = f"{self.num_nodes} nodes × {self.devices}" if self.num_nodes > 1 else str(self.world)
        copies = "1 copy" if self.replicate == 1 else f"{self.replicate} copies"
        context = f", {self.context} of them to a sequence," if self.context > 1 else ""
        experts = f", experts over {self.expert}" if self.expert > 1 else ""
        return f"{nodes} ranks = {copies} × {self.shard} FSDP shards{context} × {self.tensor} tensor-parallel{experts}"


def make_layout(
    num_nodes: int,
    devices: int,
    tensor: int,
    strategy: ShardingStrategy,
    num_parameters: int,
    memory: int,
    context: int = 1,
    expert: int = 1,
) -> RankLayout:
    """The groups of `num_nodes × devices` ranks. `memory` is what one rank may take, in bytes.

    Raises ConfigError when the tensor-, context- and expert-parallel sizes do not divide them.
    """
    world = num_nodes * devices
    if world % tensor:
        fits = [size for size in range(1, world + 1) if world % size == 0]
        raise ConfigError(
            f"model.tensor_model_parallel_size={tensor} does not divide the {world} ranks of trainer.num_nodes="
            f"{num_nodes} × trainer.devices={devices}. Sizes that do: {', '.join(map(str, fits))}"
        )
    if devices % tensor and num_nodes > 1:
        raise ConfigError(
            f"model.tensor_model_parallel_size={tensor} does not divide trainer.devices={devices}: a group of "
            "tensor-parallel ranks must lie in one node, for it exchanges every layer's activations"
        )
    within_node = max(devices // tensor, 1)
    if world // tensor % context or (within_node % context and num_nodes > 1):
        raise ConfigError(
            f"model.context_parallel_size={context} does not divide the {within_node} ranks of a node (of {world} in "
            f"all) that model.tensor_model_parallel_size={tensor} leaves: ranks that share a sequence lie in one node"
        )
    if strategy == "auto":
        small = STATE_BYTES * num_parameters / tensor < REPLICATED_SHARE * memory
        strategy = "replicate" if small else "hybrid" if _fits(num_parameters, tensor * within_node, memory) else "full"
    if expert > 1 and tensor > 1:
        raise ConfigError(
            f"model.expert_model_parallel_size={expert} with model.tensor_model_parallel_size={tensor}: experts are "
            "spread over data-parallel ranks here. Set one of the two to 1"
        )
    least = math.lcm(context, expert)
    shard = {"replicate": least, "hybrid": within_node, "full": world // tensor}[strategy]
    if shard % least:
        raise ConfigError(
            f"model.expert_model_parallel_size={expert} does not divide the {shard} ranks that hold a copy of the "
            f"model together. Sizes that do: {', '.join(str(n) for n in range(1, shard + 1) if shard % n == 0)}"
        )
    return RankLayout(num_nodes, devices, tensor, shard, context, expert)


def _fits(num_parameters: int, ranks: int, memory: int) -> bool:
    """Does the training state of a model fit, spread over so many ranks, and leave half of the memory for the rest?"""
    return STATE_BYTES * num_parameters / ranks < 0.5 * memory
