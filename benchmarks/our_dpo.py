"""Our side: the product's own run, from start-up checks to optimizer steps, on given token ids.

Everything between configuration and loop is what `dpolish dpo` does; only reading text is left out. Around it this
measures the machine's matrix-product rate at the model's shapes, before and after, and profiles one step more.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from benchmarks.causes import shares_by_cause
from benchmarks.ceiling import ModelShape, gemm_rate, needed_flops, shape_of
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
from dpolish.assemble import Prepared, available_memory, build, data_facts
from dpolish.config.compose import Composed, compose
from dpolish.data.ingest import Ingested, Source
from dpolish.data.loader import BatchGroup
from dpolish.data.pack import Packing
from dpolish.data.summary import DataSummary, TokenCounts
from dpolish.facts import read_model_facts
from dpolish.model.attention import choose_backend
from dpolish.model.load import load_tokenizer
from dpolish.planning import Machine, make_plan
from dpolish.tensors import Completion, Example
from dpolish.training.state import Run
from dpolish.training.step import train_step

CPU = torch.device("cpu")


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
    pairs = read_pairs(arguments.pairs)
    clock = ReferenceClock()
    prepared = prepare_ids(configuration(arguments.model, arguments.batch), [example_of(*pair) for pair in pairs])
    run = build(prepared, lambda _: None, lambda _: None, clock).run
    groups = list(run.data.validation_groups())
    shape = shape_of(run.policy.model)
    rates = [_rate(shape, groups)]
    processor = time.process_time()
    seconds, losses = timed_steps(run)
    processor = time.process_time() - processor
    peak = peak_bytes()
    rates.append(_rate(shape, groups))
    causes = shares_by_cause(lambda: train_step(run, groups[-1], len(groups)), shape.head[1])
    result = SideResult(
        step_seconds=seconds,
        losses=losses,
        reference_seconds=clock.seconds,
        cores=processor / sum(seconds),
        peak_bytes=peak,
        gemm_flops=mean(rates),
        needed_flops=[needed_flops(shape, [_lengths(pairs[row]) for row in group.rows]) for group in groups],
        causes=causes,
    )
    write_result(arguments.answer, result)


def configuration(model: Path, batch: int) -> Composed:
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
    return compose(overrides=overrides, model=str(model), train=["given.jsonl"])


def example_of(prompt: list[int], chosen: list[int], rejected: list[int]) -> Example:
    """A pair of answers, scored from their first tokens."""
    completions = tuple(Completion(np.array(ids, dtype=np.int32), score_from=0) for ids in (chosen, rejected))
    return Example(np.array(prompt, dtype=np.int32), completions, rewards=(1.0, 0.0))


def prepare_ids(composed: Composed, examples: Sequence[Example]) -> Prepared:
    """What `dpolish.assemble.prepare` makes of files, made of token ids."""
    config = composed.config
    model = read_model_facts(Path(str(config.pretrained_checkpoint.restore_from_path)))
    where = tuple(f"given.jsonl:{line}" for line in range(1, len(examples) + 1))
    summary = DataSummary((), {}, {}, (), TokenCounts(0, 0, 0, 0, 0, 0))
    train = Ingested(tuple(examples), where, (Source("given.jsonl", None, range(len(examples))),), summary)
    backend = choose_backend(config.model.attention_backend, CPU, composed.forbidden_attention)
    plan = make_plan(config, model, data_facts(train), None, Machine("cpu", available_memory(CPU)))
    packing = Packing(True, plan.tokens_per_micro_batch, config.model.micro_batch_size)
    tokenizer = load_tokenizer(str(model.folder))
    return Prepared(composed, model, tokenizer, train, None, (), CPU, backend, packing, plan)


def timed_steps(run: Run) -> tuple[list[float], list[float]]:
    """Seconds and loss of every step through the rows in order; from the end of one step to the end of the next."""
    seconds, losses = [], []
    start = time.perf_counter()
    for step, group in enumerate(run.data.validation_groups()):
        metrics, _ = train_step(run, group, step)
        losses.append(run.summarise(metrics)["loss"])
        end = time.perf_counter()
        seconds.append(end - start)
        start = end
    return seconds, losses


def _rate(shape: ModelShape, groups: Sequence[BatchGroup]) -> float:
    """The machine's rate at the mean size of the run's micro-batches."""
    batches = [batch for group in groups for batch in group.batches]
    tokens, scored = (
        round(mean(sizes)) for sizes in zip(*((b.num_tokens, len(b.targets)) for b in batches), strict=True)
    )
    return gemm_rate(shape, tokens, scored)


def _lengths(pair: tuple[list[int], list[int], list[int]]) -> tuple[int, int, int]:
    prompt, chosen, rejected = (len(ids) for ids in pair)
    return prompt, chosen, rejected


if __name__ == "__main__":
    main()
