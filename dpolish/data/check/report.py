"""What a pass over the files found, as one value. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dpolish.data.check.findings import Finding, Severity
from dpolish.data.check.statistics import Statistics

VERSION = 1
"""Of the JSON document: raised when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file as it was read."""

    path: str
    split: str
    """train or validation"""
    format: str | None
    """Name of its shape; None where no row had one."""
    rows: int
    records: int
    """Pairs or demonstrations that the rows gave."""
    kept: int
    """Those that training would keep."""
    unused_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fixed:
    """The clean file."""

    path: str
    kept: int
    """Pairs or demonstrations in it."""
    dropped: Mapping[str, int]
    """How many were left out, by the kind of the finding."""
    dropped_path: str
    """The list of what was left out: one JSON object per line, with `where`, `kind` and `detail`."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a pass found."""

    task: str
    """dpo or sft"""
    model: Mapping[str, object] | None
    """What the tokenizer said of itself; None without a model."""
    files: tuple[FileReport, ...]
    findings: tuple[Finding, ...]
    statistics: Statistics
    fixed: Fixed | None
    seconds: float

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def exit_code(self, *, strict: bool = False) -> int:
        """2 with errors, or strictly also with warnings; 0 otherwise."""
        return 2 if self.count(Severity.ERROR) or (strict and self.count(Severity.WARNING)) else 0

    @property
    def verdict(self) -> str:
        """errors, warnings or clean"""
        if self.count(Severity.ERROR):
            return "errors"
        return "warnings" if self.count(Severity.WARNING) else "clean"

    def to_json(self) -> dict[str, object]:
        """The JSON document; docs/check.md says what its keys mean."""
        return {
            "version": VERSION,
            "task": self.task,
            "verdict": self.verdict,
            "counts": {
                "rows": sum(file.rows for file in self.files),
                "records": sum(file.records for file in self.files),
                "kept": sum(file.kept for file in self.files),
                "errors": self.count(Severity.ERROR),
                "warnings": self.count(Severity.WARNING),
                "notes": self.count(Severity.NOTE),
            },
            "files": [asdict(file) for file in self.files],
            "model": None if self.model is None else dict(self.model),
            "findings": [finding.to_json() for finding in self.findings],
            "statistics": self.statistics.to_json(),
            "fixed": None if self.fixed is None else asdict(self.fixed),
            "seconds": round(self.seconds, 3),
        }
