"""Checks of all rows together: duplicates, contradictions, and what training and validation share. No torch here.

No text is kept: a record leaves four hashes of 64 bits, its place, and the sketch of its prompt, some 200 bytes. Equal
hashes are taken for equal texts; that two different ones among ten million collide has a chance of 1 in 100,000.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dpolish.data.check.findings import Check, Severity, declare
from dpolish.data.check.record import Record, asked, contents, flat, is_blank
from dpolish.data.check.sketch import LIKENESS, SKETCH_VALUES, Frames, Sketches, bare_words, similar, sketches

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that something was found about, and another one that it has it with."""

    index: int
    other: int


class Table:
    """What is remembered of every record, in the order in which they were read: training first, then validation."""

    def __init__(self) -> None:
        self.num_train = 0
        """Records of the training files; the others are for validation."""
        self._hashes = {name: array("Q") for name in ("prompt", "bare", "first", "second")}
        self._numbers = array("Q")
        self._prefixes = array("I")
        self._prefix_names: dict[str, tuple[int, str]] = {}
        self._begins_row = bytearray()
        self._has_prompt = bytearray()
        self._sketches: list[Sketches] = []
        self._frames = Frames()
        self._last_row = -1

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, path: str, records: Sequence[Record], validation: bool) -> int:
        """Remember records of a file; the index of the first. Those for validation come behind all others."""
        start = len(self)
        words = []
        for record in records:
            text = contents(record.prompt)
            bare = bare_words(text)
            words.append(bare if record.prompt is text else bare_words(asked(record.prompt)))
            prompt = f"{flat(record.prompt)}\x1d{record.arguments.tools}\x1d{record.arguments.kwargs}"
            answers = [hash(flat(answer)) & _ALL_BITS for answer in record.answers]
            self._hashes["prompt"].append(hash(prompt) & _ALL_BITS)
            self._hashes["bare"].append(hash(b" ".join(bare) if bare else text.strip()) & _ALL_BITS)
            self._hashes["first"].append(answers[0])
            self._hashes["second"].append(answers[1] if len(answers) > 1 else 0)
            self._has_prompt.append(not is_blank(record.prompt))
            self._place(path, record.where, record.row)
        if not validation:
            self._frames.learn(path, words)
        self._sketches.append(sketches(list(map(self._frames.without, words))))
        if not validation:
            self.num_train = len(self)
        return start

    def _place(self, path: str, where: str, row: int) -> None:
        match = _NUMBER.search(where)
        prefix, number = (where[: match.start()], 1 + int(match.group())) if match else (where, 0)
        self._prefixes.append(self._prefix_names.setdefault(prefix, (len(self._prefix_names), path))[0])
        self._numbers.append(number)
        self._begins_row.append(row != self._last_row)
        self._last_row = row

    def where(self, index: int) -> str:
        """`path:line` of a record."""
        number = self._numbers[index]  # one more, or 0 where there is none
        return f"{self._names[self._prefixes[index]][0]}{number - 1 if number else ''}"

    def path(self, index: int) -> str:
        """The file of a record."""
        return self._names[self._prefixes[index]][1]

    def row(self, index: int) -> range:
        """The records of a row, which begins with this one: several, where it has several answers."""
        end = self._begins_row.find(1, index + 1)
        return range(index, end if end >= 0 else len(self))

    @cached_property
    def _names(self) -> list[tuple[str, str]]:
        return [(prefix, path) for prefix, (_, path) in self._prefix_names.items()]

    def hashes(self, name: str) -> Hashes:
        """(n,) of the prompts (`prompt`, `bare`: but for case, punctuation and blanks) or the answers."""
        return as_array(self._hashes[name])

    @cached_property
    def contents(self) -> Hashes:
        """(n,) of prompt and answers together."""
        return mixed(*map(self.hashes, ("prompt", "first", "second")))

    @cached_property
    def swapped(self) -> Hashes:
        """(n,) the same with the answers exchanged."""
        return mixed(*map(self.hashes, ("prompt", "second", "first")))

    @cached_property
    def sketches(self) -> Sketches:
        """(n, 64) of the prompts."""
        return np.concatenate([*self._sketches, np.zeros((0, SKETCH_VALUES), dtype=np.uint16)])

    @property
    def splits(self) -> tuple[Indices, Indices]:
        """The rows that have a prompt, for training and for validation: several pairs of one are one row."""
        begins, prompts = (np.frombuffer(bytes(flags), dtype=bool) for flags in (self._begins_row, self._has_prompt))
        rows = np.flatnonzero(begins & prompts)
        return rows[rows < self.num_train], rows[rows >= self.num_train]


_NUMBER = re.compile(r"[0-9]+$")

Find = Callable[[Table], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class AcrossCheck:
    """A check of all rows together, with the function that makes it."""

    check: Check
    find: Find
    says: str
    """How a record stands to the other one."""


ACROSS_CHECKS: list[AcrossCheck] = []


def across_check(
    kind: str,
    severity: Severity,
    message: str,
    remedy: str,
    *,
    says: str,
    fixes: bool = False,
    of_pairs: bool = False,
) -> Callable[[Find], Find]:
    """Register a check of all rows together."""

    def register(find: Find) -> Find:
        check = declare(kind, severity, message, remedy, fixes=fixes, of_pairs=of_pairs)
        ACROSS_CHECKS.append(AcrossCheck(check, find, says))
        return find

    return register


@across_check(
    "duplicate-row",
    Severity.WARNING,
    "The same prompt with the same answers stands there again, so it counts twice in every epoch.",
    "Remove the repetitions: --fix does. What is meant to count more is better weighted by file.",
    says="as in {other}",
    fixes=True,
    of_pairs=True,
)
def duplicate_rows(table: Table) -> Iterator[Hit]:
    """Records of a split with the content of an earlier one."""
    everything = np.arange(len(table))
    for part in (everything[: table.num_train], everything[table.num_train :]):
        yield from _repeated(part, table.contents)


@across_check(
    "contradiction",
    Severity.WARNING,
    "The same prompt with the same two answers stands there the other way round: the pairs cancel each other.",
    "Decide which order is meant; --fix removes both.",
    says="the other way round in {other}",
    fixes=True,
    of_pairs=True,
)
def contradictions(table: Table) -> Iterator[Hit]:
    """Records whose answers another one has exchanged. Every one of them is counted."""
    unequal = table.hashes("first") != table.hashes("second")
    pairs = unequal & (table.hashes("second") != 0)
    rows = np.flatnonzero(pairs)
    yield from standing_in(rows, table.swapped, rows, table.contents)


@across_check(
    "leaked-row",
    Severity.WARNING,
    "Training rows stand in the validation data too, which then measures memory.",
    "Remove them from one of the two; --fix removes them from the training data.",
    says="also {other}",
    fixes=True,
    of_pairs=True,
)
def leaked_rows(table: Table) -> Iterator[Hit]:
    """Training records with the content of a validation record."""
    everything = np.arange(len(table))
    yield from standing_in(everything[: table.num_train], table.contents, everything[table.num_train :], table.contents)


@across_check(
    "leaked-prompt",
    Severity.WARNING,
    "Prompts of training rows stand in the validation data too, whose results are too good then.",
    "Split by prompt, not by row; --fix removes such rows from the training data.",
    says="also {other}",
    fixes=True,
)
def leaked_prompts(table: Table) -> Iterator[Hit]:
    """Training rows with the prompt of a validation row."""
    train, validation = table.splits
    yield from standing_in(train, table.hashes("prompt"), validation, table.hashes("prompt"))


@across_check(
    "near-leaked-prompt",
    Severity.WARNING,
    "Prompts of training rows stand in the validation data but for case, punctuation and blanks.",
    "Look at them, and keep each on one side.",
    says="much as {other}",
)
def near_leaked_prompts(table: Table) -> Iterator[Hit]:
    """Training rows with the bare prompt of a validation row, and not its prompt."""
    train, validation = table.splits
    prompts = table.hashes("prompt")
    train = train[~np.isin(prompts[train], prompts[validation])]
    yield from standing_in(train, table.hashes("bare"), validation, table.hashes("bare"))


@across_check(
    "similar-leaked-prompt",
    Severity.WARNING,
    f"Prompts of training rows are similar to validation prompts: {LIKENESS:.0%} or more of their runs of three words.",
    "Look at them, and keep each on one side.",
    says="much as {other}",
)
def similar_leaked_prompts(table: Table) -> Iterator[Hit]:
    """Training rows with a prompt that is similar to one of validation, and not nearly the same."""
    train, validation = table.splits
    bare = table.hashes("bare")
    before, train = _distinct(validation, bare), train[~np.isin(bare[train], bare[validation])]
    rows = np.concatenate([before, train])
    for index, other in zip(*similar(table.sketches[rows]), strict=True):
        if other < len(before) <= index:
            yield Hit(int(rows[index]), int(rows[other]))


@across_check(
    "duplicate-prompt",
    Severity.NOTE,
    "Rows have the prompt of an earlier row.",
    "That is as it should be where a prompt has several pairs.",
    says="as in {other}",
)
def duplicate_prompts(table: Table) -> Iterator[Hit]:
    """Rows of a split less its different prompts."""
    for rows in table.splits:
        yield from _repeated(rows, table.hashes("prompt"))


@across_check(
    "near-duplicate-prompt",
    Severity.NOTE,
    "Prompts are those of an earlier row but for case, punctuation and blanks.",
    "",
    says="much as {other}",
)
def near_duplicate_prompts(table: Table) -> Iterator[Hit]:
    """Different prompts of a split less its different bare prompts."""
    for rows in table.splits:
        yield from _repeated(_distinct(rows, table.hashes("prompt")), table.hashes("bare"))


@across_check(
    "similar-prompt",
    Severity.NOTE,
    f"Prompts are similar to an earlier one: {LIKENESS:.0%} or more of their runs of three words are the same.",
    "",
    says="much as {other}",
)
def similar_prompts(table: Table) -> Iterator[Hit]:
    """Different bare prompts of a split that are similar to an earlier one."""
    for split in table.splits:
        rows = _distinct(split, table.hashes("bare"))
        for index, other in zip(*similar(table.sketches[rows]), strict=True):
            yield Hit(int(rows[index]), int(rows[other]))


def as_array(hashes: "array[int]") -> Hashes:
    """(n,) the same memory as an array; nothing can be appended while it is in use."""
    return np.frombuffer(hashes, dtype=np.uint64) if len(hashes) else np.zeros(0, dtype=np.uint64)


_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


def mixed(prompts: Hashes, first: Hashes, second: Hashes) -> Hashes:
    """(n,) one hash of three, whose order counts."""
    together: Hashes = prompts * _FACTORS[0] + first * _FACTORS[1] + second * _FACTORS[2]
    return together


def _first_of(keys: Hashes) -> Indices:
    """For each key the index of its first occurrence."""
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0][: len(order)])
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.r_[begins, len(order)]))
    return first


def _repeated(rows: Indices, keys: Hashes) -> Iterator[Hit]:
    """Rows whose key an earlier one of them has."""
    first = _first_of(keys[rows])
    for index in np.flatnonzero(first != np.arange(len(rows))):
        yield Hit(int(rows[index]), int(rows[first[index]]))


def _distinct(rows: Indices, keys: Hashes) -> Indices:
    """The first row of each key."""
    return rows[np.unique(_first_of(keys[rows]))]


def standing_in(rows: Indices, keys: Hashes, others: Indices, other_keys: Hashes) -> Iterator[Hit]:
    """Rows whose key is one of the others' keys, each with the first of these."""
    if not len(others):
        return
    order = np.argsort(other_keys[others], kind="stable")
    ordered = other_keys[others][order]
    at = np.minimum(np.searchsorted(ordered, keys[rows], side="left"), len(ordered) - 1)
    for index in np.flatnonzero(ordered[at] == keys[rows]):
        yield Hit(int(rows[index]), int(others[order[at[index]]]))
