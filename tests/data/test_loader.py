"""Order and shares of rows, groups that a resumed run gets again, short last batches, and limits."""

from collections import Counter
from fractions import Fraction
from itertools import islice

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from dpolish.data.loader import BatchGroup, Loader, Sources, order, trained_rows
from dpolish.data.pack import Packing
from tests.examples import alike_examples, random_examples

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 5), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_an_epoch_is_a_permutation_of_the_documented_generator(seed: int, epoch: int, sizes: list[int]) -> None:
    rows = order(seed, epoch, Sources(tuple(sizes)))
    assert sorted(rows.tolist()) == list(range(sum(sizes)))
    assert rows.tolist() == np.random.default_rng([seed, epoch]).permutation(sum(sizes)).tolist()
    assert rows.tolist() == order(seed, epoch, Sources((sum(sizes),))).tolist(), "the files' borders count"


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    orders = [tuple(order(seed, epoch, Sources((40,))).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@given(
    seeds,
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 100)), min_size=1, max_size=4),
)
def test_weighted_files_give_their_shares_to_the_row(seed: int, files: list[tuple[int, int]]) -> None:
    """Shares by largest remainders, and within a file no row is drawn twice before all are drawn once."""
    sizes, weights = zip(*files, strict=True)
    rows = order(seed, 1, Sources(sizes, tuple(map(float, weights))))
    assert len(rows) == sum(sizes)
    starts = [0, *np.cumsum(sizes).tolist()]
    exact = [Fraction(sum(sizes) * weight, sum(weights)) for weight in weights]
    for index, size in enumerate(sizes):
        drawn = Counter(row for row in rows.tolist() if starts[index] <= row < starts[index + 1])
        share = drawn.total()
        assert abs(share - exact[index]) < 1
        assert all(share // size <= drawn[row] <= -(-share // size) for row in range(starts[index], starts[index + 1]))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((1.0, 1.0, 1.0), [4, 3, 3]),  # 3⅓ each: of equal remainders the first rounds up
        ((0.12, 0.29, 0.59), [1, 3, 6]),  # 1.2, 2.9 and 5.9: the largest remainders do
        ((1.0, 100.0, 1.0), [0, 10, 0]),
    ],
)
def test_shares_by_hand(weights: tuple[float, ...], shares: list[int]) -> None:
    rows = order(0, 0, Sources((2, 4, 4), weights)).tolist()
    assert [sum(low <= row < high for row in rows) for low, high in ((0, 2), (2, 6), (6, 10))] == shares


def loader(count: int, batch: int = 4, packing: Packing | None = None) -> Loader:
    reference = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return Loader(random_examples(count), reference, batch, packing or Packing(True, 80, 1))


def described(group: BatchGroup) -> tuple[object, ...]:
    """Everything that a step sees of a group."""
    tensors = [batch.tokens.tolist() + batch.reference.tolist() for batch in group.batches]
    return group.epoch, group.rows.tolist(), group.num_examples, tensors


@pytest.mark.parametrize("weights", [None, (0.3, 0.7)])
def test_groups_restart_from_any_step(weights: tuple[float, ...] | None) -> None:
    data, sources = loader(11), Sources((5, 6), weights)
    whole = [described(group) for group in islice(data.training_groups(7, sources, 3), 8)]
    for start in range(8):
        resumed = islice(data.training_groups(7, sources, 3, start=start), 8 - start)
        assert [described(group) for group in resumed] == whole[start:]


def test_the_last_batch_of_an_epoch_is_short_and_weighs_what_it_holds() -> None:
    groups = list(islice(loader(11).training_groups(7, Sources((11,)), 3), 6))
    assert [group.num_examples for group in groups] == [4, 4, 3, 4, 4, 3]
    assert [group.epoch for group in groups] == [0, 0, 0, 1, 1, 1]
    for epoch in (0, 1):
        rows = [row for group in groups if group.epoch == epoch for row in group.rows.tolist()]
        assert rows == order(7, epoch, Sources((11,))).tolist()


def test_a_limited_epoch_takes_the_first_batches_of_each_order() -> None:
    groups = list(islice(loader(11).training_groups(7, Sources((11,)), 2), 4))
    rows = [group.rows.tolist() for group in groups]
    expected = [order(7, epoch, Sources((11,)))[first : first + 4].tolist() for epoch in (0, 1) for first in (0, 4)]
    assert rows == expected


def test_a_file_smaller_than_the_batch_is_one_batch() -> None:
    (group,) = islice(loader(3, batch=64).training_groups(7, Sources((3,)), 1), 1)
    assert group.num_examples == 3


@pytest.mark.parametrize("packing", [Packing(True, 40, 1), Packing(False, 60, 1), Packing(False, None, 3)])
def test_a_group_holds_its_rows_once_with_their_reference(packing: Packing) -> None:
    data = loader(9, batch=5, packing=packing)
    group = data.group(0, np.array([8, 2, 5, 0, 4]))
    reference = [value for batch in group.batches for value in batch.reference.tolist()]
    assert sorted(reference) == [0, 1, 4, 5, 8, 9, 10, 11, 16, 17]
    tokens = sum(batch.num_tokens for batch in group.batches)
    assert tokens == group.num_tokens
    for batch in group.batches:
        assert (batch.reference[batch.rejected] - batch.reference[batch.chosen]).tolist() == [1.0] * batch.num_pairs


def test_validation_reads_all_rows_in_file_order_or_the_first_batches() -> None:
    data = loader(11)
    assert [group.rows.tolist() for group in data.validation_groups()] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]
    ]  # fmt: skip
    assert [group.rows.tolist() for group in data.validation_groups(1)] == [[0, 1, 2, 3]]
    assert sum(group.num_examples for group in data.validation_groups(9)) == 11


@pytest.mark.parametrize("total_steps", [1, 3, 4, 9])
def test_the_rows_whose_reference_is_needed_are_those_that_steps_read(total_steps: int) -> None:
    sources = Sources((7, 6), (0.2, 0.8))
    loader = Loader(random_examples(13), np.zeros((13, 2), dtype=np.float32), 3, Packing(True, 100, 1))
    groups = islice(loader.training_groups(5, sources, 4), total_steps)
    read = sorted({int(row) for group in groups for row in group.rows})
    assert trained_rows(5, sources, 3, 4, total_steps).tolist() == read
    assert len(read) < 13 or total_steps == 9


@given(st.integers(1, 23), st.integers(1, 9), st.integers(2, 8), st.booleans())
def test_ranks_share_a_batch_and_make_as_many_passes(rows: int, batch: int, parts: int, packed: bool) -> None:
    """Every row is computed by one rank, where it counts; whoever has less makes company with what does not count."""
    members = alike_examples(rows)
    packing = Packing(True, 40 if packed else None, 2)
    reference = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    ranks = [list(Loader(members, reference, batch, packing, parts, part).validation_groups()) for part in range(parts)]
    alone = list(Loader(members, reference, batch, packing).validation_groups())
    for groups in zip(alone, *ranks, strict=True):
        whole, *shares = groups
        assert len({len(share.batches) for share in shares}) == 1
        for share in shares:
            assert (share.num_examples, share.num_scored) == (whole.num_examples, whole.num_scored)
            assert [last for _, _, last in share.passes] == [False] * (len(share.batches) - 1) + [True]
        counted = [
            value for share in shares for b, counts, _ in share.passes if counts for value in b.reference.tolist()
        ]
        computed = sum(b.num_tokens for share in shares for b, counts, _ in share.passes if counts)
        assert {share.num_tokens for share in shares} == {computed}
        assert sorted(counted) == sorted(value for b in whole.batches for value in b.reference.tolist())
