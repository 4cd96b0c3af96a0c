"""What a run is made of, and how far it has come."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dpolish.data.loader import BatchGroup, Loader, Sources
from dpolish.losses.objective import Objective
from dpolish.model.logprobs import Policy
from dpolish.planning import RunPlan
from dpolish.records import StepRecord
from dpolish.training.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class TrainState:
    """A cursor: since a step is a function of its number, this is all that resuming needs besides tensors."""

    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Pairs (DPO) or demonstrations (SFT) trained on."""

    def after(self, group: BatchGroup) -> "TrainState":
        """The state once `group` has been trained on."""
        return replace(self, step=self.step + 1, consumed_samples=self.consumed_samples + group.num_examples)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the loop touches, constructed by `dpolish.assemble`."""

    plan: RunPlan
    policy: Policy
    data: Loader
    sources: Sources
    validation: Loader | None
    objective: Objective
    optimizer: Optimizer
    where: tuple[str, ...]
    """`path:line` of every training row, for messages."""
    emit: Callable[[StepRecord], None]
    """Hands a record to every sink."""
