"""The Python face: the command line's verbs as functions on composed configurations. The command line calls only this.

>>> import dpolish
>>> composed = dpolish.compose(model="DIR", train=["train.jsonl"], output="results/first")
>>> result = dpolish.train(composed)  # doctest: +SKIP
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, cast

from dpolish.assemble import (
    Assembled,
    Prepared,
    Progress,
    Say,
    build,
    data_facts,
    model_folder,
    needed_rows,
    open_cache,
    prepare,
)
from dpolish.checkpoint.model_folder import save_model
from dpolish.config.compose import Composed, to_yaml
from dpolish.config.schema import (
    Accelerator,
    AttentionBackend,
    DpoConfig,
    DpoModelConfig,
    ModelConfig,
    RunConfig,
    SftConfig,
    SftModelConfig,
)
from dpolish.data.check.model import load as load_checks
from dpolish.data.check.report import Report
from dpolish.data.check.run import check as run_check
from dpolish.data.check.source import Options, task_of
from dpolish.errors import RunError
from dpolish.files import write_atomically
from dpolish.forecast import can_start_here, forecast, require_tensor_plan, target_of
from dpolish.machine import choose_device, out_of_memory
from dpolish.model.attention import choose_backend
from dpolish.model.logprobs import STOCK
from dpolish.nemo.exporting import export_nemo, require_exportable
from dpolish.nemo.sidecar import carry_sidecar
from dpolish.parallel.join import joined
from dpolish.parallel.watch import rest
from dpolish.planning import Outlook, curve, describe, rank_lines, remarks
from dpolish.records import StepRecord
from dpolish.reference.score import missing
from dpolish.run_directory import claim, require_free, run_directory
from dpolish.track.console import ConsoleSink, progress
from dpolish.track.environment import environment_record
from dpolish.track.sinks import Guarded, MetricsFile, Sink, TensorBoardSink, WandbSink, require_installed
from dpolish.training.generate import answers
from dpolish.training.loop import train as run_loop
from dpolish.world import World, world_of


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run left."""

    directory: Path
    model: Path
    """The final model, a Hugging Face folder."""
    records: tuple[StepRecord, ...]
    """Every record, as in metrics.jsonl."""
    num_reference_scored: int
    """0 in SFT, as the next."""
    num_reference_cached: int


def _terminal(total_steps: int) -> tuple[Sink, ...]:
    """What a run shows by default; a terminal that goes away does not stop it."""
    return (Guarded("terminal", ConsoleSink(total_steps), lambda _: None),)


def _prepared(composed: Composed[RunConfig], world: World, say: Say) -> Prepared:
    """Every refusal that needs no weights: a directory that is taken, a missing logger, data, sizes, the plan."""
    manager = composed.config.exp_manager
    if world.rank == 0:
        require_free(run_directory(composed.config))
        require_installed(wandb=manager.create_wandb_logger, tensorboard=manager.create_tensorboard_logger)
    prepared = prepare(composed, world, say)
    if manager.checkpoint_callback_params.save_nemo_on_train_end and world.rank == 0:
        require_exportable(prepared.model.folder)
    return prepared


def plan(composed: Composed[RunConfig], *, gpu: str | None = None) -> list[str]:
    """Every derived number of a run, its traps and its cost, as lines; `gpu` names one that need not be here.

    Trains nothing. Raises InputError as `train` would, but for what a plan can do without: weights, rows, GPUs.
    """
    target = target_of(composed.config, gpu)
    if not can_start_here(composed.config, target):
        made = forecast(composed, target)
        backend = choose_backend(composed.config.model.attention_backend, target.device, composed.forbidden_attention)
        return [*made.told, *_keys(composed), *_numbers(composed, made.outlook, backend, assumed=made.assumed)]
    prepared = _prepared(composed, target.world, _unsaid)
    require_tensor_plan(prepared.model.folder, composed.config.model.tensor_model_parallel_size)
    machine = replace(target.machine, memory=prepared.plan.available_memory)
    rows = data_facts(prepared.train, composed.config)
    outlook = Outlook(prepared.plan, composed.config, prepared.model, rows, machine, target.gpu)
    reference = _reference_lines(prepared) if composed.config.verb == "dpo" else ()
    return [*_told(prepared), *_numbers(composed, outlook, prepared.backend), *reference]


def _reference_lines(prepared: Prepared) -> Iterator[str]:
    """How many rows the reference has to be scored on, and what the cache says of itself."""
    caches = [open_cache(prepared, backend) for backend in (prepared.backend, STOCK)]  # STOCK: where it falls back
    parts = [part for part in (prepared.train, prepared.validation) if part is not None]
    needed = needed_rows(prepared)
    examples = [part.examples[row] for part, rows in zip(parts, needed, strict=True) for row in rows]
    todo, rows = min(len(missing(examples, cache)) for cache in caches), len(examples)
    yield f"reference: {todo:,} rows to score, {rows - todo:,} cached"
    yield from (note for cache in caches for note in cache.notes)


def train(
    composed: Composed[RunConfig],
    *,
    argv: Sequence[str] = (),
    say: Say = print,
    show: Progress = progress,
    sinks: Callable[[int], Sequence[Sink]] = _terminal,
) -> RunResult:
    """Run DPO or SFT as configured and leave RUN_DIR behind.

    Raises InputError before any compute, RunError when training fails.
    """
    world = world_of(composed, os.environ)
    trainer = composed.config.trainer
    device = choose_device(trainer.accelerator, trainer.devices, world)
    if world.rank > 0:  # the first one speaks for all
        say, show, sinks = _unsaid, _unshown, _no_sinks
    with joined(world, device, trainer.hang_timeout):
        return _train(composed, world, argv, say, show, sinks)


def _train(
    composed: Composed[RunConfig],
    world: World,
    argv: Sequence[str],
    say: Say,
    show: Progress,
    sinks: Callable[[int], Sequence[Sink]],
) -> RunResult:
    """One rank's run. The first one has the run directory; the others compute, and know the same records."""
    first = world.rank == 0
    prepared = _prepared(composed, world, say)
    directory = run_directory(composed.config)
    for line in _told(prepared):
        say(line)
    for line in remarks(prepared.plan, composed.config):
        say(f"note: {line}")
    loggers = _Loggers(composed.config, directory, say)
    with loggers.opened() if first else nullcontext(), _memory_explained():  # a login that fails costs nothing yet
        assembled = build(prepared, loggers.emit, say, show)
        if first:
            claim(directory, used_config(prepared, assembled, directory))
            _write_environment(prepared, assembled, directory, argv)
            loggers.add(MetricsFile(directory / "metrics.jsonl"), *sinks(prepared.plan.total_steps))
        run_loop(assembled.run)
    rest()
    model = directory / "model"
    loaded, dtype = assembled.loaded, assembled.run.policy.dtype
    record = prepared.rendering.record
    save_model(loaded.model, prepared.tokenizer, loaded.silenced, model, record, dtype=dtype, first=first)
    say(f"model: {model}")
    if first and carry_sidecar(prepared.model.folder, model):
        say(f"{model} came from a .nemo archive: `dpolish convert {model} NAME.nemo` makes one of it")
    if first and composed.config.exp_manager.checkpoint_callback_params.save_nemo_on_train_end:
        archive = directory / "checkpoints" / f"{composed.config.exp_manager.name}.nemo"  # where NeMo has it
        archive.parent.mkdir(exist_ok=True)
        export_nemo(model, archive, say=say, show=show)
        say(f"archive: {archive}")
    return _result(directory, model, loggers, assembled)


def _unsaid(line: str) -> None:
    del line


@contextmanager
def _unshown(label: str, total: int) -> Iterator[Callable[[int], None]]:
    del label, total
    yield lambda _: None


def _no_sinks(total_steps: int) -> tuple[Sink, ...]:
    del total_steps
    return ()


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Memory that runs out is a failed run, not a fault of ours: say what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"out of memory: {' '.join(str(error).split())[:200]}\n  Lower model.data.tokens_per_micro_batch, or set "
            "model.activations_checkpoint_granularity=full; `dpolish plan` shows what takes how much"
        ) from error


def check(
    files: Sequence[str],
    validation: Sequence[str] = (),
    options: Options | None = None,
    *,
    model: str | None = None,
    fix: Path | None = None,
) -> Report:
    """What is wrong with data files, and what is worth knowing of them; with a model also what is a matter of tokens.

    `options` say how rows are read. `fix` names a new file for the rows that are left. Raises ConfigError, ModelError.
    """
    options = options or Options(task_of(files, None))
    tokens = load_checks(str(model_folder(model)), append_eod=options.task == "sft") if model is not None else None
    return run_check(files, validation, options, tokens=tokens, fix=fix)


def generate(model: Path, prompts: Sequence[str], max_new_tokens: int = 256) -> list[str]:
    """A greedy answer of a model folder to each prompt, up to the end of the turn in its template."""
    return answers(model_folder(str(model)), prompts, max_new_tokens)


def _result(directory: Path, model: Path, loggers: "_Loggers", assembled: Assembled) -> RunResult:
    reference = assembled.reference
    scored, cached = (reference.num_scored, reference.num_cached) if reference else (0, 0)
    return RunResult(directory, model, tuple(loggers.records), scored, cached)


class _Loggers:
    """The sinks of one run: metrics.jsonl is the truth, the others may fail without harm."""

    def __init__(self, config: RunConfig, directory: Path, say: Say) -> None:
        self._config, self._directory, self._say = config, directory, say
        self._sinks: list[Sink] = []
        self._closing = ExitStack()
        self.records: list[StepRecord] = []

    def emit(self, record: StepRecord) -> None:
        """Hand a record to every sink."""
        self.records.append(record)
        for sink in self._sinks:
            sink.write(record)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the loggers of the configuration; close every sink at the end, also when training fails."""
        with ExitStack() as self._closing:
            for sink in self._optional():
                self.add(sink)
            yield

    def add(self, *sinks: Sink) -> None:
        """Give further sinks all records from here on. Inside `opened`."""
        for sink in sinks:
            self._sinks.append(sink)
            self._closing.callback(sink.close)

    def _optional(self) -> Iterator[Sink]:
        manager = self._config.exp_manager
        if manager.create_tensorboard_logger:
            yield Guarded("TensorBoard", TensorBoardSink(self._directory / "tensorboard"), self._say)
        if manager.create_wandb_logger:
            kwargs = manager.wandb_logger_kwargs
            yield Guarded(
                "Weights & Biases",
                WandbSink(
                    self._directory,
                    _plain_config(self._config),
                    project=kwargs.project,
                    name=kwargs.name,
                    entity=kwargs.entity,
                    group=kwargs.group,
                    tags=kwargs.tags or (),
                    id=kwargs.id,
                    resume=kwargs.resume,
                ),
                self._say,
            )


def _plain_config(config: RunConfig) -> dict[str, object]:
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(OmegaConf.create(to_yaml(config)), resolve=False)
    assert isinstance(tree, dict)
    return {str(name): value for name, value in tree.items()}


# --- what the run directory says of the run ---------------------------------------------------------------------------


def used_config(prepared: Prepared, assembled: Assembled, directory: Path) -> RunConfig:
    """The configuration with every derived value filled in. Where the run fell back, what was asked for stays."""
    config, plan = prepared.config, prepared.plan
    precision = config.trainer.precision or ("32" if plan.precision == "32" else "bf16")
    accelerator = cast(Accelerator, "gpu" if plan.device == "cuda" else plan.device)
    named = isinstance(config.trainer.devices, tuple)  # by their indices, as many as there are
    devices = config.trainer.devices if named else plan.layout.devices
    nodes = plan.layout.num_nodes
    manager = replace(config.exp_manager, explicit_log_dir=str(directory))
    if isinstance(config, SftConfig):
        return replace(
            config,
            trainer=replace(
                config.trainer, precision=precision, accelerator=accelerator, num_nodes=nodes, devices=devices
            ),
            exp_manager=manager,
            model=_used_sft_model(config, prepared, assembled),
        )
    return replace(
        config,
        trainer=replace(config.trainer, precision=precision, accelerator=accelerator, num_nodes=nodes, devices=devices),
        exp_manager=manager,
        model=_used_dpo_model(config, prepared, assembled),
    )


def _used_dpo_model(config: DpoConfig, prepared: Prepared, assembled: Assembled) -> DpoModelConfig:
    plan = prepared.plan
    data = replace(config.model.data, seq_length=plan.seq_length, tokens_per_micro_batch=plan.tokens_per_micro_batch)
    return _computed_as(replace(config.model, data=data), prepared, assembled)


def _used_sft_model(config: SftConfig, prepared: Prepared, assembled: Assembled) -> SftModelConfig:
    plan = prepared.plan
    files = replace(config.model.data.train_ds, max_seq_length=plan.seq_length)
    data = replace(config.model.data, train_ds=files, tokens_per_micro_batch=plan.tokens_per_micro_batch)
    return _computed_as(replace(config.model, data=data), prepared, assembled)


M = TypeVar("M", bound=ModelConfig)


def _computed_as(model: M, prepared: Prepared, assembled: Assembled) -> M:
    """With the kernel and the sharing that were found to work, where the model is not on its own attention."""
    if assembled.run.policy.backend == STOCK:
        return model
    sharing: Literal["on", "off"] = "on" if assembled.run.data.packing.shared else "off"
    return replace(model, prefix_sharing=sharing, attention_backend=cast(AttentionBackend, prepared.backend))


def _write_environment(prepared: Prepared, assembled: Assembled, directory: Path, argv: Sequence[str]) -> None:
    record = environment_record(argv)
    run = assembled.run
    record["run"] = {
        "device": str(prepared.device),
        "ranks": str(prepared.plan.layout),
        "precision": prepared.plan.precision,
        "attention_backend": run.policy.backend,
        "prompts_shared": run.data.packing.shared,
        "packed": run.data.packing.token_budget is not None,
        "start_up_check": assembled.finding,
    }
    record["data"] = [
        {"split": split, "path": file.path, "format": file.format, "rows": file.rows_kept, "sha256": _sha256(file.path)}
        for split, summary in prepared.summaries
        for file in summary.files
    ]
    record["ignored_keys"] = list(prepared.composed.ignored)
    record["keys_without_effect"] = list(prepared.composed.without_effect)
    write_atomically(directory / "environment.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _sha256(path: str) -> str | None:
    file = Path(path).expanduser()
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- what is told -----------------------------------------------------------------------------------------------------


def _told(prepared: Prepared) -> Iterator[str]:
    """The data as it was read, and the keys that do nothing."""
    for split, summary in prepared.summaries:
        for line in summary.lines():
            yield f"{split}: {line}"
    yield from _validation_notes(prepared.config)
    findings = [*prepared.rendering.findings(), *prepared.warnings]
    yield from (f"WARNING: {finding}" for finding in findings)
    if findings:
        yield "`dpolish check` says more about the data"
    yield from _keys(prepared.composed)


def _keys(composed: Composed[RunConfig]) -> Iterator[str]:
    """The keys that do nothing."""
    for title, keys in (
        ("keys without meaning here", composed.ignored),
        ("keys without effect in this version", composed.without_effect),
    ):
        if keys:
            yield f"{title}:"
            yield from (f"  {key}" for key in keys)


def _validation_notes(config: RunConfig) -> Iterator[str]:
    if isinstance(config, SftConfig):
        sources = list(config.model.data.validation_ds.sources)
    else:
        held_out = config.model.data.data_prefix.validation
        sources = [source for _, files in held_out for source in files]
        if len(held_out) > 1:
            names = ", ".join(name for name, _ in held_out)
            yield f"note: {names} are validated as one set, its mean over all their rows"
    if any(source.weight is not None for source in sources):
        yield "note: weights have no meaning in validation: it is the exact mean over all rows"


def _numbers(composed: Composed[RunConfig], outlook: Outlook, backend: str, *, assumed: bool = False) -> Iterator[str]:
    plan, config = outlook.plan, composed.config
    rows = list(describe(plan, composed, assumed=assumed))
    rows.append(
        ("model.attention_backend", backend, "derived" if config.model.attention_backend == "auto" else "given")
    )
    width = max(len(name) for name, _, _ in rows)
    yield ""
    yield from (f"{name:<{width}}  {value}  ({mark})" for name, value, mark in rows)
    each = " of each rank" if plan.layout.data > 1 else ""
    yield (
        f"about {outlook.tokens:,.0f} tokens per step, in about {outlook.micro_batches:,} micro-batches{each} "
        f"({'assumed' if assumed else 'derived'})"
    )
    yield ""
    yield "learning rate at optimizer step (derived):"
    yield "  " + ", ".join(f"{step}: {rate:.3g}" for step, rate in curve(plan))
    yield ""
    yield from rank_lines(outlook)
    yield from (f"note: {line}" for line in remarks(plan, config))
