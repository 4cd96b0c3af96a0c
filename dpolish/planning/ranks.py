"""What one rank holds, sends and computes, and what to change where it does not fit: as `dpolish plan` prints it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpolish.config.schema import RunConfig
from dpolish.facts import ModelFacts
from dpolish.planning.gpus import USED_SHARE, Gpu
from dpolish.planning.memory import RESERVED_SHARE, activations_of
from dpolish.planning.nearest import Choice, nearest
from dpolish.planning.plan import micro_batch_bound, sharding_strategy, work_of
from dpolish.planning.traffic import Collective, seconds_of, traffic_of
from dpolish.planning.values import DataFacts, Machine, RunPlan


@dataclass(frozen=True, slots=True)
class Outlook:
    """A plan, and what it was made from."""

    plan: RunPlan
    config: RunConfig
    model: ModelFacts
    train: DataFacts
    machine: Machine
    gpu: Gpu | None
    """The named GPU that the machine stands for; None for this machine."""

    @property
    def place(self) -> str:
        """What a rank runs on, in words."""
        return self.gpu.name if self.gpu else f"this machine's {self.machine.device}"

    @property
    def tokens(self) -> float:
        """Tokens of a mean global batch."""
        whole = self.train.packed_tokens if self.config.model.data.packing else self.train.padded_tokens
        return min(self.plan.global_batch_size, self.plan.rows) * whole / max(self.train.rows, 1)

    @property
    def tokens_of_rank(self) -> float:
        """Those of them that one data-parallel rank computes: one row at least, where there are fewer than ranks."""
        rows = min(self.plan.global_batch_size, self.plan.rows)
        return self.tokens / min(self.plan.layout.data, rows)

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of each rank in a step; about."""
        if self.plan.tokens_per_micro_batch is None:
            rows = math.ceil(self.plan.global_batch_size / self.plan.layout.data)
            return math.ceil(rows / self.config.model.micro_batch_size)
        return math.ceil(self.tokens_of_rank / self.plan.largest_micro_batch)


def rank_lines(outlook: Outlook) -> Iterator[str]:
    """Ranks, memory, collectives and time."""
    yield from _memory_lines(outlook)
    if outlook.plan.layout.world > 1:
        yield ""
        yield from _traffic_lines(outlook)
    if outlook.gpu is not None:
        yield ""
        yield from _time_lines(outlook, outlook.gpu)


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory_lines(outlook: Outlook) -> Iterator[str]:
    plan, memory = outlook.plan, outlook.plan.memory
    yield f"memory of one rank, estimated (derived), for micro-batches of {plan.largest_micro_batch:,} tokens:"
    for name, field, note in _PARTS:
        size: int = getattr(memory, field)
        if size:
            more = _other_activations(outlook) if field == "activations" else ""
            yield f"  {name:<14}{size / 1e9:>9.2f} GB  {note}{more}"
    fits = memory.total <= plan.available_memory
    yield (
        f"  {'in all':<14}{memory.total / 1e9:>9.2f} GB of {plan.available_memory / 1e9:.2f} GB on {outlook.place}: "
        f"{'fits' if fits else 'does not fit'}"
    )
    if not fits:
        yield nearest_line(outlook.config, outlook.model, outlook.train, outlook.machine, plan.seq_length)


_PARTS = (
    ("parameters", "weights", "what this rank keeps of them"),
    ("gradients", "gradients", "float32"),
    ("optimizer", "optimizer", "AdamW's two moments; in bf16 on one rank also float32 weights"),
    ("gathered", "gathered", "weights of two layers, embeddings and head as FSDP gathers them, unreduced gradients"),
    ("activations", "activations", "what layers keep for the backward pass"),
    ("head", "head", "logits in chunks, and the head's gradient"),
    ("fragmentation", "fragmentation", "holes in the C library's heap"),
    ("reserve", "reserve", f"{RESERVED_SHARE:.0%} left alone: the device's context, communication buffers, holes"),
)


def _other_activations(outlook: Outlook) -> str:
    """What activations would take with recomputation, or without it."""
    plan = outlook.plan
    work = work_of(outlook.config, outlook.machine, plan.largest_micro_batch, outlook.train)
    other = activations_of(outlook.model, plan.layout, replace(work, recompute=not work.recompute)) / 1e9
    setting = "null" if work.recompute else "full"
    return f"; {other:.2f} GB with model.activations_checkpoint_granularity={setting}"


def nearest_line(config: RunConfig, model: ModelFacts, train: DataFacts, machine: Machine, seq_length: int) -> str:
    """Which settings to change so that one rank's part fits, as the overrides to type."""
    asked = choice_of(config, train, machine, seq_length)
    least_tokens = train.largest if config.model.data.packing else asked.work.tokens
    found = nearest(asked, model, machine, least_tokens)
    if found is None:
        return f"no layout of {machine.devices} ranks a node fits this model into {machine.memory / 1e9:.1f} GB each"
    derived = config.model.data.tokens_per_micro_batch is None
    changes = [
        override for override in found.overrides(asked) if not (derived and "tokens_per_micro_batch" in override)
    ]
    tokens = f", micro-batches of {found.work.tokens:,} tokens" if derived and config.model.data.packing else ""
    total = found.total(model, machine) / 1e9
    return f"the nearest layout that fits: {' '.join(changes)}  ({total:.1f} GB a rank{tokens})"


def choice_of(config: RunConfig, train: DataFacts, machine: Machine, seq_length: int) -> Choice:
    """The settings as they are asked for."""
    return Choice(
        num_nodes=machine.num_nodes,
        tensor=config.model.tensor_model_parallel_size,
        context=config.model.context_parallel_size,
        strategy=sharding_strategy(config),
        work=work_of(config, machine, micro_batch_bound(config, train, machine, seq_length), train),
    )


# --- traffic ----------------------------------------------------------------------------------------------------------


def collectives_of(outlook: Outlook) -> list[Collective]:
    """What each rank exchanges in one step."""
    plan = outlook.plan
    work = work_of(outlook.config, outlook.machine, plan.largest_micro_batch, outlook.train)
    passes = outlook.micro_batches
    tokens = outlook.tokens_of_rank / passes
    return traffic_of(outlook.model, plan.layout, work, passes, tokens)


def _traffic_lines(outlook: Outlook) -> Iterator[str]:
    layout = outlook.plan.layout
    yield f"collectives of one rank in one step (derived), {outlook.micro_batches:,} micro-batches a step:"
    collectives = collectives_of(outlook)
    width = max(len(one.purpose) for one in collectives)
    for one in collectives:
        yield (
            f"  {one.kind:<14}  {one.purpose:<{width}}  {one.calls:>8,} calls  {_bytes(one.sent):>10} sent  "
            f"among {one.ranks} ranks ({one.group})"
        )
    total = sum(one.sent for one in collectives)
    idle = layout.data - outlook.plan.global_batch_size
    yield f"  {_bytes(total)} in all" + (f"; {idle} ranks without rows" if idle > 0 else "")


def _bytes(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"


# --- time -------------------------------------------------------------------------------------------------------------


def flops_of(model: ModelFacts, tokens: float, context: float, *, recompute: bool) -> float:
    """Operations of a training step: six per parameter that a token passes through, and those of attention.

    Two are the forward pass, four the backward pass; recomputation adds two. A token attends to half of its context.
    """
    of = model.parameters
    active = of.matrices - of.experts * (1 - model.expert_share)
    attention = 2 * model.num_layers * model.query_size * context
    return (8 if recompute else 6) * tokens * active + (4 if recompute else 3) * tokens * attention


def _time_lines(outlook: Outlook, gpu: Gpu) -> Iterator[str]:
    layout, config = outlook.plan.layout, outlook.config
    recompute = config.model.activations_checkpoint_granularity is not None
    context = outlook.train.tokens / max(outlook.train.rows, 1)
    flops = flops_of(outlook.model, outlook.tokens, context, recompute=recompute)
    busy = min(layout.data, outlook.plan.global_batch_size) * layout.tensor * layout.context
    compute = flops / busy / (USED_SHARE * gpu.bf16_flops)
    exchange = sum(seconds_of(one, layout, gpu.within_node, gpu.between_nodes) for one in collectives_of(outlook))
    yield (
        f"time of one step (assumed): {compute:.2f} s of computing, {exchange:.2f} s of sending; "
        "how much of the two overlaps decides between their maximum and their sum"
    )
    yield (
        f"  assumed for {gpu.name}: {USED_SHARE:.0%} of {gpu.bf16_flops / 1e12:.0f} TFLOP/s in bf16, "
        f"{gpu.within_node / 1e9:.0f} GB/s within a node and {gpu.between_nodes / 1e9:g} GB/s between nodes, "
        "for each GPU and direction"
    )
