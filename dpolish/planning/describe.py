"""What `dpolish plan` prints of a run, whatever the machine."""

import functools
from collections.abc import Iterator, Mapping

from dpolish.config.compose import Composed
from dpolish.config.schema import RunConfig
from dpolish.planning.plan import SEQUENCE_KEYS
from dpolish.planning.values import RunPlan

_SHOWN: Mapping[str, tuple[str, ...]] = {
    "dpo": (
        "model.dpo.preference_loss",
        "model.dpo.ref_policy_kl_penalty",
        "model.dpo.preference_loss_weight",
        "model.dpo.sft_loss_weight",
        "model.dpo.preference_average_log_probs",
    ),
    "sft": ("model.loss_average", "model.data.sample"),
}
_SHOWN_ALWAYS = (
    "model.prefix_sharing",
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


def describe(plan: RunPlan, composed: Composed[RunConfig], *, assumed: bool = False) -> Iterator[tuple[str, str, str]]:
    """(name, value, mark) of every number; the mark is default, given, environment or derived.

    Numbers of rows, and what follows from them, are marked assumed where the rows are.
    """
    config = composed.config
    of_rows = "assumed" if assumed else "derived"

    def marked(key: str, value: object) -> tuple[str, str, str]:
        return key, "null" if value is None else str(value), composed.origin[key]

    yield "device", plan.device, "derived" if config.trainer.accelerator == "auto" else "given"
    yield ("trainer.precision", plan.precision, "derived" if config.trainer.precision is None else "given")
    length = SEQUENCE_KEYS[config.verb]
    yield length, str(plan.seq_length), "given" if composed.chosen(length) else "derived"
    yield "ranks", str(plan.layout), "derived"
    yield "training rows", str(plan.rows), of_rows
    yield marked("model.global_batch_size", plan.global_batch_size)
    yield marked(f"trainer.{config.verb}.max_epochs", config.loop.max_epochs)
    yield "steps per epoch", str(plan.steps_per_epoch), of_rows
    yield "optimizer steps", str(plan.total_steps), of_rows
    budget = plan.tokens_per_micro_batch
    if budget is None:
        yield marked("model.micro_batch_size", config.model.micro_batch_size)
    else:
        mark = "derived" if config.model.data.tokens_per_micro_batch is None else "given"
        yield "model.data.tokens_per_micro_batch", str(budget), mark
    validates = f"{plan.validation_batches} batches every {plan.val_interval} steps and after the last"
    yield "validation", validates if plan.validation_batches else "none", of_rows
    for key in (*_SHOWN[config.verb], *(key.format(verb=config.verb) for key in _SHOWN_ALWAYS)):
        yield marked(key, functools.reduce(getattr, key.split("."), config))


def curve(plan: RunPlan, points: int = 12) -> list[tuple[int, float]]:
    """(optimizer step from 1, learning rate) at the bends of the schedule and evenly between."""
    last = plan.total_steps - 1
    warm = plan.schedule.warmup_steps
    chosen = {0, last, min(warm, last), min(warm + 1, last)}
    chosen |= {round(last * i / max(points - 1, 1)) for i in range(points)}
    return [(step + 1, plan.schedule.lr_at(step)) for step in sorted(chosen)]
