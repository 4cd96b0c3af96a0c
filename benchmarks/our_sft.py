"""Our side of SFT: the product's own run, from start-up checks to optimizer steps, on given token ids."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.our_side import GIVEN, measured, prepare_ids
from benchmarks.sides import (
    BETAS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    read_demonstrations,
    side_arguments,
    write_result,
)
from dpolish.assemble import build
from dpolish.config.compose import Composed, compose
from dpolish.config.schema import SftConfig
from dpolish.data.kinds import DemonstrationCounts
from dpolish.tensors import Completion, Example


def main() -> None:
    """Train once through the given demonstrations and write what was measured."""
    arguments = side_arguments(__doc__).parse_args()
    rows = read_demonstrations(arguments.rows)
    examples = [example_of(*row) for row in rows]
    prepared = prepare_ids(configuration(arguments.model, arguments.batch), examples, DemonstrationCounts.of)
    run = build(prepared, lambda _: None, lambda _: None, lambda *_: nullcontext(lambda _: None)).run
    write_result(arguments.answer, measured(run))


def configuration(model: Path, batch: int) -> Composed[SftConfig]:
    """The product's configuration for the common objective and optimizer; what is not named stays at its default."""
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.precision": 32,
        "trainer.sft.gradient_clip_val": MAX_GRAD_NORM,
        "model.data.train_ds.global_batch_size": batch,
        "model.optim.lr": LEARNING_RATE,
        "model.optim.betas": list(BETAS),
        "model.optim.weight_decay": WEIGHT_DECAY,
        "model.optim.sched.name": "Constant",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return compose(root=SftConfig, overrides=overrides, model=str(model), train=[GIVEN])


def example_of(ids: list[int], trained: list[int]) -> Example:
    """Everything before the first trained token is prompt; what is not trained behind it is left out one by one."""
    begin = trained.index(1)
    unscored = tuple(index for index, scored in enumerate(trained[begin:]) if not scored)
    prompt, rest = (np.array(part, dtype=np.int32) for part in (ids[:begin], ids[begin:]))
    return Example(prompt, (Completion(rest, score_from=0, unscored=unscored),), rewards=(0.0,))


if __name__ == "__main__":
    main()
