"""What both of our sides share: a run on token ids instead of files, and what is measured of it.

Everything between configuration and loop is what `dpolish dpo` and `dpolish sft` do; only reading text is left out.
Around the steps this measures the machine's matrix-product rate at the model's shapes, before and after, and profiles
one step more.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch

from benchmarks.causes import shares_by_cause
from benchmarks.ceiling import ModelShape, gemm_rate, needed_flops, shape_of
from benchmarks.sides import SideResult, peak_bytes
from dpolish.assemble import Prepared, data_facts
from dpolish.config.compose import Composed
from dpolish.config.schema import RunConfig
from dpolish.data.ingest import Ingested, Source
from dpolish.data.loader import BatchGroup
from dpolish.data.pack import Packing
from dpolish.data.summary import DataSummary, TokenCounts
from dpolish.data.templates.agreement import Rendering
from dpolish.facts import read_model_facts
from dpolish.machine import available_memory
from dpolish.model.attention import choose_backend
from dpolish.model.load import load_tokenizer
from dpolish.planning import Machine, make_plan, sequence_length
from dpolish.tensors import Example
from dpolish.training.state import Run
from dpolish.training.step import train_step

CPU = torch.device("cpu")
GIVEN = "given.jsonl"
"""Stands for the file that the rows did not come from."""


def prepare_ids(
    composed: Composed[RunConfig], examples: Sequence[Example], count: Callable[[Sequence[Example]], TokenCounts]
) -> Prepared:
    """What `dpolish.assemble.prepare` makes of files, made of examples; `count` is that of their kind."""
    config = composed.config
    model = read_model_facts(Path(str(config.restore_from_path)))
    where = tuple(f"{GIVEN}:{line}" for line in range(1, len(examples) + 1))
    sources = (Source(GIVEN, None, range(len(examples))),)
    train = Ingested(tuple(examples), where, sources, count, DataSummary((), {}, {}, (), count(examples)))
    backend = choose_backend(config.model.attention_backend, CPU, composed.forbidden_attention)
    seq_length = sequence_length(composed, model)
    plan = make_plan(config, model, data_facts(train, config), None, Machine("cpu", available_memory(CPU)), seq_length)
    packing = Packing(config.model.prefix_sharing != "off", plan.tokens_per_micro_batch, config.model.micro_batch_size)
    return Prepared(
        composed=composed,
        model=model,
        tokenizer=load_tokenizer(str(model.folder)),
        rendering=Rendering(rows=(), template=None, prompt_template=None, trained=None, own=None),
        warnings=(),
        train=train,
        validation=None,
        summaries=(),
        device=CPU,
        backend=backend,
        packing=packing,
        plan=plan,
    )


def measured(run: Run, reference_seconds: float = 0.0) -> SideResult:
    """Train once through the rows in order, and what was measured."""
    groups = list(run.data.validation_groups())
    shape = shape_of(run.policy.model)
    rates = [_rate(shape, groups)]
    processor = time.process_time()
    seconds, losses = _timed_steps(run)
    processor = time.process_time() - processor
    peak = peak_bytes()
    rates.append(_rate(shape, groups))
    return SideResult(
        step_seconds=seconds,
        losses=losses,
        cores=processor / sum(seconds),
        peak_bytes=peak,
        reference_seconds=reference_seconds,
        step_rows=[group.rows.tolist() for group in groups],
        gemm_flops=mean(rates),
        needed_flops=[needed_flops(shape, group.batches) for group in groups],
        causes=shares_by_cause(lambda: train_step(run, groups[-1], len(groups)), shape.head[1]),
    )


def _timed_steps(run: Run) -> tuple[list[float], list[float]]:
    """Seconds and loss of every step; from the end of one step to the end of the next."""
    seconds, losses = [], []
    start = time.perf_counter()
    for step, group in enumerate(run.data.validation_groups()):
        metrics, _ = train_step(run, group, step)
        losses.append(run.objective.summarise(metrics)["loss"])
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
