"""Files to examples: every row is kept, dropped with its reason and place, or an error; nothing vanishes uncounted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from dpolish.data import summary as about
from dpolish.data.formats import PairFile
from dpolish.data.read import Fault, Faults
from dpolish.data.summary import SHOWN_PLACES, DataSummary, FileSummary, Tally, TokenCounts
from dpolish.data.tokenize import Tokenization, TokenPair
from dpolish.errors import DataError
from dpolish.records import PreferencePair
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
        summary = DataSummary(tuple(files), {}, {}, self.summary.extra_columns, _token_counts(examples))
        return Ingested(examples, self.where[rows.start : rows.stop], tuple(sources), summary)


def ingest(
    files: Sequence[tuple[float | None, str]],
    tokenization: Tokenization,
    *,
    seq_length: int,
    on_overlong: OnOverlong = "drop",
    format: str | None = None,
) -> Ingested:
    """The examples of (weight, path) files; a DataError names every bad row of all files, or says that none is left.

    `format` names the row format of all files; None recognises it in each. A row is over-long when its prompt and
    longer answer exceed `seq_length`, never because the packed pair does.
    """
    run = _Ingestion(tokenization, seq_length, on_overlong)
    for weight, path in files:
        run.read(weight, path, format)
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

    def frozen(self) -> dict[str, Tally]:
        return {name: Tally(count, tuple(self._places[name])) for name, count in self._counts.items()}


class _Ingestion:
    """One call of `ingest`: what has been read so far."""

    def __init__(self, tokenization: Tokenization, seq_length: int, on_overlong: OnOverlong) -> None:
        self._tokenization = tokenization
        self._seq_length = seq_length
        self._on_overlong = on_overlong
        self._examples: list[Example] = []
        self._where: list[str] = []
        self._sources: list[Source] = []
        self._files: list[FileSummary] = []
        self._columns: dict[str, None] = {}
        self._dropped, self._remarks, self._faults = _Tallies(), _Tallies(), Faults()
        self._seen: set[int] = set()

    def read(self, weight: float | None, path: str, format: str | None) -> None:
        """Take all rows of one file."""
        first = len(self._examples)
        file = PairFile(path, format)
        pairs = self._pairs(file)
        try:
            while batch := list(islice(pairs, _BATCH)):
                self._take(batch)
        except DataError as error:  # the file itself
            self._faults.add(error)
        rows = range(first, len(self._examples))
        self._sources.append(Source(path, weight, rows))
        name = file.format.name if file.format else "unknown"
        self._files.append(FileSummary(path, name, file.num_rows, len(rows)))
        self._columns.update(file.extra_columns)

    def result(self) -> Ingested:
        """All of it, once every file has been read."""
        self._faults.check()
        tokens = _token_counts(self._examples)
        columns = tuple(self._columns)
        summary = DataSummary(tuple(self._files), self._dropped.frozen(), self._remarks.frozen(), columns, tokens)
        for source in self._sources:
            if not source.rows and (source.weight is not None or not self._examples):
                lines = "\n  ".join(summary.lines()[:-2])
                raise DataError(f"{source.path}: no row is left to use.\n  {lines}")
        return Ingested(tuple(self._examples), tuple(self._where), tuple(self._sources), summary)

    def _pairs(self, file: PairFile) -> Iterator[PreferencePair]:
        for pair in file.pairs():
            if isinstance(pair, Fault | DataError):
                self._faults.add(pair)
            else:
                yield pair

    def _take(self, pairs: list[PreferencePair]) -> None:
        reasons = [_reason_to_drop(pair) for pair in pairs]
        useful = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
        encoded = iter(self._tokenization.encode(useful))
        for pair, reason in zip(pairs, reasons, strict=True):
            if reason is not None:
                self._dropped.add(reason, pair.where)
            elif isinstance(tokens := next(encoded), DataError):
                self._faults.add(tokens)
            else:
                self._place(pair, tokens)

    def _place(self, pair: PreferencePair, tokens: TokenPair) -> None:
        """Keep a pair, or count why not."""
        overlong = tokens.longest > self._seq_length
        if tokens.equal:
            self._dropped.add(about.EQUAL_ANSWERS, pair.where)
        elif overlong and self._on_overlong == "error":
            what = (
                f"{tokens.longest:,} tokens of prompt and longer answer, over model.data.seq_length={self._seq_length}"
            )
            self._faults.add(Fault(pair.where, f"{what}: raise it, shorten the row, or set model.data.on_overlong"))
        elif overlong and self._on_overlong == "drop":
            self._dropped.add(about.OVERLONG, pair.where)
        else:
            tokens = tokens.cut(self._seq_length) if overlong else tokens
            example = tokens.example()
            if example is None:
                self._dropped.add(about.NO_ROOM if overlong else about.NO_SCORED_TOKEN, pair.where)
            elif tokens.equal:
                self._dropped.add(about.EQUAL_ONCE_CUT, pair.where)
            else:
                self._keep(pair, tokens, example, cut=overlong)

    def _keep(self, pair: PreferencePair, tokens: TokenPair, example: Example, *, cut: bool) -> None:
        self._examples.append(example)
        self._where.append(pair.where)
        content = hash((pair.prompt, pair.chosen, pair.rejected))
        remarks = {
            about.TRUNCATED: cut,
            about.BOUNDARY_MERGES: tokens.merges,
            about.SPECIAL_TEXT: self._tokenization.has_special_text(pair),
            about.NUL_CHARACTERS: any("\0" in text for text in _texts(pair)),
            about.REPEATED: content in self._seen,
        }
        self._seen.add(content)
        for remark, holds in remarks.items():
            if holds:
                self._remarks.add(remark, pair.where)


def _reason_to_drop(pair: PreferencePair) -> str | None:
    """What makes a pair useless whatever the tokenizer."""
    *prompt, chosen, rejected = _texts(pair)
    if not any(text.strip() for text in prompt):
        return about.EMPTY_PROMPT
    if not chosen.strip() or not rejected.strip():
        return about.EMPTY_ANSWER
    return about.EQUAL_ANSWERS if chosen == rejected else None


def _texts(pair: PreferencePair) -> list[str]:
    """The prompt's texts and the two answers'."""
    turns = [pair.prompt] if isinstance(pair.prompt, str) else pair.prompt
    return [turn if isinstance(turn, str) else turn.content for turn in (*turns, pair.chosen, pair.rejected)]


def _token_counts(examples: Sequence[Example]) -> TokenCounts:
    return TokenCounts(
        prompt=sum(len(example.prompt) for example in examples),
        chosen=sum(len(example.completions[0].tokens) for example in examples),
        rejected=sum(len(example.completions[1].tokens) for example in examples),
        longest=max((example.longest for example in examples), default=0),
        shared=sum(example.num_tokens for example in examples),
        padded=sum(example.num_padded_tokens for example in examples),
    )
