"""Pack examples into micro-batches, each prompt stored once, and once what prompts begin with alike.

    tokens      s s s s | p p | c c c | r r | q q q | c c | r r r | p p | c | r r
    node        0 0 0 0 | 1 1 | 2 2 2 | 3 3 | 4 4 4 | 5 5 | 6 6 6 | 7 7 | 8 | 9 9
    continues         - |   0 |     1 |   1 |     0 |   4 |     4 |   - | 7 |   7
    positions   0 1 2 3 | 4 5 | 6 7 8 | 6 7 | 4 5 6 | 7 8 | 7 8 9 | 0 1 | 2 | 2 3

Invariants, held by the property tests in tests/data/test_pack.py:
  1. every example is in exactly one micro-batch, and every scored token appears exactly once;
  2. an example is never split: all its completions share a micro-batch;
  3. the result depends on the token ids alone, so every rank computes the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dpolish.data.prefixes import PrefixTree
from dpolish.tensors import Completion, Example, Layout, Node, PackedBatch, TokenIds


@dataclass(frozen=True, slots=True)
class Packing:
    """How examples become micro-batches. Losses and gradients do not depend on it."""

    shared: bool
    """Compute each prompt once for all its completions, and once what prompts in one row without padding begin with
    alike; otherwise once per completion."""
    token_budget: int | None
    """Most tokens in one row without padding; an example beyond it goes alone.

    None pads instead, `micro_batch_size` examples a time.
    """
    micro_batch_size: int
    """Examples in one padded micro-batch."""
    multiple_of: int = 1
    """Rows are padded to a multiple of this many places."""

    def size(self, example: Example) -> int:
        """Tokens of one example by itself."""
        if self.shared:
            return example.num_tokens
        return sum(len(example.prompt) + len(completion.tokens) for completion in example.completions)

    def tokens(self, examples: Sequence[Example]) -> int:
        """Tokens of a micro-batch of these examples, padding left out."""
        return self._sizes(examples).together(range(len(examples)))

    def split(self, examples: Sequence[Example], at_least: int = 0) -> list[list[int]]:
        """Indices of `examples`, one list per micro-batch; `at_least` so many, if there are as many examples."""
        if self.token_budget is None:
            size = self.micro_batch_size
            if -(-len(examples) // size) < at_least:  # smaller ones then, as equal as can be
                parts = np.array_split(np.arange(len(examples)), min(at_least, len(examples)) or 1)
                return [part.tolist() for part in parts if len(part)]
            return [list(range(first, min(first + size, len(examples)))) for first in range(0, len(examples), size)]
        return fill(self._sizes(examples), self.token_budget, at_least)

    def deal(self, examples: Sequence[Example], parts: int) -> list[list[list[int]]]:
        """Indices of `examples` by part (a data-parallel rank) and micro-batch: parts of equal tokens.

        A part may have fewer micro-batches than another: one that has few rows, or none.
        """
        sizes = self._sizes(examples)
        deals = [self._split_deal(examples, even(sizes, parts))]
        if any(sizes.common):  # a rank with several micro-batches computes in each what it was thought to compute once
            deals.append(self._split_deal(examples, even(Sizes.of(sizes.alone), parts)))
        return min(deals, key=lambda deal: max(sum(map(sizes.together, part)) for part in deal))

    def _split_deal(self, examples: Sequence[Example], dealt: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """The micro-batches of every part, as many as of the others."""
        split = [self.split([examples[index] for index in part]) for part in dealt]
        passes = max((len(batches) for batches in split), default=0)
        split = [
            batches if len(batches) == passes else self.split([examples[index] for index in part], passes)
            for part, batches in zip(dealt, split, strict=True)
        ]
        return [[[part[i] for i in batch] for batch in batches] for part, batches in zip(dealt, split, strict=True)]

    def tree(self, prompts: Sequence[TokenIds]) -> PrefixTree:
        """How the prompts of one micro-batch lie."""
        shares = self.shared and self.token_budget is not None
        return PrefixTree.of(prompts) if shares else PrefixTree.separate(prompts)

    def _sizes(self, examples: Sequence[Example]) -> "Sizes":
        tree = self.tree([example.prompt for example in examples])
        return Sizes.of([self.size(example) for example in examples], tree)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of examples, some of which count once for all that lie together."""

    alone: tuple[int, ...]
    """Tokens of each example by itself."""
    common: tuple[list[int], ...]
    """For each example the runs that it shares with others."""
    runs: npt.NDArray[np.int64]
    """Tokens of every run that is shared."""
    own: tuple[int, ...]
    """For each example the tokens that it shares with no other."""
    order: tuple[int, ...]
    """The examples in such an order that those with much in common stand together."""

    @staticmethod
    def of(alone: Sequence[int], tree: PrefixTree | None = None) -> "Sizes":
        """From the tokens of each example by itself, and what their prompts have in common."""
        if tree is None:
            none: tuple[list[int], ...] = tuple([] for _ in alone)
            return Sizes(tuple(alone), none, np.zeros(0, dtype=np.int64), tuple(alone), tuple(range(len(alone))))
        ways = [tree.way(prompt) for prompt in range(len(alone))]
        uses = Counter(run for way in ways for run in way)
        shared = [run for run, count in uses.items() if count > 1]
        numbers = {run: number for number, run in enumerate(shared)}
        runs = np.array([len(tree.runs[run].tokens) for run in shared], dtype=np.int64)
        common = tuple([numbers[run] for run in way if run in numbers] for way in ways)
        own = (size - int(runs[way].sum()) for size, way in zip(alone, common, strict=True))
        return Sizes(tuple(alone), common, runs, tuple(own), tree.order)

    @property
    def by_size(self) -> list[int]:
        """Examples, those that are largest by themselves first."""
        return sorted(range(len(self.alone)), key=lambda index: (-self.alone[index], index))

    def together(self, members: Sequence[int]) -> int:
        """Tokens of some examples in one place."""
        runs = {run for index in members for run in self.common[index]}
        return sum(self.own[index] for index in members) + int(self.runs[list(runs)].sum())


class _Bins:
    """Bins that are being filled."""

    def __init__(self, sizes: Sizes, most: int) -> None:
        self._sizes = sizes
        self._held = np.zeros((most, len(sizes.runs)), dtype=bool)
        self._loads = np.zeros(most, dtype=np.int64)
        self.members: list[list[int]] = [[] for _ in range(most)]

    def loads_with(self, index: int, bins: int) -> npt.NDArray[np.int64]:
        """What each of the first `bins` would hold with this example in it."""
        common = self._sizes.common[index]
        loads: npt.NDArray[np.int64] = self._loads[:bins] + self._sizes.own[index]
        if common:
            loads += np.where(self._held[:bins, common], 0, self._sizes.runs[common]).sum(axis=1)
        return loads

    def add(self, index: int, to: int, load: int) -> None:
        """Put an example into a bin, which then holds `load`."""
        self.members[to].append(index)
        self._loads[to] = load
        self._held[to, self._sizes.common[index]] = True


EVEN_MAY_TAKE = 1.05
"""Times the tokens of the bins that hold fewest: evenly dealt, rows that share a prompt lie apart more often."""


def even(sizes: Sizes, parts: int) -> list[list[int]]:
    """Examples in `parts`, whose tokens are as equal as dealing the largest first to where it adds up to least does.

    Where nothing is shared the largest sum is at most 4/3 - 1/(3·parts) of the least possible (Graham 1969, SIAM J.
    Appl. Math. 17, theorem 2).

    >>> even(Sizes.of([5, 3, 3, 2, 2, 1]), 2)
    [[0, 3, 5], [1, 2, 4]]
    """
    bins = _Bins(sizes, parts)
    for index in sizes.by_size:
        loads = bins.loads_with(index, parts)
        least = int(loads.argmin())
        bins.add(index, least, int(loads[least]))
    return [sorted(members) for members in bins.members]


def fill(sizes: Sizes, budget: int, at_least: int = 0) -> list[list[int]]:
    """Examples in bins of at most `budget` tokens, an oversized one alone: in few bins with few tokens, then even.

    The bins are those of first-fit decreasing, or where these hold more tokens, those that are filled one after the
    other with what begins alike. Dealing the examples evenly to that many (or to `at_least`) evens out time and memory;
    where that would overflow a bin, or keep apart too much that is shared, the others stand.
    """
    count = len(sizes.alone)

    def tokens(bins: Sequence[Sequence[int]]) -> int:
        return sum(map(sizes.together, bins))

    packed = min((_first_fit(sizes, budget), _next_fit(sizes, budget)), key=lambda bins: (tokens(bins), len(bins)))
    dealt = even(sizes, max(len(packed), min(at_least, count)))
    fits = all(len(members) == 1 or sizes.together(members) <= budget for members in dealt)
    if fits and tokens(dealt) <= EVEN_MAY_TAKE * tokens(packed):
        return dealt
    while len(packed) < len(dealt):
        fullest = max(packed, key=len)
        packed.append([fullest.pop() for _ in range(len(fullest) // 2)])
    return [sorted(members) for members in packed]


def _first_fit(sizes: Sizes, budget: int) -> list[list[int]]:
    """Decreasing: each example in the first bin that has room for what it adds."""
    bins = _Bins(sizes, len(sizes.alone))
    opened = 0
    for index in sizes.by_size:
        loads = bins.loads_with(index, opened + 1)
        fitting = loads[:opened] <= budget
        place = int(fitting.argmax()) if fitting.any() else opened
        opened = max(opened, place + 1)
        bins.add(index, place, int(loads[place]))
    return bins.members[:opened]


def _next_fit(sizes: Sizes, budget: int) -> list[list[int]]:
    """One bin after the other, with examples that have much in common one after the other."""
    bins: list[list[int]] = []
    held: set[int] = set()
    load = 0
    for index in sizes.order:
        added = sizes.own[index] + sum(int(sizes.runs[run]) for run in sizes.common[index] if run not in held)
        if not bins or load + added > budget:
            bins.append([])
            held, load, added = set(), 0, sizes.alone[index]
        bins[-1].append(index)
        held.update(sizes.common[index])
        load += added
    return bins


def collate(
    examples: Sequence[Example], packing: Packing, reference: Sequence[Sequence[float]] | None = None
) -> PackedBatch:
    """One micro-batch of pairs (or of single completions).

    `reference[i][j]` is the log-probability of completion j of example i.
    """
    sequences = [
        (example.prompt, answers)
        for example in examples
        for answers in ([example.completions] if packing.shared else [(one,) for one in example.completions])
    ]
    tree = packing.tree([prompt for prompt, _ in sequences])
    lengths = [(len(prompt), sum(len(one.tokens) for one in answers)) for prompt, answers in sequences]
    packed = packing.token_budget is not None
    width = tree.num_tokens + sum(length for _, length in lengths) if packed else max(map(sum, lengths))
    width += -width % packing.multiple_of
    places = _Places(1 if packed else len(sequences), width)
    nodes: dict[int, int] = {}  # run of the tree → its node
    score_at: list[list[npt.NDArray[np.int64]]] = [[] for _ in sequences]
    for row, number in enumerate(tree.order):
        if not packed:
            places.at = row * width
        parent = None
        for run in tree.way(number):
            if run not in nodes:
                nodes[run] = places.add(tree.runs[run].tokens, parent)
            parent = nodes[run]
        score_at[number] = [places.add_completion(one, parent) for one in sequences[number][1]]
    completions = [completion for example in examples for completion in example.completions]
    count = [len(example.completions) for example in examples]
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    return PackedBatch(
        tokens=torch.from_numpy(places.tokens),
        positions=torch.from_numpy(places.positions),
        layout=Layout(places.tokens.shape[0], width, tuple(places.nodes)),
        score_at=torch.from_numpy(np.concatenate([at for answers in score_at for at in answers])),
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


class _Places:
    """The places of a micro-batch, being filled."""

    def __init__(self, rows: int, width: int) -> None:
        self.tokens, self.positions = np.zeros((2, rows, width), dtype=np.int64)
        self.nodes: list[Node] = []
        self._depths: list[int] = []  # the position behind each node
        self.at = 0

    def add(self, tokens: TokenIds, parent: int | None) -> int:
        """The number of a new node at the next places."""
        node = Node(self.at, len(tokens), parent)
        begin = 0 if parent is None else self._depths[parent]
        self.tokens.reshape(-1)[node.start : node.end] = tokens
        self.positions.reshape(-1)[node.start : node.end] = np.arange(begin, begin + node.length)
        self.nodes.append(node)
        self._depths.append(begin + node.length)
        self.at = node.end
        return len(self.nodes) - 1

    def add_completion(self, completion: Completion, parent: int | None) -> npt.NDArray[np.int64]:
        """The places that its scored tokens are predicted at: the one before each, for the first the prompt's last."""
        node = self.nodes[self.add(completion.tokens, parent)]
        before = -1 if parent is None else self.nodes[parent].end - 1
        indices = completion.scored_at
        return np.where(indices == 0, before, node.start + indices - 1)
