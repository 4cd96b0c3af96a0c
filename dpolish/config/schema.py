"""The configuration tree of DPO as frozen values: NeMo-Aligner's names and defaults, and what each value may be.

The docstring under a field is its help text; `keys.py` makes the table of all keys from this page, and the reference in
the documentation. Values are made by `compose`, which follows interpolations (`follow`) and knows where a value was
written; a section that is built by hand is checked all the same.

Field metadata, read by `compose`:

    follow     the interpolation that is this key's default: the key follows another until it is given
    replaces   the sibling that becomes null when this key is given
    idle       why the key has no effect in this version; it is named to the user when given
    literal    the text is kept as it is written, `${` too
    refused    texts that are refused with a reason of their own
    booleans   what `false` and `true` (YAML's `off` and `on`) stand for
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from dpolish.config.checks import (
    bad_decay,
    bad_ratio,
    bad_share_or_count,
    bad_splits,
    bad_steps_or_ratio,
    below,
    beyond_one,
    count_devices,
    empty,
    later,
    not_above,
    refuse,
)
from dpolish.config.data_prefix import DataFiles

Accelerator = Literal["auto", "gpu", "cpu", "mps"]
Precision = Literal["bf16", "bf16-mixed", "32"]
PreferenceLoss = Literal["dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"]
ScheduleName = Literal[
    "CosineAnnealing",
    "WarmupAnnealing",
    "WarmupHoldPolicy",
    "SquareAnnealing",
    "SquareRootAnnealing",
    "NoamAnnealing",
    "InverseSquareRootAnnealing",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
    "LinearWarmup",
    "Constant",
]
OptimizerName = Literal["distributed_fused_adam", "mcore_distributed_optim", "fused_adam", "adamw"]
AttentionBackend = Literal["auto", "segments", "flex", "dense"]
InitMethod = Literal["xavier", "normal", "zero"]

PREFERENCE_LOSSES: tuple[str, ...] = get_args(PreferenceLoss)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

MONITORED = (
    "loss",
    "preference_loss",
    "sft_loss",
    "acc",
    "rewards_chosen_mean",
    "rewards_rejected_mean",
    "rewards_all_mean",
    "rewards_all_std",
    "rewards_margin_mean",
    "logps_chosen_mean",
    "logps_rejected_mean",
)
"""Validation metrics that may choose the best checkpoint, as val_NAME, val/NAME or validation_NAME."""

IDLE_CHECKPOINTS = {"idle": "resumable checkpoints are not in this version; the model is saved once, at the end"}
IDLE_LORA = {"idle": "it has a meaning only with LoRA, which is not in this version"}
IDLE_WORKERS = {"idle": "rows are tokenised before training; there is nothing left for workers to do"}
IDLE_PADDING = {"idle": "it aligns shapes for tensor parallelism, which is not in this version"}
NO_FLOAT16 = {"refused": dict.fromkeys(("16", "16-mixed", "16-true"), "float16 needs loss scaling: use bf16 or 32")}

NO_TIME_LIMIT = later("a time limit is", "set it to null and limit trainer.dpo.max_steps")


def follow(interpolation: str) -> Mapping[str, object]:
    """Metadata of a key that follows another one until it is given."""
    return {"follow": interpolation}


# --- trainer ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoTrainerConfig:
    """How long to train, how often to validate. A whole number counts, one with a point is a share: 1 is not 1.0."""

    max_epochs: int = 1
    """Passes over the training rows; every pass has its own order."""
    max_steps: int = -1
    """Optimizer steps at most; -1 sets no limit but max_epochs."""
    val_check_interval: int | float = 0.1
    """Validate every so many steps (int), or every such share of an epoch (float); also after the last step."""
    save_interval: int = field(default=100, metadata=IDLE_CHECKPOINTS)
    """Save a checkpoint every so many steps; 0 saves none on the way."""
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
            save_interval=below(0, self.save_interval),
            limit_train_batches=bad_share_or_count(self.limit_train_batches) or not_above(0, self.limit_train_batches),
            limit_val_batches=bad_share_or_count(self.limit_val_batches),
            gradient_clip_val=below(0, self.gradient_clip_val),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """The machine that trains, its arithmetic, and the length of the run."""

    num_nodes: int = 1
    """Machines."""
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
    dpo: DpoTrainerConfig = field(default_factory=DpoTrainerConfig)

    def __post_init__(self) -> None:
        refuse(
            num_nodes=beyond_one(self.num_nodes, "more than one node"),
            devices=beyond_one(count_devices(self.devices), "more than one device"),
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
    """Write the final model as a .nemo archive too."""
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
            save_nemo_on_train_end=self.save_nemo_on_train_end
            and later("writing .nemo is", "set it to false; the model is saved as a Hugging Face folder"),
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


# --- model ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedCheckpointConfig:
    """The model that is polished; it is the reference too."""

    restore_from_path: str | None = None
    """A Hugging Face folder or hub id. On the command line also `--model`."""

    def __post_init__(self) -> None:
        refuse(
            restore_from_path=(self.restore_from_path or "").rstrip("/").endswith(".nemo")
            and later("reading .nemo is", f"convert {self.restore_from_path!r} to a Hugging Face folder and name that"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoLossConfig:
    """The loss: preference_loss_weight × preference + sft_loss_weight × (− log-probability of the chosen answer)."""

    log_prob_forward_micro_batch_size: int = field(default=1, metadata=follow("${model.micro_batch_size}"))
    """Pairs per forward pass when the reference is scored without packing."""
    ref_policy_kl_penalty: float = 0.2
    """β of the DPO paper: how hard the policy is held to the reference. Rewards are multiplied by it."""
    preference_average_log_probs: bool = False
    """Average log-probabilities over an answer's tokens in the preference loss, instead of summing them."""
    sft_average_log_probs: bool = field(default=False, metadata=follow("${.preference_average_log_probs}"))
    """The same in the SFT loss."""
    gt_reward_scale: float = 1.0
    """Factor on the ground-truth rewards (RPO)."""
    preference_loss: PreferenceLoss = "dpo"
    """The loss on pairs."""
    preference_loss_weight: float = 1.0
    """Factor on the preference loss."""
    sft_loss_weight: float = 0.0
    """Factor on the negative log-probability of the chosen answer."""
    reference_cache: str = field(default="auto", metadata={"booleans": ("off", "auto")})
    """Where the reference's log-probabilities are kept between runs: auto (the user's cache), off, or a folder."""

    def __post_init__(self) -> None:
        nothing = self.preference_loss_weight == self.sft_loss_weight == 0
        refuse(
            log_prob_forward_micro_batch_size=below(1, self.log_prob_forward_micro_batch_size),
            ref_policy_kl_penalty=not_above(0, self.ref_policy_kl_penalty),
            gt_reward_scale=below(0, self.gt_reward_scale),
            preference_loss_weight=below(0, self.preference_loss_weight)
            or (nothing and "is 0 like sft_loss_weight, so that nothing is trained: raise one of them"),
            sft_loss_weight=below(0, self.sft_loss_weight),
            reference_cache=empty(self.reference_cache),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters. NeMo-Aligner has no alpha: the scaling is 1."""

    target_modules: tuple[str, ...] = field(default=("attention_qkv",), metadata=IDLE_LORA)
    """attention_qkv, attention_dense, mlp_fc1, mlp_fc2, attention, mlp, all, or names of the model's own modules."""
    adapter_dim: int = field(default=32, metadata=IDLE_LORA)
    """Rank."""
    adapter_dropout: float = field(default=0.0, metadata=IDLE_LORA)
    """Dropout in front of the adapters."""
    column_init_method: InitMethod = field(default="xavier", metadata=IDLE_LORA)
    """How the first matrix begins."""
    row_init_method: InitMethod = field(default="zero", metadata=IDLE_LORA)
    """How the second matrix begins."""
    layer_selection: tuple[int, ...] | None = field(default=None, metadata=IDLE_LORA)
    """Layers that get adapters, counted from 1; null is all."""
    weight_tying: bool = False
    """Share one adapter between layers: refused."""

    def __post_init__(self) -> None:
        refuse(
            adapter_dim=below(1, self.adapter_dim),
            adapter_dropout=bad_decay(self.adapter_dropout),
            layer_selection=min(self.layer_selection or (1,)) < 1 and "layers are counted from 1",
            weight_tying=self.weight_tying and "adapters are not tied here: set it to false, each layer has its own",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PeftConfig:
    """Whether all weights are trained, or adapters."""

    peft_scheme: Literal["none", "lora", "dora"] = "none"
    """none trains every weight."""
    restore_from_path: str | None = None
    """Adapter to start from; the reference then has it too."""
    lora_tuning: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        refuse(
            peft_scheme=self.peft_scheme != "none"
            and later(f"{self.peft_scheme} is", "set peft_scheme=none, which trains every weight"),
            restore_from_path=self.restore_from_path is not None
            and later("starting from an adapter is", "merge it into the model first"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedConfig:
    """Learning rate over the run; each name has NeMo's formula. Steps or a ratio of the whole run, not both."""

    name: ScheduleName = "CosineAnnealing"
    """Shape of the curve."""
    warmup_steps: int | None = 10
    """Optimizer steps of linear warm-up."""
    warmup_ratio: float | None = field(default=None, metadata={"replaces": "warmup_steps"})
    """Warm-up as a share of all steps."""
    constant_steps: int | None = 1000
    """Steps at the end that stay at min_lr; a run of fewer steps than this and the warm-up falls to min_lr at once."""
    constant_ratio: float | None = field(default=None, metadata={"replaces": "constant_steps"})
    """The constant end as a share of all steps."""
    hold_steps: int | None = None
    """Steps at the full rate after the warm-up, where the schedule has a hold."""
    hold_ratio: float | None = field(default=None, metadata={"replaces": "hold_steps"})
    """The hold as a share of all steps."""
    power: float = 1.0
    """Exponent of the polynomial decays."""
    d_model: int | None = None
    """Width of the model, in NoamAnnealing."""
    min_lr: float = 9e-7
    """Lowest learning rate after the warm-up."""
    max_steps: int | None = None
    """Steps that the curve spans; null is the length of the run."""

    def __post_init__(self) -> None:
        refuse(
            warmup_steps=bad_steps_or_ratio(self.warmup_steps, self.warmup_ratio),
            warmup_ratio=bad_ratio(self.warmup_ratio),
            constant_steps=bad_steps_or_ratio(self.constant_steps, self.constant_ratio),
            constant_ratio=bad_ratio(self.constant_ratio),
            hold_steps=bad_steps_or_ratio(self.hold_steps, self.hold_ratio),
            hold_ratio=bad_ratio(self.hold_ratio),
            power=not_above(0, self.power),
            d_model=below(1, self.d_model),
            min_lr=below(0, self.min_lr),
            max_steps=below(1, self.max_steps),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW. Biases and other parameters with one axis are not decayed."""

    name: OptimizerName = "distributed_fused_adam"
    """Any of NeMo's names for it."""
    lr: float = 9e-6
    """Highest learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    sched: SchedConfig = field(default_factory=SchedConfig)

    def __post_init__(self) -> None:
        refuse(
            lr=not_above(0, self.lr),
            weight_decay=below(0, self.weight_decay),
            betas=bad_decay(*self.betas),
            eps=not_above(0, self.eps),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPromptTokens:
    """The five tokens of NeMo-Aligner's chat format."""

    system_turn_start: str = "\x00"
    """Before the system message."""
    turn_start: str = "\x11"
    """Before every other turn."""
    label_start: str = "\x12"
    """Before a turn's label."""
    end_of_turn: str = "\n"
    """Behind every turn."""
    end_of_name: str = "\n"
    """Behind a speaker's name."""

    def __post_init__(self) -> None:
        fault = later("NeMo's chat format is", "leave it out; message lists go through the model's chat template")
        refuse(
            system_turn_start=self.system_turn_start != "\x00" and fault,
            turn_start=self.turn_start != "\x11" and fault,
            label_start=self.label_start != "\x12" and fault,
            end_of_turn=self.end_of_turn != "\n" and fault,
            end_of_name=self.end_of_name != "\n" and fault,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The preference data, and how rows become micro-batches."""

    data_prefix: DataFiles = field(default_factory=DataFiles)
    """{train: [...], validation: [...]}, a list (also [weight, path, …]) or a path. Also `--train`, `--validation`."""
    data_impl: Literal["jsonl", "packed_jsonl", "chunked_jsonl"] = "jsonl"
    """NeMo-Aligner's reader; here all read the same files, and packed_jsonl asks for packing, done on the fly."""
    splits_string: str | None = None
    """'980,10,10' divides data_prefix into train, validation and test when it names no splits."""
    format: str | None = None
    """Name of the row format; null recognises it."""
    seq_length: int | None = field(default=None, metadata=follow("${model.encoder_seq_length}"))
    """Most tokens of a prompt with its longer answer; null is the model's own limit, 4096 at most."""
    on_overlong: Literal["drop", "truncate", "error"] = "drop"
    """What to do with a row that is longer than seq_length."""
    packing: bool = True
    """Pack pairs without padding, each prompt once; false pads micro_batch_size pairs."""
    tokens_per_micro_batch: int | None = None
    """Token budget of a packed micro-batch; null derives it, `dpolish plan` prints it."""
    pad_length_to_multiple_of: int | None = field(default=None, metadata=IDLE_PADDING)
    """Multiple that padded lengths are rounded up to."""
    num_workers: int = field(default=0, metadata=IDLE_WORKERS)
    """Processes that prepare rows."""
    append_eod: bool = False
    """Append the end-of-sequence token to every answer that lacks it."""
    eod_mask_loss: bool = False
    """Leave end-of-sequence tokens out of the loss."""
    apply_ftfy: bool = False
    """Repair broken Unicode in rows."""
    default_chosen_reward: float = 1.0
    """Ground-truth reward of a chosen answer whose row has none (RPO)."""
    default_rejected_reward: float = 0.0
    """The same for a rejected answer."""
    chat_prompt_tokens: ChatPromptTokens = field(default_factory=ChatPromptTokens)

    def __post_init__(self) -> None:
        refuse(
            splits_string=bad_splits(self.splits_string),
            seq_length=below(2, self.seq_length),
            packing=self.data_impl == "packed_jsonl" and not self.packing and "contradicts data_impl=packed_jsonl",
            tokens_per_micro_batch=below(1, self.tokens_per_micro_batch),
            pad_length_to_multiple_of=below(1, self.pad_length_to_multiple_of),
            num_workers=below(0, self.num_workers),
            apply_ftfy=self.apply_ftfy and later("repairing text is", "set it to false and repair the files"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The batch, the loss, the optimizer, the data, and how the model is computed."""

    micro_batch_size: int = 1
    """Pairs per forward pass and device; with packing, a bound for the derived token budget."""
    global_batch_size: int = 64
    """Pairs per optimizer step."""
    seed: int = 1234
    """Seed of the row order and of whatever else is random."""
    encoder_seq_length: int | None = None
    """Feeds model.data.seq_length."""
    prefix_sharing: Literal["auto", "on", "off"] = field(default="auto", metadata={"booleans": ("off", "on")})
    """Compute a pair's prompt once for both answers; auto says so where a model cannot."""
    attention_backend: AttentionBackend = "auto"
    """Kernel: segments (SDPA, segment by segment), flex (FlexAttention), or dense (a full mask: slow)."""
    activations_checkpoint_granularity: Literal["selective", "full"] | None = None
    """Recompute activations in the backward pass to save memory; both names recompute whole layers."""
    activations_checkpoint_num_layers: int | None = None
    """Recompute this many layers only."""
    tensor_model_parallel_size: int = 1
    """Devices that share each weight matrix."""
    pipeline_model_parallel_size: int = 1
    """Devices that share the layers: always 1."""
    context_parallel_size: int = 1
    """Devices that share a sequence: always 1."""
    expert_model_parallel_size: int = 1
    """Devices that share the experts: always 1."""
    sequence_parallel: bool = False
    """Shard activations along the sequence between tensor-parallel devices."""
    hidden_dropout: float = 0.0
    """Always 0: with dropout, policy and reference would differ before the first step."""
    attention_dropout: float = 0.0
    """Always 0, likewise."""
    ffn_dropout: float = 0.0
    """Always 0, likewise."""
    seq_len_interpolation_factor: float | None = None
    """Stretch of rotary positions: always null."""
    override_vocab_size: int | None = None
    """Always null: the vocabulary is the model's."""
    dpo: DpoLossConfig = field(default_factory=DpoLossConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        no_dropout = "must be 0 in DPO: with dropout, policy and reference differ before the first step"
        pipeline = "layers are not spread over devices here: set it to 1; FSDP and tensor parallelism shard the model"
        refuse(
            micro_batch_size=below(1, self.micro_batch_size),
            global_batch_size=below(1, self.global_batch_size),
            seed=not 0 <= self.seed < 2**63 and f"must be 0 or more and below 2**63, got {self.seed}",
            encoder_seq_length=below(2, self.encoder_seq_length),
            activations_checkpoint_num_layers=self.activations_checkpoint_num_layers is not None
            and later("recomputing some layers only is", "set it to null, every layer is recomputed"),
            tensor_model_parallel_size=beyond_one(self.tensor_model_parallel_size, "tensor parallelism"),
            pipeline_model_parallel_size=self.pipeline_model_parallel_size != 1 and pipeline,
            context_parallel_size=beyond_one(self.context_parallel_size, "context parallelism"),
            expert_model_parallel_size=beyond_one(self.expert_model_parallel_size, "expert parallelism"),
            sequence_parallel=self.sequence_parallel and later("sequence parallelism is", "set it to false"),
            hidden_dropout=self.hidden_dropout != 0 and no_dropout,
            attention_dropout=self.attention_dropout != 0 and no_dropout,
            ffn_dropout=self.ffn_dropout != 0 and no_dropout,
            seq_len_interpolation_factor=self.seq_len_interpolation_factor is not None
            and "rotary scaling comes with the model: set it to null and edit rope_scaling in the model's config.json",
            override_vocab_size=self.override_vocab_size is not None and "the model has its own: set it to null",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig:
    """Everything that a DPO run can be told."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    pretrained_checkpoint: PretrainedCheckpointConfig = field(default_factory=PretrainedCheckpointConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
