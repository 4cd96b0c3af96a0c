"""The invariant of step 0: what rounding explains passes in each precision, what it does not explain stops the run."""

import pytest
import torch

from dpolish.data.pack import Packing, collate
from dpolish.errors import RunError
from dpolish.tensors import CompletionLogProbs
from dpolish.training.step import at_reference
from tests.examples import random_examples

BATCH = collate(random_examples(6), Packing(True, 1000, 1))


def differing_by(gap: float) -> CompletionLogProbs:
    """float32 log-probabilities, whatever the model computes in, one of which is `gap` per √token off."""
    sums = BATCH.reference.clone()
    sums[3] += gap * float(BATCH.lengths[3]) ** 0.5
    return CompletionLogProbs(sums, BATCH.lengths)


@pytest.mark.parametrize(("dtype", "rounding", "fault"), [(torch.float32, 5e-5, 1e-3), (torch.bfloat16, 0.2, 1.0)])
def test_the_bound_is_that_of_the_models_precision(dtype: torch.dtype, rounding: float, fault: float) -> None:
    logprobs = differing_by(rounding)
    assert torch.equal(at_reference(logprobs, BATCH, dtype).reference, logprobs.sums)
    with pytest.raises(RunError, match=r"step 0: policy and reference differ"):
        at_reference(differing_by(fault), BATCH, dtype)


def test_a_number_that_is_none_is_no_match() -> None:
    with pytest.raises(RunError, match="step 0"):
        at_reference(differing_by(float("nan")), BATCH, torch.bfloat16)
