"""What a plan is made of: sizes of the data, the machine, estimated memory, and the plan itself."""

from dataclasses import dataclass

from dpolish.layout import RankLayout
from dpolish.schedule import Schedule


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the plan needs to know of the rows that were kept."""

    rows: int
    tokens: int
    """Tokens of all rows, a shared prompt once."""
    padded_tokens: int
    """Tokens of all rows as padded sequences, two for a pair."""
    largest: int
    """Tokens of the largest row: prompt and all its answers."""
    alike: int = 0
    """How many of the tokens another prompt of the same batch begins with too; about."""

    @property
    def packed_tokens(self) -> int:
        """Tokens to compute in packed rows: what prompts begin with alike once."""
        return self.tokens - self.alike

    @property
    def scored_share(self) -> float:
        """About how many of the packed tokens are scored: the answers of pairs, and of demonstrations at most all.

        Two padded sequences hold a pair's prompt and its longer answer twice, so what they are short of twice the
        tokens are the answers, taken as equally long.
        """
        return min(max(2 * self.tokens - self.padded_tokens, 0) / max(self.packed_tokens, 1), 1.0)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run computes."""

    device: str
    """cpu, cuda or mps."""
    memory: int
    """Bytes that one rank may take."""
    num_nodes: int = 1
    devices: int = 1
    """Ranks on each node: those that the job really has."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes of one rank by component, at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """What FSDP gathers of other ranks' weights, and has of gradients before they are reduced."""
    activations: int
    head: int
    fragmentation: int
    """Holes in the heap that nothing fits into; of a CPU."""
    reserve: int
    """Left alone."""

    @property
    def model(self) -> int:
        """What the model takes, however few tokens there are."""
        return self.weights + self.gradients + self.optimizer + self.gathered

    @property
    def total(self) -> int:
        """All of it, the reserve included."""
        return self.model + self.activations + self.head + self.fragmentation + self.reserve


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The derived numbers of one run."""

    seed: int
    device: str
    precision: str
    """32 or bf16."""
    seq_length: int
    rows: int
    global_batch_size: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    val_interval: int
    """Validate every so many steps, and after the last."""
    validation_rows: int
    validation_batches: int
    """Global batches per validation; 0 validates never."""
    tokens_per_micro_batch: int | None
    """Budget of a packed micro-batch; None pads."""
    largest_micro_batch: int
    """Tokens of the largest micro-batch: the budget, or the largest row if that is beyond it."""
    schedule: Schedule
    layout: RankLayout
    memory: Memory
    available_memory: int
    """Bytes that one rank may take."""

    def evaluates_at(self, step: int) -> bool:
        """True when validation follows optimizer step `step` (from 1)."""
        if self.validation_batches == 0:
            return False
        return step % self.val_interval == 0 or step == self.total_steps

    def moved_by(self, step: int) -> bool:
        """True when one of the first `step` updates had a rate above 0: until then the policy is the reference."""
        return any(self.schedule.lr_at(earlier) > 0 for earlier in range(step))
