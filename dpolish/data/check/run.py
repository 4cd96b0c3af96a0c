"""The pass over all files: rows go through the checks batch by batch, and a report comes out. No torch here."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dpolish.data.check import source
from dpolish.data.check.across import ACROSS_CHECKS, Table
from dpolish.data.check.ends import Endings
from dpolish.data.check.findings import Check, Ledger, Severity, declare
from dpolish.data.check.fix import require_new, write_clean
from dpolish.data.check.look import Look, Looked
from dpolish.data.check.record import Record, record_of
from dpolish.data.check.report import FileReport, Fixed, Report
from dpolish.data.check.source import Options
from dpolish.data.check.statistics import LengthBias, Measures, Statistics
from dpolish.data.check.texts import check_text
from dpolish.data.formats import TAIL, ConversationFile, PairFile, Skipped
from dpolish.records import Conversation, PreferencePair

NOTHING_LEFT = declare(
    "nothing-left",
    Severity.ERROR,
    "No row is left to train or to validate on.",
    "The other findings say where the rows went.",
)
LENGTH_BIAS = declare(
    "length-bias",
    Severity.WARNING,
    "Length alone tells nearly always which answer is chosen: what is learned may be to write more, or less.",
    "Balance the lengths, or use a loss that averages over tokens (model.dpo.preference_average_log_probs=true).",
)

BIASED_SHARE = 0.9
"""Share of pairs from which on the longer, or the shorter, answer is chosen nearly always."""

_FEWEST_PAIRS = 50  # below, nine of ten is chance
_BATCH = 512  # rows taken together: enough to keep a fast tokenizer's threads busy
_IN_FLIGHT = 2  # batches that a tokenizer has at once: while one is tokenised, the other is rendered
_FIRST_ROWS = 64  # rows of a file whose texts are compared with the model's template

Progress = Callable[[str, int], None]
"""Told the file that is being read, and how many of its rows have been."""


def check(
    files: Sequence[str],
    validation: Sequence[str] = (),
    options: Options | None = None,
    *,
    tokens: Look | None = None,
    fix: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Everything that is wrong with training files, and with validation files beside them.

    `tokens` (`dpolish.data.check.model.load`) adds what only a model's tokenizer can tell. `fix` names a file that
    does not exist yet and gets the training rows that are left, as native JSONL.
    """
    began = time.monotonic()
    if fix is not None:
        require_new(fix)
    with ThreadPoolExecutor(_IN_FLIGHT) as worker:
        run = _Pass(options or Options(), tokens, progress, worker)
        for path in files:
            run.read(path, "train")
        for path in validation:
            run.read(path, "validation")
    statistics = run.finish(fixing=fix is not None)
    fixed = None
    if fix is not None and not all(run.train_flags):  # an empty file would be of no use
        fixed = write_clean(fix, files, run.options, run.train_flags, run.reasons)
    return run.report(statistics, fixed, time.monotonic() - began)


def is_biased(bias: LengthBias) -> str:
    """How length decides between two answers, in words; empty where it does not, or where there are few pairs."""
    for word, count in (("longer", bias.longer_chosen), ("shorter", bias.shorter_chosen)):
        if bias.pairs >= _FEWEST_PAIRS and count > BIASED_SHARE * bias.pairs:
            return f"The {word} answer is the chosen one in {count / bias.pairs:.0%} of {bias.pairs:,} pairs."
    return ""


@dataclass(frozen=True, slots=True)
class _Looking:
    """Records of a batch whose tokens are looked at in another thread: a tokenizer lets Python go on meanwhile."""

    path: str
    split: str
    records: Sequence[tuple[int, Record]]
    """Each with its index."""
    looked: Future[Sequence[Looked]]


class _Pass:
    """What has been read so far."""

    def __init__(self, options: Options, tokens: Look | None, progress: Progress | None, worker: Executor) -> None:
        self.options = options
        self.flags = bytearray()
        """For each record 0, or the number, from 1, of the check that takes it out, among `reasons`."""
        self.reasons: list[str] = []
        self._tokens = tokens
        self._progress = progress
        self._ledger = Ledger()
        self._table = Table()
        self._worker, self._looking = worker, deque[_Looking]()
        parts = ("prompt", "chosen", "rejected") if options.task == "dpo" else ("prompt", "trained")
        self._measures = Measures("tokens" if tokens else "characters", parts)
        self._files: list[FileReport] = []
        self._kept = self._num_rows = 0
        self._refused = False

    def read(self, path: str, split: str) -> None:
        """Take all rows of one file."""
        file = self.options.open(path)
        endings, first = Endings(path), len(self._table)
        self._kept = 0
        beginning: list[Record] = []
        records = self._records(path, file)
        while batch := list(islice(records, _BATCH)):
            for record in batch:
                endings.add(record)
            beginning += batch[: _FIRST_ROWS - len(beginning)]
            self._take(path, batch, split)
            if self._progress is not None:
                self._progress(path, file.num_rows)
        self._settle(0)
        columns = tuple(file.extra_columns)
        for column in columns:
            self._ledger.add(source.UNUSED_COLUMNS, path, path, column)
        if tail := file.remarks.get(TAIL):
            self._ledger.add_many(source.TAIL, path, tail.count, tail.places, "")
        if self._tokens is None or not self._tokens.knows_end:
            endings.report(self._ledger)
        if self._tokens is not None:
            self._tokens.compare(path, beginning, self._ledger)
        name = file.format.name if file.format else None
        self._files.append(FileReport(path, split, name, file.num_rows, len(self._table) - first, self._kept, columns))

    def _records(self, path: str, file: PairFile | ConversationFile) -> Iterator[Record]:
        last: tuple[int, str] | None = None
        for item in source.rows(file):
            if isinstance(item, PreferencePair | Conversation):
                if last != (at := (file.num_rows, item.where)):  # pairs of one row have both in common
                    last, self._num_rows = at, self._num_rows + 1
                yield record_of(item, self._num_rows)
            elif isinstance(item, Skipped):
                self._ledger.add(source.SKIPPED, path, item.where, item.reason)
            else:
                self._refused = True
                check, where, what = source.refusal(item, path)
                self._ledger.add(check, path, where, what)

    def _take(self, path: str, records: list[Record], split: str) -> None:
        start = self._table.add(path, records, validation=split == "validation")
        self.flags.extend(bytes(len(records)))
        useful: list[tuple[int, Record]] = []
        for index, record in enumerate(records, start):
            if not self._note(path, index, record, check_text(record)):
                useful.append((index, record))
        if self._tokens is None:
            for _, record in useful:
                self._keep(record, split, record.lengths)
            return
        looked = self._worker.submit(self._tokens.look, [record for _, record in useful])
        self._looking.append(_Looking(path, split, useful, looked))
        self._settle(_IN_FLIGHT)

    def _settle(self, most: int) -> None:
        """Take in what the tokenizer found, until it is at no more than `most` batches."""
        while len(self._looking) > most:
            batch = self._looking.popleft()
            for (index, record), looked in zip(batch.records, batch.looked.result(), strict=True):
                if not self._note(batch.path, index, record, looked.found) and looked.lengths is not None:
                    self._keep(record, batch.split, looked.lengths.parts)
                    if batch.split == "train":
                        self._measures.add_tokens(looked.lengths)

    def _note(self, path: str, index: int, record: Record, found: Sequence[tuple[Check, str]]) -> bool:
        """Write down what was found about a record; whether training goes without it."""
        for check, detail in found:
            self._ledger.add(check, path, record.where, detail, record.row)
            self._flag(index, check)
        return any(check.drops or check.severity is Severity.ERROR for check, _ in found)

    def _keep(self, record: Record, split: str, lengths: tuple[int, ...]) -> None:
        self._kept += 1
        if split == "train":
            self._measures.add(lengths, record.rewards)

    def _flag(self, index: int, check: Check) -> None:
        takes_out = check.fixes or check.severity is Severity.ERROR
        if takes_out and not self.flags[index]:
            if check.kind not in self.reasons:
                self.reasons.append(check.kind)
            self.flags[index] = 1 + self.reasons.index(check.kind)

    @property
    def train_flags(self) -> bytes:
        """The flags of the training files' records."""
        return bytes(self.flags[: self._table.num_train])

    def finish(self, *, fixing: bool) -> Statistics:
        """The checks that need all rows; the numbers."""
        table = self._table
        for one in ACROSS_CHECKS:
            for hit in one.find(table):
                detail = one.says.format(other=table.where(hit.other))
                self._ledger.add(one.check, table.path(hit.index), table.where(hit.index), detail)
                for index in table.row(hit.index) if not one.check.of_pairs else (hit.index,):
                    self._flag(index, one.check)
        statistics = self._measures.statistics()
        first = next(iter(self._files), None)
        if statistics.length_bias is not None and first and (words := is_biased(statistics.length_bias)):
            self._ledger.add(LENGTH_BIAS, first.path, first.path, words)
        for split in ("train", "validation"):
            files = [file for file in self._files if file.split == split]
            explained = self._refused and not fixing
            if files and not explained and not any(file.kept for file in files):
                self._ledger.add(NOTHING_LEFT, files[0].path, files[0].path, split)
        return statistics

    def report(self, statistics: Statistics, fixed: Fixed | None, seconds: float) -> Report:
        """Everything, as one value."""
        model = None if self._tokens is None else self._tokens.facts
        files, findings = tuple(self._files), self._ledger.findings()
        return Report(self.options.task, model, files, findings, statistics, fixed, seconds)
