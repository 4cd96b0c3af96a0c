"""What a shape of rows is, the two registries of them, and how the shape of a row is found.

    @row_format("name", "the keys that", "it needs", optional=("the ones it may have",))
    def name(row: Fields) -> PreferencePair: ...

A shape is known by the keys of its rows, and where other shapes have the same ones by the types of their values
(`when`). Of several shapes that fit a row the most specific one wins: the one that needs all keys that the others need.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Literal

from dpolish.data.formats.answers import Candidates, Skipped
from dpolish.data.formats.fields import Fields, names, near
from dpolish.data.formats.messages import MEDIA, parse_json
from dpolish.data.read import Row, json_type
from dpolish.errors import DataError
from dpolish.records import NO_ARGUMENTS, Conversation, Message, PreferencePair, TemplateArguments
from dpolish.registry import Registry

Reading = PreferencePair | Candidates | Conversation | Skipped
"""What a row says."""

Reader = Callable[[Fields], Reading]

EXTRAS = ("system", "tools", "chat_template_kwargs", *MEDIA)
"""Keys that mean the same in every shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """A shape of rows: the keys that it is known by, and its reader."""

    name: str
    required: tuple[str, ...]
    one_of: tuple[tuple[str, ...], ...]
    """Groups of keys of which it needs one each."""
    optional: tuple[str, ...]
    """Keys that it uses where they are."""
    unused: tuple[str, ...]
    """Keys that belong to the shape and say nothing that a record needs: no surprise, so not reported."""
    when: Callable[[Mapping[str, object]], bool] | None
    """What else must hold, where the keys do not tell."""
    needs: str
    """The same in words."""
    grouped: bool
    """Whether rows of one prompt belong together, wherever they stand in the file."""
    description: str
    """One line."""
    seen: str
    """Data sets and tools that use it."""
    example: Mapping[str, object]
    """A row of it; empty where none is given."""
    reader: Reader

    @property
    def fields(self) -> str:
        """The fields that it needs, in words."""
        return ", ".join([*self.required, *(" or ".join(keys) for keys in self.one_of)])

    @property
    def known(self) -> frozenset[str]:
        """The keys that are no surprise in a row of it."""
        return frozenset((*self.required, *self._alternatives, *self.optional, *self.unused, *EXTRAS))

    @property
    def _alternatives(self) -> tuple[str, ...]:
        return tuple(key for keys in self.one_of for key in keys)

    def has_keys(self, value: Mapping[str, object]) -> bool:
        """Whether a row has every key that this shape needs; null counts as absent."""
        if any(value.get(key) is None for key in self.required):
            return False
        return all(any(value.get(key) is not None for key in keys) for keys in self.one_of)

    def fits(self, value: Mapping[str, object]) -> bool:
        """Whether a row has this shape."""
        return self.has_keys(value) and (self.when is None or self.when(value))

    def keys_in(self, value: Mapping[str, object]) -> frozenset[str]:
        """The keys of a row of this shape that the shape needs."""
        return frozenset((*self.required, *(key for key in self._alternatives if value.get(key) is not None)))

    def missing(self, value: Mapping[str, object]) -> list[str]:
        """What a row lacks, in words."""
        lacks = [f"{key} is null" if key in value else f"no {key}" for key in self.required if value.get(key) is None]
        for keys in self.one_of:
            if all(value.get(key) is None for key in keys):
                null = next((key for key in keys if key in value), None)
                lacks.append(f"{null} is null" if null else f"no {' or '.join(keys)}")
        return lacks

    def read(self, row: Fields) -> Reading:
        """What a row of this shape says; a DataError names the place and the field."""
        return _with_extras(self, row, self.reader(row))


FORMATS: Registry[Format] = Registry("row format")
"""Preference rows."""

SFT_FORMATS: Registry[Format] = Registry("SFT row format")
"""Demonstrations."""


def row_format(
    name: str,
    *required: str,
    one_of: tuple[tuple[str, ...], ...] = (),
    optional: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    when: Callable[[Mapping[str, object]], bool] | None = None,
    needs: str = "",
    grouped: bool = False,
    seen: str = "",
    example: Mapping[str, object] | None = None,
    registry: Registry[Format] = FORMATS,
) -> Callable[[Reader], Reader]:
    """Register a row reader under its name, with the keys that it needs and may use; its docstring describes it."""

    def register(reader: Reader) -> Reader:
        about = (reader.__doc__ or "").partition("\n")[0]
        shape = Format(
            name, required, one_of, optional, unused, when, needs, grouped, about, seen, example or {}, reader
        )
        registry.register(name)(shape)
        return reader

    return register


def detect(row: Row, registry: Mapping[str, Format] = FORMATS) -> Format:
    """The one shape that a row has. No shape, or more than one, is a DataError."""
    fitting = _fitting(row.value, registry)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = " and ".join(shape.name for shape in fitting)
        keys = names(row.value)
        raise DataError(f"{row.where}: the row fits {found}; the fields are {keys}. Say which with model.data.format.")
    raise DataError(f"{row.where}: no known row format; {_nearest(row.value, registry.values())}")


def detect_any(row: Row) -> tuple[Literal["preference", "sft"], Format]:
    """The shape of a row of either kind; preference comes first, because its rows may look like demonstrations too."""
    if _fitting(row.value, FORMATS):
        return "preference", detect(row, FORMATS)
    if _fitting(row.value, SFT_FORMATS):
        return "sft", detect(row, SFT_FORMATS)
    everything = [*FORMATS.values(), *SFT_FORMATS.values()]
    raise DataError(f"{row.where}: no known row format; {_nearest(row.value, everything)}")


def misfit(shape: Format, since: str, row: Row, registry: Mapping[str, Format]) -> str:
    """Why a row cannot be read as the shape of its file, which is known from `since`."""
    what = " and ".join(shape.missing(row.value)) or f"this is no row of that format ({shape.needs})"
    others = _fitting(row.value, registry)
    if others:
        remedy = (
            f" The row looks like {others[0].name}, but a file has one format: put such rows into a file of their own."
        )
    else:
        remedy = misspelt(shape, row.value)
    return (
        f"{row.where}: {what} here; the fields are {names(row.value)}. "
        f"The file is read as {shape.name} (from {since}).{remedy}"
    )


def misspelt(shape: Format, value: Mapping[str, object]) -> str:
    """Hints for keys of a row that are nearly those which the shape lacks."""
    wanted = [*shape.required, *(key for keys in shape.one_of for key in keys), *shape.optional]
    missing = [key for key in wanted if key not in value]
    hints = [(key, near(key, missing)) for key in islice(value, 50) if key not in shape.known]
    return "".join(f" {key!r} is none of its fields.{hint}" for key, hint in hints if hint)


def _fitting(value: Mapping[str, object], registry: Mapping[str, Format]) -> list[Format]:
    """The shapes that a row has, without those of which another one is a special case."""
    fitting = [(shape, shape.keys_in(value)) for shape in registry.values() if shape.fits(value)]
    return [shape for shape, keys in fitting if not any(keys < others for _, others in fitting)]


def _nearest(value: Mapping[str, object], shapes: Iterable[Format]) -> str:
    """The rest of the message about a row without a shape."""
    keys = tuple(value)
    if sum(map(len, keys)) < 10_000:
        return _nearest_to(keys, tuple(shapes))
    return _nearest_to.__wrapped__(keys, tuple(shapes))


@lru_cache(maxsize=64)  # a file without a shape may have many rows, all with the same keys
def _nearest_to(keys: tuple[str, ...], shapes: tuple[Format, ...]) -> str:
    value = dict.fromkeys(keys)
    ranked = sorted(shapes, key=lambda shape: _likeness(shape, value), reverse=True)
    listed = "; ".join(
        f"{shape.name}: {shape.fields}{f' ({shape.needs})' if shape.needs else ''}" for shape in ranked[:3]
    )
    return (
        f"the fields are {names(value)}.{misspelt(ranked[0], value)}\n"
        f"  The nearest formats and the fields that they need: {listed}. `dpolish check --formats` lists all of them."
    )


def _likeness(shape: Format, value: Mapping[str, object]) -> tuple[float, int, int]:
    wanted = [*shape.required, *(next((k for k in keys if k in value), keys[0]) for keys in shape.one_of)]
    there = sum(key in value for key in wanted)
    hints = min(len(wanted) - there, misspelt(shape, value).count("none of its fields"))
    return there + 0.9 * hints, hints, there - len(wanted)


def _with_extras(shape: Format, row: Fields, reading: Reading) -> Reading:
    """A reading with what the keys common to all shapes add to it."""
    extras = [key for key in EXTRAS if key in row.value and key not in shape.required and _is_given(row.value[key])]
    if not extras or isinstance(reading, Skipped):
        return reading
    for key in MEDIA:
        if key in extras:
            raise row.fail(key, "pictures and sound cannot be trained on: only text can")
    first = reading.pieces[0] if isinstance(reading, Conversation) else reading.prompt
    if isinstance(first, str):
        raise row.fail(
            extras[0], "a prompt that is a string is used to the letter: write it as messages, or in the text"
        )
    system = (Message("system", row.text("system")),) if "system" in extras else ()
    arguments = _arguments(row, extras)
    if isinstance(reading, Conversation):
        pieces = tuple(piece for piece in reading.pieces if isinstance(piece, Message))
        return replace(
            reading,
            pieces=_led(row, system, pieces),
            trained=(*(False for _ in system if not _leads(system, pieces)), *reading.trained),
            arguments=arguments,
        )
    prompt = reading.prompt
    assert not isinstance(prompt, str)
    return replace(reading, prompt=_led(row, system, prompt), arguments=arguments)


def _leads(system: tuple[Message, ...], turns: tuple[Message, ...]) -> bool:
    return turns[: len(system)] == system


def _led(row: Fields, system: tuple[Message, ...], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns behind the system's message, which may be theirs already."""
    if _leads(system, turns):
        return turns
    if turns and turns[0].role in ("system", "developer"):
        raise row.fail("system", "the messages begin with another system message already: remove one of the two")
    return (*system, *turns)


def _arguments(row: Fields, extras: list[str]) -> TemplateArguments:
    if not {"tools", "chat_template_kwargs"} & {*extras}:
        return NO_ARGUMENTS
    tools, kwargs = (_parsed(row, key) if key in extras else None for key in ("tools", "chat_template_kwargs"))
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        got = "others" if isinstance(tools, list) else json_type(tools)
        raise row.fail("tools", f"expected a list of objects, or one as JSON in a string, got {got}")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise row.fail("chat_template_kwargs", f"expected an object, got {json_type(kwargs)}")
    return TemplateArguments(
        row.json_text("tools", tools) if tools else "", row.json_text("chat_template_kwargs", kwargs) if kwargs else ""
    )


def _parsed(row: Fields, key: str) -> object:
    value = row.value[key]
    return parse_json(row, key, value) if isinstance(value, str) else value


def _is_given(value: object) -> bool:
    """Whether a value says something: null, blanks, and lists of nothing do not."""
    if isinstance(value, str):
        return bool(value.strip())
    return any(item not in (None, "", [], {}) for item in value) if isinstance(value, list) else value not in (None, {})
