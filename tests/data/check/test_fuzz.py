"""Good and bad rows at random, bytes changed at random: right places, right counts, no traceback."""

import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpolish.data.check.findings import SHOWN_PLACES, Severity
from dpolish.data.check.run import check
from tests.data.check.corpus import CASES, Case, pair

Line = tuple[bytes, str]
"""A line of a file, and the kind of what is wrong with it, or nothing."""


def line(value: object, kind: str = "") -> Line:
    return json.dumps(value).encode(), kind


GOOD = [line(pair(f"prompt {n}", f"yes {n}", f"no {n}")) for n in range(40)]
BAD: list[Line] = [
    line(pair("", "yes", "no"), "empty-prompt"),
    line(pair("q", " ", "no"), "empty-answer"),
    line(pair("q", "yes", "\n"), "empty-answer"),
    line(pair("q", "same", "same"), "equal-answers"),
    line(pair("q", "bell \x07", "no"), "control-character"),
    line(pair("q \ufffd", "yes", "no"), "replacement-character"),
    line(pair("q", "yes", "donâ€™t"), "mojibake"),
    line(pair("q", "\ufeffyes", "no"), "byte-order-mark"),
    line({**pair("q"), "chosen_reward": 0, "rejected_reward": 1}, "reward-order"),
    line(pair("q", 1, "no"), "wrong-fields"),
    line({"prompt": "q", "chosen_response": "yes"}, "wrong-fields"),
    line({**pair("q"), "chosen_reward": "x"}, "wrong-fields"),
    line([pair("q")], "malformed-row"),
    (b'{"prompt": "q"', "malformed-row"),
    (b"}", "malformed-row"),
    (b'{"prompt": NaN}', "malformed-row"),
    (b'{"prompt": "\xe9"}', "not-utf8"),
    (b'{"prompt": "\\udc00"}', "malformed-row"),
    (b'{"a": 1, "a": 2}', "malformed-row"),
]

lines = st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(BAD)), min_size=1, max_size=14)


def line_of(place: str, path: Path) -> int:
    """The line of a place; a column may follow it."""
    assert place.startswith(f"{path}:")
    return int(place.removeprefix(f"{path}:").partition(":")[0])


@settings(max_examples=1200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=lines, end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_every_bad_line_is_found_where_it_is(tmp_path: Path, content: list[Line], end: bytes) -> None:
    content = [GOOD[0], *content]  # the shape of the file is found from its first row
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(raw + end for raw, _ in content))
    expected = defaultdict[str, list[int]](list)
    for number, (_, kind) in enumerate(content):
        if kind:
            expected[kind].append(number * end.count(b"\n") + 1)
    report = check([str(path)])
    found = {finding.kind: finding for finding in report.findings}
    assert {kind: found[kind].count for kind in expected} == {kind: len(at) for kind, at in expected.items()}
    for kind, at in expected.items():
        assert [line_of(place, path) for place in found[kind].places] == at[:SHOWN_PLACES]
    across = {"duplicate-row", "duplicate-prompt", "near-duplicate-prompt", "similar-prompt", "contradiction"}
    assert found.keys() - across == expected.keys()
    refused = {"malformed-row", "not-utf8", "wrong-fields"}
    dropped = {"empty-prompt", "empty-answer", "equal-answers"}
    kinds = Counter(kind for _, kind in content)
    assert report.files[0].rows == len(content)
    assert report.files[0].records == len(content) - sum(kinds[kind] for kind in refused)
    assert report.files[0].kept == report.files[0].records - sum(kinds[kind] for kind in dropped)
    assert report.exit_code() == (2 if any(kinds[kind] for kind in refused) else 0)


bases = [case for case in CASES if len(case.content) < 2000]


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.sampled_from(bases), seed=st.integers(0, 2**32))
def test_changed_bytes_never_break_it(tmp_path: Path, case: Case, seed: int) -> None:
    content, rng = bytearray(case.content), random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(content))
        match rng.randrange(4):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.randint(1, 20)]
            case 2:
                content[at:at] = rng.choice([b'"', b"\\", b"{", b"}", b",", b"\n", b"null", b"\xff", b"[", b"\\ud83d"])
            case 3:
                content[at:at] = content[rng.randint(0, at) : at]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    report = check([str(path)])
    # Lines of compressed data are those of the text inside, of which its bytes tell nothing.
    num_lines = math.inf if case.file.endswith((".gz", ".zst")) else content.count(b"\n") + 1
    for finding in report.findings:
        assert len(finding.places) == min(finding.count, SHOWN_PLACES)
        for place in finding.places:
            assert place == str(path) or 1 <= line_of(place, path) <= num_lines
    orjson.dumps(report.to_json())
    errors = sum(f.count for f in report.findings if f.severity is Severity.ERROR and f.kind != "nothing-left")
    assert report.files[0].records + errors <= report.files[0].rows + (report.task == "sft")
    assert report.files[0].kept <= report.files[0].records


@pytest.mark.parametrize("seed", range(3))
def test_refused_rows_are_those_that_do_not_parse(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [json.dumps(pair(f"prompt {n}", f"a{n}", f"b{n}")).encode() for n in range(200)]
    broken = sorted(rng.sample(range(1, 200), 30))
    for index in broken:
        rows[index] = rows[index][: rng.randint(1, len(rows[index]) - 1)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(rows) + b"\n")
    (finding,) = check([str(path)]).findings
    assert finding.count == 30
    assert [line_of(place, path) for place in finding.places] == [index + 1 for index in broken[:SHOWN_PLACES]]
