"""Plain values that cross rooms: what a row says, and what a step reports. No torch here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as the chat templates know it."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""A string used to the letter, or the turns that the model's chat template renders."""

Response = str | Message
"""An answer: of the same kind as its prompt."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with the answer that was preferred and the one that was not."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    chosen_reward: float | None
    """Ground-truth reward of the chosen answer (RPO); None takes the configured default."""
    rejected_reward: float | None
    where: str
    """`path:line`, for messages. Not part of the content."""

    @property
    def id(self) -> str:
        """sha256 of the content, in hexadecimal: equal rows have equal ids wherever they stand."""
        content = [_plain(self.prompt), _plain(self.chosen), _plain(self.rejected)]
        text = json.dumps([*content, self.chosen_reward, self.rejected_reward], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimizer step, or one validation after it, reports. Loggers and the report read only this."""

    step: int
    """Optimizer steps done, from 1."""
    split: str
    """`train` or `val`."""
    metrics: Mapping[str, float]
    """Bare metric names (`loss`, `acc`, …) and their values."""


def _plain(part: Prompt | Response) -> object:
    if isinstance(part, str):
        return part
    if isinstance(part, Message):
        return [part.role, part.content]
    return [[message.role, message.content] for message in part]
