"""The pass: real data, several files, progress, what the report holds."""

import json
import random
from pathlib import Path

import orjson
import pytest

from dpolish.data.check.findings import CHECKS, Finding, Severity
from dpolish.data.check.report import Report
from dpolish.data.check.run import check
from dpolish.data.check.source import Options, task_of
from dpolish.errors import ConfigError
from tests.data.check.corpus import GOOD, OTHER, THIRD, assistant, pair, rows, user

REAL = Path(__file__).parents[4] / "shared" / "data"


def real(name: str) -> str:
    """A file of real preference data that is not part of the project."""
    if not (REAL / name).exists():
        pytest.skip(f"needs {name} in {REAL}")
    return str(REAL / name)


def found(report: Report) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def test_politeness_pairs() -> None:
    path = real("politeness_pairs.json")
    report = check([path])
    findings, content = found(report), json.loads(Path(path).read_text())
    assert findings["equal-answers"].count == 6 == sum(row["chosen"] == row["rejected"] for row in content)
    prompts = {(row["instruction"], row["input"]) for row in content}
    assert findings["duplicate-prompt"].count == 25 == len(content) - len(prompts)
    assert (report.files[0].format, report.files[0].rows, report.files[0].kept) == ("alpaca", 1100, 1094)
    assert report.exit_code() == 0
    assert report.exit_code(strict=True) == 2


def test_politeness_split() -> None:
    files = [real("politeness_train.jsonl"), real("politeness_valid.jsonl")]
    train, valid = ([json.loads(line) for line in Path(path).read_text().splitlines()] for path in files)
    held_out = [row["prompt"] for row in valid]
    findings = found(check(files[:1], files[1:]))
    assert findings["leaked-prompt"].count == sum(row["prompt"] in held_out for row in train) == 8
    assert findings["equal-answers"].count == 6


def test_conversations() -> None:
    report = check([real("conversations_pairs.json")])
    assert report.files[0].rows == report.files[0].records == 300
    assert report.files[0].format == "sharegpt"
    assert found(report)["duplicate-prompt"].count == 5


def test_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(rows(GOOD, pair("", "x", "y"), *[pair("z", "x", "x")] * (name == "b")))
    report = check([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), str(tmp_path / "c.jsonl")])
    findings = found(report)
    assert findings["empty-prompt"].files == {str(tmp_path / "a.jsonl"): 1, str(tmp_path / "b.jsonl"): 1}
    assert findings["equal-answers"].places == (f"{tmp_path}/b.jsonl:3",)
    assert findings["unreadable-file"].places == (f"{tmp_path}/c.jsonl",)
    assert "Did you mean" in findings["unreadable-file"].details[0]
    assert [(file.rows, file.records, file.kept) for file in report.files] == [(2, 2, 1), (3, 3, 1), (0, 0, 0)]
    assert report.verdict == "errors"


def test_rows_of_a_list_on_one_line_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([pair("a\x07"), pair("b\x07"), pair("c")]))
    assert found(check([str(path)]))["control-character"].count == 2


def test_extreme_length_bias(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [("x" * rng.randint(1, 50), "x" * rng.randint(60, 90)) for _ in range(100)]
    for name, flip in (("longer", False), ("shorter", True)):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(rows(*(pair(f"p{i}", *(texts[i] if flip else reversed(texts[i]))) for i in range(100))))
        finding = found(check([str(path)]))["length-bias"]
        assert finding.severity is Severity.WARNING
        assert f"The {name} answer is the chosen one in 100% of 100 pairs" in finding.details[0]
    path = tmp_path / "few.jsonl"
    path.write_bytes(rows(*(pair(f"p{i}", *texts[i]) for i in range(40))))
    assert "length-bias" not in found(check([str(path)]))


def test_statistics_are_of_the_training_rows_that_are_kept(tmp_path: Path) -> None:
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    train.write_bytes(
        rows({**pair("ab", "abc", "a"), "chosen_reward": 2, "rejected_reward": 1}, pair("long" * 9, "x", "x"))
    )
    valid.write_bytes(rows(pair("v" * 99, "w" * 99, "x" * 99)))
    statistics = check([str(train)], [str(valid)]).statistics
    assert statistics.unit == "characters"
    assert {part: of.spread.mean for part, of in statistics.lengths.items()} == {
        "prompt": 2,
        "chosen": 3,
        "rejected": 1,
    }
    assert statistics.margins is not None
    assert statistics.margins.spread.mean == 1
    assert statistics.truncation == ()


def test_progress_names_file_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(*(pair(f"p{i}") for i in range(1100))))
    seen: list[tuple[str, int]] = []
    check([str(path)], progress=lambda name, count: seen.append((name, count)))
    assert seen == [(str(path), 512), (str(path), 1024), (str(path), 1100)]


def test_the_same_twice(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "rows.jsonl"
    words = [f"w{i}" for i in range(50)]
    path.write_bytes(rows(*(pair(" ".join(rng.choices(words, k=rng.randint(1, 60)))) for _ in range(1500)), GOOD, GOOD))
    first, second = (check([str(path)]).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_json_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(GOOD, pair("", "a", "b")) + b"\x00\n")
    document = orjson.loads(orjson.dumps(check([str(path)]).to_json()))
    keys = {"version", "task", "verdict", "counts", "files", "model", "findings", "statistics", "fixed", "seconds"}
    assert document.keys() == keys
    assert document["counts"] == {"rows": 3, "records": 2, "kept": 1, "errors": 1, "warnings": 1, "notes": 0}
    finding = {"kind", "severity", "count", "places", "details", "files", "message", "remedy"}
    assert all(each.keys() == finding for each in document["findings"])
    assert [each["severity"] for each in document["findings"]] == ["error", "warning"]
    unit = {"unit", "lengths", "length_bias", "margins", "truncation", "savings"}
    assert document["statistics"].keys() == unit


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(GOOD, OTHER, THIRD))
    assert check([str(path)], options=Options(format="native")).verdict == "clean"
    assert found(check([str(path)], options=Options(format="alpaca")))["wrong-fields"].count == 3
    with pytest.raises(ConfigError, match="unknown row format"):
        check([str(path)], options=Options(format="alpaka"))


def test_the_first_row_tells_the_task(tmp_path: Path) -> None:
    pairs, texts, broken = (tmp_path / f"{name}.jsonl" for name in ("pairs", "texts", "broken"))
    pairs.write_bytes(rows(GOOD))
    texts.write_bytes(b"{\n" + rows({"messages": [user("a"), assistant("b")]}))
    broken.write_bytes(b"{\n")
    assert task_of([str(pairs)], None) == "dpo"
    assert task_of([str(texts)], None) == "sft"
    assert task_of([str(broken)], None) == "dpo"
    assert task_of([str(tmp_path / "none.jsonl"), str(texts)], None) == "sft"
    assert task_of([str(pairs)], "dolly") == "sft"


def test_every_check_says_what_and_what_to_do() -> None:
    import dpolish.data.check.model

    assert dpolish.data.check.model.UNUSABLE_TEMPLATE.kind in CHECKS
    for kind, check_ in CHECKS.items():
        assert kind == check_.kind == kind.lower()
        assert check_.message.endswith(".")
        assert check_.remedy or check_.severity is Severity.NOTE, kind
        assert check_.fixes or not check_.drops
