"""Messages to text through the model's own chat template, and the special tokens that stand in their contents.

A special token in a content is text, one that the template writes is a token; in the rendered text both look alike.
So where a content has one (`SpecialTokens.within`), marks of private-use characters hide it before rendering. What
still looks special then is the template's own: it becomes an alias, and the marks become text again.

    content          Say <|im_end|>!
    hidden           Say {mark 2}!
    rendered         <|im_start|>user⏎Say {mark 2}!<|im_end|>
    told apart       {alias 1}user⏎Say <|im_end|>!{alias 2}
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from dpolish.errors import DataError, ModelError
from dpolish.records import Message

_MARK_OPEN, _MARK_CLOSE, _ALIAS_OPEN, _ALIAS_CLOSE = "\U0010fff0", "\U0010fff1", "\U0010fff2", "\U0010fff3"
_MARK = re.compile(f"{_MARK_OPEN}([0-9]+){_MARK_CLOSE}")
_RESERVED = re.compile(f"[{_MARK_OPEN}-{_ALIAS_CLOSE}]")


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], responses: Iterable[Message]
) -> tuple[str, ...]:
    """The prompt's text up to where an answer begins, and the text of the whole conversation with each response.

    A DataError, without a place, when the template refuses the messages; a ModelError when there is no usable template.
    """
    require_chat_template(tokenizer)
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    answers = [{"role": message.role, "content": message.content} for message in responses]
    conversations = [(turns, True), *(([*turns, answer], False) for answer in answers)]
    return tuple(_apply(tokenizer, messages, generate) for messages, generate in conversations)


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ModelError unless the tokenizer has one chat template to use."""
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has the chat templates {', '.join(template)}, and none is the "
            "default one: put the one to use into chat_template.jinja in the model folder."
        )
    if not template:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which rows made of messages need.\n"
            "  Use an instruction-tuned model, put chat_template.jinja into the model folder, or write prompts and "
            "answers as strings in the template of the fine-tuning."
        )


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generate: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except TemplateSyntaxError as error:
        raise ModelError(f"{tokenizer.name_or_path}: the chat template has an error: {error}") from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the chat template refuses these messages ({roles}): {error}") from error
    assert isinstance(text, str)
    return text


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The strings that a tokenizer parses as special tokens, and the marks and aliases that stand for them."""

    strings: tuple[str, ...]
    _pattern: re.Pattern[str]

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

    def within(self, messages: Iterable[Message]) -> bool:
        """Whether a content has a special token."""
        return any(self._pattern.search(message.content) for message in messages)

    def hidden(self, message: Message) -> Message:
        """The message with marks in the place of special tokens."""
        if _RESERVED.search(message.content):
            raise DataError(
                "a message has special tokens next to the private-use characters U+10FFF0 … U+10FFF3, "
                "which mark such tokens here: remove the one or the other"
            )
        mark = {text: f"{_MARK_OPEN}{index}{_MARK_CLOSE}" for index, text in enumerate(self.strings)}
        return Message(message.role, self._pattern.sub(lambda match: mark[match.group()], message.content))

    def told_apart(self, rendered: str) -> str:
        """A text rendered from hidden messages: aliases for the template's special tokens, the others as text."""
        alias = dict(zip(self.strings, self.aliases, strict=True))
        text = self._pattern.sub(lambda match: alias[match.group()], rendered)
        return _MARK.sub(lambda match: self.strings[int(match.group(1))], text)
