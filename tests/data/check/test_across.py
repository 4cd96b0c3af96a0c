"""Duplicates, contradictions and leaks, against a naive program that keeps every text."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpolish.data.check.report import Report
from dpolish.data.check.run import check
from tests.data.check.corpus import LONG, assistant, pair, system, user

Rows = list[tuple[str, str, str]]

prompts = st.sampled_from(["a", "A", " a!", "b", "b c", "B, c", "東京", "?", "!", "x y z"])
answers = st.sampled_from(["yes", "no", "maybe"])
some_rows = st.lists(st.tuples(prompts, answers, answers), max_size=12)


def report_of(tmp_path: Path, train: Rows, validation: Rows | None = None) -> Report:
    files = []
    for name, rows in (("train", train), ("valid", validation or [])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(pair(*row)) + "\n" for row in rows), encoding="utf-8")
        files.append(str(path))
    return check(files[:1], files[1:] if validation is not None else [])


def counts(report: Report) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def bare(prompt: str) -> str:
    return re.sub(r"\W+", " ", prompt.lower()).strip() or prompt.strip()


def repeated(values: list[object]) -> int:
    return len(values) - len(set(values))


def naive(train: Rows, validation: Rows) -> dict[str, int]:
    """The counts, by keeping everything."""
    found = Counter[str]()
    for rows in (train, validation):
        found["duplicate-row"] += repeated(list(rows))
        found["duplicate-prompt"] += repeated([prompt for prompt, _, _ in rows])
        found["near-duplicate-prompt"] += repeated([bare(prompt) for prompt in {prompt for prompt, _, _ in rows}])
    everything = [*train, *validation]
    found["contradiction"] = sum(c != r and (p, r, c) in everything for p, c, r in everything)
    found["leaked-row"] = sum(row in validation for row in train)
    held_out = {prompt for prompt, _, _ in validation}
    found["leaked-prompt"] = sum(prompt in held_out for prompt, _, _ in train)
    outside = [prompt for prompt, _, _ in train if prompt not in held_out]
    found["near-leaked-prompt"] = sum(bare(prompt) in map(bare, held_out) for prompt in outside)
    return {kind: count for kind, count in found.items() if count}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=some_rows, validation=some_rows)
def test_counts_equal_a_naive_program(tmp_path: Path, train: Rows, validation: Rows) -> None:
    ours = counts(report_of(tmp_path, train, validation))
    theirs = naive(train, validation)
    kinds = {*theirs, "duplicate-row", "duplicate-prompt", "near-duplicate-prompt", "contradiction"}
    kinds |= {"leaked-row", "leaked-prompt", "near-leaked-prompt"}
    assert {kind: ours[kind] for kind in kinds if kind in ours} == theirs


def test_places_and_their_counterparts(tmp_path: Path) -> None:
    train = [("p", "a", "b"), ("q", "a", "b"), ("p", "b", "a"), ("P!", "c", "d")]
    report = report_of(tmp_path, train, [("q", "a", "b"), ("other", "a", "b")])
    places = {finding.kind: (finding.places, finding.details) for finding in report.findings}
    here, there = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    assert places == {
        "contradiction": (
            (f"{here}:1", f"{here}:3"),
            (f"the other way round in {here}:3", f"the other way round in {here}:1"),
        ),
        "leaked-row": ((f"{here}:2",), (f"also {there}:1",)),
        "leaked-prompt": ((f"{here}:2",), (f"also {there}:1",)),
        "duplicate-prompt": ((f"{here}:3",), (f"as in {here}:1",)),
        "near-duplicate-prompt": ((f"{here}:4",), (f"much as {here}:1",)),
    }


def test_similar_prompts_leak_too(tmp_path: Path) -> None:
    report = report_of(tmp_path, [("x", "a", "b"), (LONG, "a", "b"), (LONG, "a", "c")], [(f"{LONG} more", "c", "d")])
    assert counts(report) == {"similar-leaked-prompt": 2, "duplicate-prompt": 1}


def test_templates_and_system_messages_make_no_prompts_alike(tmp_path: Path) -> None:
    strings = [(f"{LONG} question number {n} of many {LONG}", "a", "b") for n in range(30)]
    report = report_of(tmp_path, strings, [(f"{LONG} question number 99 of many {LONG}", "a", "b")])
    assert counts(report) == {}
    path = tmp_path / "rows.jsonl"
    rows = [pair([system(LONG), user(f"q{n}")], assistant("a"), assistant("b")) for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert counts(check([str(path)])) == {}


def test_a_validation_file_that_is_the_training_file(tmp_path: Path) -> None:
    rows = [(f"prompt {letter}", "a", "b") for letter in "abcdefgh"]
    report = report_of(tmp_path, rows, rows)
    assert counts(report) == {"leaked-row": 8, "leaked-prompt": 8}
    assert report.verdict == "warnings"


def test_messages_and_strings_are_other_prompts_with_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    hello = user("Hello there")
    said = assistant("a"), assistant("b")
    rows = [pair("Hello there", "a", "b"), pair([hello], *said), pair([system("Hello there"), hello], *said)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert counts(check([str(path)])) == {"near-duplicate-prompt": 1, "similar-prompt": 1}


@pytest.mark.parametrize(("pairing", "pairs"), [("best_vs_worst", 1), ("best_vs_rest", 2), ("all", 3)])
def test_pairs_of_one_row_do_not_repeat_its_prompt(tmp_path: Path, pairing: str, pairs: int) -> None:
    from dpolish.data.check.source import Options

    path = tmp_path / "rows.jsonl"
    answers = [{"answer": text, "rank": rank} for rank, text in enumerate(("a", "b\u0007", "c"), 1)]
    rows = [{"prompt": prompt, "answers": answers} for prompt in ("first", "second", "first")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = check([str(path)], options=Options(pairs=pairing))
    assert report.files[0].records == 3 * pairs
    found = counts(report)
    assert found["duplicate-prompt"] == 1
    assert found["duplicate-row"] == pairs
    if pairing != "best_vs_worst":
        assert found["control-character"] == 3
