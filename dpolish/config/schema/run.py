"""The sections `trainer` and `exp_manager`: the machine, the length of the run, where it goes and who is told."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dpolish.config.checks import (
    bad_devices,
    bad_share_or_count,
    below,
    empty,
    later,
    not_above,
    refuse,
)
from dpolish.config.schema.metadata import IDLE_CHECKPOINTS, NO_FLOAT16, follow
from dpolish.config.schema.names import DPO_METRICS, SFT_METRICS, Accelerator, Precision

MONITORED = tuple(dict.fromkeys((*DPO_METRICS, *SFT_METRICS)))
"""Every validation metric that some verb has; each tree allows its own."""

NO_TIME_LIMIT = later("a time limit is", "set it to null and limit the loop's max_steps")

# --- trainer ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long to train, how often to validate. A whole number counts, one with a point is a share: 1 is not 1.0."""

    max_epochs: int = 1
    """Passes over the training rows; every pass has its own order."""
    max_steps: int = -1
    """Optimizer steps at most; -1 sets no limit but max_epochs."""
    val_check_interval: int | float = 0.1
    """Validate every so many steps (int), or every such share of an epoch (float); also after the last step."""
    save_interval: int | float = field(default=100, metadata=IDLE_CHECKPOINTS)
    """Save a checkpoint every so many steps (int), or every such share of an epoch (float); 0 saves none on the way."""
    limit_train_batches: int | float = 1.0
    """Global batches per epoch that are trained on: a count (int) or a share (float)."""
    limit_val_batches: int | float = 1.0
    """Global batches that a validation reads: a count (int) or a share (float); 0 validates never."""
    gradient_clip_val: float | None = 1.0
    """Largest gradient norm; longer gradients are scaled down to it. 0 or null does not clip."""

    def __post_init__(self) -> None:
        refuse(
            max_epochs=below(1, self.max_epochs),
            max_steps=self.max_steps != -1 and below(1, self.max_steps),
            val_check_interval=bad_share_or_count(self.val_check_interval) or not_above(0, self.val_check_interval),
            save_interval=bad_share_or_count(self.save_interval),
            limit_train_batches=bad_share_or_count(self.limit_train_batches) or not_above(0, self.limit_train_batches),
            limit_val_batches=bad_share_or_count(self.limit_val_batches),
            gradient_clip_val=below(0, self.gradient_clip_val),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """What `trainer` holds whatever is trained; each tree adds the section of its loop."""

    num_nodes: int = 1
    """Machines, each with as many devices."""
    devices: int | Literal["auto"] | tuple[int, ...] = 1
    """Processes per machine: a number, a list of device indices, or auto (-1) for every device there is."""
    accelerator: Accelerator = "auto"
    """auto takes a GPU where there is one."""
    precision: Precision | None = field(default=None, metadata=NO_FLOAT16)
    """32, or bf16 with float32 master weights and optimizer state; null is bf16 on a GPU and 32 on a CPU."""
    max_time: str | None = None
    """DD:HH:MM:SS; feeds exp_manager.max_time_per_run."""
    deterministic: bool | None = None
    """Equal configurations give equal bits. null is false, or true where NVTE_ALLOW_NONDETERMINISTIC_ALGO=0."""
    hang_timeout: float = 600.0
    """Seconds without progress on any rank, or a sign of life from one, after which a run of many ranks ends."""

    def __post_init__(self) -> None:
        refuse(
            num_nodes=below(1, self.num_nodes),
            devices=bad_devices(self.devices),
            hang_timeout=below(5, self.hang_timeout),
            max_time=self.max_time is not None and NO_TIME_LIMIT,
        )


# --- exp_manager ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class WandbConfig:
    """What is handed to Weights & Biases."""

    project: str | None = "nemo_aligner_dpo"
    """Project that the run belongs to."""
    name: str | None = "rlhf_gpt3_dpo"
    """Name of the run; Weights & Biases invents one when it is empty."""
    entity: str | None = None
    """User or team that owns the project."""
    group: str | None = None
    """Runs of one group are shown together."""
    tags: tuple[str, ...] | None = None
    """Labels to filter by."""
    id: str | None = None
    """Identity of the run; the same id continues it."""
    resume: bool | Literal["allow", "must", "never", "auto"] | None = None
    """What to do when a run of this id exists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Which checkpoints to keep."""

    monitor: str = field(default="val_loss", metadata=IDLE_CHECKPOINTS)
    """Validation metric that tells the best checkpoint."""
    save_top_k: int = field(default=3, metadata=IDLE_CHECKPOINTS)
    """Best checkpoints that are kept besides the last one; -1 keeps all."""
    mode: Literal["min", "max"] = field(default="min", metadata=IDLE_CHECKPOINTS)
    """Whether a small or a large value of `monitor` is good."""
    save_nemo_on_train_end: bool = False
    """Write the final model as a .nemo archive too: checkpoints/NAME.nemo in the run directory."""
    filename: str = field(
        default="megatron_gpt--{${.monitor}:.3f}-{step}-{consumed_samples}-{epoch}",
        metadata={"idle": "a checkpoint is a folder named after its step", "literal": True},
    )
    """NeMo-Aligner's name pattern, kept to the letter."""

    def __post_init__(self) -> None:
        known = re.fullmatch(rf"(val_|val/|validation_)({'|'.join(MONITORED)})", self.monitor)
        refuse(
            monitor=not known and f"unknown metric {self.monitor!r}. Known: val_{', val_'.join(MONITORED)}",
            save_top_k=below(-1, self.save_top_k),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpManagerConfig:
    """Where the run goes and who is told about it."""

    explicit_log_dir: str | None = None
    """The run directory; null is EXP_DIR/NAME, or ./results/NAME."""
    exp_dir: str | None = None
    """Parent of run directories, used with `name` when explicit_log_dir is null."""
    name: str = "megatron_gpt"
    """Name of the run."""
    max_time_per_run: str | None = field(default=None, metadata=follow("${trainer.max_time}"))
    """DD:HH:MM:SS after which the run validates, saves and stops."""
    create_wandb_logger: bool = False
    """Send metrics to Weights & Biases; needs the `wandb` extra."""
    wandb_logger_kwargs: WandbConfig = field(default_factory=WandbConfig)
    create_tensorboard_logger: bool = False
    """Write metrics for TensorBoard into the run directory; needs the `tensorboard` extra."""
    create_mlflow_logger: bool = False
    """Send metrics to MLflow."""
    resume_from_checkpoint: str | None = None
    """Checkpoint to continue from."""
    resume_if_exists: bool = field(default=True, metadata=IDLE_CHECKPOINTS)
    """Continue from the newest checkpoint of the run directory."""
    resume_ignore_no_checkpoint: bool = field(default=True, metadata=IDLE_CHECKPOINTS)
    """Start afresh where there is no checkpoint to continue from."""
    create_checkpoint_callback: bool = field(default=True, metadata=IDLE_CHECKPOINTS)
    """Save checkpoints; false saves none."""
    checkpoint_callback_params: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        refuse(
            explicit_log_dir=empty(self.explicit_log_dir),
            exp_dir=empty(self.exp_dir),
            name=empty(self.name),
            max_time_per_run=self.max_time_per_run is not None and NO_TIME_LIMIT,
            create_mlflow_logger=self.create_mlflow_logger
            and later("MLflow is", "set it to false; there are W&B, TensorBoard and metrics.jsonl"),
            resume_from_checkpoint=self.resume_from_checkpoint is not None
            and later("resuming is", "set it to null and start a new run"),
        )


def unmeasured(monitor: str, metrics: Sequence[str], verb: str) -> bool | str:
    """The fault of a monitored metric that the verb's validation does not have."""
    known = re.fullmatch(r"(val_|val/|validation_)(.+)", monitor)
    return bool(known and known[2] not in metrics and known[2] in MONITORED) and (
        f"{verb} does not measure {monitor!r}. Known: val_{', val_'.join(metrics)}"
    )
