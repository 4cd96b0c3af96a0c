"""The cheap part of the doctor, for `dpolish dpo` and `dpolish sft`: rows seen in passing. No torch here.

    glance = Glance(known_ends(tokenizer, template, append_eod=False))
    ingest(..., watch=glance.train)
    ingest(..., watch=glance.validation)
    for line in glance.warnings(): ...

A record costs some microseconds and 60 bytes.
"""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from dpolish.data.check.across import as_array, mixed, standing_in
from dpolish.data.check.ends import lacks_end
from dpolish.data.check.findings import SHOWN_PLACES
from dpolish.data.check.record import Record, flat, is_blank, num_characters, record_of
from dpolish.data.check.run import is_biased
from dpolish.data.check.statistics import LengthBias
from dpolish.data.summary import Tally
from dpolish.records import Conversation, PreferencePair

_ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF
_FIRST_RECORDS = 64


class Glance:
    """What was seen of the records of a run."""

    def __init__(self, ends: Sequence[str] = ()) -> None:
        """`ends` are what may end an answer that is a string; none where training appends it."""
        self.first: list[PreferencePair | Conversation] = []
        """The first training records, for a comparison with the model's template."""
        self._ends = tuple(ends)
        self._hashes = {name: array("Q") for name in ("prompt", "chosen", "rejected")}
        self._places: list[str] = []
        self._lengths = array("I"), array("I")
        self._held_out: set[int] = set()
        self._endless = Tally(0, ())

    def train(self, source: PreferencePair | Conversation) -> None:
        """Take a training record in."""
        if len(self.first) < _FIRST_RECORDS:
            self.first.append(source)
        record = record_of(source)
        answers = [flat(answer) for answer in record.answers]
        hashes = [_hash(record), *(hash(answer) & _ALL_BITS for answer in (answers[0], answers[-1]))]
        for column, value in zip(self._hashes.values(), hashes, strict=True):
            column.append(value)
        self._places.append(record.where)
        if record.is_pair:
            for lengths, answer in zip(self._lengths, record.answers, strict=True):
                lengths.append(num_characters(answer))
        if self._ends and lacks_end(record, self._ends):
            places = (*self._endless.places, record.where)[:SHOWN_PLACES]
            self._endless = Tally(self._endless.count + 1, places)

    def validation(self, source: PreferencePair | Conversation) -> None:
        """Take a validation record in."""
        record = record_of(source)
        if not is_blank(record.prompt):
            self._held_out.add(_hash(record))

    def warnings(self) -> Iterator[str]:
        """What should not go unsaid when a run begins, a line each."""
        if len(self._lengths[0]):
            lengths = (np.array(column, dtype=np.int64) for column in self._lengths)
            if words := is_biased(LengthBias.of(*lengths)):
                yield f"length alone tells which answer is chosen: {words}"
        if contradicting := self._contradicting():
            yield f"pairs that contradict each other, with the answers exchanged: {self._tally(contradicting)}"
        if shared := self._shared():
            yield f"rows whose prompt is in the validation data too: {self._tally(shared)}"
        if self._endless.count:
            yield f"rows with an answer that does not end with {' or '.join(self._ends)}: {self._endless}"

    def _contradicting(self) -> list[int]:
        prompt, chosen, rejected = map(as_array, self._hashes.values())
        rows = np.flatnonzero(chosen != rejected)
        contents, swapped = mixed(prompt, chosen, rejected), mixed(prompt, rejected, chosen)
        return [hit.index for hit in standing_in(rows, swapped, rows, contents)]

    def _shared(self) -> list[int]:
        return [index for index, prompt in enumerate(self._hashes["prompt"]) if prompt in self._held_out]

    def _tally(self, indices: Sequence[int]) -> Tally:
        return Tally(len(indices), tuple(self._places[index] for index in indices[:SHOWN_PLACES]))


def _hash(record: Record) -> int:
    """Equal for equal prompts."""
    return hash((flat(record.prompt), record.arguments.tools, record.arguments.kwargs)) & _ALL_BITS
