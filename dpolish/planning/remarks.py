"""What a user should know before starting: traps, and values outside the tutorial's advice."""

from collections.abc import Iterator

from dpolish.config.schema import DpoConfig, RunConfig
from dpolish.planning.values import RunPlan


def remarks(plan: RunPlan, config: RunConfig) -> Iterator[str]:
    """What a user should know before starting: traps, and values outside the tutorial's advice."""
    yield from _traps(plan)
    yield from _idle(plan, config)
    if isinstance(config, DpoConfig):
        yield from _against_advice(plan, config)
    if config.model.optim.lr > 1e-3:
        usual = "DPO uses 1e-7 to 1e-5" if config.verb == "dpo" else "SFT uses 1e-6 to 1e-4"
        yield f"model.optim.lr={config.model.optim.lr:g} is far beyond what fine-tuning survives; {usual}"
    if plan.memory.total > plan.available_memory:
        yield _too_much(plan)


def _too_much(plan: RunPlan) -> str:
    """What is short, and what helps: fewer tokens where they take it, more ranks where the model alone does."""
    memory, each = plan.memory, " on every rank" if plan.layout.world > 1 else ""
    alone = memory.model + memory.reserve > plan.available_memory
    remedy = (
        f"the model alone takes {memory.model / 1e9:.1f} GB: ask for more ranks; `dpolish plan` finds how many"
        if alone
        else "lower model.data.tokens_per_micro_batch or set model.activations_checkpoint_granularity=full"
    )
    return (
        f"about {memory.total / 1e9:.1f} GB are needed{each}, a reserve of {memory.reserve / 1e9:.1f} GB included, and "
        f"{plan.available_memory / 1e9:.1f} GB are free: {remedy}"
    )


def _idle(plan: RunPlan, config: RunConfig) -> Iterator[str]:
    """Ranks and settings that do nothing."""
    if plan.layout.data > plan.global_batch_size:
        idle = plan.layout.data - plan.global_batch_size
        yield (
            f"model.global_batch_size={plan.global_batch_size} gives {plan.layout.data} data-parallel ranks less than "
            f"a row each: {idle} of them compute nothing that counts"
        )
    if config.model.sequence_parallel and plan.layout.tensor == 1:
        yield "model.sequence_parallel has no effect with model.tensor_model_parallel_size=1"


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
