"""Messages out of rows: `{role, content}` and `{from, value}`, prompts and answers made of them."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from dpolish.data.formats.fields import Fields, names, near, short
from dpolish.data.read import json_type
from dpolish.records import Message, Prompt, Response

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
"""The speakers that chat templates know."""

SPEAKERS = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""The speakers of turns `{from, value}`, in lower case, and their roles."""

MORE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Fields of a message that templates read besides role and content."""

LABEL_TYPES = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")
"""NeMo's types of a conversation with labels: the label before the text, or behind it."""

TRAIN_FLAGS = ("weight", "train", "training", "loss")
"""Fields of a message that say whether it is trained on: OpenAI's, axolotl's two, ms-swift's."""

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_REFUSED = (*MEDIA, "function_call")


def message(row: Fields, key: str, value: object, *, flagged: bool = False) -> Message:
    """One message `{role, content}`; `{from, value}` is read as well. With `flagged`, flags of training are in use."""
    if not isinstance(value, dict):
        raise row.fail(key, f"expected a message {{role, content}}, got {json_type(value)}")
    if "role" not in value and "from" in value and "value" in value:
        return turn(row, key, value)
    role = _part(row, key, value, "role")
    if role not in ROLES:
        raise row.fail(key, f"unknown role {short(role)!r}.{near(role, ROLES)} Known: {', '.join(ROLES)}")
    content = value.get("content")
    if len(value) == 2 and isinstance(content, str):
        return Message(role, content)
    if carrier := next((name for name in _REFUSED if _says_something(value.get(name))), None):
        remedy = ": write tool_calls" if carrier == "function_call" else ": only text can"
        raise row.fail(key, f"{carrier} cannot be trained on{remedy}")
    more = _more(row, key, value)
    used = ("role", "content", *MORE, *(TRAIN_FLAGS if flagged else ()))
    row.ignore(key, value, (*used, "label", "type") if "label" in more else used)
    return Message(role, _content(row, key, value), row.json_text(key, more) if more else "")


def turn(row: Fields, key: str, value: object, label_type: str | None = None) -> Message:
    """One turn `{from, value}`; `{role, content}` is read as well. `label_type` is that of NeMo's labels, if any."""
    if not isinstance(value, dict):
        raise row.fail(key, f"expected a turn {{from, value}}, got {json_type(value)}")
    if "from" not in value and "role" in value and "content" in value:
        return message(row, key, value)
    speaker = _part(row, key, value, "from")
    role = SPEAKERS.get(speaker.lower())
    if role is None:
        hint = near(speaker.lower(), SPEAKERS)
        raise row.fail(key, f"unknown speaker {short(speaker)!r}.{hint} Known: {', '.join(SPEAKERS)}")
    if len(value) > 2:
        row.ignore(key, value, ("from", "value", "label") if label_type else ("from", "value"))
    text = _part(row, key, value, "value")
    if speaker.lower() == "function_call":
        return Message(role, "", row.json_text(key, {"tool_calls": _calls(row, f"{key}.value", text)}))
    label = value.get("label")
    if label_type is None or label is None:
        return Message(role, text)
    if not isinstance(label, str):
        raise row.fail(f"{key}.label", f"expected a string, got {json_type(label)}")
    return Message(role, text, row.json_text(key, {"label": label, "type": label_type}))


def messages(row: Fields, key: str, *, flagged: bool = False) -> tuple[Message, ...]:
    """A field that must be a list of messages."""
    items = row.items(key, "messages")
    return tuple(message(row, f"{key}[{index}]", item, flagged=flagged) for index, item in enumerate(items))


def turns(row: Fields, key: str, label_type: str | None = None) -> tuple[Message, ...]:
    """A field that must be a list of turns `{from, value}`."""
    return tuple(turn(row, f"{key}[{i}]", item, label_type) for i, item in enumerate(row.items(key, "turns")))


def prompt(row: Fields, key: str) -> Prompt:
    """A string, or messages of which the last is not the assistant's."""
    value = row.value.get(key)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise row.fail(key, f"expected a string or a list of messages, got {json_type(value)}")
    return before_answer(row, key, messages(row, key))


def answer(row: Fields, key: str, to: Prompt) -> Response:
    """An answer of its prompt's kind: a string, or messages, alone or in a list.

    They begin and end with the assistant's. What repeats the whole prompt in front of the answer is left out.
    """
    value = row.value.get(key)
    if isinstance(to, str):
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(value, str):
            raise row.fail(key, f"expected a string, as the prompt is, got {json_type(value)}")
        return value
    if isinstance(value, dict):
        return by_assistant(row, key, (message(row, key, value),))
    if not isinstance(value, list):
        raise row.fail(key, f"expected a message, as the prompt is of messages, got {json_type(value)}")
    found = messages(row, key)
    if len(found) > len(to) and found[0].role != "assistant" and found[: len(to)] == to:
        found = found[len(to) :]
    return by_assistant(row, key, found)


def before_answer(row: Fields, key: str, found: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages themselves: an answer can follow them."""
    if found and found[-1].role == "assistant":
        raise row.fail(key, "the last message is the assistant's, so there is nothing to answer: remove it")
    return found


def by_assistant(row: Fields, key: str, found: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages themselves: they are an answer, which begins and ends with the assistant."""
    if not found:
        raise row.fail(key, "expected a message of the assistant, got an empty list")
    for end, verb in ((found[0], "begins"), (found[-1], "ends")):
        if end.role != "assistant":
            is_the = "is the assistant's" if len(found) == 1 else f"{verb} with the assistant's message"
            raise row.fail(key, f"an answer {is_the}, got the role {end.role!r}")
    return found


def split(
    row: Fields, keys: tuple[str, str], first: tuple[Message, ...], second: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The prompt that two conversations share, and the two answers: what follows from where they first differ."""
    for key, found in zip(keys, (first, second), strict=True):
        if not found or found[-1].role != "assistant":
            last = f"its last turn has the role {found[-1].role!r}" if found else "it is empty"
            raise row.fail(key, f"a conversation ends with the assistant's answer, and {last}")
    shared = next((i for i, (one, two) in enumerate(zip(first, second, strict=False)) if one != two), None)
    start = min(len(first), len(second)) - 1 if shared is None else shared
    roles = (first[start].role, second[start].role)
    if roles != ("assistant", "assistant") and not {*roles} <= {"assistant", "tool", "ipython"}:
        what = f"differs from {keys[0]} in message {start + 1} already, where {keys[0]} has the role {roles[0]!r}"
        raise row.fail(keys[1], f"{what} and {keys[1]} {roles[1]!r}: both need the same prompt")
    while start and (roles != ("assistant", "assistant") or first[start - 1].role == "assistant"):
        start -= 1
        roles = (first[start].role, second[start].role)
    return first[:start], by_assistant(row, keys[0], first[start:]), by_assistant(row, keys[1], second[start:])


def marked_turns(text: str, mark: re.Pattern[str], roles: Mapping[str, str]) -> tuple[str, tuple[Message, ...]]:
    """The text before the first mark, and a message for each mark, whose group 1 names the speaker."""
    before, *rest = mark.split(text)
    speakers, contents = rest[0::2], rest[1::2]
    return before, tuple(Message(roles[who], said.strip()) for who, said in zip(speakers, contents, strict=True))


def user(text: str) -> tuple[Message, ...]:
    """A prompt of one message."""
    return (Message("user", text),)


def assistant(text: str) -> tuple[Message, ...]:
    """An answer of one message."""
    return (Message("assistant", text),)


def train_flags(row: Fields, key: str) -> list[bool | None]:
    """For each message of a list, what its flags of training say; None where it has none."""
    found: list[bool | None] = []
    for fields in row.objects(key, "messages"):
        given = {name: fields.flag(name) for name in TRAIN_FLAGS if fields.has(name)}
        if len({*given.values()}) > 1:
            raise row.fail(f"{key}[{len(found)}]", f"{' and '.join(given)} contradict each other")
        found.append(next(iter(given.values()), None))
    return found


def _part(row: Fields, key: str, value: Mapping[str, object], name: str) -> str:
    part = value.get(name)
    if isinstance(part, str):
        return part
    if name in value:
        raise row.fail(f"{key}.{name}", f"expected a string, got {json_type(part)}")
    hint = "".join(dict.fromkeys(near(other, [name]) for other in islice(value, 20)))
    raise row.fail(key, f"no {name} in this message; its keys are {names(value)}.{hint}")


def _content(row: Fields, key: str, value: Mapping[str, object]) -> str:
    content = value.get("content")
    if isinstance(content, list):
        return "".join(_text_part(row, f"{key}.content[{i}]", part) for i, part in enumerate(content))
    if content is None and value.get("tool_calls"):
        return ""
    return _part(row, key, value, "content")


def _text_part(row: Fields, key: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise row.fail(key, 'expected a part {"type": "text", "text": …}: only text can be trained on')


def _more(row: Fields, key: str, value: Mapping[str, object]) -> dict[str, object]:
    """The further fields of a message that say something, in one order."""
    more: dict[str, object] = {}
    for name in MORE:
        field = value.get(name)
        if field in (None, "", []):
            continue
        if name == "tool_calls":
            if not isinstance(field, list) or not all(isinstance(call, dict) for call in field):
                got = "others" if isinstance(field, list) else json_type(field)
                raise row.fail(f"{key}.{name}", f"expected a list of objects, got {got}")
        elif not isinstance(field, str):
            raise row.fail(f"{key}.{name}", f"expected a string, got {json_type(field)}")
        more[name] = field
    if value.get("type") in LABEL_TYPES and isinstance(value.get("label"), str):
        more |= {"label": value["label"], "type": value["type"]}
    return more


def _calls(row: Fields, key: str, text: str) -> Sequence[object]:
    """ShareGPT's function calls, a JSON object or a list of them, as a template knows them."""
    parsed = parse_json(row, key, text)
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise row.fail(key, 'expected the JSON of a call {"name": …, "arguments": {…}}, or of a list of them')
    return [{"type": "function", "function": call} for call in calls]


def parse_json(row: Fields, key: str, text: str) -> object:
    """The value of a string that must hold JSON."""
    import orjson

    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise row.fail(key, f"expected JSON in this string: {error}") from error
    return value


def _says_something(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(item not in (None, "", [], {}) for item in items)
