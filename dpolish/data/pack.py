"""Pack examples into micro-batches, each prompt stored once.

    tokens      p p p p | c c c c c | r r r | p p | c c | r r r r
    branch      0 0 0 0 | 1 1 1 1 1 | 2 2 2 | 0 0 | 1 1 | 2 2 2 2
    positions   0 1 2 3 | 4 5 6 7 8 | 4 5 6 | 0 1 | 2 3 | 2 3 4 5

Invariants, held by the property tests in tests/data/test_pack.py:
  1. every example is in exactly one micro-batch, and every scored token appears exactly once;
  2. an example is never split: all its completions share a micro-batch;
  3. the result depends on the lengths alone, so every rank computes the same.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpolish.tensors import Completion, Example, Layout, PackedBatch, Span


@dataclass(frozen=True, slots=True)
class Packing:
    """How examples become micro-batches. Losses and gradients do not depend on it."""

    shared: bool
    """Compute each prompt once for all its completions; otherwise once per completion."""
    token_budget: int | None
    """Most tokens in one row without padding; an example beyond it goes alone.

    None pads instead, `micro_batch_size` examples a time.
    """
    micro_batch_size: int
    """Examples in one padded micro-batch."""
    multiple_of: int = 1
    """Rows are padded to a multiple of this many places."""

    def size(self, example: Example) -> int:
        """Tokens of one example in a packed row."""
        if self.shared:
            return example.num_tokens
        return sum(len(example.prompt) + len(completion.tokens) for completion in example.completions)

    def split(self, examples: Sequence[Example], at_least: int = 0) -> list[list[int]]:
        """Indices of `examples`, one list per micro-batch; `at_least` so many, if there are as many examples."""
        if self.token_budget is None:
            size = self.micro_batch_size
            if -(-len(examples) // size) < at_least:  # smaller ones then, as equal as can be
                parts = np.array_split(np.arange(len(examples)), min(at_least, len(examples)) or 1)
                return [part.tolist() for part in parts if len(part)]
            return [list(range(first, min(first + size, len(examples)))) for first in range(0, len(examples), size)]
        return fill([self.size(example) for example in examples], self.token_budget, at_least)

    def deal(self, examples: Sequence[Example], parts: int) -> list[list[list[int]]]:
        """Indices of `examples` by part (a data-parallel rank) and micro-batch: parts of equal tokens.

        A part may have fewer micro-batches than another: one that has few rows, or none.
        """
        dealt = even([self.size(example) for example in examples], parts)
        split = [self.split([examples[index] for index in part]) for part in dealt]
        passes = max((len(batches) for batches in split), default=0)
        split = [
            batches if len(batches) == passes else self.split([examples[index] for index in part], passes)
            for part, batches in zip(dealt, split, strict=True)
        ]
        return [[[part[i] for i in batch] for batch in batches] for part, batches in zip(dealt, split, strict=True)]


def even(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of `sizes` in `parts`, their sums as equal as dealing the largest first to the emptiest part makes them.

    The largest sum is at most 4/3 - 1/(3·parts) of the least possible (Graham 1969, SIAM J. Appl. Math. 17, theorem 2).

    >>> even([5, 3, 3, 2, 2, 1], 2)
    [[0, 3, 5], [1, 2, 4]]
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        load, part = heapq.heappop(loads)
        dealt[part].append(index)
        heapq.heappush(loads, (load + sizes[index], part))
    return [sorted(part) for part in dealt]


def fill(sizes: Sequence[int], budget: int, at_least: int = 0) -> list[list[int]]:
    """Indices of `sizes` in bins of at most `budget`, an oversized one alone: first-fit decreasing, then even.

    First-fit finds how many bins are needed; dealing the sizes, largest first, to the emptiest of that many bins (or of
    `at_least`) evens out time and memory. Where the even deal would overflow a bin, the first-fit one stands.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    first_fit: list[list[int]] = []
    loads: list[int] = []
    for index in order:
        place = next((i for i, load in enumerate(loads) if load + sizes[index] <= budget), len(loads))
        if place == len(loads):
            first_fit.append([])
            loads.append(0)
        first_fit[place].append(index)
        loads[place] += sizes[index]
    dealt = even(sizes, max(len(first_fit), min(at_least, len(sizes))))
    if all(len(members) == 1 or sum(sizes[i] for i in members) <= budget for members in dealt):
        return dealt
    while len(first_fit) < len(dealt):
        fullest = max(first_fit, key=len)
        first_fit.append([fullest.pop() for _ in range(len(fullest) // 2)])
    return [sorted(members) for members in first_fit]


def collate(
    examples: Sequence[Example], packing: Packing, reference: Sequence[Sequence[float]] | None = None
) -> PackedBatch:
    """One micro-batch of pairs (or of single completions).

    `reference[i][j]` is the log-probability of completion j of example i.
    """
    blocks = list(_blocks(examples, packing.shared))
    lengths = [len(block.tokens) for block in blocks]
    packed = packing.token_budget is not None
    width = sum(lengths) if packed else max(lengths)
    width += -width % packing.multiple_of
    rows = 1 if packed else len(blocks)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if packed else np.arange(rows) * width
    tokens = np.zeros(rows * width, dtype=np.int64)
    positions = np.zeros(rows * width, dtype=np.int64)
    for start, block in zip(starts, blocks, strict=True):
        place = slice(start, start + len(block.tokens))
        tokens[place], positions[place] = block.tokens, block.positions
    spans = tuple(Span(int(start), block.prompt, block.branches) for start, block in zip(starts, blocks, strict=True))
    completions = [completion for example in examples for completion in example.completions]
    count = [len(example.completions) for example in examples]
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    return PackedBatch(
        tokens=torch.from_numpy(tokens).view(rows, width),
        positions=torch.from_numpy(positions).view(rows, width),
        layout=Layout(rows, width, spans),
        score_at=torch.from_numpy(
            np.concatenate([start + block.score_at for start, block in zip(starts, blocks, strict=True)])
        ),
        targets=torch.from_numpy(np.concatenate([completion.scored for completion in completions]).astype(np.int64)),
        lengths=torch.tensor([len(completion.scored) for completion in completions]),
        chosen=torch.from_numpy(first),
        rejected=torch.from_numpy(first + np.asarray(count) - 1),
        reference=torch.tensor(
            [value for row in reference for value in row] if reference is not None else [0.0] * len(completions),
            dtype=torch.float32,
        ),
        rewards=torch.tensor([reward for example in examples for reward in example.rewards], dtype=torch.float32),
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """What one span holds; places are relative to its start."""

    tokens: np.ndarray
    positions: np.ndarray
    score_at: np.ndarray
    prompt: int
    branches: tuple[int, ...]


def _blocks(examples: Sequence[Example], shared: bool) -> Iterator[_Block]:
    for example in examples:
        if shared:
            yield _block(example, example.completions)
        else:
            for completion in example.completions:
                yield _block(example, (completion,))


def _block(example: Example, completions: tuple[Completion, ...]) -> _Block:
    prompt = len(example.prompt)
    branches = tuple(len(completion.tokens) for completion in completions)
    score_at = []
    begin = prompt
    for completion, length in zip(completions, branches, strict=True):
        # token j of a branch is predicted at the place before it; the branch's first token at the prompt's last place
        indices = completion.scored_at
        score_at.append(np.where(indices == 0, prompt - 1, begin + indices - 1))
        begin += length
    return _Block(
        tokens=np.concatenate([example.prompt, *(completion.tokens for completion in completions)]),
        positions=np.concatenate([np.arange(prompt), *(np.arange(prompt, prompt + length) for length in branches)]),
        score_at=np.concatenate(score_at),
        prompt=prompt,
        branches=branches,
    )
