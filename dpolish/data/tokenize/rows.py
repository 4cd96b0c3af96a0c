"""Token ids of one row, before it becomes an example: these know what may be cut, and what was joined at a border."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dpolish.tensors import Completion, Example

Ids = list[int]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The token ids of a pair, before the prompt is shared."""

    prompt: Ids
    """Of the prompt alone."""
    answers: tuple[Ids, Ids]
    """Of the prompt with the chosen and with the rejected answer."""
    starts: tuple[int, int]
    """Where each answer begins: how much of `prompt` its tokens begin with."""
    rewards: tuple[float, float]
    masked: int | None
    """A token that is not scored where it stands in an answer."""
    others: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Indices into each of `answers`, within the answer, of what the assistant does not say: a tool's turns."""

    @property
    def merges(self) -> bool:
        """Whether the end of the prompt became one token with the beginning of an answer."""
        return min(self.starts) < len(self.prompt)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return max(map(len, self.answers))

    @property
    def equal(self) -> bool:
        """Whether the two answers came out the same, and so prefer nothing."""
        return self.answers[0] == self.answers[1]

    def cut(self, length: int) -> "TokenPair":
        """The same pair with no more than `length` tokens in each answer with its prompt."""
        chosen, rejected = self.answers
        return replace(self, answers=(chosen[:length], rejected[:length]))

    def unscored(self, side: int) -> tuple[int, ...]:
        """Indices into one of `answers`, from its start on, that are left out of its score."""
        tokens, start = self.answers[side], max(self.starts[side], 1)
        others = set(self.others[side])
        return tuple(i for i in range(start, len(tokens)) if tokens[i] == self.masked or i in others)

    def example(self) -> Example | None:
        """The prompt once, with both answers; None when an answer has no token to score."""
        shared = min(self.starts)
        completions = []
        for side, (tokens, start) in enumerate(zip(self.answers, self.starts, strict=True)):
            first = max(start, 1)  # nothing stands before token 0, so nothing predicts it
            unscored = tuple(i - shared for i in self.unscored(side))
            if first + len(unscored) >= len(tokens):
                return None
            completions.append(Completion(np.array(tokens[shared:], dtype=np.int32), first - shared, unscored))
        return Example(np.array(self.prompt[:shared], dtype=np.int32), tuple(completions), self.rewards)


@dataclass(frozen=True, slots=True)
class TokenConversation:
    """The token ids of a demonstration (SFT)."""

    tokens: Ids
    trained: Sequence[bool]
    """For each token, whether the model is trained to write it."""
    prefix: int
    """Tokens in front that belong to no piece (BOS): cutting spares them."""
    chat: bool
    """Made of messages, not of strings."""
    merges: bool
    """Whether a border between what is trained and what is not lies within a token."""

    @property
    def longest(self) -> int:
        """Tokens up to the last trained one: nothing behind it reaches the loss."""
        return next((i + 1 for i in range(len(self.trained) - 1, -1, -1) if self.trained[i]), 0)

    def cut(
        self, length: int, field: Literal["input", "output"] = "output", method: Literal["left", "right"] = "right"
    ) -> "TokenConversation":
        """The same row within `length` tokens.

        With the field `input`, strings lose what stands before the first trained token, beginning at its left or right
        end, and only when that is not enough the end of the answer. Messages always lose their end.
        """
        start, excess = self.prefix, self.longest - length
        if excess > 0 and field == "input" and not self.chat:
            prompt = range(self.prefix, max(self.prefix, self.trained.index(True)))
            lost = min(excess, len(prompt))
            start = prompt.start if method == "left" else prompt.stop - lost
            tokens = self.tokens[:start] + self.tokens[start + lost :]
            trained = [*self.trained[:start], *self.trained[start + lost :]]
            return replace(self, tokens=tokens[:length], trained=trained[:length])
        return replace(self, tokens=self.tokens[:length], trained=self.trained[:length]) if excess > 0 else self

    def example(self) -> Example | None:
        """The tokens before the first trained one as the prompt; None when there is none to train."""
        trained = [i for i in range(1, len(self.tokens)) if self.trained[i]]  # nothing predicts token 0
        if not trained:
            return None
        first, last = trained[0], trained[-1]
        unscored = tuple(i - first for i in range(first, last) if not self.trained[i])
        completion = Completion(np.array(self.tokens[first : last + 1], dtype=np.int32), 0, unscored)
        return Example(np.array(self.tokens[:first], dtype=np.int32), (completion,), (0.0,))
