"""The clean file holds exactly the rows that nothing takes out, in order, and the list all others."""

import json
from pathlib import Path

import pytest

from dpolish.data.check.report import Report
from dpolish.data.check.run import check
from dpolish.data.check.source import Options
from dpolish.errors import ConfigError
from tests.data.check.corpus import CASES, Case, assistant, pair, user

KEPT = [pair("one", "a", "b"), pair("two", "c", "d"), pair("a \ufffd", "e", "f"), pair("ONE!", "a", "c")]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fixed(tmp_path: Path) -> Report:
    first = write(
        tmp_path / "first.jsonl",
        KEPT[0],
        "{broken",
        pair("", "a", "b"),
        pair("empty", "", "b"),
        KEPT[1],
        pair("equal", "x", "x"),
        KEPT[0],
        pair("leaked", "a", "b"),
        KEPT[2],
    )
    second = write(
        tmp_path / "second.jsonl",
        KEPT[3],
        pair("both", "a", "b"),
        pair("both", "b", "a"),
        KEPT[1],
        {"prompt": "no answers"},
    )
    held_out = write(tmp_path / "valid.jsonl", pair("leaked", "c", "d"), pair("own", "a", "b"), pair("", "a", "b"))
    return check([first, second], [held_out], fix=tmp_path / "clean.jsonl")


def test_the_clean_file_has_the_rows_that_are_left(tmp_path: Path) -> None:
    report = fixed(tmp_path)
    assert read(tmp_path / "clean.jsonl") == KEPT
    assert report.fixed is not None
    assert report.fixed.kept == len(KEPT)
    assert sum(report.fixed.dropped.values()) == 10


def test_the_list_names_every_other_row(tmp_path: Path) -> None:
    report = fixed(tmp_path)
    assert report.fixed is not None
    listed = read(Path(report.fixed.dropped_path))
    assert [(row["where"], row["kind"]) for row in listed if isinstance(row, dict)] == [
        (f"{tmp_path}/first.jsonl:2:2", "malformed-row"),
        (f"{tmp_path}/first.jsonl:3", "empty-prompt"),
        (f"{tmp_path}/first.jsonl:4", "empty-answer"),
        (f"{tmp_path}/first.jsonl:6", "equal-answers"),
        (f"{tmp_path}/first.jsonl:7", "duplicate-row"),
        (f"{tmp_path}/first.jsonl:8", "leaked-prompt"),
        (f"{tmp_path}/second.jsonl:2", "contradiction"),
        (f"{tmp_path}/second.jsonl:3", "contradiction"),
        (f"{tmp_path}/second.jsonl:4", "duplicate-row"),
        (f"{tmp_path}/second.jsonl:5", "wrong-fields"),
    ]


def test_the_clean_file_passes(tmp_path: Path) -> None:
    fixed(tmp_path)
    report = check([str(tmp_path / "clean.jsonl")], [str(tmp_path / "valid.jsonl")])
    train = [finding for finding in report.findings if str(tmp_path / "clean.jsonl") in finding.files]
    assert [finding.kind for finding in train] == ["replacement-character", "near-duplicate-prompt"]
    again = check([str(tmp_path / "clean.jsonl")], fix=tmp_path / "again.jsonl")
    assert again.fixed is not None
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "clean.jsonl").read_bytes()
    assert again.fixed.dropped == {}


@pytest.mark.parametrize("case", [case for case in CASES if case.task == "dpo"], ids=lambda case: case.name)
def test_what_is_left_of_any_file_passes(case: Case, tmp_path: Path) -> None:
    from dpolish.data.check.findings import CHECKS

    path, clean = tmp_path / case.file, tmp_path / "clean.jsonl"
    path.write_bytes(case.content)
    report = check([str(path)], fix=clean)
    if report.fixed is None:
        assert not clean.exists()
        assert "nothing-left" in {finding.kind for finding in report.findings}
    else:
        found = {finding.kind for finding in check([str(clean)]).findings}
        assert not [kind for kind in found if CHECKS[kind].fixes or CHECKS[kind].severity == "error"]


def test_demonstrations(tmp_path: Path) -> None:
    good = {"messages": [user("a"), assistant("b")]}
    path = write(tmp_path / "rows.jsonl", good, {"messages": [user("c"), assistant(" ")]}, good)
    check([path], options=Options("sft"), fix=tmp_path / "clean.jsonl")
    assert read(tmp_path / "clean.jsonl") == [good]


def test_demonstrations_of_two_shapes_do_not_go_into_one_file(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", {"text": "a"})
    second = write(tmp_path / "second.jsonl", {"messages": [user("a"), assistant("b")]})
    with pytest.raises(ConfigError, match=r"second.jsonl has other rows"):
        check([first, second], options=Options("sft"), fix=tmp_path / "clean.jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first.jsonl", "second.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("rows.jsonl", "no file is overwritten"), ("clean.json", "name it clean.jsonl"), ("none/x.jsonl", "no folder")],
)
def test_nothing_is_overwritten(tmp_path: Path, name: str, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", *KEPT)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=message):
        check([path], fix=tmp_path / name)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_an_existing_list_is_not_overwritten_either(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *KEPT)
    write(tmp_path / "clean.dropped.jsonl", {})
    with pytest.raises(ConfigError, match=r"clean.dropped.jsonl exists"):
        check([path], fix=tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()
