"""The tree of DPO: `DpoConfig`, in NeMo-Aligner's names (gpt_dpo.yaml) and with its defaults."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dpolish.config.checks import bad_splits, below, empty, later, not_above, refuse
from dpolish.config.data_prefix import DataFiles
from dpolish.config.schema.data import DataConfig, data_faults
from dpolish.config.schema.metadata import IDLE_PADDING, follow
from dpolish.config.schema.model import ModelConfig, model_faults
from dpolish.config.schema.names import DPO_METRICS, Pairing, PreferenceLoss
from dpolish.config.schema.run import ExpManagerConfig, LoopConfig, TrainerConfig, unmeasured


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoTrainerConfig(TrainerConfig):
    """The machine that trains, its arithmetic, and the length of the run."""

    dpo: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedCheckpointConfig:
    """The model that is polished; it is the reference too."""

    restore_from_path: str | None = None
    """A Hugging Face folder, a hub id, or a .nemo archive or its folder. On the command line also `--model`."""

    def __post_init__(self) -> None:
        refuse(restore_from_path=empty(self.restore_from_path))


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
class DpoDataConfig(DataConfig):
    """The preference data, and how rows become micro-batches."""

    data_prefix: DataFiles = field(default_factory=DataFiles)
    """{train: [...], validation: [...]}, a list (also [weight, path, …]) or a path. Also `--train`, `--validation`."""
    data_impl: Literal["jsonl", "packed_jsonl", "chunked_jsonl"] = "jsonl"
    """NeMo-Aligner's reader; here all read the same files, and packed_jsonl asks for packing, done on the fly."""
    splits_string: str | None = None
    """'980,10,10' divides data_prefix into train, validation and test when it names no splits."""
    pairs: Pairing = "best_vs_worst"
    """Which pairs several answers to one prompt make: best_vs_rest, neighbours in rank (adjacent), or all."""
    seq_length: int | None = field(default=None, metadata=follow("${model.encoder_seq_length}"))
    """Most tokens of a prompt with its longer answer; null is the model's own limit, 4096 at most."""
    pad_length_to_multiple_of: int | None = field(default=None, metadata=IDLE_PADDING)
    """Multiple that padded lengths are rounded up to."""
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

    def __post_init__(self) -> None:
        refuse(
            **data_faults(self),
            splits_string=bad_splits(self.splits_string),
            seq_length=below(2, self.seq_length),
            packing=self.data_impl == "packed_jsonl" and not self.packing and "contradicts data_impl=packed_jsonl",
            pad_length_to_multiple_of=below(1, self.pad_length_to_multiple_of),
            apply_ftfy=self.apply_ftfy and later("repairing text is", "set it to false and repair the files"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoModelConfig(ModelConfig):
    """The batch, the loss, the optimizer, the data, and how the model is computed."""

    micro_batch_size: int = 1
    """Pairs per forward pass and device; with packing, a bound for the derived token budget."""
    global_batch_size: int = 64
    """Pairs per optimizer step."""
    encoder_seq_length: int | None = None
    """Feeds model.data.seq_length."""
    dpo: DpoLossConfig = field(default_factory=DpoLossConfig)
    data: DpoDataConfig = field(default_factory=DpoDataConfig)

    def __post_init__(self) -> None:
        no_dropout = "must be 0 in DPO: with dropout, policy and reference differ before the first step"
        refuse(
            **model_faults(self, no_dropout),
            micro_batch_size=below(1, self.micro_batch_size),
            global_batch_size=below(1, self.global_batch_size),
            encoder_seq_length=below(2, self.encoder_seq_length),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig:
    """Everything that a DPO run can be told."""

    verb: ClassVar[Literal["dpo"]] = "dpo"

    trainer: DpoTrainerConfig = field(default_factory=DpoTrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    pretrained_checkpoint: PretrainedCheckpointConfig = field(default_factory=PretrainedCheckpointConfig)
    model: DpoModelConfig = field(default_factory=DpoModelConfig)

    def __post_init__(self) -> None:
        monitor = self.exp_manager.checkpoint_callback_params.monitor
        refuse(**{"exp_manager.checkpoint_callback_params.monitor": unmeasured(monitor, DPO_METRICS, "DPO")})

    @property
    def loop(self) -> LoopConfig:
        """How long to train, how often to validate: `trainer.dpo`."""
        return self.trainer.dpo

    @property
    def restore_from_path(self) -> str | None:
        """The model to train: `pretrained_checkpoint.restore_from_path`."""
        return self.pretrained_checkpoint.restore_from_path

    @property
    def seq_length(self) -> int | None:
        """Most tokens of a row: `model.data.seq_length`."""
        return self.model.data.seq_length
