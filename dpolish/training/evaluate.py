"""Validation: the exact mean over all rows, whatever the batch size."""

import torch

from dpolish.model.logprobs import attending, completion_logprobs
from dpolish.parallel.watch import tick
from dpolish.tensors import StepMetrics
from dpolish.training.state import Run
from dpolish.training.step import at_reference, over_ranks


@torch.no_grad()
def evaluate(run: Run, step: int) -> StepMetrics:
    """Metric sums after `step` steps over the validation rows (the first `limit_val_batches` global batches)."""
    assert run.validation is not None
    metrics = StepMetrics.zero()
    run.policy.model.train(False)
    for group in run.validation.validation_groups(run.plan.validation_batches):
        for batch, counts, _ in group.passes:
            batch = batch.to(run.policy.device)
            with attending(run.policy, batch):
                logprobs = completion_logprobs(run.policy, batch)
                if run.validation.reference is not None and not run.plan.moved_by(step):
                    batch = at_reference(logprobs, batch, run.policy.dtype)
                _, values = run.objective(logprobs, batch)
            metrics += StepMetrics.of(values, counted=counts)
            tick()
    return over_ranks(run.policy.mesh, metrics)[0]
