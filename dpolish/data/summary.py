"""What became of the rows: how many were read, kept and dropped, why, and where they stand. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

SHOWN_PLACES = 5

EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer"
EQUAL_ANSWERS = "equal answers"
OVERLONG = "longer than seq_length"
NO_SCORED_TOKEN = "answer without a token to score"
SHORT = "shorter than min_seq_length"
NO_ROOM = "no room for an answer within seq_length"
EQUAL_ONCE_CUT = "equal answers once truncated"
DROP_REASONS = (
    EMPTY_PROMPT,
    EMPTY_ANSWER,
    EQUAL_ANSWERS,
    OVERLONG,
    SHORT,
    NO_SCORED_TOKEN,
    NO_ROOM,
    EQUAL_ONCE_CUT,
)
"""Why a row is left out, in the order in which the reasons are looked for. Shapes of rows may have further ones."""

BOUNDARY_MERGES = "the tokenizer joins the end of the prompt with the answer: the joint token counts as answer"
SPECIAL_TEXT = "special tokens within a message: encoded as text"
NUL_CHARACTERS = "NUL characters in the text"
REPEATED = "the same as an earlier row"
TRUNCATED = "answers cut at seq_length"
REMARKS = (TRUNCATED, BOUNDARY_MERGES, SPECIAL_TEXT, NUL_CHARACTERS, REPEATED)
"""What is worth knowing of rows that were kept. Shapes of rows may have further remarks."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows with something in common: how many, and where the first ones stand."""

    count: int
    places: tuple[str, ...]
    """`path:line` of the first few."""

    def __str__(self) -> str:
        shown, before = [], ""
        for place in self.places:
            path, _, line = place.rpartition(":")
            shown.append(f":{line}" if path == before else place)
            before = path
        more = ", …" if self.count > len(self.places) else ""
        return f"{self.count:,} ({', '.join(shown)}{more})"


@dataclass(frozen=True, slots=True)
class FileSummary:
    """One file as it was read."""

    path: str
    format: str
    rows_read: int
    rows_kept: int


class TokenCounts(Protocol):
    """Sums over the rows kept, of one kind of example."""

    def lines(self) -> list[str]:
        """The counts for a terminal: two lines."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What became of the rows of one split."""

    files: tuple[FileSummary, ...]
    dropped: Mapping[str, Tally]
    """By reason, of `DROP_REASONS`; only those that occurred."""
    remarks: Mapping[str, Tally]
    """By kind, of `REMARKS`; only those that occurred. These rows are kept."""
    extra_columns: tuple[str, ...]
    """Columns that were not used, each with a hint where its name is nearly that of one which would be."""
    tokens: TokenCounts

    @property
    def rows_read(self) -> int:
        """Rows of all files."""
        return sum(file.rows_read for file in self.files)

    @property
    def rows_kept(self) -> int:
        """Rows that are trained or validated on."""
        return sum(file.rows_kept for file in self.files)

    @property
    def rows_dropped(self) -> int:
        """Rows left out, for whatever reason."""
        return sum(tally.count for tally in self.dropped.values())

    def lines(self) -> list[str]:
        """The summary for a terminal."""
        files = [f"{file.path}: read as {file.format}, {_rows(file.rows_read)}" for file in self.files]
        if self.rows_kept + self.rows_dropped == self.rows_read:
            kept = f"kept {_rows(self.rows_kept)} of {self.rows_read:,}, dropped {self.rows_dropped:,}"
        else:  # rows with several answers: one row may make several pairs, or several rows one
            kept = f"{self.rows_kept:,} pairs from {_rows(self.rows_read)}, dropped {self.rows_dropped:,}"
        reasons = _in_order(self.dropped, DROP_REASONS)
        dropped = [f"  dropped, {reason}: {self.dropped[reason]}" for reason in reasons]
        remarks = [f"  {remark}: {self.remarks[remark]}" for remark in _in_order(self.remarks, REMARKS)]
        columns = [f"  columns not used: {', '.join(self.extra_columns)}"] if self.extra_columns else []
        return [*files, kept, *dropped, *remarks, *columns, *self.tokens.lines()]


def _in_order(found: Mapping[str, Tally], known: Sequence[str]) -> list[str]:
    """The names that were found: the known ones in their order, then the others."""
    return [*(name for name in known if name in found), *sorted(found.keys() - set(known))]


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
