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
    more: str = ""
    """Further fields that templates read (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`): a JSON object."""


@dataclass(frozen=True, slots=True)
class TemplateArguments:
    """What a row hands to the chat template besides its messages, each as JSON text; empty where there is nothing."""

    tools: str = ""
    """List of function descriptions."""
    kwargs: str = ""
    """Object: `chat_template_kwargs`."""


NO_ARGUMENTS = TemplateArguments()

Prompt = str | tuple[Message, ...]
"""A string used to the letter, or the turns that the model's chat template renders."""

Response = str | tuple[Message, ...]
"""An answer, of the same kind as its prompt: a string, or turns, of which the assistant's are scored."""


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
    arguments: TemplateArguments = NO_ARGUMENTS

    @property
    def id(self) -> str:
        """sha256 of the content, in hexadecimal: equal rows have equal ids wherever they stand."""
        content = [_plain(self.prompt), _plain(self.chosen), _plain(self.rejected)]
        return _digest([*content, self.chosen_reward, self.rejected_reward], self.arguments)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A demonstration (SFT): pieces in order, some of which the model is trained to write.

    Strings are joined to the letter; messages are rendered by the chat template.
    """

    pieces: tuple[str, ...] | tuple[Message, ...]
    trained: tuple[bool, ...]
    """For each piece, whether it is trained on; at least one is."""
    where: str
    """`path:line`, for messages. Not part of the content."""
    arguments: TemplateArguments = NO_ARGUMENTS

    @property
    def id(self) -> str:
        """sha256 of the content, in hexadecimal: equal rows have equal ids wherever they stand."""
        pieces = [_plain(piece) if isinstance(piece, str) else _plain((piece,)) for piece in self.pieces]
        return _digest([pieces, list(self.trained)], self.arguments)


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
    return [[message.role, message.content, message.more] for message in part]


def _digest(content: list[object], arguments: TemplateArguments) -> str:
    text = json.dumps([*content, arguments.tools, arguments.kwargs], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
