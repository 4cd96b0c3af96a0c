"""Every number that follows from a configuration, its data and its model, computed once.

And every refusal, before any compute. Nothing here needs torch: `dpolish plan` prints it, the run saves it, the loop
reads it.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dpolish.config.compose import Composed
from dpolish.config.schema import DpoConfig, RunConfig, SftConfig
from dpolish.errors import ConfigError
from dpolish.facts import ModelFacts
from dpolish.schedule import Schedule, steps_of

CPU_TOKENS = 2048
"""Tokens of a micro-batch on a CPU: enough for full matrix speed; more only takes memory."""
SEQUENCE_KEYS: Mapping[str, str] = {"dpo": "model.data.seq_length", "sft": "model.data.train_ds.max_seq_length"}
"""Where each verb has the length of a sequence."""
DEFAULT_LONGEST = 4096
"""Sequence length where the model allows more and nobody asked."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the plan needs to know of the rows that were kept."""

    rows: int
    tokens: int
    """Tokens of all rows, a shared prompt once."""
    padded_tokens: int
    """Tokens of all rows as padded sequences, two for a pair."""
    largest: int
    """Tokens of the largest row: prompt and all its answers."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run computes."""

    device: str
    """cpu, cuda or mps."""
    memory: int
    """Bytes that the run may take."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes by component, at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The derived numbers of one run."""

    seed: int
    device: str
    precision: str
    """32 or bf16."""
    seq_length: int
    rows: int
    global_batch_size: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    val_interval: int
    """Validate every so many steps, and after the last."""
    validation_rows: int
    validation_batches: int
    """Global batches per validation; 0 validates never."""
    tokens_per_micro_batch: int | None
    """Budget of a packed micro-batch; None pads."""
    schedule: Schedule
    memory: Memory
    available_memory: int

    def evaluates_at(self, step: int) -> bool:
        """True when validation follows optimizer step `step` (from 1)."""
        if self.validation_batches == 0:
            return False
        return step % self.val_interval == 0 or step == self.total_steps

    def moved_by(self, step: int) -> bool:
        """True when one of the first `step` updates had a rate above 0: until then the policy is the reference."""
        return any(self.schedule.lr_at(earlier) > 0 for earlier in range(step))


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
    batch = config.model.global_batch_size
    full_epoch = math.ceil(train.rows / batch)
    loop = config.loop
    steps_per_epoch = share_or_count(loop.limit_train_batches, full_epoch)
    total = _total_steps(config, steps_per_epoch)
    budget = _token_budget(config, model, train, machine, seq_length)
    validation_rows = validation.rows if validation else 0
    full_validation = math.ceil(validation_rows / validation_batch_size(config))
    limit = loop.limit_val_batches
    precision = _precision(config, machine)
    return RunPlan(
        seed=config.model.seed,
        device=machine.device,
        precision=precision,
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
        schedule=_schedule(config, model, total),
        memory=memory_of(config, model, precision, budget or _padded_tokens(config, train), train.largest),
        available_memory=machine.memory,
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
    config: RunConfig, model: ModelFacts, train: DataFacts, machine: Machine, seq_length: int
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
    budget = (2 if config.verb == "dpo" else 1) * micro * seq_length  # what a padded micro-batch of NeMo holds
    if machine.device == "cpu":
        budget = min(budget, CPU_TOKENS)
    one = memory_of(config, model, _precision(config, machine), 1, 1)
    room = 0.9 * machine.memory - one.weights - one.gradients - one.optimizer
    per_token = one.activations + one.head
    return max(train.largest if room <= 0 else min(budget, int(room / per_token)), 1)


def _padded_tokens(config: RunConfig, train: DataFacts) -> int:
    return math.ceil(config.model.micro_batch_size * train.padded_tokens / max(train.rows, 1))


def memory_of(config: RunConfig, model: ModelFacts, precision: str, budget: int, largest: int) -> Memory:
    """Estimated bytes of one step. Activations: what the layers of a gated transformer keep for backward, per token.

    Nine vectors of the hidden size (norms, queries, attention, residuals), keys and values, four of the feed-forward
    size.
    """
    size = 4 if precision == "32" else 2
    parameters = model.num_parameters
    tokens = max(budget, largest)
    per_layer = 9 * model.hidden_size + 2 * model.key_value_size + 4 * model.intermediate_size
    layers = model.num_layers
    if config.model.activations_checkpoint_granularity is not None:
        kept = layers * model.hidden_size + per_layer  # each layer's input, and one layer at work
    else:
        kept = layers * per_layer
    return Memory(
        weights=parameters * size,
        gradients=parameters * 4,
        optimizer=parameters * (8 if precision == "32" else 12),  # two moments; under bf16 also the float32 masters
        activations=tokens * kept * size,
        head=min(tokens * model.vocabulary_size * 4, 2**29 + 2**27),
    )


# --- what `dpolish plan` prints ---------------------------------------------------------------------------------------


_SHOWN: Mapping[str, tuple[str, ...]] = {
    "dpo": (
        "model.prefix_sharing",
        "model.dpo.preference_loss",
        "model.dpo.ref_policy_kl_penalty",
        "model.dpo.preference_loss_weight",
        "model.dpo.sft_loss_weight",
        "model.dpo.preference_average_log_probs",
    ),
    "sft": ("model.loss_average", "model.data.sample"),
}
_SHOWN_ALWAYS = (
    "model.optim.lr",
    "model.optim.weight_decay",
    "model.optim.sched.name",
    "model.optim.sched.warmup_steps",
    "model.optim.sched.constant_steps",
    "model.optim.sched.min_lr",
    "trainer.{verb}.max_steps",
    "trainer.{verb}.gradient_clip_val",
    "trainer.deterministic",
    "model.seed",
)
"""Keys that decide a run, besides those that stand above them with what follows."""


def describe(plan: RunPlan, composed: Composed[RunConfig]) -> Iterator[tuple[str, str, str]]:
    """(name, value, mark) of every number; the mark is default, given, environment or derived."""

    config = composed.config

    def marked(key: str, value: object) -> tuple[str, str, str]:
        return key, "null" if value is None else str(value), composed.origin[key]

    yield "device", plan.device, "derived" if config.trainer.accelerator == "auto" else "given"
    yield ("trainer.precision", plan.precision, "derived" if config.trainer.precision is None else "given")
    length = SEQUENCE_KEYS[config.verb]
    yield length, str(plan.seq_length), "given" if composed.chosen(length) else "derived"
    yield "training rows", str(plan.rows), "derived"
    yield marked("model.global_batch_size", plan.global_batch_size)
    yield marked(f"trainer.{config.verb}.max_epochs", config.loop.max_epochs)
    yield "steps per epoch", str(plan.steps_per_epoch), "derived"
    yield "optimizer steps", str(plan.total_steps), "derived"
    budget = plan.tokens_per_micro_batch
    if budget is None:
        yield marked("model.micro_batch_size", config.model.micro_batch_size)
    else:
        mark = "derived" if config.model.data.tokens_per_micro_batch is None else "given"
        yield "model.data.tokens_per_micro_batch", str(budget), mark
    validates = f"{plan.validation_batches} batches every {plan.val_interval} steps and after the last"
    yield "validation", validates if plan.validation_batches else "none", "derived"
    for key in (*_SHOWN[config.verb], *(key.format(verb=config.verb) for key in _SHOWN_ALWAYS)):
        yield marked(key, functools.reduce(getattr, key.split("."), config))


def curve(plan: RunPlan, points: int = 12) -> list[tuple[int, float]]:
    """(optimizer step from 1, learning rate) at the bends of the schedule and evenly between."""
    last = plan.total_steps - 1
    warm = plan.schedule.warmup_steps
    chosen = {0, last, min(warm, last), min(warm + 1, last)}
    chosen |= {round(last * i / max(points - 1, 1)) for i in range(points)}
    return [(step + 1, plan.schedule.lr_at(step)) for step in sorted(chosen)]


def remarks(plan: RunPlan, config: RunConfig) -> Iterator[str]:
    """What a user should know before starting: traps, and values outside the tutorial's advice."""
    yield from _traps(plan)
    if isinstance(config, DpoConfig):
        yield from _against_advice(plan, config)
    if config.model.optim.lr > 1e-3:
        usual = "DPO uses 1e-7 to 1e-5" if config.verb == "dpo" else "SFT uses 1e-6 to 1e-4"
        yield f"model.optim.lr={config.model.optim.lr:g} is far beyond what fine-tuning survives; {usual}"
    if plan.memory.total > plan.available_memory:
        yield (
            f"about {plan.memory.total / 1e9:.1f} GB are needed and {plan.available_memory / 1e9:.1f} GB are free: "
            "lower model.data.tokens_per_micro_batch or set model.activations_checkpoint_granularity=full"
        )


def _traps(plan: RunPlan) -> Iterator[str]:
    """Where schedule and batches do as configured, and not as one would expect."""
    schedule = plan.schedule
    if schedule.drops_after_warmup():
        yield (
            f"the learning rate falls from {schedule.lr:g} to {schedule.min_lr:g} right after warm-up: "
            f"{schedule.constant_steps} constant steps leave no room to decay in {schedule.max_steps} steps "
            "(NeMo's formula; set model.optim.sched.constant_steps=0 for a cosine)"
        )
    if schedule.lr_at(0) == 0.0:
        yield "the first update has learning rate 0 (NeMo's formula when constant_steps > 0)"
    if not plan.moved_by(plan.total_steps):
        yield "every update has learning rate 0: no weight will move. Set model.optim.sched.constant_steps=0"
    if plan.device == "cpu" and plan.precision == "bf16":
        yield "bf16 on a CPU without bf16 units is slower than trainer.precision=32"
    if plan.rows < plan.global_batch_size:
        yield (
            f"the file holds {plan.rows} rows, less than one global batch of {plan.global_batch_size}: "
            "one short batch per epoch"
        )


def _against_advice(plan: RunPlan, config: DpoConfig) -> Iterator[str]:
    """Values outside what the tutorial, NeMo-Aligner's practice or other trainers found good."""
    schedule, dpo = plan.schedule, config.model.dpo
    if not 256 <= plan.global_batch_size <= 512:
        yield f"model.global_batch_size={plan.global_batch_size}: the tutorial found 256 or 512 best; smaller did worse"
    if config.trainer.dpo.max_epochs > 3:
        yield f"trainer.dpo.max_epochs={config.trainer.dpo.max_epochs}: the tutorial saw no gain beyond 3"
    if not 0.1 <= dpo.ref_policy_kl_penalty <= 1.0:
        yield (
            f"model.dpo.ref_policy_kl_penalty={dpo.ref_policy_kl_penalty:g}: "
            "the tutorial used 0.1 to 1.0 (at times up to 5)"
        )
    if schedule.name == "CosineAnnealing" and schedule.min_lr > 9e-7:
        yield f"model.optim.sched.min_lr={schedule.min_lr:g}: the tutorial saw the best results with 9e-7 and 5e-7"
    if dpo.preference_loss == "ipo" and not dpo.preference_average_log_probs:
        yield (
            "ipo here sums log-probabilities over tokens, as NeMo-Aligner does; "
            "other trainers average (preference_average_log_probs=true)"
        )
