"""The peer's side: TRL's DPOTrainer on given token ids, as it comes (`default`) or at its best on a CPU (`best`).

`default` keeps TRL's settings: gradient checkpointing, the reference model in memory and scored in every step.
`best` turns checkpointing off and scores the reference once before training. Both use the fused AdamW.
Runs in an environment that has TRL; imports nothing of the product.
"""

import tempfile
import time
import warnings
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.sides import (
    BETA,
    BETAS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    SideResult,
    peak_bytes,
    read_pairs,
    side_arguments,
    write_result,
)


class GivenIds(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that takes rows of token ids as they come, in their order, and times its reference pass."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _get_train_sampler(self, *_: object, **__: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Dataset:
        start = time.perf_counter()
        scored = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds += time.perf_counter() - start
        return scored


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

    def _note(self) -> None:
        self.ends.append(time.perf_counter())
        self.processor.append(time.process_time())


def main() -> None:
    """Train once through the given pairs and write what was measured."""
    parser = side_arguments(__doc__)
    parser.add_argument("--mode", choices=["default", "best"], required=True)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in read_pairs(arguments.pairs)
    ]
    clock = Clock()
    trainer = GivenIds(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        args=_settings(arguments.batch, best=arguments.mode == "best"),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[clock],
    )
    trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    cores = (clock.processor[-1] - clock.processor[0]) / sum(seconds)
    result = SideResult(seconds, clock.losses, trainer.reference_seconds, cores, peak_bytes())
    write_result(arguments.answer, result)


def _settings(batch: int, *, best: bool) -> DPOConfig:
    return DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        max_length=None,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        optim="adamw_torch_fused",
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        **({"gradient_checkpointing": False, "precompute_ref_log_probs": True} if best else {}),
    )


if __name__ == "__main__":
    main()
