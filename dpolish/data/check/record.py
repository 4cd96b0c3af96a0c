"""What a check sees of a row, whatever the task: a prompt, the answers to it, and all the text. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpolish.records import Conversation, Message, PreferencePair, Prompt, Response, TemplateArguments


@dataclass(frozen=True, slots=True)
class Record:
    """One pair or one conversation."""

    source: PreferencePair | Conversation
    prompt: Prompt
    answers: tuple[Response, ...]
    """The chosen and the rejected answer; of a conversation, everything from its first trained piece on."""
    text: str
    """All text of it, for a search that asks whether, not where."""
    row: int
    """Number of its row among all that were read; places are no names of rows, since a list may be one line."""

    @property
    def where(self) -> str:
        """`path:line`."""
        return self.source.where

    @property
    def is_pair(self) -> bool:
        """Whether it is a pair; a conversation otherwise."""
        return isinstance(self.source, PreferencePair)

    @property
    def arguments(self) -> TemplateArguments:
        """What its chat template gets besides the messages."""
        return self.source.arguments

    @property
    def rewards(self) -> tuple[float, float] | None:
        """Of the chosen and the rejected answer, where the row has both."""
        pair = self.source
        if not isinstance(pair, PreferencePair) or pair.chosen_reward is None or pair.rejected_reward is None:
            return None
        return pair.chosen_reward, pair.rejected_reward

    @property
    def trained(self) -> list[Response]:
        """The trained pieces of a conversation; none of a pair."""
        if isinstance(self.source, PreferencePair):
            return []
        found: list[Response] = []
        for piece, trained in zip(self.source.pieces, self.source.trained, strict=True):
            if trained:
                found.append((piece,) if isinstance(piece, Message) else str(piece))
        return found

    @property
    def lengths(self) -> tuple[int, ...]:
        """Characters of the prompt and of each answer; of a conversation, of its prompt and of all that is trained."""
        if self.is_pair:
            return tuple([num_characters(part) for part in (self.prompt, *self.answers)])
        return num_characters(self.prompt), sum(map(num_characters, self.trained))

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Where each text stands in the row (`prompt[1]`, `chosen`), and the text."""
        names = ("chosen", "rejected") if self.is_pair else ("answer",)
        parts = [("prompt", self.prompt), *zip(names, self.answers, strict=True)]
        return [text for name, part in parts for text in _named(name, part)]


def record_of(source: PreferencePair | Conversation, row: int = 0) -> Record:
    """The record of a pair, or of a conversation, which is cut before its first trained piece."""
    prompt: Prompt
    answers: tuple[Response, ...]
    if isinstance(source, PreferencePair):
        prompt, answers = source.prompt, (source.chosen, source.rejected)
    else:
        strings = isinstance(source.pieces[0], str) if source.pieces else True
        first = source.trained.index(True) if True in source.trained else len(source.trained)
        prompt, answers = _joined(source.pieces[:first], strings), (_joined(source.pieces[first:], strings),)
    return Record(source, prompt, answers, "\n".join([contents(part) for part in (prompt, *answers)]), row)


def contents(part: Prompt | Response) -> str:
    """The text of a prompt or an answer, without the names of the roles."""
    return part if isinstance(part, str) else "\n".join([message.content for message in part])


def asked(prompt: Prompt) -> str:
    """The text of a prompt without system messages, which say nothing of how alike two prompts are."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join([message.content for message in prompt if message.role not in ("system", "developer")])


def flat(part: Prompt | Response) -> str:
    """One string that differs wherever two prompts or answers of a kind do."""
    if isinstance(part, str):
        return part
    return "\x1e".join([f"{message.role}\x1f{message.content}\x1f{message.more}" for message in part])


def is_blank(part: Prompt | Response) -> bool:
    """Whether there is nothing to read in it: no text, and no call of a tool."""
    if isinstance(part, str):
        return not part.strip()
    return not any(message.content.strip() or message.more for message in part)


def num_characters(part: Prompt | Response) -> int:
    """Length of its text."""
    return len(part) if isinstance(part, str) else sum([len(message.content) for message in part])


def _joined(pieces: Sequence[str | Message], strings: bool) -> str | tuple[Message, ...]:
    if strings:
        return "".join([piece for piece in pieces if isinstance(piece, str)])
    return tuple([piece for piece in pieces if isinstance(piece, Message)])


def _named(name: str, part: Prompt | Response) -> list[tuple[str, str]]:
    if isinstance(part, str):
        return [(name, part)]
    if len(part) == 1 and name != "prompt":
        return [(name, part[0].content)]
    return [(f"{name}[{index}]", message.content) for index, message in enumerate(part)]
