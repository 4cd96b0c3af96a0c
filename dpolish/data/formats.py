"""The shapes of preference rows. A shape is one function from a row's fields to a pair, known by the keys of the row.

    @row_format("name", "the keys that", "it needs", optional=("the ones it may have",))
    def name(row: Fields) -> PreferencePair: ...

`PairFile` reads a file: the shape is found from its first good row, or given, and every further row must have it.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from dpolish.data.read import Fault, Row, json_type, scan
from dpolish.errors import DataError
from dpolish.records import Message, PreferencePair, Prompt, Response
from dpolish.registry import Registry, did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The speakers that chat templates know."""

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}

_UNSUPPORTED_MESSAGE_KEYS = ("tool_calls", "function_call", "images", "audio", "videos")


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows: the keys that it is known by, and its reader."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    """Keys that it uses where they are."""
    unused: tuple[str, ...]
    """Keys that belong to the shape and say nothing that a pair needs: no surprise, so not reported."""
    read: Callable[["Fields"], PreferencePair]

    def fits(self, value: Mapping[str, object]) -> bool:
        """Whether a row has every key that this shape needs; null counts as absent."""
        return all(value.get(key) is not None for key in self.required)


FORMATS: Registry[Format] = Registry("row format")


def row_format(
    name: str, *required: str, optional: tuple[str, ...] = (), unused: tuple[str, ...] = ()
) -> Callable[[Callable[["Fields"], PreferencePair]], Callable[["Fields"], PreferencePair]]:
    """Register a row reader under its name, with the keys that it needs and may use."""

    def register(read: Callable[["Fields"], PreferencePair]) -> Callable[["Fields"], PreferencePair]:
        FORMATS.register(name)(Format(name, required, optional, unused, read))
        return read

    return register


def detect(row: Row) -> Format:
    """The one shape that a row has. No shape, or more than one, is a DataError."""
    fitting = [shape for shape in FORMATS.values() if shape.fits(row.value)]
    fitting = [shape for shape in fitting if not any(set(shape.required) < set(other.required) for other in fitting)]
    if len(fitting) == 1:
        return fitting[0]
    keys = _names(row.value)
    if fitting:
        names = " and ".join(shape.name for shape in fitting)
        raise DataError(f"{row.where}: the row fits {names}; the fields are {keys}. Say which with model.data.format.")
    nearest = max(FORMATS.values(), key=lambda shape: _likeness(shape, row.value))
    shapes = "; ".join(f"{shape.name}: {', '.join(shape.required)}" for shape in FORMATS.values())
    raise DataError(
        f"{row.where}: no known row format; the fields are {keys}.{_misspelt(nearest, row.value)}\n"
        f"  Known formats and the fields that they need: {shapes}."
    )


class PairFile:
    """The pairs of one file, in order. What the reading showed is in the fields once the pairs have been taken."""

    def __init__(self, path: str, format: str | None = None) -> None:
        self.path = path
        self.format = None if format is None else FORMATS[format]
        self.num_rows = 0
        """Rows met so far, good and bad."""
        self.extra_columns: dict[str, None] = {}
        """Keys that no pair was made from, in the order in which they came."""
        self._since = "model.data.format" if format else ""

    def pairs(self) -> Iterator[PreferencePair | Fault | DataError]:
        """Each row's pair, or what is wrong with it."""
        for row in scan(self.path):
            self.num_rows += 1
            if isinstance(row, Fault):
                yield row
                continue
            try:
                yield self._pair(row)
            except DataError as error:
                yield error

    def _pair(self, row: Row) -> PreferencePair:
        if self.format is None:
            self.format, self._since = detect(row), row.where
        shape = self.format
        if not shape.fits(row.value):
            raise DataError(self._misfit(shape, row))
        fields = Fields(row)
        pair = shape.read(fields)
        known = {*shape.required, *shape.optional, *shape.unused}
        for key in [*row.value, *fields.ignored]:
            if key not in known:
                hint = _near(key, set(shape.optional) - row.value.keys()).strip()
                self.extra_columns[f"{_short(key)} ({hint})" if hint else _short(key)] = None
        return pair

    def _misfit(self, shape: Format, row: Row) -> str:
        missing = " and ".join(
            f"{key} is null" if key in row.value else f"no {key}"
            for key in shape.required
            if row.value.get(key) is None
        )
        others = [other.name for other in FORMATS.values() if other.fits(row.value)]
        if others:
            remedy = (
                f" The row looks like {others[0]}, but a file has one format: put such rows into a file of their own."
            )
        else:
            remedy = _misspelt(shape, row.value)
        return (
            f"{row.where}: {missing} here; the fields are {_names(row.value)}. "
            f"The file is read as {shape.name} (from {self._since}).{remedy}"
        )


def _misspelt(shape: Format, value: Mapping[str, object]) -> str:
    """Hints for keys of a row that are nearly those which the shape lacks."""
    missing = [key for key in (*shape.required, *shape.optional) if key not in value]
    known = {*shape.required, *shape.optional, *shape.unused}
    hints = [(key, _near(key, missing)) for key in islice(value, 50) if key not in known]
    return "".join(f" {key!r} is none of its fields.{hint}" for key, hint in hints if hint)


def _near(name: str, known: Iterable[str]) -> str:
    """A hint as in the registries; a name may be anything here, and comparing a long one takes its square in time."""
    return did_you_mean(name, known) if len(name) < 100 else ""


def _names(value: Mapping[str, object]) -> str:
    return ", ".join(_short(key) for key in islice(value, 20)) + (" …" if len(value) > 20 else "") or "none"


def _short(text: str) -> str:
    return text if len(text) < 60 else f"{text[:40]}…"


def _likeness(shape: Format, value: Mapping[str, object]) -> tuple[int, int]:
    return sum(key in value for key in shape.required), len(_misspelt(shape, value))


class Fields:
    """A row's fields by name, each checked as it is taken; a DataError names the place, the field and the type."""

    def __init__(self, row: Row) -> None:
        self.where = row.where
        self.ignored: dict[str, None] = {}
        """Keys inside messages that were not used."""
        self._value = row.value

    def fail(self, key: str, what: str) -> DataError:
        """The error that says what is wrong with a field."""
        return DataError(f"{self.where}: {key}: {what}")

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str:
        """A field that must be a string."""
        value = self._value.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"expected a string, got {json_type(value)}")
        return value

    def reward(self, key: str) -> float | None:
        """A field that is a finite number, or is absent."""
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            got = value if isinstance(value, float) else json_type(value)
            raise self.fail(key, f"expected a finite number, got {got}")
        return float(value)

    def prompt(self, key: str) -> Prompt:
        """A string, or messages of which the last is not the assistant's."""
        value = self._value.get(key)
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise self.fail(key, f"expected a string or a list of messages, got {json_type(value)}")
        turns = tuple(self._message(f"{key}[{index}]", item) for index, item in enumerate(value))
        return self.ends_before_answer(key, turns)

    def answer(self, key: str, prompt: Prompt) -> Response:
        """An answer of its prompt's kind: a string, or one message of the assistant (alone, or as a list of one)."""
        value = self._value.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(prompt, str):
            if not isinstance(value, str):
                raise self.fail(key, f"expected a string, as the prompt is, got {json_type(value)}")
            return value
        if isinstance(value, list):
            raise self.fail(key, f"expected one message of the assistant, got a list of {len(value)}")
        if not isinstance(value, dict):
            raise self.fail(key, f"expected a message, as the prompt is of messages, got {json_type(value)}")
        return self.by_assistant(key, self._message(key, value))

    def turns(self, key: str) -> tuple[Message, ...]:
        """A field that must be a list of turns `{from, value}`, of which the last is not the assistant's."""
        value = self._value.get(key)
        if not isinstance(value, list):
            raise self.fail(key, f"expected a list of turns, got {json_type(value)}")
        turns = tuple(self._turn(f"{key}[{index}]", item) for index, item in enumerate(value))
        return self.ends_before_answer(key, turns)

    def turn(self, key: str) -> Message:
        """A field that must be one turn `{from, value}` of the assistant."""
        return self.by_assistant(key, self._turn(key, self._value.get(key)))

    def ends_before_answer(self, key: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns themselves: an answer can follow them."""
        if turns and turns[-1].role == "assistant":
            raise self.fail(key, "the last message is the assistant's, so there is nothing to answer: remove it")
        return turns

    def by_assistant(self, key: str, message: Message) -> Message:
        """The message itself: an answer is the assistant's."""
        if message.role != "assistant":
            raise self.fail(key, f"an answer is the assistant's, got the role {message.role!r}")
        return message

    def _message(self, key: str, value: object) -> Message:
        if not isinstance(value, dict):
            raise self.fail(key, f"expected a message {{role, content}}, got {json_type(value)}")
        role = self._part(key, value, "role")
        if role not in ROLES:
            raise self.fail(key, f"unknown role {_short(role)!r}.{_near(role, ROLES)} Known: {', '.join(ROLES)}")
        if carrier := next((name for name in _UNSUPPORTED_MESSAGE_KEYS if value.get(name)), None):
            raise self.fail(key, f"{carrier} cannot be trained on: only text can")
        self._ignore(key, value, ("role", "content"))
        content = value.get("content")
        if isinstance(content, list):
            return Message(
                role, "".join(self._text_part(f"{key}.content[{i}]", part) for i, part in enumerate(content))
            )
        return Message(role, self._part(key, value, "content"))

    def _turn(self, key: str, value: object) -> Message:
        if not isinstance(value, dict):
            raise self.fail(key, f"expected a turn {{from, value}}, got {json_type(value)}")
        speaker = self._part(key, value, "from")
        role = _SHAREGPT_ROLES.get(speaker.lower())
        if role is None:
            hint = _near(speaker, _SHAREGPT_ROLES)
            raise self.fail(key, f"unknown speaker {_short(speaker)!r}.{hint} Known: {', '.join(_SHAREGPT_ROLES)}")
        self._ignore(key, value, ("from", "value"))
        return Message(role, self._part(key, value, "value"))

    def _part(self, key: str, value: Mapping[str, object], name: str) -> str:
        part = value.get(name)
        if isinstance(part, str):
            return part
        if name in value:
            raise self.fail(f"{key}.{name}", f"expected a string, got {json_type(part)}")
        near = "".join({_near(other, [name]) for other in islice(value, 20)})
        raise self.fail(key, f"no {name} in this message; its keys are {_names(value)}.{near}")

    def _text_part(self, key: str, part: object) -> str:
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        raise self.fail(key, 'expected a part {"type": "text", "text": …}: only text can be trained on')

    def _ignore(self, key: str, value: Mapping[str, object], used: tuple[str, ...]) -> None:
        for name in value:
            if name not in used and value[name] is not None:
                self.ignored[f"{re.sub('[0-9]+', '', key)}.{_short(name)}"] = None


@row_format("native", "prompt", "chosen_response", "rejected_response", optional=("chosen_reward", "rejected_reward"))
def native(row: Fields) -> PreferencePair:
    """NeMo-Aligner's row: strings to the letter, or a list of messages with one message as each answer."""
    return _pair(row, "chosen_response", "rejected_response")


@row_format("trl", "prompt", "chosen", "rejected", optional=("chosen_reward", "rejected_reward"))
def trl(row: Fields) -> PreferencePair:
    """The row of TRL and OpenRLHF with a prompt of its own: strings, or lists of messages."""
    return _pair(row, "chosen", "rejected")


@row_format("alpaca", "instruction", "chosen", "rejected", optional=("input",), unused=("output",))
def alpaca(row: Fields) -> PreferencePair:
    """LLaMA-Factory's row: what to do and what with, as one message of the user."""
    instruction = row.text("instruction")
    given = row.text("input") if row.has("input") else ""
    content = f"{instruction}\n\n{given}" if given else instruction
    chosen, rejected = (Message("assistant", row.text(key)) for key in ("chosen", "rejected"))
    return PreferencePair((Message("user", content),), chosen, rejected, None, None, row.where)


@row_format("sharegpt", "conversations", "chosen", "rejected")
def sharegpt(row: Fields) -> PreferencePair:
    """ShareGPT's turns `{from, value}`, with one turn as each answer."""
    return PreferencePair(row.turns("conversations"), row.turn("chosen"), row.turn("rejected"), None, None, row.where)


def _pair(row: Fields, chosen: str, rejected: str) -> PreferencePair:
    prompt = row.prompt("prompt")
    return PreferencePair(
        prompt,
        row.answer(chosen, prompt),
        row.answer(rejected, prompt),
        row.reward("chosen_reward"),
        row.reward("rejected_reward"),
        row.where,
    )
