"""One optimizer step."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from dpolish.data.loader import BatchGroup
from dpolish.errors import RunError
from dpolish.model.logprobs import attending, completion_logprobs
from dpolish.parallel.apply import before_backward
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.watch import tick
from dpolish.tensors import CompletionLogProbs, PackedBatch, StepMetrics
from dpolish.training.state import Run

STEP_ZERO_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 0.5}
"""Largest |log π - log π_ref| before the first update, per √(scored tokens): what rounding can do to a sum."""


def train_step(run: Run, group: BatchGroup, step: int) -> tuple[StepMetrics, float]:
    """Metric sums and gradient norm of one optimizer step: the loss is a mean over the whole global batch.

    `step` is 0-based. Raises RunError, before any weight changes, when the gradient is not finite or the reference does
    not match the policy before the first update.
    """
    metrics = StepMetrics.zero()
    denominator = run.objective.denominator(group.num_examples, group.num_scored)
    run.policy.model.train()
    mesh = run.policy.mesh
    for batch, counts, last in group.passes:
        batch = batch.to(mesh.device)
        before_backward(run.policy.model, last=last, layout_shards=mesh.layout.shard)
        with attending(run.policy, batch):
            logprobs = completion_logprobs(run.policy, batch)
            if run.data.reference is not None and not run.plan.moved_by(step):
                batch = at_reference(logprobs, batch, run.policy.dtype)
            losses, values = run.objective(logprobs, batch)
            weight = mesh.layout.replicate * mesh.layout.shard if counts else 0  # FSDP averages over them: undo it
            (losses.sum() * weight / denominator).backward()  # type: ignore[no-untyped-call]
        metrics += StepMetrics.of(values, counted=counts)
        tick()
    metrics, squared_norm = over_ranks(mesh, metrics, run.optimizer.gradient_share())
    grad_norm = math.sqrt(squared_norm)
    try:
        run.optimizer.step(run.plan.schedule.lr_at(step), grad_norm)
    except RunError as error:
        rows = ", ".join(run.where[row] for row in group.rows[:8])
        more = " …" if len(group.rows) > 8 else ""
        raise RunError(f"step {step + 1}: {error}\n  Rows of this batch: {rows}{more}") from error
    run.optimizer.zero_grad()
    return metrics, grad_norm


def over_ranks(mesh: Mesh, metrics: StepMetrics, share: Tensor | None = None) -> tuple[StepMetrics, float]:
    """Metric sums over all ranks, and the sum of a further number of each, in one collective."""
    names = sorted(metrics.sums)
    counted = 1.0 if mesh.speaks else 0.0
    own = torch.stack([*(metrics.sums[name].cpu() for name in names), torch.tensor(metrics.count, dtype=torch.float64)])
    extra = torch.zeros(1, dtype=torch.float64) if share is None else share.detach().cpu().reshape(1)
    *sums, count, total = mesh.sum(torch.cat([own * counted, extra]))
    return StepMetrics(dict(zip(names, sums, strict=True)), round(float(count))), float(total)


def at_reference(logprobs: CompletionLogProbs, batch: PackedBatch, dtype: torch.dtype) -> PackedBatch:
    """The batch with the policy's own log-probabilities as its reference: until a weight moves they are one model.

    So every reward is 0 and every pair a tie, instead of what the rounding of another packing makes of them. Raises
    RunError when the reference that was scored differs by more than rounding.
    """
    require_reference(logprobs, batch, dtype)
    return replace(batch, reference=logprobs.sums.detach())


def require_reference(logprobs: CompletionLogProbs, batch: PackedBatch, dtype: torch.dtype) -> None:
    """Before the first update policy and reference are one model: every reward is 0 up to the rounding of `dtype`.

    `dtype` is the model's, for log-probabilities are float32 whatever it computes in. Raises RunError.
    """
    gap = (logprobs.sums.detach() - batch.reference).abs()
    allowed = STEP_ZERO_TOLERANCES[dtype] * logprobs.lengths.sqrt()
    if bool((gap <= allowed).all()):
        return
    worst = int((gap / allowed).argmax())
    raise RunError(
        f"step 0: policy and reference differ by {float(gap[worst]):.2e} in an answer's log-probability, where "
        f"rounding explains {float(allowed[worst]):.2e}. They must be the same model before the first update. Likely "
        "causes: dropout or other noise in the model, reference scores of another model or precision in "
        "model.dpo.reference_cache (set it to off to score anew), weights changed on disk during the start"
    )
