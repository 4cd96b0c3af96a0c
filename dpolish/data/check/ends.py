"""How answers of strings end, where no model says how they should: most answers of a file are the measure.

An end is what looks like a special token, `<|im_end|>` or `</s>` or `[/INST]`. Per file there is a count and a few
places for each pair of ends, so that the rows which lack the usual end can be named once it is known.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from dpolish.data.check.findings import SHOWN_PLACES, Ledger, Severity, declare
from dpolish.data.check.record import Record

MISSING_END = declare(
    "missing-end-of-turn",
    Severity.WARNING,
    "Answers do not end the way the model's turns end: what is trained on them does not learn to stop.",
    "Append the end of turn to the answers, or set model.data.append_eod=true if the end-of-sequence token is right.",
)

_MARKER = re.compile(r"(<[^<>\s]{1,30}>|\[/?[A-Z_]{1,20}\])\s*$")
_MAX_ENDS = 64
"""Different ends that are told apart; rarer ones that come later count as none."""


@dataclass(slots=True)
class _Rows:
    """Rows that end alike."""

    count: int = 0
    places: list[tuple[int, str]] = field(default_factory=list)
    """The first ones, each with its number."""


class Endings:
    """The ends of the answers of one file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: dict[tuple[str, ...], _Rows] = {}
        self._num_rows = 0

    def add(self, record: Record) -> None:
        """Take a record's answers in; messages are left aside, since their template ends them."""
        ends = tuple([_end(answer) for answer in record.answers if isinstance(answer, str)])
        if not ends:
            return
        if ends not in self._rows and len(self._rows) >= _MAX_ENDS:
            ends = ("",) * len(ends)
        rows = self._rows.setdefault(ends, _Rows())
        rows.count += 1
        self._num_rows += 1
        if len(rows.places) < SHOWN_PLACES:
            rows.places.append((self._num_rows, record.where))

    def usual(self) -> str | None:
        """The end of more than half of the answers, if there is one."""
        count = Counter[str]()
        for ends, rows in self._rows.items():
            for end in ends:
                count[end] += rows.count
        return next((end for end, number in count.items() if end and 2 * number > count.total()), None)

    def report(self, ledger: Ledger) -> None:
        """Count the rows of which an answer does not end as most do."""
        usual = self.usual()
        if usual is None:
            return
        lacking = [rows for ends, rows in self._rows.items() if any(end != usual for end in ends)]
        if lacking:
            places = [place for _, place in sorted(place for rows in lacking for place in rows.places)]
            count = sum(rows.count for rows in lacking)
            ledger.add_many(MISSING_END, self._path, count, places, f"most answers of the file end with {usual}")


def _end(answer: str) -> str:
    match = _MARKER.search(answer[-64:])
    return match.group(1) if match else ""


def lacks_end(record: Record, ends: tuple[str, ...]) -> list[str]:
    """The names of the answers, of those that are strings, that end with none of `ends`."""
    names = ("chosen", "rejected") if record.is_pair else ("answer",)
    return [
        name
        for name, answer in zip(names, record.answers, strict=True)
        if isinstance(answer, str) and not answer.rstrip().endswith(ends)
    ]
