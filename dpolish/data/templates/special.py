"""Special tokens that stand in messages.

A special token in a content is text, one that the template writes is a token; in the rendered text both look alike.
So where a message has one (`SpecialTokens.within`), marks of private-use characters hide it before rendering. What
still looks special then is the template's own: it becomes an alias, and the marks become text again.

    content          Say <|im_end|>!
    hidden           Say {mark 2}!
    rendered         <|im_start|>user⏎Say {mark 2}!<|im_end|>
    told apart       {alias 1}user⏎Say <|im_end|>!{alias 2}
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dpolish.errors import DataError
from dpolish.records import Message, TemplateArguments

_MARK_OPEN, _MARK_CLOSE, _ALIAS_OPEN, _ALIAS_CLOSE = "\U0010fff0", "\U0010fff1", "\U0010fff2", "\U0010fff3"
_MARK = re.compile(f"{_MARK_OPEN}([0-9]+){_MARK_CLOSE}")
_RESERVED = re.compile(f"[{_MARK_OPEN}-{_ALIAS_CLOSE}]")
_ESCAPED_MARK = json.dumps(_MARK_OPEN)[1:-1]  # what a template makes of a mark that writes JSON in ASCII


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The strings that a tokenizer parses as special tokens, and the marks and aliases that stand for them."""

    strings: tuple[str, ...]
    pattern: re.Pattern[str]
    """Finds them, the longest first."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Those of a tokenizer."""
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        strings = tuple(dict.fromkeys(text for text in (*added, *tokenizer.all_special_tokens) if text))
        longest_first = sorted(strings, key=len, reverse=True)
        return SpecialTokens(strings, re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))

    @property
    def aliases(self) -> tuple[str, ...]:
        """One string for each special token, which no text contains."""
        return tuple(f"{_ALIAS_OPEN}{index}{_ALIAS_CLOSE}" for index in range(len(self.strings)))

    def within(self, messages: Iterable[Message], arguments: TemplateArguments | None = None) -> bool:
        """Whether a message, its further fields or what the row gives to the template has a special token."""
        texts = [arguments.tools, arguments.kwargs] if arguments else []
        for message in messages:
            if self.pattern.search(message.content):
                return True
            texts.append(message.more)
        return any(self.pattern.search(string) for text in texts if text for string in _strings(json.loads(text)))

    def hidden(self, message: Message) -> Message:
        """The message with marks in the place of special tokens."""
        return Message(message.role, self._marked(message.content), self._marked_json(message.more))

    def hidden_arguments(self, arguments: TemplateArguments) -> TemplateArguments:
        """The arguments with marks in the place of special tokens."""
        return TemplateArguments(self._marked_json(arguments.tools), self._marked_json(arguments.kwargs))

    def told_apart(self, rendered: str) -> str:
        """A text rendered from hidden messages: aliases for the template's special tokens, the others as text."""
        if _ESCAPED_MARK in rendered:
            raise DataError(
                "a tool call or tool description has special tokens, which the chat template escapes: remove them"
            )
        alias = dict(zip(self.strings, self.aliases, strict=True))
        text = self.pattern.sub(lambda match: alias[match.group()], rendered)
        return _MARK.sub(lambda match: self.strings[int(match.group(1))], text)

    def _marked(self, text: str) -> str:
        if _RESERVED.search(text):
            raise DataError(
                "a message has special tokens next to the private-use characters U+10FFF0 … U+10FFF3, "
                "which mark such tokens here: remove the one or the other"
            )
        mark = {text: f"{_MARK_OPEN}{index}{_MARK_CLOSE}" for index, text in enumerate(self.strings)}
        return self.pattern.sub(lambda match: mark[match.group()], text)

    def _marked_json(self, text: str) -> str:
        return json.dumps(_with_strings(json.loads(text), self._marked), ensure_ascii=False) if text else ""


def _strings(value: object) -> Iterator[str]:
    """Every string value in JSON data."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            yield from _strings(list(value.values()))


def _with_strings(value: object, change: Callable[[str], str]) -> object:
    """JSON data with every string value changed; keys are the shape of the data and stay."""
    match value:
        case str():
            return change(value)
        case list():
            return [_with_strings(item, change) for item in value]
        case dict():
            return {key: _with_strings(item, change) for key, item in value.items()}
        case _:
            return value
