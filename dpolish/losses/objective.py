"""What a step minimises and what it reports: log-probabilities and a batch → per-pair losses and per-pair values.

SFT and preference training differ here and nowhere else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpolish.tensors import CompletionLogProbs, PackedBatch, PairLogProbs, StepMetrics

PairLoss = Callable[[PairLogProbs], Tensor]
"""A preference loss with its options bound: P pairs → (P,)."""


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """preference_loss_weight · preference loss + sft_loss_weight · negative log-likelihood of the chosen answer."""

    loss: PairLoss
    ref_policy_kl_penalty: float
    preference_loss_weight: float
    sft_loss_weight: float
    preference_average_log_probs: bool
    sft_average_log_probs: bool

    def __call__(self, logprobs: CompletionLogProbs, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (P,) with gradient, and the values (P,) that `preference_metrics` reads."""
        scores, reference = logprobs.sums, batch.reference.to(logprobs.sums.dtype)
        if self.preference_average_log_probs:
            scores, reference = logprobs.averages, reference / logprobs.lengths
        chosen, rejected = batch.chosen, batch.rejected
        pairs = PairLogProbs(
            scores[chosen],
            scores[rejected],
            reference[chosen],
            reference[rejected],
            batch.rewards[chosen] - batch.rewards[rejected],
        )
        preference = self.loss(pairs)
        likelihood = logprobs.averages if self.sft_average_log_probs else logprobs.sums
        sft = -likelihood[chosen]
        losses = self.preference_loss_weight * preference + self.sft_loss_weight * sft
        with torch.no_grad():
            reward_chosen = (self.ref_policy_kl_penalty * (pairs.chosen - pairs.ref_chosen)).double()
            reward_rejected = (self.ref_policy_kl_penalty * (pairs.rejected - pairs.ref_rejected)).double()
            values = {
                "loss": losses.detach(),
                "preference_loss": preference.detach(),
                "sft_loss": sft.detach(),
                "acc": reward_chosen > reward_rejected,  # a tie is not a win
                "reward_chosen": reward_chosen,
                "reward_rejected": reward_rejected,
                "reward_squares": reward_chosen.square() + reward_rejected.square(),
                "logps_chosen": logprobs.sums[chosen].detach(),
                "logps_rejected": logprobs.sums[rejected].detach(),
            }
        return losses, values


def preference_metrics(metrics: StepMetrics) -> dict[str, float]:
    """The metrics of a whole global batch (or validation set) under NeMo-Aligner's names.

    `rewards_all_std` is the unbiased standard deviation over both rewards of all pairs. Rewards are multiplied by β.
    """
    mean = metrics.means()
    count = 2 * metrics.count
    all_mean = (mean["reward_chosen"] + mean["reward_rejected"]) / 2
    squares = mean["reward_squares"] * metrics.count
    variance = (squares - count * all_mean**2) / (count - 1)
    return {
        "loss": mean["loss"],
        "preference_loss": mean["preference_loss"],
        "sft_loss": mean["sft_loss"],
        "acc": mean["acc"],
        "rewards_chosen_mean": mean["reward_chosen"],
        "rewards_rejected_mean": mean["reward_rejected"],
        "rewards_all_mean": all_mean,
        "rewards_all_std": math.sqrt(max(variance, 0.0)),
        "rewards_margin_mean": mean["reward_chosen"] - mean["reward_rejected"],
        "logps_chosen_mean": mean["logps_chosen"],
        "logps_rejected_mean": mean["logps_rejected"],
    }


Objective = Callable[[CompletionLogProbs, PackedBatch], tuple[Tensor, Mapping[str, Tensor]]]
"""Any objective: per-pair losses with gradient, and per-pair values to be summed."""
