"""Preference losses: pure functions from log-probabilities of P pairs to a loss per pair, under NeMo-Aligner's names.

Written with m for the margin over the reference (`PairLogProbs.margin`), β for `ref_policy_kl_penalty`, and G for
`gt_reward_scale` times the gap between the ground-truth rewards. Log-probabilities come summed or averaged over tokens:
the caller decides, the formulas are the same. Nothing here reduces over pairs, logs, or talks to other ranks.

Keyword-only arguments are configuration keys of `model.dpo`; β and `gt_reward_scale` default to NeMo-Aligner's values.
"""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpolish.registry import Registry
from dpolish.tensors import PairLogProbs

PreferenceLoss = Callable[..., Tensor]
"""`(pairs, *, options) -> (P,)`: the loss of each pair."""

LOSSES: Registry[PreferenceLoss] = Registry("preference loss")


def loss_options(name: str) -> frozenset[str]:
    """The options that a loss takes, read from its signature.

    >>> sorted(loss_options("ipo"))
    ['ref_policy_kl_penalty']
    """
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


@LOSSES.register("dpo")
def dpo(pairs: PairLogProbs, *, ref_policy_kl_penalty: float = 0.2, label_smoothing: float = 0.0) -> Tensor:
    """(P,): negative log-likelihood that the chosen answer wins, when labels flip at the rate e = `label_smoothing`.

    -(1 - e) log σ(βm) - e log σ(-βm): Rafailov et al. 2023, eq. 7 (https://arxiv.org/abs/2305.18290); e > 0 is
    conservative DPO.

    >>> zero = torch.zeros(1)
    >>> dpo(PairLogProbs(zero, zero, zero, zero, zero))  # log 2 where policy and reference agree
    tensor([0.6931])
    """
    logit = ref_policy_kl_penalty * pairs.margin
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


@LOSSES.register("ipo")
def ipo(pairs: PairLogProbs, *, ref_policy_kl_penalty: float = 0.2) -> Tensor:
    """(P,): squared distance of the margin from 1/(2β), so that a certain preference does not push it to infinity.

    (m - 1/(2β))²: Azar et al. 2023, where β is called τ (https://arxiv.org/abs/2310.12036). The target is meant for
    summed log-probabilities; with averaged ones (`preference_average_log_probs`) it is met per token instead.

    >>> zero = torch.zeros(1)
    >>> ipo(PairLogProbs(zero + 2.5, zero, zero, zero, zero))  # 1 / (2 · 0.2) = 2.5
    tensor([0.])
    """
    return (pairs.margin - 1 / (2 * ref_policy_kl_penalty)) ** 2


@LOSSES.register("rpo_sq")
def rpo_sq(pairs: PairLogProbs, *, ref_policy_kl_penalty: float = 0.2, gt_reward_scale: float = 1.0) -> Tensor:
    """(P,): squared distance between the reward gap that the policy implies and the scaled ground-truth one.

    (βm - G)²: NVIDIA, reward-aware preference optimization with the squared distance, Nemotron-4 340B technical report
    (https://arxiv.org/abs/2406.11704); the family is laid out in https://arxiv.org/abs/2502.00203.

    >>> zero = torch.zeros(1)
    >>> rpo_sq(PairLogProbs(zero, zero, zero, zero, zero + 3))
    tensor([9.])
    """
    return (ref_policy_kl_penalty * pairs.margin - gt_reward_scale * pairs.reward_gap) ** 2


@LOSSES.register("rpo_bwd_kl")
def rpo_bwd_kl(pairs: PairLogProbs, *, ref_policy_kl_penalty: float = 0.2, gt_reward_scale: float = 1.0) -> Tensor:
    """(P,): divergence of the policy's belief that the chosen answer wins from the ground truth's.

    KL(σ(G) ‖ σ(βm)) between two coins: NVIDIA, reward-aware preference optimization with the backward divergence,
    Nemotron-4 340B technical report (https://arxiv.org/abs/2406.11704). G → ∞ gives DPO.

    >>> zero = torch.zeros(1)
    >>> rpo_bwd_kl(PairLogProbs(zero, zero, zero, zero, zero + 100))  # the truth is certain: DPO's log 2
    tensor([0.6931])
    """
    return _coin_divergence(gt_reward_scale * pairs.reward_gap, ref_policy_kl_penalty * pairs.margin)


@LOSSES.register("rpo_fwd_kl")
def rpo_fwd_kl(pairs: PairLogProbs, *, ref_policy_kl_penalty: float = 0.2, gt_reward_scale: float = 1.0) -> Tensor:
    """(P,): divergence of the ground truth's belief that the chosen answer wins from the policy's.

    KL(σ(βm) ‖ σ(G)): `rpo_bwd_kl` with the two coins exchanged, same source.

    >>> zero = torch.zeros(1)
    >>> rpo_fwd_kl(PairLogProbs(zero, zero, zero, zero, zero))  # the truth is a tie, and so is the policy
    tensor([0.])
    """
    return _coin_divergence(ref_policy_kl_penalty * pairs.margin, gt_reward_scale * pairs.reward_gap)


def _coin_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(σ(p) ‖ σ(q)) from logits. Log-sigmoids of both signs: where σ(p) rounds to 1, 1 - σ(p) must not become 0."""
    heads = torch.sigmoid(p) * (F.logsigmoid(p) - F.logsigmoid(q))
    tails = torch.sigmoid(-p) * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return heads + tails
