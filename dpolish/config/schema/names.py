"""The names that values may have. They are readable without torch, so that a configuration is checked without it."""

from typing import Literal, get_args

Accelerator = Literal["auto", "gpu", "cpu", "mps"]
Precision = Literal["bf16", "bf16-mixed", "32"]
PreferenceLoss = Literal["dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"]
ScheduleName = Literal[
    "CosineAnnealing",
    "WarmupAnnealing",
    "WarmupHoldPolicy",
    "SquareAnnealing",
    "SquareRootAnnealing",
    "NoamAnnealing",
    "InverseSquareRootAnnealing",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
    "LinearWarmup",
    "Constant",
]
OptimizerName = Literal["distributed_fused_adam", "mcore_distributed_optim", "fused_adam", "adamw"]
AttentionBackend = Literal["auto", "segments", "flex", "dense"]
InitMethod = Literal["xavier", "normal", "zero"]
OnOverlong = Literal["drop", "truncate", "error"]
Pairing = Literal["best_vs_worst", "best_vs_rest", "adjacent", "all"]
TrainedTurns = Literal["all", "last"]
LossAverage = Literal["token", "example"]

PREFERENCE_LOSSES: tuple[str, ...] = get_args(PreferenceLoss)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
PAIRINGS: tuple[str, ...] = get_args(Pairing)

CHAT_TEMPLATES = ("extra_id", "nemo")
"""Chat templates that are built in; others are the model's own and .jinja files."""

DPO_METRICS = (
    "loss",
    "preference_loss",
    "sft_loss",
    "acc",
    "rewards_chosen_mean",
    "rewards_rejected_mean",
    "rewards_all_mean",
    "rewards_all_std",
    "rewards_margin_mean",
    "logps_chosen_mean",
    "logps_rejected_mean",
)
"""Validation metrics of DPO that may choose the best checkpoint, as val_NAME, val/NAME or validation_NAME."""

SFT_METRICS = ("loss", "perplexity")
"""The same of SFT."""
