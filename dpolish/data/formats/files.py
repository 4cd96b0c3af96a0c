"""The records of one file: the shape is found from its first good row, or given, and every further row must have it."""

from collections.abc import Iterator, Mapping
from typing import Literal

from dpolish.data.formats.answers import Candidate, Candidates, Skipped, check_pairing, pair_up
from dpolish.data.formats.demonstrations import PromptTemplate, formats_with, last_only
from dpolish.data.formats.fields import Fields, near, short
from dpolish.data.formats.shape import FORMATS, SFT_FORMATS, Format, Reading, detect, misfit
from dpolish.data.hub import rows_of
from dpolish.data.read import Fault, Row
from dpolish.data.summary import SHOWN_PLACES, Tally
from dpolish.errors import DataError
from dpolish.records import Conversation, PreferencePair, Prompt, TemplateArguments

SCORED_AGAINST = "the rejected answer has the higher reward"
SCORED_EQUALLY = "both answers have the same reward"
"""Remarks: the pair is kept as given."""


class _Reader:
    """Rows of a file to what they say, by one shape. What the reading showed is in the fields."""

    def __init__(self, formats: Mapping[str, Format], format: Format | None) -> None:
        self.format = format
        self.extra_columns: dict[str, None] = {}
        self.remarks: dict[str, Tally] = {}
        self._formats = formats
        self._since = "model.data.format"

    def read(self, row: Row) -> Reading:
        """What a row says, or a DataError."""
        shape = self.format or self.settle(detect(row, self._formats), row.where)
        if not shape.has_keys(row.value) or (not shape.fits(row.value) and self._fits_another(row)):
            raise DataError(misfit(shape, self._since, row, self._formats))
        fields = Fields(row)
        reading = shape.read(fields)
        for remark in fields.remarks:
            self.remark(remark, row.where)
        self._note_columns(shape, [*row.value, *fields.ignored])
        return reading

    def settle(self, shape: Format, where: str) -> Format:
        """Read all rows as this shape from now on, because of the row at `where`."""
        self.format, self._since = shape, where
        return shape

    def remark(self, remark: str, where: str) -> None:
        """Count a remark, with the first places."""
        tally = self.remarks.get(remark, Tally(0, ()))
        self.remarks[remark] = Tally(tally.count + 1, (*tally.places, where)[:SHOWN_PLACES])

    def _fits_another(self, row: Row) -> bool:
        return self._since != "model.data.format" and any(other.fits(row.value) for other in self._formats.values())

    def _note_columns(self, shape: Format, keys: list[str]) -> None:
        for key in keys:
            if key not in shape.known:
                hint = near(key, set(shape.optional).difference(keys)).strip()
                self.extra_columns[f"{short(key)} ({hint})" if hint else short(key)] = None


class _RowFile:
    """What a file of rows shows besides its records, once these have been taken."""

    def __init__(self, path: str, reader: _Reader) -> None:
        self.path = path
        self.num_rows = 0
        """Rows met so far, good and bad."""
        self._reader = reader

    @property
    def format(self) -> Format | None:
        """The shape of its rows, once it is known."""
        return self._reader.format

    @property
    def extra_columns(self) -> Mapping[str, None]:
        """Keys that no record was made from, in the order in which they came."""
        return self._reader.extra_columns

    @property
    def remarks(self) -> Mapping[str, Tally]:
        """What is worth knowing of its records, by remark."""
        return self._reader.remarks


class PairFile(_RowFile):
    """The pairs of one file, folder or hub data set, in order.

    What the reading showed is in the fields once the pairs have been taken.
    """

    def __init__(self, path: str, format: str | None = None, pairs: str = "best_vs_worst") -> None:
        check_pairing(pairs)
        super().__init__(path, _Reader(FORMATS, None if format is None else FORMATS[format]))
        self._pairing = pairs
        self._groups: dict[tuple[Prompt, TemplateArguments], list[Candidate]] = {}
        self._labelled = False

    def records(self) -> Iterator[PreferencePair | Skipped | Fault | DataError]:
        """Each row's pairs, why there are none, or what is wrong; rows that belong together by prompt come last."""
        for row in rows_of(self.path):
            self.num_rows += 1
            if isinstance(row, Fault):
                yield row
                continue
            try:
                reading = self._reader.read(row)
            except DataError as error:
                yield error
                continue
            yield from self._taken(reading)
        for (prompt, arguments), answers in self._groups.items():
            group = Candidates(prompt, tuple(answers), self._labelled, arguments)
            yield from map(self._seen, pair_up(group, self._pairing, rows=True))

    def _taken(self, reading: Reading) -> Iterator[PreferencePair | Skipped]:
        assert not isinstance(reading, Conversation)
        if not isinstance(reading, Candidates):
            yield self._seen(reading)
        elif self.format is not None and self.format.grouped:
            self._labelled = reading.labelled
            self._groups.setdefault((reading.prompt, reading.arguments), []).extend(reading.answers)
        else:
            yield from map(self._seen, pair_up(reading, self._pairing, rows=False))

    def _seen(self, item: PreferencePair | Skipped) -> PreferencePair | Skipped:
        """The pair itself, with a remark where its rewards are odd."""
        if isinstance(item, PreferencePair) and item.chosen_reward is not None and item.rejected_reward is not None:
            if item.chosen_reward < item.rejected_reward:
                self._reader.remark(SCORED_AGAINST, item.where)
            elif item.chosen_reward == item.rejected_reward:
                self._reader.remark(SCORED_EQUALLY, item.where)
        return item


class ConversationFile(_RowFile):
    """The demonstrations of one file, folder or hub data set, in order.

    What the reading showed is in the fields once they have been taken. A template other than the default one is
    used where a row has all its fields, whatever other shape the row has.
    """

    def __init__(
        self,
        path: str,
        format: str | None = None,
        *,
        prompt_template: str = "{input} {output}",
        label_key: str = "output",
        trained_turns: Literal["all", "last"] = "all",
    ) -> None:
        formats = formats_with(PromptTemplate.of(prompt_template, label_key))
        super().__init__(path, _Reader(formats, None if format is None else formats[SFT_FORMATS[format].name]))
        self._trained_turns = trained_turns
        self._own = None if formats is SFT_FORMATS else formats["input_output"]

    def records(self) -> Iterator[Conversation | Skipped | Fault | DataError]:
        """Each row's demonstration, why there is none, or what is wrong with it."""
        for row in rows_of(self.path):
            self.num_rows += 1
            if isinstance(row, Fault):
                yield row
                continue
            try:
                yield self._record(row)
            except DataError as error:
                yield error

    def _record(self, row: Row) -> Conversation | Skipped:
        if self._reader.format is None and self._own is not None and self._own.fits(row.value):
            self._reader.settle(self._own, row.where)
        reading = self._reader.read(row)
        assert isinstance(reading, Conversation | Skipped)
        if isinstance(reading, Conversation) and self._trained_turns == "last":
            return last_only(reading)
        return reading
