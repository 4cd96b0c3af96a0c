"""The tree of SFT: `SftConfig`, in NeMo-Aligner's names (gpt_sft.yaml) and with its defaults."""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

from dpolish.config.checks import below, empty, later, refuse
from dpolish.config.data_prefix import DataSource, DataSources
from dpolish.config.schema.data import DataConfig, data_faults
from dpolish.config.schema.metadata import follow, inside
from dpolish.config.schema.model import ModelConfig, OptimConfig, model_faults
from dpolish.config.schema.names import SFT_METRICS, LossAverage, TrainedTurns
from dpolish.config.schema.run import (
    CheckpointConfig,
    ExpManagerConfig,
    LoopConfig,
    TrainerConfig,
    WandbConfig,
    unmeasured,
)

_NAME = "megatron_gpt_sft"
_ONE_BATCH_SIZE = {"both_ways": True}
_IDLE_DROP_LAST = {"idle": "the last partial batch is used all the same, weighted by its true count"}
_IDLE_SHUFFLE = {"idle": "validation is the exact mean over its rows, in the order of the file"}
_IDLE_MASK = {"idle": "prompts are masked all the same, as in NeMo-Aligner: the loss is the answers' alone"}
_TEMPLATE = {"literal": True, "escapes": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class SftTrainerConfig(TrainerConfig):
    """The machine that trains, its arithmetic, and the length of the run."""

    sft: LoopConfig = field(
        default_factory=partial(LoopConfig, val_check_interval=100),
        metadata=inside(save_interval=follow("${.val_check_interval}")),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SftFilesConfig:
    """The files of one split, and how a row of them becomes tokens."""

    file_path: DataSources = field(default_factory=DataSources)
    """A path, a list of paths, or weights and paths in turn. Also `--train`, `--validation`."""
    file_names: tuple[str, ...] | None = None
    """A list of paths, instead of file_path."""
    concat_sampling_probabilities: tuple[float, ...] | None = None
    """The share of the rows that each file has, where there are several."""
    global_batch_size: int = 128
    """Rows per optimizer step: feeds model.global_batch_size, and takes its value where that one alone is given."""
    micro_batch_size: int = 1
    """Rows per forward pass and device: feeds model.micro_batch_size, and takes its value likewise."""
    shuffle: bool = True
    """A new order in every epoch, from model.seed; false keeps that of the files."""
    max_seq_length: int | None = 4096
    """Most tokens of a row; null is the model's own limit, 4096 at most."""
    min_seq_length: int = 1
    """Rows of fewer tokens are dropped, counted and named."""
    drop_last: bool = field(default=True, metadata=_IDLE_DROP_LAST)
    """Leave out the last partial batch: NeMo-Aligner's wish, which costs rows."""
    label_key: str = "output"
    """The field of a row that holds the answer, where prompt_template makes the text."""
    add_eos: bool = True
    """Append the end-of-sequence token to every answer that lacks it."""
    add_bos: bool = False
    """Put the begin-of-sequence token in front of every row that lacks it."""
    truncation_field: str = "input"
    """Fields of prompt_template that are cut with on_overlong=truncate, separated by commas."""
    truncation_method: Literal["left", "right"] = "right"
    """The end from which they are cut."""
    prompt_template: str = field(default="{input} {output}", metadata=_TEMPLATE)
    """The text of a prompt-response row: its fields in braces, the answer's last. Kept to the letter but for `\\n`."""

    def __post_init__(self) -> None:
        answer = f"{{{self.label_key}}}"
        refuse(
            file_names=self.file_names is not None
            and bool(self.file_path.sources)
            and "file_path is given too: give one of them, and null for the other",
            concat_sampling_probabilities=self._bad_shares(),
            global_batch_size=below(1, self.global_batch_size),
            micro_batch_size=below(1, self.micro_batch_size),
            max_seq_length=below(2, self.max_seq_length),
            min_seq_length=below(0, self.min_seq_length)
            or (
                self.max_seq_length is not None
                and self.min_seq_length > self.max_seq_length
                and f"must be max_seq_length={self.max_seq_length} or less, got {self.min_seq_length}"
            ),
            label_key=empty(self.label_key),
            prompt_template=not self.prompt_template.endswith(answer)
            and f"must end with {answer}, the answer (label_key), got {self.prompt_template!r}",
        )

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """The files, each with its share where shares are given."""
        named = self.file_path.sources or tuple(DataSource(path) for path in self.file_names or ())
        if self.concat_sampling_probabilities is None:
            return named
        return tuple(
            DataSource(source.path, share)
            for source, share in zip(named, self.concat_sampling_probabilities, strict=True)
        )

    @property
    def template_fields(self) -> tuple[str, ...]:
        """The fields that prompt_template names, in its order."""
        return tuple(re.findall(r"\{(.*?)\}", self.prompt_template))

    @property
    def truncated_fields(self) -> tuple[str, ...]:
        """The fields that truncation_field names."""
        return tuple(name.strip() for name in self.truncation_field.split(",") if name.strip())

    def _bad_shares(self) -> bool | str:
        shares = self.concat_sampling_probabilities
        files = len(self.file_path.sources or self.file_names or ())
        if shares is None:
            return False
        if any(source.weight is not None for source in self.file_path.sources):
            return "file_path has weights already: give one of them"
        if len(shares) != files:
            return f"{len(shares)} shares for {files} files: each file has one"
        return any(share <= 0 for share in shares) and f"must all be above 0, got {', '.join(f'{s:g}' for s in shares)}"


def _of_training(name: str) -> dict[str, object]:
    return {"follow": f"${{model.data.train_ds.{name}}}"}


_TRAINING_ROWS = inside(max_seq_length=follow("${model.encoder_seq_length}"))
_VALIDATION_ROWS = inside(
    shuffle=_IDLE_SHUFFLE,
    **{
        name: _of_training(name)
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "max_seq_length",
            "label_key",
            "add_eos",
            "add_bos",
            "truncation_field",
            "prompt_template",
        )
    },
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SftDataConfig(DataConfig):
    """The demonstrations, and how rows become micro-batches."""

    chat: bool = False
    """Rows must be conversations, which the chat template renders; false recognises what they are."""
    trained_turns: TrainedTurns = "all"
    """The assistant's turns that a conversation trains, where its rows do not say: all, or the last."""
    sample: bool = False
    """Go on with further epochs until max_steps, whatever max_epochs says."""
    train_ds: SftFilesConfig = field(default_factory=SftFilesConfig, metadata=_TRAINING_ROWS)
    validation_ds: SftFilesConfig = field(
        default_factory=partial(SftFilesConfig, shuffle=False), metadata=_VALIDATION_ROWS
    )

    def __post_init__(self) -> None:
        shares = self.validation_ds.concat_sampling_probabilities
        refuse(
            **data_faults(self),
            **{
                f"{name}.truncation_field": self.on_overlong == "truncate" and _bad_truncation(rows)
                for name, rows in (("train_ds", self.train_ds), ("validation_ds", self.validation_ds))
            },
            **{
                "validation_ds.concat_sampling_probabilities": shares is not None
                and "validation is the exact mean over all rows: set it to null"
            },
        )


def _bad_truncation(rows: SftFilesConfig) -> bool | str:
    strange = [name for name in rows.truncated_fields if name not in rows.template_fields]
    return bool(strange) and (
        f"{', '.join(strange)} is not in prompt_template, which has {', '.join(rows.template_fields)}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SftModelConfig(ModelConfig):
    """The batch, the loss, the optimizer, the data, and how the model is computed."""

    restore_from_path: str | None = None
    """The model to train: a Hugging Face folder, a hub id, or a .nemo archive or its folder. Also `--model`."""
    micro_batch_size: int = field(
        default=1, metadata={**follow("${.data.train_ds.micro_batch_size}"), **_ONE_BATCH_SIZE}
    )
    """Rows per forward pass and device; with packing, a bound for the derived token budget."""
    global_batch_size: int = field(
        default=128, metadata={**follow("${.data.train_ds.global_batch_size}"), **_ONE_BATCH_SIZE}
    )
    """Rows per optimizer step."""
    loss_average: LossAverage = "token"
    """The loss of a step is the mean over all trained tokens of its rows, or the mean of the rows' own means."""
    answer_only_loss: bool = field(default=True, metadata=_IDLE_MASK)
    """Train on answers alone: always true, in NeMo-Aligner too, whatever is written."""
    use_flash_attention: bool | None = None
    """false forbids the segments backend, as NVTE_FLASH_ATTN=0 does; null and true leave the choice."""
    encoder_seq_length: int | None = 4096
    """Feeds model.data.train_ds.max_seq_length."""
    optim: OptimConfig = field(default_factory=partial(OptimConfig, lr=3e-5, weight_decay=0.01))
    data: SftDataConfig = field(default_factory=SftDataConfig)

    def __post_init__(self) -> None:
        refuse(
            **model_faults(self, later("dropout is", "set it to 0")),
            restore_from_path=empty(self.restore_from_path),
            micro_batch_size=below(1, self.micro_batch_size),
            global_batch_size=below(1, self.global_batch_size),
            encoder_seq_length=below(2, self.encoder_seq_length),
        )


def _exp_manager() -> ExpManagerConfig:
    pattern = f"{_NAME}--{{${{.monitor}}:.3f}}-{{step}}-{{consumed_samples}}-{{epoch}}"
    return ExpManagerConfig(
        name=_NAME,
        wandb_logger_kwargs=WandbConfig(project=None, name=None),
        checkpoint_callback_params=CheckpointConfig(save_top_k=5, filename=pattern),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig:
    """Everything that an SFT run can be told."""

    verb: ClassVar[Literal["sft"]] = "sft"

    name: str = _NAME
    """Name of the run: feeds exp_manager.name."""
    trainer: SftTrainerConfig = field(default_factory=SftTrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=_exp_manager, metadata=inside(name=follow("${name}")))
    model: SftModelConfig = field(default_factory=SftModelConfig)

    def __post_init__(self) -> None:
        monitor = self.exp_manager.checkpoint_callback_params.monitor
        refuse(
            name=empty(self.name),
            **{"exp_manager.checkpoint_callback_params.monitor": unmeasured(monitor, SFT_METRICS, "SFT")},
        )

    @property
    def loop(self) -> LoopConfig:
        """How long to train, how often to validate: `trainer.sft`."""
        return self.trainer.sft

    @property
    def restore_from_path(self) -> str | None:
        """The model to train: `model.restore_from_path`."""
        return self.model.restore_from_path

    @property
    def seq_length(self) -> int | None:
        """Most tokens of a training row: `model.data.train_ds.max_seq_length`."""
        return self.model.data.train_ds.max_seq_length
