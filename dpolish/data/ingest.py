"""Files to examples: every row is kept, dropped with its reason and place, or an error; nothing vanishes uncounted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal

from dpolish.data import summary as about
from dpolish.data.formats import Skipped
from dpolish.data.kinds import Kind, R, RowFile, T
from dpolish.data.read import Fault, Faults
from dpolish.data.summary import SHOWN_PLACES, DataSummary, FileSummary, Tally, TokenCounts
from dpolish.data.tokenize import Tokenization
from dpolish.errors import DataError
from dpolish.tensors import Example

OnOverlong = Literal["drop", "truncate", "error"]

_BATCH = 512  # rows tokenised in one call: enough to keep a fast tokenizer's threads busy


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a list: which examples came from it, and its weight in a weighted list."""

    path: str
    weight: float | None
    rows: range


@dataclass(frozen=True, slots=True)
class Ingested:
    """The examples of one split, file after file in the order of their rows."""

    examples: tuple[Example, ...]
    where: tuple[str, ...]
    """`path:line` of each example."""
    sources: tuple[Source, ...]
    count: Callable[[Sequence[Example]], TokenCounts]
    summary: DataSummary

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each source."""
        return tuple(len(source.rows) for source in self.sources)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of each source, or None where the list has no weights."""
        weights = tuple(source.weight for source in self.sources if source.weight is not None)
        return weights if len(weights) == len(self.sources) else None

    def part(self, rows: range) -> "Ingested":
        """A contiguous share of the examples. Its summary counts these; what was dropped stays with the whole."""
        examples = self.examples[rows.start : rows.stop]
        sources, files = [], []
        for source, file in zip(self.sources, self.summary.files, strict=True):
            start, stop = max(source.rows.start, rows.start), min(source.rows.stop, rows.stop)
            if start < stop:
                sources.append(Source(source.path, source.weight, range(start - rows.start, stop - rows.start)))
                files.append(FileSummary(file.path, file.format, stop - start, stop - start))
        counts = self.count(examples)
        summary = DataSummary(tuple(files), {}, {}, self.summary.extra_columns, counts)
        return Ingested(examples, self.where[rows.start : rows.stop], tuple(sources), self.count, summary)


def ingest(
    files: Sequence[tuple[float | None, str]],
    kind: Kind[R, T],
    tokenization: Tokenization,
    *,
    seq_length: int,
    on_overlong: OnOverlong = "drop",
    watch: Callable[[R], None] = lambda _: None,
) -> Ingested:
    """The examples of (weight, path) files; a DataError names every bad row of all files, or says that none is left.

    `kind` says what the rows are. A row is over-long when its prompt and longer answer exceed `seq_length`, never
    because the packed pair does. `watch` sees every record that was read.
    """
    run = _Ingestion(kind, tokenization, seq_length, on_overlong, watch)
    for weight, path in files:
        run.read(weight, path)
    return run.result()


def split_rows(splits: str, num_rows: int) -> tuple[range, range, range]:
    """Train, validation and test rows by shares such as "980,10,10": contiguous, in this order, each row in one.

    The bounds are NeMo's: each share is rounded by itself, and what the roundings add up to moves all bounds.
    """
    shares = [float(share) for share in splits.split(",")]
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / sum(shares) * num_rows))
    excess = bounds[-1] - num_rows
    train_end, validation_end = (max(0, bound - excess) for bound in bounds[1:3])
    return range(train_end), range(train_end, validation_end), range(validation_end, num_rows)


class _Tallies:
    """Counts by name, each with the first places."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, name: str, place: str) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        places = self._places.setdefault(name, [])
        if len(places) < SHOWN_PLACES:
            places.append(place)

    def merge(self, name: str, tally: Tally) -> None:
        self._counts[name] = self._counts.get(name, 0) + tally.count
        self._places[name] = [*self._places.get(name, ()), *tally.places][:SHOWN_PLACES]

    def frozen(self) -> dict[str, Tally]:
        return {name: Tally(count, tuple(self._places[name])) for name, count in self._counts.items()}


class _Ingestion(Generic[R, T]):
    """One call of `ingest`: what has been read so far."""

    def __init__(
        self,
        kind: Kind[R, T],
        tokenization: Tokenization,
        seq_length: int,
        on_overlong: OnOverlong,
        watch: Callable[[R], None],
    ) -> None:
        self._kind: Kind[R, T] = kind
        self._tokenization = tokenization
        self._seq_length = seq_length
        self._on_overlong = on_overlong
        self._watch: Callable[[R], None] = watch
        self._examples: list[Example] = []
        self._where: list[str] = []
        self._sources: list[Source] = []
        self._files: list[FileSummary] = []
        self._columns: dict[str, None] = {}
        self._dropped, self._remarks, self._faults = _Tallies(), _Tallies(), Faults()
        self._seen: set[int] = set()

    def read(self, weight: float | None, path: str) -> None:
        """Take all rows of one file."""
        first = len(self._examples)
        file = self._kind.open(path)
        records = self._records(file)
        try:
            while batch := list(islice(records, _BATCH)):
                self._take(batch)
        except DataError as error:  # the file itself
            self._faults.add(error)
        rows = range(first, len(self._examples))
        self._sources.append(Source(path, weight, rows))
        name = file.format.name if file.format else "unknown"
        self._files.append(FileSummary(path, name, file.num_rows, len(rows)))
        self._columns.update(dict.fromkeys(file.extra_columns))
        for remark, tally in file.remarks.items():
            self._remarks.merge(remark, tally)

    def result(self) -> Ingested:
        """All of it, once every file has been read."""
        self._faults.check()
        summary = DataSummary(
            files=tuple(self._files),
            dropped=self._dropped.frozen(),
            remarks=self._remarks.frozen(),
            extra_columns=tuple(self._columns),
            tokens=self._kind.counts(self._examples),
        )
        for source in self._sources:
            if not source.rows and (source.weight is not None or not self._examples):
                lines = "\n  ".join(summary.lines()[:-2])
                raise DataError(f"{source.path}: no row is left to use.\n  {lines}")
        return Ingested(tuple(self._examples), tuple(self._where), tuple(self._sources), self._kind.counts, summary)

    def _records(self, file: RowFile[R]) -> Iterator[R]:
        for record in file.records():
            if isinstance(record, Fault | DataError):
                self._faults.add(record)
            elif isinstance(record, Skipped):
                self._dropped.add(record.reason, record.where)
            else:
                self._watch(record)
                yield record

    def _take(self, records: list[R]) -> None:
        reasons = [self._kind.reason_to_drop(record) for record in records]
        useful = [record for record, reason in zip(records, reasons, strict=True) if reason is None]
        encoded = iter(self._kind.encode(self._tokenization, useful))
        for record, reason in zip(records, reasons, strict=True):
            if reason is not None:
                self._dropped.add(reason, record.where)
            elif isinstance(tokens := next(encoded), DataError):
                self._faults.add(tokens)
            else:
                self._place(record, tokens)

    def _place(self, record: R, tokens: T) -> None:
        """Keep a row, or count why not."""
        overlong = tokens.longest > self._seq_length
        if reason := self._kind.reason_to_drop_tokens(tokens):
            self._dropped.add(reason, record.where)
        elif overlong and self._on_overlong == "error":
            self._faults.add(Fault(record.where, self._kind.too_long(tokens, self._seq_length)))
        elif overlong and self._on_overlong == "drop":
            self._dropped.add(about.OVERLONG, record.where)
        else:
            tokens = self._kind.cut(tokens, self._seq_length) if overlong else tokens
            example = tokens.example()
            if example is None:
                self._dropped.add(about.NO_ROOM if overlong else about.NO_SCORED_TOKEN, record.where)
            elif overlong and self._kind.reason_to_drop_tokens(tokens):
                self._dropped.add(about.EQUAL_ONCE_CUT, record.where)
            else:
                self._keep(record, tokens, example, cut=overlong)

    def _keep(self, record: R, tokens: T, example: Example, *, cut: bool) -> None:
        self._examples.append(example)
        self._where.append(record.where)
        content = self._kind.content(record)
        remarks = {
            about.TRUNCATED: cut,
            about.BOUNDARY_MERGES: tokens.merges,
            about.SPECIAL_TEXT: self._tokenization.has_special_text(record),
            about.NUL_CHARACTERS: any("\0" in text for text in self._kind.texts(record)),
            about.REPEATED: content in self._seen,
        }
        self._seen.add(content)
        for remark, holds in remarks.items():
            if holds:
                self._remarks.add(remark, record.where)
