"""Which prompts are alike, from a fixed number of bytes for each: MinHash over runs of words. No torch here.

A prompt is its set of runs of three words, without case, punctuation and blanks. The least value that a hash function
takes over a set is the same for two sets with the probability of their likeness (shared runs over all runs), so the
share of equal least values among 64 functions estimates it, to within about 0.05 at the threshold. Prompts that agree
in four values at a fixed place are compared; of two that are 0.8 alike, 1 in 4,000 is missed.
"""

import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SKETCH_VALUES = 64
"""Least values kept for each prompt, two bytes each."""

LIKENESS = 0.8
"""Share of runs of words from which two prompts are called similar."""

_FEWEST_PROMPTS = 16
"""Different prompts that show what a file's prompts have in common."""

_VALUES_IN_BAND = 4  # 8 bytes: one integer to sort by

Sketches = npt.NDArray[np.uint16]

_GENERATOR = np.random.default_rng(0)
_FACTORS = (_GENERATOR.integers(0, 2**31, SKETCH_VALUES, dtype=np.uint32) << np.uint32(1)) | np.uint32(1)
_SHIFTS = _GENERATOR.integers(0, 2**32, SKETCH_VALUES, dtype=np.uint32)
_RUN_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint32)

_ASCII_WORDS = bytes(ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else ord(" ") for byte in range(256))


def bare_words(text: str) -> list[bytes]:
    """The words of a text in lower case, without punctuation. A letter of a script without blanks is a word."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).split()
    return unicodedata.normalize("NFKC", text).casefold().translate(_WORD_LETTERS).encode("utf-8", "replace").split()


class _WordLetters(dict[int, str]):
    """For each character what stands for it in words, made when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            kept = " "
        elif any(low <= code <= high for low, high in _WITHOUT_BLANKS):
            kept = f" {character} "
        else:
            kept = character
        self[code] = kept
        return kept


_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

_WORD_LETTERS = _WordLetters()


class Frames:
    """What all prompts of a file begin and end with, such as a template: it makes prompts no more alike."""

    def __init__(self) -> None:
        self._frames: dict[str, tuple[list[bytes], list[bytes]]] = {}

    def learn(self, path: str, texts: Sequence[list[bytes]]) -> None:
        """See the first prompts of a file, unless some were seen; of a few nothing is learned."""
        distinct = list({tuple(words): words for words in texts}.values())
        if path in self._frames or len(distinct) < _FEWEST_PROMPTS:
            return
        before = _common(distinct)
        behind = _common([words[len(before) :][::-1] for words in distinct])[::-1]
        self._frames[path] = (before, behind)

    def without(self, words: list[bytes]) -> list[bytes]:
        """A prompt without the frame that it has."""
        for before, behind in self._frames.values():
            end = len(words) - len(behind)
            if (before or behind) and end >= len(before) and words[: len(before)] == before and words[end:] == behind:
                return words[len(before) : end]
        return words


def _common(texts: Sequence[list[bytes]]) -> list[bytes]:
    """The words that all texts begin with."""
    first, last = min(texts), max(texts)  # in order: what these two share, all do
    length = next((i for i, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), None)
    return first if length is None else first[:length]


def sketches(texts: Sequence[Sequence[bytes]]) -> Sketches:
    """(n, 64) the sketch of each text, which is given by its words. Deterministic; a text without words is zeros."""
    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    made = np.zeros((len(texts), SKETCH_VALUES), dtype=np.uint16)
    filled = lengths > 0
    if not filled.any():
        return made
    # Two zeros behind each text: its last runs end in them, and no run reaches into the next text.
    padded = [value for words in texts if words for value in (*map(zlib.crc32, words), 0, 0)]
    values = np.array(padded, dtype=np.uint32)
    runs = values[:-2] * _RUN_FACTORS[0] + values[1:-1] * _RUN_FACTORS[1] + values[2:] * _RUN_FACTORS[2]
    runs ^= runs >> np.uint32(15)
    lengths = lengths[filled]
    ends = np.cumsum(lengths + 2)
    begins = ends - lengths - 2
    is_run = np.ones(len(runs) + 2, dtype=bool)
    is_run[ends - 1] = is_run[ends - 2] = False
    runs = runs[is_run[: len(runs)]]
    starts = begins - 2 * np.arange(len(begins))
    for index in range(SKETCH_VALUES):
        hashed = runs * _FACTORS[index] + _SHIFTS[index]
        hashed ^= hashed >> np.uint32(16)
        least = np.minimum.reduceat(hashed, starts)
        made[filled, index] = least.astype(np.uint16)  # the low bits: the high ones of a least value are all near zero
    return made


def similar(made: Sketches) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows that are similar to an earlier one, ascending, and for each the first one that was found to be."""
    earlier = np.full(len(made), len(made), dtype=np.int64)
    words = made.max(axis=1) > 0
    for band in np.ascontiguousarray(made).view(np.uint64).T:
        order = np.argsort(band, kind="stable")
        begins = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0]) if len(order) else order
        first = np.repeat(order[begins], np.diff(np.r_[begins, len(order)]))
        for later, other in ((order, first), (order[1:], order[:-1])):
            # The first of the band and the one before: a chain of likes needs no comparison of each with each.
            pairs = (other < later) & (band[other] == band[later]) & words[later]
            later, other = later[pairs], other[pairs]
            alike = np.flatnonzero(_num_equal(made, later, other) >= LIKENESS * SKETCH_VALUES)
            np.minimum.at(earlier, later[alike], other[alike])
    rows = np.flatnonzero(earlier < len(made))
    return rows, earlier[rows]


def _num_equal(made: Sketches, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many values of two sketches agree, pair by pair; some at a time, so that memory stays bounded."""
    counts = np.zeros(len(first), dtype=np.int64)
    for start in range(0, len(first), 65536):
        part = slice(start, start + 65536)
        counts[part] = (made[first[part]] == made[second[part]]).sum(axis=1)
    return counts
