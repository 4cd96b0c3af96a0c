"""Derive the plan: steps, lengths, micro-batches, schedule, ranks. And every refusal, before any compute."""

import math
from collections.abc import Mapping

from dpolish.config.compose import Composed
from dpolish.config.schema import RunConfig, SftConfig
from dpolish.errors import ConfigError
from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout, ShardingStrategy, make_layout
from dpolish.planning.memory import Work, fitting_tokens, memory_of
from dpolish.planning.values import DataFacts, Machine, RunPlan
from dpolish.schedule import Schedule, steps_of

CPU_TOKENS = 2048
"""Tokens of a micro-batch on a CPU: enough for full matrix speed; more only takes memory."""
SEQUENCE_KEYS: Mapping[str, str] = {"dpo": "model.data.seq_length", "sft": "model.data.train_ds.max_seq_length"}
"""Where each verb has the length of a sequence."""
DEFAULT_LONGEST = 4096
"""Sequence length where the model allows more and nobody asked."""


def sequence_length(composed: Composed[RunConfig], model: ModelFacts) -> int:
    """The configured length of a sequence, or the model's own limit up to 4096.

    A length that is only a default gives way to a smaller limit. Raises ConfigError for one that was asked for and that
    the model cannot do.
    """
    config = composed.config
    key = SEQUENCE_KEYS[config.verb]
    asked = config.seq_length if composed.chosen(key) else None
    limit = model.max_positions
    if asked is not None and limit is not None and asked > limit:
        raise ConfigError(
            f"{key}={asked} is more than the {limit} positions of {model.folder}. "
            f"Set it to {limit} or less; longer rows are dropped, counted and named"
        )
    default = config.seq_length or DEFAULT_LONGEST
    length = asked if asked is not None else min(limit or default, default)
    if model.varying_rope is not None and length > model.varying_rope[1]:
        kind, start = model.varying_rope
        if asked is None:
            return start
        raise ConfigError(
            f"{key}={length}: beyond {start} tokens the {kind} rotary positions of {model.folder} "
            "depend on the longest row of a batch, so that a pair's loss would depend on its neighbours. "
            f"Set it to {start} or less"
        )
    return length


def make_plan(
    config: RunConfig,
    model: ModelFacts,
    train: DataFacts,
    validation: DataFacts | None,
    machine: Machine,
    seq_length: int,
) -> RunPlan:
    """All derived numbers. Raises ConfigError for combinations that cannot work, with the way out."""
    layout = rank_layout(config, model, machine)
    if config.model.fsdp_cpu_offload and layout.world == 1:
        raise ConfigError(
            "model.fsdp_cpu_offload=true: it is FSDP that offloads, and one rank does without it. Set it to false and "
            "model.activations_checkpoint_granularity=full, or ask for more devices"
        )
    batch = config.model.global_batch_size
    full_epoch = math.ceil(train.rows / batch)
    loop = config.loop
    steps_per_epoch = share_or_count(loop.limit_train_batches, full_epoch)
    total = _total_steps(config, steps_per_epoch)
    budget = _token_budget(config, model, layout, train, machine, seq_length)
    tokens = max(budget or _padded_tokens(config, train), train.largest)
    validation_rows = validation.rows if validation else 0
    full_validation = math.ceil(validation_rows / validation_batch_size(config))
    limit = loop.limit_val_batches
    return RunPlan(
        seed=config.model.seed,
        device=machine.device,
        precision=_precision(config, machine),
        seq_length=seq_length,
        rows=train.rows,
        global_batch_size=batch,
        steps_per_epoch=steps_per_epoch,
        epochs=math.ceil(total / steps_per_epoch),
        total_steps=total,
        val_interval=_interval(loop.val_check_interval, steps_per_epoch),
        validation_rows=validation_rows,
        validation_batches=share_or_count(limit, full_validation) if limit and full_validation else 0,
        tokens_per_micro_batch=budget,
        largest_micro_batch=tokens,
        schedule=_schedule(config, model, total),
        layout=layout,
        memory=memory_of(model, layout, work_of(config, machine, tokens, train), machine.memory),
        available_memory=machine.memory,
    )


def rank_layout(config: RunConfig, model: ModelFacts, machine: Machine) -> RankLayout:
    """How the job's ranks are grouped. Raises ConfigError for sizes that do not divide."""
    tensor = config.model.tensor_model_parallel_size
    layout = make_layout(
        machine.num_nodes,
        machine.devices,
        tensor,
        sharding_strategy(config),
        model.num_parameters,
        machine.memory,
        config.model.context_parallel_size,
        config.model.expert_model_parallel_size,
    )
    if fault := heads_fault(model, tensor, machine.devices) or context_fault(model, layout):
        raise ConfigError(fault)
    return layout


def sharding_strategy(config: RunConfig) -> ShardingStrategy:
    """`model.fsdp_sharding_strategy`."""
    return config.model.fsdp_sharding_strategy


def heads_fault(model: ModelFacts, tensor: int, devices: int) -> str | None:
    """Why the model's heads cannot be split over so many ranks, and over how many they can; None where they can."""
    for name, number in (("attention heads", model.num_heads), ("key/value heads", model.num_key_value_heads)):
        if number % tensor:
            sizes = ", ".join(map(str, tensor_sizes(model, devices)))
            return (
                f"model.tensor_model_parallel_size={tensor} does not divide the {number} {name} of {model.folder}. "
                f"Sizes that divide its heads and trainer.devices={devices}: {sizes}"
            )
    return None


def context_fault(model: ModelFacts, layout: RankLayout) -> str | None:
    """Why ranks that share a sequence cannot share the model's heads during attention; None where they can."""
    for name, number in (("attention heads", model.num_heads), ("key/value heads", model.num_key_value_heads)):
        if number % (layout.tensor * layout.context):
            return (
                f"model.context_parallel_size={layout.context}"
                + (f" × model.tensor_model_parallel_size={layout.tensor}" if layout.tensor > 1 else "")
                + f" does not divide the {number} {name} of {model.folder}, which such ranks share during attention. "
                "model.sequence_parallel with model.tensor_model_parallel_size, or "
                "model.activations_checkpoint_granularity=full, saves activations too"
            )
    return None


def tensor_sizes(model: ModelFacts, devices: int) -> list[int]:
    """The tensor-parallel sizes that divide a model's heads and the ranks of a node."""
    most = math.gcd(model.num_heads, model.num_key_value_heads, devices)
    return [size for size in range(1, most + 1) if most % size == 0]


def work_of(config: RunConfig, machine: Machine, tokens: int, train: DataFacts) -> Work:
    """How a rank computes micro-batches of so many tokens at most, of such rows."""
    return Work(
        device=machine.device,
        precision=_precision(config, machine),
        tokens=tokens,
        scored_share=train.scored_share,
        recompute=config.model.activations_checkpoint_granularity is not None,
        sequence_parallel=config.model.sequence_parallel and config.model.tensor_model_parallel_size > 1,
        offload=config.model.fsdp_cpu_offload,
    )


def validation_batch_size(config: RunConfig) -> int:
    """Rows of a global batch in validation: what `limit_val_batches` counts."""
    if isinstance(config, SftConfig):
        return config.model.data.validation_ds.global_batch_size
    return config.model.global_batch_size


def share_or_count(limit: int | float, total: int) -> int:
    """NeMo's rule for limits: an int counts, a float is a share and at least 1. 1 is not 1.0.

    >>> share_or_count(1, 40), share_or_count(1.0, 40), share_or_count(0.01, 40)
    (1, 40, 1)
    """
    return max(1, math.floor(limit * total)) if isinstance(limit, float) else min(limit, total)


def _total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Epochs or `max_steps`, whichever ends first; NeMo's `sample` lets SFT go on beyond its epochs."""
    loop = config.loop
    if loop.max_steps > 0 and isinstance(config, SftConfig) and config.model.data.sample:
        return loop.max_steps
    total = loop.max_epochs * steps_per_epoch
    return min(total, loop.max_steps) if loop.max_steps > 0 else total


def _interval(value: int | float, steps_per_epoch: int) -> int:
    return max(1, math.floor(value * steps_per_epoch)) if isinstance(value, float) else value


def _precision(config: RunConfig, machine: Machine) -> str:
    asked = config.trainer.precision
    if asked is None:
        return "bf16" if machine.device == "cuda" else "32"
    return "32" if asked == "32" else "bf16"


def _schedule(config: RunConfig, model: ModelFacts, total_steps: int) -> Schedule:
    sched, spans = config.model.optim.sched, config.model.optim.sched.max_steps or total_steps
    return Schedule(
        name=sched.name,
        lr=config.model.optim.lr,
        min_lr=sched.min_lr,
        max_steps=spans,
        warmup_steps=steps_of(sched.warmup_steps, sched.warmup_ratio, spans) or 0,
        constant_steps=steps_of(sched.constant_steps, sched.constant_ratio, spans) or 0,
        hold_steps=steps_of(sched.hold_steps, sched.hold_ratio, spans),
        power=sched.power,
        d_model=sched.d_model or model.hidden_size,
    )


def _token_budget(
    config: RunConfig, model: ModelFacts, layout: RankLayout, train: DataFacts, machine: Machine, seq_length: int
) -> int | None:
    """Tokens of a packed micro-batch, or None for padded ones. Refuses a padded batch that does not divide."""
    micro, batch, data = config.model.micro_batch_size, config.model.global_batch_size, config.model.data
    if not data.packing:
        if data.tokens_per_micro_batch is not None:
            raise ConfigError(
                "model.data.tokens_per_micro_batch needs model.data.packing=true; padded batches count rows"
            )
        if batch % micro:
            fits = [size for size in range(1, batch + 1) if batch % size == 0]
            near = min(fits, key=lambda size: abs(size - micro))
            raise ConfigError(
                f"model.global_batch_size={batch} is not a multiple of model.micro_batch_size={micro}, and padded "
                f"batches (model.data.packing=false) must divide evenly. Use model.micro_batch_size={near}, or "
                f"model.global_batch_size={max(1, round(batch / micro)) * micro}, or model.data.packing=true"
            )
        return None
    if data.tokens_per_micro_batch is not None:
        return data.tokens_per_micro_batch
    budget = padded_bound(config, machine, seq_length)
    fitting = fitting_tokens(model, layout, work_of(config, machine, budget, train), machine.memory)
    return max(fitting or train.largest, 1)


def padded_bound(config: RunConfig, machine: Machine, seq_length: int) -> int:
    """The most tokens that a derived budget has: what a padded micro-batch of NeMo holds, on a CPU less."""
    bound = (2 if config.verb == "dpo" else 1) * config.model.micro_batch_size * seq_length
    return min(bound, CPU_TOKENS) if machine.device == "cpu" else bound


def micro_batch_bound(config: RunConfig, train: DataFacts, machine: Machine, seq_length: int) -> int:
    """Most tokens of a micro-batch, whatever the memory: a given budget, padded rows, or the bound of a derived one."""
    data = config.model.data
    if not data.packing:
        bound = _padded_tokens(config, train)
    else:
        bound = data.tokens_per_micro_batch or padded_bound(config, machine, seq_length)
    return max(bound, train.largest)


def _padded_tokens(config: RunConfig, train: DataFacts) -> int:
    return math.ceil(config.model.micro_batch_size * train.padded_tokens / max(train.rows, 1))
