"""Shapes of demonstrations (SFT): what is said, and which parts of it the model is trained to write."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dpolish.data.formats.answers import NOTHING_TRAINED, Skipped
from dpolish.data.formats.fields import Fields, near, short
from dpolish.data.formats.messages import (
    LABEL_TYPES,
    SPEAKERS,
    answer,
    assistant,
    messages,
    prompt,
    train_flags,
    turns,
    user,
)
from dpolish.data.formats.pairs import instruction
from dpolish.data.formats.shape import SFT_FORMATS, Format, row_format
from dpolish.errors import ConfigError
from dpolish.records import Conversation, Message
from dpolish.registry import did_you_mean

TAIL = "turns behind the last one that is trained on: left out"
"""A remark: what is left out changes no loss."""

_ESCAPE = re.compile(r"\\(?:[nrt\\]|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})")
_MEANINGS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def spoken(row: Fields, found: Sequence[Message], trained: Sequence[bool]) -> Conversation | Skipped:
    """The conversation up to its last trained turn; what follows moves no loss and is left out with a remark."""
    if not any(trained):
        return Skipped(row.where, NOTHING_TRAINED)
    end = max(index for index, is_trained in enumerate(trained) if is_trained) + 1
    if end < len(found):
        row.remarks[TAIL] = None
    return Conversation(tuple(found[:end]), tuple(trained[:end]), row.where)


# Strings


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """NeMo's `prompt_template`: the text of a prompt-response row, with its fields in braces."""

    before: tuple[tuple[str, str], ...]
    """Up to the label: literal text, and the key of the field behind it, "" behind the last text."""
    blanks: str
    """Those in front of the label; NeMo trains on them with it."""
    label: str
    behind: tuple[tuple[str, str], ...]
    """What follows the label, likewise; it is trained on too."""

    @staticmethod
    def of(text: str, label: str) -> "PromptTemplate":
        """Take a template apart. A ConfigError says what is wrong with it."""
        named = f"prompt_template {short(text)!r}"
        parts = re.split(r"\{(.*?)\}", _ESCAPE.sub(_meaning, text))
        literals, keys = parts[0::2], parts[1::2]
        if "" in keys:
            raise ConfigError(f"{named}: braces with nothing in them: write the name of a field into them")
        if keys.count(label) != 1:
            where = "stands in it twice" if label in keys else "does not stand in it"
            raise ConfigError(f"{named}: the label {{{label}}} {where}.{did_you_mean(label, keys)}")
        at = keys.index(label)
        pieces = list(zip(literals, [*keys, ""], strict=True))
        last = literals[at].rstrip(" ")
        blanks = literals[at][len(last) :]
        return PromptTemplate((*pieces[:at], (last, "")), blanks, label, tuple(pieces[at + 1 :]))

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that it needs, in order."""
        found = (*(key for _, key in self.before), self.label, *(key for _, key in self.behind))
        return tuple(dict.fromkeys(key for key in found if key))

    def read(self, row: Fields) -> Conversation:
        """The text before the label's value, and the trained text from there on."""
        trained = self.blanks + _value(row, self.label) + _filled(row, self.behind)
        return Conversation((_filled(row, self.before), trained), (False, True), row.where)


def _filled(row: Fields, pieces: tuple[tuple[str, str], ...]) -> str:
    return "".join(literal + (_value(row, key) if key else "") for literal, key in pieces)


def _value(row: Fields, key: str) -> str:
    """A field's text without the blanks around it, as NeMo fills it in."""
    return row.text(key).strip(" ")


def _meaning(escape: re.Match[str]) -> str:
    """A command line cannot hold a line end, so templates may write it as NeMo reads it."""
    text = escape.group()[1:]
    return _MEANINGS.get(text) or chr(int(text[1:], 16))


_OTHER_TEXT = ("instruction", "messages", "conversations", "completion", "output", "response")

DEFAULT_TEMPLATE = PromptTemplate.of("{input} {output}", "output")


@row_format(
    "input_output",
    *DEFAULT_TEMPLATE.keys,
    when=lambda value: value.get("instruction") is None,
    needs="no instruction beside them",
    seen="NeMo-Aligner (prompt-response)",
    example={"input": "Question: who wrote Faust?\nAnswer:", "output": "Goethe"},
    registry=SFT_FORMATS,
)
def input_output(row: Fields) -> Conversation:
    """The fields of `prompt_template`, `{input} {output}` if none is given; the label is trained on."""
    return DEFAULT_TEMPLATE.read(row)


def template_format(template: PromptTemplate) -> Format:
    """The shape `input_output` with another template."""
    return replace(
        SFT_FORMATS["input_output"], required=template.keys, when=None, needs="", example={}, reader=template.read
    )


@row_format(
    "prompt_completion",
    "prompt",
    "completion",
    seen="TRL, OpenAI",
    example={"prompt": "Question: who wrote Faust?\nAnswer:", "completion": " Goethe"},
    registry=SFT_FORMATS,
)
def prompt_completion(row: Fields) -> Conversation:
    """Strings to the letter, or messages; the completion is trained on."""
    asked = prompt(row, "prompt")
    said = answer(row, "completion", asked)
    if isinstance(asked, str) or isinstance(said, str):
        return Conversation((str(asked), str(said)), (False, True), row.where)
    trained = [message.role == "assistant" for message in said]
    return Conversation((*asked, *said), (*(False for _ in asked), *trained), row.where)


@row_format(
    "text",
    "text",
    when=lambda value: not any(value.get(key) is not None for key in _OTHER_TEXT),
    needs="no field beside it that is known from other formats",
    seen="TRL, language modelling",
    example={"text": "Faust is a tragedy in two parts by Goethe."},
    registry=SFT_FORMATS,
)
def text(row: Fields) -> Conversation:
    """A string to the letter, all of it trained on."""
    return Conversation((row.text("text"),), (True,), row.where)


# Messages


@row_format(
    "messages",
    "messages",
    unused=("prompt", "prompt_id"),
    seen="OpenAI, TRL, axolotl, ms-swift",
    example={
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Who wrote Faust?"},
            {"role": "assistant", "content": "Goethe"},
        ]
    },
    registry=SFT_FORMATS,
)
def said_in_messages(row: Fields) -> Conversation | Skipped:
    """Messages; the assistant's are trained on, unless `weight`, `train`, `training` or `loss` says otherwise."""
    found = messages(row, "messages", flagged=True)
    flags = train_flags(row, "messages")
    trained = [
        message.role == "assistant" if flag is None else flag for message, flag in zip(found, flags, strict=True)
    ]
    return spoken(row, found, trained)


@row_format(
    "sharegpt",
    "conversations",
    optional=("mask", "type"),
    seen="NeMo-Aligner (chat), ShareGPT, LLaMA-Factory",
    example={
        "system": "",
        "mask": "User",
        "conversations": [
            {"from": "User", "value": "Who wrote Faust?"},
            {"from": "Assistant", "value": "Goethe."},
        ],
    },
    registry=SFT_FORMATS,
)
def sharegpt(row: Fields) -> Conversation | Skipped:
    """Turns `{from, value}`; all but the first and those of `mask` (the user) are trained on."""
    label_type = row.choice("type", {name: name for name in LABEL_TYPES}) if row.has("type") else None
    found = turns(row, "conversations", label_type)
    masked = _masked(row)
    if row.has("mask") and found and not any(message.role == masked for message in found):
        raise row.fail("mask", f"no turn is by {short(row.text('mask'))!r}: name the speaker that is not trained on")
    first = 0 if label_type == "TEXT_TO_VALUE" else 1
    trained = [
        index >= first and message.role != masked and message.role in ("user", "assistant")
        for index, message in enumerate(found)
    ]
    return spoken(row, found, trained)


def _masked(row: Fields) -> str:
    name = row.text_or("mask", "user")
    role = SPEAKERS.get(name.lower())
    if role is None:
        raise row.fail("mask", f"unknown speaker {short(name)!r}.{near(name.lower(), SPEAKERS)}")
    return role


def _taught(row: Fields, asked: tuple[Message, ...], key: str) -> Conversation:
    return Conversation((*asked, *assistant(row.text(key))), (*(False for _ in asked), True), row.where)


@row_format(
    "alpaca",
    "instruction",
    "output",
    optional=("input", "history"),
    unused=("text",),
    seen="Alpaca, LLaMA-Factory",
    example={"instruction": "Say it politely.", "input": "Go away.", "output": "Could you leave, please?"},
    registry=SFT_FORMATS,
)
def alpaca(row: Fields) -> Conversation:
    """What to do and what with, as one message of the user, and the answer."""
    return _taught(row, instruction(row, "instruction"), "output")


@row_format(
    "dolly",
    "instruction",
    "response",
    optional=("context",),
    unused=("category",),
    seen="Dolly",
    example={
        "instruction": "Who wrote it?",
        "context": "Faust is a tragedy by Goethe.",
        "response": "Goethe.",
        "category": "closed_qa",
    },
    registry=SFT_FORMATS,
)
def dolly(row: Fields) -> Conversation:
    """What to do and in what context, as one message of the user, and the answer."""
    given = row.text_or("context", "")
    asked = row.text("instruction")
    return _taught(row, user(f"{asked}\n\n{given}" if given else asked), "response")


def last_only(conversation: Conversation) -> Conversation:
    """The conversation with its last trained turn as the only one."""
    last = max(index for index, trained in enumerate(conversation.trained) if trained)
    return replace(conversation, trained=tuple(index == last for index in range(len(conversation.trained))))


def formats_with(template: PromptTemplate) -> Mapping[str, Format]:
    """The shapes of demonstrations where prompt-response rows have this template."""
    if template == DEFAULT_TEMPLATE:
        return SFT_FORMATS
    return {**SFT_FORMATS, "input_output": template_format(template)}
