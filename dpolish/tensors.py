"""The values that flow from tokens to metrics. Every one is frozen, and says its shapes.

Letters in shapes: B rows, W width of a row, T = B·W places, S scored tokens, C completions, P pairs, D hidden,
V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Completion:
    """What follows the prompt of an example: one of its answers."""

    tokens: TokenIds
    """(n,) token ids, n ≥ 1."""
    score_from: int
    """First scored index into `tokens`: later than 0 where this answer's own boundary lies behind the shared prompt."""
    unscored: tuple[int, ...] = ()
    """Indices behind it that are left out all the same: end-of-sequence tokens under `eod_mask_loss`."""

    @property
    def scored_at(self) -> npt.NDArray[np.int64]:
        """(m,) indices into `tokens` that the model is scored on, m ≥ 1."""
        indices = np.arange(self.score_from, len(self.tokens))
        return indices[~np.isin(indices, self.unscored)] if self.unscored else indices

    @property
    def scored(self) -> TokenIds:
        """(m,) the token ids that the model is scored on."""
        return self.tokens[self.scored_at]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and what may follow it: one completion in SFT, (chosen, rejected) in preference training."""

    prompt: TokenIds
    """(p,) token ids that all completions share; empty only where a completion's first token is not scored."""
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    """Ground-truth reward of each completion (RPO)."""

    def __post_init__(self) -> None:
        assert len(self.rewards) == len(self.completions) > 0
        for completion in self.completions:
            assert 0 <= completion.score_from < len(completion.tokens)
            assert len(completion.scored_at) > 0, "a completion scores at least one token"
            assert len(self.prompt) + completion.score_from > 0, "a scored token needs one before it"

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest completion: what a sequence length limits."""
        return len(self.prompt) + max(len(completion.tokens) for completion in self.completions)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes when the prompt is shared."""
        return len(self.prompt) + sum(len(completion.tokens) for completion in self.completions)

    @property
    def num_padded_tokens(self) -> int:
        """Tokens that two separate rows of equal width would take."""
        return len(self.completions) * self.longest


@dataclass(frozen=True, slots=True)
class Node:
    """Tokens in one piece that continue those of another node: a prompt, a part of prompts that begin alike, an answer.

    The way from a node without parent to this one is an ordinary sequence: an answer with its prompt.
    """

    start: int
    """Flat place of the first token, in 0 … T-1; a node never crosses a row."""
    length: int
    """Tokens, and places taken."""
    parent: int | None
    """Number of the node that it continues, which stands before it in the same row."""

    @property
    def end(self) -> int:
        """Flat place behind the last token."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """What may see what: a tree of nodes for every group of prompts that share something.

    A key is visible to a query when it is not behind it and on the way to it: in the query's node, or in one that this
    continues. Places of no node are padding.
    """

    rows: int
    width: int
    nodes: tuple[Node, ...]
    """In order of their places, depth first: behind a node comes all that continues it."""

    def __post_init__(self) -> None:
        end = 0
        way: list[int] = []
        for number, node in enumerate(self.nodes):
            while way and node.parent != way[-1]:
                way.pop()
            assert way or node.parent is None, "nodes lie depth first"
            way.append(number)
            assert node.start >= end, "nodes lie in order and do not overlap"
            assert node.length > 0
            end = node.end
            assert node.start // self.width == (end - 1) // self.width, "a node never crosses a row"
            if node.parent is not None:
                row = self.nodes[node.parent].start // self.width
                assert row == node.start // self.width, "a node lies in the row of what it continues"
        assert end <= self.rows * self.width

    def ways(self) -> list[tuple[int, ...]]:
        """For each node the numbers of the nodes on the way to it, itself the last."""
        ways: list[tuple[int, ...]] = []
        for number, node in enumerate(self.nodes):
            ways.append((number,) if node.parent is None else (*ways[node.parent], number))
        return ways


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch as the model computes it: T places, of which padding belongs to no node."""

    tokens: Tensor
    """int64 (B, W)."""
    positions: Tensor
    """int64 (B, W): every node continues from its parent's end."""
    layout: Layout
    score_at: Tensor
    """int64 (S,): flat place of the hidden state that predicts each scored token.

    A prompt's last place stands there once for each of its completions.
    """
    targets: Tensor
    """int64 (S,): the token that it must predict."""
    lengths: Tensor
    """int64 (C,): scored tokens of each completion; completions stand in order along S."""
    chosen: Tensor
    """int64 (P,): index into the C completions. Pairs go by index, so packing cannot break their alignment."""
    rejected: Tensor
    """int64 (P,): likewise."""
    reference: Tensor
    """float32 (C,): log-probability of each completion under the reference; zeros while it is being scored."""
    rewards: Tensor
    """float32 (C,): ground-truth rewards."""

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.chosen)

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding left out."""
        return sum(node.length for node in self.layout.nodes)

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return PackedBatch(layout=self.layout, **moved)


_TENSORS = ("tokens", "positions", "score_at", "targets", "lengths", "chosen", "rejected", "reference", "rewards")


@dataclass(frozen=True, slots=True)
class CompletionLogProbs:
    """log-probabilities of C completions, float32, with gradient where the model is trained."""

    sums: Tensor
    """(C,): log-probability of the whole completion, the sum over its scored tokens."""
    lengths: Tensor
    """(C,): scored tokens."""

    @property
    def averages(self) -> Tensor:
        """(C,): log-probability per scored token."""
        return self.sums / self.lengths


@dataclass(frozen=True, slots=True)
class PairLogProbs:
    """Log-probabilities of P pairs, each float32 (P,), summed or averaged over tokens.

    The `ref_` two carry no gradient.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    reward_gap: Tensor
    """(P,): ground-truth reward of the chosen answer less that of the rejected one (RPO)."""

    @property
    def margin(self) -> Tensor:
        """(P,): how much more than the reference the policy prefers the chosen answer."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Sums over pairs and the count of pairs: added over micro-batches (and ranks), divided once."""

    sums: Mapping[str, Tensor]
    """Name to a float64 scalar."""
    count: int

    @staticmethod
    def of(values: Mapping[str, Tensor], *, counted: bool = True) -> "StepMetrics":
        """From per-pair values, each (P,); zeros under the same names where they do not count."""
        if not counted:
            return StepMetrics(dict.fromkeys(values, torch.zeros((), dtype=torch.float64)), 0)
        count = len(next(iter(values.values())))
        return StepMetrics({name: value.detach().double().sum() for name, value in values.items()}, count)

    def __add__(self, other: "StepMetrics") -> "StepMetrics":
        names = self.sums.keys() | other.sums.keys()
        zero = torch.zeros((), dtype=torch.float64)
        sums = {name: self.sums.get(name, zero) + other.sums.get(name, zero) for name in names}
        return StepMetrics(sums, self.count + other.count)

    @staticmethod
    def zero() -> "StepMetrics":
        """Nothing counted yet."""
        return StepMetrics({}, 0)

    def means(self) -> dict[str, float]:
        """Each sum divided by the count, as Python floats: one device sync."""
        names = sorted(self.sums)
        totals = torch.stack([self.sums[name] for name in names]).tolist()
        return {name: total / self.count for name, total in zip(names, totals, strict=True)}
