"""Every bad or odd file gives its findings, at their places, and no others."""

from pathlib import Path
from typing import Literal, cast

import pytest

from dpolish.data.check.findings import SHOWN_PLACES
from dpolish.data.check.run import check
from dpolish.data.check.source import Options
from tests.data.check.corpus import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_findings(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.file
    path.write_bytes(case.content)
    report = check([str(path)], options=Options(cast(Literal["dpo", "sft"], case.task)))
    found = {finding.kind: finding for finding in report.findings}
    assert {kind: finding.count for kind, finding in found.items()} == {k: len(p) for k, p in case.finds.items()}
    for kind, places in case.finds.items():
        assert found[kind].places == tuple(f"{path}{place}" for place in places)[:SHOWN_PLACES], kind
        assert found[kind].files == {str(path): len(places)}
    if case.says:
        first = found[next(iter(case.finds))]
        assert case.says in first.details[0]


def test_there_are_enough_of_them() -> None:
    bad = [case for case in CASES if case.finds]
    assert len(bad) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
