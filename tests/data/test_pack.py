"""The invariants of the module's docstring, and batches against an obvious re-statement, token by token."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given

from dpolish.data.pack import Packing, collate, even, fill
from dpolish.tensors import Completion, Example

sizes_lists = st.lists(st.integers(1, 30), max_size=40)


@st.composite
def examples(draw: st.DrawFn, max_completions: int = 3) -> Example:
    """A few tokens each: no prompt, one-token answers, late boundaries, tokens that are not scored."""
    prompt = draw(st.lists(st.integers(0, 99), max_size=6))
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


# --- which examples lie together --------------------------------------------------------------------------------------


@given(sizes_lists, st.integers(1, 40))
@example([3, 3, 2, 2, 2], 6)  # dealt evenly one of two bins would hold 7
@example([100, 3, 3, 2, 2, 2], 6)  # nor does an oversized one allow that
@example([7, 3, 3, 2, 2, 2], 6)
def test_bins_hold_every_index_once_within_the_budget(sizes: list[int], budget: int) -> None:
    bins = fill(sizes, budget)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    for members in bins:
        assert sum(sizes[index] for index in members) <= budget or len(members) == 1


@given(sizes_lists, st.integers(1, 40))
def test_bins_are_few(sizes: list[int], budget: int) -> None:
    """At most 11/9 of the fewest possible and one more, as first-fit decreasing guarantees; best-fit gives no fewer."""
    small = [size for size in sizes if size <= budget]
    oversized = len(sizes) - len(small)
    assert len(fill(sizes, budget)) - oversized <= 11 / 9 * _best_fit(small, budget) + 1


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
    loads = [sum([5, 5, 1, 1][index] for index in members) for members in fill([5, 5, 1, 1], 11)]
    assert loads == [6, 6]


@given(st.lists(examples(), min_size=1, max_size=12), packings())
def test_a_split_keeps_examples_whole_and_depends_on_lengths_alone(members: list[Example], packing: Packing) -> None:
    parts = packing.split(members)
    assert sorted(index for part in parts for index in part) == list(range(len(members)))
    renamed = [
        replace(one, prompt=one.prompt + 1, completions=tuple(map(_renamed, one.completions))) for one in members
    ]
    assert packing.split(renamed) == parts
    for part in parts:
        batch = collate([members[index] for index in part], packing)
        if packing.token_budget is None:
            assert len(part) <= packing.micro_batch_size
        else:
            assert batch.num_tokens <= packing.token_budget or len(part) == 1


def _renamed(completion: Completion) -> Completion:
    return replace(completion, tokens=completion.tokens[::-1].copy())


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60), st.integers(0, 45))
def test_more_bins_than_needed_can_be_asked_for(sizes: list[int], budget: int, at_least: int) -> None:
    bins = fill(sizes, budget, at_least)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    assert all(len(members) == 1 or sum(sizes[i] for i in members) <= budget for members in bins)
    needed = len(fill(sizes, budget))
    assert len(bins) == max(needed, min(at_least, len(sizes)))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_parts_differ_by_no_more_than_the_largest(sizes: list[int], parts: int) -> None:
    dealt = even(sizes, parts)
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
                assert len(batch) == 1 or sum(packing.size(members[i]) for i in batch) <= packing.token_budget


def test_padded_batches_take_the_examples_in_order() -> None:
    packing = Packing(shared=True, token_budget=None, micro_batch_size=2)
    assert packing.split([_pair(3)] * 5) == [[0, 1], [2, 3], [4]]


# --- what a batch holds -----------------------------------------------------------------------------------------------


def places(members: list[Example], packing: Packing) -> list[list[tuple[str, int, int, int]]]:
    """Rows of (what, token, position, completion), written out place by place: `what` is prompt, seen or scored."""
    rows: list[list[tuple[str, int, int, int]]] = []
    number = -1
    for member in members:
        blocks = [member.completions] if packing.shared else [(completion,) for completion in member.completions]
        for block in blocks:
            row = [("prompt", int(token), position, -1) for position, token in enumerate(member.prompt)]
            for completion in block:
                number += 1
                for index, token in enumerate(completion.tokens):
                    scored = index >= completion.score_from and index not in completion.unscored
                    what = "scored" if scored else "seen"
                    row.append((what, int(token), len(member.prompt) + index, number))
            rows.append(row)
    return rows if packing.token_budget is None else [[place for row in rows for place in row]]


@given(st.lists(examples(), min_size=1, max_size=5), packings())
def test_a_batch_is_what_it_says(members: list[Example], packing: Packing) -> None:
    batch = collate(members, packing)
    rows = places(members, packing)
    width = max(map(len, rows))
    assert batch.tokens.shape == batch.positions.shape == (len(rows), batch.layout.width)
    assert batch.layout.width == width + -width % packing.multiple_of
    for row, tokens, positions in zip(rows, batch.tokens.tolist(), batch.positions.tolist(), strict=True):
        padding = batch.layout.width - len(row)
        assert tokens == [token for _, token, _, _ in row] + [0] * padding
        assert positions == [position for _, _, position, _ in row] + [0] * padding
    assert batch.num_tokens == sum(map(len, rows))
    completions = [completion for member in members for completion in member.completions]
    assert batch.lengths.tolist() == [len(completion.scored) for completion in completions]
    assert batch.rewards.tolist() == [reward for member in members for reward in member.rewards]


@given(st.lists(examples(), min_size=1, max_size=5), packings())
def test_every_scored_token_is_predicted_once_by_what_stands_before_it(
    members: list[Example], packing: Packing
) -> None:
    """The predictor of a token is the place of the same example, prompt or own branch, one position earlier."""
    batch = collate(members, packing)
    flat_tokens, flat_positions = batch.tokens.flatten().tolist(), batch.positions.flatten().tolist()
    owners = _owners(members, packing, batch.layout.width)
    expected = []
    for number, completion in enumerate(completion for member in members for completion in member.completions):
        prompt = len(_example_of(members, number).prompt)
        for index in range(completion.score_from, len(completion.tokens)):
            if index not in completion.unscored:
                expected.append((number, prompt + index, int(completion.tokens[index])))
    assert len(batch.score_at) == len(batch.targets) == len(expected)
    for at, target, (number, position, token) in zip(
        batch.score_at.tolist(), batch.targets.tolist(), expected, strict=True
    ):
        assert target == token
        assert flat_positions[at] == position - 1
        assert number in owners[at]
        if position - 1 >= len(_example_of(members, number).prompt):  # the place before it holds the token before it
            index = position - 1 - len(_example_of(members, number).prompt)
            assert flat_tokens[at] == int(_completion(members, number).tokens[index])


def _completion(members: list[Example], number: int) -> Completion:
    return [completion for member in members for completion in member.completions][number]


def _example_of(members: list[Example], number: int) -> Example:
    return [member for member in members for _ in member.completions][number]


def _owners(members: list[Example], packing: Packing, width: int) -> dict[int, set[int]]:
    """Flat place → the completions that may be predicted from it."""
    owners: dict[int, set[int]] = {}
    for row, content in enumerate(places(members, packing)):
        for column, (what, _, _, number) in enumerate(content):
            following = content[column:]
            mine = {number} if what != "prompt" else _first_answers(following, packing, members)
            owners[row * width + column] = mine
    return owners


def _first_answers(following: list[tuple[str, int, int, int]], packing: Packing, members: list[Example]) -> set[int]:
    """The completions of the block that a prompt's place opens."""
    first = next(number for what, _, _, number in following if what != "prompt")
    if not packing.shared:
        return {first}
    owner = [index for index, member in enumerate(members) for _ in member.completions]
    return {number for number, index in enumerate(owner) if index == owner[first]}


@given(st.lists(examples(), min_size=1, max_size=4), packings(shared=True))
def test_pairs_go_by_index(members: list[Example], packing: Packing) -> None:
    reference = [[float(10 * i + j) for j in range(len(one.completions))] for i, one in enumerate(members)]
    batch = collate(members, packing, reference)
    assert batch.num_pairs == len(members)
    assert batch.reference[batch.chosen].tolist() == [row[0] for row in reference]
    assert batch.reference[batch.rejected].tolist() == [row[-1] for row in reference]
    assert batch.reference.dtype == torch.float32


@given(st.lists(examples(), min_size=1, max_size=4), packings())
def test_spans_say_where_everything_lies(members: list[Example], packing: Packing) -> None:
    batch = collate(members, packing)
    flat = batch.tokens.flatten().numpy()
    blocks = [
        (member.prompt, block)
        for member in members
        for block in ([member.completions] if packing.shared else [(one,) for one in member.completions])
    ]
    for span, (prompt, block) in zip(batch.layout.spans, blocks, strict=True):
        assert (span.prompt, span.branches) == (len(prompt), tuple(len(one.tokens) for one in block))
        held = np.concatenate([prompt, *(one.tokens for one in block)])
        assert flat[span.start : span.start + span.length].tolist() == held.tolist()


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
