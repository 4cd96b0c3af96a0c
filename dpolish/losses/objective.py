"""What a step minimises and what it reports: log-probabilities and a batch → per-example losses and values.

SFT and preference training differ here and nowhere else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dpolish.tensors import CompletionLogProbs, PackedBatch, PairLogProbs, StepMetrics


class Objective(Protocol):
    """Any objective. The loss of a step is the sum of its losses over the global batch, divided by `denominator`."""

    unit: ClassVar[str]
    """What a batch counts: pairs or examples."""

    def __call__(self, logprobs: CompletionLogProbs, batch: PackedBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Losses (N,) of a micro-batch's N examples, with gradient, and values (N,) to be summed over the batch."""

    def denominator(self, num_examples: int, num_scored: int) -> int:
        """What the summed losses of a global batch are divided by, from its examples and scored tokens."""

    def summarise(self, metrics: StepMetrics) -> dict[str, float]:
        """The metrics of a whole global batch (or validation set) by name."""


PairLoss = Callable[[PairLogProbs], Tensor]
"""A preference loss with its options bound: P pairs → (P,)."""


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """preference_loss_weight · preference loss + sft_loss_weight · negative log-likelihood of the chosen answer."""

    unit: ClassVar[str] = "pairs"
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

    def denominator(self, num_examples: int, num_scored: int) -> int:
        """The pairs."""
        del num_scored
        return num_examples

    def summarise(self, metrics: StepMetrics) -> dict[str, float]:
        """See `preference_metrics`."""
        return preference_metrics(metrics)


@dataclass(frozen=True, slots=True)
class SftObjective:
    """Negative log-likelihood of the trained tokens (next-token cross-entropy), prompts left out.

    `token`: the mean over all trained tokens of the global batch, as NeMo-Aligner's SFT. `example`: the mean over
    examples of each one's own mean.
    """

    unit: ClassVar[str] = "examples"
    loss_average: Literal["token", "example"]

    def __call__(self, logprobs: CompletionLogProbs, batch: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses (C,) with gradient, and the values (C,) that `summarise` reads."""
        del batch
        losses = -(logprobs.sums if self.loss_average == "token" else logprobs.averages)
        values = {"nll": -logprobs.sums, "tokens": logprobs.lengths, "loss": losses}
        return losses, {name: value.detach() for name, value in values.items()}

    def denominator(self, num_examples: int, num_scored: int) -> int:
        """The trained tokens, or the examples."""
        return num_scored if self.loss_average == "token" else num_examples

    def summarise(self, metrics: StepMetrics) -> dict[str, float]:
        """`loss`, the trained `tokens` that it is the mean of, and `perplexity`: exp of the mean over tokens."""
        mean = metrics.means()
        tokens = round(mean["tokens"] * metrics.count)
        per_token = mean["nll"] / mean["tokens"]
        denominator = self.denominator(metrics.count, tokens)
        return {
            "loss": mean["loss"] * metrics.count / denominator,
            "perplexity": math.exp(per_token) if per_token < _LARGEST_EXPONENT else math.inf,
            "tokens": tokens,
        }


_LARGEST_EXPONENT = 700.0


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
