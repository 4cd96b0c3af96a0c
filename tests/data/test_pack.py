"""The invariants of the module's docstring, and batches against an obvious re-statement, token by token."""

from collections.abc import Iterator
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given

from dpolish.data import prefixes
from dpolish.data.pack import Packing, Sizes, collate, even, fill
from dpolish.data.prefixes import PrefixTree
from dpolish.tensors import Completion, Example, Layout, Node, TokenIds

sizes_lists = st.lists(st.integers(1, 30), max_size=40)


@pytest.fixture(scope="module", autouse=True)
def _two_tokens_are_enough_to_be_shared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "LEAST_SHARED", 2)
        yield


@st.composite
def examples(draw: st.DrawFn, max_completions: int = 3) -> Example:
    """A few tokens each: no prompt, prompts alike, one-token answers, late boundaries, tokens that are not scored."""
    prompt = draw(st.sampled_from([(), (7, 7), (7, 7, 7, 8)])) + tuple(draw(st.lists(st.integers(7, 9), max_size=4)))
    completions = []
    for _ in range(draw(st.integers(1, max_completions))):
        tokens = draw(st.lists(st.integers(0, 99), min_size=1 if prompt else 2, max_size=6))
        start = draw(st.integers(0 if prompt else 1, len(tokens) - 1))
        behind = draw(st.sets(st.integers(start, len(tokens) - 1), max_size=len(tokens) - start - 1))
        completions.append(Completion(np.array(tokens, dtype=np.int32), start, tuple(sorted(behind))))
    rewards = draw(st.lists(st.floats(-9, 9, width=32), min_size=len(completions), max_size=len(completions)))
    return Example(np.array(prompt, dtype=np.int32), tuple(completions), tuple(rewards))


def packings(shared: bool | None = None) -> st.SearchStrategy[Packing]:
    return st.builds(
        Packing,
        shared=st.booleans() if shared is None else st.just(shared),
        token_budget=st.none() | st.integers(1, 60),
        micro_batch_size=st.integers(1, 4),
        multiple_of=st.sampled_from([1, 8]),
    )


# --- what prompts have in common --------------------------------------------------------------------------------------

prompts = st.lists(
    st.builds(lambda ids: np.array(ids, dtype=np.int32), st.lists(st.integers(0, 1), max_size=9)), max_size=9
)


@given(prompts)
def test_the_ways_of_a_tree_are_the_prompts_and_what_is_shared_stands_once(members: list[TokenIds]) -> None:
    tree = PrefixTree.of(members)
    for number, prompt in enumerate(members):
        assert [int(token) for run in tree.way(number) for token in tree.runs[run].tokens] == prompt.tolist()
    assert sum(len(run.tokens) for run in tree.runs) == distinct(members)
    assert sorted(tree.order) == list(range(len(members)))
    assert all(run.parent is None or run.parent < number for number, run in enumerate(tree.runs))


@given(prompts, st.data())
def test_a_part_of_the_prompts_takes_what_the_whole_tree_says(members: list[TokenIds], data: st.DataObject) -> None:
    """So bins that are filled by one tree of a whole batch hold what micro-batches with a tree each will hold."""
    part = data.draw(st.lists(st.sampled_from(range(len(members))), unique=True)) if members else []
    sizes = Sizes.of([len(prompt) for prompt in members], PrefixTree.of(members))
    assert sizes.together(part) == distinct([members[index] for index in part])


def distinct(members: list[TokenIds]) -> int:
    """Prompts' beginnings, each counted once where the first two tokens are shared."""
    beginnings: set[object] = set()
    for number, prompt in enumerate(map(tuple, members)):
        beginnings |= {(prompt[:2] if len(prompt) >= 2 else number, prompt[:end]) for end in range(1, len(prompt) + 1)}
    return len(beginnings)


def test_token_ids_above_a_byte_and_long_prompts_sort_as_numbers() -> None:
    members = [np.array([255, 70_000, *range(50)]), np.array([255, 70_000, *range(49)]), np.array([256, 1])]
    tree = PrefixTree.of([prompt.astype(np.int32) for prompt in members])
    assert [len(run.tokens) for run in tree.runs] == [51, 1, 2]
    assert tree.order == (1, 0, 2)


# --- which examples lie together --------------------------------------------------------------------------------------


@given(sizes_lists, st.integers(1, 40))
@example([3, 3, 2, 2, 2], 6)  # dealt evenly one of two bins would hold 7
@example([100, 3, 3, 2, 2, 2], 6)  # nor does an oversized one allow that
@example([7, 3, 3, 2, 2, 2], 6)
def test_bins_hold_every_index_once_within_the_budget(sizes: list[int], budget: int) -> None:
    bins = fill(Sizes.of(sizes), budget)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    for members in bins:
        assert sum(sizes[index] for index in members) <= budget or len(members) == 1


@given(sizes_lists, st.integers(1, 40))
def test_bins_are_few(sizes: list[int], budget: int) -> None:
    """At most 11/9 of the fewest possible and one more, as first-fit decreasing guarantees; best-fit gives no fewer."""
    small = [size for size in sizes if size <= budget]
    oversized = len(sizes) - len(small)
    assert len(fill(Sizes.of(sizes), budget)) - oversized <= 11 / 9 * _best_fit(small, budget) + 1


def _best_fit(sizes: list[int], budget: int) -> int:
    loads: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [load for load in loads if load + size <= budget]
        if fitting:
            loads[loads.index(max(fitting))] += size
        else:
            loads.append(size)
    return len(loads)


def test_bins_are_even() -> None:
    """First-fit alone would give 10 and 2."""
    loads = [sum([5, 5, 1, 1][index] for index in members) for members in fill(Sizes.of([5, 5, 1, 1]), 11)]
    assert loads == [6, 6]


def test_what_shares_a_long_prompt_lies_together() -> None:
    """Evenly dealt, each of two bins would hold both prompts."""
    first, second = (np.full(30, token, dtype=np.int32) for token in (1, 2))
    prompts = [first, second] * 4
    assert Sizes.of([35] * 8, PrefixTree.of(prompts)).together(range(8)) == 2 * 30 + 8 * 5
    assert fill(Sizes.of([35] * 8, PrefixTree.of(prompts)), 60) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_ranks_compute_a_prompt_more_than_once_where_that_ends_sooner() -> None:
    prompts = [np.full(30, 1, dtype=np.int32)] * 4
    assert even(Sizes.of([35] * 4, PrefixTree.of(prompts)), 2) == [[0, 2], [1, 3]]


def test_what_has_much_in_common_is_packed_together_whatever_its_size() -> None:
    """Sixteen prompts of four rows each, which differ in size: by size alone, bins would hold several in part."""
    prompts = [np.full(100 + row % 16, row % 16, dtype=np.int32) for row in range(64)]
    sizes = Sizes.of([len(prompt) + 5 + 37 * row % 61 for row, prompt in enumerate(prompts)], PrefixTree.of(prompts))
    tokens = sum(map(sizes.together, fill(sizes, 1024)))
    assert tokens < 1.1 * sizes.together(range(64)), "first-fit decreasing takes 1.7 times as many"


def test_a_deal_counts_what_ranks_really_compute() -> None:
    """A long prompt is computed in each micro-batch of a rank: as if once, the deal would leave one with 284 tokens."""
    long = [_pair(60, 5, length) for length in (7, 2, 14, 2)]
    short = [_pair(1, length, 10) for length in (57, 59, 57, 52)]
    packing, members = Packing(shared=True, token_budget=90, micro_batch_size=1), [*long, *short]
    loads = [
        sum(packing.tokens([members[index] for index in batch]) for batch in part) for part in packing.deal(members, 2)
    ]
    assert max(loads) == 217


@given(st.lists(examples(), min_size=1, max_size=12), packings())
def test_a_split_keeps_examples_whole_and_within_the_budget(members: list[Example], packing: Packing) -> None:
    parts = packing.split(members)
    assert sorted(index for part in parts for index in part) == list(range(len(members)))
    for part in parts:
        batch = collate([members[index] for index in part], packing)
        assert batch.num_tokens == packing.tokens([members[index] for index in part])
        if packing.token_budget is None:
            assert len(part) <= packing.micro_batch_size
        else:
            assert batch.num_tokens <= packing.token_budget or len(part) == 1


@given(st.lists(examples(), min_size=1, max_size=12), packings())
def test_a_split_does_not_depend_on_answers_but_on_their_lengths(members: list[Example], packing: Packing) -> None:
    renamed = [replace(one, completions=tuple(map(_renamed, one.completions))) for one in members]
    assert packing.split(renamed) == packing.split(members)


def _renamed(completion: Completion) -> Completion:
    return replace(completion, tokens=completion.tokens[::-1].copy())


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60), st.integers(0, 45))
def test_more_bins_than_needed_can_be_asked_for(sizes: list[int], budget: int, at_least: int) -> None:
    bins = fill(Sizes.of(sizes), budget, at_least)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    assert all(len(members) == 1 or sum(sizes[i] for i in members) <= budget for members in bins)
    needed = len(fill(Sizes.of(sizes), budget))
    assert len(bins) == max(needed, min(at_least, len(sizes)))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_parts_differ_by_no_more_than_the_largest(sizes: list[int], parts: int) -> None:
    dealt = even(Sizes.of(sizes), parts)
    assert sorted(index for members in dealt for index in members) == list(range(len(sizes)))
    heaviest = max(sum(sizes[i] for i in members) for members in dealt)
    lightest = min(sum(sizes[i] for i in members) for members in dealt)
    assert heaviest - lightest <= max(sizes, default=0), "the last one dealt went to the emptiest part"


@given(st.lists(examples(), max_size=25), st.integers(1, 8), packings())
def test_a_deal_gives_every_example_once_and_no_rank_more_passes_than_another(
    members: list[Example], parts: int, packing: Packing
) -> None:
    count = len(members)
    dealt = packing.deal(members, parts)
    assert len(dealt) == parts
    assert sum(1 for part in dealt if part) == min(parts, count), "no rank is idle for another's sake"
    assert sorted(i for part in dealt for batch in part for i in batch) == list(range(count))
    passes = max(len(part) for part in dealt)
    for part in dealt:
        rows = sum(len(batch) for batch in part)
        assert all(part), "no empty micro-batch"
        assert len(part) == min(passes, rows), "as many as the others, unless it has fewer rows"
        for batch in part:
            if packing.token_budget is None:
                assert len(batch) <= packing.micro_batch_size
            else:
                assert len(batch) == 1 or packing.tokens([members[i] for i in batch]) <= packing.token_budget


def test_padded_batches_take_the_examples_in_order() -> None:
    packing = Packing(shared=True, token_budget=None, micro_batch_size=2)
    assert packing.split([_pair(3)] * 5) == [[0, 1], [2, 3], [4]]


# --- what a batch holds -----------------------------------------------------------------------------------------------


@given(st.lists(examples(), min_size=1, max_size=5), packings())
def test_every_scored_token_is_predicted_once_from_all_that_stands_before_it(
    members: list[Example], packing: Packing
) -> None:
    """Wherever things lie: the place that predicts a token sees its prompt and answer up to it, and nothing else."""
    batch = collate(members, packing)
    tokens, positions = batch.tokens.flatten(), batch.positions.flatten()
    ways = seen_by(batch.layout)
    scored = iter(zip(batch.score_at.tolist(), batch.targets.tolist(), strict=True))
    for member in members:
        for completion in member.completions:
            sequence = [*member.prompt.tolist(), *completion.tokens.tolist()]
            for index in range(completion.score_from, len(completion.tokens)):
                if index not in completion.unscored:
                    place, target = next(scored)
                    before = len(member.prompt) + index
                    assert tokens[ways[place]].tolist() == sequence[:before]
                    assert positions[ways[place]].tolist() == list(range(before))
                    assert target == sequence[before]
    assert next(scored, None) is None


def seen_by(layout: Layout) -> dict[int, list[int]]:
    """Place → the places on the way to it, itself the last."""
    ends: list[list[int]] = []
    seen = {}
    for node in layout.nodes:
        way = [] if node.parent is None else ends[node.parent]
        for place in range(node.start, node.end):
            way = seen[place] = [*way, place]
        ends.append(way)
    return seen


@given(st.lists(examples(), min_size=1, max_size=5), packings())
def test_a_batch_is_as_large_as_what_it_holds(members: list[Example], packing: Packing) -> None:
    batch = collate(members, packing)
    completions = [completion for member in members for completion in member.completions]
    assert batch.lengths.tolist() == [len(completion.scored) for completion in completions]
    assert batch.rewards.tolist() == [reward for member in members for reward in member.rewards]
    alone = [packing.size(member) for member in members]
    if packing.shared and packing.token_budget is not None:
        answers = sum(len(completion.tokens) for completion in completions)
        assert batch.num_tokens == distinct([member.prompt for member in members]) + answers
    else:
        assert batch.num_tokens == sum(alone)
    assert batch.layout.width % packing.multiple_of == 0
    taken = torch.zeros(batch.tokens.numel(), dtype=torch.bool)
    for node in batch.layout.nodes:
        taken[node.start : node.end] = True
    assert not batch.tokens.flatten()[~taken].any()
    assert not batch.positions.flatten()[~taken].any()


@given(st.lists(examples(), min_size=1, max_size=5), packings())
def test_rows_lie_where_they_should(members: list[Example], packing: Packing) -> None:
    """One row without holes, padded at its end; or a row for each sequence, from its beginning on."""
    layout = collate(members, packing).layout
    if packing.token_budget is not None:
        assert layout.rows == 1
        ends = [0, *(node.end for node in layout.nodes)]
        assert [node.start for node in layout.nodes] == ends[:-1]
        assert layout.width - ends[-1] < packing.multiple_of
        return
    sequences = len(members) if packing.shared else sum(len(member.completions) for member in members)
    assert layout.rows == sequences
    rows = [[node for node in layout.nodes if node.start // layout.width == row] for row in range(layout.rows)]
    for row, nodes in enumerate(rows):
        assert [node.start for node in nodes] == [row * layout.width, *(node.end for node in nodes[:-1])]
    assert layout.width - max(sum(node.length for node in nodes) for nodes in rows) < packing.multiple_of


@given(st.lists(examples(), min_size=1, max_size=4), packings(shared=True))
def test_pairs_go_by_index(members: list[Example], packing: Packing) -> None:
    reference = [[float(10 * i + j) for j in range(len(one.completions))] for i, one in enumerate(members)]
    batch = collate(members, packing, reference)
    assert batch.num_pairs == len(members)
    assert batch.reference[batch.chosen].tolist() == [row[0] for row in reference]
    assert batch.reference[batch.rejected].tolist() == [row[-1] for row in reference]
    assert batch.reference.dtype == torch.float32


# --- by hand ----------------------------------------------------------------------------------------------------------


def _pair(prompt: int, chosen: int = 2, rejected: int = 3) -> Example:
    parts = [
        np.arange(begin, begin + length, dtype=np.int32)
        for begin, length in ((10, prompt), (20, chosen), (30, rejected))
    ]
    return Example(parts[0], (Completion(parts[1], 0), Completion(parts[2], 0)), (1.0, 0.0))


@pytest.mark.parametrize(
    ("shared", "tokens", "positions", "score_at"),
    [
        (True, [10, 11, 20, 21, 30, 31, 32], [0, 1, 2, 3, 2, 3, 4], [1, 2, 1, 4, 5]),
        (False, [10, 11, 20, 21, 10, 11, 30, 31, 32], [0, 1, 2, 3, 0, 1, 2, 3, 4], [1, 2, 5, 6, 7]),
    ],
)
def test_a_pair_by_hand(shared: bool, tokens: list[int], positions: list[int], score_at: list[int]) -> None:
    batch = collate([_pair(2)], Packing(shared, token_budget=99, micro_batch_size=1))
    assert batch.tokens.tolist() == [tokens]
    assert batch.positions.tolist() == [positions]
    assert batch.score_at.tolist() == score_at
    assert batch.targets.tolist() == [20, 21, 30, 31, 32]


def test_a_late_boundary_and_no_prompt_by_hand() -> None:
    answers = (Completion(np.array([20, 21, 22], dtype=np.int32), 1), Completion(np.array([30, 31], dtype=np.int32), 1))
    batch = collate([Example(np.empty(0, dtype=np.int32), answers, (1.0, 0.0))], Packing(True, 99, 1))
    assert batch.tokens.tolist() == [[20, 21, 22, 30, 31]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert (batch.score_at.tolist(), batch.targets.tolist()) == ([0, 1, 3], [21, 22, 31])


def test_padded_rows_by_hand() -> None:
    packing = Packing(shared=False, token_budget=None, micro_batch_size=1, multiple_of=4)
    batch = collate([_pair(1, 1, 4)], packing)
    assert batch.tokens.tolist() == [[10, 20, 0, 0, 0, 0, 0, 0], [10, 30, 31, 32, 33, 0, 0, 0]]
    assert batch.score_at.tolist() == [0, 8, 9, 10, 11]
    assert (batch.layout.rows, batch.layout.width) == (2, 8)


def test_pairs_that_begin_alike_by_hand() -> None:
    """Out of order, one prompt going on from the other: what they share comes first, and each scores where it did."""
    long, short = _pair(4, 1, 2), _pair(2, 2, 1)
    batch = collate([long, short], Packing(True, token_budget=99, micro_batch_size=1))
    assert batch.tokens.tolist() == [[10, 11, 20, 21, 30, 12, 13, 20, 30, 31]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4, 4, 5]]
    assert batch.layout.nodes == tuple(
        Node(*node) for node in [(0, 2, None), (2, 2, 0), (4, 1, 0), (5, 2, 0), (7, 1, 3), (8, 2, 3)]
    )
    assert batch.score_at.tolist() == [6, 6, 8, 1, 2, 1]
    assert batch.targets.tolist() == [20, 30, 31, 20, 21, 30]
    assert batch.lengths.tolist() == [1, 2, 2, 1]
