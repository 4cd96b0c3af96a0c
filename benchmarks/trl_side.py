"""What TRL's sides share: the settings that are the same everywhere, and the clock.

Runs in an environment that has TRL; imports nothing of the product.
"""

import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from benchmarks.sides import BETAS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, SideResult, peak_bytes


def common_settings() -> Mapping[str, Any]:
    """float32 on a CPU, the common optimizer, one epoch, a record of every step, and nothing written."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, and its tokenizer; warnings are silenced from here on."""
    warnings.filterwarnings("ignore")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


class Clock(TrainerCallback):
    """Notes when each optimizer step ended, by the wall and by the processors, and what it lost."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        """The first step counts from here."""
        self._note()

    def on_step_end(self, *_: object, **__: object) -> None:
        """After the update, before logging."""
        self._note()

    def on_log(self, *_: object, **event: Any) -> None:
        """Every step logs; the record at the end of training has no loss of a step."""
        if "loss" in event["logs"]:
            self.losses.append(event["logs"]["loss"])

    def result(self, **more: Any) -> SideResult:
        """What was measured; `more` are further fields of the result."""
        seconds = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        cores = (self.processor[-1] - self.processor[0]) / sum(seconds)
        return SideResult(seconds, self.losses, cores, peak_bytes(), **more)

    def _note(self) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())
