"""The peer's side of DPO: TRL's DPOTrainer on given token ids, as it comes or at its best on a CPU.

`default` keeps TRL's settings: gradient checkpointing, the reference model in memory and scored in every step.
`best` turns checkpointing off and scores the reference once before training. Both use the fused AdamW.
"""

import time
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

from benchmarks.sides import BETA, read_pairs, side_arguments, write_result
from benchmarks.trl_side import Clock, common_settings, load


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


def main() -> None:
    """Train once through the given pairs and write what was measured."""
    parser = side_arguments(__doc__)
    parser.add_argument("--mode", choices=["default", "best"], required=True)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in read_pairs(arguments.rows)
    ]
    clock = Clock()
    trainer = GivenIds(
        model=model,
        args=_settings(arguments.batch, best=arguments.mode == "best"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    write_result(arguments.answer, clock.result(reference_seconds=trainer.reference_seconds))


def _settings(batch: int, *, best: bool) -> DPOConfig:
    return DPOConfig(
        **common_settings(),
        per_device_train_batch_size=batch,
        max_length=None,
        beta=BETA,
        **({"gradient_checkpointing": False, "precompute_ref_log_probs": True} if best else {}),
    )


if __name__ == "__main__":
    main()
