"""Our side of DPO: the product's own run, from start-up checks to optimizer steps, on given token ids."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.our_side import GIVEN, measured, prepare_ids
from benchmarks.sides import (
    BETA,
    BETAS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    read_pairs,
    side_arguments,
    write_result,
)
from dpolish.assemble import build
from dpolish.config.compose import Composed, compose
from dpolish.config.schema import DpoConfig
from dpolish.data.kinds import PairCounts
from dpolish.tensors import Completion, Example


@dataclass(slots=True)
class ReferenceClock:
    """The display that scoring the reference reports to; all it does is take the time."""

    seconds: float = 0.0

    @contextmanager
    def __call__(self, *_: object) -> Iterator[Callable[[int], None]]:
        """Open the display, whatever its label and total."""
        start = time.perf_counter()
        yield lambda _: None
        self.seconds += time.perf_counter() - start


def main() -> None:
    """Train once through the given pairs and write what was measured."""
    arguments = side_arguments(__doc__).parse_args()
    pairs = read_pairs(arguments.rows)
    clock = ReferenceClock()
    examples = [example_of(*pair) for pair in pairs]
    prepared = prepare_ids(configuration(arguments.model, arguments.batch), examples, PairCounts.of)
    run = build(prepared, lambda _: None, lambda _: None, clock).run
    write_result(arguments.answer, measured(run, clock.seconds))


def configuration(model: Path, batch: int) -> Composed[DpoConfig]:
    """The product's configuration for the common objective and optimizer; what is not named stays at its default."""
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.precision": 32,
        "trainer.dpo.gradient_clip_val": MAX_GRAD_NORM,
        "model.global_batch_size": batch,
        "model.dpo.ref_policy_kl_penalty": BETA,
        "model.dpo.reference_cache": "off",
        "model.optim.lr": LEARNING_RATE,
        "model.optim.betas": list(BETAS),
        "model.optim.weight_decay": WEIGHT_DECAY,
        "model.optim.sched.name": "Constant",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return compose(overrides=overrides, model=str(model), train=[GIVEN])


def example_of(prompt: list[int], chosen: list[int], rejected: list[int]) -> Example:
    """A pair of answers, scored from their first tokens."""
    completions = tuple(Completion(np.array(ids, dtype=np.int32), score_from=0) for ids in (chosen, rejected))
    return Example(np.array(prompt, dtype=np.int32), completions, rewards=(1.0, 0.0))


if __name__ == "__main__":
    main()
