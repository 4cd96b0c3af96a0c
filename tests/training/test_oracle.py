"""Five optimizer steps against the same computed another way: plain transformers on separate rows, in float64.

Nothing of dpolish is used below but `train` itself: tokens, order of rows, log-probabilities, losses, schedule,
parameter groups, clipping and metrics are written out here from the papers' and NeMo's formulas.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests import tiny
from tests.tiny import Setup

BATCH, SEED, STEPS, STEPS_PER_EPOCH = 4, 1234, 5, 3
"""11 rows: the third step of an epoch has three."""
LR, MIN_LR, BETAS, DECAY = 2e-3, 2e-4, (0.9, 0.98), 0.1


@dataclass(frozen=True, kw_only=True)
class Case:
    """The numbers of one run, under the names of `model.dpo` where there is one."""

    preference_loss: str = "dpo"
    ref_policy_kl_penalty: float = 0.2
    gt_reward_scale: float = 1.0
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False
    clip: float = 1.0
    warmup: int = 1
    constant: int = 0
    eps: float = 1e-8
    masked_end: bool = False
    """Answers end with the end-of-sequence token, which is not scored."""

    def overrides(self) -> list[str]:
        names = ["preference_loss", "ref_policy_kl_penalty", "gt_reward_scale", "preference_loss_weight"]
        names += ["sft_loss_weight", "preference_average_log_probs", "sft_average_log_probs"]
        found = [f"model.dpo.{name}={str(getattr(self, name)).lower()}" for name in names]
        found += [f"trainer.dpo.gradient_clip_val={self.clip}", f"model.optim.eps={self.eps}"]
        found += [f"model.optim.lr={LR}", f"model.optim.sched.min_lr={MIN_LR}", f"model.optim.weight_decay={DECAY}"]
        found += [f"model.optim.sched.warmup_steps={self.warmup}", f"model.optim.sched.constant_steps={self.constant}"]
        if self.masked_end:
            found += ["model.data.append_eod=true", "model.data.eod_mask_loss=true"]
        return found


CASES = {
    "dpo": Case(),
    "dpo, late decay": Case(constant=2, ref_policy_kl_penalty=0.5),
    "dpo, drop after warm-up": Case(constant=1000, warmup=2),
    "dpo, averaged": Case(preference_average_log_probs=True, sft_average_log_probs=True, ref_policy_kl_penalty=2.0),
    "dpo with sft": Case(preference_loss_weight=0.7, sft_loss_weight=0.5),
    "dpo with sft, averaged": Case(preference_average_log_probs=True, sft_average_log_probs=True, sft_loss_weight=0.5),
    "dpo with averaged sft": Case(sft_average_log_probs=True, sft_loss_weight=2.0),
    "dpo, unclipped": Case(clip=0.0),
    "dpo, large eps": Case(eps=1e-2),
    "dpo, masked end": Case(masked_end=True),
    "ipo": Case(preference_loss="ipo"),
    "ipo, averaged": Case(preference_loss="ipo", preference_average_log_probs=True, sft_average_log_probs=True),
    "rpo_sq": Case(preference_loss="rpo_sq", gt_reward_scale=2.0),
    "rpo_bwd_kl": Case(preference_loss="rpo_bwd_kl", gt_reward_scale=2.0),
    "rpo_fwd_kl": Case(preference_loss="rpo_fwd_kl", gt_reward_scale=0.5),
}


# --- the oracle -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A prompt with an answer as one row, and which tokens are scored."""

    tokens: Tensor
    scored: Tensor


def read(
    path: Path, tokenizer: Callable[[str], Mapping[str, list[int]]], end: int, case: Case
) -> list[dict[str, object]]:
    pairs = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        pair: dict[str, object] = {"gap": row.get("chosen_reward", 1.0) - row.get("rejected_reward", 0.0)}
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            ids = tokenizer(row["prompt"] + row[f"{side}_response"])["input_ids"]
            begin = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
            ids = [*ids, end] if case.masked_end else ids
            scored = [i for i in range(begin, len(ids)) if not (case.masked_end and ids[i] == end)]
            pair[side] = Answer(torch.tensor([ids]), torch.tensor(scored))
        pairs.append(pair)
    return pairs


def logprob(model: PreTrainedModel, answer: Answer) -> Tensor:
    """Of the whole answer: each scored token from the logits one place before it."""
    logprobs = log_softmax(model(answer.tokens).logits[0].double(), dim=-1)
    return logprobs[answer.scored - 1, answer.tokens[0, answer.scored]].sum()


def coin_divergence(p: Tensor, q: Tensor) -> Tensor:
    a, b = torch.sigmoid(p), torch.sigmoid(q)
    return a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()


def preference(case: Case, margin: Tensor, gap: float) -> Tensor:
    beta, truth = case.ref_policy_kl_penalty, torch.tensor(case.gt_reward_scale * gap).double()
    match case.preference_loss:
        case "dpo":
            return -logsigmoid(beta * margin)
        case "ipo":
            return (margin - 1 / (2 * beta)) ** 2
        case "rpo_sq":
            return (beta * margin - truth) ** 2
        case "rpo_bwd_kl":
            return coin_divergence(truth, beta * margin)
        case "rpo_fwd_kl":
            return coin_divergence(beta * margin, truth)
    raise AssertionError(case.preference_loss)


def learning_rate(case: Case, step: int) -> float:
    """NeMo's CosineAnnealing, both branches."""
    decay = STEPS - case.constant - case.warmup
    if step <= case.warmup:
        return LR * step / case.warmup if case.constant else LR * (step + 1) / (case.warmup + 1)
    if decay <= 0 or step > case.warmup + decay:
        return MIN_LR
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * (step - case.warmup) / decay)) / 2


def batch_metrics(
    case: Case, model: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[dict]
) -> dict[str, Tensor]:
    """Every metric of a batch of pairs; `loss` has a gradient."""
    losses, preferences, likelihoods, rewards, logps = [], [], [], [], []
    for pair in pairs:
        now = [logprob(model, pair[side]) for side in ("chosen", "rejected")]
        with torch.no_grad():
            before = [logprob(reference, pair[side]) for side in ("chosen", "rejected")]
        lengths = [len(pair[side].scored) for side in ("chosen", "rejected")]
        per_token = lengths if case.preference_average_log_probs else [1, 1]
        ratios = [(a - b) / n for a, b, n in zip(now, before, per_token, strict=True)]
        preferences.append(preference(case, ratios[0] - ratios[1], pair["gap"]))
        likelihoods.append(-now[0] / (lengths[0] if case.sft_average_log_probs else 1))
        losses.append(case.preference_loss_weight * preferences[-1] + case.sft_loss_weight * likelihoods[-1])
        rewards.append(torch.stack(ratios).detach() * case.ref_policy_kl_penalty)
        logps.append(torch.stack(now).detach())
    reward, logp = torch.stack(rewards), torch.stack(logps)
    return {
        "loss": torch.stack(losses).mean(),
        "preference_loss": torch.stack(preferences).mean(),
        "sft_loss": torch.stack(likelihoods).mean(),
        "acc": (reward[:, 0] > reward[:, 1]).double().mean(),
        "rewards_chosen_mean": reward[:, 0].mean(),
        "rewards_rejected_mean": reward[:, 1].mean(),
        "rewards_all_mean": reward.mean(),
        "rewards_all_std": reward.flatten().std(),
        "rewards_margin_mean": (reward[:, 0] - reward[:, 1]).mean(),
        "logps_chosen_mean": logp[:, 0].mean(),
        "logps_rejected_mean": logp[:, 1].mean(),
    }


def rows_of(step: int) -> list[int]:
    """The rows of a 0-based step: a new permutation every epoch, from the seed."""
    epoch, index = divmod(step, STEPS_PER_EPOCH)
    order = np.random.default_rng([SEED, epoch]).permutation(11)
    return order[index * BATCH : (index + 1) * BATCH].tolist()


def recomputed(setup: Setup, case: Case) -> tuple[list[tuple[int, str, dict[str, float]]], dict[str, Tensor]]:
    """(step, split, metrics) of every record, and the trained weights."""
    records: list[tuple[int, str, dict[str, float]]] = []
    tokenizer = AutoTokenizer.from_pretrained(setup.model)
    train, validation = (
        read(path, tokenizer, tokenizer.eos_token_id, case) for path in (setup.train, setup.validation)
    )
    model, reference = (
        AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float64, attn_implementation="eager").eval()
        for _ in range(2)
    )
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=case.eps, foreach=False, fused=False)
    for step in range(STEPS):
        found = batch_metrics(case, model, reference, [train[row] for row in rows_of(step)])
        optimizer.zero_grad()
        found["loss"].backward()
        norm = torch.sqrt(sum(weight.grad.square().sum() for weight in model.parameters()))
        if case.clip and norm > case.clip:
            for weight in model.parameters():
                weight.grad.mul_(case.clip / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case, step)
        optimizer.step()
        progress = {
            "epoch": step // STEPS_PER_EPOCH + 1,
            "consumed_samples": sum(len(rows_of(i)) for i in range(step + 1)),
        }
        pace = {"grad_norm": norm, "lr": learning_rate(case, step)}
        records.append((step + 1, "train", numbers({**found, **pace, **progress})))
        if (step + 1) % 2 == 0 or step + 1 == STEPS:
            with torch.no_grad():
                found = batch_metrics(case, model, reference, validation)
            records.append((step + 1, "val", numbers({**found, **progress})))
    return records, {name: weight.float() for name, weight in model.state_dict().items()}


def numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}


# --- the comparison ---------------------------------------------------------------------------------------------------

PACE = {"step_time", "tokens_per_second", "pairs_per_second", "validation_step_time"}
"""Metrics that no one can recompute."""


@pytest.mark.parametrize("name", CASES)
def test_metrics_and_weights_are_those_of_plain_pytorch(setup: Setup, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    result = setup.run(tmp_path / "run", *case.overrides())
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    records, trained = recomputed(setup, case)
    assert len(lines) == len(records) == STEPS + 3
    for line, (step, split, expected) in zip(lines, records, strict=True):
        assert (line.pop("step"), line.pop("split")) == (step, split)
        assert {*line} - PACE == {*expected}
        for metric, value in expected.items():
            tolerance = {"abs": 1e-4} if metric.startswith("rewards") else {"rel": 1e-4, "abs": 1e-7}
            assert line[metric] == pytest.approx(value, **tolerance), f"step {step} {split} {metric}"
    first, last = records[0][2], records[-2][2]
    assert abs(last["loss"] - first["loss"]) > 0.05 * first["loss"], "nothing moved: the comparison would prove little"
    assert tiny.largest_difference(tiny.weights(result.model), trained) < 1e-4
