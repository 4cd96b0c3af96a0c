"""Configuration → the values that a run is made of.

The one place that reads configuration sections and constructs things.

prepare   data, model sizes and plan: every refusal happens here, before weights are read
build     weights, start-up checks, reference scores, optimizer: a Run, ready for the loop
"""

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from dpolish.config.compose import Composed, require_complete
from dpolish.config.data_prefix import DataSource
from dpolish.config.schema import DpoConfig, RunConfig, SftConfig, SftFilesConfig
from dpolish.data.check.glance import Glance
from dpolish.data.check.model import known_ends
from dpolish.data.ingest import Ingested, ingest, split_rows
from dpolish.data.kinds import Demonstrations, Pairs, Record
from dpolish.data.loader import Loader, Sources, trained_rows
from dpolish.data.pack import Packing
from dpolish.data.prefixes import tokens_alike
from dpolish.data.summary import DataSummary
from dpolish.data.templates import ChatTemplate, choose_template, load_template
from dpolish.data.templates.agreement import Rendering
from dpolish.data.tokenize import Tokenization, check_vocabulary
from dpolish.errors import ConfigError, DataError
from dpolish.facts import ModelFacts, find_model, read_model_facts
from dpolish.files import cache_root
from dpolish.losses.objective import Objective, PreferenceObjective, SftObjective
from dpolish.losses.preference import LOSSES, loss_options
from dpolish.machine import available_memory, choose_device
from dpolish.model.allocator import keep_freed_memory
from dpolish.model.attention import choose_backend
from dpolish.model.load import LoadedModel, load_model, load_tokenizer, logit_transform
from dpolish.model.logprobs import Policy
from dpolish.model.verify import verified
from dpolish.nemo.cache import imported_folder
from dpolish.nemo.kind import is_nemo
from dpolish.parallel.apply import Spread, at_rest
from dpolish.parallel.join import rank_that_differs
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.tensor import partial_parameters
from dpolish.planning import DataFacts, Machine, RunPlan, make_plan, sequence_length, validation_batch_size
from dpolish.records import StepRecord
from dpolish.reference.cache import Identity, ReferenceCache
from dpolish.reference.fingerprint import fingerprint
from dpolish.reference.score import Reference, score
from dpolish.training.optimizer import Optimizer
from dpolish.training.state import Run
from dpolish.world import ALONE, World

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`(label, total)` → a context in which to call with the number of rows done."""

PROMPT_RESPONSE = "input_output"
"""The shape of rows that `prompt_template` makes texts of."""

FLEX_MULTIPLE = 128
"""FlexAttention works in blocks of this many tokens: rows are padded to it, so that it compiles for few lengths."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before a weight is read."""

    composed: Composed[RunConfig]
    model: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering
    """What the rows are rendered with, beside what the model was fine-tuned with."""
    warnings: tuple[str, ...]
    """What a glance at the rows found; `dpolish check` looks closely."""
    train: Ingested
    validation: Ingested | None
    summaries: tuple[tuple[str, DataSummary], ...]
    """(split, what became of its rows), in the order read."""
    device: torch.device
    backend: str
    packing: Packing
    plan: RunPlan

    @property
    def config(self) -> RunConfig:
        """The typed configuration."""
        return self.composed.config


@dataclass(frozen=True, slots=True)
class Assembled:
    """A run, and what is needed to save its model."""

    run: Run
    loaded: LoadedModel
    reference: Reference | None
    """What scoring the reference took; None in SFT, which has none."""
    finding: str
    """What the start-up check found, in one line."""


def prepare(composed: Composed[RunConfig], world: World = ALONE, say: Say = print) -> Prepared:
    """Read sizes, tokenizer and data, and derive the plan. Raises InputError for everything that cannot work."""
    config = composed.config
    require_complete(config)
    device = choose_device(config.trainer.accelerator, config.trainer.devices, world)
    backend = choose_backend(config.model.attention_backend, device, composed.forbidden_attention)
    model = read_model_facts(model_folder(str(config.restore_from_path), say, world))
    tokenizer = load_tokenizer(str(model.folder))
    template = template_of(config, tokenizer)
    seq_length = sequence_length(composed, model)
    appended = isinstance(config, SftConfig) or config.model.data.append_eod
    glance = Glance(known_ends(tokenizer, template, append_eod=appended))
    train, validation, summaries = read_data(config, tokenizer, template, seq_length, glance)
    rendering = Rendering(
        rows=glance.first,
        template=template,
        prompt_template=prompt_template_of(config, train),
        trained=load_template(model.folder),
        own=choose_template(tokenizer),
    )
    for part in filter(None, (train, validation)):
        check_vocabulary(part.examples, part.where, model.vocabulary_size, tokenizer)
    facts = [None if part is None else data_facts(part, config) for part in (train, validation)]
    assert facts[0] is not None
    require_same_data(train, validation)
    machine = Machine(device.type, available_memory(device, world), world.num_nodes, world.local_size)
    plan = make_plan(config, model, facts[0], facts[1], machine, seq_length)
    packing = Packing(
        shared=config.model.prefix_sharing != "off",
        token_budget=plan.tokens_per_micro_batch,
        micro_batch_size=config.model.micro_batch_size,
        multiple_of=math.lcm(
            FLEX_MULTIPLE if backend == "flex" else 1,
            plan.layout.context * (plan.layout.tensor if config.model.sequence_parallel else 1),
        ),
    )
    return Prepared(
        composed,
        model,
        tokenizer,
        rendering,
        tuple(glance.warnings()),
        train,
        validation,
        summaries,
        device,
        backend,
        packing,
        plan,
    )


def model_folder(name: str, say: Say = print, world: World = ALONE, *, weights: bool = True) -> Path:
    """The Hugging Face folder of a model: itself, a hub id's copy, or what a `.nemo` checkpoint was imported to.

    Of several ranks the one that imports speaks, whichever it is. A plan can do without `weights`.
    """
    path = Path(name).expanduser()
    if not is_nemo(path):
        return find_model(name, weights=weights)
    return imported_folder(path, say=say if world.rank == 0 else print, waiting=say)


def require_same_data(train: Ingested, validation: Ingested | None) -> None:
    """Raise DataError unless all ranks have read the same rows: nodes may not see the same files."""
    digest = hashlib.sha256()
    for part in filter(None, (train, validation)):
        for example in part.examples:
            digest.update(example.prompt.tobytes())
            for completion in example.completions:
                digest.update(completion.tokens.tobytes())
                digest.update(completion.scored_at.tobytes())
            digest.update(repr(example.rewards).encode())
    if (rank := rank_that_differs(digest.digest())) is not None:
        raise DataError(
            f"rank {rank} has read other rows than rank 0. The data files, or the model's tokenizer, are not the same "
            "on every node: put them where all nodes see them"
        )


def template_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The chat template that `model.data.chat_template`, `chat_prompt_tokens` or the tokenizer names.

    NeMo-Aligner's chats (`model.data.chat=true`) have its format where the tokenizer brings none.
    """
    data = config.model.data
    template = choose_template(tokenizer, data.chat_template, data.prompt_tokens)
    if template is None and isinstance(config, SftConfig) and config.model.data.chat:
        return choose_template(tokenizer, "nemo")
    return template


def prompt_template_of(config: RunConfig, train: Ingested) -> str | None:
    """`model.data.train_ds.prompt_template`, where a training file is of its shape."""
    if isinstance(config, SftConfig) and any(file.format == PROMPT_RESPONSE for file in train.summary.files):
        return config.model.data.train_ds.prompt_template
    return None


Data = tuple[Ingested, Ingested | None, tuple[tuple[str, DataSummary], ...]]
"""Training and validation examples, and what became of every row, by split."""


def read_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    seq_length: int,
    glance: Glance,
) -> Data:
    """The examples of both splits, as the verb reads rows; `glance` sees them all."""
    if isinstance(config, SftConfig):
        return _read_demonstrations(config, tokenizer, template, seq_length, glance)
    return _read_pairs(config, tokenizer, template, seq_length, glance)


def _read_pairs(
    config: DpoConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    seq_length: int,
    glance: Glance,
) -> Data:
    data = config.model.data
    tokenization = Tokenization.of(
        tokenizer,
        template=template,
        append_eod=data.append_eod,
        eod_mask_loss=data.eod_mask_loss,
        default_chosen_reward=data.default_chosen_reward,
        default_rejected_reward=data.default_rejected_reward,
    )
    kind = Pairs(data.format, data.pairs)

    def read(sources: Sequence[DataSource], seen: Callable[[Record], None]) -> Ingested:
        files = [(source.weight, source.path) for source in sources]
        return ingest(files, kind, tokenization, seq_length=seq_length, on_overlong=data.on_overlong, watch=seen)

    train = read(data.data_prefix.train, glance.train)
    if not data.data_prefix.by_split and data.splits_string is not None:
        first, second, _ = split_rows(data.splits_string, len(train.examples))
        if not first:
            raise ConfigError(
                f"model.data.splits_string={data.splits_string} leaves no training row of {len(train.examples)}"
            )
        return train.part(first), train.part(second) if second else None, (("train", train.summary),)
    held_out = [source for _, sources in data.data_prefix.validation for source in sources]
    return _with_summaries(train, read(held_out, glance.validation) if held_out else None)


def _read_demonstrations(
    config: SftConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    seq_length: int,
    glance: Glance,
) -> Data:
    data = config.model.data

    def read(part: SftFilesConfig, seen: Callable[[Record], None]) -> Ingested:
        tokenization = Tokenization.of(tokenizer, template=template, append_eod=part.add_eos, add_bos=part.add_bos)
        kind = Demonstrations(
            data.format,
            prompt_template=part.prompt_template,
            label_key=part.label_key,
            trained_turns=data.trained_turns,
            chat=data.chat,
            min_length=part.min_seq_length,
            truncate_answer=part.label_key in part.truncated_fields,
            truncation_method=part.truncation_method,
        )
        files = [(source.weight, source.path) for source in part.sources]
        length = min(part.max_seq_length or seq_length, seq_length)
        return ingest(files, kind, tokenization, seq_length=length, on_overlong=data.on_overlong, watch=seen)

    train = read(data.train_ds, glance.train)
    return _with_summaries(train, read(data.validation_ds, glance.validation) if data.validation_ds.sources else None)


def _with_summaries(train: Ingested, validation: Ingested | None) -> Data:
    summaries = (("train", train.summary), *((("validation", validation.summary),) if validation else ()))
    return train, validation, summaries


def data_facts(part: Ingested, config: RunConfig) -> DataFacts:
    """The sizes of one split that the plan needs."""
    shares = config.model.data.packing and config.model.prefix_sharing != "off"
    order = np.random.default_rng(config.model.seed).permutation(len(part.examples))  # about as training meets them
    prompts = [part.examples[row].prompt for row in order] if shares else []
    return DataFacts(
        rows=len(part.examples),
        tokens=sum(example.num_tokens for example in part.examples),
        padded_tokens=sum(example.num_padded_tokens for example in part.examples),
        largest=max(example.num_tokens for example in part.examples),
        alike=tokens_alike(prompts, config.model.global_batch_size),
    )


def identity(prepared: Prepared, backend: str) -> Identity:
    """What the reference's numbers depend on."""
    return Identity(fingerprint(prepared.model.folder), prepared.plan.precision, backend)


def open_cache(prepared: Prepared, backend: str) -> ReferenceCache:
    """The store that `model.dpo.reference_cache` names. DPO only."""
    assert isinstance(prepared.config, DpoConfig)
    where = prepared.config.model.dpo.reference_cache
    root = None if where == "off" else cache_root() / "reference" if where == "auto" else Path(where).expanduser()
    return ReferenceCache(root, identity(prepared, backend))


def build(prepared: Prepared, emit: Callable[[StepRecord], None], say: Say, progress: Progress) -> Assembled:
    """Load, check, score the reference if there is one, and put the run together."""
    config, plan = prepared.config, prepared.plan
    make_reproducible(plan.seed, config.trainer.deterministic is True)
    if prepared.device.type == "cpu":
        keep_freed_memory()
    dtype = torch.float32 if plan.precision == "32" else torch.bfloat16
    mesh = Mesh.joined(plan.layout, prepared.device)
    how = Spread(
        mesh,
        dtype,
        sequence_parallel=config.model.sequence_parallel,
        recompute=config.model.activations_checkpoint_granularity is not None,
        compiled=config.model.torch_compile,
        offload=config.model.fsdp_cpu_offload,
    )
    loaded = load_model(str(prepared.model.folder), how)
    if loaded.unexpected:
        say(
            f"{prepared.model.folder}: {len(loaded.unexpected)} tensors have no place in the model: "
            f"{loaded.unexpected[0]} …"
        )
    policy = Policy(loaded.model, prepared.backend, logit_transform(loaded.model.config), dtype, mesh)
    policy, packing, finding = verified(policy, prepared.packing, prepared.train.examples, config.model.prefix_sharing)
    say(finding)
    reference, scores = None, dict[int, npt.NDArray[np.float32]]()
    if isinstance(config, DpoConfig):
        reference, scores = _reference(prepared, policy, packing, say, progress)
    batch_sizes = (config.model.global_batch_size, validation_batch_size(config))
    loaders = [
        Loader(part.examples, scores.get(index), batch_sizes[index], packing, mesh.data_size, mesh.data_rank)
        for index, part in enumerate(_parts(prepared))
    ]
    at_rest(loaded.model)
    tensor = mesh.tensor is not None
    run = Run(
        plan=plan,
        policy=policy,
        data=loaders[0],
        sources=sources_of(prepared),
        validation=loaders[1] if prepared.validation is not None else None,
        objective=objective_of(config),
        optimizer=Optimizer(
            loaded.model,
            name=config.model.optim.name,
            betas=config.model.optim.betas,
            eps=config.model.optim.eps,
            weight_decay=config.model.optim.weight_decay,
            max_norm=config.loop.gradient_clip_val,
            initial=loaded.masters,
            mesh=mesh,
            partial=partial_parameters(loaded.model, sequence=how.sequence_parallel) if tensor else (),
        ),
        where=prepared.train.where,
        emit=emit,
    )
    return Assembled(run, loaded, reference, finding)


def make_reproducible(seed: int, deterministic: bool) -> None:
    """Seed everything; in deterministic mode refuse kernels that give other bits in another run."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _reference(
    prepared: Prepared, policy: Policy, packing: Packing, say: Say, progress: Progress
) -> tuple[Reference, dict[int, npt.NDArray[np.float32]]]:
    """What scoring took, and the scores of every row of part 0, training, and 1, validation, if there is any."""
    config = prepared.config
    assert isinstance(config, DpoConfig)
    cache = open_cache(prepared, policy.backend) if policy.mesh.first else None
    for note in cache.notes if cache is not None else ():
        say(note)
    parts, needed = _parts(prepared), needed_rows(prepared)
    examples = [part.examples[row] for part, rows in zip(parts, needed, strict=True) for row in rows]
    where = [part.where[row] for part, rows in zip(parts, needed, strict=True) for row in rows]
    scoring = replace(packing, micro_batch_size=config.model.dpo.log_prob_forward_micro_batch_size)
    policy.model.train(False)
    reference = score(policy, examples, scoring, cache, where, progress)
    say(f"reference: {reference.num_scored:,} rows scored, {reference.num_cached:,} from the cache")
    scores, first = {}, 0
    for index, (part, rows) in enumerate(zip(parts, needed, strict=True)):
        scores[index] = np.full((len(part.examples), 2), np.nan, dtype=np.float32)
        scores[index][rows] = reference.logprobs[first : first + len(rows)]
        first += len(rows)
    return reference, scores


def _parts(prepared: Prepared) -> list[Ingested]:
    return [part for part in (prepared.train, prepared.validation) if part is not None]


def sources_of(prepared: Prepared) -> Sources:
    """The training rows of each file, their shares, and whether they are shuffled."""
    config = prepared.config
    shuffled = not isinstance(config, SftConfig) or config.model.data.train_ds.shuffle
    return Sources(prepared.train.sizes, prepared.train.weights, shuffled)


def needed_rows(prepared: Prepared) -> list[npt.NDArray[np.int64]]:
    """The rows that the run reads, of the training part and of the validation part if there is one."""
    plan, batch = prepared.plan, prepared.plan.global_batch_size
    sources = sources_of(prepared)
    rows = [trained_rows(plan.seed, sources, batch, plan.steps_per_epoch, plan.total_steps)]
    if prepared.validation is not None:
        rows.append(np.arange(min(len(prepared.validation.examples), plan.validation_batches * batch)))
    return rows


def objective_of(config: RunConfig) -> Objective:
    """The objective that `model.dpo` describes, or SFT's; a loss gets those of its options that the section has."""
    if isinstance(config, SftConfig):
        return SftObjective(config.model.loss_average)
    dpo = config.model.dpo
    options = {name: getattr(dpo, name) for name in loss_options(dpo.preference_loss) if hasattr(dpo, name)}
    return PreferenceObjective(
        loss=functools.partial(LOSSES[dpo.preference_loss], **options),
        ref_policy_kl_penalty=dpo.ref_policy_kl_penalty,
        preference_loss_weight=dpo.preference_loss_weight,
        sft_loss_weight=dpo.sft_loss_weight,
        preference_average_log_probs=dpo.preference_average_log_probs,
        sft_average_log_probs=dpo.sft_average_log_probs,
    )
