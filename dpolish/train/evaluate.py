"""Validation: the exact mean over all rows, whatever the batch size."""

import torch

from dpolish.model.logprobs import attending, completion_logprobs
from dpolish.tensors import StepMetrics
from dpolish.train.state import Run


@torch.no_grad()
def evaluate(run: Run) -> StepMetrics:
    """Metric sums over the validation rows (the first `limit_val_batches` global batches of them)."""
    assert run.validation is not None
    metrics = StepMetrics.zero()
    run.policy.model.train(False)
    for group in run.validation.validation_groups(run.plan.validation_batches):
        for batch in (batch.to(run.policy.device) for batch in group.batches):
            with attending(run.policy, batch):
                _, values = run.objective(completion_logprobs(run.policy, batch), batch)
            metrics += StepMetrics.of(values)
    return metrics
