"""What is timed: pairs and demonstrations as token ids, in the length regimes where trainers differ most.

All sides get the ids themselves, never text: the same tokens, in the same order.
"""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One preference pair as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def num_tokens(self) -> int:
        """Real tokens: the prompt counted once, no padding."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer answer: what a padded row must hold."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One demonstration as token ids."""

    ids: list[int]
    trained: list[int]
    """For each token 1 where it is trained on, else 0."""

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        """Those that are trained on."""
        return sum(self.trained)


@dataclass(frozen=True, slots=True)
class Regime:
    """A kind of data: where real rows may lie, and how long rows are where there are none."""

    name: str
    batch: int
    """Pairs or demonstrations in one optimizer step."""
    file: str | None
    """Name of a data file; None: always generated."""
    prompt: tuple[int, ...]
    """Evenly spaced quantiles, from smallest to largest, of the number of prompt tokens."""
    answer: tuple[int, ...]
    """Likewise for answers."""


MAX_TOKENS = 1024
"""Prompt and (longer) answer together; longer rows are left out, as every trainer would have them."""

_POLITENESS = Regime(
    "politeness",
    batch=8,
    file="politeness_train.jsonl",
    prompt=(35, 38, 38, 39, 40, 41, 42, 46, 48, 51, 61),
    answer=(3, 9, 11, 12, 14, 15, 16, 18, 22, 29, 62),
)
_CONVERSATIONS = Regime(
    "conversations",
    batch=4,
    file="conversations_pairs.json",
    prompt=(36, 47, 58, 68, 85, 103, 132, 179, 277, 481, 755),
    answer=(3, 30, 75, 120, 193, 248, 302, 366, 439, 519, 940),
)

DPO_REGIMES: tuple[Regime, ...] = (
    _POLITENESS,
    _CONVERSATIONS,
    Regime("prompt-heavy", batch=2, file=None, prompt=(350, 560, 760, 960, 1500), answer=(45, 75, 95, 120, 180)),
    Regime("answer-heavy", batch=4, file=None, prompt=(10, 15, 19, 24, 35), answer=(120, 170, 200, 230, 280)),
)
SFT_REGIMES: tuple[Regime, ...] = (replace(_POLITENESS, batch=32), replace(_CONVERSATIONS, batch=8))


def pairs_of(regime: Regime, count: int, data: Path, tokenizer_folder: Path) -> tuple[list[TokenPair], str]:
    """`count` pairs of a regime, and where they came from: rows of its file if `data` holds it, else generated ids."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    path = data / regime.file if regime.file else None
    if path is None or not path.is_file():
        return generate(regime, count, len(tokenizer)), "generated"
    pairs = [_tokenize(tokenizer, row) for row in _read(path)]
    usable = [pair for pair in pairs if pair.longest <= MAX_TOKENS and pair.chosen != pair.rejected]
    return _drawn(usable, count), path.name


def rows_of(regime: Regime, count: int, data: Path, tokenizer_folder: Path) -> tuple[list[TokenRow], str]:
    """`count` demonstrations of a regime, and where they came from: its pairs' prompts with the chosen answers."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    path = data / regime.file if regime.file else None
    if path is None or not path.is_file():
        pairs = [pair for pair in generate(regime, 2 * count, len(tokenizer)) if pair.longest <= MAX_TOKENS]
        return _drawn([_demonstration(pair) for pair in pairs], count), "generated"
    rows = [_tokenize_row(tokenizer, row) for row in _read(path)]
    return _drawn([row for row in rows if row.num_tokens <= MAX_TOKENS and any(row.trained)], count), path.name


T = TypeVar("T")


def _drawn(usable: Sequence[T], count: int) -> list[T]:
    """`count` of them in an order that is always the same, over again where there are fewer."""
    shuffled = list(usable)
    random.Random(0).shuffle(shuffled)
    return list(itertools.islice(itertools.cycle(shuffled), count))


def generate(regime: Regime, count: int, vocabulary: int) -> list[TokenPair]:
    """Random ids with the regime's lengths; the answers of a pair are alike in length, as those of real pairs are."""
    rng = np.random.default_rng(0)
    pairs: list[TokenPair] = []
    while len(pairs) < count:
        common, own = rng.standard_normal(), rng.standard_normal(2)
        lengths = [
            _quantile(regime.prompt, rng.uniform()),
            *(_quantile(regime.answer, NormalDist().cdf(0.65 * common + 0.76 * noise)) for noise in own),
        ]
        prompt, chosen, rejected = (rng.integers(vocabulary // 10, vocabulary, length).tolist() for length in lengths)
        pairs.append(TokenPair(prompt, chosen, rejected))
    return pairs


def padded_over_shared(pairs: Sequence[TokenPair], batch: int) -> float:
    """Tokens of padded rows, two for each pair, over tokens with the prompt once and no padding: what can be won."""
    batches = [pairs[first : first + batch] for first in range(0, len(pairs), batch)]
    padded = sum(2 * len(group) * max(pair.longest for pair in group) for group in batches)
    return padded / sum(pair.num_tokens for pair in pairs)


def padded_over_real(rows: Sequence[TokenRow], batch: int) -> float:
    """Tokens of rows padded to the longest of their batch, over their real tokens: what padding alone costs."""
    batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    padded = sum(len(group) * max(row.num_tokens for row in group) for group in batches)
    return padded / sum(row.num_tokens for row in rows)


def _quantile(quantiles: tuple[int, ...], share: float) -> int:
    return int(np.interp(share, np.linspace(0, 1, len(quantiles)), quantiles))


@dataclass(frozen=True, slots=True)
class _Row:
    messages: list[dict[str, str]]
    chosen: str
    rejected: str


_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def _read(path: Path) -> list[_Row]:
    """The rows of one of the two shapes that the benchmark knows: native rows with messages, or `conversations`."""
    if path.suffix == ".jsonl":
        native = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            _Row(row["prompt"], row["chosen_response"]["content"], row["rejected_response"]["content"])
            for row in native
        ]
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        _Row(
            [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]],
            row["chosen"]["value"],
            row["rejected"]["value"],
        )
        for row in rows
    ]


def _tokenize(tokenizer: PreTrainedTokenizerBase, row: _Row) -> TokenPair:
    """The row through the model's chat template; without one, its contents line by line."""
    if tokenizer.chat_template is None:
        text = "".join(f"{message['content']}\n" for message in row.messages)
        prompt, chosen, rejected = (tokenizer(part).input_ids for part in (text, row.chosen, row.rejected))
        return TokenPair(prompt, chosen, rejected)
    prompt = _render(tokenizer, row.messages, open_turn=True)
    answers = [
        _render(tokenizer, [*row.messages, {"role": "assistant", "content": answer}], open_turn=False)[len(prompt) :]
        for answer in (row.chosen, row.rejected)
    ]
    return TokenPair(prompt, *answers)


def _tokenize_row(tokenizer: PreTrainedTokenizerBase, row: _Row) -> TokenRow:
    """Prompt and chosen answer. Trained is every turn of the assistant that answers something, its end included."""
    if tokenizer.chat_template is None:
        return _demonstration(_tokenize(tokenizer, row))
    messages = [*row.messages, {"role": "assistant", "content": row.chosen}]
    ids = _render(tokenizer, messages, open_turn=False)
    trained = [0] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and turn > 0:
            first = len(_render(tokenizer, messages[:turn], open_turn=True))
            end = len(_render(tokenizer, messages[: turn + 1], open_turn=False))
            trained[first:end] = [1] * (end - first)
    return TokenRow(ids, trained)


def _demonstration(pair: TokenPair) -> TokenRow:
    return TokenRow(pair.prompt + pair.chosen, [0] * len(pair.prompt) + [1] * len(pair.chosen))


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, open_turn: bool) -> list[int]:
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=open_turn, tokenize=False)
    ids: list[int] = tokenizer(rendered, add_special_tokens=False).input_ids
    return ids
