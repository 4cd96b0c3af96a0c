"""Sections of `model` that every tree has: adapters, the optimizer, and how the model is computed."""

from dataclasses import dataclass, field
from typing import Literal

from dpolish.config.checks import (
    bad_decay,
    bad_ratio,
    bad_steps_or_ratio,
    below,
    later,
    not_above,
    refuse,
)
from dpolish.config.schema.metadata import IDLE_LORA
from dpolish.config.schema.names import AttentionBackend, InitMethod, OptimizerName, ScheduleName


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
class ModelConfig:
    """What `model` holds whatever is trained; each tree adds its batch, its loss and its data."""

    seed: int = 1234
    """Seed of the row order and of whatever else is random."""
    attention_backend: AttentionBackend = "auto"
    """Kernel: segments (SDPA, segment by segment), flex (FlexAttention), or dense (a full mask: slow)."""
    prefix_sharing: Literal["auto", "on", "off"] = field(default="auto", metadata={"booleans": ("off", "on")})
    """Compute a prompt once for all its answers, and once what the packed prompts of a micro-batch begin with alike;
    auto says so where a model cannot."""
    activations_checkpoint_granularity: Literal["selective", "full"] | None = None
    """Recompute activations in the backward pass to save memory; both names recompute whole layers."""
    activations_checkpoint_num_layers: int | None = None
    """Recompute this many layers only."""
    tensor_model_parallel_size: int = 1
    """Devices that split every weight matrix between them (tensor parallelism), and see the same rows."""
    pipeline_model_parallel_size: int = 1
    """Devices that share the layers: always 1."""
    context_parallel_size: int = 1
    """Devices that share every row, each with a part of its sequence, for rows whose activations fit on no one."""
    expert_model_parallel_size: int = 1
    """Devices that have experts of their own and send each other the tokens for them (mixtures of experts)."""
    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel devices; without them it does nothing."""
    fsdp_sharding_strategy: Literal["auto", "full", "hybrid", "replicate"] = "auto"
    """Which data-parallel devices hold one copy of the model together: all (full), those of a node (hybrid), each
    its own (replicate); auto decides by size and memory."""
    fsdp_cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory: slow, for models that fit no other way."""
    torch_compile: bool = False
    """Compile every decoder layer with torch.compile."""
    hidden_dropout: float = 0.0
    """Always 0: with dropout, DPO's policy and reference would differ before the first step; SFT has none yet."""
    attention_dropout: float = 0.0
    """Always 0, likewise."""
    ffn_dropout: float = 0.0
    """Always 0, likewise."""
    seq_len_interpolation_factor: float | None = None
    """Stretch of rotary positions: always null."""
    override_vocab_size: int | None = None
    """Always null: the vocabulary is the model's."""
    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def model_faults(model: ModelConfig, no_dropout: str) -> dict[str, bool | str]:
    """What is wrong with the fields that every `model` has, for `refuse`."""
    pipeline = "layers are not spread over devices here: set it to 1; FSDP and tensor parallelism shard the model"
    return {
        "seed": not 0 <= model.seed < 2**63 and f"must be 0 or more and below 2**63, got {model.seed}",
        "activations_checkpoint_num_layers": model.activations_checkpoint_num_layers is not None
        and later("recomputing some layers only is", "set it to null, every layer is recomputed"),
        "tensor_model_parallel_size": below(1, model.tensor_model_parallel_size),
        "pipeline_model_parallel_size": model.pipeline_model_parallel_size != 1 and pipeline,
        "context_parallel_size": below(1, model.context_parallel_size),
        "expert_model_parallel_size": below(1, model.expert_model_parallel_size),
        "hidden_dropout": model.hidden_dropout != 0 and no_dropout,
        "attention_dropout": model.attention_dropout != 0 and no_dropout,
        "ffn_dropout": model.ffn_dropout != 0 and no_dropout,
        "seq_len_interpolation_factor": model.seq_len_interpolation_factor is not None
        and "rotary scaling comes with the model: set it to null and edit rope_scaling in the model's config.json",
        "override_vocab_size": model.override_vocab_size is not None and "the model has its own: set it to null",
    }
