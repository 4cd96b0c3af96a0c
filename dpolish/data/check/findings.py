"""What a check finds, and the registry of everything that is looked for. No torch here.

A check is declared once, where it is made, with its kind, severity and words; the table in docs/check.md is made from
this registry. A check of one row is a function under `@row_check` (texts.py) or `@token_check` (tokens.py), one of all
rows together a function under `@across_check` (across.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dpolish.registry import Registry

SHOWN_PLACES = 5
"""Places that a finding names; the rest is a number."""


class Severity(StrEnum):
    """What a finding means for a training run."""

    ERROR = "error"
    """Training refuses the data."""
    WARNING = "warning"
    """Training leaves rows out, or learns something that was hardly meant."""
    NOTE = "note"
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is looked for."""

    kind: str
    """Its name in the report, stable."""
    severity: Severity
    message: str
    """What it means that something was found."""
    remedy: str
    """What to do about it; empty where nothing needs doing."""
    drops: bool = False
    """Training leaves such pairs out by itself."""
    fixes: bool = False
    """`--fix` leaves such rows of the training files out."""
    of_pairs: bool = False
    """Whether pairs are counted; otherwise rows, of which one may give several pairs."""


CHECKS: Registry[Check] = Registry("check")


def declare(
    kind: str,
    severity: Severity,
    message: str,
    remedy: str = "",
    *,
    drops: bool = False,
    fixes: bool = False,
    of_pairs: bool = False,
) -> Check:
    """Register a check; what training drops is counted in pairs and left out of the clean file too."""
    check = Check(kind, severity, message, remedy, drops, fixes or drops, of_pairs or drops)
    CHECKS.register(kind)(check)
    return check


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found."""

    kind: str
    severity: Severity
    count: int
    places: tuple[str, ...]
    """`path:line` of the first few."""
    details: tuple[str, ...]
    """For each place, what is there; may be empty."""
    files: Mapping[str, int]
    """How many of them stand in which file."""
    message: str
    remedy: str

    def to_json(self) -> dict[str, object]:
        """As it stands in the JSON document."""
        return {
            "kind": self.kind,
            "severity": self.severity.value,
            "count": self.count,
            "places": list(self.places),
            "details": list(self.details),
            "files": dict(self.files),
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass(slots=True)
class Tally:
    """How often a check found something so far, with the first places."""

    check: Check
    count: int = 0
    places: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    last_row: int | None = None
    """The newest one's: pairs of one row follow each other."""

    def add(self, path: str, place: str, detail: str, row: int | None) -> None:
        """Count one more, unless its row is counted already and rows are what counts."""
        if row is not None and row == self.last_row and not self.check.of_pairs:
            return
        self.last_row = row
        self.count += 1
        self.files[path] += 1
        if len(self.places) < SHOWN_PLACES:
            self.places.append(place)
            self.details.append(detail)

    def add_many(self, path: str, count: int, places: Sequence[str], detail: str) -> None:
        """Count rows of which only the first places are known."""
        self.count += count
        self.files[path] += count
        free = SHOWN_PLACES - len(self.places)
        self.places += places[:free]
        self.details += [detail] * len(places[:free])

    def finding(self, addition: str = "") -> Finding:
        """The finding, with an addition to its message."""
        check = self.check
        message = f"{check.message} {addition}" if addition else check.message
        places, details, files = tuple(self.places), tuple(self.details), dict(self.files)
        return Finding(check.kind, check.severity, self.count, places, details, files, message, check.remedy)


class Ledger:
    """All tallies of a pass."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._additions: dict[str, str] = {}

    def add(self, check: Check, path: str, place: str, detail: str = "", row: int | None = None) -> None:
        """Count something found at a place of a file, in the row of this number where it has one."""
        self._tally(check).add(path, place, detail, row)

    def add_many(self, check: Check, path: str, count: int, places: Sequence[str], detail: str) -> None:
        """Count rows of a file, of which the first places are known."""
        self._tally(check).add_many(path, count, places, detail)

    def _tally(self, check: Check) -> Tally:
        if check.kind not in self._tallies:
            self._tallies[check.kind] = Tally(check)
        return self._tallies[check.kind]

    def explain(self, check: Check, addition: str) -> None:
        """Say more in the message of a check than its declaration can."""
        self._additions[check.kind] = addition

    def findings(self) -> tuple[Finding, ...]:
        """Everything found: errors, warnings, notes; of each first what training drops, then by how often."""
        severities: Sequence[Severity] = tuple(Severity)

        def rank(tally: Tally) -> tuple[int, bool, int, str]:
            return severities.index(tally.check.severity), not tally.check.drops, -tally.count, tally.check.kind

        found = sorted(self._tallies.values(), key=rank)
        return tuple(tally.finding(self._additions.get(tally.check.kind, "")) for tally in found)
