import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.check import statistics
from dpolish.data.check.statistics import BATCH_ROWS, LIMITS, LengthBias, Lengths, Measures, TokenLengths

lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)


@given(lengths)
def test_bias_counts_every_pair(pairs: list[tuple[int, int]]) -> None:
    chosen, rejected = (np.array(column) for column in zip(*pairs, strict=True))
    bias = LengthBias.of(chosen, rejected)
    assert bias.longer_chosen == sum(c > r for c, r in pairs)
    assert bias.shorter_chosen == sum(c < r for c, r in pairs)
    assert bias.equally_long == sum(c == r for c, r in pairs)
    assert bias.mean_difference == pytest.approx(sum(c - r for c, r in pairs) / len(pairs))
    wins = sum((c > r) + (c == r) / 2 for c, _ in pairs for _, r in pairs)
    assert bias.auc == pytest.approx(wins / len(pairs) ** 2)
    assert bias.accuracy_of_longer + bias.accuracy_of_shorter <= 1


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_every_length_is_in_one_bin(values: list[int]) -> None:
    found = Lengths.of(np.array(values))
    assert sum(one.count for one in found.histogram) == len(values)
    for one in found.histogram:
        assert one.count == sum(one.least <= value <= one.greatest for value in values)
    assert found.spread.least == min(values)
    assert found.spread.greatest == max(values)
    assert found.spread.quantiles["0.5"] == pytest.approx(float(np.median(values)))


rows = st.tuples(st.integers(0, 9000), st.integers(1, 5000), st.integers(1, 5000))


@given(st.lists(rows, min_size=1, max_size=20))
def test_truncation_and_savings(content: list[tuple[int, int, int]]) -> None:
    measures = Measures("tokens", ("prompt", "chosen", "rejected"))
    for prompt, chosen, rejected in content:
        wholes, starts = (prompt + chosen, prompt + rejected), (prompt, prompt)
        measures.add((prompt, chosen, rejected), None)
        measures.add_tokens(TokenLengths((prompt, chosen, rejected), range(prompt), wholes, starts))
    found = measures.statistics()
    assert found.savings is not None
    assert found.savings.padded == sum(2 * (p + max(c, r)) for p, c, r in content)
    assert found.savings.packed == sum(2 * p + c + r for p, c, r in content)
    assert found.savings.shared == sum(p + c + r for p, c, r in content)
    assert [row.length for row in found.truncation] == list(LIMITS)
    for row in found.truncation:
        assert row.chosen == sum(p + c > row.length for p, c, _ in content)
        assert row.rejected == sum(p + r > row.length for p, _, r in content)
        assert row.either == sum(p + max(c, r) > row.length for p, c, r in content)
        assert row.unanswered == sum(p >= row.length for p, _, _ in content)


def test_margins() -> None:
    measures = Measures("characters", ("prompt", "chosen", "rejected"))
    for rewards in ((1.0, 0.0), (0.0, 2.0), (3.0, 3.0), None):
        measures.add((1, 2, 3), rewards)
    margins = measures.statistics().margins
    assert margins is not None
    assert (margins.spread.count, margins.negative, margins.zero) == (3, 1, 1)
    assert margins.spread.mean == pytest.approx(-1 / 3)


def test_nothing_measured_is_nothing_said() -> None:
    found = Measures("tokens", ("prompt", "chosen", "rejected")).statistics()
    assert (found.lengths, found.length_bias, found.margins) == ({}, None, None)
    assert found.to_json()["length_bias"] is None


def test_savings_count_what_the_prompts_of_every_batch_begin_with() -> None:
    """Two system prompts of 20 tokens, one of them continued; a batch knows nothing of the one before it."""
    measures = Measures("tokens", ("prompt", "chosen", "rejected"))
    heads = [np.arange(20), np.arange(20), np.concatenate([np.arange(20), [7, 8]]), np.arange(100, 120)]
    for row in range(2 * BATCH_ROWS):
        prompt = [*heads[row % 4].tolist(), 1000 + row]
        sizes = len(prompt), 2, 3
        measures.add(sizes, None)
        measures.add_tokens(TokenLengths(sizes, prompt, (len(prompt) + 2, len(prompt) + 3), (len(prompt),) * 2))
    savings = measures.statistics().savings
    assert savings is not None
    assert savings.shared - savings.alike == 2 * sum(
        (  # of 64 rows 48 begin with one head, 16 of these with two tokens more, and 16 with the other head
            47 * 20,
            15 * 2,
            15 * 20,
        )
    )


def test_savings_of_many_rows_are_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows in a row with one prompt each, which a shuffled batch seldom brings together; one head for all."""
    monkeypatch.setattr(statistics, "SAMPLED_PROMPTS", 10 * BATCH_ROWS)
    measures = Measures("tokens", ("prompt", "chosen", "rejected"))
    rows = 100 * BATCH_ROWS
    for row in range(rows):
        prompt = [*range(20), *range(100 + row // 10, 200 + row // 10)]
        measures.add((120, 2, 3), None)
        measures.add_tokens(TokenLengths((120, 2, 3), prompt, (122, 123), (120, 120)))
    savings = measures.statistics().savings
    assert savings is not None
    heads = rows * 20 * (BATCH_ROWS - 1) / BATCH_ROWS
    assert heads <= savings.shared - savings.alike <= 2 * heads, "in file order six times as much"
