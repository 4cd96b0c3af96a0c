"""Several answers to one prompt become the pairs that `pairs` asks for, in file order, and ties become none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.formats import PAIRINGS, Candidate, Candidates, PairFile, Skipped
from dpolish.data.formats.answers import ALONE, NOT_NEEDED, ONE_SIDED, TIE, pair_up
from dpolish.errors import ConfigError
from dpolish.records import PreferencePair
from tests.data.shapes import write


def candidates(scores: list[float], labelled: bool = False) -> Candidates:
    answers = (Candidate(f"a{i}", score, score, f"x:{i}") for i, score in enumerate(scores))
    return Candidates("p", tuple(answers), labelled)


def paired(scores: list[float], pairing: str, *, labelled: bool = False, rows: bool = False) -> list[str]:
    found = []
    for item in pair_up(candidates(scores, labelled), pairing, rows=rows):
        if isinstance(item, Skipped):
            found.append(f"{item.where.removeprefix('x:')} {SHORT[item.reason]}")
        else:
            assert (item.chosen_reward, item.rejected_reward) == (
                scores[int(item.chosen[1])],
                scores[int(item.rejected[1])],
            )
            found.append(f"{item.where.removeprefix('x:')} {item.chosen[1]}>{item.rejected[1]}")
    return found


SHORT = {TIE: "tie", ALONE: "alone", NOT_NEEDED: "unneeded", ONE_SIDED: "one-sided"}


@pytest.mark.parametrize(
    ("scores", "pairing", "expected"),
    [
        ([1, 3, 2], "best_vs_worst", ["0 1>0"]),
        ([1, 3, 2], "best_vs_rest", ["0 1>0", "1 1>2"]),
        ([1, 3, 2], "adjacent", ["1 1>2", "0 2>0"]),
        ([1, 3, 2], "all", ["0 1>0", "0 2>0", "1 1>2"]),
        ([3, 1, 3, 1], "best_vs_worst", ["0 0>1"]),
        ([3, 1, 3, 1], "best_vs_rest", ["0 0>1", "2 tie", "0 0>3"]),
        ([3, 1, 3, 1], "adjacent", ["2 tie", "1 2>1", "3 tie"]),
        ([3, 1, 3, 1], "all", ["0 0>1", "2 tie", "0 0>3", "1 2>1", "3 tie", "2 2>3"]),
        ([2, 2, 2], "best_vs_worst", ["1 tie"]),
        ([2, 2, 2], "all", ["1 tie", "2 tie", "2 tie"]),
        *(([5], pairing, ["0 alone"]) for pairing in PAIRINGS),
    ],
)
def test_pairs_of_scored_answers(scores: list[float], pairing: str, expected: list[str]) -> None:
    assert paired(scores, pairing) == expected


@pytest.mark.parametrize(
    ("scores", "pairing", "labelled", "expected"),
    [
        ([1, 3, 2], "best_vs_worst", False, ["0 1>0", "2 unneeded"]),
        ([2, 2, 2], "best_vs_worst", False, ["1 tie", "2 unneeded"]),
        ([1, 0, 1, 0], "best_vs_worst", True, ["0 0>1", "2 unneeded", "3 unneeded"]),
        ([1, 0, 1, 0], "best_vs_rest", True, ["0 0>1", "0 0>3", "2 unneeded"]),
        ([1, 0, 1, 0], "adjacent", True, ["1 2>1", "0 unneeded", "3 unneeded"]),
        ([1, 0, 1, 0], "all", True, ["0 0>1", "0 0>3", "1 2>1", "2 2>3"]),
        ([1, 1], "all", True, ["0 one-sided", "1 one-sided"]),
        ([0], "all", True, ["0 alone"]),
    ],
)
def test_pairs_of_answers_in_rows_of_their_own(
    scores: list[float], pairing: str, labelled: bool, expected: list[str]
) -> None:
    assert paired(scores, pairing, labelled=labelled, rows=True) == expected


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.sampled_from(PAIRINGS))
def test_the_better_answer_is_chosen_and_no_pair_comes_twice(scores: list[int], pairing: str) -> None:
    items = list(pair_up(candidates([float(score) for score in scores]), pairing, rows=False))
    pairs = [item for item in items if isinstance(item, PreferencePair)]
    assert all(scores[int(pair.chosen[1])] > scores[int(pair.rejected[1])] for pair in pairs)
    assert len({(pair.chosen, pair.rejected) for pair in pairs}) == len(pairs)
    n = len(scores)
    assert (
        len(items) == {"best_vs_worst": 1, "best_vs_rest": n - 1, "adjacent": n - 1, "all": n * (n - 1) // 2}[pairing]
    )
    unequal = sum(a != b for i, a in enumerate(scores) for b in scores[:i])
    assert pairing != "all" or len(pairs) == unequal
    assert bool(pairs) == (len({*scores}) > 1)


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.booleans()), max_size=12), st.sampled_from(PAIRINGS))
def test_every_row_of_a_labelled_file_is_in_a_pair_or_skipped(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bool]], pairing: str
) -> None:
    values = [{"prompt": p, "completion": f"a{i}", "label": label} for i, (p, label) in enumerate(rows)]
    if not values:
        return
    path = write(tmp_path_factory.getbasetemp(), *values, name="kto.jsonl")
    used: set[int] = set()
    skipped: list[int] = []
    for item in PairFile(path, pairs=pairing).records():
        if isinstance(item, Skipped):
            skipped.append(int(item.where.rpartition(":")[2]) - 1)
        else:
            assert isinstance(item, PreferencePair)
            good, bad = int(str(item.chosen)[1:]), int(str(item.rejected)[1:])
            assert rows[good] == (item.prompt, True)
            assert rows[bad] == (item.prompt, False)
            assert item.where == f"{path}:{min(good, bad) + 1}"
            used |= {good, bad}
    assert sorted([*used, *skipped]) == [*range(len(rows))]


def test_pairing_reaches_the_rows_of_a_file(tmp_path: Path) -> None:
    answers = [{"answer": f"a{rank}", "rank": rank} for rank in (2, 1, 3)]
    path = write(tmp_path, {"prompt": "q", "answers": answers})
    assert [len(list(PairFile(path, pairs=pairing).records())) for pairing in PAIRINGS] == [1, 2, 2, 3]
    with pytest.raises(ConfigError, match=r"unknown pairing 'best'.*Known: best_vs_worst, best_vs_rest, adjacent, all"):
        PairFile(path, pairs="best")
