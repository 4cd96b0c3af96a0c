"""Numbers over all pairs or demonstrations that training would keep. No torch here.

Lengths are in tokens where a model is given, in characters otherwise. A record leaves its lengths and its rewards, up
to 20 bytes.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from dpolish.data.prefixes import TokenIds, tokens_alike

BATCH_ROWS = 64
"""Rows that are taken for a batch: NeMo-Aligner's default in DPO."""
SAMPLED_PROMPTS = 64 * BATCH_ROWS
"""Prompts that are kept to see what those of a shuffled batch have in common."""

LIMITS = (512, 1024, 2048, 4096, 8192)
"""Sequence lengths that the truncation table has."""

_QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Spread:
    """How some numbers are spread."""

    count: int
    mean: float
    least: float
    greatest: float
    quantiles: dict[str, float]
    """By share: 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99."""

    @staticmethod
    def of(values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> "Spread":
        """That of at least one number."""
        found = np.quantile(values, _QUANTILES)
        quantiles = {f"{share:g}": float(value) for share, value in zip(_QUANTILES, found, strict=True)}
        return Spread(len(values), float(values.mean()), float(values.min()), float(values.max()), quantiles)


@dataclass(frozen=True, slots=True)
class Bin:
    """Lengths of a range, both ends included."""

    least: int
    greatest: int
    count: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one part of the rows."""

    spread: Spread
    histogram: tuple[Bin, ...]
    """From 0 to 7, 8 to 15, 16 to 31 and so on, up to the longest."""

    @staticmethod
    def of(values: npt.NDArray[np.int64]) -> "Lengths":
        """Those of at least one row."""
        edges = [0, 8]
        while edges[-1] <= values.max():
            edges.append(2 * edges[-1])
        counts, _ = np.histogram(values, bins=np.array(edges))
        bins = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        return Lengths(Spread.of(values), tuple(Bin(low, high - 1, count) for low, high, count in bins))


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How much the lengths of the two answers say about which is chosen."""

    pairs: int
    longer_chosen: int
    """Pairs of which the chosen answer is the longer one."""
    shorter_chosen: int
    equally_long: int
    mean_difference: float
    """Chosen less rejected."""
    auc: float
    """How likely a chosen answer is longer than a rejected one, of any two of the file; 0.5 is no bias."""

    @staticmethod
    def of(chosen: npt.NDArray[np.int64], rejected: npt.NDArray[np.int64]) -> "LengthBias":
        """That of at least one pair."""
        ordered = np.sort(rejected)
        below = np.searchsorted(ordered, chosen, side="left").sum()
        up_to = np.searchsorted(ordered, chosen, side="right").sum()
        longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
        pairs, difference = len(chosen), float((chosen - rejected).mean())
        auc = float((below + up_to) / 2) / pairs**2
        return LengthBias(pairs, longer, shorter, pairs - longer - shorter, difference, auc)

    @property
    def accuracy_of_longer(self) -> float:
        """How often "the longer one is better" is right; a tie is not."""
        return self.longer_chosen / self.pairs

    @property
    def accuracy_of_shorter(self) -> float:
        """How often "the shorter one is better" is right; a tie is not."""
        return self.shorter_chosen / self.pairs


@dataclass(frozen=True, slots=True)
class Margins:
    """Chosen reward less rejected reward, of the pairs that have both."""

    spread: Spread
    negative: int
    zero: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a sequence length would cost; counts of pairs or demonstrations."""

    length: int
    chosen: int
    """Those whose chosen answer would lose tokens; of demonstrations, whose text would."""
    rejected: int
    either: int
    """Those that training drops, since the longer of the two does not fit."""
    unanswered: int
    """Those with an answer of which not one token would be left."""


@dataclass(frozen=True, slots=True)
class Savings:
    """Tokens to compute for all rows."""

    padded: int
    """Each answer with its prompt, both as long as the longer one."""
    packed: int
    """Each answer with its prompt, without padding."""
    shared: int
    """The prompt once for both answers, without padding."""
    alike: int
    """Besides, what prompts begin with alike once in every BATCH_ROWS rows: about what dpolish computes.

    Estimated from a random sample of the prompts, in random order, as training shuffles them.
    """


@dataclass(frozen=True, slots=True)
class Statistics:
    """All numbers of the training files."""

    unit: str
    """Of lengths: tokens or characters."""
    lengths: dict[str, Lengths]
    """By part: prompt, chosen, rejected; of demonstrations prompt and trained."""
    length_bias: LengthBias | None
    margins: Margins | None
    truncation: tuple[Truncation, ...]
    savings: Savings | None

    def to_json(self) -> dict[str, object]:
        """As they stand in the JSON document."""
        content = asdict(self)
        if self.length_bias is not None:
            content["length_bias"] |= {
                "accuracy_of_longer": self.length_bias.accuracy_of_longer,
                "accuracy_of_shorter": self.length_bias.accuracy_of_shorter,
            }
        return content


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """The sizes of one tokenised record."""

    parts: tuple[int, ...]
    """Tokens of each part that statistics are kept of."""
    prompt: Sequence[int]
    """The tokens that all answers share."""
    wholes: tuple[int, ...]
    """Tokens of the prompt with each answer."""
    starts: tuple[int, ...]
    """Where each answer begins."""


class Measures:
    """The numbers of one pass, as they come."""

    def __init__(self, unit: str, parts: Sequence[str]) -> None:
        self._unit = unit
        self._lengths = {part: array("I") for part in parts}
        self._margins = array("d")
        self._truncation = {limit: [0, 0, 0, 0] for limit in LIMITS}
        self._savings = [0, 0, 0]
        self._prompts: list[TokenIds] = []
        self._seen = self._prompt_tokens = 0
        self._random = random.Random(0)

    def add(self, lengths: Sequence[int], rewards: tuple[float, float] | None) -> None:
        """Take one record in: the length of each part, and the two rewards where it has them."""
        for part, length in zip(self._lengths.values(), lengths, strict=True):
            part.append(length)
        if rewards is not None:
            self._margins.append(rewards[0] - rewards[1])

    def add_tokens(self, tokens: TokenLengths) -> None:
        """Take the sizes of a tokenised record in."""
        longest, whole = max(tokens.wholes), sum(tokens.wholes)
        for limit, counts in self._truncation.items():
            if longest > limit:
                for index, length in enumerate(tokens.wholes):
                    counts[index] += length > limit
                counts[2] += 1
                counts[3] += any(start >= limit for start in tokens.starts)
        self._savings[0] += longest * len(tokens.wholes)
        self._savings[1] += whole
        self._savings[2] += whole - len(tokens.prompt) * (len(tokens.wholes) - 1)
        self._prompt_tokens += len(tokens.prompt)
        self._sample(tokens.prompt)

    def _saved(self) -> Savings:
        padded, packed, shared = self._savings
        self._random.shuffle(self._prompts)
        sampled = sum(map(len, self._prompts))
        share = tokens_alike(self._prompts, BATCH_ROWS) / sampled if sampled else 0.0
        return Savings(padded, packed, shared, shared - round(share * self._prompt_tokens))

    def _sample(self, prompt: Sequence[int]) -> None:
        """Keep a uniform sample of all prompts (Vitter 1985, ACM Trans. Math. Softw. 11, algorithm R)."""
        self._seen += 1
        if len(self._prompts) < SAMPLED_PROMPTS:
            self._prompts.append(np.array(prompt, dtype=np.int32))
        elif (place := self._random.randrange(self._seen)) < SAMPLED_PROMPTS:
            self._prompts[place] = np.array(prompt, dtype=np.int32)

    def statistics(self) -> Statistics:
        """The numbers, once all records have been taken in."""
        lengths = {part: np.array(values, dtype=np.int64) for part, values in self._lengths.items()}
        some = any(map(len, lengths.values()))
        bias = LengthBias.of(lengths["chosen"], lengths["rejected"]) if some and "chosen" in lengths else None
        margins = np.array(self._margins, dtype=np.float64)
        tokens = self._unit == "tokens"
        return Statistics(
            self._unit,
            {part: Lengths.of(values) for part, values in lengths.items()} if some else {},
            bias,
            Margins(Spread.of(margins), int((margins < 0).sum()), int((margins == 0).sum())) if len(margins) else None,
            tuple(Truncation(limit, *counts) for limit, counts in self._truncation.items()) if tokens else (),
            self._saved() if tokens else None,
        )
