"""The table of all checks in docs/check.md: `python -m dpolish.data.check.table` prints it."""

import sys
from collections.abc import Iterator

from dpolish.data.check import model, run, tokens  # these three import every module that declares checks
from dpolish.data.check.ends import MISSING_END
from dpolish.data.check.findings import CHECKS, Check, Severity
from dpolish.data.check.source import UNREADABLE_FILE, UNUSED_COLUMNS

_HEAD = "| check | what it means | what to do | needs | counts | `--fix` |\n|---|---|---|---|---|---|\n"
_OF_FILES = {
    check.kind for check in (UNREADABLE_FILE, UNUSED_COLUMNS, run.NOTHING_LEFT, run.LENGTH_BIAS, model.TEMPLATE_CHANGED)
}
_OF_MODELS = {one.check.kind for one in tokens.TOKEN_CHECKS if one.check is not MISSING_END}
_OF_MODELS |= {
    check.kind
    for check in (model.UNUSABLE_TEMPLATE, model.CANNOT_ENCODE, model.TEMPLATE_MISMATCH, model.TEMPLATE_CHANGED)
}


def markdown() -> str:
    """A table for each severity: first what training drops, then by name."""
    return "\n".join(map(_section, Severity))


def _section(severity: Severity) -> str:
    checks = [check for check in CHECKS.values() if check.severity is severity]
    checks.sort(key=lambda check: (not check.drops, check.kind))
    return f"### {severity.capitalize()}s\n\n{_HEAD}{''.join(_rows(checks))}"


def _rows(checks: list[Check]) -> Iterator[str]:
    for check in checks:
        of_file = check.kind in _OF_FILES
        goes = check.fixes or (check.severity is Severity.ERROR and not of_file)
        needs = "`--model`" if check.kind in _OF_MODELS else "`--validation`" if "leaked" in check.kind else ""
        counts = "" if of_file else "pairs" if check.of_pairs else "rows"
        cells = (f"`{check.kind}`", check.message, check.remedy, needs, counts, "removes" if goes else "")
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
