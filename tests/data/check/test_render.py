"""The report for people: readable in 80 columns, harmless for a terminal."""

from pathlib import Path

import pytest

from dpolish.data.check.render import WIDTH, lines, printable
from dpolish.data.check.run import check
from tests.data.check.corpus import pair, rows


def rendered(tmp_path: Path, *content: object, name: str = "rows.jsonl") -> list[str]:
    path = tmp_path / name
    path.write_bytes(rows(*content))
    return [line for _, line in lines(check([str(path)]))]


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    assert rendered(tmp_path, pair())[0] == "Nothing stands in the way of training: nothing found."
    clean = pair(), pair("q", "x", "x"), pair()
    assert rendered(tmp_path, *clean)[0] == "Training would run, and these want a look: 2 warnings, 1 note."
    assert rendered(tmp_path, pair(), {})[0] == "Training would refuse this data: 1 error."


def test_errors_then_warnings_then_notes(tmp_path: Path) -> None:
    found = rendered(tmp_path, pair(), pair("q", "x", "x"), {}, pair())
    heads = [line.partition(":")[0] for line in found if line.startswith(("error", "warning", "note"))]
    assert heads == ["error wrong-fields", "warning equal-answers", "warning duplicate-row", "note duplicate-prompt"]


def test_lines_fit_but_for_paths(tmp_path: Path) -> None:
    content = [
        {**pair(f"prompt {n}", "a" * n, "b" * n * 3), "chosen_reward": n, "rejected_reward": 1} for n in range(9)
    ]
    found = rendered(tmp_path, *content, {"prompt": "x " * 99}, pair("q", "\x07", "x"), *content)
    assert len(found) > 40
    assert [line for line in found if len(line) > WIDTH and str(tmp_path) not in line] == []


def test_first_places_and_how_many_more(tmp_path: Path) -> None:
    found = rendered(tmp_path, pair("first"), *(pair(f"q{n}", "x", "x") for n in range(9)))
    assert f"    {tmp_path}/rows.jsonl:6" in found
    assert f"    {tmp_path}/rows.jsonl:7" not in found
    assert "    … and 4 more" in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 東", "plain ä 東"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
    ],
)
def test_terminals_are_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_nothing_of_the_data_reaches_the_terminal_raw(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\u202e"
    found = rendered(tmp_path, {**pair(evil, evil, evil), evil: 1}, {evil: evil}, name="na\x1bme.jsonl")
    assert all(line.isprintable() for line in found)
