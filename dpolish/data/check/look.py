"""What the pass asks of a tokenizer, without knowing one. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpolish.data.check.findings import Check, Ledger
from dpolish.data.check.record import Record
from dpolish.data.check.statistics import TokenLengths


@dataclass(frozen=True, slots=True)
class Looked:
    """What the tokens of a record show."""

    found: Sequence[tuple[Check, str]]
    """What is wrong, each with a detail."""
    lengths: TokenLengths | None
    """None where the record has no tokens."""


class Look(Protocol):
    """Checks with a tokenizer."""

    @property
    def knows_end(self) -> bool:
        """Whether it knows how answers end, so that the usual end of a file is of no interest."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What the report says of the model."""

    def look(self, records: Sequence[Record]) -> Sequence[Looked]:
        """What the tokens of some records show, in order."""

    def compare(self, path: str, beginning: Sequence[Record], ledger: Ledger) -> None:
        """Compare the first records of a file with the model's template."""
