"""What the prompts of a micro-batch begin with alike: a tree, in which every token stands once. No torch here.

prompts     a b c d e     a b c d f g     a b c     x y
runs        a b c | d | e | f g | x y            each after the one that it continues, as a prefix tree (trie)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]

LEAST_SHARED = 8
"""Prompts that begin alike with fewer tokens stay apart: these are not worth another range of keys in attention."""


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of one or more prompts, which holds no place where two of them part."""

    parent: int | None
    """The run that it continues; None at a prompt's beginning."""
    tokens: TokenIds


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Prompts as ways through runs."""

    runs: tuple[Run, ...]
    """Depth first: behind a run comes all that continues it."""
    ends: tuple[int | None, ...]
    """For each prompt the run that it ends with; None for an empty one."""
    order: tuple[int, ...]
    """The prompts in the order of their ends."""

    @staticmethod
    def of(prompts: Sequence[TokenIds]) -> "PrefixTree":
        """Prompts that begin with the same LEAST_SHARED tokens or more share all that they begin with.

        >>> tree = PrefixTree.of([np.arange(12), np.arange(20), np.array([7, 7])])
        >>> [(run.parent, len(run.tokens)) for run in tree.runs], tree.ends
        ([(None, 12), (0, 8), (None, 2)], (0, 1, 2))
        """
        keys = [prompt.astype(">u4").tobytes() for prompt in prompts]  # whose order is that of the token ids
        order = sorted(range(len(prompts)), key=lambda index: (keys[index], index))
        ranked = [prompts[index] for index in order]
        return _grown(ranked, order, [0, *map(_alike, ranked, ranked[1:])])

    @staticmethod
    def separate(prompts: Sequence[TokenIds]) -> "PrefixTree":
        """Every prompt by itself, in the given order."""
        return _grown(prompts, range(len(prompts)), [0] * len(prompts))

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts, what is shared once."""
        return sum(len(run.tokens) for run in self.runs)

    def way(self, prompt: int) -> list[int]:
        """The runs of a prompt, from its beginning to its end."""
        way = []
        run = self.ends[prompt]
        while run is not None:
            way.append(run)
            run = self.runs[run].parent
        return way[::-1]


def tokens_alike(prompts: Sequence[TokenIds], batch_size: int) -> int:
    """How many tokens are saved where batches in the given order compute once what their prompts begin with alike."""
    batches = (prompts[first : first + batch_size] for first in range(0, len(prompts), batch_size))
    return sum(sum(map(len, batch)) - PrefixTree.of(batch).num_tokens for batch in batches)


def _alike(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two prompts begin with alike, if these are enough to be shared."""
    length = min(len(one), len(other))
    parted = np.flatnonzero(one[:length] != other[:length])
    alike = int(parted[0]) if len(parted) else length
    return alike if alike >= LEAST_SHARED else 0


def _grown(prompts: Sequence[TokenIds], names: Sequence[int], alike: Sequence[int]) -> PrefixTree:
    """The tree of prompts in lexicographic order, each called by its name; `alike` it begins as the one before it."""
    runs: list[Run] = []
    ends: list[int | None] = [None] * len(prompts)
    way: list[tuple[int, int]] = []  # (run, tokens up to its end) of the prompt in hand
    for rank, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        while way and way[-1][1] > alike[rank]:
            way.pop()
        for end in _cuts(alike, rank, len(prompt)):
            parent, begin = way[-1] if way else (None, 0)
            way.append((len(runs), end))
            runs.append(Run(parent, prompt[begin:end]))
        ends[name] = way[-1][0] if way else None
    return PrefixTree(tuple(runs), tuple(ends), tuple(names))


def _cuts(alike: Sequence[int], rank: int, length: int) -> list[int]:
    """Where the new part of a prompt is cut: where later prompts part from it, and at its end."""
    cuts = {length} if length > alike[rank] else set()
    low = length
    for later in range(rank + 1, len(alike)):
        low = min(low, alike[later])
        if low <= alike[rank]:
            break
        cuts.add(low)
    return sorted(cuts)
