"""The peer's side of SFT: TRL's SFTTrainer on given token ids.

`default` is TRL as it comes: rows padded, gradient checkpointing. `best` turns checkpointing off. `packed` packs
besides, by TRL's own strategy into sequences of its own default length. All use the fused AdamW.

A step of `packed` takes as many sequences as the first batch of rows fills, so that its steps are about as large as
those of the others. The first batch is packed apart from all others: the first step holds the same rows on all sides,
and so do all further steps together.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer, pack_dataset

from benchmarks.sides import read_demonstrations, side_arguments, write_result
from benchmarks.trl_side import Clock, common_settings, load

PACKED_LENGTH = 1024
"""TRL's default; no row is longer."""

Ids = tuple[int, ...]


class GivenIds(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that takes rows of token ids in their order, and notes which of them each step trains on."""

    def __init__(self, first_batch: int, **kwargs: Any) -> None:
        self.first_batch = first_batch
        self.step_ids: defaultdict[int, list[Ids]] = defaultdict(list)
        super().__init__(**kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        prepare = super()._prepare_dataset
        parts = range(self.first_batch), range(self.first_batch, len(dataset))
        return concatenate_datasets([prepare(dataset.select(part), *args, **kwargs) for part in parts])

    def _get_train_sampler(self, *_: object, **__: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.step_ids[self.state.global_step].extend(_rows(inputs))
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss


def _rows(inputs: Mapping[str, Tensor]) -> Iterator[Ids]:
    """The rows that a micro-batch holds: between the places where positions begin anew, or without their padding."""
    if "position_ids" in inputs:
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten()
        yield from (tuple(part.tolist()) for part in torch.tensor_split(inputs["input_ids"][0], starts[1:]))
    else:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            yield tuple(ids[mask.bool()].tolist())


def main() -> None:
    """Train once through the given demonstrations and write what was measured."""
    parser = side_arguments(__doc__)
    parser.add_argument("--mode", choices=["default", "best", "packed"], required=True)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    rows = read_demonstrations(arguments.rows)
    dataset = Dataset.from_list([{"input_ids": ids, "assistant_masks": trained} for ids, trained in rows])
    clock = Clock()
    trainer = GivenIds(
        arguments.batch,
        model=model,
        args=_settings(arguments.mode, arguments.batch, dataset),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    given: defaultdict[Ids, deque[int]] = defaultdict(deque)
    for index, (ids, _) in enumerate(rows):
        given[tuple(ids)].append(index)
    step_rows = [[given[ids].popleft() for ids in trainer.step_ids[step]] for step in range(len(clock.losses))]
    write_result(arguments.answer, clock.result(step_rows=step_rows))


def _settings(mode: str, batch: int, dataset: Dataset) -> SFTConfig:
    common = {**common_settings(), "max_length": PACKED_LENGTH}
    if mode == "default":
        return SFTConfig(**common, per_device_train_batch_size=batch)
    if mode == "best":
        return SFTConfig(**common, per_device_train_batch_size=batch, gradient_checkpointing=False)
    first = pack_dataset(dataset.select(range(batch)).select_columns(["input_ids"]), PACKED_LENGTH, "bfd")
    return SFTConfig(
        **common,
        per_device_train_batch_size=1,  # several would be joined into one, whose mask grows with its square
        gradient_accumulation_steps=len(first),
        gradient_checkpointing=False,
        packing=True,
    )


if __name__ == "__main__":
    main()
