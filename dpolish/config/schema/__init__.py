"""The configuration trees as frozen values: NeMo-Aligner's names and defaults, and what each value may be.

    metadata    what a field may say about itself        names   the names that values may have
    run         trainer, exp_manager                     model   adapters, optimizer, how the model is computed
    data        chat format, rows into micro-batches     dpo, sft   the two trees

The docstring under a field is its help text; `keys` makes the table of all keys from these pages, and the reference in
the documentation. Values are made by `compose`, which follows interpolations and knows where a value was written; a
section that is built by hand is checked all the same. Where the trees differ in a default alone, they share the class
and the tree holds another instance of it. `ModelConfig`, `DataConfig` and `TrainerConfig` are what both trees have of
a section; what is built is always one of the trees' own.
"""

from collections.abc import Mapping

from dpolish.config.schema.data import ChatPromptTokens
from dpolish.config.schema.dpo import DpoConfig, DpoDataConfig, DpoLossConfig, DpoModelConfig, DpoTrainerConfig
from dpolish.config.schema.model import LoraConfig, ModelConfig, OptimConfig, PeftConfig, SchedConfig
from dpolish.config.schema.names import (
    CHAT_TEMPLATES,
    PAIRINGS,
    PREFERENCE_LOSSES,
    SCHEDULES,
    Accelerator,
    AttentionBackend,
    LossAverage,
    OnOverlong,
    OptimizerName,
    Pairing,
    Precision,
    TrainedTurns,
)
from dpolish.config.schema.run import CheckpointConfig, ExpManagerConfig, LoopConfig, TrainerConfig, WandbConfig
from dpolish.config.schema.sft import SftConfig, SftDataConfig, SftFilesConfig, SftModelConfig, SftTrainerConfig

RunConfig = DpoConfig | SftConfig
"""What a run is told, whatever it trains."""

ROOTS: Mapping[str, type[RunConfig]] = {"dpo": DpoConfig, "sft": SftConfig}
"""The trees, by verb."""

__all__ = [
    "CHAT_TEMPLATES",
    "PAIRINGS",
    "PREFERENCE_LOSSES",
    "ROOTS",
    "SCHEDULES",
    "Accelerator",
    "AttentionBackend",
    "ChatPromptTokens",
    "CheckpointConfig",
    "DpoConfig",
    "DpoDataConfig",
    "DpoLossConfig",
    "DpoModelConfig",
    "DpoTrainerConfig",
    "ExpManagerConfig",
    "LoopConfig",
    "LoraConfig",
    "LossAverage",
    "ModelConfig",
    "OnOverlong",
    "OptimConfig",
    "OptimizerName",
    "Pairing",
    "PeftConfig",
    "Precision",
    "RunConfig",
    "SchedConfig",
    "SftConfig",
    "SftDataConfig",
    "SftFilesConfig",
    "SftModelConfig",
    "SftTrainerConfig",
    "TrainedTurns",
    "TrainerConfig",
    "WandbConfig",
]
