"""What a run would be on ranks that need not be here, of a model whose weights need not be here, on rows that may be
assumed: what `dpolish plan` knows where `assemble.prepare` would have to refuse.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dpolish.assemble import data_facts, model_folder, read_data, template_of
from dpolish.config.compose import Composed
from dpolish.config.schema import DpoDataConfig, RunConfig, TrainerConfig
from dpolish.data.check.glance import Glance
from dpolish.data.tokenize import check_vocabulary
from dpolish.errors import ConfigError, ModelError
from dpolish.facts import ModelFacts, Shapes, has_weights, host_memory, read_model_facts
from dpolish.machine import choose_device
from dpolish.model.load import load_config, load_tokenizer
from dpolish.parallel.tensor import plan_of, require_divisible
from dpolish.planning import (
    DEFAULT_GPU,
    GPUS,
    PER_NODE,
    SEQUENCE_KEYS,
    DataFacts,
    Gpu,
    Machine,
    Outlook,
    make_plan,
    nearest_line,
    rank_layout,
    sequence_length,
)
from dpolish.world import World

ASSUMED_BATCHES = 100
"""Global batches of an epoch where there are no rows and no max_steps."""


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that a run is planned for."""

    machine: Machine
    gpu: Gpu | None
    """A GPU that need not be here; None for this machine."""

    @property
    def device(self) -> torch.device:
        """What a rank runs on."""
        return torch.device(self.machine.device)

    @property
    def world(self) -> World:
        """The first of the ranks, were they started."""
        nodes, devices = self.machine.num_nodes, self.machine.devices
        return World(size=nodes * devices, local_size=devices)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run as the plan needs them, and what is to be said of them."""

    train: DataFacts
    validation: DataFacts | None
    told: tuple[str, ...]
    assumed: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """A plan for ranks that were not started."""

    outlook: Outlook
    told: tuple[str, ...]
    """What it rests on, line by line."""
    assumed: bool
    """True where the rows are."""


def target_of(config: RunConfig, gpu: str | None) -> Target:
    """The machine of the plan: a named GPU, else this one, else the usual GPU where one is asked for and none is here.

    Raises ConfigError for a GPU that is not known, or that contradicts `trainer.accelerator`.
    """
    trainer = config.trainer
    if gpu is not None and trainer.accelerator in ("cpu", "mps"):
        raise ConfigError(f"--gpu {gpu} and trainer.accelerator={trainer.accelerator} contradict each other: drop one")
    elsewhere = trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and trainer.num_nodes > 1)
    if gpu is not None or (elsewhere and not torch.cuda.is_available()):
        named = GPUS[(gpu or DEFAULT_GPU).lower()]
        return Target(Machine("cuda", named.memory, trainer.num_nodes, _devices(trainer, PER_NODE)), named)
    device = choose_device(trainer.accelerator, trainer.devices)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Target(Machine("cuda", int(free), trainer.num_nodes, _devices(trainer, torch.cuda.device_count())), None)
    devices = _devices(trainer, 1)
    return Target(Machine(device.type, host_memory() // devices, trainer.num_nodes, devices), None)


def _devices(trainer: TrainerConfig, all_there_are: int) -> int:
    """Ranks on each node: as many as `trainer.devices` says."""
    if isinstance(trainer.devices, tuple):
        return len(trainer.devices)
    return all_there_are if trainer.devices in ("auto", -1) else int(trainer.devices)


def can_start_here(config: RunConfig, target: Target) -> bool:
    """True where nothing has to be assumed: this machine's device, a model with weights, training rows."""
    return target.gpu is None and _has_rows(config) and has_weights(planned_folder(config))


def planned_folder(config: RunConfig) -> Path:
    """The folder of the model; a plan needs its configuration alone. Raises ConfigError where none is named."""
    name = (config.restore_from_path or "").strip()
    if not name:
        raise ConfigError("no model to plan for: name a folder with --model; its config.json is enough")
    return model_folder(name, weights=False)


def forecast(composed: Composed[RunConfig], target: Target) -> Forecast:
    """The plan of a run on `target`. Raises InputError where it cannot work, naming the nearest layout that does."""
    config, machine = composed.config, target.machine
    model, said = model_of(planned_folder(config))
    seq_length = sequence_length(composed, model)
    rows = _given_rows(config, model, seq_length) if _has_rows(config) else assumed_rows(config, seq_length)
    try:
        rank_layout(config, model, machine)
    except ConfigError as error:
        near = nearest_line(config, model, rows.train, machine, seq_length)
        raise ConfigError(f"{error}.\n  On {_named(target)}, {near}") from error
    require_tensor_plan(model.folder, config.model.tensor_model_parallel_size)
    plan = make_plan(config, model, rows.train, rows.validation, machine, seq_length)
    outlook = Outlook(plan, config, model, rows.train, machine, target.gpu)
    return Forecast(outlook, (*_told(target), said, *rows.told), rows.assumed)


def _named(target: Target) -> str:
    return target.gpu.name if target.gpu else "this machine"


def _told(target: Target) -> Iterator[str]:
    if target.gpu is None:
        return
    machine = target.machine
    nodes = f"{machine.num_nodes} nodes" if machine.num_nodes > 1 else "one node"
    yield (
        f"planned for {nodes} of {machine.devices} × {target.gpu.name}"
        f"{' (there is no GPU here)' if not torch.cuda.is_available() else ''}; "
        f"--gpu names another: {', '.join(sorted(GPUS))}"
    )


# --- the model --------------------------------------------------------------------------------------------------------


def model_of(folder: Path) -> tuple[ModelFacts, str]:
    """The sizes of a model, and what they were read from: its weights, or where there are none its architecture."""
    if has_weights(folder):
        facts, source = read_model_facts(folder), "its weights"
    else:
        facts = read_model_facts(folder, architecture_shapes(folder))
        source = "the architecture of its config.json: there are no weights here, and training needs them"
    return facts, f"model: {facts.architecture}, {facts.num_parameters:,} parameters, counted in {source}"


def architecture_shapes(folder: Path) -> Shapes:
    """The shape of every parameter of the model that config.json describes, tied ones once; no memory is taken.

    Raises ModelError for an architecture that transformers does not know as a causal language model.
    """
    return {name: tuple(parameter.shape) for name, parameter in _architecture(folder).named_parameters()}


def require_tensor_plan(folder: Path, size: int) -> None:
    """Raise ConfigError where a model's matrices cannot be split over `size` ranks, as it would be before training."""
    if size > 1:
        model = _architecture(folder)
        require_divisible(model, plan_of(model), size)


def _architecture(folder: Path) -> PreTrainedModel:
    config = load_config(str(folder))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}/config.json: no causal language model can be made of it ({reason})") from error
    assert isinstance(model, PreTrainedModel)
    return model


# --- the rows ---------------------------------------------------------------------------------------------------------


def _has_rows(config: RunConfig) -> bool:
    data = config.model.data
    return bool(data.data_prefix.train if isinstance(data, DpoDataConfig) else data.train_ds.sources)


def _given_rows(config: RunConfig, model: ModelFacts, seq_length: int) -> Rows:
    """The rows of the training and validation files, tokenized as they would be."""
    tokenizer = load_tokenizer(str(model.folder))
    template = template_of(config, tokenizer)
    train, validation, summaries = read_data(config, tokenizer, template, seq_length, Glance())
    for part in filter(None, (train, validation)):
        check_vocabulary(part.examples, part.where, model.vocabulary_size, tokenizer)
    told = tuple(f"{split}: {line}" for split, summary in summaries for line in summary.lines())
    return Rows(
        data_facts(train, config), None if validation is None else data_facts(validation, config), told, assumed=False
    )


def assumed_rows(config: RunConfig, seq_length: int) -> Rows:
    """Rows of `seq_length` tokens: in DPO one half of them a shared prompt, the other half an answer, twice."""
    loop, batch = config.loop, config.model.global_batch_size
    rows = batch * (loop.max_steps if loop.max_steps > 0 else ASSUMED_BATCHES)
    of_pair = config.verb == "dpo"
    size = math.ceil(1.5 * seq_length) if of_pair else seq_length
    shape = "a prompt of half of them and two answers of the other half" if of_pair else "one demonstration each"
    told = (
        f"no training data: every row is taken to fill {SEQUENCE_KEYS[config.verb]}={seq_length}, {shape}; "
        f"{rows:,} rows (assumed)"
    )
    padded = (2 if of_pair else 1) * seq_length
    return Rows(DataFacts(rows, rows * size, rows * padded, size), None, (told,), assumed=True)
