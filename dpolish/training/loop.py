"""The training loop: every side effect of a run is on this screen."""

import math
import time
from collections.abc import Mapping

from dpolish.data.loader import BatchGroup
from dpolish.errors import RunError
from dpolish.records import StepRecord
from dpolish.training.evaluate import evaluate
from dpolish.training.state import Run, TrainState
from dpolish.training.step import train_step


def train(run: Run, state: TrainState | None = None) -> TrainState:
    """Train until the plan is spent. Returns the final state; the weights are in `run.policy.model`."""
    state = state or TrainState()
    plan = run.plan
    groups = run.data.training_groups(plan.seed, run.sources, plan.steps_per_epoch, start=state.step)
    while state.step < plan.total_steps:
        start = time.perf_counter()
        group = next(groups)
        metrics, grad_norm = train_step(run, group, state.step)
        lr = plan.schedule.lr_at(state.step)
        state = state.after(group)
        pace = _pace(run, group, time.perf_counter() - start)
        progress = {"consumed_samples": state.consumed_samples, "epoch": group.epoch + 1}
        record = {**run.objective.summarise(metrics), "grad_norm": grad_norm, "lr": lr, **pace, **progress}
        run.emit(StepRecord(state.step, "train", record))
        if plan.evaluates_at(state.step):
            start = time.perf_counter()
            record = run.objective.summarise(evaluate(run, state.step))
            require_finite(record, state.step)
            seconds = {"validation_step_time": time.perf_counter() - start}
            run.emit(StepRecord(state.step, "val", {**record, **seconds, **progress}))
    return state


def require_finite(metrics: Mapping[str, float], step: int) -> None:
    """Raise RunError when a validation shows that the weights are spoiled: they must not be saved."""
    if not all(math.isfinite(value) for value in metrics.values()):
        raise RunError(
            f"validation after step {step}: loss {metrics['loss']}; the model no longer gives finite numbers and is "
            "not saved. Lower model.optim.lr, or lengthen the warm-up"
        )


def _pace(run: Run, group: BatchGroup, seconds: float) -> dict[str, float]:
    """How fast a step was; tokens are those computed, a shared prompt once."""
    return {
        "step_time": seconds,
        "tokens_per_second": group.num_tokens / seconds,
        f"{run.objective.unit}_per_second": group.num_examples / seconds,
    }
